"""Texts that a model writes under interventions: every variant of every prompt is a row, and what is added, taken out or scaled differs by row."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import torch

from mi_audit.engine.batches import Ids
from mi_audit.engine.budget import bytes_per_token, fitting
from mi_audit.engine.intervening import Intervening
from mi_audit.engine.progress import Hearer, reporting
from mi_audit.engine.rows import Row, RowPasses, Treatments
from mi_audit.engine.sampling import Sampling
from mi_audit.engine.writing import write
from mi_audit.errors import PromptError
from mi_audit.model.full_precision import use_full_precision
from mi_audit.plan.places import At

if TYPE_CHECKING:
    from mi_audit.model.loaded import LoadedModel

TOKENS: Final = 8192
"""In a batch on a CPU, those yet to be generated among them: enough rows to be worth reading the weights for, few enough for their keys and values."""


def generate(
    model: "LoadedModel",
    prompts: Sequence[Ids],
    touched: Sequence[Sequence[int]],
    variants: int,
    interventions: Treatments,
    places: Sequence[At],
    sampling: Sampling,
    *,
    on_generated: bool,
    progress: Hearer | None = None,
    budget: int | None = None,
) -> list[list[Ids]]:
    """Have the model continue prompts under every variant of some interventions.

    What no variant touches, the tokens before the first touched one, passes once for each prompt, and its keys and values are copied for all of its variants.
    Rows that have ended leave the batch. What is drawn for a text depends on the sampling's seed, its
    prompt's tokens and its variant alone.

    Args:
        model: the model.
        prompts: token ids of each.
        touched: of each prompt the positions that are touched, maybe none. The first generated token is predicted at the last.
        variants: how many; they are numbered from 0.
        interventions: what is applied to rows, told the variant int64 [R] of each. It is asked again when rows leave the batch.
        places: all the places where `interventions` may intervene, their layers absolute.
        sampling: how tokens are chosen.
        on_generated: whether the generated tokens, as they are fed back in, are touched too.
        progress: hears of the texts, variants × prompts of them, once they are written; their tokens are the prompt's and those generated.
        budget: tokens of a batch, those yet to be generated and those that fill up rows among them; by default what suits the device.

    Returns:
        Of each variant, of each prompt: the generated tokens, without the end-of-sequence token.

    Raises:
        HookPointError: the model has no such hook point, or it can't be changed, or an intervention does not fit it.
        NotFiniteError: the logits of a variant are not finite.
        PromptError: a prompt leaves no room for new tokens in the model's context window, or does not fit into the device's memory.
        ValueError: a position beyond a prompt's end.
    """
    use_full_precision()
    _require_room(model, prompts, touched, sampling)
    ends = end_tokens(model)
    texts: list[list[Ids]] = [[() for _ in prompts] for _ in range(variants)]
    longest_first = sorted(range(len(prompts)), key=lambda index: (-len(prompts[index]), index))
    waiting = [(index, variant) for index in longest_first for variant in range(variants)]
    budget = _budget(model) if budget is None else budget
    with (
        torch.inference_mode(),
        Intervening(model, places) as intervening,
        reporting(progress, len(waiting), sum((len(prompts[index]) + sampling.max_new_tokens) for index, _ in waiting)),
    ):
        passes = RowPasses(model, intervening, interventions)
        while waiting:
            each = len(prompts[waiting[0][0]]) + sampling.max_new_tokens
            batch = waiting[: max(1, budget // each)]
            rows = [Row(prompts[index], touched[index], variant, sampling.stream(prompts[index], variant)) for index, variant in batch]
            try:
                write(passes, rows, sampling, ends, on_generated=on_generated)
            except torch.OutOfMemoryError as error:
                if len(batch) == 1:
                    raise PromptError(
                        f"a prompt of {len(rows[0].ids)} tokens and {sampling.max_new_tokens} new ones do not fit into the memory of {model.device};"
                        " shorten it, or generate fewer"
                    ) from error
                budget = len(batch) // 2 * each
                continue
            for (index, variant), row in zip(batch, rows, strict=True):
                texts[variant][index] = tuple(row.text)
            waiting = waiting[len(batch) :]
            if progress is not None:
                progress.advance(len(rows), sum(len(row.ids) + len(row.text) for row in rows))
    return texts


def end_tokens(model: "LoadedModel") -> frozenset[int]:
    """The tokens that end a text of the model: one or several, or none."""
    given = getattr(model.hf.generation_config, "eos_token_id", None)
    if given is None:
        return frozenset()
    return frozenset([given] if isinstance(given, int) else given)


def _require_room(model: "LoadedModel", prompts: Sequence[Ids], touched: Sequence[Sequence[int]], sampling: Sampling) -> None:
    for number, (ids, positions) in enumerate(zip(prompts, touched, strict=True)):
        if not ids:
            raise PromptError(f"prompt {number} has no tokens, so there is nothing to continue")
        if model.max_length is not None and len(ids) + sampling.max_new_tokens > model.max_length:
            raise PromptError(
                f"prompt {number} has {len(ids)} tokens, with {sampling.max_new_tokens} new ones more than the {model.max_length} that the model takes;"
                " shorten it, or generate fewer"
            )
        if beyond := [position for position in positions if not 0 <= position < len(ids)]:
            raise ValueError(f"position {beyond[0]} is to be touched in prompt {number}, which has {len(ids)} tokens")


def _budget(model: "LoadedModel") -> int:
    left = model.memory_left
    return TOKENS if left is None else fitting(left, bytes_per_token(model))
