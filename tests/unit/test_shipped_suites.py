"""The suites that ship say what they claim: balanced in each topic, nothing said twice, and neither length nor words alone give a label away."""

import json
import re
from collections import Counter, defaultdict

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold

from mi_audit.shipped import shipped_suites


def _rows(name):
    return [json.loads(line) for line in shipped_suites()[name].read_text(encoding="utf-8").splitlines()]


def _asked(row):
    (message,) = row["messages"]
    assert message["role"] == "user"
    return message["content"]


NOTES = _rows("unsafe_notes")
EASY = _rows("easy_questions")
INSTRUCTIONS = _rows("instructions")
REFUSALS = _rows("refusals")
LETTERS = _rows("refusal_letters")


def test_each_topic_of_the_notes_has_four_of_each_label_in_four_forms():
    topics = defaultdict(list)
    for row in NOTES:
        topics[row["group"]].append(row)
    assert len(topics) == 48
    for topic, rows in topics.items():
        kinds = Counter(row["kind"] for row in rows)
        assert kinds["tricky_benign"] == kinds["plain_benign"] == 2 and kinds["plain_unsafe"] + kinds["veiled_unsafe"] == 4, topic
        assert all(row["kind"].endswith(f"_{row['label']}") for row in rows), topic
        assert Counter((row["label"], row["form"]) for row in rows) == {
            (label, form): 1 for label in ("unsafe", "benign") for form in ("note", "forum", "dialogue", "story")
        }, topic
    assert len({_asked(row) for row in NOTES}) == len({row["id"] for row in NOTES}) == 384


def test_the_notes_are_another_domain_than_the_requests():
    requests = _rows("unsafe_requests")
    assert not {row["group"] for row in NOTES} & {row["group"] for row in requests}
    shortest, usual = min(len(_asked(row)) for row in NOTES), np.median([len(_asked(row)) for row in requests])
    assert shortest > 1.5 * usual, "notes tell what goes before the request"


def test_pairs_of_notes_are_about_equally_long_and_laid_out_alike():
    for unsafe, benign in zip(NOTES[::2], NOTES[1::2], strict=True):
        assert (unsafe["label"], benign["label"]) == ("unsafe", "benign") and unsafe["form"] == benign["form"]
        assert abs(len(_asked(unsafe)) - len(_asked(benign))) <= 30, unsafe["id"]
        assert _asked(unsafe).count("\n") == _asked(benign).count("\n"), unsafe["id"]
    labels = [row["label"] == "unsafe" for row in NOTES]
    assert 0.45 <= roc_auc_score(labels, [len(_asked(row)) for row in NOTES]) <= 0.55


def test_words_alone_hardly_give_the_notes_away_on_other_topics():
    texts, groups = np.array([_asked(row) for row in NOTES]), [row["group"] for row in NOTES]
    labels, scores = np.array([row["label"] == "unsafe" for row in NOTES]), np.zeros(len(NOTES))
    for train, test in GroupKFold(6).split(texts, labels, groups):
        words = TfidfVectorizer()
        model = LogisticRegression(max_iter=1000).fit(words.fit_transform(texts[train]), labels[train])
        scores[test] = model.decision_function(words.transform(texts[test]))
    assert 0.5 <= roc_auc_score(labels, scores) <= 0.7


def test_each_group_of_the_instructions_has_four_of_one_label_and_verbs_tell_nothing():
    groups, forms = defaultdict(list), defaultdict(Counter)
    for row in INSTRUCTIONS:
        groups[row["group"]].append(row)
        forms[row["label"]][row["form"]] += 1
    for group, rows in groups.items():
        assert [row["id"] for row in rows] == [f"{group}-{number}" for number in range(1, 5)]
        assert len({(row["label"], row["kind"]) for row in rows}) == 1, group
    assert Counter(rows[0]["label"] for rows in groups.values()) == {"harmful": 60, "harmless": 60}
    assert forms["harmful"] == forms["harmless"] and len(forms["harmful"]) == 20


def test_an_instruction_is_one_sentence_that_begins_with_its_verb():
    for row in INSTRUCTIONS:
        text = _asked(row)
        assert re.fullmatch(r"[A-Z][^.?!;:\n]+\.", text) and 8 <= len(text.split()) <= 22, row["id"]
        assert text.split()[0].lower() == row["form"], row["id"]


def test_instructions_are_equally_long_in_both_classes():
    labels = [row["label"] == "harmful" for row in INSTRUCTIONS]
    words = np.array([len(_asked(row).split()) for row in INSTRUCTIONS])
    harmful, harmless = words[labels].mean(), words[np.invert(labels)].mean()
    assert abs(harmful - harmless) < 0.15 * min(harmful, harmless)
    assert 0.4 <= roc_auc_score(labels, words) <= 0.6


def test_no_two_instructions_say_nearly_the_same():
    words = [set(re.findall(r"\w+", _asked(row).lower())) for row in INSTRUCTIONS]
    for at, one in enumerate(words):
        for before, other in enumerate(words[:at]):
            assert len(one & other) < 0.5 * len(one | other), (INSTRUCTIONS[at]["id"], INSTRUCTIONS[before]["id"])


def test_the_wrong_answers_of_an_easy_topic_are_its_right_ones():
    topics = defaultdict(list)
    for row in EASY:
        topics[row["group"]].append(row)
    assert len(topics) == 40
    for topic, rows in topics.items():
        answers = [row["answer"] for row in rows]
        assert len(set(answers)) == len(rows) == 3, topic
        assert [row["other"] for row in rows] == answers[1:] + answers[:1], topic
        assert all(word.startswith(" ") and word.strip().isalpha() for word in answers), topic
    assert len({row["text"] for row in EASY}) == len({row["id"] for row in EASY}) == 120
    assert not any(row["text"] != row["text"].strip() for row in EASY)


@pytest.mark.real_model
def test_the_default_model_knows_most_easy_answers(default_model):
    import torch

    def likelihood(text, answer):
        before, both = (default_model.tokenizer(string, add_special_tokens=False).input_ids for string in (text, text + answer))
        assert both[: len(before)] == before and len(both) - len(before) <= 2, (text, answer)
        with torch.no_grad():
            scores = default_model.hf(input_ids=torch.tensor([both])).logits[0].double().log_softmax(-1)
        return sum(float(scores[at - 1, both[at]]) for at in range(len(before), len(both)))

    known = [likelihood(row["text"], row["answer"]) > likelihood(row["text"], row["other"]) for row in EASY]
    assert 0.85 <= np.mean(known) < 1


def test_each_wording_of_a_refusal_answers_a_harmless_and_a_harmful_question():
    wordings = defaultdict(list)
    for row in REFUSALS:
        wordings[row["group"]].append(row)
    assert len(wordings) == len({row["response"] for row in REFUSALS}) == 120 and len({row["id"] for row in REFUSALS}) == 240
    for rows in wordings.values():
        assert [row["kind"] for row in rows] == ["harmful", "harmless"]
        assert len({(row["response"], row["label"], row["split"]) for row in rows}) == 1
    for split, number in (("train", 30), ("calibration", 12), ("test", 18)):
        assert Counter(rows[0]["label"] for rows in wordings.values() if rows[0]["split"] == split) == {"refusing": number, "complying": number}


def test_what_is_asked_tells_nothing_of_the_answer_and_is_not_asked_in_two_splits():
    labels, splits = defaultdict(Counter), defaultdict(set)
    for row in REFUSALS:
        splits[_asked(row)].add(row["split"])
        labels[_asked(row)][row["label"]] += 1
    assert Counter(split for (split,) in splits.values()) == {"train": 60, "calibration": 12, "test": 24}
    assert all(2 * each["refusing"] == each.total() for asked, each in labels.items() if splits[asked] != {"test"})


def test_no_answer_to_be_fitted_holds_the_words_that_are_counted_where_they_would_tell_anything():
    train = [row for row in REFUSALS if row["split"] == "train"]
    assert not any(re.match(r"I\b", row["response"]) or "sorry" in row["response"].lower() for row in train)
    within = Counter(row["label"] for row in train if re.search(r"\bI\b", row["response"]))
    assert 0.9 <= within["refusing"] / within["complying"] <= 1.1


def test_answers_are_about_equally_long_in_both_classes():
    for rows in (REFUSALS, LETTERS):
        labels, words = [row["label"] == "refusing" for row in rows], [len(row["response"].split()) for row in rows]
        assert 0.35 <= roc_auc_score(labels, words) <= 0.65


def test_each_letter_has_a_reply_of_each_kind():
    letters = defaultdict(list)
    for row in LETTERS:
        letters[row["group"]].append(row)
    assert len(letters) == 24
    for rows in letters.values():
        assert [row["label"] for row in rows] == ["refusing", "complying"] and len({_asked(row) for row in rows}) == 1
    assert len({row["response"] for row in LETTERS}) == 48
