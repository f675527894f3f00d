"""A writer that is killed leaves what was there, and nothing that the next one does not clear up."""

import shutil
import signal
import subprocess
import sys
from dataclasses import replace

import pytest

from mi_audit.errors import EvidenceError
from mi_audit.evidence import store
from mi_audit.evidence.scratch import Scratch, scratch_beside
from tests.unit import bundles

DIES = """
import os, signal, sys
from pathlib import Path
from tests.unit import bundles

moves, replace = int(sys.argv[2]), os.replace

def move(*arguments):
    global moves
    if moves == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    moves -= 1
    replace(*arguments)

os.replace = move
bundles.passing().write(Path(sys.argv[1]))
"""


def write_and_die(target, moves):
    """Write a bundle in a process that is killed when it has moved so many folders and would move the next."""
    done = subprocess.run([sys.executable, "-c", DIES, str(target), str(moves)], check=False)
    assert done.returncode == -signal.SIGKILL


@pytest.mark.parametrize("moves", [0, 1])
def test_a_killed_writer_loses_nothing_and_leaves_nothing(tmp_path, moves):
    target = bundles.realistic().write(tmp_path / "out")
    old = store.read(target)
    write_and_die(target, moves)
    assert target.exists() is (moves == 0)
    assert len(list(tmp_path.iterdir())) > 1, "the killed writer must leave something, or this test shows nothing"

    refused = bundles.passing()
    with pytest.raises(EvidenceError, match="outside"):
        replace(refused, files={**refused.files, "detectors/../outside": b""}).write(target)
    assert store.read(target) == old
    assert list(tmp_path.iterdir()) == [target]

    write_and_die(target, moves)
    bundles.passing().write(target)
    assert store.read(target).run.audits == bundles.passing().run.audits
    assert list(tmp_path.iterdir()) == [target]


def test_a_first_write_that_is_killed_is_cleared_up(tmp_path):
    write_and_die(tmp_path / "out", moves=0)
    assert not (tmp_path / "out").exists()
    bundles.passing().write(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_run_of_several_processes_that_is_killed_is_cleared_up_by_the_next_into_that_folder(tmp_path):
    dead = Scratch.of(tmp_path / "another", "0123456789ab")
    dead.lock.touch()
    dead.parts.mkdir()
    (dead.parts / "gw0.plan.json").touch()
    bundles.passing().write(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_who_still_writes_is_left_alone(tmp_path):
    target = tmp_path / "out"
    with scratch_beside(target) as other:
        other.new.mkdir()
        (other.new / "half").touch()
        bundles.passing().write(target)
        assert (other.new / "half").exists()
        shutil.rmtree(other.new)
    assert list(tmp_path.iterdir()) == [target]


def test_files_of_others_are_left_alone(tmp_path):
    names = {".out.0123456789ab.lock.txt", ".out.0123456789ab.new", ".out.0123456789ab.lock", ".out.0123456789abc.mi-audit-lock", "0123456789ab.mi-audit-lock"}
    for name in names:
        (tmp_path / name).write_text("mine")
    bundles.passing().write(tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == names | {"out"}
