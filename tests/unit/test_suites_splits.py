import hashlib
import random
from collections import Counter

import pytest

from mi_audit.errors import SuiteError
from mi_audit.suites import Prompt, concat, suite
from mi_audit.suites.splits import SPLITS

SHARES = [((0.4, 0.2, 0.4), 2), ((0.5, 0, 0.5), 2), ((1 / 3, 1 / 3, 1 / 3), 2), ((0.8, 0.1, 0.1), 6)]  # with how far a split's size may be from its share


def random_suite(rng, fractions, seed):
    groups = rng.randint(3, 60)
    kinds = [rng.choice([(True,), (False,), (True, False)]) for _ in range(groups)]
    rows = [
        {"text": f"{group} {copy}", "group": f"g{group}", "label": kind[copy % len(kind)]}
        for group, kind in enumerate(kinds)
        for copy in range(rng.randint(len(kind), 5))
    ]
    rng.shuffle(rows)
    return suite(rows, name="random", split_seed=seed, fractions=fractions), Counter(kinds)


def splits_by_group(found):
    splits = {}
    for prompt, split in zip(found, found.splits(), strict=True):
        splits.setdefault(prompt.group, set()).add(split)
    return splits


@pytest.mark.parametrize(("fractions", "most"), SHARES)
def test_no_group_leaks_and_every_split_gets_its_share_of_groups_and_kinds(fractions, most):
    rng = random.Random(repr(fractions))
    for seed in range(60):
        found, kinds = random_suite(rng, fractions, seed)
        splits = splits_by_group(found)
        assert all(len(own) == 1 for own in splits.values())
        sizes = Counter(min(own) for own in splits.values())
        wanted = [share for share in fractions if share]
        for split, share in zip(SPLITS, fractions, strict=True):
            assert sizes[split] == 0 if share == 0 else abs(sizes[split] - share * len(splits)) < most
        label_sets = {group: set() for group in splits}
        for prompt in found:
            label_sets[prompt.group].add(prompt.label)
        for kind, count in kinds.items():
            own = Counter(min(splits[group]) for group, labels in label_sets.items() if labels == set(kind))
            for split, share in zip(SPLITS, fractions, strict=True):
                if share:
                    assert abs(own[split] - share * count) < 2
                    assert own[split] >= 1 or count < len(wanted)


@pytest.mark.parametrize(
    ("groups", "fractions", "sizes"),
    [
        (1, (0.4, 0.2, 0.4), (1, 0, 0)),
        (2, (0.4, 0.2, 0.4), (1, 0, 1)),
        (2, (0.5, 0.25, 0.25), (1, 0, 1)),
        (4, (0.4, 0.2, 0.4), (2, 1, 1)),
        (10, (0.4, 0.2, 0.4), (4, 2, 4)),
        (13, (0.4, 0.2, 0.4), (5, 3, 5)),
        (3, (0.9, 0.05, 0.05), (1, 1, 1)),
        (7, (0.5, 0, 0.5), (4, 0, 3)),
        (9, (1 / 3, 1 / 3, 1 / 3), (3, 3, 3)),
        (1000, (0.1, 0.2, 0.7), (100, 200, 700)),
    ],
)
def test_largest_remainder(groups, fractions, sizes):
    found = suite([{"text": str(group)} for group in range(groups)], name="x", fractions=fractions)
    assert tuple(Counter(found.splits())[split] for split in SPLITS) == sizes


def test_groups_are_cut_in_the_order_of_their_hash():
    groups = [f"g{number}" for number in range(20)]
    found = suite([{"text": group, "group": group} for group in groups], name="x", split_seed=5)
    ranked = sorted(groups, key=lambda group: hashlib.sha256(f"5|{group}".encode()).hexdigest())
    assert found["train"].groups() == tuple(group for group in groups if group in ranked[:8])
    assert found["test"].groups() == tuple(group for group in groups if group in ranked[12:])
    assert found.split(seed=6)["test"] != found["test"] and found.split(seed=6) == found


def test_equal_content_never_stands_on_two_sides():
    for seed in range(30):
        rows = [{"id": f"own {group}", "text": f"own {group}", "group": str(group)} for group in range(40)]
        rows += [{"id": f"shared {group}", "text": f"shared {group // 2}", "group": str(group)} for group in range(40)]
        found = suite(rows, name="x", split_seed=seed)
        side = {}
        assert all(side.setdefault(prompt.digest, split) == split for prompt, split in zip(found, found.splits(), strict=True))
        assert len(set(found.splits())) == 3


def test_what_is_derived_inherits_the_split():
    rows = [{"text": f"{group} {kind}", "group": str(group), "kind": kind} for group in range(30) for kind in "ab"]
    found = suite(rows, name="x")
    test_groups = set(found["test"].groups())
    for derived in (found.where(kind="a"), found.sample(20, seed=1), found.head(12), found.where(kind="b").sample(15).head(9)):
        assert set(derived["train"].groups()).isdisjoint(test_groups)
        assert set(derived["test"].groups()) <= test_groups
    assert found.where(kind="a")["test"] == found["test"].where(kind="a")


def test_an_explicit_split_wins():
    rows = [{"text": f"{number}", "split": split} for number, split in enumerate(["test", "test", "train", "test"])]
    found = suite(rows, name="x")
    assert found.splits() == ("test", "test", "train", "test")
    with pytest.raises(
        SuiteError, match=r"the suite 'x' \(python\): the split 'calibration' is empty \(train 1, calibration 0, test 3 prompts in 4 groups\); add groups"
    ):
        found["calibration"]


def test_splits_that_contradict_each_other():
    prompts = [Prompt(name, text=name, group="g", fields=(("split", split),)) for name, split in (("a", "train"), ("b", "test"))]
    with pytest.raises(SuiteError, match=r"item 2, field \"split\": the group 'g' is in two splits \(item 1 and this one\); give"):
        suite(prompts, name="x")
    joined = concat(*(suite([prompt], name=prompt.id) for prompt in prompts), name="joined")
    with pytest.raises(SuiteError, match=r"the suite 'joined' \(python\): the group 'g' is in two splits: prompts 'a' and 'b'; give every row"):
        joined["train"]


def test_a_view_is_not_split_again():
    view = suite([str(number) for number in range(10)], name="x")["train"]
    for ask in (lambda: view["test"], lambda: view.split(seed=2), lambda: view.head(2)["test"]):
        with pytest.raises(SuiteError, match=r"is the split 'train' already: .* ask it of the whole suite"):
            ask()
    with pytest.raises(SuiteError, match=r"has no split 'dev'; the splits are train, calibration, test"):
        view["dev"]
