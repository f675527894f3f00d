"""From a reference to a folder of safetensors on this machine: the sources that are built in, and how any of them is asked."""

import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mi_audit.errors import ModelError
from mi_audit.hookspecs import ModelFiles, ModelSource, hookimpl
from mi_audit.model.cache import build_once, converted_folder
from mi_audit.model.hub import download
from mi_audit.model.identity import digest_file
from mi_audit.model.progress import Steps
from mi_audit.model.shipped import SHIPPED, fetch
from mi_audit.plugins import active

HUB_NAME = re.compile(r"(?P<name>[\w.-]+(?:/[\w.-]+)?)(?:@(?P<revision>[\w./-]+))?")


@dataclass(frozen=True, slots=True)
class Located:
    """Where a reference led: the model's folder, the folder that its links may not leave, the source's name and what it says of the origin."""

    folder: Path
    contained_in: Path
    source: str
    revision: str | None = None
    source_sha256: str | None = None
    licence: str | None = None


@hookimpl
def mi_audit_model_sources() -> Mapping[str, ModelSource]:
    """Models known by name, GGUF files, folders and the hub."""
    return {"shipped": _shipped, "gguf": _gguf, "directory": _directory, "hub": _hub}


def locate(ref: str, steps: Steps) -> Located:
    """Find, and if need be fetch and convert, the model that `ref` names.

    `NAME:REST` asks the source of that name. Else it is, in this order: a shipped name, a `.gguf` file, a folder, a hub name with an optional `@revision`.

    Raises:
        ModelError: there is no such model; the message says what to give instead.
        PluginError: a plugin's source failed, or gave something else than the files of a model.
    """
    sources = active().model_sources
    prefix, colon, rest = ref.partition(":")
    name, asked = (prefix, rest) if colon and prefix in sources else (_usual_source(ref), ref)
    if not asked:
        raise ModelError(f"{ref!r} names a source and nothing in it: give {name}:…")
    with sources[name].blamed():
        files = sources[name].value(asked, steps)
        if not isinstance(files, ModelFiles):
            raise TypeError(f"it returned {type(files).__name__} instead of ModelFiles")
    return _checked(ref, name, files, steps)


def _usual_source(ref: str) -> str:
    """The source of a reference that names none."""
    path = Path(ref).expanduser()
    if ref in SHIPPED:
        return "shipped"
    if ref.lower().endswith(".gguf"):
        return "gguf"
    if path.is_dir():
        return "directory"
    if HUB_NAME.fullmatch(ref) and not ref.startswith((".", "/", "~")) and not path.exists():
        return "hub"
    raise ModelError(
        f"{ref!r} is no model: give a shipped name ({', '.join(SHIPPED)}), a hub name such as org/name@revision, a folder that exists, a .gguf file, or"
        f" SOURCE:… with one of the sources {', '.join(active().model_sources)}"
    )


def _checked(ref: str, source: str, files: ModelFiles, steps: Steps) -> Located:
    """What a source handed over, as a folder; a GGUF file is converted. What a source says of itself is not believed where it can be checked."""
    path = files.path
    if path.suffix.lower() == ".gguf":
        sha256, folder = _converted(path, steps)
        return Located(folder, folder, source, files.revision, sha256, files.licence)
    if not path.is_dir():
        raise ModelError(f"{ref!r} led to {path}, which is no folder and no .gguf file")
    contained_in = files.contained_in or path
    if not path.resolve().is_relative_to(contained_in.resolve()):
        raise ModelError(f"{ref!r} led to {path}, which does not lie in {contained_in}, as its source says")
    if files.source_sha256 is not None and path != converted_folder(files.source_sha256):
        raise ModelError(f"{ref!r} led to {path}, which its source calls converted from a GGUF file, but it is not mi-audit's own conversion of that file")
    return Located(path, contained_in, source, files.revision, files.source_sha256, files.licence)


def _shipped(name: str, steps: Steps) -> ModelFiles:
    if name not in SHIPPED:
        raise ModelError(f"{name!r} is no shipped model; there are {', '.join(SHIPPED)}")
    model = SHIPPED[name]

    def build(folder: Path) -> None:
        with tempfile.TemporaryDirectory(prefix="mi-audit-gguf-") as downloads:
            _convert(fetch(model, Path(downloads), steps), folder, model.sha256, steps)

    return ModelFiles(build_once(converted_folder(model.sha256), build), licence=model.licence, source_sha256=model.sha256)


def _gguf(name: str, steps: Steps) -> ModelFiles:
    path = Path(name).expanduser()
    if path.suffix.lower() != ".gguf":
        raise ModelError(f"{path} is no .gguf file")
    return ModelFiles(path)


def _directory(name: str, steps: Steps) -> ModelFiles:
    return ModelFiles(Path(name).expanduser())


def _hub(name: str, steps: Steps) -> ModelFiles:
    hub = HUB_NAME.fullmatch(name)
    if hub is None:
        raise ModelError(f"{name!r} is no hub name; write org/name or org/name@revision")
    snapshot, revision = download(hub["name"], hub["revision"], steps)
    # a snapshot links to its repository's blobs, two levels up
    return ModelFiles(snapshot, revision, contained_in=snapshot.parent.parent)


def _converted(gguf: Path, steps: Steps) -> tuple[str, Path]:
    """The digest of a GGUF file and the folder that it was converted to."""
    if not gguf.is_file():
        raise ModelError(f"{gguf} does not exist or is no regular file")
    steps.begin(f"Hashing {gguf.name}", total=gguf.stat().st_size)
    sha256, _ = digest_file(gguf, steps.advance)
    return sha256, build_once(converted_folder(sha256), lambda folder: _convert(gguf, folder, sha256, steps))


def _convert(gguf: Path, folder: Path, sha256: str, steps: Steps) -> None:
    from mi_audit.model.conversion import convert_gguf  # torch, and only when there is something to convert

    steps.begin(f"Converting {gguf.name} to safetensors")
    convert_gguf(gguf, folder, source_sha256=sha256)
