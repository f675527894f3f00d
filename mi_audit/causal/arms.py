"""Rows of variants through the model: the effect of each on every prompt."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from torch import Tensor

from mi_audit.causal.effect import Effect, OfDetector, OfLogits, OfText
from mi_audit.causal.rows import Rows
from mi_audit.causal.tasks import Asked, tokenizer_of
from mi_audit.detectors.learned import Fitted
from mi_audit.engine.batches import Ids
from mi_audit.engine.cache import ActivationCache
from mi_audit.engine.encoding import encode_all
from mi_audit.engine.every_token import every_token
from mi_audit.engine.generating import generate
from mi_audit.engine.progress import Hearer, reporting
from mi_audit.engine.rows import Treatment
from mi_audit.engine.sampling import Sampling
from mi_audit.engine.selection import select
from mi_audit.engine.variants import Read, holding, read_variants
from mi_audit.errors import DetectorError, NotFiniteError
from mi_audit.plan.digest import Json, digest_of, digest_of_code
from mi_audit.stats.checks import Floats

if TYPE_CHECKING:
    from mi_audit.model.loaded import LoadedModel

_CODE: Final = digest_of_code(Path(__file__).parent)


@dataclass(frozen=True, eq=False)
class Measured:
    """The effect on n prompts: `unsteered` [n] of the model as it is, and `values` [B, S, n]."""

    unsteered: Floats
    values: Floats


Broken = Callable[[Measured, BaseException], None]
"""Hears of what was measured before the passes were broken off, and by what."""


@dataclass(frozen=True, eq=False)
class Instrument:
    """An effect on one model. `key` is everything on which its numbers depend besides prompts and rows; None where nothing of it is kept. `fitted` is the
    detector of an effect that is its score. `beside` are instruments that will be asked for the same rows: what comes first is measured for them in the same
    passes, and `kept` until they ask, by what it depends on."""

    model: "LoadedModel"
    effect: Effect
    key: Mapping[str, Json] | None
    fitted: Fitted | None = None
    cache: ActivationCache | None = None
    beside: tuple["Instrument", ...] = ()
    kept: dict[str, Measured] = field(default_factory=dict)

    def measure(self, prompts: Sequence[Asked], rows: Rows, progress: Hearer | None = None, broken: Broken | None = None) -> Measured:
        """The effect on every prompt of every variant; where the passes are broken off, `broken` hears of the prompts that were done, if any.

        Raises:
            NotFiniteError: of the first variant whose logits, or what is made of them, are not finite.
            HookPointError, PromptError, DetectorError: as the passes and the effect.
        """
        key = self._key(prompts, rows)
        shape = (rows.number, len(rows.strengths), len(prompts))
        if key is not None and self.cache is not None:
            known = self.cache.tensors(key)
            if known.keys() == {"unsteered", "values"} and known["values"].shape == shape and known["unsteered"].shape == shape[2:]:
                return Measured(known["unsteered"], known["values"])
        if key is not None and key in self.kept:
            found = self.kept.pop(key)
        elif isinstance(self.effect, OfText):
            found = self._of_texts(prompts, rows, progress)
        else:
            found = self._shared(prompts, rows, progress, broken)
        if key is not None and self.cache is not None:
            self.cache.put(key, {"unsteered": found.unsteered, "values": found.values})
        return found

    def _shared(self, prompts: Sequence[Asked], rows: Rows, progress: Hearer | None, broken: Broken | None) -> Measured:
        beside = [each for each in self.beside if each.says_first(prompts)] if self.says_first(prompts) else []
        try:
            found, *others = self._of_passes(prompts, rows, progress, broken, [self, *beside])
        except NotFiniteError:
            if not beside:
                raise
            return replace(self, beside=())._shared(prompts, rows, progress, broken)  # it may be of one of them
        for each, measured in zip(beside, others, strict=True):
            key = each._key(prompts, rows)
            assert key is not None
            self.kept[key] = measured
        return found

    def says_first(self, prompts: Sequence[Asked]) -> bool:
        """Whether the effect is made of the logits of the first token after each prompt, by code of our own."""
        effect = self.effect
        return self.key is not None and isinstance(effect, OfLogits) and all(effect.continuations(each.prompt) == ("",) for each in prompts)

    def _key(self, prompts: Sequence[Asked], rows: Rows) -> str | None:
        if self.key is None:
            return None
        asked: list[Json] = [[each.prompt.digest, list(each.ids), list(each.touched), each.answers, *map(str, each.prompt.fields)] for each in prompts]
        return digest_of({"experiment": dict(self.key), "rows": dict(rows.describe()), "prompts": asked, "code": _CODE})[:40]

    def _of_passes(
        self, prompts: Sequence[Asked], rows: Rows, progress: Hearer | None, broken: Broken | None, together: Sequence["Instrument"]
    ) -> list[Measured]:
        done, shape = 0, (rows.number, len(rows.strengths))
        unsteered, values = np.empty((len(together), len(prompts))), np.empty((rows.number * len(rows.strengths), len(together), len(prompts)))
        read_at = self.fitted.at if isinstance(self.effect, OfDetector) and self.fitted is not None else None
        with reporting(progress, len(prompts), sum(len(each.ids) for each in prompts)), holding(self.model, rows.places, read_at):
            try:
                for number, each in enumerate(prompts):
                    unsteered[:, number], values[:, :, number] = self._of_prompt(each, rows, together)
                    done = number + 1
                    if progress is not None:
                        progress.advance(1, len(each.ids))
            except NotFiniteError:
                raise  # the same rows without that variant will be measured
            except BaseException as error:
                if broken is not None and done:
                    broken(Measured(unsteered[0, :done], values[:, 0, :done].reshape(*shape, done)), error)
                raise
        return [Measured(unsteered[one], values[:, one].reshape(*shape, len(prompts))) for one in range(len(together))]

    def _of_prompt(self, each: Asked, rows: Rows, together: Sequence["Instrument"]) -> tuple[Floats, Floats]:
        """Of each instrument: of the model as it is [m], and of the variants [V, m]."""
        if isinstance(self.effect, OfDetector):
            return self._read(each.ids, each.touched, rows, self._scores(each))
        effects = [one.effect for one in together if isinstance(one.effect, OfLogits)]
        effect = effects[0]
        tokenize, continuations = tokenizer_of(self.model), effect.continuations(each.prompt)
        parts = []
        for text in continuations:
            answer = tokenize(text)
            if text and not answer:
                raise DetectorError(f"prompt {each.prompt.id!r}: the answer {text!r} has no tokens for this model's tokenizer")
            ids, touched, positions = each.followed_by(answer)

            def values(logits_RKV: Tensor, base_KV: Tensor, answer: tuple[int, ...] = answer) -> Tensor:
                if len(continuations) > 1:
                    return effect.part(logits_RKV, answer)[:, None]
                return torch.stack([one.value(one.part(logits_RKV, answer)[None], each.prompt).double() for one in effects], dim=1)

            parts.append(self._read(ids, touched, rows, Read(positions, values)))
        if len(parts) == 1:
            return parts[0]
        unsteered, found = (effect.value(torch.from_numpy(np.stack(each_part)[..., 0]), each.prompt).numpy() for each_part in zip(*parts, strict=True))
        return unsteered, found[:, None]

    def _read(self, ids: tuple[int, ...], touched: tuple[int, ...], rows: Rows, read: Read) -> tuple[Floats, Floats]:
        base, found = read_variants(self.model, ids, touched, rows.places, rows.number * len(rows.strengths), rows.interventions, read)
        return base.numpy(), found.numpy()

    def _scores(self, each: Asked) -> Read:
        """The detector's own score, at the tokens that it names."""
        fitted = self.fitted
        assert fitted is not None
        (encoded,) = encode_all(self.model, [each.prompt], self.cache)
        positions = list(select(encoded, fitted.spec.tokens, each.prompt))
        if len(positions) > 1:
            (tokens,) = every_token(self.model, [encoded], fitted.at, cache=self.cache)
            positions = [position for position in positions if not tokens.sinks[position]]

        def values(acts_RKD: Tensor, base_KD: Tensor) -> Tensor:
            flat = acts_RKD.flatten(end_dim=1).double().cpu().numpy()
            scores = torch.from_numpy(fitted.score_tokens(flat)).reshape(acts_RKD.shape[:2])
            return (scores.amax(dim=1) if fitted.pooling == "max" else scores.mean(dim=1))[:, None]

        return Read(tuple(positions), values, fitted.at)

    def _of_texts(self, prompts: Sequence[Asked], rows: Rows, progress: Hearer | None) -> Measured:
        assert isinstance(self.effect, OfText)
        every = rows.number * len(rows.strengths)
        texts = written(self.model, prompts, rows, self.effect.max_new_tokens, progress)
        numbers = np.array([[self.effect.value(text, each.prompt) for text, each in zip(row, prompts, strict=True)] for row in texts])
        if not np.isfinite(numbers).all():
            raise DetectorError(f"the effect of a text after prompt {prompts[int(np.argmin(np.isfinite(numbers).all(axis=0)))].prompt.id!r} is not finite")
        return Measured(numbers[every], numbers[:every].reshape(rows.number, len(rows.strengths), len(prompts)))


def written(model: "LoadedModel", prompts: Sequence[Asked], rows: Rows, max_new_tokens: int, progress: Hearer | None = None) -> list[list[str]]:
    """What the model writes after every prompt, greedily, in every variant and, last, as it is: [variants + 1][n]."""
    found = generated(model, prompts, rows, max_new_tokens, progress)
    return [[str(model.tokenizer.decode(list(ids), skip_special_tokens=True)) for ids in row] for row in found]


def generated(model: "LoadedModel", prompts: Sequence[Asked], rows: Rows, max_new_tokens: int, progress: Hearer | None = None) -> list[list[Ids]]:
    """The tokens of `written`.

    Raises:
        NotFiniteError: as `Instrument.measure`.
        HookPointError, PromptError: as the passes.
    """

    def treatments(of_rows: Tensor) -> list[Treatment]:
        steered = of_rows > 0  # the first is the model as it is: where that is broken, no variant is to blame
        return [Treatment(at, each, steered) for at, each in rows.interventions((of_rows - 1).clamp(min=0))]

    try:
        base, *variants = generate(
            model,
            [each.ids for each in prompts],
            [each.touched for each in prompts],
            1 + rows.number * len(rows.strengths),
            treatments,
            rows.places,
            Sampling(max_new_tokens),
            on_generated=any(each.answers for each in prompts),
            progress=progress,
        )
    except NotFiniteError as error:
        raise NotFiniteError("the logits after a text are not finite", error.variant - 1 if error.variant else None) from error
    return [*variants, base]
