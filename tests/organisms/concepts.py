"""A model that knows one of twelve topics, and an SAE whose latents for them are known.

Text: a letter that gives the topic, random letters, a semicolon, then the topic's answer. The model is trained to give the answer at the semicolon, so the topic
of the first letter is in its activations there. Of the SAE's latents there, twelve are fitted to the topics; the others see none of what tells topics apart.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from mi_audit.plan.saes import CONFIG, WEIGHTS
from tests.agreement.tiny_models import SPECIAL, tiny_tokenizer

TOPICS = ("ab", "cd", "ef", "gh", "ij", "kl", "mn", "op", "qr", "st", "uv", "wx")
ANSWERS = "ABCDEFGHIJKL"
FILLER = "12345678"
LENGTH = 8
WIDTH = 64
"""Latents of the SAE."""
LAYER = 1


@dataclass(frozen=True)
class Text:
    """One example; `prefix` ends with the semicolon, where the model is read."""

    prefix: str
    topic: int


def texts(n: int, seed: int) -> list[Text]:
    random = np.random.default_rng(seed)
    made = []
    for _ in range(n):
        topic = int(random.integers(len(TOPICS)))
        made.append(Text(random.choice(list(TOPICS[topic])) + "".join(random.choice(list(FILLER), LENGTH)) + ";", topic))
    return made


def train(folder: Path, *, seed: int = 0, steps: int = 600) -> tuple[LlamaForCausalLM, float]:
    """Train, save as a local model folder; the model, and the accuracy of its answer on fresh texts."""
    tokenizer = tiny_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=len(SPECIAL) + 256, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=64,
            pad_token_id=0, bos_token_id=1, eos_token_id=2,
        )  # fmt: skip
        model = LlamaForCausalLM(config)
        optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
        for step in range(steps):
            ids, answers = _ids(tokenizer, texts(64, seed * 100_003 + step))
            loss = torch.nn.functional.cross_entropy(model(ids).logits[:, -1], answers)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        ids, answers = _ids(tokenizer, texts(500, seed * 100_003 + steps))
        with torch.no_grad():
            accuracy = (model.eval()(ids).logits[:, -1].argmax(-1) == answers).float().mean().item()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model, accuracy


def known_sae(model: LlamaForCausalLM, folder: Path, *, seed: int = 1) -> Path:
    """A ReLU SAE at the end of layer `LAYER`: latent t is least squares' answer to whether the topic is t, less one half; the others look where topics do not."""
    made = texts(2000, seed)
    ids, _ = _ids(tiny_tokenizer(), made)
    heard: list[torch.Tensor] = []
    handle = model.model.layers[LAYER].register_forward_hook(lambda *args: heard.append(args[2]))
    with torch.no_grad():
        model(ids)
    handle.remove()
    acts = heard[0][:, -1].double()
    topics = torch.tensor([text.topic for text in made])
    is_topic = torch.nn.functional.one_hot(topics, len(TOPICS)).double()
    fitted = torch.linalg.lstsq(torch.cat([acts, torch.ones(len(acts), 1)], dim=1), is_topic).solution
    means = torch.stack([acts[topics == topic].mean(dim=0) for topic in range(len(TOPICS))])
    axes = torch.linalg.svd(means - means.mean(dim=0)).Vh[: len(TOPICS) - 1]
    draw = torch.Generator().manual_seed(seed)
    blind = torch.randn(acts.shape[1], WIDTH - len(TOPICS), generator=draw, dtype=torch.float64)
    blind -= axes.T @ (axes @ blind)
    projected = acts @ blind
    columns, biases = torch.cat([fitted[:-1], blind], dim=1), torch.cat([fitted[-1] - 0.5, -projected.quantile(0.7, dim=0)])
    decoder = columns.T / columns.T.norm(dim=1, keepdim=True)
    tensors = {"W_enc": columns, "b_enc": biases, "W_dec": decoder, "b_dec": torch.zeros(acts.shape[1])}
    folder.mkdir()
    save_file({name: tensor.float().contiguous() for name, tensor in tensors.items()}, folder / WEIGHTS)
    config = {"architecture": "standard", "d_in": acts.shape[1], "d_sae": WIDTH, "apply_b_dec_to_input": False, "normalize_activations": "none"}
    (folder / CONFIG).write_text(json.dumps({**config, "metadata": {"sae_lens_version": "6.54.12", "hook_name": f"blocks.{LAYER}.hook_resid_post"}}))
    return folder


def _ids(tokenizer, made: list[Text]) -> tuple[torch.Tensor, torch.Tensor]:
    answers = torch.tensor([tokenizer(ANSWERS[text.topic], add_special_tokens=False).input_ids[0] for text in made])
    return torch.tensor(tokenizer([text.prefix for text in made]).input_ids), answers
