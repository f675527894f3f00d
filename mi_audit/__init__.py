"""mi-audit: pytest for what happens inside a language model.

Importing it loads neither torch nor transformers; `mi.load_model` does.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mi_audit.auditor import Auditor
    from mi_audit.finding import find_latents
    from mi_audit.loading import load_model
    from mi_audit.plan import effects
    from mi_audit.plan.audit import audit
    from mi_audit.plan.detectors import direction, false_positive_rate, probe
    from mi_audit.plan.latents import latent, latent_group
    from mi_audit.plan.places import at, last_of, span
    from mi_audit.plan.saes import sae_floors
    from mi_audit.plan.sweep import sweep
    from mi_audit.sae_sources import sae
    from mi_audit.suites.prompt import Message, Prompt
    from mi_audit.suites.suite import Suite, concat, suite

__version__ = "0.1.0"

_ROOMS = {"effects": "mi_audit.plan.effects"}

_HOMES = {
    "Auditor": "mi_audit.auditor",
    "Message": "mi_audit.suites.prompt",
    "Prompt": "mi_audit.suites.prompt",
    "Suite": "mi_audit.suites.suite",
    "at": "mi_audit.plan.places",
    "audit": "mi_audit.plan.audit",
    "concat": "mi_audit.suites.suite",
    "direction": "mi_audit.plan.detectors",
    "false_positive_rate": "mi_audit.plan.detectors",
    "find_latents": "mi_audit.finding",
    "last_of": "mi_audit.plan.places",
    "latent": "mi_audit.plan.latents",
    "latent_group": "mi_audit.plan.latents",
    "load_model": "mi_audit.loading",
    "probe": "mi_audit.plan.detectors",
    "sae": "mi_audit.sae_sources",
    "sae_floors": "mi_audit.plan.saes",
    "span": "mi_audit.plan.places",
    "suite": "mi_audit.suites.suite",
    "sweep": "mi_audit.plan.sweep",
}

__all__ = [
    "Auditor",
    "Message",
    "Prompt",
    "Suite",
    "__version__",
    "at",
    "audit",
    "concat",
    "direction",
    "effects",
    "false_positive_rate",
    "find_latents",
    "last_of",
    "latent",
    "latent_group",
    "load_model",
    "probe",
    "sae",
    "sae_floors",
    "span",
    "suite",
    "sweep",
]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return import_module(_ROOMS[name])
    if name not in _HOMES:
        raise AttributeError(f"mi_audit has no {name!r}; it has {', '.join(sorted([*_HOMES, *_ROOMS]))}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
