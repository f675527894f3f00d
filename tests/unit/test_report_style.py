"""Contrast in both themes (WCAG 2.2 AA), and templates that can't let markup through."""

import re

import pytest

from mi_audit.shipped import reports_dir

CSS = (reports_dir() / "html" / "style.css").read_text("utf-8")
TEXT = [(ink, ground) for ink in ("ink", "muted", "link") for ground in ("ground", "panel")] + [
    ("ink", "code"),
    ("ink", "inconclusive-soft"),
    ("ink", "error-soft"),
    ("on-mark", "inconclusive"),
    *(("ink", f"{side}-{step}") for side in ("above", "below") for step in (1, 2, 3, 4)),
    *((verdict, f"{verdict}-soft") for verdict in ("pass", "inconclusive", "fail", "error")),
]
GRAPHICS = [
    *(("on-mark", verdict) for verdict in ("pass", "inconclusive", "fail", "error", "edge")),
    *((mark, ground) for mark in ("pass", "inconclusive", "fail", "error", "null", "muted", "ink") for ground in ("panel", "shade")),
    *((mark, "panel") for mark in ("positive", "negative", "edge", "link")),
    ("edge", "ground"),
    *((bar, f"{side}-{step}") for bar, side in (("positive", "above"), ("negative", "below")) for step in (1, 2, 3, 4)),
]


def themes():
    tokens = re.findall(r":root \{(.*?)\}", CSS, re.DOTALL)
    light, dark = (dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", block)) for block in tokens)
    return {"light": light, "dark": dark}


def luminance(colour):
    channels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [channel / 12.92 if channel <= 0.04045 else ((channel + 0.055) / 1.055) ** 2.4 for channel in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    bright, dim = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dim + 0.05)


def test_the_formula_is_that_of_wcag():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#767676", "#ffffff") == pytest.approx(4.54, abs=0.005)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_contrast(theme):
    tokens = themes()[theme]
    low = {pair: contrast(*(tokens[name] for name in pair)) for pair in TEXT if contrast(*(tokens[name] for name in pair)) < 4.5}
    assert not low
    low = {pair: contrast(*(tokens[name] for name in pair)) for pair in GRAPHICS if contrast(*(tokens[name] for name in pair)) < 3}
    assert not low


def test_both_themes_define_every_colour_that_is_used():
    used = set(re.findall(r"var\(--([\w-]+)\)", CSS))
    for tokens in themes().values():
        assert used <= tokens.keys()
    outside = re.sub(r":root \{.*?\}", "", CSS, flags=re.DOTALL)
    assert not re.search(r"#[0-9a-fA-F]{3,8}\b(?!-)\s*[;,)]", outside)


def test_templates_neither_switch_escaping_off_nor_hold_scripts_or_inline_styles():
    for path in (reports_dir() / "html").glob("*.j2"):
        text = path.read_text("utf-8")
        assert not re.search(r"\|\s*safe|Markup|autoescape|<script|style=|http:|https:|\son\w+=", text), path.name
        assert not re.search(r"[\w-]=\{\{", text), f"{path.name}: an attribute without quotes"
