"""`mi-audit suites`: check a suite's file; list the shipped ones."""

from typing import Annotated

import typer

app = typer.Typer(help="Prompt suites.", no_args_is_help=True)


@app.command("check")
def check_file(
    file: Annotated[str, typer.Argument(help="a file (JSONL, CSV, Parquet, JSON, or a plugin's format), or the name of a shipped suite")],
    positive: Annotated[str | None, typer.Option(help="the label of the positive class")] = None,
) -> None:
    """Read a suite and report every error with its line, and what would weaken claims that rest on it. Exits 1 on an error."""
    from mi_audit.suites.check import check

    found = check(file, positive=positive)
    typer.echo(f"{found.source}: {found.prompts} prompts in {found.groups} groups; {found.chats} chats, {found.responses} with a response")
    if found.labels:
        typer.echo("  labels  " + ", ".join(f"{name or 'none'}: {count}" for name, count in found.labels))
    for split in found.splits:
        typer.echo(
            f"  {split.name:<12}{split.prompts} prompts in {split.groups} groups  " + ", ".join(f"{name or 'none'}: {count}" for name, count in split.labels)
        )
    for colour, word, problems in (("red", "error", found.errors), ("yellow", "warning", found.warnings), (None, "note", found.notes)):
        for problem in problems:
            typer.secho(f"{word}: {problem}", fg=colour)
    if found.unlisted_errors:
        typer.secho(f"… and {found.unlisted_errors} more errors", fg="red")
    if not found.ok:
        raise typer.Exit(1)


@app.command("list")
def list_shipped() -> None:
    """Name the shipped suites, with their sizes."""
    from mi_audit.shipped import shipped_suites
    from mi_audit.suites.suite import suite

    for name in shipped_suites():
        loaded = suite(name)
        typer.echo(f"{name:<28}{len(loaded):>6} prompts in {len(set(loaded.groups())):>5} groups  digest {loaded.digest[:12]}")
