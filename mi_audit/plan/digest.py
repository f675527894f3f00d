"""One way to digest a description: SHA-256 over canonical JSON (RFC 8785)."""

import hashlib
from pathlib import Path
from typing import TypeAlias

import rfc8785

Json: TypeAlias = "str | int | float | bool | list[Json] | dict[str, Json] | None"


def digest_of(description: "dict[str, Json]") -> str:
    """SHA-256, in hex, of the canonical JSON (RFC 8785) of a description. Equal on every machine and Python version."""
    return hashlib.sha256(rfc8785.dumps(description)).hexdigest()


def digest_of_code(*packages: Path) -> str:
    """SHA-256, in hex, over the modules in the folders of these packages: what they do may have changed where it differs."""
    return digest_of({f"{package.name}/{module.name}": sha256_of_file(module) for package in packages for module in package.glob("*.py")})


def sha256_of_file(path: Path) -> str:
    """SHA-256, in hex, of a file's bytes.

    Raises:
        OSError: the file can't be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
