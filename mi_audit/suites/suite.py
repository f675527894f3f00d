"""A suite of prompts, loaded whole: what is digested is what is used. Everything derived from it stays on its own side of the split."""

import hashlib
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property
from pathlib import Path

from mi_audit.errors import SuiteError
from mi_audit.suites.files import Located, locate
from mi_audit.suites.problems import Place, listing, raise_problem, shorten
from mi_audit.suites.prompt import FieldValue, Prompt, canonical_json, check_name
from mi_audit.suites.reading import Columns, Options, read_file, read_items
from mi_audit.suites.selection import sample_positions, spread_positions
from mi_audit.suites.splits import FRACTIONS, SPLITS, assign, check_fractions, held_out

_SCHEMA = "mi-audit suite 1"


@dataclass(frozen=True, eq=False, repr=False)
class Suite:
    """Prompts in order, with the name of the positive class. Frozen and hashable; two suites are equal when their digests are.

    `suite["test"]` is a view of one split; `where`, `sample` and `head` choose prompts. What is derived inherits the split of the suite that it came from,
    so `pairs.where(topic="tax")["train"]` has no group in common with `pairs["test"]`.
    """

    name: str
    prompts: tuple[Prompt, ...]
    positive: str | None = None
    source: str = "python"
    split_seed: int = 0
    fractions: tuple[float, float, float] = FRACTIONS
    view: str = ""
    origin: "Suite | None" = field(default=None, repr=False)
    positions: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.prompts:
            raise SuiteError(f"the suite {shorten(self.name)} ({self.source}) has no prompts; a suite needs at least one")
        check_fractions(self.fractions)

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) over the positive class and, in order, each prompt's id, digest, label, group and fields; name and source have no part in it."""
        digest = hashlib.sha256(canonical_json([_SCHEMA, self.positive]))
        for prompt in self.prompts:
            digest.update(b"\n" + canonical_json([prompt.id, prompt.digest, prompt.label, prompt.group, prompt.fields]))
        return digest.hexdigest()

    @property
    def root(self) -> "Suite":
        """The suite that this one was cut from in the first place; itself where it was not cut."""
        suite = self
        while suite.origin is not None:
            suite = suite.origin
        return suite

    @property
    def is_matched(self) -> bool:
        """Whether each of its groups holds prompts of both classes, as a topic with its benign counterparts does."""
        if not self.has_labels:
            return False
        seen: dict[str, set[bool]] = {}
        for group, label in zip(self.groups(), self.labels(), strict=True):
            seen.setdefault(group, set()).add(label)
        return all(len(labels) == 2 for labels in seen.values())

    @property
    def parent(self) -> str | None:
        """The name of the suite that this one was derived from."""
        return self.origin.name if self.origin else None

    @property
    def has_labels(self) -> bool:
        """Whether `labels()` has an answer: every prompt has a label and the positive class is known."""
        return all(isinstance(prompt.label, bool) or (isinstance(prompt.label, str) and self.positive is not None) for prompt in self.prompts)

    def labels(self) -> tuple[bool, ...]:
        """Per prompt, whether it is of the positive class. Raises SuiteError when a label is missing, or the positive class unknown."""
        return self._labels

    def one_class(self) -> bool:
        """Whether every prompt has the same class. Raises SuiteError as `labels` does."""
        return len(set(self._labels)) == 1

    def groups(self) -> tuple[str, ...]:
        """Each prompt's group."""
        return tuple(prompt.group for prompt in self.prompts)

    def ids(self) -> tuple[str, ...]:
        """Each prompt's id, unique within the suite."""
        return tuple(prompt.id for prompt in self.prompts)

    def splits(self) -> tuple[str, ...]:
        """Each prompt's split. Raises SuiteError when the file's own `split` fields contradict each other."""
        return self._splits

    def split(self, seed: int = 0, fractions: tuple[float, float, float] = FRACTIONS) -> "Suite":
        """The same prompts, whose views are drawn with this seed and these shares of train, calibration and test. Raises SuiteError on a view."""
        self._refuse_view("split")
        return replace(self, split_seed=seed, fractions=fractions, origin=None, positions=())

    def where(self, **equals: FieldValue) -> "Suite":
        """The prompts whose label, group, id or fields equal all the values given. Raises SuiteError when none do, listing the values there are."""
        positions: Sequence[int] = range(len(self.prompts))
        for name, wanted in equals.items():
            values = [_value(prompt, name) for prompt in self.prompts]
            positions = [index for index in positions if _same(values[index], wanted)]
            if not positions:
                raise SuiteError(f"{self._called}: no prompt has {name}={wanted!r}; {_values_found(self, name, values)}")
        conditions = ", ".join(f"{name}={shorten(value)}" for name, value in equals.items())
        return self._derive(positions, f"[{conditions}]") if equals else self

    def sample(self, n: int, seed: int = 0) -> "Suite":
        """`n` prompts at random by seed, in the suite's order. Raises SuiteError when there are not that many."""
        if not 1 <= n <= len(self):
            raise SuiteError(f"{self._called}: a sample of {n} can't be taken from {len(self)} prompts; ask for 1 to {len(self)}")
        return self._derive(sample_positions(self.prompts, n, seed), f"[sample {n}, seed {seed}]")

    def divide(self, share: Fraction, key: str) -> tuple["Suite", "Suite"]:
        """Two parts without a group or a content in common, stratified by class: the rest, and about `share` of the groups, drawn by `key`.

        Raises SuiteError when there are too few groups for two parts.
        """
        out = held_out(self.prompts, self.positive, share, key)
        if all(out) or not any(out):
            raise SuiteError(f"{self._called}: its {len(set(self.groups()))} groups can't be cut in two; add groups")
        kept, apart = ([index for index, held in enumerate(out) if held is side] for side in (False, True))
        return self._derive(kept, f"[all but {share}]"), self._derive(apart, f"[{share}]")

    def one_per_group(self) -> "Suite":
        """The first prompt of each group, in the suite's order."""
        first: dict[str, int] = {}
        for index, prompt in enumerate(self.prompts):
            first.setdefault(prompt.group, index)
        return self if len(first) == len(self) else self._derive(tuple(first.values()), "[one per group]")

    def first(self, n: int) -> "Suite":
        """The first `n` prompts, as they stand."""
        return self if n >= len(self) else self._derive(range(n), f"[first {n}]")

    def head(self, n: int) -> "Suite":
        """At most `n` prompts for a partial run: the same ones each time, spread over labels, splits and groups, in the suite's order."""
        if n < 1:
            raise SuiteError(f"{self._called}: the first {n} prompts are none; ask for at least 1")
        if n >= len(self):
            return self
        kinds = self._labels if self.has_labels else tuple(prompt.label for prompt in self.prompts)
        splits = self._splits if not self.view else ("",) * len(self)
        return self._derive(spread_positions(self.prompts, [f"{split} {kind!r}" for split, kind in zip(splits, kinds, strict=True)], n), f"[head {n}]")

    def __getitem__(self, split: str) -> "Suite":
        """The view of one split: "train", "calibration" or "test". Raises SuiteError when it is empty, or this is a view already."""
        if split not in SPLITS:
            raise SuiteError(f"{self._called} has no split {shorten(split)}; the splits are {', '.join(SPLITS)}")
        self._refuse_view(f"[{split!r}]")
        positions = [index for index, assigned in enumerate(self._splits) if assigned == split]
        if not positions:
            counts = Counter(self._splits)
            sizes = ", ".join(f"{name} {counts[name]}" for name in SPLITS)
            raise SuiteError(
                f"{self._called}: the split {split!r} is empty ({sizes} prompts in {len(set(self.groups()))} groups); "
                "add groups, or choose other fractions with .split(fractions=…)"
            )
        return self._derive(positions, f"[{split}]", view=split)

    def __len__(self) -> int:
        return len(self.prompts)

    def __iter__(self) -> Iterator[Prompt]:
        return iter(self.prompts)

    def __eq__(self, other: object) -> bool:
        return self.digest == other.digest if isinstance(other, Suite) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"Suite({self.name!r}, {len(self)} prompts in {len(set(self.groups()))} groups, {self.source})"

    @property
    def _called(self) -> str:
        return f"the suite {shorten(self.name)} ({self.source})"

    @cached_property
    def _labels(self) -> tuple[bool, ...]:
        labels: list[bool] = []
        for prompt in self.prompts:
            if prompt.label is None:
                raise SuiteError(f"{self._called}: prompt {shorten(prompt.id)} has no label; label every row, or the whole file with label=")
            if isinstance(prompt.label, str) and self.positive is None:
                found = list(dict.fromkeys(str(other.label) for other in self.prompts if other.label is not None))
                raise SuiteError(
                    f"{self._called}: which class is positive? Prompt {shorten(prompt.id)} has the label {shorten(prompt.label)}, and the labels are "
                    f"{listing(found)}; name one: positive={found[0]!r}"
                )
            labels.append(prompt.label if isinstance(prompt.label, bool) else prompt.label == self.positive)
        return tuple(labels)

    @cached_property
    def _splits(self) -> tuple[str, ...]:
        if self.origin:
            whole = self.origin._splits
            return tuple(whole[index] for index in self.positions)
        try:
            return assign(self.prompts, self.positive, self.split_seed, self.fractions)
        except SuiteError as error:
            raise SuiteError(f"{self._called}: {error}") from error

    def _refuse_view(self, asked: str) -> None:
        if self.view:
            raise SuiteError(f"{self._called} is the split {self.view!r} already: {asked} would mix what was kept apart; ask it of the whole suite")

    def _derive(self, positions: Sequence[int], suffix: str, view: str = "") -> "Suite":
        prompts = tuple(self.prompts[index] for index in positions)
        return replace(self, name=self.name + suffix, prompts=prompts, view=view or self.view, origin=self, positions=tuple(positions))


def suite(
    source: str | os.PathLike[str] | Iterable[Mapping[str, object] | Prompt | str],
    *,
    positive: str | None = None,
    name: str | None = None,
    columns: Columns | None = None,
    chat: bool = False,
    label: str | bool | None = None,
    split_seed: int = 0,
    fractions: tuple[float, float, float] = FRACTIONS,
) -> Suite:
    """Load a suite, whole: from a file (.jsonl, .json, .csv, .parquet), a shipped suite's bare name, or dicts, texts and Prompts in Python.

    A path is relative to the file that calls (in a notebook, to the working directory). `positive` names the positive class where labels are strings.
    `columns={"text": "statement", "group": "city", "notes": None}` says which column is which, and None leaves one out; a column that gives the groups stays
    readable as a field, and one whose name another takes over is left out. `chat=True` turns each text into one message of the user. `label` labels a file that
    has no labels. `name` defaults to the file's stem.
    Raises SuiteError on the first row that can't be used, naming file, line, field and the fix.
    """
    options = Options(columns=dict(columns or {}), chat=chat, label=label, positive=positive)
    if isinstance(source, str | os.PathLike):
        located = locate(source, *_caller(sys._getframe(1).f_globals.get("__file__")))
        return suite_from_file(located, options, name=name, split_seed=split_seed, fractions=fractions)
    if name is None:
        raise SuiteError("a suite made in Python needs a name; give name=")
    if isinstance(source, Mapping):
        raise SuiteError(f"the suite {shorten(name)} is given as one dict; give a list of dicts, one a prompt")
    _check_suite_name(name)
    prompts = read_items(source, Place(f"the suite {shorten(name)}", "item"), options, raise_problem)
    return Suite(name, tuple(prompts), positive, "python", split_seed, fractions)


def suite_from_file(
    located: Located, options: Options, *, name: str | None = None, split_seed: int = 0, fractions: tuple[float, float, float] = FRACTIONS
) -> Suite:
    """Load a suite from a file that was found already. Raises SuiteError as `suite` does."""
    name = name or located.path.stem
    _check_suite_name(name)
    prompts = tuple(prompt for _, prompt in read_file(located, options, raise_problem).prompts)
    return Suite(name, prompts, options.positive, located.display, split_seed, fractions)


def concat(*suites: Suite, name: str, split_seed: int = 0, fractions: tuple[float, float, float] = FRACTIONS) -> Suite:
    """Join suites into one, in order; labels become true and false by each suite's own `positive`. What holds a view can't be split again.

    Raises SuiteError on an id that two of them have, or when some are labelled and others are not.
    """
    _check_suite_name(name)
    if not suites:
        raise SuiteError(f"the suite {shorten(name)} joins no suites; give at least one")
    labelled = any(prompt.label is not None for part in suites for prompt in part)
    holder: dict[str, str] = {}
    prompts: list[Prompt] = []
    for part in suites:
        labels = part.labels() if labelled else (None,) * len(part)
        for prompt, label in zip(part, labels, strict=True):
            if prompt.id in holder:
                raise SuiteError(f"the suites {holder[prompt.id]!r} and {part.name!r} both have a prompt {shorten(prompt.id)}; give them ids of their own")
            holder[prompt.id] = part.name
            prompts.append(replace(prompt, label=label))
    view = "+".join(sorted({part.view for part in suites if part.view}))
    source = " + ".join(dict.fromkeys(part.source for part in suites))
    return Suite(name, tuple(prompts), None, source, split_seed, fractions, view=view)


def _caller(file: str | None) -> tuple[Path, str]:
    """The folder that paths are relative to, and how a message calls it."""
    if file is None:
        return Path.cwd(), "in the working directory"
    path = Path(os.path.abspath(file))
    return path.parent, f"beside {path.name}"


def _check_suite_name(name: str) -> None:
    check_name(name, "name")
    if "[" in name or "]" in name:
        raise SuiteError(f"the suite name {shorten(name)} holds a bracket, which marks a part of a suite; choose another name=")


def _value(prompt: Prompt, name: str) -> FieldValue:
    own: dict[str, FieldValue] = {"label": prompt.label, "group": prompt.group, "id": prompt.id}
    return own[name] if name in own else dict(prompt.fields).get(name)


def _same(value: FieldValue, wanted: FieldValue) -> bool:
    return value == wanted and isinstance(value, bool) == isinstance(wanted, bool)


def _values_found(suite: Suite, name: str, values: Sequence[FieldValue]) -> str:
    found = list(dict.fromkeys(str(value) for value in values if value is not None))
    if found:
        return f"the values are {listing(found)}"
    names = sorted({key for prompt in suite for key, _ in prompt.fields})
    return f"there is no such field; those there are: {listing(['label', 'group', 'id', *names])}"
