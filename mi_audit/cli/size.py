"""`mi-audit size`: how many prompts and groups a claim needs."""

from typing import Annotated

import typer


def size(
    quantity: Annotated[str, typer.Argument(help="auroc, accuracy, recall, rate, mean, …; a wrong one lists them all")],
    threshold: Annotated[float, typer.Argument(help="the threshold claimed")],
    expected: Annotated[float, typer.Option(help="the value that you expect")],
    op: Annotated[str, typer.Option(help="one of >=, >, <=, <; by default the side that `expected` is on")] = "",
    power: Annotated[float, typer.Option(help="probability that the claim passes if you are right")] = 0.8,
    alpha: Annotated[float, typer.Option(help="one-sided probability that it wrongly passes")] = 0.025,
    per_group: Annotated[int, typer.Option(help="prompts in a group")] = 1,
    icc: Annotated[float, typer.Option(help="correlation of prompts within a group")] = 0.1,
    prevalence: Annotated[float, typer.Option(help="share of positive prompts")] = 0.5,
) -> None:
    """Say how many prompts and groups a claim needs, so that a suite is large enough before it is written.

    Example: mi-audit size auroc 0.9 --expected 0.94 --per-group 8
    """
    from mi_audit.stats.power import size as needed

    side = op or (">=" if expected > threshold else "<=")
    need = needed(
        quantity, side, threshold, expected=expected, power=power, alpha=alpha, per_group=per_group, icc=icc if per_group > 1 else 0.0, prevalence=prevalence
    )
    typer.echo(f"{quantity}() {side} {threshold:g} passes with probability {power:g}, if the truth is {expected:g}, with {need}.")
