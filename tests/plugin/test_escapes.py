"""Every way of writing an audit so that it might pass without its claims holding. None of them gives a PASS."""

import subprocess
import sys

import pytest

from tests.plugin.runs import run
from tests.plugin.toy import TOY

FALSE = 'model.read(probe, toy["test"]).auroc() <= 0.6'
TRUE = 'model.read(probe, toy["test"]).auroc() >= 0.6'

BODIES = {
    "negation": f"assert not ({FALSE})",
    "condition": f"if {FALSE}:\n        assert {TRUE}",
    "condition_swallows": f"if not ({FALSE}):\n        pass",
    "alternative": f"assert ({FALSE}) or ({TRUE})",
    "chained": 'assert 0.1 <= model.read(probe, toy["test"]).auroc() <= 0.6',
    "swallowed": f"try:\n        assert {FALSE}\n    except BaseException:\n        pass",
    "suppressed": f"import contextlib\n    with contextlib.suppress(AssertionError):\n        assert {FALSE}",
    "early_return": f"return\n    assert {FALSE}",
    "skip": f"import pytest\n    pytest.skip('not today')\n    assert {FALSE}",
    "xfail": f"import pytest\n    pytest.xfail('known')\n    assert {FALSE}",
    "exit": "raise SystemExit(0)",
    "no_claims": "model.read(probe, toy['test']).auroc()",
    "no_assert": f"{FALSE}",
    "equality": "assert model.read(probe, toy['test']).auroc() == 1.0",
    "inequality": "assert model.read(probe, toy['test']).auroc() != 0.3",
    "value": f"value = model.read(probe, toy['test']).auroc().value\n    assert {TRUE}",
    "swallowed_value": f"try:\n        float(model.read(probe, toy['test']).auroc())\n    except Exception:\n        pass\n    assert {TRUE}",
    "any": f"assert any([{FALSE}, {TRUE}])",
    "nan": "assert model.read(probe, toy['test']).auroc() >= float('nan')",
    "infinite": "assert model.read(probe, toy['test']).mean() >= float('-inf')",
    "vacuous_rate": "assert model.read(probe, toy['test']).rate() <= 1.0",
    "vacuous_auroc": "assert model.read(probe, toy['test']).auroc() >= 0.0",
    "text": f"str(model.read(probe, toy['test']).auroc())\n    assert {TRUE}",
    "fitted_on": "assert model.read(probe, toy['train']).auroc() >= 0.6",
    "calibrated_on": "assert model.read(probe, toy['calibration']).rate() <= 0.9",
    "whole_suite": "assert model.read(probe, toy).auroc() >= 0.6",
    "other_claim_in_the_run": "global calls\n    calls += 1\n    assert model.read(probe, toy['test']).auroc() >= (0.99 if calls == 1 else 0.6)",
    "fewer_claims_in_the_run": f"global calls2\n    calls2 += 1\n    assert {TRUE}\n    if calls2 == 1:\n        assert {FALSE}",
    "more_claims_in_the_run": f"global calls3\n    calls3 += 1\n    assert {TRUE}\n    if calls3 > 1:\n        assert {FALSE}",
    "no_claims_in_the_run": f"global calls4\n    calls4 += 1\n    if calls4 == 1:\n        assert {TRUE}",
    "raises_in_the_run": f"global calls5\n    calls5 += 1\n    assert {TRUE}\n    if calls5 > 1:\n        raise KeyError('x')",
    "asserts_something_else_in_the_run": f"global calls6\n    calls6 += 1\n    assert {TRUE}\n    assert calls6 == 1",
    "skips_in_the_run": f"import pytest\n    global calls7\n    calls7 += 1\n    assert {TRUE}\n    if calls7 > 1:\n        pytest.skip('later')",
    "no_controls": "assert model.read(probe, toy['test'], controls=False).auroc() >= 0.6",
    "unpaired": "assert model.read(probe, toy['test']).paired_difference() >= 0",
    "misspelt_quantity": "assert model.read(probe, toy['test']).acuracy() >= 0.6",
    "other_estimate": "r = model.read(probe, toy['test'])\n    assert r.auroc() >= r.rate()",
}
COUNTERS = "\ncalls = calls2 = calls3 = calls4 = calls5 = calls6 = calls7 = 0\n"


def test_no_escape_passes(pytester, tiny_folder):
    audits = "".join(f"\n@mi.audit(about='instrument')\ndef audit_{name}(model):\n    {body}\n" for name, body in BODIES.items())
    honest = f"\n@mi.audit(about='instrument')\ndef audit_honest(model):\n    assert {TRUE}\n"
    coroutine = f"\n@mi.audit(about='instrument')\nasync def audit_coroutine(model):\n    assert {FALSE}\n"
    pytester.makepyfile(audit_toy=TOY + COUNTERS + honest + coroutine + audits)
    done = run(pytester, tiny_folder)
    verdicts = done.verdicts
    assert verdicts.pop("audit_honest") == "PASS", "the run itself must work, or this test shows nothing"
    assert set(verdicts) == {f"audit_{name}" for name in [*BODIES, "coroutine"]}
    assert {name: verdict for name, verdict in verdicts.items() if verdict == "PASS"} == {}
    failed = {name for name, verdict in verdicts.items() if verdict == "FAIL"}
    assert failed >= {f"audit_{name}" for name in ("chained", "swallowed", "suppressed", "no_assert", "any")}
    assert verdicts["audit_no_controls"] == "INCONCLUSIVE"
    assert done.result.ret == 1
    for name in ("value", "text", "equality", "swallowed_value"):
        assert "audit_toy.py:" in done.error(f"audit_{name}"), "the message names the line"


@pytest.mark.parametrize("mark", ["skip", "xfail", "skipif(True, reason='x')"])
def test_pytest_marks_do_not_hide_an_audit(pytester, tiny_folder, mark):
    pytester.makepyfile(
        audit_toy="import pytest\n" + TOY + f"\n@pytest.mark.{mark}\n@mi.audit(about='instrument')\ndef audit_false(model):\n    assert {FALSE}\n"
    )
    done = run(pytester, tiny_folder)
    assert done.result.ret in (1, 12)
    assert done.verdicts["audit_false"] != "PASS"


def test_dropped_and_plain_asserts_are_refused(pytester, tiny_folder):
    pytester.makepyfile(audit_toy=TOY + f"\n@mi.audit(about='instrument')\ndef audit_false(model):\n    assert {FALSE}\n")
    plain = run(pytester, tiny_folder, "--assert=plain")
    assert plain.result.ret == 12
    command = [sys.executable, "-O", "-m", "pytest", f"--audit-model={tiny_folder}"]
    optimised = subprocess.run(command, cwd=pytester.path, capture_output=True, text=True, check=False)
    assert optimised.returncode == 12
    assert "-O removes every assert" in optimised.stdout


def test_an_audit_file_changed_after_planning_is_an_error(pytester, tiny_folder):
    pytester.makepyfile(
        audit_toy=TOY
        + f"""
@mi.audit(about="instrument")
def audit_a(model):
    assert {TRUE}
    if type(model)._seen:
        import pathlib
        pathlib.Path(__file__).write_text(pathlib.Path(__file__).read_text() + "# changed")
    type(model)._seen = True

type_of = mi.Auditor
type_of._seen = False

@mi.audit(about="instrument")
def audit_b(model):
    assert {TRUE}
"""
    )
    done = run(pytester, tiny_folder)
    assert done.verdicts == {"audit_a": "ERROR", "audit_b": "ERROR"}
    assert "changed after it was planned" in done.error("audit_b")
    assert done.result.ret == 12


def test_a_generator_and_a_broken_file_are_errors(pytester, tiny_folder):
    for source in (
        TOY + f"\n@mi.audit(about='instrument')\ndef audit_generator(model):\n    yield\n    assert {FALSE}\n",
        "import mi_audit as mi\nmi.suite('nowhere.jsonl')\n",
        "import mi_audit\n(",
    ):
        pytester.makepyfile(audit_toy=source)
        done = run(pytester, tiny_folder)
        assert done.result.ret == 12
        done.result.stdout.no_fnmatch_line("*Traceback*")
        done.result.stdout.no_fnmatch_line("*/mi_audit/*")


def test_a_project_can_not_slip_in_its_own_model(pytester, tiny_folder):
    pytester.makeconftest("import pytest\n@pytest.fixture\ndef model():\n    return None\n")
    pytester.makepyfile(audit_toy=TOY + f"\n@mi.audit(about='instrument')\ndef audit_false(model):\n    assert {TRUE}\n")
    assert run(pytester, tiny_folder).verdicts["audit_false"] == "ERROR"


def test_a_model_that_can_not_be_loaded_is_no_verdict_on_it(pytester, tmp_path):
    pytester.makepyfile(audit_toy=TOY + f"\n@mi.audit(about='instrument')\ndef audit_true(model):\n    assert {TRUE}\n")
    done = run(pytester, tmp_path / "nowhere")
    assert done.result.ret == 12
    assert done.verdicts == {"audit_true": "ERROR"}
    done.result.assert_outcomes(errors=1)


def audit(claim: str = TRUE, name: str = "audit_one") -> str:
    return f"\n@mi.audit(about='instrument')\ndef {name}(model):\n    assert {claim}\n"


@pytest.mark.parametrize(
    "vanishing",
    [
        audit(FALSE) + audit(),
        audit() + f"\nclass AuditMore:\n    def audit_two(self, model):\n        assert {FALSE}\n",
        audit() + f"\ndef test_two(model):\n    assert {FALSE}\n",
        audit() + "\naudit_one.__test__ = False\n__test__ = False\n",
        "import pytest\npytest.importorskip('no_such_module')\n" + audit(),
        "",
    ],
)
def test_no_audit_vanishes(pytester, tiny_folder, vanishing):
    pytester.makepyfile(audit_toy=TOY + vanishing, audit_other=TOY + audit())
    for option in ((), ("--continue-on-collection-errors",)):
        assert run(pytester, tiny_folder, *option).result.ret == 12


def test_a_conftest_that_drops_audits_leaves_no_pass(pytester, tiny_folder):
    pytester.makepyfile(audit_toy=TOY + audit() + audit(FALSE, "audit_two"))
    pytester.makeconftest("def pytest_collection_modifyitems(items):\n    items[:] = [item for item in items if 'two' not in item.name]\n")
    assert run(pytester, tiny_folder).result.ret == 13
    pytester.makeconftest("import pytest\n@pytest.hookimpl(tryfirst=True)\ndef pytest_collection_finish(session):\n    session.items.clear()\n")
    assert run(pytester, tiny_folder).result.ret == 12


def test_the_model_fixture_serves_audits_only(pytester, tiny_folder):
    pytester.makepyfile(test_own="def test_own(model):\n    assert not False\n")
    run(pytester, tiny_folder).result.assert_outcomes(errors=1)


FLAWED = {
    "repeated": "mi.suite([{'id': f'r{i}', 'text': f'the same {i % 3}'} for i in range(300)], name='repeated')",
    "turned": "mi.suite(list(toy['test']), positive='no', name='turned')",
}


@pytest.mark.parametrize("name", FLAWED)
def test_a_flawed_suite_is_an_error(pytester, tiny_folder, name):
    pytester.makepyfile(audit_toy=TOY + f"\nflawed = {FLAWED[name]}\n" + audit("model.read(probe, flawed).rate() <= 0.9"))
    done = run(pytester, tiny_folder)
    assert done.verdicts == {"audit_one": "ERROR"}
    assert done.result.ret == 12


def test_positives_are_not_calibrated_on(pytester, tiny_folder):
    forgot = TOY.replace('on=toy["calibration"]', "on=mi.suite(list(toy[\"calibration\"]), name='forgot')")
    assert forgot != TOY
    pytester.makepyfile(audit_toy=forgot + audit())
    done = run(pytester, tiny_folder)
    assert done.result.ret == 12
    done.result.stdout.fnmatch_lines(["*which are negatives*"])
