"""The report is a pure function of the evidence, says everything that it must, and can do no harm in a browser."""

import base64
import hashlib
import re
import shutil
import sqlite3
from functools import cached_property
from html.parser import HTMLParser

import pyarrow.parquet as pq
import pytest

from mi_audit.errors import EvidenceError, RenderError
from mi_audit.evidence import store
from mi_audit.reporting import catalogue, html
from mi_audit.reporting.queries import query
from mi_audit.reporting.renderers import write_reports
from mi_audit.shipped import reports_dir
from mi_audit.stats.verdict import Verdict
from tests.unit import bundles

VOID = {"meta", "link", "br", "hr", "img", "input"}
EMPTY_SVG = {"circle", "line", "path", "rect", "polyline", "polygon"}


class Page(HTMLParser):
    """Checks that tags are balanced; collects text, tags with their attributes, and text by element id."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.words = [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        assert tag in EMPTY_SVG

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @cached_property
    def text(self):
        return re.sub(r"\s+", " ", "".join(self.words))

    def ids(self):
        return [attrs["id"] for _, attrs in self.tags if "id" in attrs]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = bundles.realistic().write(tmp_path_factory.mktemp("report") / "out")
    write_reports(folder, ["html"])
    return folder


@pytest.fixture(scope="module")
def shipped(bundle):
    return (bundle / "report.html").read_text("utf-8")


@pytest.fixture(scope="module")
def page(shipped):
    return Page(shipped)


def test_rendered_again_elsewhere_it_is_the_same_bytes(bundle, shipped, tmp_path):
    elsewhere = shutil.copytree(bundle, tmp_path / "another-name")
    assert html.render(elsewhere) == shipped
    assert "another-name" not in shipped
    assert str(bundle) not in shipped


def test_times_appear_only_from_the_volatile_section(tmp_path):
    first, second = bundles.passing(), bundles.passing()
    second.volatile = bundles.volatile(started="2031-05-06T07:08:09Z", run_id="other")
    one, two = (html.render(content.write(tmp_path / name)) for content, name in ((first, "a"), (second, "b")))
    assert "2031-05-06T07:08:09Z" in two
    assert one == two.replace("2031-05-06T07:08:09Z", first.volatile.started).replace(">other<", f">{first.volatile.run_id}<")


def test_tags_are_balanced_ids_unique_and_links_lead_somewhere(page):
    ids = page.ids()
    assert len(ids) == len(set(ids))
    links = {attrs["href"] for tag, attrs in page.tags if tag == "a"}
    assert links
    assert {link.removeprefix("#") for link in links} <= set(ids)
    named = {part for _, attrs in page.tags for name in ("aria-labelledby", "aria-describedby") for part in attrs.get(name, "").split()}
    assert named <= set(ids)


def test_nothing_runs_and_nothing_is_fetched(shipped, page):
    names = {tag for tag, _ in page.tags}
    assert not names & {
        "script",
        "img",
        "iframe",
        "object",
        "embed",
        "link",
        "form",
        "base",
        "audio",
        "video",
        "image",
        "use",
        "foreignobject",
        "set",
        "animate",
    }
    attributes = {name for _, attrs in page.tags for name in attrs}
    assert not {name for name in attributes if name.startswith("on")} | (attributes & {"src", "srcset", "style", "xlink:href", "background", "action", "ping"})
    assert all(attrs["href"].startswith("#") for _, attrs in page.tags if "href" in attrs)
    policy = next(attrs["content"] for tag, attrs in page.tags if tag == "meta" and attrs.get("http-equiv") == "Content-Security-Policy")
    style = re.search(r"<style>(.*?)</style>", shipped, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    assert not re.search(r"url\(|@import|expression|</", style)


def test_hostile_text_is_shown_and_stays_text(shipped, page):
    assert not re.search("[\u202a-\u202e\u2066-\u2069\u200b-\u200f\x00-\x08\x0b-\x1f\x7f-\x9f]", shipped)
    assert "<script>alert(1)</script> ⟨U+202E⟩gnp.exe⟨U+202C⟩ z⟨U+200B⟩w ⟨U+001B⟩[31mred⟨U+001B⟩[0m {{ 7 * 7 }} {% raw %} \" ' &" in page.text
    assert '"><img src=x onerror=alert(1)>⟨U+202E⟩⟨U+001B⟩[2J{{ config }}' in page.text
    assert "<b>x</b>" in page.text
    assert page.text.count("{{ 7 * 7 }}") >= 4


def test_every_verdict_claim_and_reason_is_there(bundle, page):
    run = store.read(bundle).run
    for audit in run.audits:
        assert audit.id in page.text
    for claim in run.claims:
        for reason in claim.reasons:
            assert reason in page.text
        for prompt in claim.worst:
            assert prompt in page.text or "⟨U+" in page.text
        assert claim.reading in page.text
        assert claim.method in page.text
    anchors = page.ids()
    assert all(f"claim-{number}-{index + 1}" in anchors for number, audit in enumerate(run.audits, 1) for index in range(len(audit.claims)))
    for model_file in run.model.files:
        assert model_file.sha256 in page.text
    assert "suites/none.jsonl: no such file" in page.text
    assert "in-house-7.2" in page.text
    assert "not in the catalogue" in page.text


def test_the_order_is_verdict_limits_claims_controls_audits_evidence(page):
    ids = page.ids()
    places = [ids.index(name) for name in ("not-shown", "claims", "controls", "audits", "readings", "instruments", "limits", "provenance", "check")]
    assert places == sorted(places)
    head = page.text[: page.text.index("What this does not show")]
    for words in ("ERROR", "1 failed, 1 could not run, 2 could not be decided and 2 passed", "UNSIGNED", "ATTEMPTS UNKNOWN", "does not let the model through"):
        assert words in head
    assert page.text.index("Claims about the model") < page.text.index("Only these count") < page.text.index("Whether the detectors read what they say")


def test_partial_can_not_be_missed(tmp_path):
    content = bundles.passing()
    content.run = content.run.model_copy(update={"partial": ("-k quiet", "--audit-limit 20"), "exit_code": 13})
    raw = html.render(content.write(tmp_path / "out"))
    text = Page(raw).text
    before = text[: text.index("Claims about the model")]
    assert "PARTIAL" in before
    assert '<span class="badge partial">PARTIAL</span>' in raw[raw.index("<h1>") : raw.index("</h1>")]
    assert "can't gate a release" in before
    assert "-k quiet" in before
    assert "lets the model through" not in before
    assert "The whole plan." in text


def test_a_passed_run_says_so_and_without_a_model_it_does_not(tmp_path):
    assert "All 2 audits of smollm2-135m-instruct passed." in Page(html.render(bundles.passing().write(tmp_path / "a"))).text
    build = bundles.Builder()
    build.audit("a.py::audit_x", "X", "", "model", [], verdict=Verdict.ERROR, error="ModelError: no such model")
    text = Page(html.render(build.content(model=None).write(tmp_path / "b"))).text
    assert "Of 1 audit of a model that could not be loaded, 1 could not run." in text
    assert "No model could be loaded." in text


def test_low_precision_is_said_where_it_counts(tmp_path):
    content = bundles.passing()
    readings = tuple(reading.model_copy(update={"spread": 0.125, "spread_n": 64}) for reading in content.run.readings)
    content.run = content.run.model_copy(update={"readings": readings, "model": content.run.model.model_copy(update={"dtype": "bfloat16"})})
    text = Page(html.render(content.write(tmp_path / "out"))).text
    for reading in readings:
        assert f"its scores differ from those in float32 by up to 0.125 (on a sample of 64 of {reading.n} prompts)" in text
    assert "What every score is in float32." in text
    assert "bfloat16 on" in text


def test_charts_have_a_title_a_description_and_a_data_table(shipped):
    charts = re.findall(r'<svg[^>]*role="img".*?</svg>', shipped, re.DOTALL)
    assert len(charts) > 15
    for chart in charts:
        assert re.search(r"<title id=.*?</title>\s*<desc id=.*?</desc>", chart, re.DOTALL)
    figures = re.findall(r"<figure.*?</figure>", shipped, re.DOTALL)
    assert all("<details" in figure and "<caption>" in figure for figure in figures)
    assert len(figures) >= len(charts) - 1


def test_verdicts_have_a_word_and_a_shape_beside_their_colour(shipped):
    badges = re.findall(r'<span class="badge (\w+)">(.*?)</span>', shipped, re.DOTALL)
    assert {name for name, _ in badges} == {"pass", "inconclusive", "fail", "error"}
    shapes = {}
    for name, inside in badges:
        assert inside.strip().endswith(name.upper())
        shapes.setdefault(re.search(r"<(circle|path|rect)[^>]*>", inside)[0], set()).add(name)
    assert len(shapes) == 4


def test_landmarks_captions_and_headers(shipped, page):
    assert {"header", "nav", "main", "footer"} <= {tag for tag, _ in page.tags}
    tables = re.findall(r"<table.*?</table>", shipped, re.DOTALL)
    assert all("<caption>" in table and 'scope="col"' in table for table in tables)
    assert next(tag for tag, _ in page.tags if tag in ("h1", "h2")) == "h1"
    assert shipped.count("<h1") == 1


def test_queries_give_the_claims_again(bundle):
    run = store.read(bundle).run
    table = pq.read_table(bundle / "samples.parquet", filters=[("arm", "in", ["detector", "baseline: length"])])
    database = sqlite3.connect(":memory:")
    columns = ", ".join(f'"{name}"' for name in table.column_names)
    database.execute(f"CREATE TABLE 'samples.parquet' ({columns})")
    database.executemany(
        f"INSERT INTO 'samples.parquet' VALUES ({', '.join('?' * table.num_columns)})",
        zip(*(table[name].to_pylist() for name in table.column_names), strict=True),
    )
    checked = set()
    for claim in run.claims:
        if claim.quantity in ("auroc", "rate", "recall", "accuracy"):
            checked.add(claim.quantity)
            assert database.execute(query(claim)).fetchone()[0] == pytest.approx(claim.value, abs=1e-9), claim.id
    assert checked == {"auroc", "rate", "recall"}


def test_the_query_of_an_effect_size_is_hedges_g():
    from mi_audit.stats import means

    build = bundles.Builder()
    fit, suite = build.suite("a[train]", 40, 10, 20), build.suite("a[test]", 60, 30, 30)
    read = build.read(build.probe("p", "mass_mean", "resid_post", 3, fit, 0.0), suite, 0.8)
    claim = build.claim("a::b", 0, "instrument", read=read, quantity="effect_size", op=">=", threshold=0.1)
    database = sqlite3.connect(":memory:")
    database.create_function("sqrt", 1, lambda value: value**0.5)
    database.execute("CREATE TABLE 'samples.parquet' (measurement, arm, condition, value, label)")
    rows = [(read.record.id, "detector", "", float(score), bool(label)) for score, label in zip(read.scores, read.labels, strict=True)]
    database.executemany("INSERT INTO 'samples.parquet' VALUES (?, ?, ?, ?, ?)", rows)
    expected = means.effect_size(read.scores, read.labels, [str(row) for row in range(60)]).value
    assert database.execute(query(claim)).fetchone()[0] == pytest.approx(expected, rel=2e-4)


def test_two_megabytes_whatever_the_size(tmp_path):
    bundle = bundles.large().write(tmp_path / "out")
    text = html.render(bundle)
    assert len(text.encode()) <= 2_000_000
    page = Page(text)
    run = store.read(bundle).run
    failed = [audit.id for audit in run.audits if audit.verdict is not Verdict.PASS]
    assert len(failed) == 24
    assert all(name in page.text for name in failed)
    assert "To keep the report readable" in page.text
    assert len(re.search(r'<polyline class="curve" points="([^"]*)"', text)[1].split()) <= 320


def test_a_changed_bundle_has_no_report(bundle, tmp_path):
    copy = shutil.copytree(bundle, tmp_path / "out")
    raw = (copy / "evidence.json").read_bytes()
    (copy / "evidence.json").write_bytes(raw.replace(b'"verdict":"FAIL"', b'"verdict":"PASS"'))
    with pytest.raises(EvidenceError):
        html.render(copy)


def test_the_catalogue_supports_and_is_unverified():
    known = catalogue.controls(reports_dir())
    assert {"eu-ai-act-15.4", "gpai-cop-ss-a1.3.1-4", "nist-ai-rmf-measure-2.6", "sr-11-7"} <= known.keys()
    assert {control.status for control in known.values()} == {"unverified", "rescinded 2026-04-17"}
    assert "eu-ai-act-12.1" not in known


def test_a_malformed_catalogue_or_text_names_its_fault(tmp_path, bundle, monkeypatch):
    copy = shutil.copytree(reports_dir(), tmp_path / "reports")
    monkeypatch.setattr(html, "reports_dir", lambda: copy)
    (copy / "limits.json").write_text('{"not_shown": [{"when": "allways", "title": "a", "text": "b"}], "methods": []}')
    with pytest.raises(EvidenceError, match="'allways' is no fact"):
        html.render(bundle)
    (copy / "controls.json").write_text('[{"id": "a", "framework": "F", "reference": "R"}]')
    with pytest.raises(EvidenceError, match=r"controls\.json: 0\.title"):
        html.render(bundle)
    shutil.copy(reports_dir() / "controls.json", copy)
    shutil.copy(reports_dir() / "limits.json", copy)
    (copy / "html" / "limits.html.j2").write_text("{{ page.nothing }}")
    with pytest.raises(EvidenceError, match="nothing"):
        html.render(bundle)


def test_a_report_that_can_not_be_made_costs_no_evidence(tmp_path, monkeypatch):
    folder = bundles.passing().write(tmp_path / "out")
    with pytest.raises(EvidenceError, match=r"lists no report report\.csv"):
        store.write_report(folder, "report.csv", b"")
    monkeypatch.setattr(html, "reports_dir", lambda: tmp_path / "nowhere")
    with pytest.raises(RenderError, match="is whole: mend this"):
        write_reports(folder, ["html"])
    assert store.read(folder).run.verdict is Verdict.PASS
    assert not (folder / "report.html").exists()
