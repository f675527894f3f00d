import json
import random

import pytest
from scipy.stats import binomtest, mannwhitneyu

from mi_audit.errors import SuiteError
from mi_audit.suites import check, limits, suite
from mi_audit.suites.findings import length_correlation, negatives_needed, smallest_certifiable_rate


def write(path, rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def healthy(groups=40):
    return [{"text": f"Prompt number {group} of {label}", "group": str(group), "label": label} for group in range(groups) for label in ("no", "ja")]


def lines(problems):
    return [(problem.place.number, problem.field) for problem in problems]


def test_a_healthy_suite_has_no_warnings(tmp_path):
    found = check(write(tmp_path / "a.jsonl", healthy()), positive="ja")
    assert found.ok and found.suite == suite(tmp_path / "a.jsonl", positive="ja")
    assert (found.errors, found.warnings) == ((), ())
    assert (found.prompts, found.groups, found.labels, found.length_correlation) == (80, 40, (("ja", 40), ("no", 40)), 0)
    assert [(split.name, split.prompts, split.groups, split.labels) for split in found.splits] == [
        ("train", 32, 16, (("ja", 16), ("no", 16))),
        ("calibration", 16, 8, (("ja", 8), ("no", 8))),
        ("test", 32, 16, (("ja", 16), ("no", 16))),
    ]
    assert found.negative_groups == 16 and "needs 368" in str(found.notes[0])


def test_all_errors_are_collected_with_their_lines(tmp_path, monkeypatch):
    rows = [{"text": "x", "id": "a"}, "{", {"text": ""}, {"text": "y", "id": "a"}, {"text": "z", "label": 5}, {"text": "w", "split": "dev"}]
    found = check(write(tmp_path / "a.jsonl", rows))
    assert not found.ok and found.prompts == 2
    assert lines(found.errors) == [(2, None), (3, "text"), (5, "label"), (6, "split"), (4, "id")]
    monkeypatch.setattr(limits, "PROBLEMS", 3)
    found = check(tmp_path / "a.jsonl")
    assert len(found.errors) == 3 and found.unlisted_errors == 2


def test_repeated_content_contradictory_labels_and_torn_splits(tmp_path):
    rows = [{"text": f"number {n}", "id": str(n), "label": n % 2, "split": "train"} for n in range(20)]
    rows += [{"text": "number 3", "id": "again", "label": 1, "split": "train"}, {"text": "number 4", "id": "b", "label": 1, "split": "test"}]
    warnings = [str(problem) for problem in check(write(tmp_path / "a.jsonl", rows)).warnings]
    assert any("2 contents stand more than once (lines 4 and 21; 5 and 22)" in text for text in warnings)
    assert any("1 contents have two labels (lines 5 and 22)" in text for text in warnings)
    assert any("1 contents are in two splits (lines 5 and 22)" in text for text in warnings)
    assert any("'calibration' comes out empty" in text for text in warnings)


def test_few_thin_and_one_sided_groups_and_gaps_in_the_labels(tmp_path):
    rows = [{"text": f"{group} {copy} {'long ' * (group % 2)}", "group": str(group), "label": group % 2} for group in range(8) for copy in range(5)]
    found = check(write(tmp_path / "a.jsonl", [*rows, {"text": "alone", "group": "Plural", "label": 1}]))
    warnings = "\n".join(map(str, found.warnings))
    assert "only 9 groups" in warnings and "line 41" in warnings and "'Plural'; look for a misspelt group" in warnings
    assert "no group holds both classes" in warnings and "the positive prompts are longer" in warnings
    found = check(write(tmp_path / "b.jsonl", [*healthy(), {"text": "bare", "group": "1"}]))
    assert (81, "label") in lines(found.warnings) and "1 of 81 rows have no label" in str(found.warnings[0])


def test_a_file_that_cannot_be_read_at_all(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, message in [("gone.jsonl", "no such file in the working directory"), ("a.txt", "no suite format"), ("empty.csv", "file is empty")]:
        if name != "gone.jsonl":
            (tmp_path / name).write_text("x" if name == "a.txt" else "")
        with pytest.raises(SuiteError, match=message):
            check(name)


def test_length_correlation_is_the_rank_biserial_of_mann_whitney():
    rng = random.Random(0)
    rows = [{"text": "x" * rng.randint(1, 12), "label": rng.random() < 0.3} for _ in range(200)]
    found = suite(rows, name="x")
    lengths = {truth: [len(row["text"]) for row in rows if row["label"] is truth] for truth in (True, False)}
    u = mannwhitneyu(lengths[True], lengths[False]).statistic
    assert length_correlation(found) == pytest.approx(2 * u / (len(lengths[True]) * len(lengths[False])) - 1, abs=1e-12)


@pytest.mark.parametrize(("rate", "alpha"), [(0.01, 0.025), (0.05, 0.025), (0.02, 0.05)])
def test_negatives_needed_are_those_of_the_exact_binomial_bound(rate, alpha):
    n = negatives_needed(rate, alpha)
    bounds = [binomtest(0, count, alternative="less").proportion_ci(1 - alpha, "exact").high for count in (n - 1, n)]
    assert bounds[1] <= rate < bounds[0]
    assert smallest_certifiable_rate(n, alpha) == pytest.approx(bounds[1], rel=1e-9)
