"""`load`: from a reference to a model that is identified, resolved and checked."""

from dataclasses import replace

import torch

from mi_audit.errors import ModelError
from mi_audit.model.checks import SelfCheck
from mi_audit.model.devices import choose_device, described, gpus, place, place_beside
from mi_audit.model.full_precision import use_full_precision
from mi_audit.model.hook_points import HookPoints
from mi_audit.model.identity import ModelIdentity, chat_template_digest, library_versions, tokenizer_digest
from mi_audit.model.loaded import LoadedModel, coarsest
from mi_audit.model.opened import Opened
from mi_audit.model.packing import Packing
from mi_audit.model.packing_check import check_packing
from mi_audit.model.progress import Steps, progress_steps
from mi_audit.model.reentrant import is_reentrant
from mi_audit.model.self_check import check_prompts, self_check
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
    choose_dtype(dtype, choose_device(device))  # what is asked for in vain is told before anything takes time
    with progress_steps(shown=progress) as steps:
        return load_opened(Opened.of(ref, steps), device, dtype, steps)


def load_opened(opened: Opened, device: str, dtype: str, steps: Steps) -> LoadedModel:
    """Load from files that were inspected and digested. Raises as `load`."""
    use_full_precision()
    chosen_dtype = choose_dtype(dtype, choose_device(device))
    steps.begin(f"Loading {opened.ref}")
    found = read(opened.checkpoint, opened.ref, chosen_dtype, lambda size: place(device, size, gpus(), steps.say))
    steps.begin("Checking hook points")
    points, checked, packing, reentrant = _checked(found)
    identity = _identity(opened, found, points)
    return LoadedModel(opened.ref, found.hf, found.tokenizer, points, identity, checked, packing, reentrant, opened, found.placement)


def in_float32(model: LoadedModel, *, progress: bool = True) -> LoadedModel:
    """The checkpoint of a loaded model once more, in float32: on the same device if it fits there too, else on the CPU; spread if the model is.

    It is read again rather than cast up, so that what the model's dtype rounded off the weights comes back.

    Raises:
        ModelError: the files have changed since the model was loaded, can't be held in float32, or do not fit into memory.
        HookPointError: its blocks can't be told.
    """
    use_full_precision()
    with progress_steps(shown=progress) as steps:
        model.opened.refuse_changed(steps)
        steps.begin(f"Loading {model.ref} in float32")
        found = read(model.opened.checkpoint, model.ref, torch.float32, lambda size: place_beside(model.placement, size, gpus()))
        if coarsest(found.hf) is not torch.float32:
            raise ModelError(f"{model.ref} is quantised and can't be held in float32, so its precision can't be measured: audit the model before quantisation")
        steps.begin("Checking hook points")
        points, checked, packing, reentrant = _checked(found)
    identity = replace(model.identity, dtype=_dtype(found), device=_devices(found))
    return LoadedModel(model.ref, found.hf, found.tokenizer, points, identity, checked, packing, reentrant, model.opened, found.placement)


def choose_dtype(dtype: str, device: torch.device) -> torch.dtype | None:
    """The torch dtype for a name; None stands for the checkpoint's own. ModelError if it is unknown."""
    if dtype == "auto":
        return torch.float32 if device.type == "cpu" else None
    if dtype not in DTYPES:
        raise ModelError(f"{dtype!r} is no dtype: give auto, {', '.join(DTYPES)}")
    return DTYPES[dtype]


def _checked(found: Read) -> tuple[HookPoints, SelfCheck, Packing, bool]:
    checked, points = self_check(HookPoints.of(found.hf), found.tokenizer)
    prompts = check_prompts(points, found.tokenizer)
    packing = check_packing(points, text_config(found.hf), prompts)
    on_cpu, quantised = found.placement.device.type == "cpu" and not found.placement.balanced, getattr(found.hf, "hf_quantizer", None) is not None
    may = on_cpu and not packing.apart and not quantised  # a quantised layer keeps state where modules don't show it
    return points, checked, packing, may and is_reentrant(points.decoder, prompts[:2])


def _identity(opened: Opened, found: Read, points: HookPoints) -> ModelIdentity:
    hf, located = found.hf, opened.located
    return ModelIdentity(
        root=opened.root,
        files=opened.files,
        ref=opened.ref,
        source=located.source,
        revision=located.revision,
        source_sha256=located.source_sha256,
        licence=located.licence,
        architecture=type(hf).__name__,
        parameters=hf.num_parameters(),
        n_layers=points.n_layers,
        d_model=int(text_config(hf).hidden_size),
        vocabulary=int(points.decoder.embedding.weight.shape[0]),
        tokenizer_digest=tokenizer_digest(opened.files),
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
