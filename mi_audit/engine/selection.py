"""Which tokens of an encoded prompt a `Tokens` selection names."""

from mi_audit.engine.tokens import Encoded, Piece
from mi_audit.errors import PromptError
from mi_audit.plan.places import Tokens
from mi_audit.suites.prompt import Prompt


def select(encoded: Encoded, tokens: Tokens, prompt: Prompt) -> list[int]:
    """Positions, ascending from 0 and never empty, of the tokens that `tokens` names in a prompt.

    - `last`: of a chat with a response the last token of the response's text (not the end-of-turn token that follows); of a chat without one the last token
      of the generation prompt, where the model is about to answer; of a plain text its last token, which is the response's where there is one.
    - `all`: every token, of the chat's frame too, but none that the tokenizer added by itself (BOS, EOS).
    - `response`: the tokens of the response's text.
    - `span`: the tokens that overlap those characters of the text, or of the chat's last message, counted in the text as the suite gives it.
    - `field`: the last token of the last occurrence of the field's value in the text, or in the chat's last message.

    A token overlaps characters when it shares more with them than its own surrounding white space: of "in Paris", characters 0 to 3 are "in" and not " Paris".
    The bytes of a character that is split over several tokens all belong to it.

    Args:
        encoded: the prompt's tokens.
        tokens: the selection.
        prompt: the prompt that was encoded.

    Raises:
        PromptError: no response; the span or the field's value is not in the text; a tokenizer that can't tell which characters a token covers.
        SuiteError: the prompt has no field of that name.
    """
    match tokens.kind:
        case "all":
            return _given(encoded)
        case "last":
            if prompt.is_chat and encoded.response is not None:
                return _overlapping(encoded, encoded.response.start, encoded.response.end, tokens, prompt)[-1:]
            return _given(encoded)[-1:]
        case "response":
            if encoded.response is None:
                raise PromptError(f"prompt {prompt.id!r} has no response to read; give its row a 'response', or read tokens='last'")
            return _overlapping(encoded, encoded.response.start, encoded.response.end, tokens, prompt)
        case "span":
            return _span(encoded, tokens, prompt)
        case "field":
            return _field(encoded, tokens, prompt)


def _given(encoded: Encoded) -> list[int]:
    return [position for position, added in enumerate(encoded.added) if not added]


def _span(encoded: Encoded, tokens: Tokens, prompt: Prompt) -> list[int]:
    if tokens.start is None or tokens.end is None:
        raise ValueError("a span selection needs a start and an end; make it with mi.span(start, end)")
    length = len(_body_text(prompt))
    if tokens.end > length:
        raise PromptError(f"prompt {prompt.id!r}: {tokens} lie beyond its {_body_name(prompt)}, which has {length}; shorten the span, or remove the prompt")
    body = _body(encoded, prompt)
    shift = body.start - body.skipped
    return _overlapping(encoded, max(body.start, shift + tokens.start), min(body.end, shift + tokens.end), tokens, prompt)


def _field(encoded: Encoded, tokens: Tokens, prompt: Prompt) -> list[int]:
    if tokens.name is None:
        raise ValueError("a field selection needs the field's name; make it with mi.last_of(field)")
    value = prompt.field(tokens.name)
    wanted = "" if value is None else str(value)
    if not wanted.strip():
        raise PromptError(f"prompt {prompt.id!r}: its field {tokens.name!r} is empty, so there is no token to read; fill it in, or remove the prompt")
    body = _body(encoded, prompt)
    start = encoded.text.rfind(wanted, body.start, body.end)
    if start < 0:
        raise PromptError(
            f"prompt {prompt.id!r}: its field {tokens.name!r}, {wanted!r}, does not occur in its {_body_name(prompt)}; write it as it stands there"
        )
    return _overlapping(encoded, start, start + len(wanted), tokens, prompt)[-1:]


def _body_text(prompt: Prompt) -> str:
    return prompt.messages[-1].content if prompt.messages is not None else prompt.text or ""


def _body_name(prompt: Prompt) -> str:
    return "last message" if prompt.is_chat else "text"


def _body(encoded: Encoded, prompt: Prompt) -> Piece:
    if encoded.body is None:
        raise PromptError(
            f"prompt {prompt.id!r}: this model's chat template changes the last message, so its characters can't be found; read tokens='last' or 'all'"
        )
    return encoded.body


def _overlapping(encoded: Encoded, start: int, end: int, tokens: Tokens, prompt: Prompt) -> list[int]:
    if encoded.offsets is None:
        raise PromptError(
            f"prompt {prompt.id!r}: the tokenizer can't tell which characters a token covers, so it can't find {tokens}; load one with a tokenizer.json"
        )
    positions = [
        position for position, (first, stop) in enumerate(encoded.offsets) if first < end and stop > start and _shares(encoded.text, first, stop, start, end)
    ]
    if not positions:
        raise PromptError(f"prompt {prompt.id!r}: {tokens} hold no token of their own, only the white space of its neighbours; widen the selection")
    return positions


def _shares(text: str, first: int, stop: int, start: int, end: int) -> bool:
    """Whether a token of characters `first` to `stop` still overlaps [start, end) without its surrounding white space. A token of nothing else keeps it."""
    covered = text[first:stop]
    if not covered.strip():
        return True
    inner = first + len(covered) - len(covered.lstrip())
    return inner < end and first + len(covered.rstrip()) > start
