"""Prompt suites: formats, labels, groups and splits. Loads neither torch nor pandas, and pyarrow only to read a Parquet file."""

from mi_audit.suites.check import SplitCount, SuiteCheck, check
from mi_audit.suites.problems import Place, Problem
from mi_audit.suites.prompt import Message, Prompt
from mi_audit.suites.suite import Suite, concat, suite

__all__ = ["Message", "Place", "Problem", "Prompt", "SplitCount", "Suite", "SuiteCheck", "check", "concat", "suite"]
