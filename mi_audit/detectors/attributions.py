"""Which tokens drive a detector: its score on the prompts that score highest, attributed to their tokens by integrated gradients."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mi_audit.detectors.learned import Fitted
from mi_audit.detectors.readings import ReadingData
from mi_audit.detectors.token_scores import highest
from mi_audit.engine.cache import ActivationCache
from mi_audit.engine.encoding import encode_all
from mi_audit.engine.every_token import EveryToken, every_token
from mi_audit.engine.progress import Progress, reporting
from mi_audit.engine.selection import select
from mi_audit.engine.tokens import Encoded
from mi_audit.errors import DetectorError
from mi_audit.model.audited import AuditedModel
from mi_audit.plan.digest import digest_of
from mi_audit.plan.measurements import AttributionSpec
from mi_audit.stats.checks import Floats
from mi_audit.suites.prompt import Prompt

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from mi_audit.engine.attribution import Attribution


@dataclass(frozen=True, eq=False)
class TokenAttributions:
    """A prompt of L tokens, by its id.

    `texts` [L] as in `TokenScores`; `attributions` [L] in units of the number that is attributed, which is `value` for the prompt and `baseline` where the path
    of `steps` steps starts.
    """

    prompt: str
    texts: tuple[str, ...]
    attributions: Floats
    value: float
    baseline: float
    steps: int

    @property
    def residual(self) -> float:
        """What the attributions leave over: their sum less the difference of value and baseline."""
        return float(self.attributions.sum()) - (self.value - self.baseline)


def attributed(
    model: AuditedModel,
    detector: Fitted,
    reading: ReadingData,
    spec: AttributionSpec,
    top: int,
    cache: ActivationCache | None,
    progress: Progress | None = None,
) -> tuple[TokenAttributions, ...]:
    """Attribute the score of the `top` prompts that score highest, highest first; ties go by id.

    The read tokens are those of the reading, its attention sinks left out; over several the mean is attributed, or where the detector takes the highest, the
    number of the token that is highest in the prompt: along the path another may be, and a sum over a jump from one to the other takes very many steps.

    Raises:
        DetectorError: the tokenizer has no token for the baseline.
        HookPointError, PromptError: as `engine.attribution.integrated_gradients`.
    """
    prompts = [reading.suite.prompts[row] for row in highest(reading, top)]
    encoded = list(encode_all(model, prompts, cache))
    every = every_token(model, encoded, detector.at, cache=cache)
    prepared = [_Prepared.of(detector, spec, *each) for each in zip(prompts, encoded, every, strict=True)]
    known = {} if cache is None else {each.prompt: found for each in prepared if (found := each.recalled(cache)) is not None}
    lacking = [each for each in prepared if each.prompt not in known]
    titled = None if progress is None or not lacking else progress.titled(f"attributing {detector.spec.name} to tokens")
    with reporting(titled, len(lacking), sum(len(each.encoded.ids) for each in lacking)):
        for each in lacking:
            made = _computed(model, detector, spec, each)
            if cache is not None:
                cache.put(each.key, {"tokens": made.tokens, "ends": np.array([made.value, made.baseline, made.steps], dtype=np.float64)})
            known[each.prompt] = each.named(made.tokens, made.value, made.baseline, made.steps)
            if titled is not None:
                titled.advance(1, len(each.encoded.ids))
    return tuple(known[each.prompt] for each in prepared)


@dataclass(frozen=True, eq=False)
class _Prepared:
    """A prompt by its id, as tokens; the positions that are read of it; and the key under which its attribution is kept."""

    prompt: str
    encoded: Encoded
    positions: tuple[int, ...]
    key: str

    @classmethod
    def of(cls, detector: Fitted, spec: AttributionSpec, prompt: Prompt, encoded: Encoded, tokens: EveryToken) -> "_Prepared":
        positions = np.asarray(select(encoded, detector.spec.tokens, prompt))
        if len(positions) > 1:
            positions = positions[~tokens.sinks[positions]]
        if len(positions) > 1 and detector.pooling == "max":
            positions = positions[[_highest(detector, tokens.activations[positions])]]
        key = digest_of(
            {
                "attribution": spec.method,
                "baseline": spec.baseline,
                "detector": detector.spec.digest,
                "fitted": digest_of({"bytes": detector.to_bytes().hex()}),
                "ids": list(encoded.ids),
                "positions": positions.tolist(),
                "form": [*form(encoded)],
            }
        )[:40]
        return cls(prompt.id, encoded, tuple(positions.tolist()), key)

    def recalled(self, cache: ActivationCache) -> TokenAttributions | None:
        """What the cache has of it."""
        known = cache.tensors(self.key)
        if known.keys() != {"tokens", "ends"} or known["tokens"].shape != (len(self.encoded.ids),) or known["ends"].shape != (3,):
            return None
        value, baseline, steps = known["ends"].tolist()
        return self.named(known["tokens"], value, baseline, int(steps))

    def named(self, tokens: Floats, value: float, baseline: float, steps: int) -> TokenAttributions:
        """Attributions [L] with what they are of."""
        return TokenAttributions(self.prompt, self.encoded.texts(), tokens, value, baseline, steps)


def _computed(model: AuditedModel, detector: Fitted, spec: AttributionSpec, prepared: _Prepared) -> "Attribution":
    from mi_audit.engine.attribution import integrated_gradients

    loaded, encoded = model.loaded(), prepared.encoded
    read, kept = reader(detector, loaded.device, prepared.positions), form(encoded)
    if spec.baseline != "space":
        return integrated_gradients(loaded, encoded.ids, detector.at, read, baseline=spec.baseline, kept=kept)
    space = loaded.tokenizer(" ", add_special_tokens=False)["input_ids"]
    if not space:
        raise DetectorError(f"{spec}: this model's tokenizer has no token for a space; give baseline='mean'")
    return integrated_gradients(loaded, encoded.ids, detector.at, read, baseline="token", token=space[0], kept=kept)


def form(encoded: Encoded) -> list[int]:
    """The positions that are no content: outside of the text, or of a chat's last message and its response, and what the tokenizer added by itself."""
    pieces = [piece for piece in (encoded.body, encoded.response) if piece is not None]
    if encoded.offsets is None or not pieces:
        return [position for position, added in enumerate(encoded.added) if added]
    return [
        position
        for position, (added, (start, end)) in enumerate(zip(encoded.added, encoded.offsets, strict=True))
        if added or not any(start < piece.end and end > piece.start for piece in pieces)
    ]


def reader(detector: Fitted, device: "torch.device", positions: Sequence[int]) -> "Callable[[Tensor], Tensor]":
    """From activations [R, L, width] to the number of each of R copies of a prompt [R]: the mean over the read positions."""
    number = detector.differentiable(device)
    return lambda acts_RLD: number(acts_RLD[:, list(positions)]).mean(dim=1)


def _highest(detector: Fitted, acts: NDArray[np.float32]) -> int:
    """Which of the activations [P, width] has the highest number."""
    import torch

    with torch.no_grad():
        return int(detector.differentiable(torch.device("cpu"))(torch.from_numpy(acts)).argmax())
