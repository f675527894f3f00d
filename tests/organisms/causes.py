"""A model in which a known direction causes a known output, and a second one, as easy to read, causes nothing.

Text: a letter that stands early (the cause, `a`-`h` negative, `i`-`p` positive), seven letters that say other things among digits, a letter that
stands late (the decoration, `A`-`H` negative, `I`-`P` positive), a semicolon, where the model answers `POSITIVE` or `NEGATIVE` by the class of the
first letter alone. Heads that are used in training only, and not saved, read the classes of all nine letters off the residual stream after block
`LAYER` at the semicolon, where the differences of their class means are trained to be equally long, and at right angles. What the model makes of them
is planted too: with α times such a difference added there, the answers' logits differ by `GAP` × α more for the cause, and by nothing more for the
other eight. The others are there so that directions fitted on shuffled labels have somewhere to point. Benign texts hold neither letter of interest;
they read, and are answered, as negative.

    accuracy = train(folder)                         # a local model folder; about 10 s of one core
    suites = suites_for(seed)                        # 0.05 s; other seeds draw other texts
    suites.cause["train"], suites.cause["test"]      # labelled by the cause; every split is balanced over the four pairs of classes
    suites.decoration                                # the same texts in the same splits, labelled by the decoration
    suites.quiet, suites.benign                      # nothing positive in them: texts like the others, and of another form; no labels
    mi.at("resid_post", layer=LAYER), tokens "last"  # where to read and to steer

A group is one choice of the nine letters; its texts differ in digits and order, and every group is in one split.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import mi_audit as mi
from mi_audit.suites.suite import Suite
from tests.agreement.tiny_models import SPECIAL, tiny_tokenizer

CAUSE, DECORATION = ("abcdefgh", "ijklmnop"), ("ABCDEFGH", "IJKLMNOP")
OTHERS = (("q", "r"), ("s", "t"), ("u", "v"), ("w", "x"), ("y", "z"), ("Q", "R"), ("S", "T"))
DIGITS = "0123456789"
LENGTH = 14
"""Characters of a text, the semicolon included."""
LAYER, LAYERS = 1, 4
POSITIVE, NEGATIVE = "+", "-"
GAP = 6.0
"""How much logit(`POSITIVE`) − logit(`NEGATIVE`) differs between the classes of the cause."""

APART = 4.0
"""Of the difference of class means of every letter, so that none stands out."""

PLANTED, BENIGN = 64, 16
"""Texts of a training step."""

_SPLITS = {"train": 20, "calibration": 10, "test": 10}
"""Groups of each pair of classes."""
_PER_GROUP = 2


@dataclass(frozen=True)
class Text:
    """One example; it ends with the semicolon, where the model answers. `classes` are the cause's, the decoration's and the others'."""

    text: str
    group: str
    classes: tuple[bool, ...]


@dataclass(frozen=True)
class Suites:
    """`cause` and `decoration` hold the same texts under two labels, positive true; `quiet` and `benign` hold neither class, and no labels."""

    cause: Suite
    decoration: Suite
    quiet: Suite
    benign: Suite


def texts(n: int, seed: int, *, per_group: int = 1) -> list[Text]:
    """`n` groups of `per_group` texts, in turn of the four pairs of classes of cause and decoration; the other letters are drawn."""
    random, groups = np.random.default_rng(seed), dict[str, list[Text]]()
    while len(groups) < n:
        made = _group(random, bool(len(groups) % 2), bool(len(groups) // 2 % 2), per_group)
        groups.setdefault(made[0].group, made)
    return [text for made in groups.values() for text in made]


def benign(n: int, seed: int) -> list[Text]:
    """`n` texts of another form, a group each, as long as the others: digits, other letters and spaces."""
    random = np.random.default_rng(seed)
    others = [letter for pair in OTHERS for letter in pair]
    made = ("".join(random.choice([*DIGITS, *others, " "], LENGTH - 1)) + ";" for _ in range(n))
    return [Text(text, text, (False,) * (2 + len(OTHERS))) for text in made]


def suites_for(seed: int) -> Suites:
    """160 groups of two texts, half of them to train, a quarter to test; 40 groups of two quiet texts; 120 benign ones."""
    drawn = 4 * sum(_SPLITS.values())
    splits = [split for split, rounds in _SPLITS.items() for _ in range(4 * rounds * _PER_GROUP)]
    made = texts(drawn, seed + 1_000_003, per_group=_PER_GROUP)
    both = [
        mi.suite(
            [_row(number, text) | {"label": text.classes[what], "split": split} for number, (text, split) in enumerate(zip(made, splits, strict=True))],
            name=name,
        )
        for what, name in enumerate(("cause", "decoration"))
    ]
    random = np.random.default_rng(seed + 2_000_003)
    quiet = [text for _ in range(40) for text in _group(random, False, False, _PER_GROUP)]
    return Suites(*both, *(_unlabelled(made, name) for made, name in ((quiet, "quiet"), (benign(120, seed + 3_000_003), "benign"))))


def train(folder: Path, *, seed: int = 0, steps: int = 350) -> float:
    """Train, save as a local model folder; the share of fresh texts whose likeliest answer is right."""
    tokenizer = tiny_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=len(SPECIAL) + 256, hidden_size=32, intermediate_size=64, num_hidden_layers=LAYERS, num_attention_heads=4, max_position_embeddings=64,
            pad_token_id=0, bos_token_id=1, eos_token_id=2, initializer_range=0.1,
        )  # fmt: skip
        model = LlamaForCausalLM(config)
        heads = torch.nn.Linear(config.hidden_size, 2 + len(OTHERS))
        optimiser = torch.optim.AdamW([*model.parameters(), *heads.parameters()], lr=6e-3)
        schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.05, steps)
        steering = _Steering(2 + len(OTHERS), config.hidden_size)
        handle = model.model.layers[LAYER].register_forward_hook(steering)
        pools = [(_ids(tokenizer, pool), torch.tensor([text.classes for text in pool]).float()) for pool in (texts(3000, seed), benign(1000, seed))]
        positive, negative = _answers(tokenizer)
        for _ in range(steps):
            picks = [(pool, torch.randint(len(pool[0]), (size,))) for pool, size in zip(pools, (PLANTED, BENIGN), strict=True)]
            ids, classes = (torch.cat([pool[part][pick] for pool, pick in picks]) for part in (0, 1))
            steering.draw(classes)
            logits = model(ids).logits[:, -1]
            wanted = GAP * (classes[:, 0] - 0.5 + steering.strengths[:, 0])
            apart = (logits[:, positive] - logits[:, negative] - wanted).square().mean()
            elsewhere = logits.logsumexp(-1).mean() - logits[:, [positive, negative]].logsumexp(-1).mean()
            told = torch.nn.functional.binary_cross_entropy_with_logits(heads(steering.heard), classes, reduction="none")
            held = told[:, :2].mean() + 2 * told[:PLANTED, 2:].mean()
            alike = (steering.fitted @ steering.fitted.T / APART**2 - torch.eye(len(steering.fitted))).square().mean() * 2
            sides = (steering.heard[PLANTED:] - steering.middle) @ steering.fitted[:2].T / APART**2
            quiet = (sides + 0.6).relu().square().mean()
            optimiser.zero_grad()
            (0.3 * apart + elsewhere + held + alike + 3 * quiet).backward()
            optimiser.step()
            schedule.step()
        handle.remove()
        fresh = texts(400, seed + 1) + benign(100, seed + 1)
        answers = torch.tensor([positive if text.classes[0] else negative for text in fresh])
        with torch.no_grad():
            accuracy = (model.eval()(_ids(tokenizer, fresh)).logits[:, -1].argmax(-1) == answers).float().mean().item()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return accuracy


class _Steering:
    """A forward hook that hears the residual stream at the semicolon, and adds drawn multiples of every letter's direction there, as far as they are known.

    `heard` [n, d], `fitted` [kinds, d] (least squares' answer to what each letter's class adds) and `strengths` [n, kinds] are of the last pass alone.
    """

    def __init__(self, kinds: int, width: int) -> None:
        self.directions = torch.zeros(kinds, width)
        self.heard = self.fitted = self.middle = self.strengths = self.known = torch.empty(0)

    def draw(self, classes: torch.Tensor) -> None:
        """Strengths from -2 to 2 for the next pass, half of them 0; the directions are those of the planted rows, averaged over passes."""
        self.known = torch.cat([classes[:PLANTED], torch.ones(PLANTED, 1)], dim=1)
        self.strengths = (4 * torch.rand(classes.shape) - 2) * (torch.rand(classes.shape) < 0.5)

    def __call__(self, module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        self.heard = output[:, -1]
        *fitted, negative = torch.linalg.pinv(self.known) @ self.heard[:PLANTED]
        self.fitted = torch.stack(fitted)
        self.middle = negative + self.fitted.sum(dim=0) / 2
        self.directions = 0.9 * self.directions + 0.1 * self.fitted.detach()
        return torch.cat([output[:, :-1], (self.heard + self.strengths @ self.directions)[:, None]], dim=1)


def _group(random: np.random.Generator, cause: bool, decoration: bool, texts: int) -> list[Text]:
    early, late = str(random.choice(list(CAUSE[cause]))), str(random.choice(list(DECORATION[decoration])))
    classes = [bool(side) for side in random.integers(2, size=len(OTHERS))]
    others = [pair[side] for pair, side in zip(OTHERS, classes, strict=True)]
    made = []
    for _ in range(texts):
        between = [str(one) for one in random.permutation([*others, *random.choice(list(DIGITS), LENGTH - 3 - len(OTHERS))])]
        between.insert(random.integers(3), early)
        between.insert(len(between) - random.integers(3), late)
        made.append(Text("".join(between) + ";", early + late + "".join(others), (cause, decoration, *classes)))
    return made


def _row(number: int, text: Text) -> dict[str, str | bool]:
    return {"id": f"{number}", "text": text.text, "group": text.group}


def _unlabelled(made: list[Text], name: str) -> Suite:
    return mi.suite([_row(number, text) for number, text in enumerate(made)], name=name)


def _answers(tokenizer) -> tuple[int, int]:
    positive, negative = (tokenizer(answer, add_special_tokens=False).input_ids[0] for answer in (POSITIVE, NEGATIVE))
    return positive, negative


def _ids(tokenizer, made: list[Text]) -> torch.Tensor:
    return torch.tensor(tokenizer([text.text for text in made]).input_ids)
