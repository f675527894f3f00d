"""The folder of kept activations: a folder a model, in it a folder a batch. Runs without torch."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from mi_audit.errors import ModelError
from mi_audit.model.cache import cache_dir

FACTS: Final = "model.json"
"""In a model's folder: what its activations depend on, for people."""
LIMIT: Final = "MI_AUDIT_CACHE_GIB"
"""Environment variable: how much disk the activations of all models may take, in GiB."""
USUAL_LIMIT: Final = 20.0


def activations_dir() -> Path:
    """Where the activations of all models are kept."""
    return cache_dir() / "activations"


def limit_bytes() -> int:
    """How many bytes they may take. Raises ModelError for a limit that is no number, or below 0."""
    text = os.environ.get(LIMIT) or str(USUAL_LIMIT)
    try:
        most = int(float(text) * 2**30)
    except (ValueError, OverflowError):
        most = -1
    if most < 0:
        raise ModelError(f"{LIMIT}={text}: give the size of the activation cache in GiB, e.g. {LIMIT}=20; 0 keeps nothing")
    return most


def entries(root: Path) -> Iterator[tuple[Path, float, int]]:
    """Every entry below a cache's root: its folder, when it was last used, and its bytes."""
    for entry in root.glob("*/*"):
        if entry.name.startswith(".") or not entry.is_dir() or entry.is_symlink():
            continue
        try:
            yield entry, entry.stat().st_mtime, sum(path.stat().st_size for path in entry.iterdir())
        except OSError:
            continue


def shrink(root: Path, most: int) -> int:
    """Remove the entries that were not used for longest until at most `most` bytes are left, or none can be removed; how many bytes were."""
    known = sorted(entries(root), key=lambda entry: entry[1])
    excess, removed = sum(size for _, _, size in known) - most, 0
    for entry, _, size in known:
        if removed >= excess:
            break
        shutil.rmtree(entry, ignore_errors=True)
        removed += 0 if entry.exists() else size
    return removed


def clear(root: Path) -> int:
    """Remove every kept activation; how many bytes they took.

    Raises:
        ModelError: something can't be removed; what can be is gone.
    """
    known = list(entries(root))
    shutil.rmtree(root, ignore_errors=True)
    if root.exists():
        raise ModelError(f"{root} can't be removed whole; see who owns what is left in it, and whether another run is using it")
    return sum(size for _, _, size in known)
