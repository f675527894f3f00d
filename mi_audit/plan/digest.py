"""One way to digest a description: SHA-256 over canonical JSON (RFC 8785)."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import TypeAlias

import rfc8785

Json: TypeAlias = "str | int | float | bool | list[Json] | dict[str, Json] | None"


def digest_of(description: "dict[str, Json]") -> str:
    """SHA-256, in hex, of the canonical JSON (RFC 8785) of a description. Equal on every machine and Python version."""
    return hashlib.sha256(rfc8785.dumps(description)).hexdigest()


def digest_of_code(paths: Iterable[Path]) -> str:
    """SHA-256, in hex, over the modules at these paths and in these folders, by name: what they do may have changed where it differs."""
    modules = [module for path in paths for module in (path.glob("*.py") if path.is_dir() else [path])]
    return digest_of({module.name: sha256_of_file(module) for module in modules})


def sha256_of_file(path: Path) -> str:
    """SHA-256, in hex, of a file's bytes.

    Raises:
        OSError: the file can't be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
