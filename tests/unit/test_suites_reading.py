import csv
import hashlib
import json
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mi_audit.errors import SuiteError
from mi_audit.suites import Message, Prompt, limits, suite

ROWS = [
    {"id": "a", "text": "The sky is blue.", "response": "It is.", "label": True, "group": "sky", "topic": "colour"},
    {"id": "b", "text": 'The sky, "they" say,\nis green.', "label": False, "group": "sky", "topic": "colour"},
    {"id": "3", "text": "Grass ist grün.", "label": True, "group": "7"},
]
CHAT = [
    {"id": "a", "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}], "response": "Hello", "label": "good"},
    {"id": "b", "messages": [{"role": "user", "content": "Bye"}], "label": "bad"},
]


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_csv(path, rows, truth=("false", "true")):
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for row in rows:
            writer.writerow([truth[row[name]] if isinstance(row.get(name), bool) else row.get(name, "") for name in columns])
    return path


def test_formats_give_equal_suites(tmp_path):
    jsonl = suite(write_jsonl(tmp_path / "a.jsonl", ROWS))
    (tmp_path / "b.json").write_text(json.dumps([dict(row, id=int(row["id"])) if row["id"] == "3" else row for row in ROWS], indent=1))
    pq.write_table(pa.Table.from_pylist(ROWS, pa.schema([(name, pa.bool_() if name == "label" else pa.string()) for name in ROWS[0]])), tmp_path / "e.parquet")
    others = [
        suite(tmp_path / "b.json"),
        suite(write_csv(tmp_path / "c.csv", ROWS)),
        suite(write_csv(tmp_path / "d.csv", ROWS, truth=("0", "1"))),
        suite(tmp_path / "e.parquet"),
        suite(ROWS, name="python"),
        suite(list(jsonl), name="prompts"),
    ]
    assert [other.prompts == jsonl.prompts and other == jsonl and hash(other) == hash(jsonl) for other in others] == [True] * 6
    assert jsonl.prompts[1] == Prompt("b", text='The sky, "they" say,\nis green.', label=False, group="sky", fields=(("topic", "colour"),))


def test_chats_in_every_format_and_an_answer_at_the_end_is_the_response(tmp_path):
    jsonl = suite(write_jsonl(tmp_path / "a.jsonl", CHAT), positive="bad")
    pq.write_table(pa.Table.from_pylist(CHAT), tmp_path / "b.parquet")
    assert suite(tmp_path / "b.parquet", positive="bad") == jsonl
    inline = [dict(CHAT[0], messages=[*CHAT[0]["messages"], {"role": "assistant", "content": "Hello"}]), CHAT[1]]
    del inline[0]["response"]
    assert suite(inline, name="x", positive="bad") == jsonl
    assert jsonl.prompts[0].messages == (Message("system", "Be brief."), Message("user", "Hi"))
    assert jsonl.labels() == (False, True)


def test_columns_chat_and_constant_label(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("text,statement,city,note\nunused,Ask me.,Lodz,x\n")
    found = suite(path, columns={"text": "statement", "group": "city", "place": "city", "note": None}, chat=True, label="asked", positive="asked")
    prompt = found.prompts[0]
    assert (prompt.messages, prompt.text, prompt.label, prompt.group) == ((Message("user", "Ask me."),), None, "asked", "Lodz")
    assert prompt.fields == (("city", "Lodz"), ("place", "Lodz"))


def test_csv_labels_are_strings_unless_all_are_truth_values(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("text,label\none,1\ntwo,True\nthree,\n")
    assert [prompt.label for prompt in suite(path)] == [True, True, None]
    path.write_text("text,label\none,1\ntwo,2\n")
    assert [prompt.label for prompt in suite(path)] == ["1", "2"]


def test_prompts_without_an_id_get_one_from_their_content_and_equal_ones_share_a_group():
    one, two, other = suite(["same", "same", "other"], name="x")
    assert two.id == f"{one.id}-2" and one.group == two.group == one.id
    assert len(one.id) == 16 and other.id != one.id and other.group == other.id
    assert one.digest == two.digest != other.digest
    content = b'{"messages":null,"response":null,"text":"same"}'
    assert one.id == hashlib.blake2b(content, digest_size=8, key=b"mi-audit prompt id 1").hexdigest()


def test_content_digest_is_sha256_of_canonical_json():
    rfc8785 = pytest.importorskip("rfc8785")
    prompt = Prompt("x", messages=(Message("user", 'é "\u2028\x7f\n\U0001f600'),), response="\\")
    content = {"text": None, "messages": [{"role": "user", "content": 'é "\u2028\x7f\n\U0001f600'}], "response": "\\"}
    assert prompt.digest == hashlib.sha256(rfc8785.dumps(content)).hexdigest()


BROKEN = [
    ("a.jsonl", '{"text": "x"}\n{"text": "y",}\n', ["a.jsonl, line 2", "malformed JSON at column", "mend"]),
    ("a.jsonl", '{"text": "x"} {"text": "y"}\n', ["a.jsonl, line 1", "something follows the object at column 15", "one object a line"]),
    ("a.jsonl", '{"text": "x", "text": "y"}\n', ["a.jsonl, line 1", "'text' is given twice", "keep one"]),
    ("a.jsonl", '["x"]\n', ["a.jsonl, line 1", "is not an object", "write {"]),
    ("a.jsonl", '{"messages": [{"role": "bot", "content": "x"}]}\n', ["line 1", '"messages"', "'bot' is unknown", "system, user or assistant"]),
    ("a.jsonl", '{"messages": [{"role": "user", "content": "x", "name": "y"}]}\n', ["line 1", "message 1", "nothing else"]),
    ("a.jsonl", '{"messages": [{"role": "user", "content": 5}]}\n', ["line 1", '"messages"', "5 is not a string", "quotation marks"]),
    ("a.jsonl", '{"messages": [{"role": "system", "content": "x"}]}\n', ["line 1", "no message of the user", "add one"]),
    ("a.jsonl", '{"messages": [{"role": "user", "content": "x"}, {"role": "system", "content": "x"}]}\n', ["line 1", "message 2", "first"]),
    ("a.jsonl", '{"messages": "x"}\n', ["line 1", "not a list of messages", "chat=True"]),
    (
        "a.jsonl",
        '{"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "x"}], "response": "y"}',
        ["line 1", '"response"', "keep one"],
    ),
    ("a.jsonl", '{"text": "x", "messages": [{"role": "user", "content": "x"}]}\n', ["line 1", "both text and messages", "keep one"]),
    ("a.jsonl", '{"text": "x"}\n{"label": true}\n', ["line 2", "neither text nor messages", "columns="]),
    ("a.jsonl", '{"prompt": "x"}\n', ["a.jsonl", 'no column "text"', "'prompt'", 'columns={"text"']),
    ("a.jsonl", '{"text": " "}\n', ["line 1", '"text"', "is empty", "remove the row"]),
    ("a.jsonl", '{"text": "x", "response": ""}\n', ["line 1", '"response"', "is empty", "leave it out"]),
    ("a.jsonl", '{"text": 5}\n', ["line 1", '"text"', "5 is not a string", "quotation marks"]),
    ("a.jsonl", '{"text": "\\ud800"}\n', ["line 1", '"text"', "surrogate", "mend"]),
    ("a.jsonl", '{"text": "x", "id": "a"}\n\n{"text": "y", "id": "a"}\n', ["line 3", '"id"', "id of line 1 already", "of its own"]),
    ("a.jsonl", '{"text": "x", "id": "a\\u001b[2J"}\n', ["line 1", '"id"', "control character", "remove"]),
    ("a.jsonl", '{"text": "x", "group": "%s"}\n' % ("g" * 501), ["line 1", '"group"', "501 characters", "500 are the limit"]),
    ("a.jsonl", '{"text": "x", "score": NaN}\n', ["line 1", "NaN is not JSON", "null"]),
    ("a.jsonl", '{"text": "x", "score": 1e999}\n', ["line 1", "too large", "string"]),
    ("a.jsonl", '{"text": "x", "score": %s}\n' % ("9" * 5000), ["line 1", "integer is beyond", "string"]),
    ("a.jsonl", '{"text": "x", "meta": {"a": 1}}\n', ["line 1", '"meta"', "flatten it", "columns={'meta': None}"]),
    ("a.jsonl", '{"text": "x", "label": 2}\n', ["line 1", '"label"', "2 is no label", "0 or 1"]),
    ("a.jsonl", '{"text": "x", "label": 1.0}\n', ["line 1", '"label"', "1.0 is no label", "0 or 1"]),
    ("a.jsonl", '{"text": "x", "label": "good"}\n{"text": "y", "label": 1}\n', ["line 2", '"label"', "string in line 1", "line 2", "alike"]),
    ("a.jsonl", '{"text": "x", "split": "dev"}\n', ["line 1", '"split"', "'dev' is no split", "train, calibration, test"]),
    ("a.jsonl", '{"text": "x", "split": "train"}\n{"text": "y"}\n', ["line 2", "some rows have a split", "line 1", "give every row"]),
    ("a.jsonl", '{"text": "x", "split": "train", "group": "g"}\n{"text": "y", "split": "test", "group": "g"}\n', ["line 2", "'g' is in two", "line 1"]),
    ("a.jsonl", "[" * 100_000, ["line 1", "nested deeper than 16 levels", "flatten"]),
    ("a.jsonl", '{"text": "x", "m": %s}\n' % ("[" * 20 + "]" * 20), ["line 1", "nested deeper than 16 levels", "flatten"]),
    ("a.jsonl", '{"text": "%s"}\n' % ("x" * 1_000_001), ["line 1", "1000000 are the limit of a row", "shorten"]),
    ("a.jsonl", "", ["a.jsonl", "the file is empty", "at least one prompt"]),
    ("a.jsonl", "\n\n", ["a.jsonl", "holds no prompts", "at least one"]),
    ("a.jsonl", b"\xef\xbb\xbf{}", ["a.jsonl", "byte order mark", "without BOM"]),
    ("a.jsonl", b'{"text": "x"}\n{"text": "\xe9"}\n', ["a.jsonl, line 2", "byte 24 (0xe9)", "save the file as UTF-8"]),
    ("a.json", '{"text": "x"}', ["a.json, line 1", "is not an array", ".jsonl"]),
    ("a.json", '[\n{"text": "x"},\n{"text": }]', ["a.json, line 3", "malformed JSON at column 10", "mend"]),
    ("a.json", '[\n{"text": "x"}\n{"text": "y"}]', ["a.json, line 3", "comma", "mend"]),
    ("a.json", '[\n{"text": "x"}\n]\n[]', ["a.json, line 4", "something follows the array", "remove"]),
    ("a.json", '[\n{"text": "x"},\n\n{"text": ""}]', ["a.json, line 4", '"text"', "is empty"]),
    ("a.csv", "one,1\ntwo,0\n", ["a.csv", 'no column "text"', "if line 1 is not a header"]),
    ("a.csv", 'text,label\n"x\ny",1\nz,1,2\n', ["a.csv, line 4", "3 cells where the header has 2", "quote"]),
    ("a.csv", "text,label\nx\n", ["a.csv, line 2", "1 cells where the header has 2", "add the missing"]),
    ("a.csv", "text,text\nx,y\n", ["a.csv, line 1", "'text' twice", "rename"]),
    ("a.csv", "text,\nx,y\n", ["a.csv, line 1", "without a name", "name every column"]),
    ("a.csv", 'text\n"x\n', ["a.csv, line 2", "malformed CSV", "quotation marks"]),
    ("a.csv", "text,label\nx,1\n,0\n", ["a.csv, line 3", "neither text nor messages"]),
    ("a.parquet", "PAR1 not at all", ["a.parquet", "is not a Parquet file", "write it again"]),
    ("a.txt", "x", ["a.txt", "'.txt' is no suite format", ".jsonl, .json, .csv, .parquet"]),
]


@pytest.mark.parametrize(("name", "content", "parts"), BROKEN, ids=[f"{index}-{case[2][-2][:30]}" for index, case in enumerate(BROKEN)])
def test_errors_name_file_line_and_fix(tmp_path, name, content, parts):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SuiteError) as error:
        suite(tmp_path / name)
    assert [part for part in [name, *parts] if part not in str(error.value)] == []
    assert str(tmp_path) not in str(error.value)


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"positive": "honest"}, ["line 1", '"label"', "positive='honest'", "leave positive= out"]),
        ({"label": True}, ["line 1", '"label"', "label= gives one", "leave one of them out"]),
        ({"columns": {"text": "prompt"}}, ["a.jsonl", "no column 'prompt'", "'text'", "mend columns="]),
        ({"columns": {"label": None}, "positive": "yes"}, ["line 1", '"label"', "is missing", "label the row"]),
        ({"columns": {"label": "topic"}, "positive": "yes"}, ["a.jsonl", "no label is 'yes'", "'one', 'two'", "positive="]),
        ({"fractions": (0.5, 0.6, 0.1)}, ["(0.5, 0.6, 0.1)", "add up to 1"]),
        ({"name": "x[test]"}, ["'x[test]'", "bracket", "another name="]),
    ],
)
def test_options_that_do_not_fit_the_file(tmp_path, options, parts):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "x", "label": 1, "topic": "one"}, {"text": "y", "label": 0, "topic": "two"}])
    with pytest.raises(SuiteError) as error:
        suite(path, **options)
    assert [part for part in parts if part not in str(error.value)] == []


@pytest.mark.parametrize(
    ("items", "options", "part"),
    [
        (["x"], {}, "give name="),
        ({"text": "x"}, {"name": "n"}, "list of dicts"),
        (["x", 5], {"name": "n"}, "item 2: a int is no prompt"),
        ([], {"name": "n"}, "holds no prompts"),
        ([{"messages": [{"role": "user", "content": "x"}]}], {"name": "n", "chat": True}, "leave chat= out"),
        ([{"text": "x", "score": float("nan")}], {"name": "n"}, "not a finite number"),
    ],
)
def test_errors_of_suites_in_python(items, options, part):
    with pytest.raises(SuiteError, match=part.replace("[", r"\[")):
        suite(items, **options)


def test_parquet_types_lengths_and_counts(tmp_path, monkeypatch):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["x"], "day": pa.array([0], pa.date32())}), path)
    with pytest.raises(SuiteError, match=r'a.parquet, field "day": the column.s type date32\[day\] can.t be read.*columns=\{.day.: None\}'):
        suite(path)
    assert suite(path, columns={"day": None}).prompts[0].fields == ()
    pq.write_table(pa.table({"text": ["x"] * 300 + ["y" * 1_000_001] * 40}), path)
    with pytest.raises(SuiteError, match=r"a.parquet, row 301: has 1000001 characters, 1000000 are the limit"):
        suite(path)
    pq.write_table(pa.table({"text": ["x", None]}), path)
    with pytest.raises(SuiteError, match=r"a.parquet, row 2, .*neither text nor messages"):
        suite(path)
    monkeypatch.setattr(limits, "ROWS", 1)
    with pytest.raises(SuiteError, match="2 rows, 1 are the limit"):
        suite(path)


def test_a_small_parquet_file_cannot_fill_the_memory(tmp_path):
    path = tmp_path / "a.parquet"
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * 256, pa.int32()), pa.array(["x" * 8_000_000]))
    pq.write_table(pa.table({"text": texts}), path, compression="zstd", dictionary_pagesize_limit=100_000_000, store_schema=False)
    assert path.stat().st_size < 20_000
    usual, measured = pa.default_memory_pool(), pa.proxy_memory_pool(pa.default_memory_pool())
    pa.set_memory_pool(measured)
    try:
        with pytest.raises(SuiteError, match=r"a.parquet, row 1: has 8000000 characters"):
            suite(path)
    finally:
        pa.set_memory_pool(usual)
    assert 8_000_000 <= measured.max_memory() < 200_000_000


def test_damaged_parquet_is_an_error_with_its_row(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [f"prompt number {n}" for n in range(400)]}), path, compression="zstd", use_dictionary=False)
    data = bytearray(path.read_bytes())
    data[60:200] = bytes(140)
    path.write_bytes(data)
    with pytest.raises(SuiteError, match=r"a.parquet, row 1: the data from here on can't be decoded"):
        suite(path)


def test_limits_of_files_and_rows(tmp_path, monkeypatch):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "x"}, {"text": "y"}])
    monkeypatch.setattr(limits, "ROWS", 1)
    with pytest.raises(SuiteError, match="holds more than 1 prompts, the limit"):
        suite(path)
    monkeypatch.setattr(limits, "FILE_BYTES", 10)
    with pytest.raises(SuiteError, match=r"a.jsonl: has .* are the limit of a suite; split the file"):
        suite(path)
    monkeypatch.undo()
    with pytest.raises(SuiteError, match="line 1: has 301 keys, 256 are the limit"):
        suite(write_jsonl(tmp_path / "b.jsonl", [{"text": "x", **dict.fromkeys(map(str, range(300)), 1)}]))


def test_importing_loads_no_heavy_library():
    code = "import sys, mi_audit.suites, mi_audit.shipped; print({'torch', 'pandas', 'pyarrow', 'numpy', 'transformers'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "set()"
