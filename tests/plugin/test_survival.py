"""What happens to long runs: they are killed, the disk is full, the results folder can't be written. `tests/survival` kills more often."""

import os
import sys
from pathlib import Path

import pytest

from mi_audit.evidence import store
from tests.plugin.runs import run
from tests.plugin.toy import TOY
from tests.survival.kills import kills

AUDIT = """
@mi.audit(about="instrument")
def audit_reads(model):
    assert model.read(probe, toy["test"]).auroc() >= 0.8
"""

FULL_DISK = """
import resource
import pytest

@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish():
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, ({most}, before[1]))
    try:
        return (yield)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
"""
"""Makes the system refuse every byte of a file beyond the first `most` (EFBIG), while evidence is written."""


def test_a_killed_run_ends_as_if_nothing_had_happened(tmp_path):
    assert [str(kill) for kill in kills(tmp_path, times=2, seed=1, groups=80) if kill.differences] == []


def refused(done, reason):
    """The run ended with exit code 11 and one message that names the folder and says why; no file of it is there."""
    assert done.result.ret == 11
    (line,) = [line for line in done.result.stdout.lines if "EVIDENCE NOT WRITTEN" in line]
    assert str(done.folder.parent) in line and reason in line
    done.result.stdout.no_fnmatch_line("*Traceback*")
    return True


@pytest.mark.skipif(sys.platform == "win32", reason="no limit on the size of files")
def test_a_full_disk_is_exit_11_and_leaves_what_was_there(pytester, tiny_folder):
    pytester.makepyfile(audit_toy=TOY + AUDIT)
    whole = run(pytester, tiny_folder, report="html")
    assert whole.result.ret == 0
    before, sizes = whole.bundle, {path.name: path.stat().st_size for path in whole.folder.rglob("*") if path.is_file()}
    assert sizes[store.EVIDENCE] < sizes[store.REPORT]
    for most in (0, sizes[store.EVIDENCE] - 1, sizes[store.REPORT] - 1):
        pytester.makeconftest(FULL_DISK.format(most=most))
        assert refused(run(pytester, tiny_folder, report="html"), "File too large")
        assert store.read(whole.folder) == before
        assert not list(whole.folder.parent.glob(".evidence.*"))


def below_a_file(path):
    (path / "taken").write_text("a file")
    return path / "taken" / "evidence", "taken is not a folder"


def in_a_read_only_folder(path):
    if os.geteuid() == 0:
        pytest.skip("root writes where it likes")
    (path / "fixed").mkdir(mode=0o500)
    return path / "fixed" / "evidence", "can't be written"


def in_a_folder_of_the_kernel(path):
    if sys.platform != "linux":
        pytest.skip("no such folder")
    return Path("/proc/self/evidence"), "can't be written"


@pytest.mark.parametrize("place", [below_a_file, in_a_read_only_folder, in_a_folder_of_the_kernel])
def test_a_results_folder_that_can_not_be_written_is_exit_11(pytester, tiny_folder, place):
    pytester.makepyfile(audit_toy=TOY + AUDIT)
    out, reason = place(pytester.path)
    assert refused(run(pytester, tiny_folder, out=out), reason)
    assert not out.exists()


def test_what_can_not_be_written_is_told_before_the_model_loads(pytester):
    pytester.makepyfile(audit_toy=TOY + AUDIT)
    out, reason = below_a_file(pytester.path)
    done = run(pytester, pytester.path / "no-such-model", out=out)
    assert refused(done, reason)
    done.result.stdout.no_fnmatch_line("*no-such-model*")


def test_a_cache_that_can_not_be_written_is_told(pytester, tiny_folder, monkeypatch):
    pytester.makepyfile(audit_toy=TOY + AUDIT)
    (pytester.path / "file").touch()
    monkeypatch.setenv("MI_AUDIT_CACHE", str(pytester.path / "file" / "cache"))
    done = run(pytester, tiny_folder)
    assert done.result.ret == 0
    done.result.stdout.fnmatch_lines(["activation cache: *Not a directory*MI_AUDIT_CACHE*"])
    monkeypatch.setenv("MI_AUDIT_CACHE_GIB", "-5")
    done = run(pytester, tiny_folder)
    assert done.result.ret == 12
    assert "MI_AUDIT_CACHE_GIB=-5" in done.error("audit_reads")


KEEPS_A_LOG = """
class Log:
    def __init__(self):
        self.itself = self
        self.file = open("log.txt", "w")
        self.file.write("one line")

log = Log()
"""


def test_a_file_that_a_project_leaves_open_is_written_as_the_process_ends(pytester, tiny_folder):
    pytester.makeconftest(KEEPS_A_LOG)
    pytester.makepyfile(audit_toy=TOY + AUDIT)
    done = pytester.runpytest_subprocess(f"--audit-model={tiny_folder}", f"--audit-out={pytester.path / 'evidence'}", "--audit-format=none", "--audit-no-cache")
    assert done.ret == 0
    assert (pytester.path / "log.txt").read_text() == "one line"
