"""Activations on disk, a row for each token: written once in the order in which the model gives them, read in any."""

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from mi_audit.errors import DetectorError

_STATE: Final = "passed.json"
_ROWS: Final = "activations.f32"


class Spool:
    """A file of rows of `width` float32 in a folder of its own, with how many batches it holds; what a killed process left behind them is cut off.

    Raises:
        DetectorError: the folder can't be written.
    """

    def __init__(self, folder: Path, width: int) -> None:
        self._folder, self._width = folder, width
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = os.open(folder / _ROWS, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise DetectorError(f"{folder} can't be written: {error.strerror}") from error
        self.batches, self.rows, self.left_out = self._known()
        os.ftruncate(self._file, self.rows * self._bytes)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        os.close(self._file)

    @property
    def _bytes(self) -> int:
        return 4 * self._width

    def require_room(self, rows: int) -> None:
        """Raises DetectorError where the disk has no room for so many rows in all."""
        needed, free = (rows - self.rows) * self._bytes, shutil.disk_usage(self._folder).free
        if needed > free:
            raise DetectorError(
                f"the activations of {rows} tokens take {needed / 2**30:.1f} GiB more, and {self._folder} has {free / 2**30:.1f} GiB free;"
                " give fewer --tokens, or an --out on a larger disk"
            )

    def append(self, batch: Sequence[NDArray[np.float32]], left_out: int = 0) -> None:
        """Write the rows of a batch, of whose tokens so many are left out. Raises DetectorError where they can't be written; what was there before stays."""
        rows = np.concatenate(batch) if batch else np.empty((0, self._width), dtype=np.float32)
        content = np.ascontiguousarray(rows, dtype=np.float32).tobytes()
        try:
            written = 0
            while written < len(content):
                written += os.pwrite(self._file, content[written:], self.rows * self._bytes + written)
        except OSError as error:
            raise DetectorError(f"the activations can't be written to {self._folder}: {error.strerror}") from error
        self.rows += len(rows)
        self.left_out += left_out
        self.batches += 1

    def flush(self) -> None:
        """Note what is there, so that a killed process need not pass it again. Raises DetectorError where it can't be written."""
        try:
            os.fsync(self._file)
            fresh = self._folder / f"{_STATE}.new"
            fresh.write_text(json.dumps({"batches": self.batches, "rows": self.rows, "left_out": self.left_out}))
            fresh.replace(self._folder / _STATE)
        except OSError as error:
            raise DetectorError(f"the activations can't be written to {self._folder}: {error.strerror}") from error

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """The rows of those numbers [n, width]."""
        found = np.empty((len(rows), self._width), dtype=np.float32)
        for place, row in enumerate(rows.tolist()):
            if os.preadv(self._file, [memoryview(found[place]).cast("B")], row * self._bytes) != self._bytes:
                raise DetectorError(f"{self._folder / _ROWS} is shorter than it was; remove the folder and train again")
        return found

    def _known(self) -> tuple[int, int, int]:
        try:
            state = json.loads((self._folder / _STATE).read_text())
            batches, rows, left_out = state["batches"], state["rows"], state["left_out"]
        except FileNotFoundError:
            return 0, 0, 0
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise DetectorError(f"{self._folder / _STATE} is damaged ({error}); remove the folder and train again") from error
        if not all(isinstance(count, int) and count >= 0 for count in (batches, rows, left_out)) or rows * self._bytes > os.fstat(self._file).st_size:
            raise DetectorError(f"{self._folder / _STATE} says more than is there; remove the folder and train again")
        return batches, rows, left_out
