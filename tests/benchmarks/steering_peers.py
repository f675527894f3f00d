"""The peers of a steering sweep, each as its own documentation shows it: a full pass for each strength, with all of its logits.

A peer is a function from a batch of token ids and a strength to the logits after each prompt [prompt, vocabulary]. Each works on a copy of the model, since
some put modules of their own in place of the model's.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mi_audit.model.loaded import LoadedModel
from mi_audit.plan.places import At
from tests.agreement.bridge import bridge_of, name_of
from tests.benchmarks.peers import Rows, last_of, padded
from tests.benchmarks.prompts import Workload

Effects = NDArray[np.float64]
Steered = Callable[[Rows, float], Tensor]


@dataclass(frozen=True, eq=False)
class Sweep:
    """A vector [width] that is added at a hook point, and the answers, of which the effect is the log-probability that one of them comes next, in nats."""

    at: At
    vector: Tensor
    answers: tuple[int, ...]

    def effect(self, logits_RV: Tensor) -> Tensor:
        """Of R rows of logits [R]."""
        return logits_RV.to(torch.float32).log_softmax(dim=-1)[:, list(self.answers)].logsumexp(dim=-1)


def hugging_face(model: LoadedModel, sweep: Sweep) -> Steered:
    """`model(**inputs).logits`, with a forward hook on the block that adds; padded on the right."""
    hf = copy.deepcopy(model.hf)
    block = _block(model, hf, sweep)

    def read(rows: Rows, strength: float) -> Tensor:
        ids_BL, mask_BL = padded(rows, model.device)
        with adding(block, strength * sweep.vector * _touched(mask_BL)):
            logits_BLV = hf(input_ids=ids_BL, attention_mask=mask_BL).logits
        return last_of(logits_BLV, mask_BL)

    return read


def transformer_lens(model: LoadedModel, sweep: Sweep) -> Steered:
    """TransformerLens's bridge: `run_with_hooks`; padded on the right."""
    bridge = bridge_of(model)
    name = name_of(sweep.at.point, sweep.at.layer)

    def read(rows: Rows, strength: float) -> Tensor:
        ids_BL, mask_BL = padded(rows, model.device)
        change_BLD = strength * sweep.vector * _touched(mask_BL)
        hooks = [(name, lambda acts_BLD, hook: acts_BLD + change_BLD)]
        return last_of(bridge.run_with_hooks(ids_BL, attention_mask=mask_BL, return_type="logits", fwd_hooks=hooks), mask_BL)

    return read


def nnsight(model: LoadedModel, sweep: Sweep) -> Steered:
    """nnsight: a trace over the batch, which it pads on the left with mask and position ids."""
    import nnsight as library  # it hangs a method on every object, so it is imported by none but those who measure it

    wrapped = library.TransformersModel(copy.deepcopy(model.hf), tokenizer=copy.deepcopy(model.tokenizer))
    block = wrapped.get(_path(model, sweep))

    def read(rows: Rows, strength: float) -> Tensor:
        _, mask_BL = padded(rows, model.device)
        change_BLD = strength * sweep.vector * _touched(mask_BL)
        for row, length in zip(change_BLD, mask_BL.sum(dim=1).tolist(), strict=True):
            row.copy_(row.roll(row.shape[0] - length, dims=0))
        with wrapped.trace([list(row) for row in rows]):
            block.output += change_BLD
            logits_BLV = library.save(wrapped.output.logits)
        return logits_BLV[:, -1]

    return read


PEERS: dict[str, Callable[[LoadedModel, Sweep], Steered]] = {
    "nnsight": nnsight,
    "TransformerLens": transformer_lens,
    "Hugging Face": hugging_face,
}


@torch.inference_mode()
def sweep_by_batches(sweep: Sweep, read: Steered, batches: Sequence[Sequence[int]], work: Workload, strengths: Sequence[float]) -> Effects:
    """Pass all batches once for each strength: effects [strength, prompt]."""
    found = torch.zeros(len(strengths), len(work), dtype=torch.float64)
    for number, strength in enumerate(strengths):
        for batch in batches:
            found[number, list(batch)] = sweep.effect(read([work.ids[index] for index in batch], strength)).double().cpu()
    return found.numpy()


@torch.inference_mode()
def alone(model: LoadedModel, sweep: Sweep, work: Workload, strengths: Sequence[float], *, last: bool) -> Effects:
    """What all are held against: each prompt alone, nothing padded, all tokens but the first touched, or only the last: effects [strength, prompt]."""
    block = _block(model, model.hf, sweep)
    found = torch.zeros(len(strengths), len(work), dtype=torch.float64)
    for prompt, ids in enumerate(work.ids):
        touched_L1 = torch.zeros(len(ids), 1, device=model.device)
        touched_L1[-1 if last else 1 :] = 1
        for number, strength in enumerate(strengths):
            with adding(block, strength * sweep.vector * touched_L1):
                logits_1LV = model.hf(input_ids=torch.tensor([ids], device=model.device), use_cache=False).logits
            found[number, prompt] = sweep.effect(logits_1LV[:, -1])
    return found.numpy()


@contextmanager
def adding(block: torch.nn.Module, change: Tensor) -> Iterator[None]:
    """Add to what a block returns."""
    handle = block.register_forward_hook(lambda module, args, output: output + change)
    try:
        yield
    finally:
        handle.remove()


def _path(model: LoadedModel, sweep: Sweep) -> str:
    """The name of the block after which the vector is added."""
    assert sweep.at.point == "resid_post" and sweep.at.layer is not None
    block = model.hook_points.decoder.blocks[sweep.at.layer].module
    return next(path for path, module in model.hf.named_modules() if module is block)


def _block(model: LoadedModel, hf: torch.nn.Module, sweep: Sweep) -> torch.nn.Module:
    return hf.get_submodule(_path(model, sweep))


def _touched(mask_BL: Tensor) -> Tensor:
    """1 [B, L, 1] at every token but the first, of rows that are padded on the right."""
    return torch.cat([torch.zeros_like(mask_BL[:, :1]), mask_BL[:, 1:]], dim=1)[..., None]
