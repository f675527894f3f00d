"""A detector's score at every token of the prompts that score highest: what the number of a reading is made of, to look at. No claim rests on it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mi_audit.detectors.learned import Fitted
from mi_audit.detectors.readings import ReadingData
from mi_audit.engine.cache import ActivationCache
from mi_audit.engine.encoding import encode_all
from mi_audit.engine.every_token import EveryToken, every_token
from mi_audit.engine.selection import select
from mi_audit.engine.tokens import Encoded
from mi_audit.errors import DetectorError
from mi_audit.model.audited import AuditedModel
from mi_audit.stats.checks import Bools, Floats
from mi_audit.suites.prompt import Prompt


@dataclass(frozen=True, eq=False)
class TokenScores:
    """A prompt of L tokens, by its id.

    `texts` are the pieces of the rendered prompt that the tokens cover: joined they give it again, but for tokens that the tokenizer added by itself, which
    show their name. `scores` [L] are on the detector's own scale. `read` [L] marks what entered the reading, `sinks` [L] the attention sinks. The score is
    affine in the activation: the mean over the read tokens is the reading's own score of the prompt.
    """

    prompt: str
    texts: tuple[str, ...]
    scores: Floats
    read: Bools
    sinks: Bools


def token_scores(model: AuditedModel, detector: Fitted, reading: ReadingData, top: int, cache: ActivationCache | None = None) -> tuple[TokenScores, ...]:
    """Score every token of the `top` prompts that score highest, highest first; ties go by id. A forward pass a prompt.

    Raises:
        HookPointError, PromptError: as `engine.every_token`.
        DetectorError: a score is not finite.
    """
    prompts = [reading.suite.prompts[row] for row in highest(reading, top)]
    encoded = list(encode_all(model, prompts, cache))
    tokens = every_token(model, encoded, detector.at, cache=cache)
    return tuple(_scored(detector, prompt, each, acts) for prompt, each, acts in zip(prompts, encoded, tokens, strict=True))


def highest(reading: ReadingData, top: int, cache: ActivationCache | None = None) -> Sequence[int]:
    """Rows of the `top` prompts with the highest scores, highest first; ties go by id."""
    return sorted(range(len(reading.values)), key=lambda row: (-reading.values[row], reading.ids[row]))[:top]


def _scored(detector: Fitted, prompt: Prompt, encoded: Encoded, tokens: EveryToken) -> TokenScores:
    scores = detector.score_tokens(tokens.activations.astype(np.float64))
    if not np.isfinite(scores).all():
        position = int(np.argmin(np.isfinite(scores)))
        raise DetectorError(f"{detector.spec.name}: its score of token {position} of prompt {prompt.id!r} is not finite; load the model with dtype='float32'")
    read = np.zeros(len(scores), dtype=np.bool_)
    read[select(encoded, detector.spec.tokens, prompt)] = True
    if read.sum() > 1:
        read &= ~tokens.sinks
    return TokenScores(prompt.id, encoded.texts(), scores, read, tokens.sinks)
