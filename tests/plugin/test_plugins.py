"""Plugins of other distributions: used, recorded, refused. The example is a distribution of its own, installed here by its metadata alone."""

import csv
import hashlib
import os
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch

from mi_audit.causal.effect import OfText
from mi_audit.causal.held import effect_of
from mi_audit.detectors import fitting
from mi_audit.errors import PluginError
from mi_audit.evidence import store
from mi_audit.evidence.experiments import AS_IT_IS
from mi_audit.plan.effects import EffectSpec
from mi_audit.plugins import load
from mi_audit.suites import formats
from mi_audit.suites.suite import suite
from tests.plugin.toy import TOY

EXAMPLE = Path(__file__).parents[1] / "plugin_example"
README = Path(__file__).parents[2] / "plugins" / "README.md"
DECLARED = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]

CLI = ("-c", "from mi_audit.cli import main; main()")
AUDIT = """
@mi.audit(about="instrument")
def audit_reads(model):
    assert model.read(probe, toy["test"]).auroc() >= 0.8
"""
STEERED = """
@mi.audit(about="instrument")
def audit_stays_as_open(model):
    sweep = model.steer(probe, on=toy["test"], strengths=(-1, 1), effect=mi.effects.effect("entropy"), controls=False)
    assert sweep.at(1).change() <= 1
"""


def install(site: Path, name: str, version: str, entry_points: dict[str, str]) -> None:
    """What an installer leaves of a distribution beside its code."""
    info = site / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "entry_points.txt").write_text("[mi_audit]\n" + "".join(f"{key} = {value}\n" for key, value in entry_points.items()))


@pytest.fixture
def site(tmp_path, monkeypatch):
    """Installs a distribution `dist-of-NAME` of one module and gives all the entry points there."""

    def add(name: str, source: str) -> list[metadata.EntryPoint]:
        (tmp_path / f"{name}.py").write_text(f"from mi_audit.hookspecs import Renderer, hookimpl\n{source}\n")
        install(tmp_path, f"dist-of-{name}", "1.0", {name: name})
        return [entry for found in metadata.distributions(path=[str(tmp_path)]) for entry in found.entry_points]

    monkeypatch.syspath_prepend(tmp_path)
    yield add
    for path in tmp_path.glob("*.py"):
        sys.modules.pop(path.stem, None)


def command(*arguments: str, cwd: Path, path: list[Path], **environment: str) -> subprocess.CompletedProcess[str]:
    places = os.pathsep.join([*map(str, path), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": places, **environment}
    return subprocess.run([sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def toy_in_tsv(folder: Path) -> None:
    """The toy audit, its suite in the example's format and its probe fitted by the example's method."""
    names: dict[str, object] = {}
    exec(TOY.split("toy = ")[0], names)
    columns = ("id", "text", "label", "group")
    rows = [columns, *([row[name] for name in columns] for row in names["rows"])]
    (folder / "toy.tsv").write_text("".join("\t".join(row) + "\n" for row in rows))
    source = TOY.replace('mi.suite(rows, positive="yes", name="toy")', 'mi.suite("toy.tsv", positive="yes")')
    (folder / "audit_toy.py").write_text(source.replace('"difference_of_means"', '"difference_of_medians"') + AUDIT + STEERED)


def entropies(folder: Path, texts: list[str]) -> list[float]:
    """Of the next token after each text, in nats, by plain transformers and NumPy."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        logits = [model(tokenizer(text, return_tensors="pt").input_ids).logits[0, -1].double().numpy() for text in texts]
    shares = [np.exp(each - each.max()) / np.exp(each - each.max()).sum() for each in logits]
    return [float(-(each * np.log(each)).sum()) for each in shares]


def test_one_of_each_kind_takes_part_in_a_run_and_is_recorded(tmp_path, tiny_folder):
    install(tmp_path / "site", DECLARED["name"], DECLARED["version"], DECLARED["entry-points"]["mi_audit"])
    toy_in_tsv(tmp_path)
    path, shelf = [tmp_path / "site", EXAMPLE], {"MODEL_SHELF": str(tiny_folder.parent)}
    arguments = ("-m", "pytest", "audit_toy.py", f"--audit-model=shelf:{tiny_folder.name}", "--audit-format=html,verdicts", "--audit-out=evidence")
    done = command(*arguments, cwd=tmp_path, path=path, **shelf)
    assert done.returncode == 0, done.stdout + done.stderr

    # read here, where the plugin is not installed
    run = store.read(tmp_path / "evidence").run
    (recorded,) = run.plugins
    sources = sorted(EXAMPLE.rglob("mi_audit_example/*.py"))
    lines = "".join(f"{hashlib.sha256(file.read_bytes()).hexdigest()}  mi_audit_example/{file.name}\n" for file in sources)
    assert (recorded.name, recorded.distribution, recorded.version) == ("example", DECLARED["name"], DECLARED["version"])
    assert recorded.digest == hashlib.sha256(lines.encode()).hexdigest()
    assert recorded.kinds == ("model source", "suite format", "probe method", "effect", "renderer")
    assert (run.model.source, run.model.revision, run.model.licence) == ("shelf", "shelf-1", "CC0-1.0")
    weights = hashlib.sha256((tiny_folder / "model.safetensors").read_bytes()).hexdigest()
    assert {file.name: file.sha256 for file in run.model.files}["model.safetensors"] == weights
    assert {suite.source for suite in run.suites} == {"toy.tsv"}
    assert [detector.method for detector in run.detectors] == ["difference_of_medians"]
    assert [null.p for null in run.claims[0].nulls] == [0.01, 0.01]
    (experiment,) = run.experiments
    texts = {row["id"]: row["text"] for row in csv.DictReader((tmp_path / "toy.tsv").open(), delimiter="\t")}
    samples = [row for row in store.read(tmp_path / "evidence").samples().to_pylist() if row["measurement"] == experiment.id]
    measured = {row["prompt"]: row["value"] for row in samples if row["condition"] == AS_IT_IS}
    assert (experiment.effect, experiment.recomputable, len(measured)) == ("entropy()", True, experiment.n)
    assert list(measured.values()) == pytest.approx(entropies(tiny_folder, [texts[prompt] for prompt in measured]), abs=1e-5)
    assert {experiment.points[0].change, experiment.points[1].change}.isdisjoint({0.0, None})
    assert (tmp_path / "evidence" / "report.txt").read_text() == "PASS\taudit_toy.py::audit_reads\nPASS\taudit_toy.py::audit_stays_as_open\n"
    report = (tmp_path / "evidence" / "report.html").read_text()
    assert recorded.digest in report and "What the plugins do" in report

    listed = command(*CLI, "plugins", cwd=tmp_path, path=path).stdout
    assert recorded.digest in listed and "difference_of_medians" in listed
    assert re.search(rf"^effect +entropy +example \({DECLARED['name']} {DECLARED['version']}\)$", listed, re.MULTILINE)
    again = command(*CLI, "report", "evidence", "--format", "verdicts", cwd=tmp_path, path=path)
    assert again.returncode == 0, again.stderr
    absent = command(*CLI, "--no-plugins", "report", "evidence", "--format", "verdicts", cwd=tmp_path, path=path)
    assert (absent.returncode, "no renderer is called 'verdicts'" in absent.stderr) == (2, True)

    failed = command(*arguments, cwd=tmp_path, path=path)
    assert failed.returncode == 12
    assert "the model source 'shelf' of the plugin example (mi-audit-example 0.3.0) failed: KeyError: 'MODEL_SHELF'" in failed.stdout
    without = command(*arguments, "--audit-format=html", "--audit-no-plugins", cwd=tmp_path, path=path, **shelf)
    assert without.returncode == 12
    assert "the suffix '.tsv' is no suite format" in without.stdout


def test_a_method_and_an_effect_from_a_plugin_count_in_the_plan_by_their_code(site, tmp_path, monkeypatch):
    from mi_audit.plan import detectors, effects, steering
    from mi_audit.plan.places import at

    rows, others = (suite([{"text": f"{name}{row}", "label": row % 2 == 0} for row in range(8)], name=name) for name in ("rows", "others"))
    hooks = ("probe_methods", "effects")
    points = site("owned", "".join(f"@hookimpl\ndef mi_audit_{hook}():\n    return {{'own': print}}\n" for hook in hooks))
    digests = []
    for comment in ("", "# another comment", ""):
        module = tmp_path / "owned.py"
        module.write_text(module.read_text().split("#")[0] + comment)
        registry = load(points)
        for room in (detectors, effects):
            monkeypatch.setattr(room, "active", lambda registry=registry: registry)
        probes = [detectors.probe("own", method=method, at=at("resid_post", depth=0.5), fit=rows) for method in ("own", "difference_of_means")]
        steered = steering.steer_spec(probes[1], others, effects.effect("own"), (1,), unit=None, tokens="generated", profile=(), controls=True)
        digests.append((probes[0].digest, steered.digest, probes[1].digest))
    assert digests[0] == digests[2]
    assert [one == other for one, other in zip(digests[0], digests[1], strict=True)] == [False, False, True]


REFUSED = {
    "absent": ("import no_such_module", "can't be imported from absent: ModuleNotFoundError"),
    "exits": ("raise SystemExit(0)", "can't be imported from exits: SystemExit"),
    "unknown": ("@hookimpl\ndef mi_audit_verdicts():\n    return {}", "does not fit the contract: unknown hook 'mi_audit_verdicts'"),
    "arguments": ("@hookimpl\ndef mi_audit_renderers(pdf):\n    return {}", "does not fit the contract.*pdf"),
    "empty": ("def mi_audit_renderers():\n    return {}", "implements no hook"),
    "listing": ("@hookimpl\ndef mi_audit_suite_formats():\n    return ['.tsv']", "returned list; return a dict"),
    "raises": ("@hookimpl\ndef mi_audit_suite_formats():\n    return {'.tsv': 1 / 0}", "mi_audit_suite_formats failed: ZeroDivisionError"),
    "taken": (
        "@hookimpl\ndef mi_audit_suite_formats():\n    return {'.csv': print}",
        r"two plugins claim the suite format '\.csv': suites\.formats \(mi-audit .*\) and",
    ),
    "effect_taken": (
        "@hookimpl\ndef mi_audit_effects():\n    return {'choice': print}",
        r"two plugins claim the effect 'choice': causal\.effects \(mi-audit .*\) and",
    ),
    "capital": ("@hookimpl\ndef mi_audit_suite_formats():\n    return {'.TSV': print}", "the name does not match"),
    "uncallable": ("@hookimpl\ndef mi_audit_model_sources():\n    return {'shelf': 'path'}", "is str, not what mi_audit_model_sources"),
    "none": ("@hookimpl\ndef mi_audit_renderers():\n    return {'none': Renderer('report.pdf', print)}", "the name does not match"),
    "overwrites": ("@hookimpl\ndef mi_audit_renderers():\n    return {'raw': Renderer('evidence.json', print)}", "not what mi_audit_renderers"),
    "same_file": ("@hookimpl\ndef mi_audit_renderers():\n    return {'page': Renderer('report.html', print)}", r"both write report\.html"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_plugin_that_does_not_fit_is_an_error_that_names_it(site, name):
    source, message = REFUSED[name]
    with pytest.raises(PluginError, match=message) as caught:
        load(site(name, source))
    assert f"{name} (dist-of-{name} 1.0)" in str(caught.value)


@pytest.mark.parametrize(("hook", "kind"), [("model_sources", "model source"), ("effects", "effect")])
def test_two_plugins_that_claim_one_name_are_both_named(site, hook, kind):
    source = f"@hookimpl\ndef mi_audit_{hook}():\n    return {{'shelf': print}}"
    site("left", source)
    with pytest.raises(PluginError, match=rf"two plugins claim the {kind} 'shelf': left \(dist-of-left 1\.0\) and right \(dist-of-right 1\.0\)"):
        load(site("right", source))


def test_a_broken_plugin_is_no_verdict_and_never_skipped(site, tmp_path, pytester):
    site("broken", "import no_such_module")
    pytester.makepyfile(audit_toy=TOY + AUDIT, test_own="def test_own():\n    pass\n")
    audited = command("-m", "pytest", "--audit-plan", "audit_toy.py", cwd=pytester.path, path=[tmp_path])
    assert audited.returncode == 12
    assert "the plugin broken (dist-of-broken 1.0) can't be imported" in audited.stdout
    assert command("-m", "pytest", "--audit-plan", "--audit-no-plugins", "audit_toy.py", cwd=pytester.path, path=[tmp_path]).returncode == 0
    assert command("-m", "pytest", "test_own.py", cwd=pytester.path, path=[tmp_path]).returncode == 0, "a run without audits loads no plugin"
    listed = command(*CLI, "plugins", cwd=tmp_path, path=[tmp_path])
    assert (listed.returncode, "dist-of-broken 1.0" in listed.stderr) == (2, True)


def test_rows_of_a_plugin_are_held_to_the_limits(site, tmp_path, monkeypatch):
    reader = """
from mi_audit.suites.problems import Place
from mi_audit.suites.rows import Rows

def read(source, data, dropped, report):
    rows = {b"long": [(7, {"text": "x" * 1_000_001})], b"wide": [(7, dict.fromkeys(map(str, range(300)), "x"))], b"odd": [(7, "x")]}
    return Rows(Place(source, "line"), iter(rows[data.strip()]))

@hookimpl
def mi_audit_suite_formats():
    return {".own": read}
"""
    registry = load(site("reader", reader))
    monkeypatch.setattr(formats, "active", lambda: registry)
    for content, message in (("long", "line 7: has 1000001 characters"), ("wide", "line 7: has 300 columns"), ("odd", "gave str"), ("?", "KeyError")):
        (tmp_path / "x.own").write_text(content)
        with pytest.raises((PluginError, formats.SuiteError), match=message):
            suite(tmp_path / "x.own")


def test_directions_of_a_plugin_are_held_to_their_shape(site, monkeypatch):
    method = """
import numpy as np
from mi_audit.detectors.linear import Directions

class Odd:
    regularisation = None
    def __init__(self, value, draws): self.value, self.draws = value, draws
    def fit(self, labels): return Directions(np.zeros(3), np.full((self.draws, 3), self.value), np.zeros(self.draws))

@hookimpl
def mi_audit_probe_methods():
    return {"nan": lambda acts, labels, groups: Odd(np.nan, 2), "one": lambda acts, labels, groups: Odd(1.0, 1), "fits": lambda *rest: Odd(1.0, 2)}
"""
    registry = load(site("odd", method))
    monkeypatch.setattr(fitting, "active", lambda: registry)
    acts, labels, groups = np.zeros((4, 3)), np.array([True, False, True, False]), tuple("abcd")
    for name in ("nan", "one"):
        with pytest.raises(PluginError, match="finite float64 of shape"):
            fitting.fitter(name, acts, labels, groups).fit(np.array([labels, ~labels]))
    assert fitting.fitter("fits", acts, labels, groups).fit(np.array([labels, ~labels])).weights.shape == (2, 3)


def test_effects_of_a_plugin_are_held_to_their_shape(site):
    made = """
import torch
from mi_audit.causal.effect import OfLogits, OfText

def first(prompt): return ("",)
def of(part, value=lambda parts, prompt: parts[0]): return lambda spec, tokenize: OfLogits(first, part, value)
def full(logits, ids): raise torch.OutOfMemoryError("no room")

@hookimpl
def mi_audit_effects():
    return {
        "none": lambda spec, tokenize: None,
        "wide": of(lambda logits, ids: logits[:, 0]),
        "listing": of(lambda logits, ids: [0.0] * len(logits)),
        "folded": of(lambda logits, ids: logits[:, 0, 0], lambda parts, prompt: parts.sum()),
        "broken": of(lambda logits, ids: logits[:, 0, 99]),
        "worded": lambda spec, tokenize: OfText(4, lambda text, prompt: "many"),
        "full": of(full),
        "fits": of(lambda logits, ids: logits[:, 0, 1]),
    }
"""
    offers, (prompt, *_) = load(site("odd_effects", made)).effects, suite([{"text": "a"}, {"text": "b"}], name="texts")
    logits = torch.arange(12.0).reshape(3, 1, 4)

    def measured(name: str) -> torch.Tensor:
        effect = effect_of(offers[name], EffectSpec(name), lambda text: ())
        if isinstance(effect, OfText):
            return torch.tensor(effect.value("words", prompt))
        assert effect.continuations(prompt) == ("",)
        return effect.value(effect.part(logits, ())[None], prompt)

    for name, why in (
        ("none", "gave NoneType"),
        ("wide", r"shape \(3, 4\)"),
        ("listing", "gave list"),
        ("folded", r"shape \(\)"),
        ("broken", "IndexError"),
        ("worded", "ValueError"),
    ):
        with pytest.raises(PluginError, match=rf"the effect '{name}' of the plugin odd_effects .*{why}"):
            measured(name)
    with pytest.raises(torch.OutOfMemoryError):
        measured("full")
    assert measured("fits").tolist() == [1.0, 5.0, 9.0]


def test_the_documentation_is_the_tested_code():
    text = README.read_text()
    for file in (EXAMPLE / "pyproject.toml", *EXAMPLE.glob("mi_audit_example/[!_]*.py")):
        assert file.read_text().strip() in text, f"plugins/README.md does not show {file.name} as it is"
