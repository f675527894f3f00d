"""`mi-audit plan`: what audits would decide, before any model loads."""

from pathlib import Path
from typing import Annotated

import typer

from mi_audit.cli.pytesting import run_pytest


def plan(paths: Annotated[list[Path], typer.Argument(help="audit files or folders")]) -> None:
    """Print audits, claims with thresholds, suites with sizes, hook points and the plan's digest. No model is loaded."""
    raise typer.Exit(run_pytest(["--audit-plan", "-q", "--no-header", "-rN", *map(str, paths)]))
