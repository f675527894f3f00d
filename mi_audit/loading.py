"""Open the model under audit with everything that measures on it. Importing this module is free of torch; calling it is, where all was read before."""

from importlib.util import find_spec
from typing import TYPE_CHECKING

from mi_audit.auditor import Auditor
from mi_audit.config import DEFAULT_MODEL, Settings
from mi_audit.errors import MissingDependencyError

if TYPE_CHECKING:
    from mi_audit.causal.laboratory import Laboratory
    from mi_audit.detectors.bench import Bench
    from mi_audit.engine.cache import ActivationCache
    from mi_audit.engine.progress import Progress
    from mi_audit.model.audited import AuditedModel


def load_laboratory(settings: Settings) -> "tuple[AuditedModel, Bench, Laboratory]":
    """Open the model that the settings name and put it on the bench, and the bench in the laboratory.

    Raises:
        MissingDependencyError, ModelError: as `open_audited`.
    """
    model, cache, progress = open_audited(settings)
    from mi_audit.causal.laboratory import Laboratory
    from mi_audit.detectors.bench import Bench

    bench = Bench(model, alpha=settings.alpha, seed=settings.seed, limit=settings.limit, progress=progress, cache=cache)
    return model, bench, Laboratory(bench, model, alpha=settings.alpha, seed=settings.seed, limit=settings.limit, progress=progress)


def open_audited(settings: Settings) -> "tuple[AuditedModel, ActivationCache | None, Progress]":
    """Open the model that the settings name, with the cache of its activations and a progress bar; with a cache its weights are loaded only if something has to
    pass through it.

    Raises:
        MissingDependencyError: torch or transformers is not installed.
        ModelError: the model can't be found, trusted or loaded, or the limit of the activation cache is no number.
    """
    missing = [name for name in ("torch", "transformers", "safetensors") if find_spec(name) is None]
    if missing:
        raise MissingDependencyError(f"running a model needs {', '.join(missing)}: pip install 'mi-audit[run]'")
    from mi_audit.engine.cache import ActivationCache
    from mi_audit.engine.cache_folder import activations_dir, limit_bytes
    from mi_audit.engine.progress import TerminalProgress

    progress = TerminalProgress("reading activations")
    if settings.no_cache or limit_bytes() == 0:
        from mi_audit.model.load import load

        return load(settings.model, device=settings.device, dtype=settings.dtype), None, progress
    from mi_audit.model.opening import open_model

    model = open_model(settings.model, device=settings.device, dtype=settings.dtype)
    return model, ActivationCache.of(model, activations_dir()), progress


def load_model(ref: str = DEFAULT_MODEL, *, device: str = "auto", dtype: str = "auto", alpha: float = 0.025, seed: int = 0, cache: bool = True) -> Auditor:
    """Load a model for a script or a notebook: the same object as the `model` fixture of an audit.

    Args:
        ref: a shipped name (`smollm2-135m-instruct`, `gemma3-270m`), a hub name with an optional `@revision`, a local directory or a `.gguf` file.
        device: `auto` takes CUDA, then MPS, then CPU.
        dtype: `auto` takes float32 on CPU and the checkpoint's on a GPU.
        alpha: one-sided level of the intervals.
        seed: seed of every random step.
        cache: whether activations that were read before are taken from the disk, and new ones kept there.

    Raises:
        MissingDependencyError: torch or transformers is not installed.
        ModelError: the model can't be found, trusted or loaded.
    """
    model, bench, lab = load_laboratory(Settings(model=ref, device=device, dtype=dtype, alpha=alpha, seed=seed, no_cache=not cache))
    return Auditor(lab.estimate, bench.attribute, model.identity)
