"""A run killed at any moment and started again ends as if nothing had happened: `python -m tests.survival.kills --times 50 --seed 0`.

Each time, with an empty cache and an empty results folder: the command starts, its process group gets SIGKILL at a moment drawn uniformly over the time that an
undisturbed run takes, and the same command runs again to its end. Exit code, evidence section and every table and detector file must equal those of the
undisturbed run, byte for byte, and nothing else may lie beside the bundle. Exits 1 on any difference.
"""

import argparse
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.survival.runs import Outcome, Place, timed

GROUPS = 1200


@dataclass(frozen=True)
class Kill:
    """When a run was killed, what it had left by then, and how the run after it differs from the undisturbed one."""

    moment: float
    found: str
    differences: tuple[str, ...]

    def __str__(self) -> str:
        return f"killed at {self.moment:6.2f} s, {self.found}: {'equal' if not self.differences else 'DIFFERS: ' + ', '.join(self.differences)}"


def kills(folder: Path, times: int, seed: int, groups: int = GROUPS) -> Iterator[Kill]:
    """Kill so many runs of a project made in `folder`, and run each again."""
    project = folder / "project"
    Place.make(project, groups)
    expected, seconds = timed(Place.fresh(project, folder / "undisturbed"))
    draw = random.Random(seed)
    number = 0
    while number < times:
        place = Place.fresh(project, folder / "killed")
        moment = draw.uniform(0, seconds)
        if place.kill_after(moment):
            number += 1
            yield again(place, moment, expected)
        shutil.rmtree(folder / "killed")


def again(place: Place, moment: float, expected: Outcome) -> Kill:
    """Run the killed command to its end and compare."""
    cached = sum(1 for path in place.cache.rglob("*") if path.is_file())
    evidence = "evidence whole" if place.bundle.exists() else "evidence unfinished" if place.left else "no evidence yet"
    outcome = place.finish()
    return Kill(moment, f"{evidence}, {cached} files in the cache", (*expected.differences(outcome), *(f"{name} was left behind" for name in place.left)))


def main(arguments: Sequence[str] | None = None) -> int:
    """Kill, compare, summarise; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=50, help="default 50")
    parser.add_argument("--seed", type=int, default=0, help="of the moments; default 0")
    parser.add_argument("--groups", type=int, default=GROUPS, help=f"four prompts each; default {GROUPS}")
    given = parser.parse_args(arguments)
    done: list[Kill] = []
    with tempfile.TemporaryDirectory() as folder:
        for kill in kills(Path(folder), given.times, given.seed, given.groups):
            done.append(kill)
            print(f"{len(done)}/{given.times} {kill}", flush=True)
    differing = sum(bool(kill.differences) for kill in done)
    print(f"{len(done)} kills, seed {given.seed}: {len(done) - differing} ended as the undisturbed run, {differing} did not")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
