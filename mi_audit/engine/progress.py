"""How far a capture is. The engine reports to a `Progress` and prints nothing itself."""

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.text import Text


class Hearer(Protocol):
    """Hears how many prompts and tokens will pass through the model, then of each batch that has."""

    def start(self, prompts: int, tokens: int) -> None:
        """The forward passes begin: so many prompts with so many tokens in all."""

    def advance(self, prompts: int, tokens: int) -> None:
        """One more batch is done."""

    def close(self) -> None:
        """Nothing follows. Called once after `start`, also when a batch fails."""


class Progress(Hearer, Protocol):
    """One that makes others."""

    def titled(self, title: str) -> "Progress":
        """Another that hears of something else, in the same place."""


@contextmanager
def reporting(progress: Hearer | None, prompts: int, tokens: int) -> Iterator[None]:
    """Say that so many prompts begin to pass, and once the block ends that nothing follows."""
    if progress is None:
        yield
        return
    progress.start(prompts, tokens)
    try:
        yield
    finally:
        progress.close()


class TerminalProgress:
    """A bar on standard error: prompts done, tokens per second and the time left. Where standard error is no terminal, one line at the end."""

    def __init__(self, title: str, console: Console | None = None) -> None:
        self._title = title
        self._console = console or Console(stderr=True)
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("prompts"),
            _TokensPerSecond(),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._task = TaskID(0)
        self._prompts = self._tokens = 0
        self._began = 0.0

    def start(self, prompts: int, tokens: int) -> None:
        """Show the bar."""
        self._began = perf_counter()
        self._task = self._bar.add_task(self._title, total=prompts, tokens=0)
        self._bar.start()

    def advance(self, prompts: int, tokens: int) -> None:
        """Move the bar on by a batch."""
        self._prompts += prompts
        self._tokens += tokens
        self._bar.update(self._task, advance=prompts, tokens=self._tokens)

    def titled(self, title: str) -> "TerminalProgress":
        """A bar of its own, on the same terminal."""
        return TerminalProgress(title, self._console)

    def close(self) -> None:
        """Take the bar away and leave one line that says what was done."""
        self._bar.stop()
        seconds = perf_counter() - self._began
        self._console.print(
            f"{self._title}: {self._prompts} prompts, {self._tokens} tokens in {seconds:.1f} s ({self._tokens / max(seconds, 1e-9):.0f} tokens/s)",
            highlight=False,
        )


class _TokensPerSecond(ProgressColumn):
    def render(self, task: Task) -> Text:
        elapsed = task.finished_time or task.elapsed or 0.0
        rate = task.fields["tokens"] / elapsed if elapsed > 0 else 0.0
        return Text(f"{rate:.0f} tokens/s")
