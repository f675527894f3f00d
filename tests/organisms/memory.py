"""A model that is known to remember one thing and can't know another.

Text: a kind letter, random letters, a semicolon, then the answer (the class of the kind letter), then a coin. The model is trained to give the answer
at the semicolon, so the class of the first letter is in its activations there. The coin comes after the semicolon and is drawn independently: a causal
model can't hold it.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.agreement.tiny_models import SPECIAL, tiny_tokenizer

FILLER = "ijklmnop"
KINDS = {"low": "abcd", "high": "efgh"}
ANSWERS = {"low": "L", "high": "H"}
LENGTH = 10


@dataclass(frozen=True)
class Text:
    """One example; `prefix` ends with the semicolon, where the model is read."""

    prefix: str
    text: str
    remembered: str
    coin: str


def texts(n: int, seed: int) -> list[Text]:
    random = np.random.default_rng(seed)
    made = []
    for _ in range(n):
        remembered, coin = str(random.choice(list(KINDS))), str(random.choice(["heads", "tails"]))
        prefix = random.choice(list(KINDS[remembered])) + "".join(random.choice(list(FILLER), LENGTH)) + ";"
        made.append(Text(prefix, prefix + ANSWERS[remembered] + {"heads": "1", "tails": "0"}[coin], remembered, coin))
    return made


def train(folder: Path, *, seed: int = 0, steps: int = 300) -> tuple[Path, float]:
    """Train, save as a local model folder; returns it with the accuracy of the answer on fresh texts."""
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
            ids = _ids(tokenizer, texts(64, seed * 100_003 + step))
            # only the answer is asked for: the position of the semicolon predicts it
            loss = torch.nn.functional.cross_entropy(model(ids).logits[:, LENGTH + 2], ids[:, LENGTH + 3])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        ids = _ids(tokenizer, texts(500, seed * 100_003 + steps))
        with torch.no_grad():
            accuracy = (model.eval()(ids).logits[:, LENGTH + 2].argmax(-1) == ids[:, LENGTH + 3]).float().mean().item()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder, accuracy


def _ids(tokenizer, made: list[Text]) -> torch.Tensor:
    return torch.tensor(tokenizer([text.text for text in made]).input_ids)
