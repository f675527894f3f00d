import os
import re
from dataclasses import FrozenInstanceError

import pytest

import mi_audit.suites.suite
from mi_audit.errors import SuiteError
from mi_audit.suites import Message, Prompt, concat, suite

ROWS = [
    {"id": "a", "text": "one", "label": "honest", "group": "g", "topic": "tax", "score": 1},
    {"id": "b", "text": "two", "label": "dishonest", "group": "g", "topic": "law", "score": 0.5},
    {"id": "c", "text": "three", "label": "honest", "group": "h", "topic": "law", "hot": True},
]
PINNED = "2a37e43e9ccf04efe070aa13b53b1acb3aca3095d277d83c7b4a7c2e29f74a8c"


def test_the_digest_is_pinned():
    found = suite(ROWS, name="x", positive="dishonest")
    assert found.digest == PINNED
    assert found.prompts[0].digest == "cd8e0081168ec207c30361b1193acaa42dad5d6f3717fa60a4c091da02e301ab"


@pytest.mark.parametrize(
    "change",
    [
        {"id": "z"},
        {"text": "One"},
        {"text": None, "messages": [{"role": "user", "content": "one"}]},
        {"response": "yes"},
        {"label": "other"},
        {"group": "i"},
        {"topic": "Tax"},
        {"score": True},
        {"score": "1"},
        {"new": 1},
    ],
)
def test_any_change_of_a_row_changes_the_digest(change):
    assert suite([{**ROWS[0], **change}, *ROWS[1:]], name="x", positive="dishonest") != suite(ROWS, name="x", positive="dishonest")


def test_the_digest_depends_on_order_and_positive_but_not_on_name_and_path(tmp_path):
    base = suite(ROWS, name="x", positive="dishonest")
    assert suite(ROWS[::-1], name="x", positive="dishonest") != base
    assert suite(ROWS, name="x", positive="honest") != base
    assert suite(ROWS, name="x") != base
    assert suite(ROWS[:2], name="x", positive="dishonest") != base
    assert suite(ROWS, name="y", positive="dishonest", split_seed=3) == base
    (tmp_path / "sub").mkdir()
    for path in (tmp_path / "one.csv", tmp_path / "sub" / "two.csv"):
        path.write_text("text,label\nx,1\ny,0\n")
    assert suite(tmp_path / "one.csv") == suite(tmp_path / "sub" / "two.csv")


def test_labels_groups_and_ids():
    found = suite(ROWS, name="x", positive="dishonest")
    assert (found.labels(), found.groups(), found.ids()) == ((False, True, False), ("g", "g", "h"), ("a", "b", "c"))
    assert found.has_labels and not found.one_class() and found.where(group="h").one_class()
    assert len(found) == 3 and [prompt.id for prompt in found] == ["a", "b", "c"]
    with pytest.raises(FrozenInstanceError):
        found.name = "y"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            ROWS,
            r"the suite 'x' \(python\): which class is positive\? Prompt 'a' has the label 'honest', and the labels are 'honest', 'dishonest'; .* positive=",
        ),
        ([{"text": "t", "id": "a", "label": 1}, {"text": "u", "id": "b"}], r"the suite 'x' \(python\): prompt 'b' has no label; label every row, or .* label="),
    ],
)
def test_labels_that_are_not_known(rows, message):
    found = suite(rows, name="x")
    assert not found.has_labels
    with pytest.raises(SuiteError, match=message):
        found.labels()


def test_where_selects_by_value_and_type():
    found = suite(ROWS, name="x", positive="dishonest")
    assert found.where(topic="law", label="honest").ids() == ("c",)
    assert found.where(score=1).ids() == ("a",) and found.where(hot=True).ids() == ("c",)
    derived = found.where(topic="law")
    assert (derived.name, derived.parent, derived.positive, found.parent) == ("x[topic='law']", "x", "dishonest", None)
    assert derived.digest != found.digest and derived.labels() == (True, False)
    for equals, part in [
        ({"score": True}, "the values are '1', '0.5'"),
        ({"label": "x"}, "'honest', 'dishonest'"),
        ({"tpoic": "x"}, "'id', 'hot', 'score', 'topic'"),
    ]:
        with pytest.raises(SuiteError, match=f"no prompt has {next(iter(equals))}=.*{part}"):
            found.where(**equals)


def test_sample_is_random_by_seed_and_keeps_the_order():
    found = suite([str(number) for number in range(200)], name="x")
    assert found.sample(50, seed=1) == found.sample(50, seed=1) != found.sample(50, seed=2)
    positions = [found.ids().index(name) for name in found.sample(50, seed=1).ids()]
    assert positions == sorted(positions) and len(set(positions)) == 50
    counts = [0] * 200
    for seed in range(400):
        for name in found.sample(50, seed).ids():
            counts[found.ids().index(name)] += 1
    assert min(counts) >= 60 and max(counts) <= 140  # binomial(400, 1/4): 100 ± 4.6 standard deviations
    with pytest.raises(SuiteError, match="a sample of 201 can't be taken from 200 prompts"):
        found.sample(201, seed=1)


def test_head_keeps_both_classes_and_spreads_over_groups_and_splits():
    rows = [{"text": f"{label} {group} {copy}", "label": label, "group": str(group)} for label in (0, 1) for group in range(20) for copy in range(10)]
    found = suite(rows, name="x")
    assert sum(found.head(2).labels()) == 1
    twelve = found.head(12)
    assert sum(twelve.labels()) == 6 and len(set(twelve.groups())) >= 6 and set(twelve.splits()) == {"train", "calibration", "test"}
    assert {prompt.group for prompt in found["test"].head(16)} == set(found["test"].groups())
    assert found.head(12) == twelve and found.head(400) is found and len(found.head(399)) == 399


def test_concat_makes_labels_truth_values_and_refuses_shared_ids():
    one = suite([{"id": "a", "text": "x", "label": "bad"}, {"id": "b", "text": "y", "label": "fine"}], name="one", positive="bad")
    two = suite([{"id": "c", "text": "z"}], name="two", label=False)
    both = concat(one, two, name="both")
    assert both.labels() == (True, False, False) and both.ids() == ("a", "b", "c") and both.positive is None
    with pytest.raises(SuiteError, match="the suites 'one' and 'again' both have a prompt 'a'"):
        concat(one, suite([{"id": "a", "text": "w", "label": 1}], name="again"), name="both")
    with pytest.raises(SuiteError, match="prompt 'd' has no label"):
        concat(one, suite([{"id": "d", "text": "w"}], name="bare"), name="both")
    whole = suite([str(number) for number in range(10)], name="whole")
    with pytest.raises(SuiteError, match="is the split 'train' already"):
        concat(whole["train"], suite(["w"], name="w"), name="mixed")["test"]


def test_a_path_is_relative_to_the_calling_file_and_never_shown_absolute(tmp_path, monkeypatch):
    (tmp_path / "audits").mkdir()
    (tmp_path / "suites").mkdir()
    (tmp_path / "suites" / "x.csv").write_text("text\nhello\n")
    (tmp_path / "audits" / "near.csv").write_text("text\nnear\n")
    source = "from mi_audit.suites import suite\nfound = [suite('near.csv'), suite('../suites/x.csv')]\n"
    audit = {"__file__": str(tmp_path / "audits" / "audit_x.py")}
    exec(compile(source, audit["__file__"], "exec"), audit)
    assert [(found.name, found.source) for found in audit["found"]] == [("near", "near.csv"), ("x", "../suites/x.csv")]
    with pytest.raises(SuiteError, match=r"gone.csv: there is no such file beside audit_x.py; mend the path"):
        exec(compile("suite('gone.csv')", audit["__file__"], "exec"), audit)
    monkeypatch.chdir(tmp_path / "suites")
    notebook = {}
    exec("from mi_audit.suites import suite\nfound = suite('x.csv')", notebook)
    assert notebook["found"].source == "x.csv"
    absolute = suite(str(tmp_path / "suites" / "x.csv"))
    assert absolute.source == "x.csv" and str(tmp_path) not in repr(absolute)


def test_links_folders_and_devices_are_refused(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "x.csv").write_text("text\nhello\n")
    (tmp_path / "link.csv").symlink_to(tmp_path / "real" / "x.csv")
    (tmp_path / "dangling.csv").symlink_to(tmp_path / "nothing.csv")
    (tmp_path / "folder").symlink_to(tmp_path / "real")
    (tmp_path / "dir.csv").mkdir()
    os.mkfifo(tmp_path / "pipe.csv")
    audit = {"__file__": str(tmp_path / "audit_x.py"), "suite": suite}
    for path in ("link.csv", "dangling.csv", "folder/x.csv"):
        with pytest.raises(SuiteError, match=f"{re.escape(path)}: is a symbolic link, or lies behind one; give the path of the file itself"):
            exec(f"suite({path!r})", audit)
    with pytest.raises(SuiteError, match=r"link.csv: is a symbolic link"):
        suite(tmp_path / "link.csv")
    for path in ("dir.csv", "pipe.csv"):
        with pytest.raises(SuiteError, match=f"{path}: .*plain file"):
            suite(tmp_path / path)


def test_shipped_suites_by_bare_name(tmp_path, monkeypatch):
    shipped = tmp_path / "audits" / "pack" / "suites" / "calm.jsonl"
    shipped.parent.mkdir(parents=True)
    shipped.write_text('{"text": "hello"}\n')
    monkeypatch.setattr(mi_audit.shipped, "_shipped", lambda folder: tmp_path / folder)
    (tmp_path / "calm").write_text("not a suite")
    monkeypatch.chdir(tmp_path)
    found = suite("calm")
    assert (found.name, found.source) == ("calm", "audits/pack/suites/calm.jsonl")
    with pytest.raises(SuiteError, match=r"no shipped suite is called 'clam'; there are: 'calm'. A file beside .* clam.jsonl"):
        suite("clam")
    (tmp_path / "audits" / "suites").mkdir()
    (tmp_path / "audits" / "suites" / "calm.jsonl").write_text('{"text": "hello"}\n')
    with pytest.raises(SuiteError, match=r"two shipped suites are called 'calm': audits/pack/suites/calm.jsonl and audits/suites/calm.jsonl; rename one"):
        suite("calm")


def test_every_shipped_suite_loads():
    from mi_audit.shipped import audits_dir, reports_dir, shipped_audits, shipped_suites

    assert audits_dir().name == "audits" and reports_dir().name == "reports"
    assert all(path.name.startswith("audit_") and path.suffix == ".py" for path in shipped_audits())
    for name in shipped_suites():
        assert suite(name).name == name


def test_prompts_are_checked_when_made_in_python():
    prompt = Prompt("a", text="x", fields=(("b", 1), ("a", None)))
    assert prompt.group == "a" and prompt.fields == (("a", None), ("b", 1)) and prompt.field("b") == 1 and not prompt.is_chat
    with pytest.raises(SuiteError, match="prompt 'a' has no field 'c'; its fields are: 'a', 'b'"):
        prompt.field("c")
    for make in (
        lambda: Prompt("a"),
        lambda: Prompt("a", text="x", messages=(Message("user", "y"),)),
        lambda: Prompt("", text="x"),
        lambda: Prompt("a", messages=()),
        lambda: Prompt("a", messages=(Message("user", "x"), Message("assistant", "y"))),
        lambda: Prompt("a", text="x", label=1),
        lambda: Prompt("a", text="x", fields=(("b", 1), ("b", 2))),
        lambda: Message("tool", "x"),
        lambda: Message("user", ""),
    ):
        with pytest.raises(SuiteError):
            make()
