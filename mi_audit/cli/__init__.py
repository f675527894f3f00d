"""The command `mi-audit`: everything around a run. The run itself is `pytest`."""

import sys
from typing import Annotated

import typer

from mi_audit import __version__
from mi_audit.cli import cache, demo, doctor, models, plan, plugins, report, sae, size, suites
from mi_audit.config import third_party
from mi_audit.errors import MiAuditError

app = typer.Typer(
    help="pytest for what happens inside a language model. Audits run with `pytest PATH`; this command does what surrounds them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("demo")(demo.demo)
app.command("plan")(plan.plan)
app.command("report")(report.report)
app.command("size", context_settings={"ignore_unknown_options": True})(size.size)  # thresholds may be negative
app.command("models")(models.models)
app.command("plugins")(plugins.plugins)
app.command("doctor")(doctor.doctor)
app.add_typer(suites.app, name="suites")
app.add_typer(sae.app, name="sae")
app.add_typer(cache.app, name="cache")


@app.callback(invoke_without_command=True)
def _options(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="print the version and stop")] = False,
    no_plugins: Annotated[bool, typer.Option("--no-plugins", help="leave out the plugins of other distributions")] = False,
) -> None:
    if version:
        typer.echo(f"mi-audit {__version__}")
        raise typer.Exit
    context.with_resource(third_party(allowed=not no_plugins))


def main() -> None:
    """Run the command; an error of ours is one message and exit code 2."""
    try:
        app()
    except MiAuditError as error:
        typer.secho(f"mi-audit: {error}", fg="red", err=True)
        sys.exit(2)
