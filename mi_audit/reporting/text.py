"""How text and numbers are shown: nothing hidden, nothing longer than a reader can use."""

import re
import unicodedata
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from typing import Final

_PLAIN: Final = re.compile(r"[^\n\t\x20-\x7e]")
_HIDDEN_CATEGORIES: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
_BLANK: Final = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0")
_SELECTORS: Final = ((0x180B, 0x180F), (0xFE00, 0xFE0F), (0xE0100, 0xE01EF))
SHARES: Final = frozenset({"auroc", "recall", "rate", "accuracy"})
"""Quantities of an experiment's effect, on a scale of its own."""
_QUANTITIES: Final = {
    "auroc": "AUROC",
    "effect_size": "effect size (Hedges' g)",
    "slope": "slope of the effect per unit of strength",
    "change": "change of the effect",
    "smallest_step": "smallest step of the effect",
    "sign_reversal": "sign reversal of the effect",
    "kl": "KL divergence, nats per token",
    "loss_change": "change of the loss, nats per token",
    "repetition_change": "change of the share of repeated 4-grams",
    "capability_change": "change of the share of questions answered right",
}
_OPERATORS: Final = {">=": "≥", "<=": "≤", ">": ">", "<": "<"}


def visible(text: str) -> str:
    """The text with every character that has no mark of its own (control, bidi, zero-width, ANSI escape, variation selector, …) written as ⟨U+202E⟩."""
    return _PLAIN.sub(lambda match: f"⟨U+{ord(match[0]):04X}⟩" if _is_hidden(match[0]) else match[0], text)


def shortened(text: str, length: int) -> str:
    """At most `length` characters of the text, and how many were left out."""
    return text if len(text) <= length else f"{text[:length]}… ({len(text) - length} more characters in evidence.json)"


def number(value: float | None, quantity: str = "") -> str:
    """A number as a reader wants it: three decimals for shares (two digits below 0.01), four digits otherwise; a real minus sign."""
    if value is None:
        return "undefined"
    if quantity in SHARES:
        return _signed(f"{value:.2g}" if 0 < abs(value) < 0.01 else f"{value:.3f}")
    return _signed(f"{value:.4g}")


def lower(value: float | None, quantity: str = "") -> str:
    """A lower bound, rounded down, so that what is printed never claims more than what was computed."""
    return number(value if value is None else _rounded(value, quantity, ROUND_FLOOR), quantity)


def upper(value: float | None, quantity: str = "") -> str:
    """An upper bound, rounded up."""
    return number(value if value is None else _rounded(value, quantity, ROUND_CEILING), quantity)


def count(value: int | None) -> str:
    """A count with thin spaces between thousands."""
    return "not given" if value is None else f"{value:,}".replace(",", "\u202f")


def plural(value: int, noun: str) -> str:
    """`1 audit`, `2 audits`."""
    return f"{count(value)} {noun}{'' if value == 1 else 's'}"


def magnitude(value: int) -> str:
    """A large number in words: `134.5 million`."""
    for size, name in ((10**9, "billion"), (10**6, "million"), (10**3, "thousand")):
        if value >= size:
            return f"{value / size:.4g} {name}"
    return str(value)


def size(value: int) -> str:
    """Bytes, readably."""
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if value >= unit:
            return f"{value / unit:.1f} {name}"
    return f"{value} B"


def quantity_name(quantity: str) -> str:
    """`AUROC`, `mean difference`."""
    return _QUANTITIES.get(quantity, quantity.replace("_", " "))


def operator(op: str) -> str:
    """The comparison as a sign."""
    return _OPERATORS[op]


def _rounded(value: float, quantity: str, rounding: str) -> float:
    """To the digits that `number` prints, in one direction."""
    exact = Decimal(repr(value))
    if not exact:
        return value
    digits = 3 if quantity in SHARES and abs(value) >= 0.01 else (1 if quantity in SHARES else 3) - exact.adjusted()
    return float(exact.quantize(Decimal(1).scaleb(-digits), rounding=rounding))


def _signed(text: str) -> str:
    return text.replace("-", "−")


def _is_hidden(character: str) -> bool:
    code = ord(character)
    return (
        unicodedata.category(character) in _HIDDEN_CATEGORIES
        or character in _BLANK
        or any(first <= code <= last for first, last in _SELECTORS)
        or (character == "\u00ad")
    )
