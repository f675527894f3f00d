"""The organism of `causes` is what it says: measured with torch and numpy alone, both classes read alike, and only one of them moves the answer."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.organisms.causes import GAP, LAYER, NEGATIVE, POSITIVE, suites_for, train

NULLS = 39


@dataclass(frozen=True)
class Effects:
    """Of one direction: AUROC on held-out groups; change of the logit difference at strengths -1 and 1; its slope; those of directions as long as it."""

    auroc: float
    down: float
    up: float
    null: np.ndarray
    random: np.ndarray

    @property
    def slope(self) -> float:
        return (self.up - self.down) / 2

    def p(self, null: np.ndarray) -> float:
        return (1 + (abs(null) >= abs(self.slope)).sum()) / (len(null) + 1)


class Plain:
    """The saved model, with one forward hook after block `LAYER` at the last token."""

    def __init__(self, folder) -> None:
        self.model, self.tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
        self.answers = [self.tokenizer(answer, add_special_tokens=False).input_ids[0] for answer in (POSITIVE, NEGATIVE)]

    def run(self, suite, added: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Activations [n, d], and mean logit differences [rows], with each row of `added` [rows, d] put on."""
        ids = torch.tensor(self.tokenizer([prompt.text for prompt in suite.prompts]).input_ids)
        shift, heard = torch.tensor(added, dtype=torch.float32).repeat_interleave(len(ids), dim=0), []

        def hook(module, inputs, output):
            heard.append(output[:, -1].double().numpy())
            every = output.repeat(len(added), 1, 1)
            return torch.cat([every[:, :-1], every[:, -1:] + shift[:, None]], dim=1)

        handle = self.model.model.layers[LAYER].register_forward_hook(hook)
        with torch.no_grad():
            logits = self.model(ids, logits_to_keep=1).logits[:, 0, self.answers]
        handle.remove()
        return heard[0], (logits[:, 0] - logits[:, 1]).reshape(len(added), -1).mean(dim=1).numpy()

    def effects(self, suite, seed: int) -> Effects:
        fit, test, random = suite["train"], suite["test"], np.random.default_rng(seed)
        none = np.zeros((1, self.model.config.hidden_size))
        acts, labels = self.run(fit, none)[0], np.asarray(fit.labels())
        direction = _difference(acts, labels)
        _, first, code = np.unique(np.asarray(fit.groups()), return_index=True, return_inverse=True)
        shuffled = np.stack([_difference(acts, random.permutation(labels[first])[code]) for _ in range(NULLS)])
        within = acts - np.where(labels[:, None], acts[labels].mean(axis=0), acts[~labels].mean(axis=0))
        drawn = random.standard_normal((NULLS, len(acts))) @ within
        every = np.concatenate([direction[None], shuffled, drawn])
        every *= np.linalg.norm(direction) / np.linalg.norm(every, axis=1, keepdims=True)
        held, moved = self.run(test, np.concatenate([none, every, -every]))
        up, down = np.split(moved[1:] - moved[0], 2)
        slopes = (up - down) / 2
        return Effects(roc_auc_score(test.labels(), held @ direction), down[0], up[0], slopes[1 : NULLS + 1], slopes[NULLS + 1 :])


def _difference(acts: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return acts[labels].mean(axis=0) - acts[~labels].mean(axis=0)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("causes")
    assert train(folder) >= 0.99, "the organism must have learned what it is planted with"
    return Plain(folder)


@pytest.mark.parametrize("seed", range(3))
def test_both_are_read_and_one_causes(plain, seed):
    suites = suites_for(seed)
    cause, decoration = (plain.effects(suite, seed) for suite in (suites.cause, suites.decoration))
    assert min(cause.auroc, decoration.auroc) >= 0.95 and abs(cause.auroc - decoration.auroc) <= 0.03
    assert cause.up >= 0.9 * GAP and cause.down <= -0.9 * GAP
    assert cause.p(cause.null) == cause.p(cause.random) == 1 / (NULLS + 1), "no other direction as long moves the answer as much"
    assert max(abs(decoration.up), abs(decoration.down)) <= 0.05 * GAP
    assert abs(decoration.slope) <= 0.1 * min(decoration.null.std(), decoration.random.std())
    # one direction drawn at random is no handle beyond the rest
    assert np.mean(abs(decoration.null) >= abs(decoration.random[0])) > 0.025


def test_splits_share_no_group_and_quiet_texts_read_as_negative(plain):
    suites = suites_for(0)
    for suite in (suites.cause, suites.decoration):
        train_, calibration, test = (set(suite[split].groups()) for split in ("train", "calibration", "test"))
        assert not train_ & calibration and not train_ & test and not calibration & test and len(test) == 40
        none = np.zeros((1, plain.model.config.hidden_size))
        acts, labels = plain.run(suite["train"], none)[0], np.asarray(suite["train"].labels())
        direction = _difference(acts, labels)
        middle = direction @ (acts[labels].mean(axis=0) + acts[~labels].mean(axis=0)) / 2
        for quiet in (suites.quiet, suites.benign):
            assert (plain.run(quiet, none)[0] @ direction < middle).mean() >= 0.95
