"""From what was measured of a sparse autoencoder to its record."""

from typing import TYPE_CHECKING

from mi_audit.evidence.saes import SaeRecord
from mi_audit.plan.latents import LatentSpec
from mi_audit.plan.measurements import Measurement

if TYPE_CHECKING:
    from mi_audit.detectors.bench import Bench


def sae_record(spec: Measurement, bench: "Bench") -> SaeRecord | None:
    """Of the sparse autoencoder whose latents a reading or an experiment rests on; None where it rests on none."""
    detector, quality = spec.detector, bench.sae_quality(spec)
    if not isinstance(detector, LatentSpec) or quality is None:
        return None
    config, floors = detector.sae.config, detector.sae.floors
    return SaeRecord(
        name=detector.sae.name,
        digest=detector.sae.digest,
        architecture=config.architecture,
        width=config.d_sae,
        latents=detector.latents,
        combine=detector.combine,
        pooling=detector.pooling,
        trained_on=config.metadata.model_name,
        reconstructs=str(detector.sae.out) if detector.sae.out is not None else None,
        published=dict(config.metadata.quality),
        prompts=quality.prompts,
        tokens=quality.tokens,
        explained_variance=quality.explained_variance.value,
        explained_variance_low=quality.explained_variance.low,
        explained_variance_floor=floors.explained_variance,
        latents_explain=None if quality.explained_by_latents is None else quality.explained_by_latents.value,
        latents_explain_low=None if quality.explained_by_latents is None else quality.explained_by_latents.low,
        l0=quality.l0.value,
        norm_ratio=quality.norm_ratio.value,
        neutral_explained_variance=quality.neutral_explained_variance.value,
        neutral_tokens=quality.neutral_tokens,
        dead=quality.dead,
        dense=quality.dense,
        loss_recovered=quality.loss_recovered.value,
        loss_recovered_low=quality.loss_recovered.low,
        loss_recovered_floor=floors.loss_recovered,
        better_at=quality.better_at,
        loss_recovered_zero=quality.loss_recovered_zero.value,
        kl=quality.kl.value,
        below=quality.below,
    )
