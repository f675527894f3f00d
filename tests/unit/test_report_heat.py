"""Heat strips show every score in figures, keep hostile texts text, and leave the report small."""

import re

import numpy as np
import pytest

from mi_audit.errors import EvidenceError
from mi_audit.evidence import store
from mi_audit.evidence.stretches import stretches
from mi_audit.evidence.tokens import TokenTable
from mi_audit.reporting import html
from mi_audit.reporting.heat import TokenScores
from mi_audit.reporting.renderers import write_reports
from tests.unit import bundles
from tests.unit.test_report import Page

CELL = re.compile(r'<li(?: class="([^"]*)")?>([^<]*)<b>([^<]*)</b></li>')


def report(tmp_path, build):
    return html.render(build.content().write(tmp_path / "out"))


def one_reading(words, *, threshold=1.0, texts_shown=True, length=24):
    build = bundles.Builder(texts_shown=texts_shown)
    fit, test = build.suite("pairs[train]", 120, 30, 60), build.suite("pairs[test]", 200, 50, 100)
    add = build.strip
    build.strip = lambda read, rank, row, _: add(read, rank, row, words, length)
    read = build.read(build.probe("dishonesty", "difference_of_means", "resid_post", 18, fit, threshold), test, 4.0, -0.6)
    return build, read


def test_every_kept_token_has_its_cell_and_its_score(tmp_path):
    bundle = bundles.realistic().write(tmp_path / "out")
    write_reports(bundle, ["html"])
    read, shown = store.read(bundle), (bundle / "report.html").read_text("utf-8")
    strips = re.findall(r'<ol class="tokens" role="list" start="(\d+)">\n(.*?)\n</ol>', shown, re.DOTALL)
    parts = dict(stretches(read.tokens(), "measurement", "rank"))
    parts = [parts[reading.id, rank] for reading in read.run.readings for rank in range(5)]
    assert len(strips) == len(parts)
    for (start, inside), part in zip(strips, parts, strict=True):
        cells = CELL.findall(inside)
        assert CELL.sub("", inside) == ""
        assert int(start) == part["position"][0].as_py()
        assert [float(score.replace("−", "-")) for _, _, score in cells] == [float(f"{score:.3g}") for score in part["score"].to_pylist()]
        assert ["r" in looks.split() for looks, _, _ in cells] == part["read"].to_pylist()
        assert ["s" in looks.split() for looks, _, _ in cells] == part["sink"].to_pylist()
    assert "read: 23; attention sinks: 0" in Page(shown).text


def test_hostile_texts_of_tokens_are_text(tmp_path):
    shown = report(tmp_path, one_reading(bundles.HOSTILE_TOKENS)[0])
    page = Page(shown)
    assert not re.search("[\u202a-\u202e\u2066-\u2069\u200b-\u200f\x00-\x08\x0b-\x1f\x7f-\x9f]", shown)
    assert {tag for tag, _ in page.tags} & {"script", "img"} == set()
    cells = [cell[1] for cell in CELL.findall(shown)]
    assert cells[1:15] == [
        *("&lt;script&gt;", "&lt;/li&gt;", "&lt;b&gt;x", "⟨U+202E⟩", "⟨U+001B⟩[31m", "↵", "⇥", "·", " ⟨U+200B⟩"),
        *("&amp;amp;", "{{ 7 * 7 }}", "&#34;&#39;", "é", "שלום"),
    ]
    assert cells[15:17] == ["a" * 12 + "…", "⟨U+202E⟩…"]


def test_redacted_strips_have_positions_and_scores_and_say_how_to_get_texts(tmp_path):
    shown = report(tmp_path, one_reading(["marker"], texts_shown=False)[0])
    assert "marker" not in shown
    assert {text for _, text, _ in CELL.findall(shown)} == {"▢"}
    assert '<ol class="tokens redacted" role="list" start="0">' in shown
    assert "--audit-texts shown" in Page(shown).text
    assert "Texts of prompts are not in the evidence" in Page(shown).text
    other = Page(report(tmp_path / "other", one_reading(["marker"])[0])).text
    assert "--audit-texts redacted" in other
    assert "Texts of prompts are not in the evidence" not in other


def heat_of(scores, *, threshold=None, middle=0.0, read=(), sinks=(), drawn=200):
    """The heat of one prompt whose tokens at the places `read` and `sinks` are marked so."""
    build, places = bundles.Builder(), np.arange(len(scores))
    record = build.read(build.probe("p", "mass_mean", "resid_post", 1, build.suite("f", 20, 5, 10), threshold), build.suite("s", 10, 5, None), 0.0).record
    table = TokenTable(texts_shown=False)
    marks = {"read": np.isin(places, list(read)), "sinks": np.isin(places, list(sinks))}
    table.add(record.id, 0, "p", texts=[""] * len(scores), scores=np.array(scores, dtype=float), **marks)
    return TokenScores(table.table()).heat(record, [("p", 1.5)], middle, drawn)


def test_the_scale_is_symmetric_about_the_threshold_or_else_the_middle():
    scores = [1.0, 3.0, 5.0, -1.0, -3.0, 1.1, 900.0]
    heat = heat_of(scores, threshold=1.0, sinks=[6])
    assert heat.centre == 1.0
    assert heat.reach == pytest.approx(np.quantile([0, 2, 4, 2, 4, 0.1], 0.95))
    assert [cell.looks for cell in heat.strips[0].cells] == ["", "a2", "a4", "b2", "b4", "", "a4 s"]
    assert heat_of(scores, middle=-1.0).centre == -1.0
    assert {cell.looks for cell in heat_of([2.0, 2.0], middle=2.0).strips[0].cells} == {""}
    assert heat_of([-1e308, 1e308], threshold=1e308).strips[0].cells[0].looks == "b4"


def test_what_was_read_is_said_in_positions_also_where_it_is_not_drawn():
    strip = heat_of(range(300), read=[0, 1, 2, 7, 299], sinks=[4], drawn=60).strips[0]
    assert (strip.read, strip.sinks) == ("0–2, 7, 299", "4")
    assert (strip.start, len(strip.cells)) == (240, 60)
    assert heat_of(range(300), read=[0, 1]).pooled
    assert not heat_of(range(300), read=[299]).pooled
    assert heat_of(range(3), drawn=0) is None


def test_prompts_that_do_not_score_highest_are_refused(tmp_path):
    build, read = one_reading(["a"])
    build.tokens = TokenTable(texts_shown=True)
    for rank, row in enumerate(read.order[-5:]):
        build.strip(read, rank, row, [])
    with pytest.raises(EvidenceError, match="does not hold the prompts of the reading"):
        report(tmp_path, build)


def test_scores_that_could_not_be_computed_are_named(tmp_path):
    build, _ = one_reading(["a"])
    build.readings[0] = build.readings[0].model_copy(update={"tokens_error": "DetectorError: token 7 <b>"})
    build.tokens = TokenTable(texts_shown=True)
    shown = report(tmp_path, build)
    assert "could not be computed, which no claim depends on: DetectorError: token 7 <b>" in Page(shown).text
    assert '<ol class="tokens' not in shown


@pytest.mark.parametrize("texts_shown", [True, False])
def test_a_reading_stays_below_40_kilobytes_and_forty_of_them_below_two_megabytes(tmp_path, texts_shown):
    build = bundles.Builder(texts_shown=texts_shown)
    fit, test = build.suite("pairs[train]", 120, 30, 60), build.suite("pairs[test]", 200, 50, 100)
    add = build.strip
    build.strip = lambda read, rank, row, words: add(read, rank, row, words, 200)
    build.read(build.probe("p", "mass_mean", "resid_post", 0, fit, 1.0), test, 4.0, -0.6)
    (strips,) = re.findall(r'<details class="heat">.*?</details>', report(tmp_path / "one", build), re.DOTALL)
    assert len(CELL.findall(strips)) == 1000
    assert len(strips.encode()) < 40_000
    for number in range(1, 40):
        build.read(build.probe(f"p{number}", "mass_mean", "resid_post", 0, fit, 1.0), test, 4.0, -0.6)
    shown = report(tmp_path / "forty", build)
    assert len(shown.encode()) <= html.MAX_BYTES
    assert shown.count('<article class="reading"') == 40
    assert len(CELL.findall(shown)) == 40 * 5 * 100
    assert shown.count("the first 100 tokens not drawn") == 40 * 5
