"""How an SAE is to be trained. Free of torch and of sae-lens."""

from dataclasses import asdict, dataclass
from typing import Final, Literal, get_args

from mi_audit.errors import PlanError
from mi_audit.plan.digest import Json

Trained = Literal["topk", "batchtopk", "matryoshka_batchtopk", "standard", "gated", "jumprelu"]
"""sae-lens's names; `batchtopk` and `matryoshka_batchtopk` are saved as jumprelu."""

COUNTED: Final = ("topk", "batchtopk", "matryoshka_batchtopk")
"""Architectures that are told how many latents may fire; the others are told what firing costs."""


@dataclass(frozen=True)
class Recipe:
    """What sae-lens's trainer is told.

    Attributes:
        architecture: of the SAE.
        width: latents.
        k: how many of them fire at a token; of `batchtopk` kinds on average.
        sparsity: the coefficient of the term of the loss that keeps latents silent, where there is no k.
        samples: activations that the trainer sees in all; more than there are tokens shows each several times.
        batch: activations in a step.
        learning_rate: of Adam, after a warm-up over a twentieth of the steps; it falls to 0 over the last fifth.
        seed: decides the first weights and the order of the activations.
        dtype: of the weights that are saved; they are trained in float32.
    """

    architecture: Trained = "topk"
    width: int = 4608
    k: int = 32
    sparsity: float = 1.0
    samples: int = 1_500_000
    batch: int = 2048
    learning_rate: float = 1e-3
    seed: int = 0
    dtype: Literal["float32", "float16"] = "float32"

    def __post_init__(self) -> None:
        if self.architecture not in get_args(Trained):
            raise PlanError(f"--architecture {self.architecture}: known are {', '.join(get_args(Trained))}")
        for name in ("width", "k", "samples", "batch"):
            if getattr(self, name) < 1:
                raise PlanError(f"--{name} {getattr(self, name)}: give a whole number from 1")
        if self.architecture in COUNTED and self.k > self.width:
            raise PlanError(f"--k {self.k}: there are {self.width} latents")
        if self.seed < 0:
            raise PlanError(f"--seed {self.seed}: give a whole number from 0")
        if self.dtype not in ("float32", "float16"):
            raise PlanError(f"--dtype {self.dtype}: give float32 or float16")
        if not self.sparsity > 0 or not self.learning_rate > 0:
            raise PlanError("--sparsity and --learning-rate are numbers above 0")

    @property
    def steps(self) -> int:
        """Steps of the trainer."""
        return max(1, self.samples // self.batch)

    def describe(self) -> dict[str, Json]:
        """JSON-ready description."""
        given = asdict(self)
        del given["sparsity" if self.architecture in COUNTED else "k"]
        return given
