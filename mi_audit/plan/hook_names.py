"""TransformerLens's full names of hook points, as the files of SAEs give them, and the places that they mean."""

import re
from typing import Final

from mi_audit.errors import PlanError
from mi_audit.plan.places import HOOK_POINTS, At

_NAME: Final = re.compile(r"blocks\.(\d{1,4})\.(?:hook_)?([a-z0-9_.]+)")
_AFTER_THE_NORM: Final = re.compile(r".*(norm\.output|\.mlp\.input)")


def places_of(hook_name: str | None, of_transformers: str | None = None) -> tuple[At, ...]:
    """The places that a name may mean: none for None, one, or two where it is used for both.

    `hook_mlp_in` is what enters the norm before the feed-forward in TransformerLens, and what comes out of it in the files of Gemma Scope 2. `of_transformers`
    is the name that the file gives the place in transformers' model (`hf_hook_name`); where it gives none, both may be meant.

    Raises:
        PlanError: there is no such hook point to read.
    """
    if hook_name is None:
        return ()
    if hook_name == "hook_embed":
        return (At("embed"),)
    found = _NAME.fullmatch(hook_name)
    if found is None or found[2] not in {*HOOK_POINTS, "mlp_in"} - {"embed"}:
        raise PlanError(f"{hook_name!r} is no hook point that can be read; those are {', '.join(HOOK_POINTS)}")
    layer = int(found[1])
    if found[2] != "mlp_in":
        return (At(found[2], layer=layer),)
    after = At("mlp.hook_in", layer=layer)
    return (after,) if of_transformers is not None and _AFTER_THE_NORM.fullmatch(of_transformers) else (At("resid_mid", layer=layer), after)


def hook_name_of(at: At) -> str:
    """TransformerLens's name of a hook point, its layer absolute."""
    point = at.point if "." in at.point else f"hook_{at.point}"
    return point if at.layer is None else f"blocks.{at.layer}.{point}"
