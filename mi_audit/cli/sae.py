"""`mi-audit sae`: sparse autoencoders."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from mi_audit.cli import sae_find, sae_show
from mi_audit.errors import PlanError

if TYPE_CHECKING:
    from mi_audit.plan.places import At
    from mi_audit.suites.suite import Suite

app = typer.Typer(help="Sparse autoencoders: train one, find latents in one, look at a latent.", no_args_is_help=True)
app.command("find")(sae_find.find)
app.command("show")(sae_show.show)

_TENTH: Final = 10


@app.command("train")
def train(
    model: Annotated[str, typer.Argument(help="the model: a shipped name, a hub name, a directory, a .gguf file")],
    more: Annotated[list[Path] | None, typer.Argument(metavar="[FILE]…", help="further texts, so that --text *.txt takes them all")] = None,
    at: Annotated[str, typer.Option(help="the hook point: POINT:LAYER, or POINT:DEPTH with a depth like 0.5")] = "resid_post:0.5",
    text: Annotated[list[Path] | None, typer.Option(help="a UTF-8 text to train on; may be given several times")] = None,
    suite: Annotated[
        list[str] | None, typer.Option(help="a suite to train on besides: a file, or a shipped one by name, or NAME[train]; may be repeated")
    ] = None,
    out: Annotated[Path, typer.Option(help="a new folder for the SAE")] = Path("sae"),
    architecture: Annotated[str, typer.Option(help="topk, batchtopk, matryoshka_batchtopk, standard, gated or jumprelu")] = "topk",
    width: Annotated[int, typer.Option(help="latents")] = 4608,
    k: Annotated[int, typer.Option(help="latents that fire at a token, of the topk architectures")] = 32,
    sparsity: Annotated[float, typer.Option(help="what firing costs, of the others: the coefficient of their sparsity loss")] = 1.0,
    tokens: Annotated[int | None, typer.Option(help="about how many tokens are taken of the texts, at random; all by default")] = None,
    samples: Annotated[int | None, typer.Option(help="activations that the trainer sees; by default each three times")] = None,
    batch: Annotated[int, typer.Option(help="activations in a step")] = 2048,
    learning_rate: Annotated[float, typer.Option(help="of Adam")] = 1e-3,
    context: Annotated[int, typer.Option(help="tokens of a context")] = 128,
    seed: Annotated[int, typer.Option(help="decides the sample, the first weights and the order")] = 0,
    dtype: Annotated[str, typer.Option(help="of the saved weights: float32 or float16")] = "float32",
    device: Annotated[str, typer.Option(help="for the model: auto, cpu, cuda, …")] = "auto",
) -> None:
    """Train an SAE on a model's activations, with sae-lens's trainer, and say what it is worth on text that it has not seen.

    Activations are passed once, stand on disk beside OUT while it lasts, and attention sinks are left out. Killed and started again with the same arguments,
    it goes on where it was. OUT holds cfg.json and sae_weights.safetensors in sae-lens's format, and a training card.

    Example: mi-audit sae train smollm2-135m-instruct --at resid_post:15 --text book.txt --width 4608 --k 32 --out my-sae
    """
    from dataclasses import replace

    from mi_audit.plan.recipe import Recipe

    place = _place(at)
    recipe = Recipe(architecture, width, k, sparsity, 1 if samples is None else samples, batch, learning_rate, seed, dtype)  # type: ignore[arg-type]
    texts = [*(text or []), *(more or [])]
    if not texts and not suite:
        raise PlanError("mi-audit sae train: give a text with --text, or a suite with --suite")

    from mi_audit.model.load import load
    from mi_audit.saes.corpus import cut
    from mi_audit.saes.making import make

    suites = [_suite(name) for name in suite or []]
    loaded = load(model, device=device)
    if loaded.max_length is not None and context > loaded.max_length:
        raise PlanError(f"--context {context}: {loaded.ref} takes at most {loaded.max_length} tokens")
    corpus = cut(loaded.tokenizer, texts, suites, context=context, tokens=tokens, seed=seed)
    recipe = replace(recipe, samples=3 * corpus.tokens if samples is None else samples)
    if corpus.tokens < batch:
        raise PlanError(f"--batch {batch}: there are {corpus.tokens} tokens to train on; give more text, or a smaller batch")
    typer.echo(
        f"{loaded.ref}, {place.in_model(loaded.n_layers)}: {corpus.tokens} tokens to train on, {sum(map(len, corpus.held_out))} held out;"
        f" {recipe.steps} steps of {recipe.batch} activations",
    )
    with _Bars() as told:
        found = make(loaded, place.in_model(loaded.n_layers), corpus, recipe, context, out, told)
    typer.echo(
        f"{out}: on {found.tokens} tokens of held-out text it explains {found.explained_variance:.1%} of the variance"
        f" ({found.components} principal components {found.pca_explained_variance:.1%}) with {found.l0:.1f} latents a token;"
        f" {found.alive:.1%} of its latents fire there; in the activations' place it recovers {found.loss_recovered:.1%} of the loss against their mean"
        f" ({found.loss_recovered_zero:.1%} against zeros), KL {found.kl:.3f} nats a token"
    )


def _place(given: str) -> "At":
    from mi_audit.plan.places import at

    point, _, where = given.partition(":")
    try:
        if not where:
            return at(point)
        return at(point, depth=float(where)) if "." in where else at(point, layer=int(where))
    except ValueError as error:
        raise PlanError(f"--at {given}: give POINT:LAYER, like resid_post:15, or POINT:DEPTH, like resid_post:0.5") from error


def _suite(given: str) -> "Suite":
    from mi_audit.suites.suite import suite

    name, bracket, split = given.removesuffix("]").partition("[") if given.endswith("]") else (given, "", "")
    found = suite(str(Path(name).absolute()) if Path(name).exists() else name)
    return found[split] if bracket else found


class _Bars:
    """Two bars on standard error: the passes, then the steps with what the SAE explains. Where standard error is no terminal, a line for each tenth."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"), TimeRemainingColumn(), TextColumn("left")
        self._bars = Progress(*columns, console=self._console, transient=True, disable=not self._console.is_terminal)
        self._tasks: dict[str, TaskID] = {}
        self._tenths: dict[str, int] = {}

    def __enter__(self) -> "_Bars":
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def passed(self, done: int, tokens: int) -> None:
        """Move the first bar."""
        self._move("passes", f"Passing {tokens} tokens", done, tokens)

    def step(self, done: int, steps: int, explained_variance: float, l0: float, dead: int) -> None:
        """Move the second."""
        self._move("steps", f"Training: explains {explained_variance:.1%}, L0 {l0:.1f}, {dead} dead", done, steps)

    def _move(self, name: str, text: str, done: int, total: int) -> None:
        if name not in self._tasks:
            self._tasks[name] = self._bars.add_task(text, total=total)
        self._bars.update(self._tasks[name], description=text, completed=done)
        tenth = done * _TENTH // total
        if not self._console.is_terminal and tenth > self._tenths.get(name, 0):
            self._tenths[name] = tenth
            self._console.print(f"{text} ({100 * done // total} %)", highlight=False)
