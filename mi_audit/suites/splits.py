"""Train, calibration and test: by group and seed, so that no group, and no content, is on two sides.

A group's rank is SHA-256 of `seed|group`, so a split is the same on every machine and Python. Groups are stratified by the labels in them, and each
stratum is cut by the fractions with the largest remainder, counted over all strata so far: every split gets its share of the groups, and at least one
group of each stratum that has enough. Groups that share a prompt of equal content move together. A `split` field in the file wins over all of this.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Final

from mi_audit.errors import SuiteError
from mi_audit.suites.problems import RowError, shorten
from mi_audit.suites.prompt import Label, Prompt

SPLITS: Final = ("train", "calibration", "test")
FRACTIONS: Final = (0.4, 0.2, 0.4)
_SEAT_ORDER: Final = (0, 2, 1)


def explicit_split(prompt: Prompt) -> str | None:
    """What the file's `split` field says. Raises SuiteError when it is no split."""
    value = dict(prompt.fields).get("split")
    if value is None:
        return None
    if not isinstance(value, str) or value not in SPLITS:
        raise RowError(f"{shorten(value)} is no split", f"write {', '.join(SPLITS)}, or leave the column out: columns={{'split': None}}", "split")
    return value


def explicit_conflict(prompts: Sequence[Prompt]) -> tuple[int, int, str] | None:
    """Two positions whose `split` fields can't both hold, with what is wrong; None when all is well."""
    first = next((index for index, prompt in enumerate(prompts) if explicit_split(prompt)), None)
    if first is None:
        return None
    split_of: dict[str, int] = {}
    for index, prompt in enumerate(prompts):
        if explicit_split(prompt) is None:
            return first, index, "some rows have a split and some have none"
        earlier = split_of.setdefault(prompt.group, index)
        if explicit_split(prompts[earlier]) != explicit_split(prompt):
            return earlier, index, f"the group {shorten(prompt.group)} is in two splits"
    return None


def check_fractions(fractions: Sequence[float]) -> tuple[Fraction, Fraction, Fraction]:
    """The shares as exact fractions of 1. Raises SuiteError unless they are three, none negative, and add up to 1."""
    if len(fractions) != len(SPLITS) or any(not 0 <= share <= 1 for share in fractions) or abs(sum(fractions) - 1) > 1e-9:
        raise SuiteError(f"fractions={tuple(fractions)} are no shares of train, calibration and test; give three numbers from 0 to 1 that add up to 1")
    exact = [Fraction(str(share)) for share in fractions]
    total = sum(exact)
    return exact[0] / total, exact[1] / total, exact[2] / total


def assign(prompts: Sequence[Prompt], positive: str | None, seed: int, fractions: Sequence[float]) -> tuple[str, ...]:
    """The split of each prompt, in order. Raises SuiteError when `split` fields contradict each other, naming both prompts."""
    conflict = explicit_conflict(prompts)
    if conflict:
        earlier, later, what = conflict
        raise SuiteError(f"{what}: prompts {shorten(prompts[earlier].id)} and {shorten(prompts[later].id)}; give every row of a group the same split")
    if explicit_split(prompts[0]):
        return tuple(explicit_split(prompt) or "" for prompt in prompts)
    return _by_rank(prompts, positive, str(seed), check_fractions(fractions))


def held_out(prompts: Sequence[Prompt], positive: str | None, share: Fraction, key: str) -> tuple[bool, ...]:
    """For each prompt, in order, whether it is of the `share` of groups held out: cut as splits are, ranked by `key`, whatever a `split` field says."""
    return tuple(split == SPLITS[2] for split in _by_rank(prompts, positive, key, (1 - share, Fraction(0), share)))


def _by_rank(prompts: Sequence[Prompt], positive: str | None, key: str, shares: Sequence[Fraction]) -> tuple[str, ...]:
    block_of = _blocks(prompts)
    assigned: Counter[int] = Counter()
    split_of: dict[str, str] = {}
    done = 0
    for blocks in _strata(prompts, positive, block_of, key):
        done += len(blocks)
        counts = _cut(len(blocks), done, shares, assigned)
        assigned.update(dict(enumerate(counts)))
        names = [name for name, count in zip(SPLITS, counts, strict=True) for _ in range(count)]
        split_of.update(zip(blocks, names, strict=True))
    return tuple(split_of[block_of[prompt.group]] for prompt in prompts)


def _blocks(prompts: Sequence[Prompt]) -> dict[str, str]:
    """Each group's block, named by one of its groups: groups that share content, directly or through others, are one block."""
    parent: dict[str, str] = {}

    def root(group: str) -> str:
        while parent[group] != group:
            parent[group] = parent[parent[group]]
            group = parent[group]
        return group

    holder: dict[str, str] = {}
    for prompt in prompts:
        parent.setdefault(prompt.group, prompt.group)
        first, second = root(holder.setdefault(prompt.digest, prompt.group)), root(prompt.group)
        parent[max(first, second)] = min(first, second)
    return {group: root(group) for group in parent}


def _strata(prompts: Sequence[Prompt], positive: str | None, block_of: Mapping[str, str], key: str) -> list[list[str]]:
    """Blocks with the same set of classes, in the order of their hash; the strata in an order that only the classes decide."""
    classes: defaultdict[str, set[Label]] = defaultdict(set)
    for prompt in prompts:
        binary = positive is not None and isinstance(prompt.label, str)
        classes[block_of[prompt.group]].add(prompt.label == positive if binary else prompt.label)
    strata: defaultdict[tuple[str, ...], list[str]] = defaultdict(list)
    for block, labels in classes.items():
        strata[tuple(sorted(repr(label) for label in labels))].append(block)
    return [sorted(strata[stratum], key=lambda block: (_rank(key, block), block)) for stratum in sorted(strata)]


def _rank(key: str, name: str) -> str:
    return hashlib.sha256(f"{key}|{name}".encode()).hexdigest()


def _cut(size: int, done: int, shares: Sequence[Fraction], assigned: Counter[int]) -> list[int]:
    """How many of a stratum's `size` blocks each split gets, when `done` blocks, these included, are to be shared out and `assigned` are so far."""
    counts = [int(size * share) for share in shares]
    seats = [index for index in _SEAT_ORDER if shares[index] > 0]
    deficit = {index: done * shares[index] - assigned[index] - counts[index] for index in seats}
    for index in sorted(seats, key=lambda index: -deficit[index])[: size - sum(counts)]:
        counts[index] += 1
    if size >= len(seats):
        for index in seats:
            if counts[index] == 0:
                counts[max(seats, key=lambda other: counts[other])] -= 1
                counts[index] = 1
    return counts
