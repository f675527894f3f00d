"""How often a causal claim passes of a direction that means nothing: `python -m tests.coverage.steering`.

The direction is fitted to labels that were drawn at random, or is random itself. It is added to the residual stream of the middle layer before the first
generated token, and `slope() > null.slope()` is claimed of the logit difference of two answers, with the nulls that an audit would have. Each seed draws its
prompts, labels and direction: on a tiny model with random weights from letters, on the default model from the shipped benign chats.
"""

import argparse
import csv
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
from safetensors.numpy import save_file

import mi_audit as mi
from mi_audit.causal.laboratory import Laboratory
from mi_audit.config import DEFAULT_MODEL
from mi_audit.detectors.bench import Bench
from mi_audit.model.load import load
from mi_audit.plan.detectors import DetectorSpec
from mi_audit.plan.steering import DoseSpec, steer_spec
from mi_audit.stats.claim import decide
from mi_audit.stats.verdict import Verdict
from mi_audit.suites.suite import Suite
from tests.agreement.tiny_models import save_tiny
from tests.coverage.grid import bound

if TYPE_CHECKING:
    from mi_audit.model.loaded import LoadedModel

Kind = Literal["labels drawn at random", "random direction"]
Row = dict[str, object]

TABLE: Final = Path(__file__).with_name("steering.csv")
COLUMNS: Final = ("model", "direction", "seeds", "passes", "bound", "undecided", "result")
KINDS: Final[tuple[Kind, Kind]] = ("labels drawn at random", "random direction")
ALPHA: Final = 0.025
FITTED, STEERED = 32, 24


@dataclass(frozen=True, eq=False)
class Subject:
    """A model, and the prompts to draw from: none where they are made up of letters."""

    name: str
    model: "LoadedModel"
    prompts: tuple[Row, ...] = ()

    def outcomes(self, kind: Kind, seeds: range) -> Iterator[tuple[Verdict, bool]]:
        """Of each seed the claim's verdict, and whether its interval was one to decide on."""
        at = mi.at("resid_post", layer=self.model.n_layers // 2)
        for seed in seeds:
            draw = random.Random(f"{kind}, seed {seed}")
            rows = self._rows(draw)
            labels = draw.sample([True, False] * (FITTED // 2), FITTED)
            fit = mi.suite([row | {"label": label} for row, label in zip(rows[:FITTED], labels, strict=True)], name=f"fit_{seed}")
            steered = mi.suite(rows[FITTED:], name=f"steered_{seed}")
            with TemporaryDirectory() as folder:
                if kind == "random direction":
                    file = Path(folder) / "direction.safetensors"
                    vector = np.random.default_rng(seed).standard_normal(self.model.d_model)
                    save_file({"direction": vector}, file)
                    estimate = self._slope(mi.direction(f"random_{seed}", file, at=at), steered, "norm", (-0.5, 0.5), seed)
                else:
                    estimate = self._slope(mi.probe(f"fitted_{seed}", method="difference_of_means", at=at, fit=fit), steered, "vector", (-1.0, 1.0), seed)
            yield decide(estimate, ">", 0.0).verdict, not estimate.undecided

    def row(self, kind: Kind, seeds: int) -> dict[str, str]:
        """Of the table."""
        found = list(self.outcomes(kind, range(seeds)))
        passes, allowed = sum(verdict is Verdict.PASS for verdict, _ in found), bound(ALPHA, seeds)
        undecided = sum(not decidable for _, decidable in found)
        result = "within" if passes / seeds <= allowed else "EXCEEDS"
        return dict(zip(COLUMNS, (self.name, kind, str(seeds), str(passes), f"{allowed:.4f}", str(undecided), result), strict=True))

    def _rows(self, draw: random.Random) -> list[Row]:
        if self.prompts:
            return draw.sample(self.prompts, FITTED + STEERED)
        return [{"id": f"{row}", "text": "".join(draw.choices("abcdefgh ", k=draw.randint(9, 20)))} for row in range(FITTED + STEERED)]

    def _slope(self, detector: DetectorSpec, suite: Suite, unit: str, strengths: tuple[float, ...], seed: int):
        effect = mi.effects.logit_difference("a", "b")
        spec = steer_spec(detector, suite, effect, strengths, unit=unit, tokens="generated", profile=(), controls=True)
        bench = Bench(self.model, alpha=ALPHA, seed=seed)
        return Laboratory(bench, self.model, alpha=ALPHA, seed=seed).estimate(DoseSpec(spec, "slope", over_null=True))


def tiny(folder: Path) -> Subject:
    """A model of four layers with random weights, saved to a folder."""
    return Subject("tiny", load(str(save_tiny(folder / "tiny")), device="cpu", progress=False))


def default() -> Subject:
    """The default model, asked everyday questions."""
    chats = mi.suite("benign_chat").one_per_group()
    rows: list[Row] = []
    for prompt in chats:
        assert prompt.messages is not None
        rows.append({"id": prompt.id, "messages": [{"role": turn.role, "content": turn.content} for turn in prompt.messages]})
    return Subject("default", load(DEFAULT_MODEL, dtype="float32", progress=False), tuple(rows))


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", metavar="SEEDS", type=int, default=500)
    parser.add_argument("--default", metavar="SEEDS", type=int, default=40)
    parser.add_argument("--table", type=Path, default=TABLE, help="where to write, if not the committed table")
    given = parser.parse_args()
    with TemporaryDirectory() as folder, given.table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for subject, seeds in ((tiny(Path(folder)), given.tiny), (default(), given.default)):
            for kind in KINDS:
                row = subject.row(kind, seeds)
                print(", ".join(row.values()), flush=True)
                writer.writerow(row)


if __name__ == "__main__":
    main()
