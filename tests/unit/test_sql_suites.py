"""The suites on SQL say what they claim: what is labelled SQL runs and answers, what is labelled prose holds no SQL."""

import json
import re
import sqlite3
from collections import Counter, defaultdict

import pytest

from mi_audit.shipped import audits_dir
from mi_audit.suites.splits import SPLITS
from mi_audit.suites.suite import suite

PACK = audits_dir() / "sql"
SCHEMAS = {schema["name"]: schema for schema in json.loads((PACK / "schemas.json").read_text(encoding="utf-8"))}
STATEMENT = re.compile(
    r"\b(select|delete)\b.+\bfrom\b|\binsert\s+into\b|\bupdate\b.+\bset\b.+=|\bcreate\s+(table|view|index)\b|[`;]", re.IGNORECASE | re.DOTALL
)


def _rows(name):
    return [json.loads(line) for line in (PACK / "suites" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


QUESTIONS = _rows("sql_questions")
TOPICS = _rows("database_prose")
ASKED = _rows("sql_asked")


def _database(schema):
    database = sqlite3.connect(":memory:")
    database.execute("PRAGMA foreign_keys = ON")
    database.executescript(schema["ddl"])
    for row in schema["rows"]:
        database.execute(row)
    return database


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_sql_response_runs_and_answers(name):
    schema, database = SCHEMAS[name], _database(SCHEMAS[name])
    found = [column for (table,) in database.execute("SELECT name FROM sqlite_master") for column in _columns(database, table)]
    assert found == [(table, column) for table, columns in schema["tables"].items() for column in columns]
    statements = [row["response"] for row in QUESTIONS if row["group"] == name and row["label"] == "sql"]
    assert len(statements) == 8
    for statement in statements:
        answer = database.execute(statement).fetchall()
        assert answer and not any(value is None for row in answer for value in row), statement
        assert answer != [(0,)], statement
    database.close()


def _columns(database, table):
    return [(table, column[1]) for column in database.execute(f"PRAGMA table_info({table})")]


def test_every_question_stands_once_with_each_label_in_one_group():
    pairs = defaultdict(list)
    for row in QUESTIONS:
        (message,) = row["messages"]
        pairs[message["content"]].append(row)
    assert len(pairs) == 240 and {row["group"] for row in QUESTIONS} == set(SCHEMAS)
    for content, rows in pairs.items():
        assert sorted(row["label"] for row in rows) == ["prose", "sql"], content
        assert len({(row["group"], row["form"], row["id"].removesuffix(f"-{row['label']}")) for row in rows}) == 1, content
        for table, columns in SCHEMAS[rows[0]["group"]]["tables"].items():
            assert f"{table}({', '.join(columns)})" in content


def test_the_questions_asked_are_those_answered_with_both_answers_beside_them():
    assert len(ASKED) == 240 and not any("response" in row or "label" in row for row in ASKED)
    for row, sql, prose in zip(ASKED, QUESTIONS[::2], QUESTIONS[1::2], strict=True):
        assert [f"{row['id']}-sql", f"{row['id']}-prose"] == [sql["id"], prose["id"]]
        assert (row["gold"], row["prose"]) == (sql["response"], prose["response"]) and row["messages"] == sql["messages"] == prose["messages"]
        assert row["database"] == row["group"] == sql["group"] and row["form"] == sql["form"]


def test_a_database_is_on_the_same_side_whether_its_questions_are_answered_or_asked():
    asked, answered = suite("sql_asked"), suite("sql_questions", positive="sql")
    for split in SPLITS:
        assert set(asked[split].groups()) == set(answered[split].groups())


def test_prose_holds_no_sql():
    for row in [*TOPICS, *(row for row in QUESTIONS if row["label"] == "prose")]:
        assert not STATEMENT.search(row["response"]), row["id"]
    for row in TOPICS:
        assert not STATEMENT.search(row["messages"][0]["content"]), row["id"]
    assert all(STATEMENT.search(row["response"]) for row in QUESTIONS if row["label"] == "sql")


def test_nothing_is_said_twice():
    assert len({row["id"] for row in (*QUESTIONS, *TOPICS)}) == len({row["response"] for row in (*QUESTIONS, *TOPICS)}) == 640
    assert set(Counter(row["group"] for row in TOPICS).values()) == {4} and len({row["messages"][0]["content"] for row in TOPICS}) == 160


def test_length_does_not_give_the_label_away():
    sql, prose = ([len(row["response"]) for row in QUESTIONS if row["label"] == label] for label in ("sql", "prose"))
    auroc = sum((a > b) + (a == b) / 2 for a in sql for b in prose) / (len(sql) * len(prose))
    assert 0.4 <= auroc <= 0.6
