"""Activations of many prompts at many sites: one forward pass per batch, reduced at the tap to one vector per prompt and site."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from mi_audit.engine.batches import plan_batches
from mi_audit.engine.budget import token_budget
from mi_audit.engine.cache import ActivationCache, Kept, batch_key
from mi_audit.engine.encoding import encode_all
from mi_audit.engine.passing import Work, width_at, work_through
from mi_audit.engine.progress import Hearer, reporting
from mi_audit.engine.selection import select
from mi_audit.engine.site import Site
from mi_audit.engine.tokens import Encoded
from mi_audit.errors import PromptError
from mi_audit.model.audited import AuditedModel
from mi_audit.plan.places import Tokens
from mi_audit.suites.prompt import Prompt

__all__ = ["Captures", "Site", "capture"]


class Captures:
    """What was read, in the order of the prompts that were given.

    Attributes:
        n_tokens: int64 [n], tokens of each prompt.
        prompts_forwarded: distinct prompts that passed through the model.
        prompts_cached: distinct prompts that were found in the cache.
        tokens_forwarded: tokens of those that passed, padding left out.
        seconds: wall time of the forward passes.
    """

    def __init__(self, readings: Mapping[Site, "_Reading"], rows: NDArray[np.int64], n_tokens: NDArray[np.int64], passed: NDArray[np.bool_], seconds: float):
        self._readings = dict(readings)
        self._rows = rows
        self.n_tokens = n_tokens[rows]
        self.prompts_forwarded = int(passed.sum())
        self.prompts_cached = int((~passed).sum())
        self.tokens_forwarded = int(n_tokens[passed].sum())
        self.seconds = seconds

    @property
    def tokens_per_second(self) -> float:
        """Tokens that passed through the model per second of wall time, padding left out; 0 where there were none."""
        return self.tokens_forwarded / self.seconds if self.seconds > 0 else 0.0

    def vectors(self, site: Site) -> NDArray[np.float32]:
        """The activation of each prompt, float32 [n, width]: of the one selected token, or the mean over several without the attention sinks among them.

        Where the site encodes activations, what it makes of them [n, m], pooled as it says.
        """
        return self._readings[site].vectors[self._rows]

    def token_index(self, site: Site) -> NDArray[np.int64]:
        """The position that was read, or the last of those averaged, int64 [n]."""
        return self._readings[site].token_index[self._rows]

    def excluded(self, site: Site) -> NDArray[np.int64]:
        """How many attention sinks were left out of each mean, int64 [n]."""
        return self._readings[site].excluded[self._rows]


def capture(
    model: AuditedModel,
    prompts: Sequence[Prompt],
    sites: Iterable[Site],
    *,
    progress: Hearer | None = None,
    budget: int | None = None,
    cache: ActivationCache | None = None,
) -> Captures:
    """Read prompts at sites with one forward pass per batch, however many the sites.

    The pass goes through the decoder without the LM head and stops once the deepest site is read. What is kept of a prompt is a vector per site;
    activations do not outlive their batch. Prompts with the same tokens and the same selected positions pass through the model once. Batches are planned from
    all the prompts before the cache is asked, so the numbers are the same with it, without it, and after a crash.

    Args:
        model: the model under audit.
        prompts: what is read, n of them.
        sites: where, one at least. An attention sink is a token whose norm, at that very hook point, or before a norm that leads to it, stands out
            (`mi_audit.model.sinks`); it is left out of means over several tokens, and read like any other where it alone is selected.
        progress: hears of the batches.
        budget: tokens in a batch, at most, padding and the shared ones of each row among them; by default what the device's memory takes (`token_budget`).
        cache: where batches are looked up, and kept as soon as they have passed; processes that share it share the passes.

    Raises:
        HookPointError: this model has no such hook point.
        ValueError: no site.
        PromptError: a prompt can't be encoded, a selection does not fit it, all its selected tokens are sinks, an activation is not finite, or a prompt alone
            does not fit into the device's memory.
    """
    sites = tuple(dict.fromkeys(sites))
    if not sites:
        raise ValueError("capture() needs one site at least")
    selections = tuple(dict.fromkeys(site.tokens for site in sites))
    encoded = encode_all(model, prompts, cache)
    inputs, rows = _distinct(_prepare(prompt, each, selections) for prompt, each in zip(prompts, encoded, strict=True))
    readings = {site: _Reading.empty(len(inputs), width_at(model, site)) for site in sites}
    lengths = np.array([len(each.ids) for each in inputs], dtype=np.int64)
    passed = np.zeros(len(inputs), dtype=np.bool_)
    work = Work(
        model,
        tuple(each.ids for each in inputs),
        {tokens: tuple(each.positions[number] for each in inputs) for number, tokens in enumerate(selections)},
        tuple(each.prompt_id for each in inputs),
        sites,
        cache,
    )
    batches = plan_batches(work.ids, model.packing, token_budget(model, int(lengths.sum())) if budget is None else budget)
    if cache is None or not all(cache.has(batch_key(batch, work.ids)) for batch in batches):
        model.loaded()  # before the clock of the passes starts, and their bar
    began = perf_counter()
    with reporting(progress, len(inputs), int(lengths.sum())), closing(work_through(work, batches)) as passing:
        for batch, results, forwarded in passing:
            members = list(batch.prompts)
            for site, result in results.items():
                readings[site].store(members, result, site, inputs)
            passed[members] = forwarded
            if progress is not None:
                progress.advance(len(members), int(lengths[members].sum()))
    return Captures(readings, rows, lengths, passed, perf_counter() - began)


@dataclass(frozen=True, slots=True)
class _Input:
    """A prompt ready to pass through the model: its tokens and, per selection, the positions to read."""

    prompt_id: str
    ids: tuple[int, ...]
    positions: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class _Reading:
    """What is kept of one site, a row per distinct prompt."""

    vectors: NDArray[np.float32]
    token_index: NDArray[np.int64]
    excluded: NDArray[np.int64]

    @classmethod
    def empty(cls, n: int, width: int) -> "_Reading":
        return cls(np.empty((n, width), dtype=np.float32), np.empty(n, dtype=np.int64), np.empty(n, dtype=np.int64))

    def store(self, batch: list[int], result: Kept, site: Site, inputs: Sequence[_Input]) -> None:
        """Keep a batch. Raises PromptError for a prompt without a number to keep."""
        only_sinks = np.flatnonzero(result.kept == 0)
        if only_sinks.size:
            name = inputs[batch[only_sinks[0]]].prompt_id
            raise PromptError(
                f"prompt {name!r}: at {site}, all selected tokens are attention sinks, which say nothing of the prompt; select more tokens, or tokens='last'"
            )
        broken = np.flatnonzero(~np.isfinite(result.vectors).all(axis=1))
        if broken.size:
            name = inputs[batch[broken[0]]].prompt_id
            raise PromptError(
                f"prompt {name!r}: at {site}, the activation is not finite (NaN or infinity); load the model with dtype='float32', or check its weights"
            )
        self.vectors[batch] = result.vectors
        self.token_index[batch] = result.token_index
        self.excluded[batch] = result.excluded


def _prepare(prompt: Prompt, encoded: Encoded, selections: Sequence[Tokens]) -> _Input:
    return _Input(prompt.id, encoded.ids, tuple(tuple(select(encoded, tokens, prompt)) for tokens in selections))


def _distinct(inputs: Iterable[_Input]) -> tuple[list[_Input], NDArray[np.int64]]:
    """The inputs without repetition, and for each input given its row among them."""
    first: dict[tuple[object, object], int] = {}
    kept: list[_Input] = []
    rows: list[int] = []
    for each in inputs:
        row = first.setdefault((each.ids, each.positions), len(kept))
        if row == len(kept):
            kept.append(each)
        rows.append(row)
    return kept, np.array(rows, dtype=np.int64)
