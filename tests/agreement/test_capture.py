"""Captures, taken through the batched path that audits use, against TransformerLens's bridge, which sees one prompt at a time."""

import pytest
import torch

from mi_audit.engine.capture import Site, capture
from mi_audit.engine.tokens import encode
from mi_audit.model.load import load
from mi_audit.plan.places import HOOK_POINTS, At, Tokens
from mi_audit.suites.prompt import Message, Prompt
from tests.agreement.bridge import TOLERANCE, activations, bridge_of, worst
from tests.agreement.tiny_models import save_tiny

SENTENCES = [
    "the cat sat on the old red mat and saw a big dog run to the sea",
    "I do not know who you are",
    "The city of Paris is in France, and Rome is in Italy.",
]
SHORT = ["the cat sat on it", "Rome!"]


def prefixes(model, sentences):
    """Every token of the sentences once as the last of a prompt: the sentence's ids, and a prompt per token that ends with it."""
    for sentence in sentences:
        ids = encode(model.tokenizer, Prompt("whole", text=sentence)).ids
        cuts = [end for start, end in encode(model.tokenizer, Prompt("whole", text=sentence)).offsets if end > start]
        prompts = [Prompt(f"{sentence[:8]}:{cut}", text=sentence[:cut]) for cut in cuts]
        assert [encode(model.tokenizer, prompt).ids for prompt in prompts] == [ids[: len(ids) - len(cuts) + number + 1] for number in range(len(cuts))]
        yield ids, prompts


def check_every_token(model, bridge, sentences, budget):
    places = [(tap.name, tap.layer) for tap in model.hook_points.taps]
    sites = {place: Site(At(place[0], layer=place[1]), Tokens("last")) for place in places}
    cases = list(prefixes(model, sentences))
    captures = capture(model, [prompt for _, prompts in cases for prompt in prompts], sites.values(), budget=budget)
    reference = [activations(bridge, ids, places) for ids, _ in cases]
    for place, site in sites.items():
        expected = torch.cat([one[place][-len(prompts) :] for one, (_, prompts) in zip(reference, cases, strict=True)])
        assert worst(torch.from_numpy(captures.vectors(site)), expected) <= TOLERANCE, site
    return places


def check_chats(model, bridge):
    turns = [
        (Message("system", "Be brief."), Message("user", "Is water wet?")),
        (Message("user", "Name the largest city of Japan, and say why you think so."),),
    ]
    chats = [Prompt(f"{number}{answer}", messages=messages, response=answer) for number, messages in enumerate(turns) for answer in (None, "Yes, it is Tokyo.")]
    places = [("resid_post", layer) for layer in range(model.n_layers)]
    captures = capture(model, chats, [Site(At(*place), Tokens("last")) for place in places])
    for number, chat in enumerate(chats):
        turns_given = [{"role": message.role, "content": message.content} for message in chat.messages]
        ids = list(model.tokenizer.apply_chat_template(turns_given, add_generation_prompt=True, return_dict=False))
        ids += model.tokenizer(chat.response, add_special_tokens=False)["input_ids"] if chat.response else []
        reference = activations(bridge, ids, places)
        for place in places:
            vector = captures.vectors(Site(At(*place), Tokens("last")))[number]
            assert worst(torch.from_numpy(vector)[None], reference[place][-1:]) <= TOLERANCE, (chat.id, place)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_neox", "qwen3", "mistral", "gemma2", "gemma3", "olmo2"])
def test_captures_agree_on_small_models(tmp_path, architecture):
    model = load(str(save_tiny(tmp_path, architecture)), progress=False)
    bridge = bridge_of(model)
    points = {point for point, _ in check_every_token(model, bridge, SHORT, budget=4096)}
    assert points == set(HOOK_POINTS) - {"gpt_neox": {"resid_mid"}, "olmo2": {"ln2.hook_normalized"}}.get(architecture, set())
    check_chats(model, bridge)


@pytest.mark.real_model
def test_captures_agree_on_the_default_model(default_model, default_bridge):
    check_every_token(default_model, default_bridge, SENTENCES, budget=256)
    check_chats(default_model, default_bridge)


@pytest.mark.real_model
def test_captures_agree_on_gemma(gemma, gemma_bridge):
    check_every_token(gemma, gemma_bridge, SENTENCES, budget=256)
