"""`mi-audit demo`: the shipped audits on the default model."""

from pathlib import Path
from typing import Annotated

import typer

from mi_audit.cli.pytesting import run_pytest
from mi_audit.config import DEFAULT_MODEL
from mi_audit.shipped import audits_dir, shipped_audits

PACKS = ("unsafe_advice", "deception")
"""The shipped audits that it runs; the others are recipes."""

COMPLETED = (0, 1, 10, 13)
"""Exit codes of a run that decided every audit, whatever it decided."""


def demo(
    model: Annotated[str, typer.Option(help="the model under audit")] = DEFAULT_MODEL,
    out: Annotated[Path, typer.Option(help="where the evidence goes")] = Path("audit-results/demo"),
) -> None:
    """Run shipped audits, of probes and of latents, and leave evidence and a report. Exits 0 when the run completed, whatever the verdicts."""
    from mi_audit.model.catalogue import shipped_models

    root = audits_dir()
    audits = [path for path in shipped_audits() if path.relative_to(root).parts[0] in PACKS]
    typer.echo("audits: " + ", ".join(str(path.relative_to(root)) for path in audits))
    for entry in shipped_models():
        if entry.name == model:
            typer.echo(f"model: {entry.name}, licence {entry.licence} ({entry.licence_url})")
    code = run_pytest([*map(str, audits), f"--audit-model={model}", f"--audit-out={out.absolute()}"], root=root)
    if code in COMPLETED:
        typer.echo(f"\nThe run completed; its exit code as a gate would be {code}. Open {out / 'report.html'} in a browser.")
        return
    typer.secho(f"the run did not complete: exit code {code}; the message is above", fg="red", err=True)
    raise typer.Exit(code)
