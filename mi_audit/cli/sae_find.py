"""`mi-audit sae find`: which latents separate a suite's labels, and what each is worth."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from mi_audit.detectors.found_latents import FoundLatents, Worth


def find(
    sae: Annotated[str, typer.Argument(help="the SAE: a folder, a shipped one by name, or release/sae_id")],
    suite: Annotated[str, typer.Argument(help="a labelled suite: a file, or a shipped one by name")],
    positive: Annotated[str | None, typer.Option(help="the label of the positive class")] = None,
    model: Annotated[str | None, typer.Option(help="the model, by the name that the SAE's metadata give it; by default the default model")] = None,
    tokens: Annotated[str, typer.Option(help="last, all or response")] = "last",
    pooling: Annotated[str, typer.Option(help="of several tokens: mean or max")] = "mean",
    rate: Annotated[float, typer.Option(help="of false discoveries among the candidates, at most")] = 0.05,
    alpha: Annotated[float, typer.Option(help="the probability that any candidate is wrongly confirmed")] = 0.025,
    most: Annotated[int, typer.Option(help="candidates that are confirmed, at most")] = 20,
    seed: Annotated[int, typer.Option(help="of every random step")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, …")] = "auto",
) -> None:
    """Rank an SAE's latents by how they separate a suite's labels, confirm them on its test split, and hold them against what finds nothing.

    A latent is evidence where it is confirmed, and better than random latents that fire as often and than the best of an SAE with a random encoder.

    Example: mi-audit sae find ./my-sae questions.jsonl --positive sql --tokens all --pooling max
    """
    from mi_audit.finding import find_latents
    from mi_audit.sae_sources import named
    from mi_audit.suites.suite import suite as read

    spec = named(sae, Path.cwd())
    prompts = read(str(Path(suite).absolute()) if Path(suite).exists() else suite, positive=positive)
    found = find_latents(
        spec,
        prompts,
        model=model,
        tokens=tokens,
        pooling=pooling,  # type: ignore[arg-type]
        rate=rate,
        alpha=alpha,
        most=most,
        seed=seed,
        device=device,
    )
    _show(found)


def _show(found: "FoundLatents") -> None:
    console = Console(highlight=False)
    console.print(
        f"{found.alive} latents fire on the {found.discovered_on} prompts to discover on; {found.separate} separate the labels there."
        f" Held out: {found.confirmed_on} prompts; a probe on the raw activations reaches AUROC {found.probe_auroc:.3f},"
        f" the best latent of an SAE with a random encoder {found.random_sae_auroc:.3f}."
    )
    for reason in found.quality.below:
        console.print(f"{reason}: a claim on its latents is at best INCONCLUSIVE", style="yellow", markup=False)
    table = Table(box=None, pad_edge=False)
    for name in ("latent", "found AUROC", "q", "held-out AUROC", "p", "random latents p", "evidence", "besides"):
        table.add_column(name, justify="left" if name in ("evidence", "besides") else "right", overflow="fold")
    for each in found.latents:
        besides = [*each.tracks]
        besides += [f"split with {', '.join(map(str, each.duplicates[:5]))}"] if each.duplicates else []
        besides += [f"absorbed by {', '.join(map(str, each.absorbed_by[:5]))}"] if each.absorbed_by else []
        table.add_row(str(each.latent), *_worth(each, f"{each.q:.2g}"), "; ".join([*besides, *_beside_probe(each)]))
    if found.group is not None:
        table.add_row(f"sum of {len(found.group.latents)}", *_worth(found.group, ""), "; ".join(_beside_probe(found.group)))
    if table.row_count:
        console.print(table)
    if found.group is not None:
        console.print(
            f"the sum is of the latents {', '.join(map(str, found.group.latents))}; the best of an SAE with a random encoder reaches AUROC"
            f" {found.group.random_sae_auroc:.3f} held out"
        )
    if table.row_count:
        console.print("the order is that of the train groups; who picks by a held-out number has to claim on other prompts (found_on=)", style="dim")


def _worth(each: "Worth", q: str) -> tuple[str, ...]:
    evidence = "yes" if not each.weak else "; ".join(each.weak)
    return f"{each.found_auroc:.3f}", q, f"{each.auroc:.3f}", f"{each.p:.2g}", f"{each.random_p:.2g}", evidence


def _beside_probe(each: "Worth") -> list[str]:
    return ["worse than the probe"] if each.over_probe.high is not None and each.over_probe.high < 0 else []
