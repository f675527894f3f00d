"""From a reference to a folder of safetensors on this machine."""

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

from mi_audit.errors import ModelError
from mi_audit.model.cache import build_once, converted_folder
from mi_audit.model.hub import download
from mi_audit.model.identity import Source, digest_file
from mi_audit.model.progress import Steps
from mi_audit.model.shipped import SHIPPED, ShippedModel, fetch

HUB_NAME = re.compile(r"(?P<name>[\w.-]+(?:/[\w.-]+)?)(?:@(?P<revision>[\w./-]+))?")


@dataclass(frozen=True, slots=True)
class Located:
    """Where a reference led: the model's folder, the folder that its links may not leave, and what is known of its origin."""

    folder: Path
    contained_in: Path
    source: Source
    revision: str | None = None
    source_sha256: str | None = None
    licence: str | None = None


def locate(ref: str, steps: Steps) -> Located:
    """Find, and if need be fetch and convert, the model that `ref` names.

    In this order: a shipped name, a `.gguf` file, a folder, a hub name with an optional `@revision`. Raises ModelError with what to give instead.
    """
    if ref in SHIPPED:
        return _shipped(SHIPPED[ref], steps)
    path = Path(ref).expanduser()
    if ref.lower().endswith(".gguf"):
        return _gguf(path, steps)
    if path.is_dir():
        return Located(path, path, "directory")
    hub = HUB_NAME.fullmatch(ref)
    if hub is None or ref.startswith((".", "/", "~")) or path.exists():
        raise ModelError(
            f"{ref!r} is no model: give a shipped name ({', '.join(SHIPPED)}), a hub name such as org/name@revision, a folder that exists, or a .gguf file"
        )
    snapshot, revision = download(hub["name"], hub["revision"], steps)
    # a snapshot links to its repository's blobs, two levels up
    return Located(snapshot, snapshot.parent.parent, "hub", revision)


def _shipped(model: ShippedModel, steps: Steps) -> Located:
    def build(folder: Path) -> None:
        with tempfile.TemporaryDirectory(prefix="mi-audit-gguf-") as downloads:
            _convert(fetch(model, Path(downloads), steps), folder, model.sha256, steps)

    folder = build_once(converted_folder(model.sha256), build)
    return Located(folder, folder, "shipped", source_sha256=model.sha256, licence=model.licence)


def _gguf(path: Path, steps: Steps) -> Located:
    if not path.is_file():
        raise ModelError(f"{path} does not exist or is no regular file")
    steps.begin(f"Hashing {path.name}", total=path.stat().st_size)
    sha256, _ = digest_file(path, steps.advance)
    folder = build_once(converted_folder(sha256), lambda folder: _convert(path, folder, sha256, steps))
    return Located(folder, folder, "gguf", source_sha256=sha256)


def _convert(gguf: Path, folder: Path, sha256: str, steps: Steps) -> None:
    from mi_audit.model.conversion import convert_gguf  # torch, and only when there is something to convert

    steps.begin(f"Converting {gguf.name} to safetensors")
    convert_gguf(gguf, folder, source_sha256=sha256)
