"""What is collected, what the plan says of it, and what neither of them loads."""

import subprocess
import sys

import pytest

from tests.plugin.runs import run
from tests.plugin.toy import TOY

AUDIT = """
@mi.audit(about="instrument")
def audit_reads(model):
    assert model.read(probe, toy["test"]).auroc() >= 0.8
"""
HEAVY = {"torch", "transformers", "sae_lens", "pandas", "transformer_lens"}


def loaded_by(code: str, cwd, *arguments: str) -> set[str]:
    """The heavy modules that are loaded after running `code` in a fresh interpreter."""
    closing = "import sys; print('LOADED', *sys.modules)"
    done = subprocess.run([sys.executable, "-c", f"{code}\n{closing}", *arguments], cwd=cwd, capture_output=True, text=True, check=True)
    return HEAVY & set(done.stdout.split("LOADED", 1)[1].split())


def test_importing_the_plugin_and_the_package_loads_nothing_heavy(tmp_path):
    assert loaded_by("import mi_audit.pytest_plugin", tmp_path) == set()
    assert loaded_by("import mi_audit as mi; mi.suite; mi.probe; mi.at; mi.load_model", tmp_path) == set()


def test_collecting_and_planning_load_no_model(pytester):
    pytester.makepyfile(audit_toy=TOY + AUDIT)
    for option in ("--co", "--audit-plan"):
        code = (
            f"import os, pytest; os.environ['PYTEST_DISABLE_PLUGIN_AUTOLOAD'] = '1'; assert pytest.main(['-p', 'mi_audit.pytest_plugin', '{option}', '.']) == 0"
        )
        assert loaded_by(code, pytester.path) == set()
    assert not (pytester.path / "audit-results").exists()


def test_only_audit_files_that_import_mi_audit_are_collected(pytester):
    pytester.makepyfile(
        audit_toy=TOY + AUDIT + "\ndef test_not_an_audit():\n    pass\n\nclass TestNot:\n    def test_x(self):\n        pass\n",
        audit_log="def audit_entry(model):\n    raise SystemExit('somebody else\\'s file')\n",
        test_own="def test_own():\n    pass\n",
    )
    for arguments in ((), ("-o", "python_files=audit_*.py test_*.py")):
        listed = pytester.runpytest_subprocess("--co", "-q", *arguments).stdout.lines
        assert [line for line in listed if "::" in line] == ["audit_toy.py::audit_reads", "test_own.py::test_own"]
    for path in ("audit_toy.py", "./"):
        listed = pytester.runpytest_subprocess("--co", "-q", path).stdout.lines
        assert sum("audit_reads" in line for line in listed) == 1


def test_ordinary_tests_run_as_if_the_plugin_were_not_there(pytester, tiny_folder):
    pytester.makepyfile(test_own="def test_own():\n    assert 1 == 1\n", audit_other="x = 1\n")
    plain = run(pytester, tiny_folder)
    assert plain.result.ret == 0
    assert not plain.folder.exists()
    plain.result.stdout.no_fnmatch_line("*mi-audit plan*")


def digest(pytester: pytest.Pytester, source: str) -> str:
    pytester.makepyfile(audit_toy=source)
    result = pytester.runpytest_inprocess("--audit-plan")
    assert result.ret == 0
    return next(line.split()[2] for line in result.stdout.lines if line.startswith("mi-audit plan"))


def test_the_plan_digest_changes_with_whatever_is_decided(pytester, tmp_path):
    first = digest(pytester, TOY + AUDIT)
    assert digest(pytester, TOY + AUDIT) == first
    changes = {
        "threshold": AUDIT.replace("0.8", "0.81"),
        "operator": AUDIT.replace(">=", ">"),
        "quantity": AUDIT.replace("auroc", "accuracy"),
        "comment": AUDIT + "# a word\n",
    }
    digests = {name: digest(pytester, TOY + audit) for name, audit in changes.items()}
    digests["row"] = digest(pytester, TOY.replace("amber", "umber") + AUDIT)
    digests["depth"] = digest(pytester, TOY.replace("depth=0.5", "depth=0.6") + AUDIT)
    digests["calibration"] = digest(pytester, TOY.replace("0.05, on", "0.06, on") + AUDIT)
    assert len({first, *digests.values()}) == 1 + len(digests), digests


def test_an_audit_file_is_one_too_if_it_has_mi_audit_from_a_module_beside_it(pytester):
    pytester.makepyfile(
        common="import mi_audit as mi\nfrom mi_audit import suite\n", audit_toy=TOY.replace("import mi_audit as mi", "from common import mi") + AUDIT
    )
    pytester.syspathinsert()
    listed = pytester.runpytest_inprocess("--co", "-q").stdout.lines
    assert "audit_toy.py::audit_reads" in listed


@pytest.mark.parametrize("trouble", ["pytest.importorskip('no_such_module')", "import no_such_module"])
def test_a_folder_of_audits_that_can_not_be_collected_leaves_no_pass(pytester, tiny_folder, trouble):
    pytester.makepyfile(audit_toy=TOY + AUDIT)
    below = pytester.mkdir("below")
    (below / "audit_below.py").write_text(TOY + AUDIT)
    (below / "conftest.py").write_text(f"import pytest\n{trouble}\n")
    done = run(pytester, tiny_folder, "--continue-on-collection-errors")
    assert done.result.ret == 12
    assert done.bundle.run.verdict == "ERROR"
    assert done.bundle.run.partial == ("below could not be collected",)


def test_a_misspelt_setting_is_an_error(pytester, tiny_folder):
    pytester.makepyfile(audit_toy=TOY + AUDIT)
    pytester.makeini("[pytest]\naudit_alfa = 0.01\n")
    done = pytester.runpytest_inprocess(f"--audit-model={tiny_folder}")
    assert done.ret == 4
    (done.stderr if done.stderr.lines else done.stdout).fnmatch_lines(["*there is no setting audit_alfa; known are audit_alpha, *"])


def test_a_bad_option_is_one_clear_message(pytester, tiny_folder):
    pytester.makepyfile(audit_toy=TOY + AUDIT)
    for option, message in (
        ("--audit-alpha=2", "--audit-alpha 2"),
        ("--audit-limit=0", "--audit-limit 0"),
        ("--audit-format=pdf", "--audit-format pdf"),
        ("--audit-device=cdua", "--audit-device cdua"),
    ):
        done = pytester.runpytest_inprocess(option)
        assert done.ret != 0
        (done.stderr if done.stderr.lines else done.stdout).fnmatch_lines([f"*{message}*"])


def test_ini_keys_stand_for_options(pytester, tiny_folder):
    pytester.makepyfile(audit_toy=TOY + AUDIT)
    pytester.makeini("[pytest]\naudit_alpha = 0.01\naudit_seed = 7\n")
    done = run(pytester, tiny_folder)
    assert (done.bundle.run.plan.alpha, done.bundle.run.plan.seed) == (0.01, 7)
