"""The peers, each reading resid_post of the last token as its own documentation shows, and the reference that all are held against.

A reader takes a batch of token ids and gives [prompt, layer, width]. Peers get token ids that are ready: rendering and tokenising is not held against them,
though our own capture does both. Each works on a copy of the model, since some put modules of their own in place of the model's.
"""

import copy
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mi_audit.engine.capture import Site, capture
from mi_audit.model.loaded import LoadedModel
from mi_audit.plan.places import At, Tokens
from tests.agreement.bridge import bridge_of, name_of
from tests.benchmarks.prompts import Workload

Floats = NDArray[np.float32]
Rows = Sequence[Sequence[int]]
Reader = Callable[[Rows], Tensor]

BATCH = 16
BUDGET = 2048


def hugging_face(model: LoadedModel, layers: Sequence[int]) -> Reader:
    """`model(**inputs, output_hidden_states=True)`. Its last hidden state has passed the final norm and is not resid_post, so the last layer is left out."""
    hf = copy.deepcopy(model.hf)
    readable = [layer for layer in layers if layer < model.n_layers - 1]

    def read(rows: Rows) -> Tensor:
        ids_BL, mask_BL = padded(rows, model.device)
        hidden = hf(input_ids=ids_BL, attention_mask=mask_BL, output_hidden_states=True).hidden_states
        return torch.stack([last_of(hidden[layer + 1], mask_BL) for layer in readable], dim=1)

    return read


def transformer_lens(model: LoadedModel, layers: Sequence[int]) -> Reader:
    """TransformerLens's bridge: `run_with_cache` with `names_filter` and `stop_at_layer`, which can't stop after the last block."""
    bridge = bridge_of(model)
    names = [name_of("resid_post", layer) for layer in layers]
    deepest = max(layers) + 1
    stop = deepest if deepest < model.n_layers else None

    def read(rows: Rows) -> Tensor:
        ids_BL, mask_BL = padded(rows, model.device)
        _, cache = bridge.run_with_cache(ids_BL, attention_mask=mask_BL, names_filter=names, stop_at_layer=stop)
        return torch.stack([last_of(cache[name], mask_BL) for name in names], dim=1)

    return read


def nnsight(model: LoadedModel, layers: Sequence[int]) -> Reader:
    """nnsight: a trace over the batch, which it pads on the left with mask and position ids, and `tracer.stop()` after the deepest block."""
    import nnsight as library  # it hangs a method on every object, so it is imported by none but those who measure it

    wrapped = library.TransformersModel(copy.deepcopy(model.hf), tokenizer=copy.deepcopy(model.tokenizer))
    paths = {module: path for path, module in model.hf.named_modules()}
    blocks = [wrapped.get(paths[model.hook_points.decoder.blocks[layer].module]) for layer in layers]

    def read(rows: Rows) -> Tensor:
        with wrapped.trace([list(row) for row in rows]) as tracer:
            acts = library.save([])
            for block in blocks:
                acts.append(block.output[:, -1])
            tracer.stop()
        return torch.stack(list(acts), dim=1)

    return read


PEERS: dict[str, Callable[[LoadedModel, Sequence[int]], Reader]] = {
    "nnsight": nnsight,
    "TransformerLens": transformer_lens,
    "Hugging Face": hugging_face,
}


def middle(model: LoadedModel) -> int:
    """The layer at depth 0.5."""
    layer = At("resid_post", depth=0.5).layer_in(model.n_layers)
    assert layer is not None
    return layer


def arrival(n: int) -> list[list[int]]:
    """Batches of 16 in the order of the prompts."""
    return [list(range(start, min(start + BATCH, n))) for start in range(0, n, BATCH)]


def by_length(lengths: Sequence[int], budget: int = BUDGET) -> list[list[int]]:
    """Batches of prompts sorted by length, of at most `budget` tokens with their padding: what a peer is given when it is spared the choice of batches."""
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if not batches or (len(batches[-1]) + 1) * lengths[batches[-1][0]] > budget:
            batches.append([])
        batches[-1].append(index)
    return batches


@torch.inference_mode()
def read_all(read: Reader, work: Workload, batches: Iterable[Sequence[int]]) -> Floats:
    """Run a peer over the batches: float32 [prompt, layer, width]."""
    order: list[int] = []
    parts: list[Tensor] = []
    for batch in batches:
        order += batch
        parts.append(read([work.ids[index] for index in batch]).float().cpu())
    values = torch.cat(parts)
    return values[torch.argsort(torch.tensor(order))].numpy()


def ours(model: LoadedModel, work: Workload, layers: Sequence[int]) -> Floats:
    """The engine's capture, from prompts: float32 [prompt, layer, width]."""
    sites = [Site(At("resid_post", layer=layer), Tokens("last")) for layer in layers]
    captures = capture(model, work.prompts, sites)
    return np.stack([captures.vectors(site) for site in sites], axis=1)


@torch.inference_mode()
def reference(model: LoadedModel, work: Workload, layers: Sequence[int]) -> Floats:
    """Each prompt alone, without padding, through plain forward hooks on the blocks: float32 [prompt, layer, width]."""
    heard: dict[int, Tensor] = {}
    handles = [
        model.hook_points.decoder.blocks[layer].module.register_forward_hook(
            lambda module, args, output, layer=layer: heard.__setitem__(layer, (output if isinstance(output, Tensor) else output[0])[0, -1].float().cpu())
        )
        for layer in layers
    ]
    try:
        values = []
        for ids in work.ids:
            model.base(input_ids=torch.tensor([ids], device=model.device), use_cache=False)
            values.append(torch.stack([heard[layer] for layer in layers]))
    finally:
        for handle in handles:
            handle.remove()
    return torch.stack(values).numpy()


def worst_difference(values: Floats, expected: Floats) -> float:
    """The largest relative difference of a vector, over the layers that `values` has; NaN if any is not a number."""
    expected = expected[:, : values.shape[1]]
    return float((np.linalg.norm(values - expected, axis=2) / np.linalg.norm(expected, axis=2)).max())


def padded(rows: Rows, device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask, padded on the right: positions count from 0 in every row."""
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones(len(row), dtype=torch.long) for row in rows], batch_first=True)
    return ids.to(device), mask.to(device)


def last_of(acts_BLD: Tensor, mask_BL: Tensor) -> Tensor:
    return acts_BLD[torch.arange(len(acts_BLD), device=acts_BLD.device), mask_BL.sum(dim=1) - 1]
