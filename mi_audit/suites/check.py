"""Checking a suite's file: every error with its line, and what would weaken the claims that rest on it. For people and CI; rendering is the caller's."""

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from mi_audit.suites import limits
from mi_audit.suites.files import locate
from mi_audit.suites.findings import (
    certainty_finding,
    class_findings,
    content_findings,
    group_findings,
    label_findings,
    length_correlation,
    smallest_certifiable_rate,
    split_findings,
)
from mi_audit.suites.problems import Problem
from mi_audit.suites.prompt import Prompt
from mi_audit.suites.reading import Columns, Options, read_file
from mi_audit.suites.splits import FRACTIONS, SPLITS
from mi_audit.suites.suite import Suite


@dataclass(frozen=True)
class SplitCount:
    """A split of the suite: how many prompts, groups, and labels of each kind ("" is a missing label; true and false are written so)."""

    name: str
    prompts: int
    groups: int
    labels: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class SuiteCheck:
    """What a check found. `suite` is None when an error keeps it from loading; then the counts are of the rows that could be read.

    `length_correlation`: rank-biserial, of label and length in characters; None without two classes. `negative_groups`: groups with a prompt that is not of the
    positive class (of an unlabelled suite, all) in the test split; `certifiable_rate`: the lowest false positive rate that they can show, at `alpha`;
    None without any. `unlisted_errors`: errors beyond the limit.
    """

    source: str
    prompts: int
    groups: int
    chats: int
    responses: int
    labels: tuple[tuple[str, int], ...]
    splits: tuple[SplitCount, ...]
    length_correlation: float | None
    negative_groups: int
    certifiable_rate: float | None
    alpha: float
    problems: tuple[Problem, ...]
    unlisted_errors: int
    suite: Suite | None

    @property
    def ok(self) -> bool:
        """Whether the suite loads."""
        return self.suite is not None

    @property
    def errors(self) -> tuple[Problem, ...]:
        """What keeps the suite from loading, in the order of the file."""
        return self._of("error")

    @property
    def warnings(self) -> tuple[Problem, ...]:
        """What would weaken claims."""
        return self._of("warning")

    @property
    def notes(self) -> tuple[Problem, ...]:
        """What is good to know."""
        return self._of("note")

    def _of(self, severity: str) -> tuple[Problem, ...]:
        return tuple(problem for problem in self.problems if problem.severity == severity)


def check(
    source: str | os.PathLike[str],
    *,
    positive: str | None = None,
    columns: Columns | None = None,
    chat: bool = False,
    label: str | bool | None = None,
    split_seed: int = 0,
    fractions: tuple[float, float, float] = FRACTIONS,
    alpha: float = 0.025,
) -> SuiteCheck:
    """Check a suite's file, with the options of `suite`; a path is relative to the working directory. Lists up to `limits.PROBLEMS` errors.

    Raises SuiteError when there is no file to read: absent, empty, a link, too large, of an unknown format.
    """
    located = locate(source, Path.cwd(), "in the working directory")
    errors = _Errors()
    read = read_file(located, Options(dict(columns or {}), chat, label, positive), errors)
    rows = tuple(prompt for _, prompt in read.prompts)
    findings: list[Problem] = []
    if rows:
        findings += [*content_findings(read.prompts, read.place), *group_findings(read.prompts, read.place), *label_findings(read.prompts, read.place)]
    suite = None if errors.count else Suite(located.path.stem, rows, positive, located.display, split_seed, fractions)
    negatives = 0
    if suite:
        negatives = _negative_groups(suite)
        findings += [*split_findings(suite, read.place), certainty_finding(negatives, alpha, read.place)]
        findings += class_findings(suite, read.place) if suite.has_labels else ()
    return SuiteCheck(
        source=located.display,
        prompts=len(rows),
        groups=len({prompt.group for prompt in rows}),
        chats=sum(prompt.is_chat for prompt in rows),
        responses=sum(prompt.response is not None for prompt in rows),
        labels=_labels(rows),
        splits=_splits(suite) if suite else (),
        length_correlation=length_correlation(suite) if suite and suite.has_labels else None,
        negative_groups=negatives,
        certifiable_rate=smallest_certifiable_rate(negatives, alpha) if negatives else None,
        alpha=alpha,
        problems=(*errors.first, *findings),
        unlisted_errors=errors.count - len(errors.first),
        suite=suite,
    )


@dataclass
class _Errors:
    """A `Report` that keeps the first errors, and counts the rest."""

    first: list[Problem] = field(default_factory=list)
    count: int = 0

    def __call__(self, problem: Problem) -> None:
        self.count += 1
        if self.count <= limits.PROBLEMS:
            self.first.append(problem)


def _splits(suite: Suite) -> tuple[SplitCount, ...]:
    assigned = suite.splits()
    counts = []
    for split in SPLITS:
        prompts = [prompt for prompt, own in zip(suite, assigned, strict=True) if own == split]
        counts.append(SplitCount(split, len(prompts), len({prompt.group for prompt in prompts}), _labels(prompts)))
    return tuple(counts)


def _labels(prompts: Iterable[Prompt]) -> tuple[tuple[str, int], ...]:
    names = (prompt.label if isinstance(prompt.label, str) else {None: "", False: "false", True: "true"}[prompt.label] for prompt in prompts)
    return tuple(sorted(Counter(names).items()))


def _negative_groups(suite: Suite) -> int:
    positive = suite.labels() if suite.has_labels else (False,) * len(suite)
    rows = zip(suite, suite.splits(), positive, strict=True)
    return len({prompt.group for prompt, split, truth in rows if split == "test" and not truth})
