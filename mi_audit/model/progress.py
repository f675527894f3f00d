"""Progress on the terminal while a model is fetched, converted, hashed, loaded and checked."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn


class Steps:
    """The steps of loading, one line each. A step without a total shows only that it goes on."""

    def __init__(self, bars: Progress):
        self._bars = bars
        self._task: TaskID | None = None

    def begin(self, description: str, total: float | None = None) -> None:
        """Close the step before and open this one; `total` in whatever unit `advance` uses."""
        self.finish()
        self._task = self._bars.add_task(description, total=total)

    def advance(self, amount: float) -> None:
        """Move the open step on."""
        if self._task is not None:
            self._bars.advance(self._task, amount)

    def say(self, text: str) -> None:
        """A line of text on stderr, whether it is a terminal or not."""
        self._bars.console.print(text, markup=False, highlight=False)

    def finish(self) -> None:
        """Close the open step."""
        if self._task is not None:
            total = self._bars.tasks[-1].total or 1
            self._bars.update(self._task, total=total, completed=total)
            self._task = None


@contextmanager
def progress_steps(*, shown: bool) -> Iterator[Steps]:
    """Bars on stderr while the block runs, if `shown` and stderr is a terminal; they vanish at the end."""
    # bound now: the steps below may redirect stderr to silence a library, and the bars must still show
    console = Console(file=sys.stderr)
    columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True, disable=not (shown and console.is_terminal)) as bars:
        yield Steps(bars)
