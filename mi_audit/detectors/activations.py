"""What was captured, by prompt and site, so that a prompt that stands in several suites passes through the model once."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from mi_audit.detectors.progress import Whole
from mi_audit.engine.cache import ActivationCache
from mi_audit.engine.capture import capture
from mi_audit.engine.site import Site
from mi_audit.model.audited import AuditedModel
from mi_audit.stats.checks import Floats
from mi_audit.suites.prompt import FieldValue, Prompt

Ints = NDArray[np.int64]
Request = tuple[Sequence[Prompt], frozenset[Site]]
"""Prompts and the sites at which all of them are needed."""

_Key = tuple[str, Site, FieldValue]


@dataclass(frozen=True)
class Captured:
    """What was read so far: prompts that passed through the model, those found in the cache, tokens that passed (padding left out), and the seconds it took."""

    prompts: int = 0
    cached: int = 0
    tokens: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, eq=False)
class Activations:
    """Prompts at one site: `vectors` [n, width], `token_index`, `excluded` (attention sinks left out of a mean) and `n_tokens` [n] each."""

    vectors: Floats
    token_index: Ints
    excluded: Ints
    n_tokens: Ints


@dataclass(eq=False)
class _Pass:
    """A prompt that is to pass through the model for the first request that lacks it, and the sites to read on its way."""

    prompt: Prompt
    sites: set[Site]
    request: int

    def serves(self, prompt: Prompt, sites: Iterable[Site]) -> bool:
        """Whether this pass reads for another prompt of equal content what is needed of it: a field that selects tokens must agree."""
        return all(_selector(self.prompt, site) == _selector(prompt, site) for site in (*self.sites, *sites))


@dataclass(frozen=True, eq=False)
class _Row:
    vector: NDArray[np.float32]
    token_index: int
    excluded: int
    n_tokens: int


@dataclass(eq=False)
class ActivationStore:
    """Captures what is asked for and not yet there."""

    model: AuditedModel
    cache: ActivationCache | None = None
    captured: Captured = Captured()
    _rows: dict[_Key, _Row] = field(default_factory=dict)

    def missing(self, requests: Iterable[Request]) -> int:
        """How many prompts have to pass through the model before `requests` can be read."""
        return sum(len(passes) for passes in self._passes(requests, ()).values())

    def fetch(self, now: Sequence[Request], later: Sequence[Request] = (), *, progress: Whole | None = None) -> None:
        """Capture the prompts in `now`, at the sites for which `later` asks too, so that none of them has to pass again.

        Prompts of one request pass together, apart from those of others, so that a suite's batches, and with them its numbers to the last bit and its
        entries in the cache, stay the same when other suites come or go.

        Raises:
            HookPointError, PromptError: as `engine.capture.capture`.
        """
        together: dict[tuple[int, frozenset[Site]], list[Prompt]] = {}
        for passes in self._passes(now, later).values():
            for each in passes:
                together.setdefault((each.request, frozenset(each.sites)), []).append(each.prompt)
        try:
            for (_, sites), prompts in together.items():
                self._capture(prompts, sorted(sites, key=str), progress)
        finally:
            if self.cache is not None and together:
                self.cache.bound()

    def read(self, prompts: Sequence[Prompt], site: Site) -> Activations:
        """What was captured of `prompts` at `site`, in their order; it must have been fetched."""
        rows = [self._rows[_key(prompt, site)] for prompt in prompts]
        return Activations(
            np.array([row.vector for row in rows], dtype=np.float64),
            np.array([row.token_index for row in rows], dtype=np.int64),
            np.array([row.excluded for row in rows], dtype=np.int64),
            np.array([row.n_tokens for row in rows], dtype=np.int64),
        )

    def _passes(self, now: Iterable[Request], later: Iterable[Request]) -> dict[str, list[_Pass]]:
        passes: dict[str, list[_Pass]] = {}
        for request, prompt, sites in self._lacking(now):
            known = passes.setdefault(prompt.digest, [])
            serving = next((each for each in known if each.serves(prompt, sites)), None)
            if serving is None:
                known.append(_Pass(prompt, set(sites), request))
            else:
                serving.sites.update(sites)
        for _, prompt, sites in self._lacking(later):
            serving = next((each for each in passes.get(prompt.digest, ()) if each.serves(prompt, sites)), None)
            if serving is not None:
                serving.sites.update(sites)
        return passes

    def _lacking(self, requests: Iterable[Request]) -> Iterable[tuple[int, Prompt, list[Site]]]:
        for request, (prompts, sites) in enumerate(requests):
            for prompt in prompts:
                lacking = [site for site in sites if _key(prompt, site) not in self._rows]
                if lacking:
                    yield request, prompt, lacking

    def _capture(self, prompts: Sequence[Prompt], sites: Sequence[Site], progress: Whole | None) -> None:
        captures = capture(self.model, prompts, sites, progress=progress, cache=self.cache)
        for site in sites:
            vectors, token_index, excluded = captures.vectors(site), captures.token_index(site), captures.excluded(site)
            for row, prompt in enumerate(prompts):
                self._rows[_key(prompt, site)] = _Row(vectors[row], int(token_index[row]), int(excluded[row]), int(captures.n_tokens[row]))
        so_far = self.captured
        self.captured = Captured(
            so_far.prompts + captures.prompts_forwarded,
            so_far.cached + captures.prompts_cached,
            so_far.tokens + captures.tokens_forwarded,
            so_far.seconds + captures.seconds,
        )


def _key(prompt: Prompt, site: Site) -> _Key:
    return prompt.digest, site, _selector(prompt, site)


def _selector(prompt: Prompt, site: Site) -> FieldValue:
    """The value of the field that selects the tokens at this site; a prompt's digest leaves its fields out."""
    return dict(prompt.fields).get(site.tokens.name) if site.tokens.name is not None else None
