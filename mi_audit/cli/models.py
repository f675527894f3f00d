"""`mi-audit models`: the shipped models."""

import typer


def models() -> None:
    """List the shipped models: name, size, licence, and whether it is in the cache."""
    from mi_audit.model.catalogue import shipped_models

    for entry in shipped_models():
        state = "in the cache" if entry.cached else f"to be fetched, {entry.download_size / 1e6:.0f} MB"
        default = "  (the default)" if entry.default else ""
        typer.echo(f"{entry.name:<24}{entry.parameters / 1e6:>6.0f} M parameters  {entry.licence:<20}{state}{default}\n    licence: {entry.licence_url}")
    typer.echo("Other models: a hub name with optional @revision, a local directory, a .gguf file, or SOURCE:… with a source that mi-audit plugins lists.")
