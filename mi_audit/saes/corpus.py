"""What an SAE is trained on: texts and suites as contexts of tokens, some of which are held out."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from mi_audit.engine.batches import Ids
from mi_audit.engine.tokens import encode
from mi_audit.errors import PromptError
from mi_audit.plan.digest import Json
from mi_audit.suites.suite import Suite

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

HELD_OUT: Final = 20
"""One stretch of a text, or group of a suite, of so many is held out."""
STRETCH: Final = 8
"""Contexts of a text that follow each other and are held out, or not, together: only the ends of a stretch continue what the SAE was trained on."""
FEWEST: Final = 8
"""Contexts held out, at least: fewer tell nothing."""
SHORTEST: Final = 16
"""Tokens of a text's last context, at least."""
MOST: Final = 400
"""Contexts held out, at most: they stand in memory."""

_PART: Final = 2**20


@dataclass(frozen=True)
class Source:
    """A text or a suite: its name, the sha256 of a text's bytes or the digest of a suite, and the tokens that were taken of it."""

    name: str
    sha256: str
    tokens: int

    def describe(self) -> dict[str, Json]:
        """JSON-ready description."""
        return {"name": self.name, "sha256": self.sha256, "tokens": self.tokens}


@dataclass(frozen=True, eq=False)
class Corpus:
    """Contexts to train on and contexts that are held out, where they come from, and whether each text begins with tokens that the tokenizer adds."""

    train: tuple[Ids, ...]
    held_out: tuple[Ids, ...]
    sources: tuple[Source, ...]
    prepends_bos: bool

    @property
    def tokens(self) -> int:
        """How many tokens there are to train on."""
        return sum(map(len, self.train))


def cut(tokenizer: "PreTrainedTokenizerBase", texts: Sequence[Path], suites: Sequence[Suite], *, context: int, tokens: int | None, seed: int) -> Corpus:
    """Cut texts into contexts of `context` tokens; a prompt of a suite is a context, or its first tokens are.

    Args:
        tokenizer: the model's.
        texts: UTF-8 files. Each context begins with the tokens that the tokenizer adds to a text (BOS), if any.
        suites: taken whole.
        context: tokens of a context.
        tokens: about how many are taken, drawn at random from the texts; None takes all.
        seed: decides which.

    Raises:
        PromptError: a file can't be read or is no UTF-8 text, a prompt can't be encoded, or there is too little to hold some out.
    """
    random = np.random.default_rng([seed, 1])
    prefix = _added(tokenizer)
    if context <= len(prefix) + 1:
        raise PromptError(f"a context of {context} tokens holds no text; give a longer one")
    train: list[Ids] = []
    held: list[Ids] = []
    sources = []
    for each in suites:
        groups = sorted(set(each.groups()))
        apart = {groups[index] for index in random.permutation(len(groups))[: max(1, len(groups) // HELD_OUT)]}
        if len(groups) < 2:
            raise PromptError(f"{each.name} has one group only, so none can be held out and the others trained on; give its prompts groups")
        prompts = [(prompt.group in apart, encode(tokenizer, prompt).ids[:context]) for prompt in each.prompts]
        _share_out(prompts, train, held)
        sources.append(Source(each.name, each.digest, sum(len(ids) for _, ids in prompts)))
    read = [(path, *_contexts(tokenizer, path, prefix, context)) for path in texts]
    left = None if tokens is None else max(0, tokens - sum(source.tokens for source in sources)) // context
    chosen = _chosen([len(contexts) for _, _, contexts in read], left, random)
    before = 0
    for (path, digest, contexts), taken in zip(read, chosen, strict=True):
        _share_out([((before + number) // STRETCH % HELD_OUT == HELD_OUT // 2, contexts[number]) for number in taken], train, held)
        sources.append(Source(path.name, digest, sum(len(contexts[number]) for number in taken)))
        before += len(contexts)
    seen = set(train)
    held = [ids for ids in held if ids not in seen and len(ids) > 1]
    if len(held) < FEWEST or not train:
        raise PromptError(
            f"of {len(train) + len(held)} contexts of up to {context} tokens {len(held)} could be held out, and {FEWEST} have to be: of texts every"
            f" {HELD_OUT}th stretch of {STRETCH} contexts is, of a suite every {HELD_OUT}th group; give more text, or a shorter --context"
        )
    order = random.permutation(len(held))[:MOST]
    return Corpus(tuple(train), tuple(held[index] for index in sorted(order.tolist())), tuple(sources), bool(prefix))


def _share_out(contexts: Iterable[tuple[bool, Ids]], train: list[Ids], held: list[Ids]) -> None:
    for apart, ids in contexts:
        (held if apart else train).append(ids)


def _added(tokenizer: "PreTrainedTokenizerBase") -> Ids:
    """The tokens that the tokenizer puts before a text by itself."""
    encoding = tokenizer("a", return_special_tokens_mask=True)
    first = encoding["special_tokens_mask"].index(0)
    return tuple(encoding["input_ids"][:first])


def _contexts(tokenizer: "PreTrainedTokenizerBase", path: Path, prefix: Ids, context: int) -> tuple[str, list[Ids]]:
    """The digest of a file and its contexts, in its order; a shorter one at its end counts from `SHORTEST` tokens on."""
    try:
        content = path.read_bytes()
        text = content.decode("utf-8")
    except OSError as error:
        raise PromptError(f"{path} can't be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise PromptError(f"{path} is no UTF-8 text (byte {error.start}); convert it, e.g. with iconv -t UTF-8") from error
    ids: list[int] = []
    for part in _parts(text):
        ids += tokenizer(part, add_special_tokens=False, verbose=False)["input_ids"]
    own = context - len(prefix)
    starts = [start for start in range(0, len(ids), own) if len(ids) - start >= min(own, SHORTEST)]
    return sha256(content).hexdigest(), [(*prefix, *ids[start : start + own]) for start in starts]


def _parts(text: str) -> Iterator[str]:
    """The text in parts of about a million characters that end where a line does, or where the million does: tokenizers are slow on very long texts."""
    start = 0
    while start < len(text):
        end = text.rfind("\n", start, start + _PART) + 1 if start + _PART < len(text) else len(text)
        end = end if end > start else start + _PART
        yield text[start:end]
        start = end


def _chosen(sizes: Sequence[int], left: int | None, random: np.random.Generator) -> list[list[int]]:
    """Of each text the numbers of the contexts that are taken: all, or so many of all drawn at random."""
    total = sum(sizes)
    if left is None or left >= total:
        return [list(range(size)) for size in sizes]
    drawn = np.sort(random.permutation(total)[:left])
    starts = np.cumsum([0, *sizes])
    return [(drawn[(drawn >= start) & (drawn < end)] - start).tolist() for start, end in pairwise(starts)]
