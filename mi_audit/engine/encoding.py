"""Prompts as tokens, out of the cache where the same prompts were encoded before, so that nothing of the model has to be loaded for it."""

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from mi_audit.engine.cache import ActivationCache
from mi_audit.engine.tokens import Encoded, Piece, encode
from mi_audit.errors import ModelError
from mi_audit.model.audited import AuditedModel
from mi_audit.plan.digest import digest_of
from mi_audit.suites.prompt import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

UNSTEADY: Final = ("strftime_now", "random", "lipsum")
"""Words in a chat template that may render the same chat differently another time: what they gave is not kept."""
_NAME: Final = "encoded prompts"


def encode_all(model: AuditedModel, prompts: Sequence[Prompt], cache: ActivationCache | None, *, most: int | None = None) -> Iterator[Encoded]:
    """Each prompt as the model sees it, or of each the first tokens, `most` of them, where it need not be whole.

    Prompts that were encoded together before come out of the cache; others are kept there once all are encoded, unless the chat template may render them
    differently another time.

    Raises:
        PromptError: as `encode`.
        ModelError: what is kept can't be read, or the model can't be loaded.
    """
    if cache is None:
        tokenizer = model.loaded().tokenizer
        yield from (_encode(tokenizer, prompt, model.max_length, most) for prompt in prompts)
        return
    key = "prompts-" + digest_of({"prompts": [prompt.digest for prompt in prompts], **({} if most is None else {"most": most})})[:40]
    kept = cache.tensors(key).get(_NAME)
    lines = [] if kept is None else kept.tobytes().splitlines()
    if len(lines) == len(prompts):
        yield from (_read(line) for line in lines)
        return
    tokenizer = model.loaded().tokenizer
    lines = []
    for prompt in prompts:
        encoded = _encode(tokenizer, prompt, model.max_length, most)
        lines.append(_line(encoded))
        yield encoded
    if not any(word in str(tokenizer.chat_template) for word in UNSTEADY):
        cache.put(key, {_NAME: np.frombuffer(b"\n".join(lines), dtype=np.uint8)})


def _encode(tokenizer: "PreTrainedTokenizerBase", prompt: Prompt, longest: int | None, most: int | None) -> Encoded:
    return encode(tokenizer, prompt, max_length=longest) if most is None else encode(tokenizer, prompt).beginning(most)


def _line(encoded: Encoded) -> bytes:
    pieces = [None if piece is None else [piece.start, piece.end, piece.skipped] for piece in (encoded.body, encoded.response)]
    return json.dumps([encoded.ids, encoded.text, encoded.offsets, encoded.added, *pieces, encoded.names], separators=(",", ":")).encode("ascii")


def _read(line: bytes) -> Encoded:
    try:
        ids, text, offsets, added, body, response, names = json.loads(line)
        spans = None if offsets is None else tuple((start, end) for start, end in offsets)
        return Encoded(tuple(ids), text, spans, tuple(added), _piece(body), _piece(response), tuple(names))
    except (ValueError, TypeError) as error:
        raise ModelError(f"prompts that were encoded before can't be read ({error}): clear what is kept with `mi-audit cache clear`") from error


def _piece(numbers: Any) -> Piece | None:
    return None if numbers is None else Piece(*numbers)
