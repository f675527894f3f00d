"""What an experiment does to a model besides its effect, at each of its strengths."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from torch import Tensor

from mi_audit.causal.arms import Instrument, generated
from mi_audit.causal.effect import OfLogits
from mi_audit.causal.effects import likelihood
from mi_audit.causal.rows import Rows
from mi_audit.causal.tasks import asked
from mi_audit.engine.cache import ActivationCache
from mi_audit.engine.encoding import encode_all
from mi_audit.engine.forward import read_alone
from mi_audit.engine.progress import Hearer, reporting
from mi_audit.engine.repetition import repetition
from mi_audit.engine.variants import Read, holding, read_variants
from mi_audit.errors import PromptError
from mi_audit.plan.places import At, Tokens
from mi_audit.plan.steering import SideQuantity, Steered
from mi_audit.stats.checks import Floats
from mi_audit.suites.prompt import Prompt

if TYPE_CHECKING:
    from mi_audit.model.loaded import LoadedModel

LONGEST: Final = 64
"""Tokens of a neutral prompt, at most, on which it is measured what the model predicts."""
BEGINNING: Final = 16
"""Tokens after which the model goes on to write."""
WRITTEN: Final = 48
"""Tokens that it writes."""

_Passes = Callable[[Sequence[Prompt], Rows], Floats]


def side_effect(
    quantity: SideQuantity,
    model: "LoadedModel",
    prompts: Sequence[Prompt],
    rows: Rows,
    tokens: Steered | Tokens,
    at: At,
    cache: ActivationCache | None,
    progress: Hearer | None,
) -> tuple[Floats, Floats]:
    """A side effect on n prompts: of the model as it is [n], and at each strength [S, n], the change of it.

    Of text all tokens but the attention sinks at `at` are touched, as if all were generated; of questions those that the experiment touches.

    Raises:
        NotFiniteError: of the first strength whose logits are not finite.
        PromptError: a prompt has one token, or can't be encoded.
    """
    match quantity:
        case "kl" | "loss_change":
            base, found = _predictions(model, prompts, rows, at, cache, progress)
            column = 0 if quantity == "kl" else 1
            return base[:, column], found[:, :, column]
        case "repetition_change":
            return _repetition(model, prompts, rows, tokens, at, cache, progress)
        case "capability_change":
            return _capability(model, prompts, rows, tokens, at, cache, progress)


def _predictions(
    model: "LoadedModel", prompts: Sequence[Prompt], rows: Rows, at: At, cache: ActivationCache | None, progress: Hearer | None
) -> tuple[Floats, Floats]:
    """Per prompt, nats per next token: [n, 2] of the model as it is, (0, loss), and [S, n, 2] with the change, (KL(own‖changed), loss less own)."""
    base, found = np.zeros((len(prompts), 2)), np.zeros((len(rows.strengths), len(prompts), 2))
    with reporting(progress, len(prompts), 0), holding(model, rows.places):
        for number, (prompt, encoded) in enumerate(zip(prompts, encode_all(model, prompts, cache, most=LONGEST), strict=True)):
            if len(encoded.ids) < 2:
                raise PromptError(f"prompt {prompt.id!r} has one token, after which nothing is to be predicted; take longer ones")
            _, sinks = read_alone(model, encoded.ids, at)
            touched = tuple(position for position in range(len(encoded.ids) - 1) if not sinks[position])
            if not touched:
                raise PromptError(f"prompt {prompt.id!r}: all its tokens are attention sinks at {at}; take longer ones")
            own, changed = _read(model, encoded.ids, touched, rows)
            base[number, 1] = own[1]
            found[:, number] = changed - np.array([0.0, own[1]])
            if progress is not None:
                progress.advance(1, len(encoded.ids))
    return base, found


def _read(model: "LoadedModel", ids: tuple[int, ...], touched: tuple[int, ...], rows: Rows) -> tuple[Floats, Floats]:
    """(KL, loss) [2] of the model as it is and [S, 2] of each variant."""
    wanted = torch.tensor(ids[1:])

    def values(logits_RKV: Tensor, base_KV: Tensor) -> Tensor:
        logp_RKV, own_KV = logits_RKV.log_softmax(dim=-1), base_KV.log_softmax(dim=-1)
        kl = (own_KV.exp() * (own_KV - logp_RKV)).sum(dim=-1).double().mean(dim=-1)
        loss = -logp_RKV.gather(-1, wanted.to(logp_RKV.device)[None, :, None].expand(len(logp_RKV), -1, 1))[..., 0].double().mean(dim=-1)
        return torch.stack([kl, loss], dim=-1)

    every = torch.arange(len(rows.strengths))
    positions = tuple(range(len(ids) - 1))
    base, found = read_variants(model, ids, touched, rows.places, len(every), lambda part: rows.interventions(every[part]), Read(positions, values))
    return base.numpy(), found.numpy()


def _repetition(
    model: "LoadedModel",
    prompts: Sequence[Prompt],
    rows: Rows,
    tokens: Steered | Tokens,
    at: At,
    cache: ActivationCache | None,
    progress: Hearer | None,
) -> tuple[Floats, Floats]:
    begun = [each.beginning(BEGINNING) for each in asked(model, prompts, tokens if isinstance(tokens, str) else "all", at, cache)]
    texts = generated(model, begun, rows, WRITTEN, progress)
    shares = np.array([[repetition(ids) for ids in row] for row in texts])
    return shares[-1], shares[:-1] - shares[-1]


def _capability(
    model: "LoadedModel",
    prompts: Sequence[Prompt],
    rows: Rows,
    tokens: Steered | Tokens,
    at: At,
    cache: ActivationCache | None,
    progress: Hearer | None,
) -> tuple[Floats, Floats]:
    """Whether the likelihood of the field `answer` is above that of the field `other`, a tie counting one half."""
    effect = OfLogits(
        lambda prompt: (str(prompt.field("answer")), str(prompt.field("other"))),
        likelihood,
        lambda parts_CR, _: (1.0 + torch.sign(parts_CR[0] - parts_CR[1])) / 2.0,
    )
    taken = asked(model, prompts, tokens if isinstance(tokens, str) else "all", at, cache)
    found = Instrument(model, effect, None).measure(taken, rows, progress)
    return found.unsteered, found.values[0] - found.unsteered
