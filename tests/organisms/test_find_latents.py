"""The latents that are known to stand for a concept are found, and nothing is found where labels mean nothing."""

import numpy as np
import pytest

import mi_audit as mi
from mi_audit.detectors.discovery import confirm, discover
from mi_audit.engine.capture import capture
from mi_audit.engine.site import Site
from mi_audit.model.load import load
from mi_audit.plan.places import Tokens
from mi_audit.saes.every_latent import EveryLatent
from tests.organisms.concepts import CONCEPTS, known_sae, texts, train


@pytest.fixture(scope="module")
def organism(tmp_path_factory):
    folder = tmp_path_factory.mktemp("concepts")
    model, accuracy = train(folder / "model")
    assert accuracy >= 0.99, "the organism must have learned what it is planted with"
    return folder / "model", mi.sae(known_sae(model, folder / "sae"))


def about(concept):
    rows = [{"id": f"{number}", "text": text.text, "label": concept in text.concepts, "group": text.text} for number, text in enumerate(texts(600, seed=5))]
    return mi.suite(rows, name=CONCEPTS[concept])


def test_planted_latents_are_found_and_no_others(organism, monkeypatch, tmp_path):
    monkeypatch.setenv("MI_AUDIT_CACHE", str(tmp_path))
    model, sae = organism
    found = {concept: mi.find_latents(sae, about(concept), model=str(model)) for concept in range(0, len(CONCEPTS), 4)}
    assert not any(each.evidence for each in found.values()), "latents that see a few directions do not stand for the activations"
    evidence = {concept: [one.latent for one in each.latents if set(one.weak) == set(each.quality.below)] for concept, each in found.items()}
    right = sum(concept in each for concept, each in evidence.items())
    assert right / len(found) >= 0.95, f"recall: {evidence}"
    assert right / sum(map(len, evidence.values())) >= 0.95, f"precision: {evidence}"
    assert all(each.group is None or concept in each.group.latents for concept, each in found.items()), "a group holds the planted latent"
    best = found[0].latents[0]
    assert best.auroc >= 0.99 and best.random_p <= 0.025 and best.over_random_sae.low > 0


def test_nothing_is_found_on_shuffled_labels(organism):
    model, sae = organism
    suite, site = about(0), Site(sae.at, Tokens("last"), EveryLatent(sae, "mean"))
    values = capture(load(str(model), progress=False), suite.prompts, [site]).vectors(site).astype(np.float64)
    groups, half = np.asarray(suite.groups()), np.arange(len(suite)) % 2 == 0
    nothing = 0
    for seed in range(100):
        random = np.random.default_rng(seed)
        labels = random.permutation(np.asarray(suite.labels()))
        columns = discover(values[half], labels[half], tuple(groups[half]), rate=0.05, random=random).columns
        nothing += not len(columns) or not confirm(values[~half][:, columns], labels[~half], tuple(groups[~half]), alpha=0.025, random=random).confirmed.any()
    assert nothing >= 95
