"""From the rows of a file, or items in Python, to prompts: which column is what, labels, ids, and what must hold over all rows."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Final

from mi_audit.suites import limits
from mi_audit.suites.files import Located, read_bytes
from mi_audit.suites.formats import open_rows
from mi_audit.suites.problems import Place, Problem, Report, RowError, listing, shorten
from mi_audit.suites.prompt import Label, Message, Prompt, check_field, check_name, check_text, content_id
from mi_audit.suites.rows import Row, Rows
from mi_audit.suites.splits import explicit_split
from mi_audit.suites.whole import Numbered, whole_problems

Columns = Mapping[str, str | None]

_OWN: Final = ("text", "messages", "response", "label", "group", "id")
"""The keys of a row that are not free metadata."""
_TRUTH: Final[Mapping[str, bool]] = {"0": False, "1": True, "false": False, "true": True}


@dataclass(frozen=True)
class Options:
    """How a suite's rows are to be read; see `suite`."""

    columns: Mapping[str, str | None] = field(default_factory=dict)
    chat: bool = False
    label: str | bool | None = None
    positive: str | None = None


@dataclass(frozen=True)
class FileRead:
    """The prompts of a file with their line (Parquet: row) numbers; `place.unit` says which."""

    place: Place
    prompts: list[Numbered]


def read_file(located: Located, options: Options, report: Report) -> FileRead:
    """The prompts of a file. Each error goes to `report`, which may raise; rows with errors are left out."""
    used = set(options.columns.values())
    dropped = frozenset(name for name, column in options.columns.items() if column is None and name not in used)
    noted = _Noted(report)
    rows = open_rows(located, read_bytes(located), dropped, noted)
    return FileRead(rows.place, _prompts(rows, options, noted))


def read_items(items: Iterable[Mapping[str, object] | Prompt | str], place: Place, options: Options, report: Report) -> list[Prompt]:
    """The prompts of items in Python; an error calls them `item 1`, `item 2` …"""
    noted = _Noted(report)
    return [prompt for _, prompt in _prompts(Rows(place, _item_rows(items, place, noted)), options, noted)]


class _Noted:
    """A `Report` that knows whether it was called."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self.any = False

    def __call__(self, problem: Problem) -> None:
        self.any = True
        self._report(problem)


def _item_rows(items: Iterable[Mapping[str, object] | Prompt | str], place: Place, report: Report) -> Iterator[tuple[int, Row | Prompt]]:
    for number, item in enumerate(items, 1):
        if isinstance(item, Mapping | Prompt):
            yield number, item
        elif isinstance(item, str):
            yield number, {"text": item}
        else:
            report(Problem("error", place.at(number), f"a {type(item).__name__} is no prompt", "give a dict, a Prompt or a string"))


def _prompts(rows: Rows, options: Options, report: _Noted) -> list[Numbered]:
    raw = list(islice(rows.rows, limits.ROWS + 1))
    if len(raw) > limits.ROWS:
        report(Problem("error", rows.place, f"holds more than {limits.ROWS} prompts, the limit of a suite", "take a sample of them"))
        return []
    if not raw:
        if not report.any:
            report(Problem("error", rows.place, "holds no prompts", "a suite needs at least one"))
        return []
    if not _columns_found(rows, raw, options.columns, report):
        return []
    named = [(number, row if isinstance(row, Prompt) else _rename(row, options.columns)) for number, row in raw]
    if rows.untyped:
        named = _with_typed_labels(named)
    prompts: list[Numbered] = []
    repeats: Counter[str] = Counter()
    for number, row in named:
        try:
            prompts.append((number, _finished(row, options, repeats)))
        except RowError as fault:
            report(Problem("error", rows.place.at(number), fault.what, fault.fix, fault.field))
    for problem in whole_problems(prompts, rows.place, options.positive):
        report(problem)
    return prompts


def _columns_found(rows: Rows, raw: Sequence[tuple[int, Row | Prompt]], columns: Columns, report: Report) -> bool:
    tables = [row for _, row in raw if not isinstance(row, Prompt)]
    if not tables:
        return True
    found = dict.fromkeys(str(key) for row in tables for key in row)
    listed = listing(list(found), most=20)
    missing = [column for column in columns.values() if column is not None and column not in found]
    if missing:
        report(Problem("error", rows.place, f"there is no column {missing[0]!r}; the columns are {listed}", "mend columns="))
        return False
    if not any(columns.get(name, name) in found for name in ("text", "messages")):
        fix = 'say which one holds the prompt, as in columns={"text": "…"}' + rows.header_hint
        report(Problem("error", rows.place, f'there is no column "text" or "messages"; the columns are {listed}', fix))
        return False
    return True


def _rename(row: Row, columns: Columns) -> Row:
    moved = set(columns.values())
    renamed = {name: value for name, value in row.items() if name not in columns and name not in moved}
    renamed.update({name: row[column] for name, column in columns.items() if column is not None and column in row})
    grouping = columns.get("group")
    if grouping is not None and grouping in row and grouping not in columns and grouping not in _OWN:
        renamed[grouping] = row[grouping]
    return renamed


def _with_typed_labels(named: list[tuple[int, Row | Prompt]]) -> list[tuple[int, Row | Prompt]]:
    labels = {str(row["label"]).lower() for _, row in named if not isinstance(row, Prompt) and row.get("label") is not None}
    if not labels <= _TRUTH.keys():
        return named
    return [
        (number, {**row, "label": _TRUTH[str(row["label"]).lower()]} if not isinstance(row, Prompt) and row.get("label") is not None else row)
        for number, row in named
    ]


def _finished(row: Row | Prompt, options: Options, repeats: Counter[str]) -> Prompt:
    prompt = row if isinstance(row, Prompt) else _prompt(row, options.chat, repeats)
    if options.chat and prompt.text is not None:
        prompt = replace(prompt, text=None, messages=(Message("user", prompt.text),))
    if options.label is not None:
        if prompt.label is not None:
            raise RowError("is given here, and label= gives one to the whole file", "leave one of them out", "label")
        prompt = replace(prompt, label=options.label)
    explicit_split(prompt)
    return prompt


def _prompt(row: Row, chat: bool, repeats: Counter[str]) -> Prompt:
    """A row as a prompt; null is the same as absent. `repeats` counts contents without an id, so that the second of two equal ones gets an id of its own."""
    given = {name: value for name, value in row.items() if value is not None}
    text = check_text(given.pop("text"), "text", "write a prompt, or remove the row") if "text" in given else None
    response = check_text(given.pop("response"), "response", "leave it out where there is none") if "response" in given else None
    messages = _messages(given.pop("messages", None))
    if messages and messages[-1].role == "assistant":
        if response is not None:
            raise RowError("is given, and the messages end with the assistant", "keep one of them", "response")
        messages, response = messages[:-1], messages[-1].content
    if chat and messages is not None:
        raise RowError("is given, and chat=True is for rows of text", "leave chat= out", "messages")
    if chat and text is not None:
        messages = (Message("user", text),)
        text = None
    name = _name(given.pop("id", None), "id")
    group = _name(given.pop("group", None), "group")
    label = _label(given.pop("label", None))
    key = name or content_id(text, messages, response)
    if name is None:
        repeats[key] += 1
        name = key if repeats[key] == 1 else f"{key}-{repeats[key]}"
    fields = tuple((field, check_field(field, value)) for field, value in given.items())
    return Prompt(id=name, text=text, messages=messages, response=response, label=label, group=group or key, fields=fields)


def _messages(value: object) -> tuple[Message, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list | tuple) or not value:
        raise RowError("is not a list of messages", 'write [{"role": "user", "content": "…"}], or for a plain text use "text" and chat=True', "messages")
    messages: list[Message] = []
    for number, turn in enumerate(value, 1):
        if isinstance(turn, Message):
            messages.append(turn)
            continue
        if not isinstance(turn, Mapping) or set(turn) != {"role", "content"}:
            raise RowError(f"message {number} is not a role and a content", 'write {"role": "user", "content": "…"} and nothing else', "messages")
        messages.append(Message(turn["role"], turn["content"]))
    return tuple(messages)


def _name(value: object, field: str) -> str | None:
    """An id or a group; whole numbers are taken as they are written."""
    if value is None:
        return None
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return check_name(value, field)


def _label(value: object) -> Label:
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int) and value in (0, 1):
        return bool(value)
    raise RowError(f"{shorten(value, 30)} is no label", "write a string, true or false, 0 or 1", "label")
