"""Experiments on a tiny model with an attention sink, and the same by plain hooks."""

import random

import torch

import mi_audit as mi
from mi_audit.causal.laboratory import Laboratory
from mi_audit.detectors.bench import Bench
from mi_audit.model.load import load
from mi_audit.plan.steering import ablate_spec, steer_spec
from mi_audit.suites.suite import suite
from tests.unit.plain_steering import heard, logits, save_with_sink

ALPHA, DRAWS, LAYER, STRENGTHS = 0.025, 39, 1, (-2.0, 1.5)
EFFECTS = mi.effects
CLOSE = {"rtol": 2e-4, "atol": 2e-5}


def made(name, n, *, groups=1, longest=20, **fields):
    draw = random.Random(name)
    rows = []
    for row in range(n):
        text = "".join(draw.choices("abcdefgh ", k=draw.randint(9, longest))) + ("yes" if row % 2 else "no")
        own = {key: value[row % len(value)] for key, value in fields.items()}
        rows.append({"id": f"{name}{row}", "text": text, "group": f"{name}{row // groups}", **own})
    return suite(rows, name=name)


FIT = suite(
    [{"id": each.id, "text": each.text, "group": each.group, "label": number % 2 == 1} for number, each in enumerate(made("fit", 24, groups=2))], name="fit"
)
ASKED = made("asked", 5, right=("ye", "ok"), wrong=("no", "up"), other=("xi", " m"))
NEUTRAL = made("neutral", 6, groups=2, longest=150, answer=("yes", " a"), other=("no", "bcd"))
PROBE = mi.probe("probe", method="difference_of_means", at=mi.at("resid_post", layer=LAYER), fit=FIT)
SHARP = mi.probe("sharp", method="mass_mean", at=mi.at("resid_post", layer=LAYER), fit=FIT)


def opened(folder):
    """The model on which they are made."""
    return load(str(save_with_sink(folder)), device="cpu", progress=False)


def laboratory(model, cache=None, seed=3):
    return Laboratory(Bench(model, alpha=ALPHA, seed=seed, cache=cache), model, alpha=ALPHA, seed=seed)


def steer(detector=PROBE, effect=None, strengths=STRENGTHS, on=ASKED, **options):
    effect = EFFECTS.logit_difference("a", "b") if effect is None else effect
    return steer_spec(detector, on, effect, strengths, **{"unit": None, "tokens": "generated", "profile": (), "controls": False, **options})


def ablate(detector=PROBE, everywhere=None, tokens="all", controls=False, effect=None):
    effect = EFFECTS.logit_difference("a", "b") if effect is None else effect
    return ablate_spec(detector, ASKED, effect, everywhere=everywhere, tokens=tokens, controls=controls)


def ids_of(model, text):
    return tuple(model.tokenizer(text).input_ids)


def token(model, text):
    return model.tokenizer(text, add_special_tokens=False).input_ids[0]


def block(model, layer=LAYER):
    return [model.hf.model.layers[layer]]


def classes(model):
    """Positives and negatives of the fit suite [n, width] each, as plain hooks read them."""
    acts = torch.stack([heard(model.hf, ids_of(model, each.text), LAYER)[-1] for each in FIT]).double()
    labels = torch.tensor([each.label for each in FIT])
    return acts[labels], acts[~labels]


def vector(model):
    positive, negative = classes(model)
    return (positive.mean(dim=0) - negative.mean(dim=0)).float()


def touched_of(ids, tokens):
    """Without the sink, which is the first."""
    return {"generated": [len(ids) - 1], "prompt": list(range(1, len(ids))), "all": list(range(1, len(ids)))}[tokens]


def adding(vector, strength):
    return None if strength is None else lambda acts: acts + strength * vector


def after(model, text, tokens, modules, change, answer=()):
    """The logits [K, vocabulary] that predict the answer's tokens, or what comes first."""
    ids = ids_of(model, text)
    touched = [*touched_of(ids, tokens), *(range(len(ids), len(ids) + len(answer) - 1) if tokens != "prompt" else ())]
    return logits(model.hf, (*ids, *answer), modules, touched, change)[len(ids) - 1 : len(ids) - 1 + max(1, len(answer))]


def likelihood(model, prompt, name, *rest):
    answer = tuple(model.tokenizer(prompt.field(name), add_special_tokens=False).input_ids)
    found = after(model, prompt.text, *rest, answer=answer).double().log_softmax(dim=-1)
    return sum(float(found[place, one]) for place, one in enumerate(answer))


def seventh(logits, prompt):
    return logits[:, 7] * len(prompt.text)


def letters(text, prompt):
    return sum(map(ord, text)) / len(prompt.text)


READER = mi.probe("reader", method="difference_of_means", at=mi.at("resid_post", layer=2), fit=FIT)
KINDS = {
    "logit_difference": EFFECTS.logit_difference(("a", "b", "ab"), "c"),
    "probability": EFFECTS.probability("a", "bc"),
    "log_odds": EFFECTS.log_odds("a", "bc"),
    "log_likelihood": EFFECTS.log_likelihood("right"),
    "choice": EFFECTS.choice("right", "wrong", "other"),
    "detector_score": EFFECTS.detector_score(READER),
    "function": EFFECTS.function(seventh),
    "refusal": EFFECTS.refusal(max_new_tokens=12),
    "of_text": EFFECTS.of_text(letters, max_new_tokens=12),
}
