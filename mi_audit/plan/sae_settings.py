"""What the files of SAEs say besides where sae-lens's own class encodes: pursuits, and whatever else is no matrix product. Untrusted; no torch.

Costa et al. 2025, matching pursuit (arXiv 2506.03093); Lubana et al. 2025, temporal (arXiv 2511.01836).
"""

import math
from collections.abc import Mapping
from typing import Any, Final, Literal

Whole = Literal["matching_pursuit", "temporal"]
"""Architectures whose latents none can be had without the others, nor from one matrix product: sae-lens's class computes them."""

Setting = bool | int | float | str | None
Settings = tuple[tuple[str, Setting], ...]
"""Fields of sae-lens's configuration by their own names, in their order there."""

_MOST: Final = 2**24


class SettingError(ValueError):
    """A field holds what it can't: `field` names it."""

    def __init__(self, field: str, why: str) -> None:
        super().__init__(why)
        self.field = field


def settings_of(architecture: str, given: Mapping[str, Any], d_sae: int) -> Settings:
    """The settings of an architecture, with sae-lens's defaults where the file is silent; none for one that is read straight from its matrices.

    Raises:
        SettingError: one holds what it can't.
    """
    match architecture:
        case "matching_pursuit":
            return _pursuit(given)
        case "temporal":
            return _temporal(given, d_sae)
        case _:
            return ()


def _pursuit(given: Mapping[str, Any]) -> Settings:
    return (
        ("residual_threshold", _number(given, "residual_threshold", default=1e-2, least=0.0)),
        ("max_iterations", _count_or_none(given, "max_iterations")),
        ("stop_on_duplicate_support", _flag(given, "stop_on_duplicate_support", default=True)),
    )


def _temporal(given: Mapping[str, Any], d_sae: int) -> Settings:
    heads, layers, bottleneck = _count(given, "n_heads", 8), _count(given, "n_attn_layers", 1), _count(given, "bottleneck_factor", 64)
    if d_sae % (heads * bottleneck):
        raise SettingError("bottleneck_factor", f"{bottleneck} × n_heads {heads} does not divide d_sae {d_sae}")
    kind, k = given.get("sae_diff_type", "topk"), _count_or_none(given, "kval_topk")
    if kind not in ("relu", "topk"):
        raise SettingError("sae_diff_type", f"{kind!r} is neither 'relu' nor 'topk'")
    if k is not None and k > d_sae:
        raise SettingError("kval_topk", f"more than its {d_sae} latents")
    return (
        ("n_heads", heads),
        ("n_attn_layers", layers),
        ("bottleneck_factor", bottleneck),
        ("sae_diff_type", kind),
        ("kval_topk", k),
        ("tied_weights", _flag(given, "tied_weights", default=True)),
        ("activation_normalization_factor", _number(given, "activation_normalization_factor", default=1.0, least=1e-12)),
    )


def _number(given: Mapping[str, Any], name: str, *, default: float, least: float) -> float:
    value = given.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < least:
        raise SettingError(name, f"{value!r} is no number from {least:g}")
    return float(value)


def _count(given: Mapping[str, Any], name: str, default: int) -> int:
    value = _count_or_none({name: given.get(name, default)}, name)
    if value is None:
        raise SettingError(name, f"null is no whole number from 1 to {_MOST}")
    return value


def _count_or_none(given: Mapping[str, Any], name: str) -> int | None:
    value = given.get(name)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= _MOST):
        raise SettingError(name, f"{value!r} is neither null nor a whole number from 1 to {_MOST}")
    return value


def _flag(given: Mapping[str, Any], name: str, *, default: bool) -> bool:
    value = given.get(name, default)
    if not isinstance(value, bool):
        raise SettingError(name, f"{value!r} is neither true nor false")
    return value
