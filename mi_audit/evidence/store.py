"""The bundle: a folder of evidence, written whole or not at all, and read with distrust.

Written to a temporary folder beside the target, flushed to disk, then moved into place; a reader never sees half of it. What a killed writer leaves is
cleared up by the next (`scratch.py`). What is read is checked against its digests: an edited table, a swapped detector file or an unknown file is an error,
not a surprise.
"""

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from mi_audit.errors import EvidenceError
from mi_audit.evidence import canonical, consistency, parquet, tables, tokens
from mi_audit.evidence.canonical import Evidence
from mi_audit.evidence.records import RunRecord, VolatileRecord
from mi_audit.evidence.samples import DETECTOR, SampleTable, check_rows
from mi_audit.evidence.scratch import scratch_beside
from mi_audit.evidence.tokens import TokenTable

EVIDENCE: Final = "evidence.json"
REPORT: Final = "report.html"
DETECTORS: Final = "detectors"
MAX_DETECTOR_BYTES: Final = 256 * 2**20

_DETECTOR_FILE: Final = re.compile(DETECTORS + r"/[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_KNOWN: Final = frozenset({EVIDENCE, DETECTORS, *tables.NAMES})


@dataclass(frozen=True)
class Bundle:
    """Evidence that was read and found whole."""

    directory: Path
    run: RunRecord
    volatile: VolatileRecord

    def samples(self, *, columns: list[str] | None = None, arm: str | None = None, measurement: str | None = None) -> pa.Table:
        """Rows of the sample table, optionally of one arm or one measurement (a reading's id) only."""
        return parquet.load(self.directory / tables.SAMPLES, columns=columns, equal={"arm": arm, "measurement": measurement})

    def tokens(self) -> pa.Table:
        """The token table."""
        return parquet.load(self.directory / tables.TOKENS, columns=None, equal={})


def write(
    directory: Path,
    run: RunRecord,
    volatile: VolatileRecord,
    samples: SampleTable,
    token_table: TokenTable,
    detector_files: Mapping[str, bytes],
) -> None:
    """Write the bundle to `directory`, whole or not at all.

    The target may be absent, empty, or a previous bundle, which is then replaced; anything else is refused. `detector_files` are named as in the records
    (`detectors/NAME`). Reports come later (`write_report`): they are renderings of what is written here.

    Raises:
        EvidenceError: the records contradict each other, the target is something else than a bundle, or the disk refuses. Nothing is left half-written.
    """
    directory = Path(os.path.abspath(directory))
    with _failures_named(directory):
        consistency.check(run)
        _make_parents(directory)
        with scratch_beside(directory) as scratch:
            _check_target(directory)
            scratch.new.mkdir()
            _fill(scratch.new, run, volatile, samples, token_table, detector_files)
            _flush(scratch.new)
            if directory.exists():
                os.replace(directory, scratch.aside)
            os.replace(scratch.new, directory)


def read(directory: Path) -> Bundle:
    """Read the bundle in `directory` and check every file of it against its digest.

    Raises:
        EvidenceError: names the file that is missing, unknown, too large, malformed or not what its digest says.
    """
    with _failures_named(directory):
        evidence = _read_evidence(directory)
        run = evidence.evidence
        consistency.check(run)
        unknown = sorted(_foreign(directory, _reports(evidence)))
        if unknown:
            raise EvidenceError(f"{directory / unknown[0]} is no part of the evidence; remove it")
        expected = tables.flat_tables(run)
        if sorted(run.tables) != sorted(tables.NAMES):
            raise EvidenceError(f"{directory / EVIDENCE}: lists the tables {', '.join(sorted(run.tables))}; expected {', '.join(tables.NAMES)}")
        for name, record in run.tables.items():
            if name in expected and tables.digest_of(expected[name]) != record.digest:
                raise EvidenceError(f"{directory / EVIDENCE}: the digest of {name} is not that of the records")
            found = parquet.measure(directory / name)
            if (found.rows, found.digest) != (record.rows, record.digest):
                raise EvidenceError(f"{directory / name} is not the table that {EVIDENCE} describes: its rows were changed")
            if found.sha256 != record.sha256:
                raise EvidenceError(f"{directory / name} was written anew or damaged: its rows are those of the run, its SHA-256 is not")
        if run.tables[tables.TOKENS].rows > tokens.most_rows(run):
            raise EvidenceError(f"{directory / tables.TOKENS} has {run.tables[tables.TOKENS].rows} rows, more than its readings can have; it is not read")
        bundle = Bundle(directory, run, evidence.volatile)
        check_rows(bundle.samples(columns=["measurement", "condition"], arm=DETECTOR), run)
        tokens.check(bundle.tokens(), run)
        _check_detectors(directory, run)
        return bundle


def write_report(directory: Path, name: str, content: bytes) -> Path:
    """Put a report into the bundle, or in place of the one there, at once or not at all.

    Raises:
        EvidenceError: the disk refuses, or the bundle does not list a report of that name, so that it would be taken for a foreign file.
    """
    target = directory / name
    with _failures_named(target), scratch_beside(directory) as scratch:
        if name not in _reports(_read_evidence(directory)):
            raise EvidenceError(f"{directory} lists no report {name}; write it elsewhere, or name its renderer in --audit-format at the run")
        _put(scratch.new, content)
        os.replace(scratch.new, target)
    return target


def _fill(
    scratch: Path,
    run: RunRecord,
    volatile: VolatileRecord,
    samples: SampleTable,
    token_table: TokenTable,
    detector_files: Mapping[str, bytes],
) -> None:
    every = {**tables.flat_tables(run), tables.SAMPLES: samples.table(), tables.TOKENS: token_table.table()}
    sampled = every[tables.SAMPLES]
    check_rows(sampled.filter(pc.equal(sampled["arm"], DETECTOR)).select(["measurement", "condition"]), run)
    tokens.check(every[tables.TOKENS], run)
    records = {}
    for name, table in every.items():
        parquet.save(scratch / name, table, sorted_by=tables.sorted_by(name), schema_version=run.schema_version, plan_digest=run.plan.digest)
        records[name] = parquet.measure(scratch / name)
    run = run.model_copy(update={"tables": records})
    _put(scratch / EVIDENCE, canonical.dump(Evidence(evidence=run, volatile=volatile), EVIDENCE))
    for name, content in detector_files.items():
        check_detector_name(name)
        (scratch / DETECTORS).mkdir(exist_ok=True)
        _put(scratch / name, content)
    _check_detectors(scratch, run)


def _put(path: Path, content: bytes) -> None:
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _flush(scratch: Path) -> None:
    for path in [*scratch.rglob("*"), scratch]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def check_target(directory: Path) -> None:
    """See early whether a bundle could be written to `directory`, as far as can be told without writing.

    Raises:
        EvidenceError: it could not.
    """
    directory = Path(os.path.abspath(directory))
    with _failures_named(directory):
        nearest = _nearest(directory)
        if not os.access(nearest, os.W_OK | os.X_OK):
            raise EvidenceError(f"{nearest} can't be written; choose another place for the evidence")
        _check_target(directory)


def _nearest(directory: Path) -> Path:
    """The nearest folder above that is there. Raises EvidenceError for what is no folder."""
    nearest = next(path for path in directory.parents if os.path.lexists(path))
    if not nearest.is_dir():
        raise EvidenceError(f"{nearest} is not a folder, so {directory} can't be made in it; choose another place for the evidence")
    return nearest


def _make_parents(directory: Path) -> None:
    _nearest(directory)
    directory.parent.mkdir(parents=True, exist_ok=True)


def _check_target(directory: Path) -> None:
    if directory.is_symlink() or (directory.exists() and not directory.is_dir()):
        raise EvidenceError(f"{directory} is not a folder; choose another place for the evidence")
    if not directory.exists() or not any(directory.iterdir()):
        return
    reports = _reports(_read_evidence(directory)) if (directory / EVIDENCE).is_file() else frozenset()
    foreign = sorted(_foreign(directory, reports))
    if foreign or not reports:
        found = foreign[0] if foreign else f"no {EVIDENCE}"
        raise EvidenceError(f"{directory} holds {found}: it is not a bundle of evidence and is not replaced; choose an empty or new folder")


def _reports(evidence: Evidence) -> frozenset[str]:
    """The files that are renderings of the evidence: those that the run was asked for, and the HTML report, which may be made at any time."""
    return frozenset({REPORT, *evidence.volatile.reports.values()})


def _foreign(directory: Path, reports: frozenset[str]) -> Iterator[str]:
    """Names below the folder that are no part of a bundle with these reports; a link never is one."""
    for path in directory.iterdir():
        inside = sorted(path.iterdir()) if path.name == DETECTORS and path.is_dir() and not path.is_symlink() else []
        if path.name not in _KNOWN | reports or path.is_symlink() or path.is_dir() is not (path.name == DETECTORS):
            yield path.name
        for file in inside:
            if file.is_symlink() or not file.is_file() or not _DETECTOR_FILE.fullmatch(f"{DETECTORS}/{file.name}"):
                yield f"{DETECTORS}/{file.name}"


def _read_evidence(directory: Path) -> Evidence:
    path = directory / EVIDENCE
    if path.is_symlink() or not path.is_file():
        raise EvidenceError(f"{path}: no such file; {directory} is not a bundle of evidence")
    with path.open("rb") as file:
        return canonical.parse(Evidence, file.read(canonical.MAX_BYTES + 1), str(path))


def check_detector_name(name: str) -> None:
    """Refuse a name that would lead a detector's file out of its folder.

    Raises:
        EvidenceError: it is not `detectors/NAME`.
    """
    if not _DETECTOR_FILE.fullmatch(name):
        raise EvidenceError(f"the detector file {name!r} can't be part of the evidence: name it {DETECTORS}/NAME, with letters, digits, '.', '_' and '-'")


def _check_detectors(directory: Path, run: RunRecord) -> None:
    for detector in run.detectors:
        if detector.file is None:
            continue
        check_detector_name(detector.file)
        path = directory / detector.file
        if not path.is_file() or path.is_symlink():
            raise EvidenceError(f"{path}: the weights of the detector {detector.name!r} are missing")
        if path.stat().st_size > MAX_DETECTOR_BYTES:
            raise EvidenceError(f"{path} is larger than {MAX_DETECTOR_BYTES} bytes, which no detector is")
        if hashlib.sha256(path.read_bytes()).hexdigest() != detector.file_digest:
            raise EvidenceError(f"{path} is not the file that {EVIDENCE} describes: its SHA-256 differs")


@contextmanager
def _failures_named(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise EvidenceError(f"{path}: {error.strerror or error}; the evidence there is as it was before") from error
    except pa.ArrowException as error:
        raise EvidenceError(f"{path}: {error}") from error
