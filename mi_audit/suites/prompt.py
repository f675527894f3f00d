"""One prompt: a text or a chat, what was answered, its label and its group."""

import hashlib
import json
import math
import unicodedata
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from mi_audit.suites import limits
from mi_audit.suites.problems import RowError, listing, shorten

FieldValue = str | int | float | bool | None
Label = str | bool | None

ROLES: Final = ("system", "user", "assistant")
_ID_KEY: Final = b"mi-audit prompt id 1"
_ENCODER: Final = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False)


@dataclass(frozen=True)
class Message:
    """One turn of a chat: `role` is "system", "user" or "assistant". Raises SuiteError on another role or an empty content."""

    role: str
    content: str

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise RowError(f"the role {shorten(self.role)} is unknown", "write system, user or assistant", "messages")
        check_text(self.content, "messages", "leave an empty message out")


@dataclass(frozen=True)
class Prompt:
    """A text or chat messages, never both; `response` is read, never generated.

    `label` is a string or a bool; `group` (template, entity, pair …; by default the id) is what splits keep together and what n counts;
    `fields` is free metadata, sorted by name. The messages end with a turn that is not the assistant's: its answer is the `response`.
    Raises SuiteError where a part is missing, empty or of the wrong type.
    """

    id: str
    text: str | None = None
    messages: tuple[Message, ...] | None = None
    response: str | None = None
    label: Label = None
    group: str = ""
    fields: tuple[tuple[str, FieldValue], ...] = ()

    def __post_init__(self) -> None:
        _check_content(self.text, self.messages, self.response)
        check_name(self.id, "id")
        if isinstance(self.label, str):
            check_name(self.label, "label")
        elif self.label is not None and not isinstance(self.label, bool):
            raise RowError(f"{shorten(self.label)} is no label", "write a string, true or false, 0 or 1", "label")
        if self.group == "":
            object.__setattr__(self, "group", self.id)
        check_name(self.group, "group")
        _check_fields(self.fields)
        object.__setattr__(self, "fields", tuple(sorted(self.fields, key=lambda pair: pair[0])))

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of the canonical JSON (RFC 8785) of text, messages and response; id, label, group and fields have no part in it."""
        return hashlib.sha256(canonical_content(self.text, self.messages, self.response)).hexdigest()

    @cached_property
    def question(self) -> str:
        """SHA-256 (hex) as `digest`, of what comes before the response."""
        return hashlib.sha256(canonical_content(self.text, self.messages, None)).hexdigest()

    @property
    def is_chat(self) -> bool:
        """Whether the prompt is a chat, which goes through the model's own template."""
        return self.messages is not None

    def field(self, name: str) -> FieldValue:
        """The metadata called `name`. Raises SuiteError, listing the names there are, when this prompt has none of it."""
        for key, value in self.fields:
            if key == name:
                return value
        found = listing([key for key, _ in self.fields]) or "none"
        raise RowError(f"prompt {shorten(self.id)} has no field {shorten(name)}", f"its fields are: {found}")


def canonical_json(value: object) -> bytes:
    """JSON with sorted keys, no spaces, UTF-8. For strings, integers, bools and null it is RFC 8785; floats are Python's shortest form."""
    return _ENCODER.encode(value).encode()


def canonical_content(text: str | None, messages: tuple[Message, ...] | None, response: str | None) -> bytes:
    """What a prompt's digest and its default id are taken of."""
    turns = None if messages is None else [{"content": message.content, "role": message.role} for message in messages]
    return canonical_json({"messages": turns, "response": response, "text": text})


def content_id(text: str | None, messages: tuple[Message, ...] | None, response: str | None) -> str:
    """The id of a prompt that was given none: 16 hex digits, BLAKE2b of the content with a key of its own, so that it is never mistaken for a digest.

    Raises SuiteError when there is no content to take it of.
    """
    _check_content(text, messages, response)
    return hashlib.blake2b(canonical_content(text, messages, response), digest_size=8, key=_ID_KEY).hexdigest()


def check_text(value: object, field: str, if_empty: str) -> str:
    """`value` as it is. Raises SuiteError unless it is a string with something to read in it that UTF-8 can hold."""
    if not isinstance(value, str):
        raise RowError(f"{shorten(value, 30)} is not a string", "put the text in quotation marks", field)
    if not value.strip():
        raise RowError("is empty", if_empty, field)
    check_unicode(value, field)
    return value


def check_unicode(value: str, field: str) -> None:
    """Raises SuiteError on a lone surrogate, which no encoding can hold."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise RowError("holds half of a surrogate pair", "mend the \\u escape", field) from None


def check_name(value: object, field: str) -> str:
    """`value` as it is. Raises SuiteError unless it can serve as an id, label, group or field name: short, one line, no control characters."""
    if not isinstance(value, str):
        raise RowError(f"{shorten(value, 30)} is not a string", "put it in quotation marks", field)
    if not value.strip():
        raise RowError("is empty", "fill it in, or leave it out", field)
    if len(value) > limits.NAME_CHARACTERS:
        raise RowError(f"has {len(value)} characters, {limits.NAME_CHARACTERS} are the limit", "shorten it", field)
    check_unicode(value, field)
    if not value.isprintable() and any(unicodedata.category(character) in ("Cc", "Zl", "Zp") for character in value):
        raise RowError(f"{shorten(value)} holds a control character", "remove it", field)
    return value


def check_field(name: str, value: object) -> FieldValue:
    """`value` as it is. Raises SuiteError unless it is a scalar that JSON and Parquet can hold."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        check_unicode(value, name)
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise RowError(f"{value} is not a finite number", "write a number, or null", name)
        return value
    if isinstance(value, int):
        if abs(value) > limits.INTEGER:
            raise RowError(f"the integer is beyond ±{limits.INTEGER}", "write it as a string", name)
        return value
    raise RowError(f"{shorten(value, 30)} is no string, number, true, false or null", f"flatten it, or drop it: columns={{{name!r}: None}}", name)


def _check_content(text: str | None, messages: tuple[Message, ...] | None, response: str | None) -> None:
    if text is not None and messages is not None:
        raise RowError("has both text and messages", "keep one of them", "messages")
    if text is None and messages is None:
        raise RowError("has neither text nor messages", 'give "text" or "messages", or say which column it is: columns={"text": "…"}', "text")
    if text is not None:
        check_text(text, "text", "write a prompt, or remove the row")
    if messages is not None:
        _check_messages(messages)
    if response is not None:
        check_text(response, "response", "leave it out where there is none")


def _check_messages(messages: tuple[Message, ...]) -> None:
    roles = [message.role for message in messages]
    if not any(role == "user" for role in roles):
        raise RowError("holds no message of the user", "add one", "messages")
    if "system" in roles[1:]:
        raise RowError(f"message {roles.index('system', 1) + 1} is the system's", "put the system message first, and only one", "messages")
    if roles[-1] == "assistant":
        raise RowError("ends with the assistant", 'give its answer as "response"', "messages")


def _check_fields(fields: tuple[tuple[str, FieldValue], ...]) -> None:
    seen: set[str] = set()
    for name, value in fields:
        check_name(name, "fields")
        if name in seen:
            raise RowError("is given twice", "keep one", name)
        seen.add(name)
        check_field(name, value)
