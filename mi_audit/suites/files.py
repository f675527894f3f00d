"""Finding and opening a suite's file: relative to who names it, never through a symbolic link, never beyond the size limit."""

import errno
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from mi_audit.errors import SuiteError
from mi_audit.shipped import audits_dir, shipped_suites
from mi_audit.suites import limits
from mi_audit.suites.problems import listing, shorten

_MEBIBYTE = 2**20


@dataclass(frozen=True)
class Located:
    """A suite's file, and how it is shown: as the author wrote it, never an absolute path."""

    path: Path
    display: str


def locate(source: str | os.PathLike[str], base: Path, where: str) -> Located:
    """The file that `source` means: a path (it has a suffix or a separator) relative to `base`, or the bare name of a shipped suite.

    `where` says in an error where `base` is. Raises SuiteError when there is no such file or suite, or a symbolic link is on the way.
    """
    written = PurePath(source)
    if isinstance(source, str) and not written.suffix and len(written.parts) == 1 and not source.endswith(("/", os.sep)):
        return _shipped(source, where)
    display = written.name if written.is_absolute() else written.as_posix()
    _refuse_links(written.parts if not written.is_absolute() else (), base, display)
    path = base / written
    if not path.exists() and not path.is_symlink():
        looked = "" if written.is_absolute() else f" {where}"
        raise SuiteError(f"{display}: there is no such file{looked}; mend the path, or give the bare name of a shipped suite: {_shipped_names()}")
    return Located(path, display)


def read_bytes(located: Located) -> bytes:
    """The whole file. Raises SuiteError on a symbolic link, anything but a plain file, an empty file, and one beyond the size limit."""
    if located.path.is_symlink():
        raise SuiteError(_link(located.display))
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(located.path, flags)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise SuiteError(_link(located.display)) from error
        raise SuiteError(f"{located.display}: can't be opened ({error.strerror}); check that it is there and readable") from error
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise SuiteError(f"{located.display}: is not a plain file; give the path of one")
    with os.fdopen(descriptor, "rb") as file:
        data = file.read(limits.FILE_BYTES + 1)
    if len(data) > limits.FILE_BYTES:
        size = max(status.st_size, len(data)) / _MEBIBYTE
        raise SuiteError(f"{located.display}: has {size:.0f} MiB, {limits.FILE_BYTES / _MEBIBYTE:.0f} MiB are the limit of a suite; split the file")
    if not data:
        raise SuiteError(f"{located.display}: the file is empty; a suite needs at least one prompt")
    return data


def _shipped(name: str, where: str) -> Located:
    suites = shipped_suites()
    if name not in suites:
        raise SuiteError(
            f"no shipped suite is called {shorten(name)}; there are: {_shipped_names()}. A file {where} is named with its suffix, as in {name}.jsonl"
        )
    return Located(suites[name], suites[name].relative_to(audits_dir().parent).as_posix())


def _shipped_names() -> str:
    return listing(list(shipped_suites()), most=20) or "none"


def _refuse_links(parts: Sequence[str], base: Path, display: str) -> None:
    current = base
    for part in parts:
        current = current.parent if part == ".." else current / part
        if current.is_symlink():
            raise SuiteError(_link(display))


def _link(display: str) -> str:
    return f"{display}: is a symbolic link, or lies behind one; give the path of the file itself"
