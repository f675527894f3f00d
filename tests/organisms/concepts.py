"""A model that knows four things of a text at once, six values each, and an SAE whose latents for these twenty-four concepts are known.

Text: four letters, one of each kind, random digits, a semicolon. The model is trained to give the answers of all four letters at the semicolon, each with a
probability of one quarter, so all four are in its activations there, one upon the other. Of the SAE's latents there, twenty-four are fitted to concepts; the
others see nothing of what tells concepts apart.
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

KINDS = ("abcdef", "ghijkl", "mnopqr", "stuvwx")
CONCEPTS = "".join(KINDS)
FILLER = "12345678"
LENGTH = 6
WIDTH = 64
"""Latents of the SAE."""
LAYER = 1


@dataclass(frozen=True)
class Text:
    """One example; `text` ends with the semicolon, where the model is read; `concepts` are numbers of letters in `CONCEPTS`."""

    text: str
    concepts: tuple[int, ...]


def texts(n: int, seed: int) -> list[Text]:
    random = np.random.default_rng(seed)
    made = []
    for _ in range(n):
        letters = [str(random.choice(list(kind))) for kind in KINDS]
        made.append(Text("".join(letters) + "".join(random.choice(list(FILLER), LENGTH)) + ";", tuple(map(CONCEPTS.index, letters))))
    return made


def train(folder: Path, *, seed: int = 0, steps: int = 500) -> tuple[LlamaForCausalLM, float]:
    """Train, save as a local model folder; the model, and the share of fresh texts whose likeliest answers are right."""
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
            loss = -model(ids).logits[:, -1].log_softmax(dim=-1).gather(1, answers).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        ids, answers = _ids(tokenizer, texts(500, seed * 100_003 + steps))
        with torch.no_grad():
            likeliest = model.eval()(ids).logits[:, -1].topk(len(KINDS), dim=-1).indices.sort(dim=-1).values
            right = (likeliest == answers.sort(dim=-1).values).all(dim=-1).float().mean().item()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model, right


def known_sae(model: LlamaForCausalLM, folder: Path, *, seed: int = 1) -> Path:
    """A ReLU SAE at the end of layer `LAYER`: latent c is least squares' answer to whether concept c holds, less one half; the others look elsewhere."""
    made = texts(3000, seed)
    ids, _ = _ids(tiny_tokenizer(), made)
    heard: list[torch.Tensor] = []
    handle = model.model.layers[LAYER].register_forward_hook(lambda *args: heard.append(args[2]))
    with torch.no_grad():
        model(ids)
    handle.remove()
    acts = heard[0][:, -1].double()
    holds = torch.zeros(len(made), len(CONCEPTS), dtype=torch.float64)
    holds.scatter_(1, torch.tensor([text.concepts for text in made]), 1.0)
    fitted = torch.linalg.lstsq(torch.cat([acts, torch.ones(len(acts), 1)], dim=1), holds).solution
    means = (holds.T @ acts) / holds.sum(dim=0)[:, None] - acts.mean(dim=0)
    axes = torch.linalg.svd(means).Vh[: len(CONCEPTS) - len(KINDS)]
    draw = torch.Generator().manual_seed(seed)
    blind = torch.randn(acts.shape[1], WIDTH - len(CONCEPTS), generator=draw, dtype=torch.float64)
    blind -= axes.T @ (axes @ blind)
    columns, biases = torch.cat([fitted[:-1], blind], dim=1), torch.cat([fitted[-1] - 0.5, -(acts @ blind).quantile(0.7, dim=0)])
    decoder = columns.T / columns.T.norm(dim=1, keepdim=True)
    tensors = {"W_enc": columns, "b_enc": biases, "W_dec": decoder, "b_dec": torch.zeros(acts.shape[1])}
    folder.mkdir()
    save_file({name: tensor.float().contiguous() for name, tensor in tensors.items()}, folder / WEIGHTS)
    config = {"architecture": "standard", "d_in": acts.shape[1], "d_sae": WIDTH, "apply_b_dec_to_input": False, "normalize_activations": "none"}
    (folder / CONFIG).write_text(json.dumps({**config, "metadata": {"sae_lens_version": "6.54.12", "hook_name": f"blocks.{LAYER}.hook_resid_post"}}))
    return folder


def _ids(tokenizer, made: list[Text]) -> tuple[torch.Tensor, torch.Tensor]:
    answers = [[tokenizer(CONCEPTS[concept].upper(), add_special_tokens=False).input_ids[0] for concept in text.concepts] for text in made]
    return torch.tensor(tokenizer([text.text for text in made]).input_ids), torch.tensor(answers)
