"""The prompts of a benchmark: real text from the shipped suites, distinct, the same for one seed."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from mi_audit.engine.tokens import encode
from mi_audit.model.loaded import LoadedModel
from mi_audit.shipped import shipped_suites
from mi_audit.suites.prompt import Prompt
from mi_audit.suites.suite import suite
from tests.benchmarks.options import Options

MEDIAN_WORDS, SPREAD, MOST_WORDS = 28, 0.9, 800
"""Log-normal lengths, as prompts that people collect have: a mean of some 54 tokens, and many times that in the longest."""
QUICK_WORDS = 40


@dataclass(frozen=True)
class Workload:
    """Prompts for one model, and their token ids for peers that are spared rendering and tokenising."""

    prompts: tuple[Prompt, ...]
    ids: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, model: LoadedModel, prompts: Sequence[Prompt]) -> "Workload":
        """Render and tokenise."""
        return cls(tuple(prompts), tuple(encode(model.tokenizer, prompt, max_length=model.max_length).ids for prompt in prompts))

    def head(self, n: int) -> "Workload":
        """The first n prompts."""
        return Workload(self.prompts[:n], self.ids[:n])

    @cached_property
    def lengths(self) -> list[int]:
        """Tokens of each prompt."""
        return [len(ids) for ids in self.ids]

    def __len__(self) -> int:
        return len(self.ids)

    def __str__(self) -> str:
        lengths, padded = np.array(self.lengths), sum(16 * max(self.lengths[start : start + 16]) for start in range(0, len(self), 16))
        spread = f"{lengths.min()} to {lengths.max()} tokens each, mean {lengths.mean():.0f}"
        return f"{len(self)} prompts, {spread}; batches of 16 in arrival order hold {padded / lengths.sum():.1f} tokens for each real one"


def choose(options: Options, seed: int = 0) -> list[Prompt]:
    """As many distinct prompts as the options say, of the lengths that they say."""
    if options.lengths == "shipped":
        return shipped(options.prompts, seed)
    return mixed(options.prompts, seed, QUICK_WORDS if options.quick else MOST_WORDS)


def mixed(n: int, seed: int = 0, most_words: int = MOST_WORDS) -> list[Prompt]:
    """`n` plain texts cut from the running text of the shipped suites, of log-normal length."""
    rng = np.random.default_rng(seed)
    counts = np.exp(rng.normal(np.log(MEDIAN_WORDS), SPREAD, n)).astype(int).clip(3, most_words)  # before the texts, so that a new suite changes no length
    texts = [message.content for prompt in _every(rng) for message in prompt.messages or ()]
    words = " ".join(texts).split()
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    cut = [" ".join(words[(start + step) % len(words)] for step in range(count)) for start, count in zip(starts, counts, strict=True)]
    return _distinct([Prompt(f"mixed-{number}", text=text) for number, text in enumerate(cut)])


def shipped(n: int, seed: int = 0) -> list[Prompt]:
    """`n` prompts of the shipped suites as they are; their lengths are more even than those of collected prompts."""
    every = _every(np.random.default_rng(seed))
    return _distinct([replace(prompt, id=f"shipped-{number}", group="") for number, prompt in enumerate(every[:n])])


def cycled(n: int, period: int) -> list[Prompt]:
    """`n` prompts that repeat the same `period` of lengths, told apart by a number of constant length that they begin with, so that any multiple of the period
    is alike and none has a beginning that could be shared."""
    base = mixed(period)
    return _distinct([Prompt(f"cycled-{number}", text=f"{number:05d} {base[number % period].text}") for number in range(n)])


def _every(rng: np.random.Generator) -> list[Prompt]:
    """All prompts of the shipped suites, each content once, shuffled."""
    prompts = {prompt.digest: prompt for path in shipped_suites().values() for prompt in suite(path)}
    return [list(prompts.values())[index] for index in rng.permutation(len(prompts))]


def _distinct(prompts: list[Prompt]) -> list[Prompt]:
    if len({prompt.digest for prompt in prompts}) < len(prompts):
        raise ValueError("two prompts of the benchmark are equal: choose another seed")
    return prompts
