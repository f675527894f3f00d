"""The user's cache: one folder per converted model, made once, whole or not at all."""

import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from filelock import FileLock
from platformdirs import user_cache_dir

from mi_audit.errors import ModelError

ENVIRONMENT = "MI_AUDIT_CACHE"
"""Environment variable that moves the cache."""

CONVERSION = 1
"""Counts changes of what a conversion writes, so that an old cache is not taken for a new one."""
MANIFEST = "conversion.json"
"""In a converted folder: the digests of its files as they were written."""


def cache_dir() -> Path:
    """The cache's folder: `$MI_AUDIT_CACHE`, else the platform's own place for caches."""
    return Path(os.environ.get(ENVIRONMENT) or user_cache_dir("mi-audit")).expanduser().absolute()


def build_once(target: Path, build: Callable[[Path], None]) -> Path:
    """Make the folder `target` by `build(empty folder)` unless it is there; concurrent processes wait for the first.

    The folder appears by one rename after `build` returned: it is complete or absent. ModelError if the cache can't be written.
    """
    if target.is_dir():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.parent / f".{target.name}.lock"):
            if target.is_dir():
                return target
            unfinished = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
            try:
                build(unfinished)
                unfinished.rename(target)
            finally:
                shutil.rmtree(unfinished, ignore_errors=True)
    except OSError as error:
        raise ModelError(
            f"the model cache {target.parent} can't be used ({error}); free some space there, or set {ENVIRONMENT} to a folder that you can write"
        ) from error
    return target


def write_whole(target: Path, content: bytes) -> None:
    """Write a file that appears whole or not at all. Raises OSError."""
    scratch = target.with_name(f".{secrets.token_hex(6)}")
    try:
        scratch.write_bytes(content)
        os.replace(scratch, target)
    finally:
        with suppress(OSError):
            scratch.unlink(missing_ok=True)


def converted_folder(source_sha256: str) -> Path:
    """Where the cache keeps what a GGUF file with this digest was converted to."""
    return cache_dir() / "models" / f"gguf-{source_sha256[:32]}-v{CONVERSION}"


def write_manifest(folder: Path, digests: Mapping[str, str], *, source_sha256: str) -> None:
    """Record the digests of a converted folder's files in the folder."""
    manifest = {"conversion": CONVERSION, "source_sha256": source_sha256, "files": dict(digests)}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def verify_converted(folder: Path, digests: Mapping[str, str]) -> None:
    """Raise ModelError unless the files of a converted folder still are what the conversion wrote."""
    written = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
    changed = sorted(name for name in {*written, *digests} if written.get(name) != digests.get(name))
    if changed:
        raise ModelError(f"{folder} has changed since it was converted ({', '.join(changed)}): delete that folder, and it will be made again")
