"""Reduced activations on disk: what passed through a model once need not pass again, in this run, after a crash, or in another process.

An entry is a batch: exactly these tokens, in exactly these rows, on this model, device kind and software; or prompts as tokens (`encoding`). So what is read
back is, bit for bit, what the pass would give again; save for a batch that memory was too short for: it passes in halves and is kept under the key of the
whole, whose numbers it gives up to rounding. Under an entry lie files that are named by the SHA-256 of their bytes; each holds some sites of the batch. Files
appear whole or not at all.
"""

import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as from_safetensors
from safetensors.numpy import save as to_safetensors

from mi_audit.engine.batches import Batch, Ids
from mi_audit.engine.cache_folder import FACTS, limit_bytes, shrink
from mi_audit.engine.site import Site
from mi_audit.model.audited import AuditedModel
from mi_audit.model.cache import ENVIRONMENT, write_whole
from mi_audit.plan.digest import Json, digest_of, digest_of_code

CODE: Final = ("engine", "model", "saes")
"""Our packages by which prompts become activations, and these latents."""

MAX_FILE: Final = 2**31
_COLUMNS: Final = ("vectors", "token_index", "kept", "excluded")


@dataclass(frozen=True, slots=True)
class Kept:
    """What is kept of a batch's B prompts at one site: `vectors` float32 [B, width], and int64 [B] each: the last position read (-1 if none), positions
    averaged, attention sinks left out."""

    vectors: NDArray[np.float32]
    token_index: NDArray[np.int64]
    kept: NDArray[np.int64]
    excluded: NDArray[np.int64]


@dataclass
class ActivationCache:
    """The entries of one model in the cache.

    Attributes:
        folder: of this model; made when something is first kept.
        facts: of what the activations depend on, for people; their digest names the folder.
        damaged: files found that were not what their name says; they are removed where the disk lets it, and their batches pass again.
        trouble: why nothing more is kept, and what to do, once the disk refused.
    """

    folder: Path
    facts: Mapping[str, Json]
    damaged: set[Path] = field(default_factory=set)
    trouble: str | None = None
    _locks: dict[str, FileLock] = field(default_factory=dict)

    @classmethod
    def of(cls, model: AuditedModel, root: Path) -> "ActivationCache":
        """The model's part of the cache at `root`: for these weights, this software, kind of device and way of batching, and no other.

        Of a model on several devices it is for their indices too: where its parts are decides which of them compute what.
        """
        identity = model.identity
        facts: dict[str, Json] = {
            "code": digest_of_code(*(Path(__file__).parents[1] / name for name in CODE)),
            "root": identity.root,
            "dtype": identity.dtype,
            "attention": identity.attention,
            "device": model.processor,
            "batching": str(model.packing),
            "versions": dict(identity.versions),
        }
        if model.balanced:
            facts["placement"] = identity.device
        return cls(root / digest_of(facts)[:32], {**facts, "ref": Path(identity.ref).name})

    def has(self, batch: str) -> bool:
        """Whether anything is known of a batch."""
        return (self.folder / batch).is_dir()

    def read(self, batch: str, sites: Mapping[Site, str], rows: int, widths: Mapping[Site, int]) -> dict[Site, Kept]:
        """What is known of a batch at the sites, given by their keys; B must be `rows`, and the vectors as wide as `widths` says."""
        tensors = self.tensors(batch)
        found = ((site, _kept([tensors.get(f"{key}/{column}") for column in _COLUMNS], (rows, widths[site]))) for site, key in sites.items())
        return {site: kept for site, kept in found if kept is not None}

    def keep(self, batch: str, sites: Mapping[Site, str], results: Mapping[Site, Kept]) -> None:
        """Keep a batch's results, as `put`."""
        self.put(batch, {f"{sites[site]}/{column}": getattr(kept, column) for site, kept in results.items() for column in _COLUMNS})

    def tensors(self, entry: str) -> dict[str, NDArray[Any]]:
        """All that is known in an entry, by name."""
        known: dict[str, NDArray[Any]] = {}
        for path in self._files(entry):
            known.update(self._tensors(path))
        if known:
            self._touch(entry)
        return known

    def put(self, entry: str, tensors: Mapping[str, NDArray[Any]]) -> None:
        """Keep tensors in an entry, unless they are more than a file may hold. A disk that refuses ends the keeping, not the run."""
        if self.trouble is not None or sum(each.nbytes for each in tensors.values()) > MAX_FILE // 2:
            return
        content = to_safetensors({name: np.ascontiguousarray(each) for name, each in tensors.items()})  # of a view it would write what lies beside it
        folder = self.folder / entry
        try:
            self._make(folder)
            if not (self.folder / FACTS).is_file():
                write_whole(self.folder / FACTS, json.dumps(dict(self.facts), indent=1, sort_keys=True).encode())
            write_whole(folder / f"{hashlib.sha256(content).hexdigest()}.safetensors", content)
        except OSError as error:
            self._refused(error)

    def bound(self) -> None:
        """Keep the cache of all models within its limit."""
        shrink(self.folder.parent, limit_bytes())

    def try_lock(self, batch: str) -> bool:
        """Take a batch for this process; False if another has it. The lock dies with the process."""
        return self._lock(batch, 0)

    def wait_lock(self, batch: str) -> None:
        """Take a batch for this process once the other has let it go."""
        self._lock(batch, -1)

    def unlock(self, batch: str) -> None:
        """Let a batch go."""
        lock = self._locks.pop(batch, None)
        if lock is not None:
            lock.release()

    def _lock(self, batch: str, timeout: float) -> bool:
        if self.trouble is not None:
            return True
        lock = FileLock(self.folder / ".locks" / batch)
        try:
            self._make(self.folder / ".locks")
            lock.acquire(timeout=timeout)
        except Timeout:
            return False
        except (OSError, NotImplementedError) as error:  # a file system without locks has its own name for it
            self._refused(error)
            return True
        self._locks[batch] = lock
        return True

    def _make(self, folder: Path) -> None:
        """Make a folder below the root of the cache; the root, which activations of any prompt lie in, is for its owner alone."""
        self.folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.mkdir(parents=True, exist_ok=True)

    def _refused(self, error: OSError | NotImplementedError) -> None:
        self.trouble = (
            f"{self.folder.parent}: {getattr(error, 'strerror', None) or error}; what is read from here on is not kept, so a run that is killed starts over:"
            f" give {ENVIRONMENT} a folder with room, or --audit-no-cache"
        )

    def _files(self, entry: str) -> Iterator[Path]:
        try:
            names = sorted(os.listdir(self.folder / entry))
        except OSError:
            return
        yield from (self.folder / entry / name for name in names if name.endswith(".safetensors") and not name.startswith("."))

    def _tensors(self, path: Path) -> dict[str, NDArray[Any]]:
        """The tensors of a file that is what its name says; else none, and the file is gone where the disk lets it go."""
        try:
            found = path.lstat()
            if not stat.S_ISREG(found.st_mode) or found.st_size > MAX_FILE:
                return {}
            content = path.read_bytes()
        except OSError:
            return {}
        if hashlib.sha256(content).hexdigest() == path.stem:
            with suppress(SafetensorError, KeyError):  # the latter: a dtype that NumPy has no name for
                return dict(from_safetensors(content))
        self.damaged.add(path)
        with suppress(OSError):
            path.unlink(missing_ok=True)
        return {}

    def _touch(self, entry: str) -> None:
        """Entries that were not used for longest are removed first."""
        try:
            os.utime(self.folder / entry)
        except OSError:
            return


def _kept(columns: Sequence[NDArray[Any] | None], shape: tuple[int, int]) -> Kept | None:
    """The columns as results of so many prompts of such a width; None if they are not."""
    given = [column for column in columns if column is not None]
    if len(given) != len(_COLUMNS):
        return None
    vectors, *numbers = given
    if vectors.dtype != np.float32 or vectors.shape != shape:
        return None
    if any(column.dtype != np.int64 or column.shape != shape[:1] for column in numbers):
        return None
    return Kept(vectors, *numbers)


def batch_key(batch: Batch, prompts: Sequence[Ids]) -> str:
    """What a batch is: its shared tokens, its rows and whether they are packed."""
    rows = [[list(prompts[index]) for index in row] for row in batch.rows]
    return hashlib.sha256(json.dumps([batch.packed, list(batch.prefix), rows]).encode()).hexdigest()[:40]


def site_key(site: Site, positions: Sequence[Sequence[int]]) -> str:
    """What is read of a batch at a site: the hook point, the positions in each prompt, and what is made of them."""
    encoding = [] if site.encoding is None else [site.encoding.key]
    return hashlib.sha256(json.dumps([site.at.point, site.at.layer, [list(row) for row in positions], *encoding]).encode()).hexdigest()[:40]
