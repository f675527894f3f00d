"""Which sparse autoencoder: a folder in sae-lens's format, known by the digest of what it holds. Free of torch and of sae-lens."""

import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final

from mi_audit.errors import DetectorError, PlanError
from mi_audit.plan.digest import Json, digest_of, sha256_of_file
from mi_audit.plan.hook_names import places_of
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
    """An SAE and where it is to be read; `digest` is of its two files, whatever its folder is called. `out` is where a transcoder's reconstruction belongs, if
    anything says so."""

    name: str
    folder: Path
    digest: str
    config: SaeConfig
    at: At
    floors: SaeFloors
    model: str | None = None
    out: At | None = None

    @property
    def reconstructs(self) -> At:
        """The hook point whose activations it reconstructs: the one that it encodes, or of a transcoder the other.

        Raises:
            DetectorError: nothing says which that is.
        """
        if not self.config.is_transcoder:
            return self.at
        if self.out is None:
            raise DetectorError(f"{self.name}: its metadata do not say which hook point it reconstructs (hook_name_out); say it with mi.sae(…, out=mi.at(…))")
        return self.out

    def describe(self) -> dict[str, Json]:
        """JSON-ready description, part of the plan's digest."""
        described: dict[str, Json] = {"sae": self.digest, "at": self.at.describe(), "floors": self.floors.describe(), "model": self.model}
        return described if self.out is None else described | {"out": self.out.describe()}

    def __str__(self) -> str:
        return f"{self.name}: {self.config.architecture} SAE of {self.config.d_sae} latents, {self.at}"


def spec_of(folder: Path, where: str, *, at: At | None = None, out: At | None = None, floors: SaeFloors | None = None, model: str | None = None) -> SaeSpec:
    """The SAE in a folder as sae-lens's `save_model` writes it; `where` begins messages.

    Raises:
        PlanError: a file is missing, a link, or not what sae-lens writes; its architecture or normalisation can't be read; `at` or `out` differs from its
            metadata, neither names the hook point that it encodes, or `out` is given for what is no transcoder.
    """
    for name in (CONFIG, WEIGHTS):
        path = folder / name
        if path.is_symlink() or not path.is_file():
            raise PlanError(f"{where}: no file {name} there; give the folder that sae-lens's save_model wrote")
    if (folder / CONFIG).stat().st_size > _LARGEST_CONFIG:
        raise PlanError(f"{where}: {CONFIG} is larger than 1 MiB, which none is")
    config = parse((folder / CONFIG).read_bytes(), f"{where}: {CONFIG}")
    digest = digest_of({name: sha256_of_file(folder / name) for name in (CONFIG, WEIGHTS)})
    shown = config.metadata
    read = _place((shown.hook_name, shown.hf_hook_name), at, where, "at", "hook_name")
    if read is None:
        raise PlanError(f"{where}: its metadata do not say which hook point it encodes; say it with at=mi.at(point, layer=…)")
    if config.is_transcoder:
        out = _place((shown.hook_name_out, shown.hf_hook_name_out), out, where, "out", "hook_name_out")
    elif out is not None:
        raise PlanError(f"{where}: out={out}: it is no transcoder and reconstructs what it encodes; leave out= out")
    return SaeSpec(folder.resolve().name, folder, digest, config, read, floors or SaeFloors(), model, out)


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


def _place(named: tuple[str | None, str | None], declared: At | None, where: str, argument: str, field: str) -> At | None:
    """The place that the metadata name, by TransformerLens's name and transformers', or else the one that is declared; both have to agree."""
    if declared is not None and not isinstance(declared, At):
        raise PlanError(f"{where}: {argument}={declared!r}; give mi.at(point, layer=…)")
    try:
        meant = places_of(*named)
    except PlanError as error:
        raise PlanError(f"{where}: {field}: {error}") from error
    if not meant:
        return declared
    if declared is None and len(meant) > 1:
        raise PlanError(f"{where}: {field}: {named[0]!r} may mean {' or '.join(map(str, meant))}; say which with {argument}=mi.at(point, layer=…)")
    fitting = [each for each in meant if declared is None or (each.point == declared.point and (declared.depth is not None or each.layer == declared.layer))]
    if not fitting:
        remedy = f"leave {argument}= out" if len(meant) == 1 else f"give one of them as {argument}="
        raise PlanError(f"{where}: it is declared at {declared}, but its metadata ({field}) say {' or '.join(map(str, meant))}; {remedy}")
    return fitting[0]
