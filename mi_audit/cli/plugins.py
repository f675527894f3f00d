"""`mi-audit plugins`: what is active, and where it is from."""

import typer


def plugins() -> None:
    """List model sources, suite formats, probe methods, effects and renderers, with the plugin that each is from, then the plugins with their digests."""
    from mi_audit.plugins import active

    registry = active()
    for offer in registry.offers:
        typer.echo(f"{offer.kind:<14}{offer.name:<24}{'built in' if offer.plugin.built_in else offer.plugin}")
    typer.echo("")
    for plugin in registry.plugins:
        origin = "built in" if plugin.built_in else "third-party"
        typer.echo(f"{origin:<14}{plugin.distribution} {plugin.version}  {plugin.name}  {plugin.module}  sha256 {plugin.digest}")
