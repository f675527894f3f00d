"""`mi-audit cache`: what is kept on disk of models, prompts and activations that were read, and how to be rid of it."""

import json
from collections import defaultdict
from datetime import datetime
from pathlib import Path

import typer

HELP = "Activations, prompts and checks of models kept on disk: a run with the same model and suites reads them instead of passing the prompts again."
app = typer.Typer(help=HELP, no_args_is_help=True)


@app.command("list")
def list_kept() -> None:
    """A line a model: how many entries, how much disk, when they were last used."""
    from mi_audit.engine.cache_folder import LIMIT, activations_dir, entries, limit_bytes
    from mi_audit.model.remembering import facts_dir

    root = activations_dir()
    models: dict[Path, list[tuple[float, int]]] = defaultdict(list)
    for entry, used, size in entries(root):
        models[entry.parent].append((used, size))
    for folder, kept in sorted(models.items()):
        last = datetime.fromtimestamp(max(used for used, _ in kept)).isoformat(" ", "minutes")
        typer.echo(f"{_named(folder)}  {len(kept)} entries, {sum(size for _, size in kept) / 1e6:.1f} MB, last used {last}")
    total = sum(size for kept in models.values() for _, size in kept)
    typer.echo(f"{total / 1e6:.1f} MB in {root}, at most {limit_bytes() / 2**30:g} GiB ({LIMIT})")
    typer.echo(f"what was checked of {len(list(facts_dir().glob('*.json')))} models in {facts_dir()}")


@app.command("clear")
def clear_all() -> None:
    """Remove all of it. Nothing else is lost: the next run loads its model and passes its prompts through it again."""
    from mi_audit.engine.cache_folder import activations_dir, clear
    from mi_audit.model.remembering import forget_all

    forget_all()
    typer.echo(f"removed {clear(activations_dir()) / 1e6:.1f} MB")


def _named(folder: Path) -> str:
    """What the folder's file says of the model, as text of one line that does nothing to a terminal; the folder's own name where it says nothing readable."""
    from mi_audit.reporting.text import visible

    return " ".join(visible(_said(folder) or folder.name).split())


def _said(folder: Path) -> str | None:
    from mi_audit.engine.cache_folder import FACTS

    file = folder / FACTS
    try:
        if not file.is_file():
            return None
        with file.open("rb") as stream:
            facts = json.loads(stream.read(65_536))
        return f"{str(facts['ref'])[:60]!r}, root {str(facts['root'])[:12]}, {str(facts['dtype'])[:12]} on {str(facts['device'])[:60]}"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
