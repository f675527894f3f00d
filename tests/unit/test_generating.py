"""Generated texts are those of transformers without interventions, and with them those of passes of the whole text anew for each token."""

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from mi_audit.engine.generating import generate
from mi_audit.engine.intervening import Intervening, Step
from mi_audit.engine.interventions import Ablate, Add, ProjectOut, Scale
from mi_audit.engine.repetition import repetition
from mi_audit.engine.rows import Treatment
from mi_audit.engine.sampling import Sampling
from mi_audit.engine.tokens import encode
from mi_audit.errors import HookPointError, NotFiniteError, PromptError
from mi_audit.model.load import load
from mi_audit.plan.places import At
from mi_audit.sae_sources import sae
from mi_audit.saes.clamping import ClampLatent
from mi_audit.suites.prompt import Message, Prompt
from tests.agreement.tiny_models import save_tiny
from tests.unit.saes import save_sae
from tests.unit.test_interventions import hooks_in

AT = At("resid_post", layer=1)
STRENGTHS = torch.tensor([-2.0, 0.0, 2.0])
GREEDY = Sampling(12)
SAMPLED = Sampling(12, temperature=0.9, top_p=0.95, seed=3)


def drawn_prompts(lengths=(21, 9, 3, 22, 14, 1), seed=5):
    draw = np.random.default_rng(seed)
    return [(1, *(int(token) for token in draw.integers(5, 261, length - 1))) for length in lengths]


PROMPTS = drawn_prompts()
TOUCHED = {
    "none": [()] * len(PROMPTS),
    "last": [(len(ids) - 1,) for ids in PROMPTS],
    "all": [tuple(range(len(ids))) for ids in PROMPTS],
    "later": [tuple(range(min(12, len(ids) - 1), len(ids), 2)) for ids in PROMPTS],
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    loaded = {}

    def of(architecture):
        if architecture not in loaded:
            loaded[architecture] = load(str(save_tiny(tmp_path_factory.mktemp("generating") / architecture, architecture)), device="cpu", progress=False)
        return loaded[architecture]

    return of


def vector_of(model):
    return torch.randn(model.d_model, generator=torch.Generator().manual_seed(0))


def added(model, strengths=STRENGTHS):
    vector = vector_of(model)
    return lambda variants: [Treatment(AT, Add(vector, strengths[variants]))]


def generated(model, prompts=PROMPTS, touched=None, variants=3, interventions=None, places=(AT,), sampling=GREEDY, *, on_generated=True, **options):
    touched = [(len(ids) - 1,) for ids in prompts] if touched is None else touched
    interventions = added(model) if interventions is None else interventions
    return generate(model, prompts, touched, variants, interventions, places, sampling, on_generated=on_generated, **options)


@torch.inference_mode()
def theirs(model, ids, tokens):
    """transformers' own greedy continuation of one prompt."""
    found = model.hf.generate(torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long), do_sample=False, max_new_tokens=tokens)
    text = found[0, len(ids) :].tolist()
    return tuple(text[:-1] if text and text[-1] == model.hf.generation_config.eos_token_id else text)


@torch.inference_mode()
def anew(model, ids, touched, intervention, *, on_generated, variant=0, sampling=GREEDY):
    """The whole text passed alone and anew for each token, without keys and values that are kept."""
    text, stream = [], sampling.stream(ids, variant)
    with Intervening(model, [AT]) as intervening:
        while len(text) < sampling.max_new_tokens:
            mask = torch.tensor([[position in touched for position in range(len(ids))] + [on_generated] * len(text)])
            with intervening.applying([Step(AT, mask, intervention)]):
                logits = model.hf(torch.tensor([[*ids, *text]]), use_cache=False).logits[0, -1].double().numpy()
            token = int(logits.argmax()) if sampling.greedy else sampling.draw(logits, stream.random())
            if token == 2:
                break
            text.append(token)
    return tuple(text)


@pytest.mark.parametrize("architecture", ["llama", "mistral", "gemma2", "gemma3", "gpt2", "gpt_neox", "opt", "bloom", "falcon"])
def test_without_interventions_it_is_the_greedy_text_of_transformers(models, architecture):
    model = models(architecture)
    (found,) = generated(model, touched=TOUCHED["none"], variants=1, interventions=lambda variants: [], on_generated=False, sampling=Sampling(24))
    assert found == [theirs(model, ids, 24) for ids in PROMPTS]
    assert len(set(found)) > 3


@pytest.mark.parametrize("on_generated", [True, False])
@pytest.mark.parametrize("where", TOUCHED)
@pytest.mark.parametrize("architecture", ["llama", "gemma3", "gpt2", "gpt_neox"])
def test_with_interventions_it_is_the_text_of_passes_of_all_anew(models, architecture, where, on_generated):
    model = models(architecture)
    found = generated(model, touched=TOUCHED[where], sampling=SAMPLED, on_generated=on_generated)
    for variant, strength in enumerate(STRENGTHS.tolist()):
        options = {"on_generated": on_generated, "variant": variant, "sampling": SAMPLED}
        added = Add(vector_of(model), strength)
        assert found[variant] == [anew(model, ids, touched, added, **options) for ids, touched in zip(PROMPTS, TOUCHED[where], strict=True)]
    if architecture == "llama":
        greedy = generated(model, touched=TOUCHED[where], on_generated=on_generated)
        assert (greedy[0] != greedy[1] and greedy[2] != greedy[1]) == (where != "none" or on_generated)
        assert greedy[1] == [theirs(model, ids, 12) for ids in PROMPTS]


def test_any_intervention_may_differ_by_row(models, tmp_path):
    model = models("llama")
    lens = sae(save_sae(tmp_path / "sae", model.d_model, 40, metadata={"hook_name": "blocks.1.hook_resid_post"}))
    directions = torch.randn(3, 1, model.d_model, generator=torch.Generator().manual_seed(1))
    mean, vector, values = directions[0, 0], vector_of(model), torch.tensor([[3.0, 0], [0, 4], [9, 1]])
    alone = {
        0: Scale(torch.tensor(0.2)),
        1: Ablate(mean),
        2: ProjectOut(directions[1]),
        3: ProjectOut(directions[2]),
        4: ClampLatent(lens, (3, 11), values[0]),
        5: ClampLatent(lens, (3, 11), values[2]),
        6: Add(vector, 1.5, "norm"),
        7: Add(vector, 0.0),
    }

    def interventions(variants):
        rows = {variant: variants == variant for variant in range(8)}
        return [
            Treatment(AT, Scale(torch.where(variants == 0, 0.2, 1.0))),
            Treatment(AT, Ablate(mean), rows[1]),
            *(Treatment(AT, alone[variant], rows[variant]) for variant in (2, 3)),
            Treatment(AT, ClampLatent(lens, (3, 11), values[torch.where(variants == 5, 2, 0)]), rows[4] | rows[5]),
            Treatment(AT, Add(vector, torch.where(variants == 6, 1.5, 0.0), "norm")),
        ]

    found = generated(model, touched=TOUCHED["all"], variants=8, interventions=interventions)
    for variant, intervention in alone.items():
        assert found[variant] == [anew(model, ids, range(len(ids)), intervention, on_generated=True) for ids in PROMPTS]
    assert len({tuple(texts) for texts in found}) == 8


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_a_text_depends_on_nothing_that_is_generated_beside_it(models, monkeypatch, sampling):
    model = models("llama")
    together = generated(model, sampling=sampling)
    assert together == generated(model, sampling=sampling, budget=1)
    assert together == generated(model, sampling=sampling, budget=100)
    back = generated(model, PROMPTS[::-1], variants=2, interventions=added(model, STRENGTHS[1:]), sampling=sampling)
    if sampling.greedy:
        assert back == [texts[::-1] for texts in together[1:]]
    else:
        assert back != [texts[::-1] for texts in together[1:]], "each variant has its own random numbers"
        assert generated(model, PROMPTS[2:4], sampling=sampling) == [texts[2:4] for texts in together]
        assert together != generated(model, sampling=Sampling(12, temperature=0.9, top_p=0.95, seed=4))

    forward, failed = model.hf.forward, []

    def short_of_memory(**called):
        if len(called["input_ids"]) > 2:
            failed.append(len(called["input_ids"]))
            raise torch.OutOfMemoryError
        return forward(**called)

    short_of_memory.__signature__ = __import__("inspect").signature(forward)
    monkeypatch.setattr(model.hf, "forward", short_of_memory)
    assert generated(model, sampling=sampling) == together
    assert failed


def test_sampled_texts_are_drawn_from_the_softmax(models):
    model = models("llama")
    ids, n = PROMPTS[1], 1500
    sampling = Sampling(1, temperature=0.8, seed=1)
    texts = generated(model, [ids], [()], n, lambda variants: [], sampling=sampling, on_generated=False)
    counts = np.bincount([text[0] if text else 2 for (text,) in texts], minlength=261)
    with torch.inference_mode():
        expected = n * (model.hf(torch.tensor([ids])).logits[0, -1].double() / 0.8).softmax(dim=-1).numpy()
    rare = expected < 5
    observed, wanted = [*counts[~rare], counts[rare].sum()], [*expected[~rare], expected[rare].sum()]
    assert len(observed) > 50 and rare.any()
    assert chisquare(observed, wanted).pvalue > 1e-3


@pytest.mark.parametrize("likely", [1e-4, 0.2, 1.0])
def test_the_nucleus_is_the_fewest_tokens_that_reach_its_share(monkeypatch, likely):
    monkeypatch.setattr("mi_audit.engine.sampling.LIKELY", likely)  # what is sorted first makes no difference
    logits = np.log([0.05, 0.3, 0.15, 0.3, 0.2])
    numbers = np.linspace(0, 1, 1000, endpoint=False)
    for top_p, kept in ((0.2, {1: 1}), (0.31, {1: 0.5, 3: 0.5}), (0.79, {1: 3 / 8, 3: 3 / 8, 4: 2 / 8}), (1.0, {0: 0.05, 1: 0.3, 2: 0.15, 3: 0.3, 4: 0.2})):
        drawn = np.bincount([Sampling(temperature=1.0, top_p=top_p).draw(logits, number) for number in numbers], minlength=5) / 1000
        assert drawn == pytest.approx([kept.get(token, 0) for token in range(5)], abs=2e-3)
    cold = [Sampling(temperature=0.5).draw(logits, number) for number in numbers]
    assert np.bincount(cold, minlength=5) / 1000 == pytest.approx(np.exp(2 * logits) / np.exp(2 * logits).sum(), abs=2e-3)


def test_equally_probable_tokens_the_smallest_id_first(models, monkeypatch):
    model = models("llama")
    forward = model.hf.forward

    def level(*args, **called):
        output = forward(*args, **called)
        output.logits = output.logits.clamp(max=output.logits.max(dim=-1, keepdim=True).values - 1.5)
        return output

    monkeypatch.setattr(model.hf, "forward", level)
    with torch.inference_mode():
        logits = model.hf(torch.tensor([PROMPTS[0]])).logits[0, -1]
    best = (logits == logits.max()).nonzero()[:, 0].tolist()
    assert len(best) > 1
    (((token,),),) = generated(model, PROMPTS[:1], variants=1, interventions=lambda variants: [], sampling=Sampling(1))
    assert token == best[0]


def test_texts_end_at_any_of_the_models_end_tokens(models, monkeypatch):
    model = models("llama")
    whole = generated(model, sampling=SAMPLED)
    ends = [whole[0][0][4], whole[2][1][7]]
    monkeypatch.setattr(model.hf.generation_config, "eos_token_id", ends)
    cut = [[text[: min([text.index(end) for end in ends if end in text], default=12)] for text in texts] for texts in whole]
    assert len({len(text) for texts in cut for text in texts}) > 3, "rows leave the batch one after another"
    assert generated(model, sampling=SAMPLED) == cut
    monkeypatch.setattr(model.hf.generation_config, "eos_token_id", ends[0])
    assert generated(model, sampling=SAMPLED)[0][0] == whole[0][0][: whole[0][0].index(ends[0])]
    monkeypatch.setattr(model.hf.generation_config, "eos_token_id", None)
    assert {len(text) for texts in generated(model, sampling=SAMPLED) for text in texts} == {12}


def test_what_can_not_be_generated_is_told_and_no_hook_is_left(models):
    model = models("llama")
    before = hooks_in(model)
    huge = torch.tensor([0.0, 3e38, 0.0])
    with pytest.raises(NotFiniteError, match="variant 1") as caught:
        generated(model, interventions=lambda variants: [Treatment(AT, Add(10 * vector_of(model), huge[variants]))])
    assert caught.value.variant == 1
    with pytest.raises(HookPointError, match="made for 31"):
        generated(model, interventions=lambda variants: [Treatment(AT, Add(torch.ones(31), 1.0))])
    with pytest.raises(PromptError, match="prompt 0 has 505 tokens, with 12 new ones more than the 512"):
        generated(model, drawn_prompts([505]))
    with pytest.raises(PromptError, match="prompt 1 has no tokens"):
        generated(model, [PROMPTS[0], ()], touched=[(), ()])
    with pytest.raises(ValueError, match="position 21 is to be touched in prompt 0"):
        generated(model, PROMPTS[:1], touched=[(21,)])

    class Interrupting(Add):
        def __call__(self, acts_RLD):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generated(model, interventions=lambda variants: [Treatment(AT, Interrupting(vector_of(model), 1.0))])
    assert hooks_in(model) == before


@pytest.mark.parametrize("wrong", [{"max_new_tokens": 0}, {"temperature": -1.0}, {"temperature": float("nan")}, {"top_p": 0.0}, {"top_p": 1.1}, {"seed": -1}])
def test_sampling_is_checked(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Sampling(**wrong)


def test_each_text_has_random_numbers_of_its_own():
    streams = [Sampling(seed=seed).stream(ids, variant) for seed in (0, 1) for ids in ((1, 2), (1, 3), (2, 1), (1, 2, 0)) for variant in (0, 1)]
    assert len({stream.random() for stream in streams}) == len(streams)
    assert Sampling(seed=1).stream((1, 2), 1).random() == Sampling(seed=1).stream((1, 2), 1).random()


def test_progress_hears_of_every_text(models):
    heard = []

    class Hearing:
        def start(self, prompts, tokens):
            heard.append((prompts, tokens))

        def advance(self, prompts, tokens):
            heard.append((prompts, tokens))

        def close(self):
            heard.append("closed")

    texts = generated(models("llama"), budget=200, progress=Hearing())
    passed = sum(len(ids) + len(text) for texts_of in texts for ids, text in zip(PROMPTS, texts_of, strict=True))
    assert heard[0] == (18, 3 * sum(len(ids) + 12 for ids in PROMPTS)) and heard[-1] == "closed"
    assert len(heard) > 4 and [sum(each) for each in zip(*heard[1:-1], strict=True)] == [18, passed]


def test_repetition_is_the_share_of_runs_of_four_that_were_there_before():
    assert repetition([1, 2, 3]) == repetition([]) == repetition(list(range(20))) == 0
    assert repetition([7] * 10) == pytest.approx(6 / 7)
    assert repetition([1, 2, 3, 4, 1, 2, 3, 4]) == pytest.approx(1 / 5)


@pytest.mark.real_model
def test_greedy_texts_of_a_real_model(default_model):
    asked = ("What is the capital of France?", "Write one line about the sea, please, and make it rhyme with a word that you choose.", "Hi")
    prompts = [encode(default_model.tokenizer, Prompt(str(n), messages=(Message("user", text),))).ids for n, text in enumerate(asked)]
    (found,) = generated(default_model, prompts, variants=1, interventions=lambda variants: [], sampling=Sampling(16))
    assert found == [theirs(default_model, ids, 16) for ids in prompts]
