"""What must hold over all the rows of a suite: ids, the kind of the labels, the positive class, explicit splits."""

from collections.abc import Iterator, Sequence

from mi_audit.suites.problems import Place, Problem, listing, shorten
from mi_audit.suites.prompt import Prompt
from mi_audit.suites.splits import explicit_conflict

Numbered = tuple[int, Prompt]
"""A prompt and the number of its line, row or item."""


def whole_problems(prompts: Sequence[Numbered], place: Place, positive: str | None) -> Iterator[Problem]:
    """The errors that only show when the rows are seen together, each at the line of the later row and naming the earlier one."""
    yield from _repeated_ids(prompts, place)
    yield from _labels(prompts, place, positive)
    conflict = explicit_conflict([prompt for _, prompt in prompts])
    if conflict:
        earlier, later, what = conflict
        fix = "give every row a split, the same one to all rows of a group"
        yield Problem("error", place.at(prompts[later][0]), f"{what} ({place.unit} {prompts[earlier][0]} and this one)", fix, "split")


def _repeated_ids(prompts: Sequence[Numbered], place: Place) -> Iterator[Problem]:
    seen: dict[str, int] = {}
    for number, prompt in prompts:
        if prompt.id in seen:
            what = f"{shorten(prompt.id)} is the id of {place.unit} {seen[prompt.id]} already"
            yield Problem("error", place.at(number), what, "give each prompt an id of its own", "id")
        seen.setdefault(prompt.id, number)


def _labels(prompts: Sequence[Numbered], place: Place, positive: str | None) -> Iterator[Problem]:
    first: dict[type, int] = {}
    for number, prompt in prompts:
        first.setdefault(type(prompt.label), number)
    if bool in first and str in first:
        what = f"is a string in {place.unit} {first[str]} and true or false in {place.unit} {first[bool]}"
        yield Problem("error", place.at(max(first[str], first[bool])), what, "write all labels alike", "label")
    elif positive is None or not prompts:
        return
    elif bool in first:
        yield Problem("error", place.at(first[bool]), f"is true or false, so positive={positive!r} names no class", "leave positive= out", "label")
    elif type(None) in first:
        what = f"is missing, and positive={positive!r} needs one on every row"
        yield Problem("error", place.at(first[type(None)]), what, "label the row, or leave positive= out", "label")
    else:
        found = list(dict.fromkeys(str(prompt.label) for _, prompt in prompts))
        if positive not in found:
            yield Problem("error", place, f"no label is {positive!r}; the labels are {listing(found)}", "name one of them in positive=", "label")
