"""SAEs of sae-lens's registry, fetched by sae-lens itself and kept in the cache in its own format. Nothing pickled is read."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NoReturn

from mi_audit.errors import MissingDependencyError, ModelError, PlanError
from mi_audit.model.cache import build_once, cache_dir
from mi_audit.plan.digest import digest_of

_FORMAT: Final = 1


def fetched(release: str, sae_id: str) -> Path:
    """The folder of an SAE in the cache, fetched and converted if it is not there yet.

    Args:
        release: of the registry; or the owner of a hub repository, `sae_id` then begins with the repository's name.
        sae_id: which SAE of the release, or in which folder of the repository.

    Raises:
        MissingDependencyError: sae-lens is not installed.
        PlanError: the registry has no such SAE, or its files are pickled.
        ModelError: it can't be fetched, or the cache can't be written.
    """
    key = digest_of({"release": release, "sae_id": sae_id, "format": _FORMAT})[:40]
    return build_once(cache_dir() / "saes" / key, lambda folder: _fetch(release, sae_id, folder))


def _fetch(release: str, sae_id: str, folder: Path) -> None:
    where = f"mi.sae({f'{release}/{sae_id}'!r})"
    try:
        from sae_lens import SAE
        from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory
    except ImportError as error:
        raise MissingDependencyError(f"{where}: a release of sae-lens's registry needs sae-lens: pip install 'mi-audit[run]'") from error
    directory = get_pretrained_saes_directory()
    if release not in directory:
        repository, _, sae_id = sae_id.partition("/")
        release = f"{release}/{repository}"
        if not sae_id:
            raise PlanError(
                f"{where}: there is no such folder, sae-lens's registry has no release {release.partition('/')[0]!r}, and a hub repository is named"
                " owner/repository/folder"
            )
    elif sae_id not in directory[release].saes_map:
        some = list(directory[release].saes_map)
        raise PlanError(f"{where}: the release has no {sae_id!r}; it has {', '.join(some[:5])}{', …' if len(some) > 5 else ''}")
    try:
        with _nothing_pickled(where):
            sae = SAE.from_pretrained(release, sae_id, device="cpu", dtype="float32")
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(f"{where}: sae-lens can't fetch it: {error}") from error
    _publish(sae.cfg.metadata, directory.get(release), sae_id)
    sae.save_model(folder)


@contextmanager
def _nothing_pickled(where: str) -> Iterator[None]:
    """Some of sae-lens's loaders read checkpoints with torch.load, which may run what it reads; there is no option to keep them from it."""
    import torch

    def refuse(*_: object, **__: object) -> NoReturn:
        raise PlanError(
            f"{where}: its files are pickled, and reading them could run whatever they hold; convert it once where that is safe"
            " (SAE.from_pretrained(…).save_model(folder)) and give the folder"
        )

    load, torch.load = torch.load, refuse
    try:
        yield
    finally:
        torch.load = load


def _publish(metadata: Any, release: Any, sae_id: str) -> None:
    """The numbers that the registry gives of an SAE, beside its metadata; the registry says 1.0 and 0 where it knows none."""
    if release is None:
        return
    explained, l0 = release.expected_var_explained.get(sae_id, 1.0), release.expected_l0.get(sae_id, 0.0)
    if "explained_variance" not in metadata and explained != 1.0:
        metadata.explained_variance = explained
    if "l0" not in metadata and l0 != 0.0:
        metadata.l0 = l0
