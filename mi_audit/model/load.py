"""`load`: from a reference to a model that is identified, resolved and checked."""

from typing import cast

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mi_audit.errors import ModelError
from mi_audit.model.cache import verify_converted
from mi_audit.model.checkpoint import Checkpoint, inspect
from mi_audit.model.hook_points import HookPoints
from mi_audit.model.identity import FileDigest, ModelIdentity, chat_template_digest, digest_file, library_versions, root_of, tokenizer_digest
from mi_audit.model.loaded import LoadedModel
from mi_audit.model.packing_check import check_packing
from mi_audit.model.progress import Steps, progress_steps
from mi_audit.model.self_check import check_prompts, self_check
from mi_audit.model.sources import Located, locate
from mi_audit.model.structure import text_config
from mi_audit.model.transformers_io import read

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load(ref: str, *, device: str = "auto", dtype: str = "auto", progress: bool = True) -> LoadedModel:
    """Load the model that `ref` names: a shipped name, a hub name with an optional `@revision`, a local directory, a `.gguf` file or `source:…`.

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
        hf, tokenizer, unused = read(checkpoint, ref, chosen_dtype)
        hf = _move(hf, chosen_device, ref)
        steps.begin("Checking hook points")
        points = HookPoints.of(hf)
        checked, points = self_check(points, tokenizer)
        packing = check_packing(points, text_config(hf), check_prompts(points, tokenizer))
        identity = _identity(ref, located, files, hf, tokenizer, points, unused)
    return LoadedModel(ref, hf, tokenizer, points, identity, checked, packing)


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


def _move(hf: PreTrainedModel, device: torch.device, ref: str) -> PreTrainedModel:
    try:
        return cast(PreTrainedModel, cast(torch.nn.Module, hf).to(device))
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
        d_model=int(text_config(hf).hidden_size),
        vocabulary=int(embedding.weight.shape[0]),
        tokenizer_digest=tokenizer_digest(files),
        chat_template_digest=chat_template_digest(tokenizer.chat_template),
        dtype=str(embedding.weight.dtype).removeprefix("torch."),
        device=str(embedding.weight.device),
        attention=str(hf.config._attn_implementation),
        unused=unused,
        versions=library_versions(),
    )
