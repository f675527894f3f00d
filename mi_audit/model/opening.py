"""`open_model`: the model under audit, loaded only if it has to be. Importing this is free of torch."""

from typing import TYPE_CHECKING

from mi_audit.model.audited import AuditedModel
from mi_audit.model.facts import Facts
from mi_audit.model.known import KnownModel
from mi_audit.model.opened import Opened
from mi_audit.model.progress import progress_steps
from mi_audit.model.remembering import forget, kept_for, key_of, recall, remember

if TYPE_CHECKING:
    from mi_audit.model.loaded import LoadedModel


def open_model(ref: str, *, device: str = "auto", dtype: str = "auto", progress: bool = True) -> AuditedModel:
    """The model that `ref` names, as `load` takes and gives it, but for one in float32 on a CPU that an earlier run loaded from the same files, with the same
    software on the same processor: that one is known by what was found then, and its weights are read when something has to pass through it.

    Raises:
        ModelError, HookPointError, MissingDependencyError: as `load`.
    """
    if not kept_for(device, dtype):
        from mi_audit.model.load import load

        return load(ref, device=device, dtype=dtype, progress=progress)
    with progress_steps(shown=progress) as steps:
        opened = Opened.of(ref, steps)
        key = key_of(opened)
        known = recall(key, opened)
        if known is not None:
            return KnownModel(known, lambda: _load_again(opened, progress), lambda: forget(key))
        from mi_audit.model.load import load_opened

        model = load_opened(opened, device, dtype, steps)
    remember(key, Facts.of(model))
    return model


def _load_again(opened: Opened, progress: bool) -> "LoadedModel":
    from mi_audit.model.load import load_opened

    with progress_steps(shown=progress) as steps:
        opened.refuse_changed(steps)
        return load_opened(opened, "cpu", "float32", steps)
