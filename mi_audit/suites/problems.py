"""What is wrong with a suite, and where: one record for errors that stop loading and for the findings of a check."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from mi_audit.errors import SuiteError


class RowError(SuiteError):
    """A row can't become a prompt. The message names the field and the fix; a reader adds the file and the line."""

    def __init__(self, what: str, fix: str, field: str | None = None) -> None:
        super().__init__(f'field "{field}": {what}; {fix}' if field else f"{what}; {fix}")
        self.what = what
        self.fix = fix
        self.field = field


@dataclass(frozen=True)
class Place:
    """A row of a suite: `suites/pairs.jsonl, line 3`. `unit` is "line" (from 1, the header included), "row" (Parquet) or "item" (Python)."""

    source: str
    unit: str
    number: int | None = None

    def __str__(self) -> str:
        return self.source if self.number is None else f"{self.source}, {self.unit} {self.number}"

    def at(self, number: int) -> "Place":
        """The same source at another row."""
        return Place(self.source, self.unit, number)


@dataclass(frozen=True)
class Problem:
    """One finding: where, what, and how to mend it. Errors prevent loading; warnings weaken what a suite can show; notes inform."""

    severity: Literal["error", "warning", "note"]
    place: Place
    what: str
    fix: str
    field: str | None = None

    def __str__(self) -> str:
        where = f'{self.place}, field "{self.field}"' if self.field else str(self.place)
        return f"{where}: {self.what}; {self.fix}" if self.fix else f"{where}: {self.what}"


Report = Callable[[Problem], None]
"""What a reader does with an error: raise it (loading), or note it and read on (checking)."""


def raise_problem(problem: Problem) -> None:
    """The `Report` of loading. Raises SuiteError at the first error."""
    raise SuiteError(str(problem))


def shorten(value: object, length: int = 60) -> str:
    """A value as it may stand in a message: escaped and cut."""
    text = repr(value)
    return text if len(text) <= length else text[: length - 1] + "…"


def listing(values: "list[str] | tuple[str, ...]", most: int = 8) -> str:
    """`'a', 'b', 'c' and 4 more`, in the order given."""
    shown = ", ".join(shorten(value) for value in values[:most])
    return f"{shown} and {len(values) - most} more" if len(values) > most else shown
