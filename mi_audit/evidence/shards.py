"""A folder in which several processes lay the parts of one run.

`WORKER.plan.json` is the outline of a worker's plan; `PLACE.WORKER.began` says that it began the audit at that place of the plan, `PLACE.WORKER/` is the part
that it left of it. Each appears whole or not at all, so that a worker that is killed loses only the audit that it was at. The folder is private to the user
who runs; what is read from it is checked like a bundle.
"""

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pyarrow as pa

from mi_audit.errors import EvidenceError
from mi_audit.evidence import canonical, parquet, store, tables
from mi_audit.evidence.parts import Outline, Part, PartRecord
from mi_audit.evidence.records import SCHEMA_VERSION
from mi_audit.evidence.samples import SampleTable
from mi_audit.evidence.tokens import TokenTable

_PART: Final = "part.json"
_PLAN: Final = ".plan.json"
_BEGAN: Final = ".began"


class PartsFolder:
    """The folder as one process sees it: a worker that writes, by its name, or the process that assembles."""

    def __init__(self, path: Path, worker: str = "controller") -> None:
        self._path, self._worker = path, worker

    def fix_plan(self, outline: Outline) -> None:
        """Lay down this worker's outline, before anything is judged.

        Raises:
            EvidenceError: the folder can't be written.
        """
        with _failures_named(self._path):
            self._path.mkdir(mode=0o700, parents=True, exist_ok=True)
            name = f"{self._worker}{_PLAN}"
            with self._made(name) as scratch:
                scratch.write_bytes(canonical.dump(outline, name))

    def begin(self, place: int) -> int:
        """Note that this worker begins the audit at this place of the plan, and tell how many workers before it began and never ended it.

        Raises:
            EvidenceError: the folder can't be written.
        """
        with _failures_named(self._path):
            before = sum(1 for _ in self._path.glob(f"{place}.*{_BEGAN}"))
            (self._path / f"{place}.{self._worker}{_BEGAN}").touch()
            return before

    def add(self, part: Part) -> None:
        """Lay down a part.

        Raises:
            EvidenceError: the folder can't be written.
        """
        name = f"{part.record.place}.{self._worker}"
        with _failures_named(self._path), self._made(name) as scratch:
            scratch.mkdir()
            (scratch / _PART).write_bytes(canonical.dump(part.record, name))
            for table, readings in ((tables.SAMPLES, part.samples.readings), (tables.TOKENS, part.tokens.readings)):
                for reading, rows in readings.items():
                    parquet.save(_shard(scratch, reading, table), rows, sorted_by=tables.sorted_by(table), schema_version=SCHEMA_VERSION, plan_digest="")
            for file, content in part.files.items():
                store.check_detector_name(file)
                (scratch / store.DETECTORS).mkdir(exist_ok=True)
                (scratch / file).write_bytes(content)
        (self._path / f"{name}{_BEGAN}").unlink(missing_ok=True)

    def outline(self) -> Outline | None:
        """The outline that all workers agree on; None if none has fixed its plan.

        Raises:
            EvidenceError: two workers planned differently, or an outline can't be read.
        """
        with _failures_named(self._path):
            outlines = [_read(Outline, path) for path in sorted(self._path.glob(f"*{_PLAN}"))]
        if any(outline != outlines[0] for outline in outlines):
            digests = ", ".join(sorted({outline.plan.digest[:16] for outline in outlines}))
            raise EvidenceError(f"the workers made different plans ({digests}); a file changed while they collected, or an audit file depends on the process")
        return outlines[0] if outlines else None

    def parts(self) -> Iterator[Part]:
        """All parts.

        Raises:
            EvidenceError: a part is not whole.
        """
        with _failures_named(self._path):
            for folder in sorted(path.parent for path in self._path.glob(f"[!.]*/{_PART}")):
                record = _read(PartRecord, folder / _PART)
                samples, tokens = SampleTable(), TokenTable(texts_shown=False)
                for measurement in record.sampled:
                    samples.adopt(measurement, parquet.load(_shard(folder, measurement, tables.SAMPLES), columns=None, equal={}))
                for reading in record.readings:
                    if reading.tokens_error is None:
                        tokens.adopt(reading.id, parquet.load(_shard(folder, reading.id, tables.TOKENS), columns=None, equal={}))
                yield Part(record, samples, tokens, {file: _detector(folder, file, digest) for file, digest in _files(record)})

    def remove(self) -> None:
        """Remove the folder and all that is in it."""
        shutil.rmtree(self._path, ignore_errors=True)

    @contextmanager
    def _made(self, name: str) -> Iterator[Path]:
        """A place to write what then appears as `name`, at once."""
        scratch = self._path / f".{name}.{os.getpid()}"
        yield scratch
        os.replace(scratch, self._path / name)


@contextmanager
def _failures_named(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise EvidenceError(f"{path}: {getattr(error, 'strerror', None) or error}; what the workers measure is kept there until the run ends") from error


def _read(kind: type[canonical.Kind], path: Path) -> canonical.Kind:
    with path.open("rb") as file:
        return canonical.parse(kind, file.read(canonical.MAX_BYTES + 1), str(path))


def _shard(folder: Path, reading: str, table: str) -> Path:
    return folder / f"{reading}.{table}"


def _files(record: PartRecord) -> Iterator[tuple[str, str | None]]:
    return ((detector.file, detector.file_digest) for detector in record.detectors if detector.file is not None)


def _detector(folder: Path, file: str, digest: str | None) -> bytes:
    store.check_detector_name(file)
    content = (folder / file).read_bytes()
    if hashlib.sha256(content).hexdigest() != digest:
        raise EvidenceError(f"{folder / file} is not the file that its part describes: its SHA-256 differs")
    return content
