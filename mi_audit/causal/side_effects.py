"""What an experiment does to a model besides its effect, at each of its strengths."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from torch import Tensor

from mi_audit.causal.arms import Instrument, generated
from mi_audit.causal.effect import OfLogits
from mi_audit.causal.effects import likelihood
from mi_audit.causal.rows import Rows
from mi_audit.causal.tasks import Asked, asked, tokenizer_of
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


@dataclass(frozen=True, eq=False)
class Beside:
    """What is changed, in rows that are strengths of one vector or group of latents, and n prompts that it should leave alone.

    Of text all tokens but the attention sinks at `at` are touched, as if all were generated; where the model answers or writes, those that `tokens` says, or
    all where it selects them in the experiment's own prompts.
    """

    model: "LoadedModel"
    prompts: Sequence[Prompt]
    rows: Rows
    tokens: Steered | Tokens
    at: At
    cache: ActivationCache | None
    progress: Hearer | None

    def measure(self, quantity: SideQuantity) -> tuple[Floats, Floats]:
        """A side effect: of the model as it is [n], and at each strength [S, n], the change of it.

        Raises:
            NotFiniteError: of the first strength whose logits are not finite.
            PromptError: a prompt has one token, or can't be encoded.
        """
        match quantity:
            case "kl":
                return self._predictions(0)
            case "loss_change":
                return self._predictions(1)
            case "repetition_change":
                return self._repetition()
            case "capability_change":
                return self._capability()

    def _predictions(self, column: int) -> tuple[Floats, Floats]:
        """Nats per next token that is predicted at a touched one: (0, KL(own‖changed)) or (loss, changed loss less own)."""
        base, found = np.zeros(len(self.prompts)), np.zeros((len(self.rows.strengths), len(self.prompts)))
        encoded = encode_all(self.model, self.prompts, self.cache, most=LONGEST)
        with reporting(self.progress, len(self.prompts), 0), holding(self.model, self.rows.places):
            for number, (prompt, each) in enumerate(zip(self.prompts, encoded, strict=True)):
                if len(each.ids) < 2:
                    raise PromptError(f"prompt {prompt.id!r} has one token, after which nothing is to be predicted; take longer ones")
                _, sinks = read_alone(self.model, each.ids, self.at)
                touched = tuple(position for position in range(len(each.ids) - 1) if not sinks[position])
                if not touched:
                    raise PromptError(f"prompt {prompt.id!r}: all its tokens are attention sinks at {self.at}; take longer ones")
                own, changed = self._read(each.ids, touched)
                base[number], found[:, number] = own[column], changed[:, column] - own[column]
                if self.progress is not None:
                    self.progress.advance(1, len(each.ids))
        return base, found

    def _read(self, ids: tuple[int, ...], touched: tuple[int, ...]) -> tuple[Floats, Floats]:
        """(KL, loss) [2] of the model as it is, of which the KL is 0, and [S, 2] of each variant."""
        wanted = torch.tensor([ids[position + 1] for position in touched])

        def values(logits_RKV: Tensor, base_KV: Tensor) -> Tensor:
            logp_RKV, own_KV = logits_RKV.log_softmax(dim=-1), base_KV.log_softmax(dim=-1)
            kl = (own_KV.exp() * (own_KV - logp_RKV)).sum(dim=-1).double().mean(dim=-1)
            loss = -logp_RKV.gather(-1, wanted.to(logp_RKV.device)[None, :, None].expand(len(logp_RKV), -1, 1))[..., 0].double().mean(dim=-1)
            return torch.stack([kl, loss], dim=-1)

        base, found = read_variants(self.model, ids, touched, self.rows.places, len(self.rows.strengths), self.rows.interventions, Read(touched, values))
        return base.numpy(), found.numpy()

    def _repetition(self) -> tuple[Floats, Floats]:
        begun = [each.beginning(BEGINNING) for each in self._asked()]
        texts = generated(self.model, begun, self.rows, WRITTEN, self.progress)
        shares = np.array([[repetition(ids) for ids in row] for row in texts])
        return shares[-1], shares[:-1] - shares[-1]

    def _capability(self) -> tuple[Floats, Floats]:
        """Whether the likelihood of the field `answer` is above that of the field `other`, a tie counting one half."""
        effect = OfLogits(
            lambda prompt: (str(prompt.field("answer")), str(prompt.field("other"))),
            likelihood,
            lambda parts_CR, _: (1.0 + torch.sign(parts_CR[0] - parts_CR[1])) / 2.0,
        )
        tokenize = tokenizer_of(self.model)
        for prompt in self.prompts:
            if tokenize(str(prompt.field("answer"))) == tokenize(str(prompt.field("other"))):
                raise PromptError(
                    f"prompt {prompt.id!r}: its answer and the other have the same tokens, so it asks this model nothing; mend it, or leave it out"
                )
        found = Instrument(self.model, effect, None).measure(self._asked(), self.rows, self.progress)
        return found.unsteered, found.values[0] - found.unsteered

    def _asked(self) -> list[Asked]:
        return asked(self.model, self.prompts, self.tokens if isinstance(self.tokens, str) else "all", self.at, self.cache)
