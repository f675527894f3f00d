"""What weakens a suite although it loads: repeated content, thin groups, labels that something trivial gives away, splits without a class."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import groupby
from statistics import median
from typing import Final

from mi_audit.suites.problems import Place, Problem, listing, shorten
from mi_audit.suites.prompt import Prompt
from mi_audit.suites.splits import SPLITS, explicit_split
from mi_audit.suites.suite import Suite
from mi_audit.suites.whole import Numbered

FEWEST_GROUPS: Final = 10
"""Below this many groups no interval of ours was validated, so claims end INCONCLUSIVE."""
LENGTH_CORRELATION: Final = 0.3
"""Rank-biserial correlation of label and length from which a reader should wonder what a probe reads."""

FALSE_POSITIVE_RATE: Final = 0.01
"""The rate that a check tells whether the negatives suffice for."""


def smallest_certifiable_rate(negatives: int, alpha: float) -> float:
    """The exact one-sided upper bound (Clopper–Pearson) on a rate of which none of `negatives` was an instance: 1 − alpha^(1/n)."""
    return 1 - math.pow(alpha, 1 / negatives)


def negatives_needed(rate: float, alpha: float) -> int:
    """How many negatives without a false alarm bound the false positive rate by `rate`."""
    return math.ceil(math.log(alpha) / math.log1p(-rate))


def length_correlation(suite: Suite) -> float | None:
    """Rank-biserial correlation of the label with the prompt's length in characters, from −1 to 1 (2 AUROC − 1, ties counted half); None with one class."""
    pairs = sorted((_length(prompt), positive) for prompt, positive in zip(suite, suite.labels(), strict=True))
    positives = sum(positive for _, positive in pairs)
    negatives = len(pairs) - positives
    if not positives or not negatives:
        return None
    wins = 0.0
    below = 0
    for _, tied in groupby(pairs, key=lambda pair: pair[0]):
        here = Counter(positive for _, positive in tied)
        wins += here[True] * (below + here[False] / 2)
        below += here[False]
    return 2 * wins / (positives * negatives) - 1


def content_findings(prompts: Sequence[Numbered], place: Place) -> Iterator[Problem]:
    """Prompts of equal content: repeated, labelled both ways, or on two sides of the file's own split."""
    same: defaultdict[str, list[Numbered]] = defaultdict(list)
    for number, prompt in prompts:
        same[prompt.digest].append((number, prompt))
    repeated = [rows for rows in same.values() if len(rows) > 1]
    kinds = (
        (repeated, "stand more than once", "remove the repeats, they add no evidence"),
        ([rows for rows in repeated if len({prompt.label for _, prompt in rows}) > 1], "have two labels", "decide which is right"),
        ([rows for rows in repeated if len({explicit_split(prompt) for _, prompt in rows}) > 1], "are in two splits", "keep them in one split"),
    )
    for found, what, fix in kinds:
        if found:
            examples = "; ".join(" and ".join(str(number) for number, _ in rows[:4]) for rows in found[:5])
            yield Problem("warning", place.at(found[0][1][0]), f"{len(found)} contents {what} ({place.unit}s {examples})", fix)


def group_findings(prompts: Sequence[Numbered], place: Place) -> Iterator[Problem]:
    """Too few groups, groups of a single prompt among larger ones, or none given at all."""
    sizes = Counter(prompt.group for _, prompt in prompts)
    first: dict[str, int] = {}
    for number, prompt in prompts:
        first.setdefault(prompt.group, number)
    if len(sizes) < FEWEST_GROUPS:
        what = f"there are only {len(sizes)} groups; n is counted in groups, and below {FEWEST_GROUPS} claims end INCONCLUSIVE"
        yield Problem("warning", place, what, "add groups (templates, entities, pairs)", "group")
    if len(sizes) == len(prompts):
        what = "every prompt is a group of its own"
        yield Problem("note", place, what, "if some come from one template, entity or pair, give them the same group", "group")
    thin = [group for group, size in sizes.items() if size == 1]
    if thin and median(sizes.values()) >= 4:
        what = f"{len(thin)} groups hold a single prompt, where half of all groups hold {median(sizes.values()):g} or more: {listing(thin, most=5)}"
        yield Problem("warning", place.at(first[thin[0]]), what, "look for a misspelt group", "group")


def label_findings(prompts: Sequence[Numbered], place: Place) -> Iterator[Problem]:
    """Rows without a label in a file that has labels."""
    bare = [number for number, prompt in prompts if prompt.label is None]
    if bare and len(bare) < len(prompts):
        what = f"{len(bare)} of {len(prompts)} rows have no label"
        yield Problem("warning", place.at(bare[0]), what, "label them: a suite with gaps has no AUROC or recall", "label")


def class_findings(suite: Suite, place: Place) -> Iterator[Problem]:
    """What gives the label away, for a suite whose `labels()` are known."""
    classes: defaultdict[str, set[bool]] = defaultdict(set)
    for prompt, positive in zip(suite, suite.labels(), strict=True):
        classes[prompt.group].add(positive)
    if suite.one_class():
        yield Problem("note", place, "every prompt has the same class", "for an AUROC or a recall it needs both", "label")
        return
    mixed = sum(len(found) == 2 for found in classes.values())
    if not mixed and len(classes) < len(suite):
        what = "no group holds both classes, so whatever tells the groups apart tells the labels apart"
        yield Problem("warning", place, what, "add matched prompts of the other class to each group", "group")
    elif mixed and mixed < len(classes):
        lopsided = [group for group, found in classes.items() if len(found) == 1]
        yield Problem("note", place, f"{len(lopsided)} of {len(classes)} groups hold one class only: {listing(lopsided, most=5)}", "", "group")
    correlation = length_correlation(suite)
    if correlation is not None and abs(correlation) >= LENGTH_CORRELATION:
        longer = "longer" if correlation > 0 else "shorter"
        what = f"the positive prompts are {longer}: length alone separates the labels with an AUROC of {(1 + abs(correlation)) / 2:.2f}"
        yield Problem("warning", place, what, "match the lengths, or expect the length baseline to come close to the probe", "label")


def split_findings(suite: Suite, place: Place) -> Iterator[Problem]:
    """Splits that come out empty, or without a class that the suite has."""
    both = suite.has_labels and not suite.one_class()
    assigned = suite.splits()
    for split in SPLITS:
        if split not in assigned:
            yield Problem("warning", place, f"the split {shorten(split)} comes out empty", "add groups, or choose other fractions")
        elif both and suite[split].one_class():
            yield Problem("warning", place, f"the split {shorten(split)} holds one class only", "add groups that hold the other")


def certainty_finding(negatives: int, alpha: float, place: Place) -> Problem:
    """What false positive rate the test split could show, for `negatives` groups without the positive class."""
    needed = negatives_needed(FALSE_POSITIVE_RATE, alpha)
    if negatives >= needed:
        what = f"the test split has {negatives} groups of negatives: enough to show a false positive rate of {FALSE_POSITIVE_RATE:.0%}"
        return Problem("note", place, what, f"with no false alarm {needed} do")
    best = f"could show at best a rate of {smallest_certifiable_rate(negatives, alpha):.1%}" if negatives else "can show none"
    what = f"the test split has {negatives} groups of negatives: with no false alarm at all they {best}"
    return Problem("note", place, what, f"a claim of at most {FALSE_POSITIVE_RATE:.0%} needs {needed}")


def _length(prompt: Prompt) -> int:
    turns = sum(len(message.content) for message in prompt.messages or ())
    return len(prompt.text or "") + turns + len(prompt.response or "")
