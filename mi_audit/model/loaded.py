"""The model under audit, loaded, identified and checked."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mi_audit.model.checks import SelfCheck
from mi_audit.model.hook_points import HookPoints
from mi_audit.model.identity import ModelIdentity
from mi_audit.model.packing import Packing
from mi_audit.model.structure import text_config


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A decoder in evaluation mode without gradients, its tokenizer, its hook points, who it is, what its self-check found
    and how its prompts may be batched."""

    ref: str
    hf: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    hook_points: HookPoints
    identity: ModelIdentity
    self_check: SelfCheck
    packing: Packing

    @property
    def config(self) -> Any:
        """The configuration of the text decoder."""
        return text_config(self.hf)

    @property
    def base(self) -> nn.Module:
        """The decoder without the LM head."""
        return self.hook_points.decoder.base

    @property
    def n_layers(self) -> int:
        """Number of decoder blocks."""
        return self.hook_points.n_layers

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return int(self.config.hidden_size)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.hook_points.decoder.embedding.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the weights."""
        return self.hook_points.decoder.embedding.weight.dtype

    @property
    def max_length(self) -> int | None:
        """Context window in tokens, or None if the configuration names none."""
        length = getattr(self.config, "max_position_embeddings", None)
        return int(length) if length else None

    def __repr__(self) -> str:
        return (
            f"LoadedModel({self.ref!r}, {self.n_layers} layers of width {self.d_model}, {self.identity.dtype} on {self.device}, root {self.identity.root[:12]})"
        )
