"""The model under audit, loaded, identified and checked."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mi_audit.model.checks import SelfCheck
from mi_audit.model.devices import Placement, input_device
from mi_audit.model.hook_points import HookPoints
from mi_audit.model.identity import ModelIdentity
from mi_audit.model.opened import Opened
from mi_audit.model.packing import Packing
from mi_audit.model.structure import text_config


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A decoder in evaluation mode without gradients, its tokenizer, its hook points, who it is, what its self-check found, how its prompts may be batched,
    whether its passes may run side by side (in threads), its files and where it went."""

    ref: str
    hf: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    hook_points: HookPoints
    identity: ModelIdentity
    self_check: SelfCheck
    packing: Packing
    reentrant: bool
    opened: Opened
    placement: Placement

    has_weights: ClassVar[bool] = True
    recalled: ClassVar[bool] = False
    failure: ClassVar[None] = None

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
        """Where tokens go in; where the weights are, unless the model is spread over several devices."""
        return input_device(self.hook_points.decoder.embedding)

    @property
    def devices(self) -> frozenset[torch.device]:
        """Where its modules compute: one device, unless the model is spread over several."""
        return frozenset(input_device(module) for module in self.hf.modules() if any(True for _ in module.parameters(recurse=False)))

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the weights of the embedding, and so of the activations."""
        return self.hook_points.decoder.embedding.weight.dtype

    @property
    def is_low_precision(self) -> bool:
        """Whether any weight is held in fewer digits than float32 has."""
        return torch.finfo(coarsest(self.hf)).eps > torch.finfo(torch.float32).eps

    @property
    def max_length(self) -> int | None:
        """Context window in tokens, or None if the configuration names none."""
        length = getattr(self.config, "max_position_embeddings", None)
        return int(length) if length else None

    @property
    def processor(self) -> str:
        """The kind of processor that it computes on, as far as it decides the numbers: "cpu AVX2", or a GPU's name."""
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else f"{self.device.type} {torch.backends.cpu.get_cpu_capability()}"

    @property
    def balanced(self) -> bool:
        """Whether it is spread over several devices."""
        return self.placement.balanced

    @property
    def memory_left(self) -> int | None:
        """Bytes that the smallest of its GPUs has besides its share of the weights; None where no GPU computes.

        What other programs take at the moment does not count, so that the same device always gives the same number.
        """
        devices = {part for part in self.devices if part.type == "cuda"}
        if not devices:
            return None
        weights = sum(each.numel() * each.element_size() for each in self.hf.parameters()) // len(devices)
        return int(min(torch.cuda.get_device_properties(device).total_memory for device in devices)) - weights

    def loaded(self) -> "LoadedModel":
        """Itself; as every `AuditedModel` has it."""
        return self

    def __repr__(self) -> str:
        return (
            f"LoadedModel({self.ref!r}, {self.n_layers} layers of width {self.d_model}, {self.identity.dtype} on {self.device}, root {self.identity.root[:12]})"
        )


def coarsest(module: nn.Module) -> torch.dtype:
    """The dtype with the fewest digits among the weights of the module."""
    return max({each.dtype for each in module.parameters() if each.is_floating_point()}, key=lambda dtype: torch.finfo(dtype).eps)
