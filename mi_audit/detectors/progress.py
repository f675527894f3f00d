"""One progress bar over several captures."""

from collections.abc import Iterator
from contextlib import contextmanager

from mi_audit.engine.progress import Hearer


class Whole:
    """Passes on to another what several captures report, as if they were one; tokens to come are extrapolated from the first."""

    def __init__(self, progress: Hearer, prompts: int) -> None:
        self._progress, self._prompts = progress, prompts
        self.started = False

    def start(self, prompts: int, tokens: int) -> None:
        """One of the captures begins."""
        if not self.started:
            self._progress.start(self._prompts, round(tokens * self._prompts / max(prompts, 1)))
        self.started = True

    def advance(self, prompts: int, tokens: int) -> None:
        """One more batch is done."""
        self._progress.advance(prompts, tokens)

    def close(self) -> None:
        """One of the captures is done."""


@contextmanager
def as_one(progress: Hearer | None, prompts: int) -> Iterator[Whole | None]:
    """Report the captures within the block, through which `prompts` prompts will pass, to `progress`; it hears nothing where there are none."""
    if progress is None:
        yield None
        return
    whole = Whole(progress, prompts)
    try:
        yield whole
    finally:
        if whole.started:
            progress.close()
