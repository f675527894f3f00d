"""What tests of experiments are held against: whole passes of one row, changed by plain hooks of torch, with no part of the engine."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch

from tests.agreement.tiny_models import tiny

SINK = 1
"""The token (BOS) whose embedding `save_with_sink` makes many times longer than others, so that it is an attention sink in every layer."""

Change = Callable[[torch.Tensor], torch.Tensor]


def save_with_sink(path: Path) -> Path:
    model, tokenizer = tiny("llama")
    model.model.embed_tokens.weight.data[SINK] *= 100
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@contextmanager
def changed(modules: Sequence[torch.nn.Module], positions: Sequence[int], change: Change | None):
    """The modules' outputs changed at those positions that a pass has."""

    def hook(module, args, output):
        acts = (output[0] if isinstance(output, tuple) else output).clone()
        here = [position for position in positions if position < acts.shape[1]]
        acts[0, here] = change(acts[0, here])
        return (acts, *output[1:]) if isinstance(output, tuple) else acts

    with ExitStack() as stack:
        for module in modules if change is not None else ():
            stack.callback(module.register_forward_hook(hook).remove)
        yield


def logits(hf, ids, modules=(), positions=(), change=None) -> torch.Tensor:
    """[T, vocabulary] float32."""
    with torch.no_grad(), changed(modules, positions, change):
        return hf(input_ids=torch.tensor([list(ids)])).logits[0].float()


def heard(hf, ids, layer, modules=(), positions=(), change=None) -> torch.Tensor:
    """The residual stream behind a block [T, width], after what is changed there."""
    acts = []
    with changed(modules, positions, change):
        handle = hf.model.layers[layer].register_forward_hook(lambda module, args, output: acts.append(output[0] if isinstance(output, tuple) else output))
        try:
            with torch.no_grad():
                hf(input_ids=torch.tensor([list(ids)]))
        finally:
            handle.remove()
    return acts[0].reshape(len(ids), -1)


def goes_on(hf, ids, n, modules=(), positions=(), change=None, *, on_generated=False) -> list[int]:
    """Up to n tokens that are written greedily, every one by a whole pass."""
    written = list(ids)
    for _ in range(n):
        touched = [*positions, *(range(len(ids), len(written)) if on_generated else ())]
        token = int(logits(hf, written, modules, touched, change)[-1].argmax())
        if token == hf.generation_config.eos_token_id:
            break
        written.append(token)
    return written[len(ids) :]


def left_in(hf) -> list[Mapping]:
    """Every hook and replaced forward that the modules hold."""
    return [
        (name, {key: dict(value) for key, value in vars(module).items() if key.startswith("_") and "hooks" in key and value}, "forward" in vars(module))
        for name, module in hf.named_modules()
    ]
