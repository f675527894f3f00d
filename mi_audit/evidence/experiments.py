"""Records of experiments: what was steered, clamped or ablated, and what came of it."""

from typing import Final, Literal

from mi_audit.evidence.fields import Count, Digest, Flag, Name, Number, Record, Text
from mi_audit.evidence.saes import SaeRecord

AS_IT_IS: Final = "as it is"
"""The condition in `samples.parquet` of the model without a change."""
DIRECT: Final = "direct"
"""The arm in `samples.parquet` of the vector that is added behind the last block."""


def condition(strength: float) -> str:
    """How `samples.parquet` names a strength."""
    return f"strength={strength:.12g}"


class NullBand(Record):
    """What the draws of a null give at a strength: the mean change of the effect along directions with nothing to find."""

    name: Name
    """What was destroyed, e.g. `shuffled labels`."""
    draws: Count
    """B."""
    low: Number
    """Quantile alpha of the draws."""
    median: Number
    """Their median."""
    high: Number
    """Quantile 1 − alpha."""


class DosePoint(Record):
    """An experiment at one strength. Changes are means over prompts of the effect less that of the model as it is, paired; intervals one-sided at alpha."""

    strength: Number
    """In units of the experiment."""
    change: Number | None
    """Mean change; absent where the strength failed."""
    low: Number | None
    """Lower bound."""
    high: Number | None
    """Upper bound."""
    nulls: tuple[NullBand, ...]
    """The nulls at this strength."""
    direct: Number | None
    """The change where the vector is added behind the last block: what goes straight to the unembedding. Absent where that is not defined."""
    failed: Text | None
    """Why nothing was measured at this strength."""


class SideEffectPoint(Record):
    """A side effect at one strength."""

    strength: Number
    """In units of the experiment."""
    value: Number
    """Its mean over prompts."""
    low: Number
    """Lower bound, one-sided at alpha."""
    high: Number
    """Upper bound."""


class SideEffectCurve(Record):
    """A side effect at each strength: a measurement in `samples.parquet`. Of the suite one prompt of each group is taken."""

    id: Digest
    """SHA-256 of the experiment's spec, the quantity and the suite."""
    quantity: Name
    """`kl` and `loss_change` in nats per token, `repetition_change` and `capability_change` in shares."""
    suite: Name
    """On what it was measured."""
    suite_digest: Digest
    """Digest of that suite."""
    n: Count
    """Prompts."""
    groups: Count
    """Groups that they come in."""
    points: tuple[SideEffectPoint, ...]
    """Strengths, ascending."""


class GenerationRecord(Record):
    """What the model writes after a prompt."""

    prompt: Name
    """Id of the prompt."""
    strength: Number | None
    """Absent for the model as it is."""
    text: Text | None
    """Absent where texts are redacted."""
    digest: Digest
    """SHA-256 of the text."""


class LayerPoint(Record):
    """The same experiment at another layer; it illustrates, and no claim rests on it."""

    layer: Count
    """Block, counted from 0."""
    slope: Number
    """Mean slope of the effect on the strength there."""
    low: Number
    """Lower bound, one-sided at alpha."""
    high: Number
    """Upper bound."""


class ExperimentRecord(Record):
    """A detector's direction or latents changed in the model at each of several strengths, and the effect of it: a measurement in `samples.parquet`."""

    id: Digest
    """SHA-256 of its spec."""
    detector: Name
    """Name of the detector."""
    detector_digest: Digest
    """Digest of the detector's spec."""
    suite: Name
    """Name of the suite."""
    suite_digest: Digest
    """Digest of the suite."""
    effect: Text
    """What was measured, in words."""
    effect_digest: Digest
    """SHA-256 of its spec."""
    scored: Name | None
    """The detector whose score the effect is; absent where it is made of what the model says."""
    recomputable: Flag
    """Whether it can be recomputed without code of the audit's author."""
    action: Literal["add", "clamp", "project_out"]
    """What was done."""
    unit: Name
    """What a strength of 1 is."""
    length: Number | None
    """Length of the vector that a strength of 1 adds, where it is one vector; of clamped latents their highest value, added up."""
    corpus: Name | None
    """The suite on which the highest value of latents was found."""
    hook_point: Name
    """Where, by standard name; `everywhere` where the residual stream is written."""
    layer: Count | None
    """Block, counted from 0."""
    tokens: Name
    """Which tokens were touched."""
    n: Count
    """Prompts."""
    groups: Count
    """Groups that they come in."""
    origin: Flag
    """Whether the model as it is stands for the strength 0."""
    unsteered: Number | None
    """Mean effect of the model as it is."""
    points: tuple[DosePoint, ...]
    """Strengths, ascending."""
    saturation_up: Number | None
    """Slope over the outer half of the strengths above 0, over that of the inner half; 1 where the dose–response is straight."""
    saturation_down: Number | None
    """The same below 0."""
    passed: Text
    """How it was computed."""
    controls: Flag
    """Whether nulls were run beside it."""
    sae: SaeRecord | None
    """The sparse autoencoder whose latents were clamped; absent for a direction."""
    side_effects: tuple[SideEffectCurve, ...]
    """What else changed."""
    generations: tuple[GenerationRecord, ...]
    """What the model wrote after a few prompts, with and without the change."""
    profile: tuple[LayerPoint, ...]
    """The same at other layers."""
    error: Text | None
    """Why it was not finished; what is here was measured before that."""

    @property
    def measurements(self) -> tuple[str, ...]:
        """What `samples.parquet` calls it and its side effects."""
        return (self.id, *(curve.id for curve in self.side_effects))
