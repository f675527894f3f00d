"""`load`: from a reference to a model that is identified, resolved and checked."""

from dataclasses import replace

import torch

from mi_audit.errors import ModelError
from mi_audit.model.cache import verify_converted
from mi_audit.model.checkpoint import Checkpoint, inspect
from mi_audit.model.checks import SelfCheck
from mi_audit.model.devices import choose_device, described, gpus, place, place_beside
from mi_audit.model.full_precision import use_full_precision
from mi_audit.model.hook_points import HookPoints
from mi_audit.model.identity import FileDigest, ModelIdentity, chat_template_digest, digest_file, library_versions, root_of, tokenizer_digest
from mi_audit.model.loaded import LoadedModel, coarsest
from mi_audit.model.packing import Packing
from mi_audit.model.packing_check import check_packing
from mi_audit.model.progress import Steps, progress_steps
from mi_audit.model.self_check import check_prompts, self_check
from mi_audit.model.sources import Located, locate
from mi_audit.model.structure import text_config
from mi_audit.model.transformers_io import Read, read

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load(ref: str, *, device: str = "auto", dtype: str = "auto", progress: bool = True) -> LoadedModel:
    """Load the model that `ref` names: a shipped name, a hub name with an optional `@revision`, a local directory, a `.gguf` file or `source:…`.

    `device`: "auto" is CUDA, then MPS, then CPU; of several GPUs the first that no other process of ours holds, or all where one is too small; "balanced" is
    all GPUs and CPU memory. `dtype`: "auto" is float32 on CPU and the checkpoint's own elsewhere; else "float32", "bfloat16" or "float16". Only safetensors are
    read and no code that comes with a model is run. Raises ModelError, HookPointError or MissingDependencyError with what to do.
    """
    use_full_precision()
    chosen_dtype = choose_dtype(dtype, choose_device(device))
    with progress_steps(shown=progress) as steps:
        located = locate(ref, steps)
        checkpoint = inspect(located.folder, contained_in=located.contained_in)
        files = _digests(checkpoint, steps)
        if located.source_sha256 is not None:
            verify_converted(located.folder, {file.name: file.sha256 for file in files})
        steps.begin(f"Loading {ref}")
        found = read(checkpoint, ref, chosen_dtype, lambda size: place(device, size, gpus(), steps.say))
        steps.begin("Checking hook points")
        points, checked, packing = _checked(found)
        identity = _identity(ref, located, files, found, points)
    return LoadedModel(ref, found.hf, found.tokenizer, points, identity, checked, packing, checkpoint, found.placement)


def in_float32(model: LoadedModel, *, progress: bool = True) -> LoadedModel:
    """The checkpoint of a loaded model once more, in float32: on the same device if it fits there too, else on the CPU; spread if the model is.

    It is read again rather than cast up, so that what the model's dtype rounded off the weights comes back.

    Raises:
        ModelError: the files have changed since the model was loaded, can't be held in float32, or do not fit into memory.
        HookPointError: its blocks can't be told.
    """
    use_full_precision()
    with progress_steps(shown=progress) as steps:
        if root_of(_digests(model.checkpoint, steps)) != model.identity.root:
            raise ModelError(f"the files of {model.ref} have changed since it was loaded: run again on files that stay as they are")
        steps.begin(f"Loading {model.ref} in float32")
        found = read(model.checkpoint, model.ref, torch.float32, lambda size: place_beside(model.placement, size, gpus()))
        if coarsest(found.hf) is not torch.float32:
            raise ModelError(f"{model.ref} is quantised and can't be held in float32, so its precision can't be measured: audit the model before quantisation")
        steps.begin("Checking hook points")
        points, checked, packing = _checked(found)
    identity = replace(model.identity, dtype=_dtype(found), device=_devices(found))
    return LoadedModel(model.ref, found.hf, found.tokenizer, points, identity, checked, packing, model.checkpoint, found.placement)


def choose_dtype(dtype: str, device: torch.device) -> torch.dtype | None:
    """The torch dtype for a name; None stands for the checkpoint's own. ModelError if it is unknown."""
    if dtype == "auto":
        return torch.float32 if device.type == "cpu" else None
    if dtype not in DTYPES:
        raise ModelError(f"{dtype!r} is no dtype: give auto, {', '.join(DTYPES)}")
    return DTYPES[dtype]


def _digests(checkpoint: Checkpoint, steps: Steps) -> tuple[FileDigest, ...]:
    steps.begin("Hashing the model's files", total=checkpoint.size)
    try:
        return tuple(FileDigest(name, *digest_file(path, steps.advance)) for name, path in sorted(checkpoint.files.items()))
    except OSError as error:
        raise ModelError(f"the model's files can't be read: {error}") from error


def _checked(found: Read) -> tuple[HookPoints, SelfCheck, Packing]:
    checked, points = self_check(HookPoints.of(found.hf), found.tokenizer)
    return points, checked, check_packing(points, text_config(found.hf), check_prompts(points, found.tokenizer))


def _identity(ref: str, located: Located, files: tuple[FileDigest, ...], found: Read, points: HookPoints) -> ModelIdentity:
    hf = found.hf
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
        vocabulary=int(points.decoder.embedding.weight.shape[0]),
        tokenizer_digest=tokenizer_digest(files),
        chat_template_digest=chat_template_digest(found.tokenizer.chat_template),
        dtype=_dtype(found),
        device=_devices(found),
        attention=str(hf.config._attn_implementation),
        unused=found.unused,
        versions=library_versions(),
    )


def _dtype(found: Read) -> str:
    return str(coarsest(found.hf)).removeprefix("torch.")


def _devices(found: Read) -> str:
    return described(found.placement, found.parts)
