"""An SAE trained by sae-lens's own trainer on activations that stand on disk; what is killed goes on where it was."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from pickle import UnpicklingError  # what torch's reader of plain tensors raises of anything else
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor

from mi_audit.errors import DetectorError
from mi_audit.plan.digest import digest_of
from mi_audit.plan.recipe import Recipe
from mi_audit.saes.spool import Spool

if TYPE_CHECKING:
    from sae_lens import SAETrainer, TrainingSAE

EVERY: Final = 60.0
"""Seconds between checkpoints."""
SAMPLE: Final = 65_536
"""Activations from which their mean and norm are taken."""
HEARD: Final = 10
"""Steps from one word of progress to the next."""


class Heard(Protocol):
    """Hears how the training goes."""

    def step(self, done: int, steps: int, explained_variance: float, l0: float, dead: int) -> None:
        """Of `steps` so many are done; what the last batch showed of the SAE, and latents that have not fired for a tenth of all steps."""


def train(spool: Spool, recipe: Recipe, metadata: dict[str, Any], folder: Path, heard: Heard) -> "TrainingSAE[Any]":
    """Train an SAE on the rows of a spool, from the last checkpoint in `folder` if there is one.

    The activations are scaled to a mean norm of the square root of their width while it is trained, and the scale is folded into the weights at the end.

    Args:
        spool: the activations, d_in numbers each.
        recipe: what the trainer is told.
        metadata: of the SAE.
        folder: where checkpoints go.
        heard: hears of the steps.

    Returns:
        The SAE; its `save_inference_model` writes it.

    Raises:
        DetectorError: there are fewer activations than a batch, a checkpoint can't be written or read, or the training diverged.
    """
    if spool.rows < recipe.batch:
        raise DetectorError(f"there are {spool.rows} activations to train on, less than a batch of {recipe.batch}; give more text, or a smaller --batch")
    sample = torch.from_numpy(spool.read(np.linspace(0, spool.rows - 1, min(SAMPLE, spool.rows)).astype(np.int64)))
    scale = sample.shape[1] ** 0.5 / float(sample.norm(dim=-1).mean())
    torch.sparse.check_sparse_tensor_invariants.disable()  # type: ignore[no-untyped-call]  # the default; said aloud, it warns of nothing
    trainer = _trainer(recipe, sample.mean(dim=0) * scale, metadata)
    trainer.activation_scaler.scaling_factor = scale
    checkpoint = folder / f"checkpoint-{digest_of(recipe.describe())[:12]}"
    _recall(trainer, checkpoint)
    saved = monotonic()
    for rows in _order(spool.rows, recipe, trainer.n_training_steps):
        output = trainer.step(torch.from_numpy(spool.read(rows)))
        trainer.n_training_steps += 1
        if trainer.n_training_steps % HEARD == 0 or trainer.n_training_steps == recipe.steps:
            shown = trainer.build_train_step_log_dict(output, trainer.n_training_samples)
            if not np.isfinite(shown["losses/overall_loss"]):
                raise DetectorError(f"the training diverged at step {trainer.n_training_steps}; give a lower --learning-rate")
            heard.step(trainer.n_training_steps, recipe.steps, shown["metrics/explained_variance"], shown["metrics/l0"], int(shown["sparsity/dead_features"]))
        if monotonic() - saved > EVERY:
            _save(trainer, checkpoint)
            saved = monotonic()
    trained = trainer.sae
    trained.fold_activation_norm_scaling_factor(scale)
    return trained


def _order(rows: int, recipe: Recipe, done: int) -> Iterator["np.ndarray[Any, np.dtype[np.int64]]"]:
    """The numbers of the rows of each step that is left: all rows in a random order, then all in another, …"""
    epoch, order = -1, np.empty(0, dtype=np.int64)
    for step in range(done, recipe.steps):
        parts, start, needed = [], step * recipe.batch, recipe.batch
        while needed:
            if start // rows != epoch:
                epoch = start // rows
                order = np.random.default_rng([recipe.seed, 2, epoch]).permutation(rows)
            part = order[start % rows : start % rows + needed]
            parts.append(part)
            start, needed = start + len(part), needed - len(part)
        yield np.sort(np.concatenate(parts))  # on disk from front to back


def _trainer(recipe: Recipe, middle: Tensor, metadata: dict[str, Any]) -> "SAETrainer[Any, Any]":
    """The trainer with an SAE whose decoder's bias begins as the mean activation, so that latents need not learn it."""
    from sae_lens import SAETrainer
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.registry import get_sae_training_class
    from sae_lens.saes.sae import SAEMetadata

    kind, config = get_sae_training_class(recipe.architecture)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        sae = kind(
            config(
                d_in=len(middle),
                d_sae=recipe.width,
                dtype="float32",
                device="cpu",
                normalize_activations="expected_average_only_in",
                metadata=SAEMetadata(**metadata),
                **_own(recipe),
            )
        )
    sae.b_dec.data.copy_(middle)
    steps = recipe.steps
    told = SAETrainerConfig(
        total_training_samples=steps * recipe.batch,
        train_batch_size_samples=recipe.batch,
        lr=recipe.learning_rate,
        lr_end=recipe.learning_rate,
        lr_warm_up_steps=steps // 20,
        lr_decay_steps=steps // 5,
        dead_feature_window=max(10, steps // 10),
        logger=LoggingConfig(log_to_wandb=False),
    )
    return SAETrainer(cfg=told, sae=sae, data_provider=iter(()))


def _own(recipe: Recipe) -> dict[str, Any]:
    """What the configuration of this architecture has besides."""
    match recipe.architecture:
        case "topk":
            return {"k": recipe.k, "use_sparse_activations": True, "rescale_acts_by_decoder_norm": False}  # sparse is faster on a CPU, and fails with a rescale
        case "batchtopk":
            return {"k": recipe.k}
        case "matryoshka_batchtopk":
            return {"k": recipe.k, "matryoshka_widths": [width for part in (16, 8, 4, 2, 1) if (width := recipe.width // part) >= recipe.k]}
        case "jumprelu":
            return {"l0_coefficient": recipe.sparsity}
        case _:
            return {"l1_coefficient": recipe.sparsity}


def _save(trainer: "SAETrainer[Any, Any]", last: Path) -> None:
    """Write a checkpoint beside the last one, then put it in its place; whenever it is killed, one of them is whole."""
    fresh, old = last.with_suffix(".new"), last.with_suffix(".old")
    try:
        shutil.rmtree(fresh, ignore_errors=True)
        trainer.save_checkpoint(fresh.name, last.parent)
        if last.is_dir():
            shutil.rmtree(old, ignore_errors=True)
            last.rename(old)
        fresh.rename(last)
    except (OSError, RuntimeError, SafetensorError) as error:  # torch.save and safetensors have no OSError for a full disk
        raise DetectorError(f"the checkpoint {last} can't be written: {error}") from error


def _recall(trainer: "SAETrainer[Any, Any]", checkpoint: Path) -> None:
    """Go on from the last checkpoint. It is read as tensors alone (`weights_only`, torch's default), whatever stands in it."""
    last = next((path for path in (checkpoint, checkpoint.with_suffix(".old")) if path.is_dir()), None)
    if last is None:
        return
    try:
        trainer.sae.load_weights_from_checkpoint(last)
        trainer.load_trainer_state(last)
    except (OSError, ValueError, KeyError, RuntimeError, UnpicklingError) as error:
        raise DetectorError(f"the checkpoint {last} can't be read ({error}); remove it to train from the beginning") from error
