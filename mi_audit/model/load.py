"""`load`: from a reference to a model that is identified, resolved and checked."""

import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from mi_audit.errors import ModelError
from mi_audit.model.cache import verify_converted
from mi_audit.model.checkpoint import Checkpoint, inspect
from mi_audit.model.hook_points import HookPoints
from mi_audit.model.identity import FileDigest, ModelIdentity, chat_template_digest, digest_file, library_versions, root_of, tokenizer_digest
from mi_audit.model.loaded import LoadedModel
from mi_audit.model.progress import Steps, progress_steps
from mi_audit.model.quiet import LOAD_ERRORS, quietly
from mi_audit.model.self_check import self_check
from mi_audit.model.sources import Located, locate

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load(ref: str, *, device: str = "auto", dtype: str = "auto", progress: bool = True) -> LoadedModel:
    """Load the model that `ref` names: a shipped name, a hub name with an optional `@revision`, a local directory or a `.gguf` file.

    `device`: "auto" is CUDA, then MPS, then CPU. `dtype`: "auto" is float32 on CPU and the checkpoint's own elsewhere; else "float32", "bfloat16" or
    "float16". Only safetensors are read and no code that comes with a model is run. Raises ModelError or HookPointError with what to do.
    """
    chosen_device = choose_device(device)
    chosen_dtype = choose_dtype(dtype, chosen_device)
    with progress_steps(shown=progress) as steps:
        located = locate(ref, steps)
        checkpoint = inspect(located.folder, contained_in=located.contained_in)
        files = _digests(checkpoint, located, steps)
        steps.begin(f"Loading {ref}")
        hf, tokenizer, unused = _read(checkpoint, ref, chosen_dtype)
        hf = _move(hf, chosen_device, ref)
        steps.begin("Checking hook points")
        points = HookPoints.of(hf)
        checked, points = self_check(points, tokenizer)
        identity = _identity(ref, located, files, hf, tokenizer, points, unused)
    return LoadedModel(ref, hf, tokenizer, points, identity, checked)


def choose_device(device: str) -> torch.device:
    """The torch device for a name; ModelError if it is unknown or not there."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ModelError(f"{device!r} is no device: give auto, cpu, cuda, cuda:1 or mps") from error
    there = {"cpu": True, "cuda": torch.cuda.is_available() and (chosen.index or 0) < torch.cuda.device_count(), "mps": torch.backends.mps.is_available()}
    if not there.get(chosen.type, False):
        raise ModelError(f"the device {device!r} is not available here: give auto or cpu")
    return chosen


def choose_dtype(dtype: str, device: torch.device) -> torch.dtype | None:
    """The torch dtype for a name; None stands for the checkpoint's own. ModelError if it is unknown."""
    if dtype == "auto":
        return torch.float32 if device.type == "cpu" else None
    if dtype not in DTYPES:
        raise ModelError(f"{dtype!r} is no dtype: give auto, {', '.join(DTYPES)}")
    return DTYPES[dtype]


def _digests(checkpoint: Checkpoint, located: Located, steps: Steps) -> tuple[FileDigest, ...]:
    steps.begin("Hashing the model's files", total=checkpoint.size)
    files = tuple(FileDigest(name, *digest_file(path, steps.advance)) for name, path in sorted(checkpoint.files.items()))
    if located.source_sha256 is not None:
        verify_converted(located.folder, {file.name: file.sha256 for file in files})
    return files


def _read(checkpoint: Checkpoint, ref: str, dtype: torch.dtype | None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, tuple[str, ...]]:
    """Model and tokenizer from exactly the files of the checkpoint, and the names of tensors that the architecture does not use."""
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
                _refuse_architecture(config, ref)
                hf, info = AutoModelForCausalLM.from_pretrained(
                    view, config=config, dtype=dtype or "auto", use_safetensors=True, output_loading_info=True, **local
                )
                tokenizer = AutoTokenizer.from_pretrained(view, **local)
        except LOAD_ERRORS as error:
            raise ModelError(f"{ref} can't be loaded: {error}") from error
    absent = sorted(info["missing_keys"]) + sorted(str(key) for key in info["mismatched_keys"])
    if absent:
        raise ModelError(
            f"{ref} lacks {len(absent)} of its architecture's weights, or has them in another shape ({', '.join(absent[:3])} …): the checkpoint is not whole"
        )
    hf.eval().requires_grad_(False)
    hf.name_or_path = tokenizer.name_or_path = ref
    return hf, tokenizer, tuple(sorted(info["unexpected_keys"]))


def _refuse_architecture(config: Any, ref: str) -> None:
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(f"{ref} is an encoder-decoder ({config.model_type}): only decoder-only language models can be audited")
    if type(config) not in AutoModelForCausalLM._model_mapping:
        raise ModelError(f"{ref} has the architecture {config.model_type!r}, which is no causal language model in this version of transformers")


def _move(hf: PreTrainedModel, device: torch.device, ref: str) -> PreTrainedModel:
    try:
        return hf.to(device)
    except torch.OutOfMemoryError as error:
        raise ModelError(f"{ref} does not fit on {device}: give another device, or dtype bfloat16") from error


def _identity(
    ref: str,
    located: Located,
    files: tuple[FileDigest, ...],
    hf: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    points: HookPoints,
    unused: tuple[str, ...],
) -> ModelIdentity:
    embedding = points.decoder.embedding
    return ModelIdentity(
        root=root_of(files),
        files=files,
        ref=ref,
        source=located.source,
        revision=located.revision,
        source_sha256=located.source_sha256,
        licence=located.licence,
        architecture=type(hf).__name__,
        parameters=hf.num_parameters(),
        n_layers=points.n_layers,
        d_model=int(embedding.weight.shape[1]),
        vocabulary=int(embedding.weight.shape[0]),
        tokenizer_digest=tokenizer_digest(files),
        chat_template_digest=chat_template_digest(tokenizer.chat_template),
        dtype=str(embedding.weight.dtype).removeprefix("torch."),
        device=str(embedding.weight.device),
        attention=str(hf.config._attn_implementation),
        unused=unused,
        versions=library_versions(),
    )
