"""Which sparse autoencoder: a folder in sae-lens's format, known by the digest of what it holds. Free of torch and of sae-lens."""

import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final

from mi_audit.errors import PlanError
from mi_audit.plan.digest import Json, digest_of, sha256_of_file
from mi_audit.plan.places import At
from mi_audit.plan.sae_config import SaeConfig, parse

CONFIG: Final = "cfg.json"
WEIGHTS: Final = "sae_weights.safetensors"

_LARGEST_CONFIG: Final = 2**20


@dataclass(frozen=True)
class SaeFloors:
    """What an SAE must reach on the model under audit before its latents may decide anything; a claim that rests on one below is at best INCONCLUSIVE.

    Attributes:
        explained_variance: share of the variance of the activations that its reconstruction explains, on the prompts that are read.
        loss_recovered: of the loss that replacing the activations by their mean costs, the share that replacing them by the reconstruction does not, on neutral
            text.
    """

    explained_variance: float = 0.5
    loss_recovered: float = 0.8

    def describe(self) -> dict[str, Json]:
        """JSON-ready description, part of the plan's digest."""
        return {each.name: getattr(self, each.name) for each in fields(self)}


@dataclass(frozen=True)
class SaeSpec:
    """An SAE and where it is to be read; `digest` is of its two files, whatever its folder is called."""

    name: str
    folder: Path
    digest: str
    config: SaeConfig
    at: At
    floors: SaeFloors
    model: str | None = None

    def describe(self) -> dict[str, Json]:
        """JSON-ready description, part of the plan's digest."""
        return {"sae": self.digest, "at": self.at.describe(), "floors": self.floors.describe(), "model": self.model}

    def __str__(self) -> str:
        return f"{self.name}: {self.config.architecture} SAE of {self.config.d_sae} latents, {self.at}"


def spec_of(folder: Path, where: str, *, at: At | None = None, floors: SaeFloors | None = None, model: str | None = None) -> SaeSpec:
    """The SAE in a folder as sae-lens's `save_model` writes it; `where` begins messages.

    Raises:
        PlanError: a file is missing, a link, or not what sae-lens writes; its architecture or normalisation can't be read; `at` differs from its metadata, or
            neither names a hook point.
    """
    for name in (CONFIG, WEIGHTS):
        path = folder / name
        if path.is_symlink() or not path.is_file():
            raise PlanError(f"{where}: no file {name} there; give the folder that sae-lens's save_model wrote")
    if (folder / CONFIG).stat().st_size > _LARGEST_CONFIG:
        raise PlanError(f"{where}: {CONFIG} is larger than 1 MiB, which none is")
    config = parse((folder / CONFIG).read_bytes(), f"{where}: {CONFIG}")
    digest = digest_of({name: sha256_of_file(folder / name) for name in (CONFIG, WEIGHTS)})
    return SaeSpec(folder.resolve().name, folder, digest, config, _place(config, at, where), floors or SaeFloors(), model)


def sae_floors(*, explained_variance: float = 0.5, loss_recovered: float = 0.8) -> SaeFloors:
    """Set what an SAE must reach on the model under audit before its latents may decide anything.

    Args:
        explained_variance: 1 − Σ‖x − x̂‖² / Σ‖x − x̄‖², pooled over the tokens of the prompts that are read, attention sinks left out.
        loss_recovered: (L_mean − L_sae) / (L_mean − L), with next-token losses on neutral text: L of the model, L_sae with the SAE's reconstruction in the
            place of the activations, L_mean with their mean there.

    Raises:
        PlanError: a floor is not a number from 0 to 1.
    """
    for name, floor in (("explained_variance", explained_variance), ("loss_recovered", loss_recovered)):
        if isinstance(floor, bool) or not isinstance(floor, int | float) or not math.isfinite(floor) or not 0 <= floor <= 1:
            raise PlanError(f"mi.sae_floors({name}={floor!r}): a floor is a number from 0 to 1")
    return SaeFloors(float(explained_variance), float(loss_recovered))


def _place(config: SaeConfig, declared: At | None, where: str) -> At:
    if declared is not None and not isinstance(declared, At):
        raise PlanError(f"{where}: at={declared!r}; give mi.at(point, layer=…)")
    try:
        found = config.at
    except PlanError as error:
        raise PlanError(f"{where}: {error}") from error
    if found is None and declared is None:
        raise PlanError(f"{where}: its metadata do not say which hook point it encodes; say it with at=mi.at(point, layer=…)")
    if found is None or declared is None:
        return found or declared  # type: ignore[return-value]
    if found.point != declared.point or (declared.depth is None and found.layer != declared.layer):
        raise PlanError(f"{where}: it is declared at {declared}, but its metadata (hook_name) say {found}; leave at= out")
    return found
