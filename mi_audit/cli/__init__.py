"""The command `mi-audit`: everything around a run. The run itself is `pytest`."""

import sys

import typer

from mi_audit.cli import demo, doctor, models, plan, report, size, suites
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
app.command("size")(size.size)
app.command("models")(models.models)
app.command("doctor")(doctor.doctor)
app.add_typer(suites.app, name="suites")


def main() -> None:
    """Run the command; an error of ours is one message and exit code 2."""
    try:
        app()
    except MiAuditError as error:
        typer.secho(f"mi-audit: {error}", fg="red", err=True)
        sys.exit(2)
