"""Calling transformers' loaders: its bars and advice stay off the terminal, and half-loaded models do not pass."""

import io
import struct
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from mi_audit.errors import ModelError
from mi_audit.model.checkpoint import Checkpoint
from mi_audit.model.devices import Placement

LOAD_ERRORS = (OSError, ValueError, ImportError, LookupError, ArithmeticError, RuntimeError, TypeError, AttributeError, SafetensorError, struct.error)
"""What transformers and safetensors raise for a model that they can't load."""
MAX_LAYERS = 4096
PARAMETERS_PER_BYTE = 16
"""A configuration that asks for more parameters than this per byte of weights describes another model than the files hold."""


@contextmanager
def quietly() -> Iterator[None]:
    """Only errors are logged inside, and nothing reaches stderr (what goes wrong is raised); the settings are put back."""
    reporting = cast(Any, logging)
    verbosity, bars = reporting.get_verbosity(), reporting.is_progress_bar_enabled()
    reporting.set_verbosity_error()
    reporting.disable_progress_bar()
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        reporting.set_verbosity(verbosity)
        if bars:
            reporting.enable_progress_bar()


@dataclass(frozen=True, eq=False)
class Read:
    """A model in evaluation mode without gradients, its tokenizer, the names of tensors left unused, and where the model is."""

    hf: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    unused: tuple[str, ...]
    placement: Placement

    @property
    def parts(self) -> tuple[str | int | torch.device, ...]:
        """Where its modules went, as accelerate says it; where transformers found room for all of them on one device, that one."""
        dispatched = getattr(self.hf, "hf_device_map", None)
        return (self.hf.device,) if dispatched is None else tuple(dispatched.values())


def read(checkpoint: Checkpoint, ref: str, dtype: torch.dtype | None, place: Callable[[int], Placement]) -> Read:
    """Load from exactly the files of the checkpoint; `place` says where the weights go, given their size in bytes.

    `dtype` None keeps the checkpoint's own. ModelError when the architecture is no decoder-only language model, its weights are not all there, or they do not
    fit where they should go.
    """
    with tempfile.TemporaryDirectory(prefix="mi-audit-model-") as view:
        # a folder of links to the files that were inspected and hashed: whatever else lies beside them can't be picked up
        for name, path in checkpoint.files.items():
            link = Path(view) / name
            link.parent.mkdir(exist_ok=True)
            link.symlink_to(path)
        local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        try:
            with quietly():
                config = AutoConfig.from_pretrained(view, **local)
                parameters = _checked_parameters(config, ref, checkpoint)
                placement = place(parameters * dtype.itemsize if dtype else checkpoint.weights_size)
                options: dict[str, Any] = {"dtype": dtype or "auto", "use_safetensors": True, "output_loading_info": True}
                if placement.balanced:
                    options["device_map"] = "auto"
                hf, info = cast(Any, AutoModelForCausalLM.from_pretrained(view, config=config, **options, **local))
                tokenizer = AutoTokenizer.from_pretrained(view, **local)
        except LOAD_ERRORS as error:
            raise ModelError(f"{ref} can't be loaded: {error}") from error
    refuse_incomplete(ref, info)
    hf.eval().requires_grad_(False)
    hf.name_or_path = tokenizer.name_or_path = ref
    found = Read(hf, tokenizer, tuple(sorted(info["unexpected_keys"])), placement)
    if not placement.balanced:
        _move(hf, placement.device, ref)
    elif "disk" in found.parts:
        raise ModelError(f"{ref} does not fit into the memory of all GPUs and the CPU: give dtype bfloat16, or a machine with more of it")
    return found


def refuse_incomplete(ref: str, loading_info: Mapping[str, Any]) -> None:
    """ModelError if transformers had to make up weights: it fills what a checkpoint lacks with random numbers, and only warns."""
    absent = sorted(loading_info["missing_keys"]) + sorted(str(key) for key in loading_info["mismatched_keys"])
    if absent:
        listed = ", ".join(absent[:3]) + (" …" if len(absent) > 3 else "")
        raise ModelError(f"{ref} lacks {len(absent)} of its architecture's weights, or has them in another shape ({listed}): the checkpoint is not whole")


def _move(hf: PreTrainedModel, device: torch.device, ref: str) -> None:
    try:
        cast(torch.nn.Module, hf).to(device)
    except torch.OutOfMemoryError as error:
        raise ModelError(f"{ref} does not fit on {device}: give the device balanced (all GPUs and CPU memory) or cpu, or dtype bfloat16") from error


def _checked_parameters(config: Any, ref: str, checkpoint: Checkpoint) -> int:
    """How many parameters the model has. Raises ModelError for what is no decoder-only language model, or another than the files hold."""
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(f"{ref} is an encoder-decoder ({config.model_type}): only decoder-only language models can be audited")
    if type(config) not in AutoModelForCausalLM._model_mapping:
        raise ModelError(f"{ref} has the architecture {config.model_type!r}, which is no causal language model in this version of transformers")
    layers = getattr(config.get_text_config(decoder=True), "num_hidden_layers", None)
    if not isinstance(layers, int) or not 0 < layers <= MAX_LAYERS:
        raise ModelError(f"{ref}: config.json gives {layers!r} as the number of layers; from 1 to {MAX_LAYERS} can be audited")
    with torch.device("meta"):
        parameters = cast(Any, AutoModelForCausalLM).from_config(config).num_parameters()
    stored = checkpoint.weights_size
    if parameters > PARAMETERS_PER_BYTE * stored:
        raise ModelError(f"{ref}: config.json describes {parameters} parameters, but the weights are {stored} bytes: they belong to another model")
    return int(parameters)
