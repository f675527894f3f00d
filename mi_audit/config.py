"""Settings of a run: what `--audit-…` options and `audit_…` ini keys say."""

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from mi_audit.errors import PlanError

DEFAULT_MODEL: Final = "smollm2-135m-instruct"
DTYPES: Final = ("auto", "float32", "bfloat16", "float16")
TEXTS: Final = ("redacted", "shown")
USUAL_ALPHA: Final = 0.1
"""A level above it is for trying things out: such a run is PARTIAL."""

_DEVICE: Final = re.compile(r"auto|cpu|cuda(:\d{1,3})?|mps|balanced")
_third_party_allowed: ContextVar[bool] = ContextVar("third_party_allowed", default=True)


@dataclass(frozen=True)
class Option:
    """One setting: option `--audit-<name>`, ini key `audit_<name>`."""

    name: str
    metavar: str
    default: str
    help: str


OPTIONS: Final = (
    Option("model", "REF", DEFAULT_MODEL, "the model under audit: a shipped name, a hub name with optional @revision, a folder, a .gguf file or source:…"),
    Option("device", "DEVICE", "auto", "auto (CUDA, then MPS, then CPU), cpu, cuda, cuda:1, mps, balanced (over all GPUs)"),
    Option("dtype", "DTYPE", "auto", "auto (float32 on CPU, the checkpoint's on GPU), float32, bfloat16, float16"),
    Option("out", "DIR", "", "where the evidence goes (default audit-results/<time>-<model>)"),
    Option("format", "FORMAT", "html", "reports beside the evidence: names of renderers (html, or a plugin's), comma-separated, or none"),
    Option("texts", "MODE", "redacted", "texts of the prompts that score highest, in evidence and report: redacted or shown (they may be harmful or secret)"),
    Option("alpha", "ALPHA", "0.025", f"one-sided probability at most with which a claim wrongly passes; above {USUAL_ALPHA:g} the run is PARTIAL"),
    Option("seed", "SEED", "0", "seed of every random step"),
    Option("limit", "N", "", "read at most N prompts of each suite, for trying things out; such a run is PARTIAL"),
)


@dataclass(frozen=True)
class Settings:
    """Checked settings of one run."""

    model: str = DEFAULT_MODEL
    device: str = "auto"
    dtype: str = "auto"
    out: Path | None = None
    formats: tuple[str, ...] = ("html",)
    texts: str = "redacted"
    alpha: float = 0.025
    seed: int = 0
    limit: int | None = None
    no_cache: bool = False

    @classmethod
    def of(cls, values: dict[str, str], *, no_cache: bool = False) -> "Settings":
        """Check the text of every option.

        Raises:
            PlanError: a value is out of range; the message names the option.
            PluginError: a plugin can't be used.
        """
        if not _DEVICE.fullmatch(values["device"]):
            raise PlanError(f"--audit-device {values['device']}: give auto, cpu, cuda, cuda:1, mps or balanced")
        if values["dtype"] not in DTYPES:
            raise PlanError(f"--audit-dtype {values['dtype']}: known are {', '.join(DTYPES)}")
        if values["texts"] not in TEXTS:
            raise PlanError(f"--audit-texts {values['texts']}: write {' or '.join(TEXTS)}")
        return cls(
            model=values["model"],
            device=values["device"],
            dtype=values["dtype"],
            out=Path(values["out"]) if values["out"] else None,
            formats=_formats(values["format"]),
            texts=values["texts"],
            alpha=_number(values["alpha"], "--audit-alpha", 1e-6, 0.5),
            seed=_whole(values["seed"], "--audit-seed", 0, 2**53 - 1),
            limit=_whole(values["limit"], "--audit-limit", 1, 2**53 - 1) if values["limit"] else None,
            no_cache=no_cache,
        )

    def directory(self, started: datetime) -> Path:
        """Where the evidence of a run that started then goes."""
        if self.out is not None:
            return self.out
        model = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(self.model).name).strip("-.") or "model"
        return Path("audit-results") / f"{started.astimezone():%Y-%m-%dT%H-%M-%S}-{model}"


@contextmanager
def third_party(*, allowed: bool) -> Iterator[None]:
    """Inside it, plugins of other distributions take part or don't."""
    token = _third_party_allowed.set(allowed)
    try:
        yield
    finally:
        _third_party_allowed.reset(token)


def third_party_allowed() -> bool:
    """Whether plugins of other distributions take part here."""
    return _third_party_allowed.get()


def _formats(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    if names == ("none",):
        return ()
    if names == Settings.formats:  # needs no plugin, so that none is loaded in a run without audits
        return names
    from mi_audit.plugins import active

    known = active().renderers
    unknown = next((name for name in names if name not in known), None)
    if unknown is not None:
        raise PlanError(f"--audit-format {text}: {unknown!r} is no renderer; give some of {', '.join(known)}, comma-separated, or none alone")
    return names


def _number(text: str, option: str, low: float, high: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not low <= value < high:
        raise PlanError(f"{option} {text}: give a number from {low:g} to below {high:g}")
    return value


def _whole(text: str, option: str, low: int, high: int) -> int:
    value = int(text) if text.isdecimal() and len(text) < 20 else -1
    if not low <= value <= high:
        raise PlanError(f"{option} {text}: give a whole number from {low}")
    return value
