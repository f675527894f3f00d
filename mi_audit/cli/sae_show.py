"""`mi-audit sae show`: what a latent is about, on the terminal and as a page."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.console import Console
from rich.text import Text

from mi_audit.config import DEFAULT_MODEL, Settings
from mi_audit.errors import EvidenceError
from mi_audit.reporting.text import visible

if TYPE_CHECKING:
    from mi_audit.saes.looking import LatentView, Shown

_BLOCKS: Final = " ▁▂▃▄▅▆▇█"
_LONGEST: Final = 60
"""Tokens of a prompt that a terminal shows: those about the highest."""


def show(
    sae: Annotated[str, typer.Argument(help="the SAE: a folder, a shipped one by name, or release/sae_id")],
    latent: Annotated[int, typer.Argument(help="its number, from 0")],
    suite: Annotated[str, typer.Option(help="the suite over which it is read: a file, or a shipped one by name")] = "neutral_text",
    model: Annotated[str | None, typer.Option(help="the model, by the name that the SAE's metadata give it; by default the default model")] = None,
    out: Annotated[Path | None, typer.Option(help="write a page here, e.g. latent.html")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, …")] = "auto",
) -> None:
    """Show the prompts of a suite in which a latent is highest, its values, the tokens that it makes likelier, and its nearest latents.

    Example: mi-audit sae show ./my-sae 1234 --suite questions.jsonl --out latent.html
    """
    from mi_audit.loading import open_audited
    from mi_audit.reporting.latent_page import render
    from mi_audit.sae_sources import named
    from mi_audit.suites.suite import suite as read

    spec = named(sae, Path.cwd())
    prompts = read(str(Path(suite).absolute()) if Path(suite).exists() else suite)
    audited, cache, _ = open_audited(Settings(model=model or spec.model or DEFAULT_MODEL, device=device))
    from mi_audit.detectors.sae_checks import require_match
    from mi_audit.saes.looking import look

    require_match(spec, audited)
    view, place = look(audited, spec, latent, prompts, cache), str(spec.at.in_model(audited.n_layers))
    _print(spec.name, place, view)
    if out is not None:
        try:
            out.write_text(render(spec.name, place, audited.ref, view), encoding="utf-8")
        except OSError as error:
            raise EvidenceError(f"{out} can't be written: {error.strerror}; choose another place") from error
        typer.echo(str(out))


def _print(sae: str, place: str, view: "LatentView") -> None:
    console = Console(highlight=False)
    share = f" ({view.firings / view.tokens:.2%})" if view.tokens else ""
    console.print(f"latent {view.latent} of {sae}, {place}: fires at {view.firings} of {view.tokens} tokens{share} of {view.suite}", markup=False)
    if view.firings:
        highest = max(view.counts)
        bars = "".join(_BLOCKS[-(-count * 8 // highest)] for count in view.counts.tolist())
        console.print(f"values    {view.edges[0]:.3g} {bars} {view.edges[-1]:.3g}", markup=False)
    if view.no_logits:
        console.print(f"logits    {view.no_logits}", markup=False)
    else:
        for name, tokens in (("likelier", view.promoted), ("unlikelier", view.suppressed)):
            console.print(f"{name:<10}" + "  ".join(f"{token!r} {effect:+.2f}" for token, effect in tokens), markup=False)
    console.print("nearest   " + "  ".join(f"{other} {cosine:.2f}" for other, cosine in view.nearest), markup=False)
    if view.neuronpedia:
        console.print(view.neuronpedia, markup=False)
    for shown in view.top:
        console.print(_strip(shown))


def _strip(shown: "Shown") -> Text:
    """The tokens about the highest one, the stronger the latent the stronger the colour, and its value after the highest."""
    middle = int((shown.values * ~shown.sinks).argmax())
    start = max(0, min(middle - _LONGEST // 2, len(shown.texts) - _LONGEST))
    line = Text(f"\n{shown.prompt}  highest {shown.highest:.3g}\n", style="bold")
    for position in range(start, min(start + _LONGEST, len(shown.texts))):
        share = 0.0 if shown.sinks[position] or shown.highest <= 0 else max(0.0, float(shown.values[position]) / shown.highest)
        text = visible(shown.texts[position].replace("\n", "↵"))
        line.append(text, style="not bold" if share == 0 else f"not bold black on rgb(255,{int(235 - 115 * share)},{int(205 - 175 * share)})")
        if position == middle:
            line.append(f"⟨{shown.values[position]:.3g}⟩", style="not bold dim")
    return line
