"""What a steering sweep is read with: ours, and each peer with the batches that it is given."""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch

from mi_audit.engine.interventions import Add
from mi_audit.engine.variants import Read, holding, read_variants
from mi_audit.model.loaded import LoadedModel
from mi_audit.plan.places import At
from tests.benchmarks.peers import arrival, by_length, middle
from tests.benchmarks.prompts import Workload
from tests.benchmarks.steering_peers import PEERS, Effects, Sweep, hugging_face, sweep_by_batches

OURS, LAST = "ours", "ours, generated tokens only"
SORTED, TIGHT = "Hugging Face, length-sorted, 2048 tokens", "Hugging Face, length-sorted, 512 tokens"
ARRIVAL = {f"{name}, 16 in arrival order": name for name in PEERS}

LENGTH = 80.0
"""Of the vector: half of what a token of the default model's middle layer measures."""
ANSWERS = (" the", " a", " I")

Row = Callable[[Workload, Sequence[float]], Effects]
"""From prompts and strengths to effects [strength, prompt]."""


def sweep_of(model: LoadedModel) -> Sweep:
    """A random vector at resid_post of the middle layer."""
    vector = torch.randn(model.d_model, generator=torch.Generator().manual_seed(0))
    answers = tuple(model.tokenizer.encode(text, add_special_tokens=False)[0] for text in ANSWERS)
    return Sweep(At("resid_post", layer=middle(model)), (vector * (LENGTH / vector.norm())).to(model.device, model.dtype), answers)


def row_of(name: str, model: LoadedModel, sweep: Sweep) -> Row:
    """The row of that name; a peer copies the model here."""
    if name in (OURS, LAST):
        return partial(_ours, model, sweep, name == LAST)
    if name in (SORTED, TIGHT):
        read = hugging_face(model, sweep)
        budget = 2048 if name == SORTED else 512
        return lambda work, strengths: sweep_by_batches(sweep, read, by_length(work.lengths, budget), work, strengths)
    read = PEERS[ARRIVAL[name]](model, sweep)
    return lambda work, strengths: sweep_by_batches(sweep, read, arrival(len(work)), work, strengths)


def _ours(model: LoadedModel, sweep: Sweep, last: bool, work: Workload, strengths: Sequence[float]) -> Effects:
    """The engine's variants of each prompt, of which a strength makes one."""
    numbers, found = torch.tensor(strengths), []
    with holding(model, [sweep.at]):
        for ids in work.ids:
            end = len(ids) - 1
            read = Read((end,), lambda logits_RKV, base_KV: sweep.effect(logits_RKV[:, 0])[:, None])
            touched = [end] if last else range(1, len(ids))
            _, each = read_variants(model, ids, touched, [sweep.at], len(numbers), lambda rows: [(sweep.at, Add(sweep.vector, numbers[rows]))], read)
            found.append(each[:, 0].numpy())
    return np.stack(found, axis=1)
