"""What exactly was audited: digests of every file that was loaded, one root over them, and the circumstances. No torch."""

import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

TOKENIZER_FILES = frozenset(
    {
        "added_tokens.json",
        "merges.txt",
        "special_tokens_map.json",
        "spiece.model",
        "tekken.json",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "vocab.json",
        "vocab.txt",
    }
)
"""Files that decide how text becomes tokens; the chat template, when it has a file of its own, is digested apart."""

VERSIONED = ("mi-audit", "torch", "transformers", "tokenizers", "safetensors", "gguf", "jinja2")
"""Distributions whose version can move a number."""


@dataclass(frozen=True, slots=True)
class FileDigest:
    """One file that was loaded: its name relative to the model's folder, SHA-256 (hex) and size in bytes."""

    name: str
    sha256: str
    size: int


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """Identity of a loaded model.

    `root` is the SHA-256 over the files alone, so it is the same wherever the cache lies and on whatever device the model runs; everything
    below `files` describes the circumstances. `source_sha256` is the digest of the GGUF that the files were converted from, if any, and
    `unused` names tensors of the checkpoint that the architecture does not use.
    """

    root: str
    files: tuple[FileDigest, ...]
    ref: str
    source: str
    revision: str | None
    source_sha256: str | None
    licence: str | None
    architecture: str
    parameters: int
    n_layers: int
    d_model: int
    vocabulary: int
    tokenizer_digest: str
    chat_template_digest: str | None
    dtype: str
    device: str
    attention: str
    unused: tuple[str, ...]
    versions: tuple[tuple[str, str], ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; `versions` becomes an object."""
        return asdict(self) | {"files": [asdict(file) for file in self.files], "unused": list(self.unused), "versions": dict(self.versions)}


def digest_file(path: Path, advance: Callable[[int], None] | None = None, *, chunk: int = 1 << 24) -> tuple[str, int]:
    """SHA-256 (hex) and size of a file, read in chunks; `advance` hears of each chunk's length."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as stream:
        while block := stream.read(chunk):
            digest.update(block)
            size += len(block)
            if advance is not None:
                advance(len(block))
    return digest.hexdigest(), size


def root_of(files: Iterable[FileDigest]) -> str:
    """SHA-256 (hex) over the lines `<sha256>  <name>` sorted by name: what `sha256sum` prints for the folder, digested once more."""
    lines = "".join(f"{file.sha256}  {file.name}\n" for file in sorted(files, key=lambda file: file.name))
    return hashlib.sha256(lines.encode()).hexdigest()


def tokenizer_digest(files: Iterable[FileDigest]) -> str:
    """Root over the files that decide tokenisation."""
    return root_of(file for file in files if file.name in TOKENIZER_FILES)


def chat_template_digest(template: str | dict[str, str] | None) -> str | None:
    """SHA-256 of the chat template's text; of the sorted JSON object when a tokenizer has several by name; None when it has none."""
    if template is None:
        return None
    text = template if isinstance(template, str) else json.dumps(template, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def library_versions() -> tuple[tuple[str, str], ...]:
    """Python and the installed versions of what can move a number, sorted by name."""
    found = {"python": platform.python_version()}
    for name in VERSIONED:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return tuple(sorted(found.items()))
