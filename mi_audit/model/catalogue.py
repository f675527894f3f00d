"""What `mi-audit models` lists. No torch."""

from dataclasses import dataclass
from pathlib import Path

from mi_audit.config import DEFAULT_MODEL
from mi_audit.model.cache import converted_folder
from mi_audit.model.shipped import SHIPPED


@dataclass(frozen=True, slots=True)
class Listing:
    """A model known by name; `cached` is the folder of its converted files, or None before its first use. Sizes in bytes."""

    name: str
    title: str
    parameters: int
    licence: str
    licence_url: str
    download_size: int
    default: bool
    cached: Path | None


def shipped_models() -> tuple[Listing, ...]:
    """The models known by name, the default first."""
    listings = []
    for model in SHIPPED.values():
        folder = converted_folder(model.sha256)
        cached = folder if folder.is_dir() else None
        listings.append(Listing(model.name, model.title, model.parameters, model.licence, model.licence_url, model.size, model.name == DEFAULT_MODEL, cached))
    return tuple(listings)
