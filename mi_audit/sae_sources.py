"""`mi.sae`: an SAE by its folder, by the name of a shipped one, or by a release of sae-lens's registry. Free of torch, unless a release has to be fetched."""

import sys
from dataclasses import replace
from pathlib import Path

from mi_audit.errors import PlanError
from mi_audit.plan.places import At
from mi_audit.plan.saes import SaeFloors, SaeSpec, spec_of
from mi_audit.shipped import shipped_saes


def sae(source: str | Path, *, at: At | None = None, out: At | None = None, floors: SaeFloors | None = None, model: str | None = None) -> SaeSpec:
    """Name a sparse autoencoder.

    Args:
        source: one of
            a folder as sae-lens's `save_model` writes it (`cfg.json` and `sae_weights.safetensors`), relative to the audit file: `./my-sae`;
            the name of a shipped SAE;
            `release/sae_id` of sae-lens's registry, or of a hub repository in sae-lens's format: it is fetched once, and converted into the cache.
        at: the hook point that it encodes, from `mi.at`; needed where its metadata do not name one, and otherwise the same.
        out: the hook point that a transcoder reconstructs; needed, once it is measured, where its metadata do not name one, and otherwise the same.
        floors: what it must reach on the model under audit, from `mi.sae_floors`.
        model: the reference of the model that it was trained on, as it is given to `--audit-model`; needed where its metadata call that model otherwise.

    Raises:
        PlanError: there is no such SAE; a file of it is missing, a link, or not what sae-lens writes; its architecture or normalisation can't be read; `at`
            or `out` differs from its metadata, or nothing names the hook point that it encodes.
        MissingDependencyError, ModelError: a release can't be fetched.
    """
    beside = Path(file).parent if (file := sys._getframe(1).f_globals.get("__file__")) else Path.cwd()
    return named(source, beside, at=at, out=out, floors=floors, model=model)


def named(
    source: str | Path, beside: Path, *, at: At | None = None, out: At | None = None, floors: SaeFloors | None = None, model: str | None = None
) -> SaeSpec:
    """As `sae`, with paths relative to `beside`."""
    text, where = str(source), f"mi.sae({str(source)!r})"
    folder = beside / Path(source).expanduser()
    if folder.is_dir():
        return spec_of(folder, where, at=at, out=out, floors=floors, model=model)
    shipped = shipped_saes()
    if text in shipped:
        return spec_of(shipped[text], where, at=at, out=out, floors=floors, model=model)
    release, _, sae_id = text.partition("/")
    if isinstance(source, Path) or text.startswith((".", "/", "~")) or not sae_id:
        known = ", ".join(shipped) or "none"
        raise PlanError(f"{where}: no such folder beside {beside}; shipped SAEs: {known}; one of sae-lens's registry is named release/sae_id")
    from mi_audit.saes.fetching import fetched

    found = spec_of(fetched(release, sae_id), where, at=at, out=out, floors=floors, model=model)
    return replace(found, name=text)
