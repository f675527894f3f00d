"""The renderers that are built in, and how reports come to lie beside the evidence."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from mi_audit.errors import EvidenceError, PluginError, RenderError
from mi_audit.evidence import store
from mi_audit.hookspecs import Renderer, hookimpl
from mi_audit.plugins import active


@hookimpl
def mi_audit_renderers() -> Mapping[str, Renderer]:
    """The HTML report."""
    return {"html": Renderer(store.REPORT, _html)}


def _html(directory: Path) -> bytes:
    from mi_audit.reporting.html import render

    return render(directory).encode("utf-8")


def rendered(directory: Path, name: str) -> bytes:
    """The report that a renderer makes of a bundle.

    Raises:
        EvidenceError: no renderer has that name, or the bundle can't be read or trusted.
        PluginError: the renderer failed, or gave something else than bytes.
    """
    renderers = active().renderers
    if name not in renderers:
        raise EvidenceError(f"no renderer is called {name!r}; those active are {', '.join(renderers)}")
    offer = renderers[name]
    with offer.blamed():
        content = offer.value.render(directory)
        if not isinstance(content, bytes):
            raise TypeError(f"it returned {type(content).__name__} instead of bytes")
    return content


def write_reports(directory: Path, names: Iterable[str]) -> list[Path]:
    """Render a finished bundle and put the reports into it, each at once or not at all.

    Raises:
        RenderError: one of them could not be made; the others are there, and the evidence is whole.
    """
    written, failures = [], []
    for name in names:
        try:
            written.append(store.write_report(directory, active().renderers[name].value.file, rendered(directory, name)))
        except (EvidenceError, PluginError) as error:
            failures.append(str(error))
    if failures:
        raise RenderError(f"{'; '.join(failures)}. The evidence in {directory} is whole: mend this, then mi-audit report {directory}")
    return written
