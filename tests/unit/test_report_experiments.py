"""Experiments in the report: every number is that of the records and lies at its place, texts stay texts, and a claim leads to what it rests on."""

import re
import sqlite3

import numpy as np
import pytest

from mi_audit.evidence import store
from mi_audit.evidence.experiments import SideEffectPoint
from mi_audit.reporting import html
from mi_audit.reporting.charts import interval_plots
from mi_audit.reporting.charts_dose import dose_chart, profile_chart, side_plot
from mi_audit.reporting.queries import query
from tests.unit import bundles, bundles_dose
from tests.unit.bundles_dose import FIRST_NULL, NEUTRAL, SECOND_NULL
from tests.unit.test_report import Page

MANY = 80
"""Experiments, more than a report shows."""


@pytest.fixture(scope="module")
def made():
    return bundles_dose.experiments()


@pytest.fixture(scope="module")
def shipped(made, tmp_path_factory):
    return html.render(made[2].write(tmp_path_factory.mktemp("report") / "out"))


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    return html.render(bundles_dose.experiments(texts_shown=False, hostile=True)[2].write(tmp_path_factory.mktemp("hostile") / "out"))


@pytest.fixture(scope="module")
def record(made):
    """Of the experiment whose last strength failed."""
    return made[1][1].record


def figure(shipped, name):
    return next(each for each in re.findall(r"<figure.*?</figure>", shipped, re.DOTALL) if f'id="{name}-t"' in each)


def table(figure):
    rows = re.findall(r"<tr>(.*?)</tr>", figure, re.DOTALL)[1:]
    return [[re.sub(r"<[^>]*>", "", cell).replace("−", "-") for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL)] for row in rows]


def places(figure, tag, looks, *names):
    """Attributes, in percent, of the first elements in the drawing (the legend comes after it)."""
    drawn = figure.split("<figcaption>")[0]
    found = [dict(re.findall(r'([\w-]+)="([^"]*)"', each)) for each in re.findall(rf"<{tag} [^>]*>", drawn)]
    return [tuple(float(each[name].rstrip("%")) for name in names) for each in found if each.get("class") == looks]


def numbers(values, digits=4):
    return [float(f"{value:.{digits}g}") for value in values]


def test_the_data_tables_give_the_numbers_of_the_records(shipped, record):
    rows = table(figure(shipped, "dose-2"))
    assert [float(row[0]) for row in rows] == [point.strength for point in record.points]
    for row, point in zip(rows[:-1], record.points[:-1], strict=True):
        bands = {band.name: band for band in point.nulls}
        assert list(bands) == [FIRST_NULL, SECOND_NULL]
        assert float(row[1]) == numbers([point.change])[0]
        assert float(row[2]) <= point.low
        assert float(row[3]) >= point.high
        assert [float(row[2]), float(row[3])] == pytest.approx([point.low, point.high], rel=2e-3)
        assert [float(each) for each in row[4:10]] == numbers(number for band in bands.values() for number in (band.median, band.low, band.high))
        assert float(row[10]) == numbers([point.direct])[0]
    assert rows[-1] == ["4", "failed", "", "", ""]
    side = table(figure(shipped, "side-2-1"))
    assert [float(row[1]) for row in side] == numbers(point.value for point in record.side_effects[0].points)
    layers = table(figure(shipped, "profile-2"))
    assert [(int(row[0]), float(row[1])) for row in layers] == [(point.layer, numbers([point.slope])[0]) for point in record.profile]


def test_numbers_lie_where_their_axis_has_them(shipped, record):
    """The place of each point follows from the ticks alone: they are read off the drawing, and a line is put through them."""
    drawing = figure(shipped, "dose-2")
    ticks = [(float(at), float(label.replace("−", "-"))) for at, label in re.findall(r'<text class="share" x="0" y="([\d.]+)%" dy="4">([^<]*)</text>', drawing)]
    up = np.polyfit(*zip(*ticks, strict=True), 1)
    strengths = [(float(at), float(label.replace("−", "-"))) for at, label in re.findall(r'<text x="([\d.]+)%" y="272">([^<]*)</text>', drawing)]
    across = np.polyfit(*zip(*strengths, strict=True), 1)
    assert [label for _, label in strengths] == [-2, -1, 0, 1, 3, 4]
    measured = record.points[:-1]
    dots = places(drawing, "circle", "point", "cx", "cy")
    assert np.polyval(across, [x for x, _ in dots]) == pytest.approx([point.strength for point in measured], abs=0.01)
    assert np.polyval(up, [y for _, y in dots]) == pytest.approx([point.change for point in measured], abs=0.01)
    whiskers = places(drawing, "line", "reach", "y1", "y2")
    assert np.polyval(up, np.array(whiskers).T[0]) == pytest.approx([point.low for point in measured], abs=0.01)
    assert np.polyval(up, np.array(whiskers).T[1]) == pytest.approx([point.high for point in measured], abs=0.01)
    ((x, y),) = places(drawing, "circle", "asis", "cx", "cy")
    assert [np.polyval(across, x), np.polyval(up, y)] == pytest.approx([0, 0], abs=0.01)
    for looks, name in (("band", FIRST_NULL), ("band other", SECOND_NULL)):
        (polygon,) = re.findall(rf'<polygon class="{looks}" points="([^"]*)"', drawing)
        edge = np.array([[float(each) for each in vertex.split(",")] for vertex in polygon.split()])
        bands = [next(band for band in point.nulls if band.name == name) for point in measured]
        highs, lows = ([0.0 if at is None else getattr(at, side) for at in (*bands[:2], None, *bands[2:])] for side in ("high", "low"))
        assert np.polyval(up, edge[:, 1]) == pytest.approx([*highs, *reversed(lows)], abs=0.01)
        assert np.polyval(across, edge[:, 0]) == pytest.approx([-2, -1, 0, 1, 3, 3, 1, 0, -1, -2], abs=0.01)


def test_a_line_breaks_where_a_strength_failed(made):
    record = made[1][1].record
    middle = record.points[2].model_copy(update={"change": None, "low": None, "high": None, "nulls": (), "direct": None, "failed": "no"})
    chart = dose_chart(record.model_copy(update={"points": (*record.points[:2], middle, record.points[3])}))
    assert [len(line) for line in chart.lines] == [3]
    assert [len(area) for area in chart.bands[0].areas] == [6]
    assert len(chart.bands[0].bars) == 1
    assert len(chart.dots) == 3
    assert [point.strength for _, point in chart.failed] == [1.0]


def test_a_clamp_has_no_origin_and_says_what_is_missing(shipped):
    text, drawing = Page(shipped).text, figure(shipped, "dose-3")
    assert not places(drawing, "circle", "asis", "cx", "cy")
    assert "Not finished; what is here was measured before: EngineError: out of memory while the nulls were passed" in text
    assert text.count("Not recomputable from the evidence:") == 1
    assert "strength, in multiples of the latents' highest value on latent_corpus (1 is 31.5, added up)" in text
    assert "strength, in lengths of the detector's own vector (1 adds a length of 7.25)" in text
    assert "0.41 above 0, 0.38 below 0" in text
    assert "the effect of prompt 3 is not finite" in text


def test_one_strength_alone_is_drawn(made):
    record = made[1][2].record
    chart = dose_chart(record.model_copy(update={"points": record.points[1:]}))
    assert (len(chart.dots), chart.lines, chart.bands[0].areas, len(chart.bands[0].bars)) == (1, (), (), 1)
    assert 40 < chart.dots[0].x < 60
    assert profile_chart(record) is None


def within(points, op, threshold, made):
    (first, *_), claims = made[1], made[2].run.claims
    curve = first.record.side_effects[0].model_copy(
        update={"points": [SideEffectPoint(strength=strength, value=(low + high) / 2, low=low, high=high) for strength, low, high in points]}
    )
    claim = next(claim for claim in claims if claim.quantity == "kl").model_copy(update={"op": op, "threshold": threshold})
    others = (claim.model_copy(update={"threshold": 9.0, **other}) for other in ({"on": "other"}, {"reading": bundles.sha("x")}))
    (bound,) = side_plot(first.record, curve, [claim, *others]).bounds
    return bound.within


def test_the_largest_strengths_within_a_claimed_bound(made):
    points = [(-2.0, 0.3, 0.6), (-1.0, 0.1, 0.5), (1.0, 0.0, 0.1), (2.0, 0.2, 0.4), (4.0, 0.45, 0.9)]
    assert within(points, "<=", 0.5, made) == (-1.0, 2.0)
    assert within(points, "<", 0.5, made) == (2.0,)
    assert within(points, "<=", 0.05, made) == ()
    assert within([(-1.0, -0.3, 0.1), (1.0, -0.1, 0.0)], ">=", -0.2, made) == (1.0,)


def test_the_bound_is_drawn_and_said(shipped, made):
    curve = made[1][0].record.side_effects[0]
    assert [point.high <= 0.05 for point in curve.points] == [False, True, True, False]
    drawing = figure(shipped, "side-1-1")
    assert "claimed: ≤ 0.05. Largest strengths within it: −1 and 1." in Page(drawing).text
    ticks = [(float(at), float(label)) for at, label in re.findall(r'y="([\d.]+)%" dy="4">([^<]*)</text>', drawing)]
    ((y,),) = places(drawing, "line", "threshold", "y1")
    assert np.polyval(np.polyfit(*zip(*ticks, strict=True), 1), y) == pytest.approx(0.05, abs=1e-3)


def test_texts_stand_side_by_side_or_are_redacted(shipped, hostile):
    written = re.search(r'<table class="written">.*?</table>', shipped, re.DOTALL)[0]
    assert re.findall(r'<th scope="col">([^<]*)', written) == ["Prompt", "strength −2", "as it is", "strength 3"]
    assert [re.match(r"Answer at (\S+)\.\n", text)[1] for text in re.findall(r"<td><bdi>([^<]*)", written)] == ["-2.0", "None", "3.0"] * 2
    assert "Answer at" not in hostile
    content = bundles_dose.experiments(texts_shown=False, hostile=True)[2]
    digests = [each.digest for each in content.run.experiments[0].generations]
    written = re.search(r'<table class="written">.*?</table>', hostile, re.DOTALL)[0]
    assert re.findall(r'<code title="([0-9a-f]{64})">▢ ([0-9a-f]{12})</code>', written) == [(digest, digest[:12]) for digest in digests]
    assert "texts are redacted" in written


def test_hostile_texts_stay_texts(hostile):
    page = Page(hostile)
    assert not re.search("[\u202a-\u202e\u2066-\u2069\u200b-\u200f\x00-\x08\x0b-\x1f\x7f-\x9f]", hostile)
    assert {tag for tag, _ in page.tags} & {"script", "img"} == set()
    escaped = "<script>alert(1)</script> ⟨U+202E⟩gnp.exe"
    for before in ("positive=Yes)", "is not finite ", "were passed "):
        assert before + escaped in page.text


def test_every_claim_leads_to_its_experiment_and_is_named_in_words(shipped, made):
    page = Page(shipped)
    ids = page.ids()
    assert len(ids) == len(set(ids))
    assert {attrs["href"].removeprefix("#") for tag, attrs in page.tags if tag == "a"} <= set(ids)
    cards = dict(zip(*[iter(re.split(r'<section class="claim" id="(claim-\d+-\d+)"', shipped)[1:])] * 2, strict=True))
    assert all('href="#experiment-1">The experiment behind it' in cards[f"claim-2-{number}"] for number in range(1, 9))
    assert all('href="#experiment-2">The experiment behind it' in cards[f"claim-3-{number}"] for number in (1, 2))
    assert all("#reading-" not in cards[f"claim-2-{number}"].split("</section>")[0] for number in range(1, 9))
    for words in (
        "slope() > null.slope()",
        "slope of the effect per unit of strength ≥ 0.5",
        "change of the effect ≤ −0.5 at strength −2",
        "change() > null.change() at strength 3",
        "KL divergence, nats per token ≤ 0.05 at strength 1 on neutral_text",
    ):
        of = "" if words.startswith("KL") else f", {bundles_dose.EFFECT}"
        assert f"dishonesty on questions{of}: {words}" in page.text
    assert "as low as −0.3; p = 0.01, beaten" in page.text
    assert bundles.sha(f"{NEUTRAL}-03") in cards["claim-2-7"]
    assert bundles.sha("questions-0002") in cards["claim-2-1"]


def test_an_excess_shows_what_was_held_against_the_draws(made):
    claims = [claim for claim in made[2].run.claims if claim.quantity == "slope"][:2]
    excess, plain = (interval_plots(claims)[claim.id] for claim in claims)
    assert [lane.observed for lane in excess.nulls] == [plain.value] * 2
    assert [lane.observed for lane in plain.nulls] == [None, None]
    assert excess.value != plain.value


def test_the_ladder_says_every_rung_in_words(shipped):
    (row,) = re.findall(r'<tr role="row">\s*<th scope="row" role="rowheader"><bdi>dishonesty</bdi></th>(.*?)</tr>', shipped, re.DOTALL)
    text = Page(f"<table><tr>{row}</tr></table>").text
    states = re.findall(r"(read|selective|causal|general|mechanistic): (reached|not reached|not assessed) (.*?)(?= Claim|\w+: |$)", text)
    assert [(name, state) for name, state, _ in states] == [
        ("read", "reached"),
        ("selective", "reached"),
        ("causal", "not reached"),
        ("general", "not reached"),
        ("mechanistic", "not assessed"),
    ]
    assert [why.strip() for _, _, why in states] == [
        "shown by a claim",
        "shown by 2 claims",
        "no claim that passed bounds its divergence on neutral text at -2 and 3 (at(…).side_effects().kl() <= …)",
        "on suites that took no part in making it, no claim that passed shows that it tells its classes apart, above its nulls",
        "no circuit of named components was looked for",
    ]
    assert row.count('<a href="#claim-1-1">1.1</a>') == 2
    assert len(set(re.findall(r'<svg class="step".*?</svg>', row, re.DOTALL))) == 3
    order = [shipped.index(f'<section id="{name}"') for name in ("not-shown", "ladder", "claims", "controls", "audits", "experiments", "readings")]
    assert order == sorted(order)


def test_what_experiments_do_not_show_is_said(shipped):
    text = Page(shipped).text
    assert "That the model uses it so on its own." in text
    assert "No intervention was made in this run" not in text
    assert all(title in text for title in ("Clamped latents", "Side effects", "What a function of the audit's author computes.", "The evidence ladder"))
    assert "take along what else lies on it" not in text
    assert "and 3 experiments changed the model along them" in text


class Slope:
    """DuckDB's regr_slope, by NumPy's least squares."""

    def __init__(self):
        self.points = []

    def step(self, y, x):
        self.points.append((x, y))

    def finalize(self):
        return float(np.polyfit(*zip(*self.points, strict=True), 1)[0])


def test_the_queries_give_the_claims_again(made):
    build, _, content = made
    rows = build.samples.table()
    database = sqlite3.connect(":memory:")
    database.create_aggregate("regr_slope", 2, Slope)
    database.create_function("least", 2, min)
    columns = ["measurement", "arm", "draw", "condition", "prompt", "value"]
    database.execute(f"CREATE TABLE 'samples.parquet' ({', '.join(columns)})")
    database.executemany(
        "INSERT INTO 'samples.parquet' VALUES (?, ?, ?, ?, ?, ?)",
        zip(*(rows[name].cast("string").to_pylist() for name in columns[:-1]), rows["value"].to_pylist(), strict=True),
    )
    experiments = {experiment.id: experiment for experiment in content.run.experiments}
    checked = set()
    for claim in content.run.claims:
        if claim.reading in experiments:
            checked.add((claim.quantity, claim.over_null))
            found = database.execute(query(claim, experiments[claim.reading])).fetchone()[0]
            assert found == pytest.approx(claim.value, abs=1e-9), claim.text
    assert {quantity for quantity, _ in checked} == {"slope", "change", "smallest_step", "sign_reversal", "kl", "loss_change"}
    assert {quantity for quantity, over_null in checked if over_null} == {"slope", "change", "smallest_step"}


def test_rendered_again_it_is_the_same_bytes_without_times(made, shipped, tmp_path):
    assert html.render(made[2].write(tmp_path / "elsewhere")) == shipped


def test_two_megabytes_however_many_experiments(tmp_path, monkeypatch):
    build = bundles.Builder()
    fit, live = build.suite("pairs[train]", 120, 30, 60), build.suite("questions", 4, 4, None)
    build.suite(NEUTRAL, 12, 12, None)
    strengths = tuple(float(each) for each in range(-16, 17) if each)
    probes = [build.probe(f"probe_{number:03d}", "difference_of_means", "resid_post", 18, fit, 1.0) for number in range(MANY)]
    made = []
    for number, probe in enumerate(probes):
        wide = bundles_dose.steered(build, probe, live, strengths=strengths, draws=2)
        long = tuple(each.model_copy(update={"text": "word " * 400}) for each in wide.record.generations)
        made.append(wide.record.model_copy(update={"generations": long}))
        bundles_dose.audit_of(build, f"many.py::audit_{number}", "It goes on", "instrument", [(wide, "slope", ">", 0.0, None, True)])
    folder = build.content(experiments=made).write(tmp_path / "out")
    text = html.render(folder)
    assert len(text.encode()) <= html.MAX_BYTES
    shown = text.count('<article class="reading" id="experiment-')
    assert 4 <= shown < MANY
    assert f"{MANY - shown} more experiments in" in Page(text).text
    assert store.read(folder).run.experiments[0].id == made[0].id
    monkeypatch.setattr(html, "DETAILS", html.DETAILS[-1:])
    assert f"{MANY - 40} more detectors in evidence.json" in Page(html.render(folder)).text
