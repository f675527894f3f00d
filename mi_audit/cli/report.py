"""`mi-audit report`: render a run's evidence again."""

from pathlib import Path
from typing import Annotated

import typer

from mi_audit.errors import EvidenceError


def report(
    directory: Annotated[Path, typer.Argument(help="a run's evidence")],
    out: Annotated[Path | None, typer.Option(help="write the report here instead of into the evidence")] = None,
    format: Annotated[str, typer.Option(help="a renderer, as mi-audit plugins lists them")] = "html",
) -> None:
    """Render a report from the evidence alone: no torch, no audit code. The same evidence gives the same bytes."""
    from mi_audit.evidence import store
    from mi_audit.plugins import active
    from mi_audit.reporting.renderers import rendered

    content = rendered(directory, format)
    if out is None:
        path = store.write_report(directory, active().renderers[format].value.file, content)
    else:
        path = out
        try:
            out.write_bytes(content)
        except OSError as error:
            raise EvidenceError(f"{out} can't be written: {error.strerror}; choose another place") from error
    typer.echo(str(path))
