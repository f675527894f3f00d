"""`mi-audit doctor`: is this installation fit to run audits?"""

import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from importlib import metadata
from importlib.util import find_spec

import typer

CORE = ("pytest", "numpy", "scipy", "statsmodels", "scikit-learn", "pyarrow", "pydantic", "jinja2", "filelock", "platformdirs", "pluggy", "rfc8785")
RUN = ("torch", "transformers", "huggingface-hub", "safetensors", "gguf", "sae-lens")


def doctor() -> None:
    """Check versions, the device, the cache and the shipped files. Exits 1 if audits can't run here."""
    healthy = True
    for sound, line in _findings():
        healthy &= sound
        typer.secho(("ok    " if sound else "WRONG ") + line, fg=None if sound else "red")
    if not healthy:
        raise typer.Exit(1)


def _findings() -> Iterator[tuple[bool, str]]:
    yield sys.version_info >= (3, 11), f"Python {platform.python_version()} ({platform.system()} {platform.machine()})"
    yield not sys.flags.optimize, "asserts are on" if not sys.flags.optimize else "asserts are off: run without -O and unset PYTHONOPTIMIZE"
    for name in CORE:
        yield _version(name, "pip install mi-audit")
    for name in RUN:
        yield _version(name, "pip install 'mi-audit[run]'")
    yield _plugin()
    yield _third_party()
    yield from _shipped()
    yield _cache()
    if find_spec("torch") is not None and find_spec("transformers") is not None:
        yield _device()
        yield _transformers_is_safe()


def _version(name: str, fix: str) -> tuple[bool, str]:
    try:
        return True, f"{name} {metadata.version(name)}"
    except metadata.PackageNotFoundError:
        return False, f"{name} is not installed: {fix}"


def _plugin() -> tuple[bool, str]:
    found = any(entry.value == "mi_audit.pytest_plugin" for entry in metadata.entry_points(group="pytest11"))
    return (
        found,
        "the pytest plugin is registered" if found else "the pytest plugin is not registered: install the package (pip install mi-audit) instead of copying it",
    )


def _third_party() -> tuple[bool, str]:
    from mi_audit.errors import PluginError
    from mi_audit.plugins import active

    try:
        found = active().third_party
    except PluginError as error:
        return False, str(error)
    return True, f"plugins of other distributions: {', '.join(map(str, found)) or 'none'}"


def _shipped() -> Iterator[tuple[bool, str]]:
    from mi_audit.errors import SuiteError
    from mi_audit.shipped import reports_dir, shipped_audits, shipped_suites

    try:
        reports_dir()
        yield True, f"{len(shipped_audits())} shipped audit files, {len(shipped_suites())} shipped suites"
    except SuiteError as error:
        yield False, str(error)


def _cache() -> tuple[bool, str]:
    from mi_audit.engine.cache_folder import LIMIT, limit_bytes
    from mi_audit.errors import ModelError
    from mi_audit.model.cache import ENVIRONMENT, cache_dir

    folder = cache_dir()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            free = shutil.disk_usage(folder).free
        return True, f"cache: {folder}, {free / 2**30:.0f} GiB free, activations at most {limit_bytes() / 2**30:g} GiB ({LIMIT})"
    except OSError as error:
        return False, f"the cache {folder} can't be written ({error.strerror or error}): give another folder in {ENVIRONMENT}"
    except ModelError as error:
        return False, str(error)


def _device() -> tuple[bool, str]:
    import torch

    if torch.cuda.is_available():
        return True, f"device: {torch.cuda.get_device_name(0)}, dtype of the checkpoint"
    name = "MPS" if torch.backends.mps.is_available() else f"CPU, {torch.get_num_threads()} threads, float32"
    return True, f"device: {name}"


def _transformers_is_safe() -> tuple[bool, str]:
    version = metadata.version("transformers")
    safe = tuple(int(part) for part in version.split(".")[:2]) >= (5, 3)
    return safe, f"transformers {version} " + ("refuses remote code" if safe else "has known remote-code holes: pip install 'transformers>=5.3'")
