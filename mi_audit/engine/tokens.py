"""From a prompt to the tokens that the model sees, and back: which characters of the rendered text each token covers."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import jinja2

from mi_audit.errors import PromptError
from mi_audit.suites.prompt import Message, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MARKER: Final = "miauditmarkerq7xk"
"""Stands in for a message to find where a template puts it: plain letters, which no template trims, splits or escapes."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Where a text of the suite stands in the rendered text: characters `start` to `end`, less `skipped` leading characters that the template trimmed off."""

    start: int
    end: int
    skipped: int = 0


@dataclass(frozen=True, slots=True)
class Encoded:
    """A prompt as the model sees it.

    Attributes:
        ids: token ids.
        text: the rendered text.
        offsets: the characters of `text` that each token covers (tokens share a character that is split into bytes); None with a tokenizer that can't tell.
        added: whether the tokenizer put the token there by itself (BOS, EOS), so that it covers no text.
        body: the prompt's text or the chat's last message; None where the template changes that message.
        response: what was answered, if anything.
        names: of each token that covers no text, or may not tell which, its name in the vocabulary; else empty.
    """

    ids: tuple[int, ...]
    text: str
    offsets: tuple[tuple[int, int], ...] | None
    added: tuple[bool, ...]
    body: Piece | None
    response: Piece | None
    names: tuple[str, ...]

    def texts(self) -> tuple[str, ...]:
        """The text that each token adds to those before it: empty for the later bytes of a character that is split over tokens.

        White space that no token's offsets cover goes to the token after it. Where the tokenizer can't tell which characters a token covers, and for tokens
        that it added by itself, the text is the token's name in the vocabulary.
        """
        if self.offsets is None:
            return self.names
        texts, reached = [], 0
        for name, added, (_, end) in zip(self.names, self.added, self.offsets, strict=True):
            texts.append(name if added else self.text[reached:end])
            reached = max(reached, end)
        return tuple(texts)

    def beginning(self, most: int) -> "Encoded":
        """The first tokens, `most` of them or all there are; the text stays whole."""
        offsets = None if self.offsets is None else self.offsets[:most]
        return replace(self, ids=self.ids[:most], offsets=offsets, added=self.added[:most], names=self.names[:most])


def encode(tokenizer: "PreTrainedTokenizerBase", prompt: Prompt, *, max_length: int | None = None) -> Encoded:
    """Render a prompt and split it into tokens.

    A plain text gets the special tokens that the tokenizer adds by default; a response continues it directly. A chat goes through the tokenizer's own template,
    which writes its special tokens itself: up to the generation prompt, or, with a response, to the end of the answer's turn.

    Args:
        tokenizer: the model's.
        prompt: what to render.
        max_length: the most tokens that the model can take.

    Raises:
        PromptError: no chat template; the template refuses the chat, or changes its prompt or its response; no tokens; more than `max_length` tokens.
    """
    if prompt.messages is not None:
        text, body, response = _render_chat(tokenizer, prompt, prompt.messages)
    else:
        text, body, response = _join_text(prompt)
    encoding = tokenizer(text, add_special_tokens=not prompt.is_chat, return_special_tokens_mask=True, return_offsets_mapping=tokenizer.is_fast, verbose=False)
    ids = tuple(encoding["input_ids"])
    added = tuple(bool(flag) for flag in encoding["special_tokens_mask"])
    if all(added):
        raise PromptError(f"prompt {prompt.id!r} has no tokens for this model's tokenizer; write a text that it knows, or remove the prompt")
    if max_length is not None and len(ids) > max_length:
        raise PromptError(f"prompt {prompt.id!r} has {len(ids)} tokens, but the model takes at most {max_length}; shorten it, or remove it from the suite")
    offsets = tuple((start, end) for start, end in encoding["offset_mapping"]) if tokenizer.is_fast else None
    names = tuple(_name(tokenizer, token) if flag or offsets is None else "" for token, flag in zip(ids, added, strict=True))
    return Encoded(ids, text, offsets, added, body, response, names)


def _name(tokenizer: "PreTrainedTokenizerBase", token: int) -> str:
    return str(tokenizer.convert_ids_to_tokens(token))


def _join_text(prompt: Prompt) -> tuple[str, Piece, Piece | None]:
    text = prompt.text or ""
    body = Piece(0, len(text))
    if prompt.response is None:
        return text, body, None
    return text + prompt.response, body, Piece(len(text), len(text) + len(prompt.response))


def _render_chat(tokenizer: "PreTrainedTokenizerBase", prompt: Prompt, messages: Sequence[Message]) -> tuple[str, Piece | None, Piece | None]:
    if tokenizer.chat_template is None:
        raise PromptError(f"prompt {prompt.id!r} is a chat, but the model has no chat template; audit an instruction-tuned model, or give plain 'text'")
    last = messages[-1]
    asked = _template(tokenizer, prompt, messages, answered=False)
    body = _locate(asked, _template(tokenizer, prompt, [*messages[:-1], Message(last.role, _MARKER)], answered=False), last.content)
    if prompt.response is None:
        return asked, body, None
    text = _template(tokenizer, prompt, [*messages, Message("assistant", prompt.response)], answered=True)
    if not text.startswith(asked):
        raise PromptError(
            f"prompt {prompt.id!r}: this model's chat template renders an answered chat differently (the response does not follow the generation prompt); "
            f"{_AS_TEXT}"
        )
    response = _locate(text, _template(tokenizer, prompt, [*messages, Message("assistant", _MARKER)], answered=True), prompt.response)
    if response is None or response.start < len(asked):
        raise PromptError(f"prompt {prompt.id!r}: this model's chat template changes the response; {_AS_TEXT}")
    return text, body, response


_AS_TEXT: Final = "render the chat yourself and give it as plain 'text' with its 'response'"


def _template(tokenizer: "PreTrainedTokenizerBase", prompt: Prompt, messages: Sequence[Message], *, answered: bool) -> str:
    turns = [{"role": message.role, "content": message.content} for message in messages]
    try:
        rendered = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=not answered)
    except jinja2.TemplateError as error:
        raise PromptError(f"prompt {prompt.id!r}: this model's chat template refuses the chat: {error}; change its messages, or remove the prompt") from error
    return str(rendered)


def _locate(text: str, marked: str, content: str) -> Piece | None:
    """Where `content` stands in `text`, given the same rendering with the marker in its place; None if more than white space around it changed."""
    before, found, after = marked.partition(_MARKER)
    shown = text[len(before) : len(text) - len(after)]
    if not found or _MARKER in after or not (text.startswith(before) and text.endswith(after) and len(before) + len(after) <= len(text)):
        return None
    skipped = content.find(shown)
    if skipped < 0 or shown.strip() != content.strip():
        return None
    return Piece(len(before), len(before) + len(shown), skipped)
