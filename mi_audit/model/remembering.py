"""Facts of models on disk, each under the digest of all that they follow from. No torch.

Kept of models in float32 on a CPU alone: what a GPU is, and whether there is one, only torch can tell. As trustworthy as the folder of the cache: who can
write there can write facts.
"""

import hashlib
import os
import platform
import shutil
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Final

from pydantic import TypeAdapter, ValidationError

from mi_audit.errors import ModelError
from mi_audit.model.cache import build_once, cache_dir
from mi_audit.model.facts import Facts
from mi_audit.model.identity import library_versions
from mi_audit.model.opened import Opened
from mi_audit.plan.digest import digest_of

FILE: Final = "facts.json"
"""In the folder of a model: the SHA-256 of what follows, and on the next line the facts."""
MAX_FILE: Final = 2**24
CPU_INFO: Final = Path("/proc/cpuinfo")
DEVICES: Final = Path("/dev")
ACCELERATORS: Final = ("nvidia*", "nvhost*", "nvmap", "kfd", "dxg")
"""What Linux calls the devices that torch may compute on besides the CPU."""


def facts_dir() -> Path:
    """Where the facts of all models are kept."""
    return cache_dir() / "facts"


def kept_for(device: str, dtype: str) -> bool:
    """Whether facts are kept of a model that is asked for so: whether it will be in float32 on a CPU that the system tells of."""
    on_cpu = device == "cpu" or (device == "auto" and not any(found for name in ACCELERATORS for found in DEVICES.glob(name)))
    return on_cpu and dtype in ("auto", "float32") and _processor() is not None


def key_of(opened: Opened) -> str:
    """What the facts follow from: the files, the software, ours among it, and the processor."""
    return digest_of({"root": opened.root, "processor": _processor(), "versions": dict(library_versions()), "checks": _own_code()})[:40]


def recall(key: str, opened: Opened) -> Facts | None:
    """The facts under this key, of the files that were opened; None where there are none. What is damaged is removed."""
    file = facts_dir() / key / FILE
    try:
        if file.stat().st_size > MAX_FILE:
            return None
        digest, _, content = file.read_bytes().partition(b"\n")
    except OSError:
        return None
    try:
        facts = _FACTS.validate_json(content) if hashlib.sha256(content).hexdigest().encode() == digest else None
    except ValidationError:
        facts = None
    if facts is None or facts.identity.root != opened.root:
        shutil.rmtree(file.parent, ignore_errors=True)
        return None
    found = opened.located
    origin = replace(facts.identity, ref=opened.ref, source=found.source, revision=found.revision, source_sha256=found.source_sha256, licence=found.licence)
    return replace(facts, identity=origin)


def remember(key: str, facts: Facts) -> None:
    """Keep facts under a key. Those that JSON can't hold, such as a check that gave no number, are not kept; nor is anything on a disk that refuses."""
    if (facts.identity.device, facts.identity.dtype) != ("cpu", "float32"):
        return
    content = _FACTS.dump_json(facts)
    try:
        if _FACTS.validate_json(content) != facts:
            return
    except ValidationError:
        return
    line = hashlib.sha256(content).hexdigest().encode() + b"\n"
    with suppress(ModelError):  # only time is lost: the next run loads the model; the activations beside it tell of such a disk
        build_once(facts_dir() / key, lambda folder: _write(folder / FILE, line + content))


def forget() -> None:
    """Remove the facts of all models."""
    shutil.rmtree(facts_dir(), ignore_errors=True)


def _write(file: Path, content: bytes) -> None:
    file.write_bytes(content)


@cache
def _own_code() -> str:
    """The digest of the modules that find out the facts: those beside this one."""
    return digest_of({path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(Path(__file__).parent.glob("*.py"))})


def _processor() -> str | None:
    """The processor, as far as it decides which kernels torch takes; None where the system does not tell."""
    try:
        lines = CPU_INFO.read_text(encoding="utf-8", errors="replace").partition("\n\n")[0].splitlines()
    except OSError:
        return None
    told = [line for line in lines if line.partition(":")[0].strip().lower() in ("model name", "flags", "features")]
    return "\n".join([platform.machine(), os.environ.get("ATEN_CPU_CAPABILITY", ""), *told]) if told else None


_FACTS: Final = TypeAdapter(Facts)
