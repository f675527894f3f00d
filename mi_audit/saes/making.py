"""From a model and texts to an SAE in a folder, with a card that says how it was made and what it is worth."""

import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from importlib import metadata
from pathlib import Path
from time import monotonic
from typing import Any, Final, Protocol

import numpy as np
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from mi_audit.engine.streaming import batches_of, stream, streamed
from mi_audit.errors import DetectorError
from mi_audit.model.loaded import LoadedModel
from mi_audit.plan.digest import Json, digest_of
from mi_audit.plan.hook_names import hook_name_of
from mi_audit.plan.places import At
from mi_audit.plan.recipe import COUNTED, Recipe
from mi_audit.plan.saes import CONFIG, WEIGHTS, spec_of
from mi_audit.saes.corpus import Corpus
from mi_audit.saes.held_out import HeldOut, held_out
from mi_audit.saes.spool import Spool
from mi_audit.saes.training import SAMPLE, Heard, train

CARD: Final = "training_card.json"
_MADE: Final = "made_of.json"
_FLUSHED: Final = 64


class Told(Heard, Protocol):
    """Hears of the passes too."""

    def passed(self, done: int, tokens: int) -> None:
        """Of so many tokens so many have passed through the model."""


def make(model: LoadedModel, at: At, corpus: Corpus, recipe: Recipe, context: int, out: Path, told: Told) -> HeldOut:
    """Train an SAE and write it to `out`, a new folder: sae-lens's two files and a training card.

    What is under way stands in `<out>.work`: activations and checkpoints. Killed and called again with the same arguments, it goes on from there; with another
    recipe the activations that are there are taken again.

    Args:
        model: the model.
        at: the hook point, its layer absolute.
        corpus: what it is trained on and what is held out.
        recipe: what the trainer is told.
        context: tokens of a context.
        out: the folder.
        told: hears how it goes.

    Raises:
        DetectorError: `out` is there, something else is under way beside it, the disk is full, or the training diverged.
        HookPointError, PromptError: as the passes.
    """
    began = monotonic()
    width = model.hook_points.resolve(at.point, at.layer).width
    made_of = _made_of(model, at, corpus)
    work = _work(out, made_of)
    described = {
        "model_name": Path(model.ref.split("@")[0]).name,
        "hook_name": hook_name_of(at),
        "prepend_bos": corpus.prepends_bos,
        "context_size": context,
        "dataset_path": ", ".join(source.name for source in corpus.sources),
    }
    with _alone(work), Spool(work, width) as spool:
        sinks = _fill(spool, model, at, corpus, told)
        trained = train(spool, recipe, described, work, told)
        seen = spool.read(np.linspace(0, spool.rows - 1, min(SAMPLE, spool.rows)).astype(np.int64))
        rows = spool.rows
    fresh = out.with_name(f"{out.name}.new")
    with _writing(out):
        shutil.rmtree(fresh, ignore_errors=True)
        trained.save_inference_model(fresh)
        _cast(fresh, recipe)
    contexts = streamed(model, corpus.held_out, at)
    quality = held_out(model, spec_of(fresh, str(out), model=model.ref), contexts, seen, _components(recipe, width))
    versions: dict[str, Json] = {name: metadata.version(name) for name in ("mi-audit", "sae-lens", "torch", "transformers")}
    card: dict[str, Json] = {
        "format": 1,
        "made_of": made_of,
        "recipe": recipe.describe(),
        "context": context,
        "sources": [source.describe() for source in corpus.sources],
        "activations": rows,
        "sinks_left_out": sinks,
        "held_out": quality.describe(),
        "seconds": round(monotonic() - began, 1),
        "versions": versions | {"python": _python()},
    }
    with _writing(out):
        _publish(fresh, quality, recipe)
        (fresh / CARD).write_text(json.dumps(card, indent=2, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")
        fresh.rename(out)
    shutil.rmtree(work)
    return quality


@contextmanager
def _alone(work: Path) -> Iterator[None]:
    """Hold the folder of what is under way; DetectorError where another process does."""
    lock = FileLock(work / "lock")
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        raise DetectorError(f"another process trains in {work}; wait for it, or give another --out") from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    """DetectorError where the SAE can't be written; what is under way stays, so that it need not be trained again."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise DetectorError(f"{out} can't be written ({error}); make room and start again: it goes on where it was") from error


def _components(recipe: Recipe, width: int) -> int:
    """How many principal components are held against the SAE: as many as latents may fire, or 32 where it is not told how many."""
    return min(recipe.k if recipe.architecture in COUNTED else 32, width - 1)


def _python() -> str:
    return ".".join(map(str, sys.version_info[:3]))


def _made_of(model: LoadedModel, at: At, corpus: Corpus) -> dict[str, Json]:
    """All that decides what the activations are, but for the versions of the software. With another recipe those that stand on disk are taken again."""
    tokens = digest_of({"train": [list(ids) for ids in corpus.train], "held_out": [list(ids) for ids in corpus.held_out]})
    rows: list[Json] = [[list(row) for row in batch.rows] for batch in batches_of(model, corpus.train)]
    batches = digest_of({"rows": rows})
    return {
        "batches": batches,
        "processor": model.processor,
        "model": model.ref,
        "model_root": model.identity.root,
        "dtype": model.identity.dtype,
        "at": str(at),
        "tokens": tokens,
    }


def _work(out: Path, made_of: dict[str, Json]) -> Path:
    """The folder of what is under way; DetectorError where it is for something else."""
    if out.exists():
        raise DetectorError(f"{out} is there already; give a new folder with --out")
    work, text = out.with_name(f"{out.name}.work"), json.dumps(made_of, indent=2, sort_keys=True)
    try:
        work.mkdir(parents=True, exist_ok=True)
        note = work / _MADE
        if not note.exists():
            note.write_text(text, encoding="utf-8")
        elif note.read_text(encoding="utf-8") != text:
            raise DetectorError(f"{work} holds activations of another model, place or text; finish what they are for, remove it, or give another --out")
    except OSError as error:
        raise DetectorError(f"{work} can't be written: {error.strerror}") from error
    return work


def _fill(spool: Spool, model: LoadedModel, at: At, corpus: Corpus, told: Told) -> int:
    """Pass what has not passed yet; how many attention sinks were left out in all."""
    tokens = corpus.tokens
    spool.require_room(tokens)
    with closing(stream(model, corpus.train, at, after=spool.batches)) as passing:
        for batch in passing:
            spool.append([each.activations[~each.sinks] for _, each in batch], sum(int(each.sinks.sum()) for _, each in batch))
            told.passed(spool.rows, tokens)
            if spool.batches % _FLUSHED == 0:
                spool.flush()
    spool.flush()
    if spool.rows + spool.left_out != tokens:
        raise DetectorError(f"{spool.rows + spool.left_out} of {tokens} tokens stand on disk; remove the folder of what is under way and train again")
    return spool.left_out


def _cast(folder: Path, recipe: Recipe) -> None:
    """Save the weights in fewer digits, where that is asked for; they are measured as they are saved."""
    if recipe.dtype == "float32":
        return
    weights, config = folder / WEIGHTS, folder / CONFIG
    save_file({name: tensor.half() for name, tensor in load_file(weights).items()}, weights)
    config.write_text(json.dumps(json.loads(config.read_text(encoding="utf-8")) | {"dtype": recipe.dtype}), encoding="utf-8")


def _publish(folder: Path, quality: HeldOut, recipe: Recipe) -> None:
    """Put the numbers in the SAE's metadata, by sae-lens's names, so that they travel with it."""
    path = folder / CONFIG
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    config["metadata"] |= {
        "explained_variance": round(quality.explained_variance, 4),
        "l0": round(quality.l0, 2),
        "loss_recovered": round(quality.loss_recovered, 4),
        "num_dead_features": round((1 - quality.alive) * recipe.width),
    }
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
