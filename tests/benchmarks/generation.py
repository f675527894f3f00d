"""Texts at nine strengths in one go, against transformers' `generate` once for each strength: `python -m tests.benchmarks.generation`.

Six prompts, 32 new tokens each, greedy. `generate` is given what it does best: all prompts in one batch, filled up on the left, with its cache; a forward hook
adds the vector to what the middle block puts out. The end-of-sequence tokens are disabled for both, so that all texts are equally long. Steered are a prompt's
last token and all generated ones, or every token: then nothing of a prompt is shared by its variants, and to pass it takes both as long but for the padding,
which is not judged. The texts must be equal but for near ties, which another order of summation may break the other way. Memory is the high-water mark over
what was held before.
"""

import sys
from collections.abc import Sequence
from contextlib import contextmanager
from functools import partial

import torch

from mi_audit.engine.generating import generate
from mi_audit.engine.interventions import Add
from mi_audit.engine.rows import Treatment
from mi_audit.engine.sampling import Sampling
from mi_audit.model.load import load
from mi_audit.model.loaded import LoadedModel
from mi_audit.plan.places import At
from tests.benchmarks.memory import measure
from tests.benchmarks.options import Options, options, parser
from tests.benchmarks.prompts import Workload, mixed
from tests.benchmarks.table import Ratio, alternate, conclude, show

PROMPTS, TOKENS = 6, 32
STRENGTHS = torch.linspace(-2, 2, 9)
LEAST = 3.0
EQUAL = 0.95
"""Of the texts."""

Texts = list[list[tuple[int, ...]]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    given = options(parser(__doc__, prompts=24), arguments)
    model = load(given.model, device=given.device, dtype=given.dtype, progress=False)
    print(repr(model))
    facts = {"model": given.model, "dtype": model.identity.dtype, "device": model.identity.device}
    return conclude("generation", facts, compare(given, model))


def compare(given: Options, model: LoadedModel) -> list[Ratio]:
    """Both over all prompts and strengths: time, memory and texts. The model has no end-of-sequence token afterwards."""
    model.hf.generation_config.eos_token_id = None
    work = Workload.of(model, mixed(PROMPTS))
    at = At("resid_post", layer=model.n_layers // 2)
    vector = torch.randn(model.d_model, generator=torch.Generator().manual_seed(0))
    print(work)
    ratios = []
    for steered in ("from the last on", "every token"):
        both = {"ours": partial(ours, model, work, at, vector, steered), "generate": partial(theirs, model, work, at, vector, steered)}
        grown = {name: measure(model.device, run)["growth"] for name, run in both.items()}
        timed = alternate(both, given.repeats)
        rows = [[name, f"{each.median:.2f}", f"{min(each.seconds):.2f}–{max(each.seconds):.2f}", f"{grown[name]:.0f}"] for name, each in timed.items()]
        show(f"{len(STRENGTHS)} × {PROMPTS} texts of {TOKENS} tokens, steered: {steered}", ["variant", "s", "spread s", "memory MiB"], rows)
        pairs = [pair for one, other in zip(timed["ours"].result, timed["generate"].result, strict=True) for pair in zip(one, other, strict=True)]
        judged = not given.quick and steered == "from the last on"
        ratios += [
            Ratio(f"{steered}: generate ÷ ours", timed["generate"].median / timed["ours"].median, at_least=LEAST if judged else None),
            Ratio(f"{steered}: equal texts", sum(one == other for one, other in pairs) / len(pairs), at_least=EQUAL),
        ]
    return ratios


def ours(model: LoadedModel, work: Workload, at: At, vector: torch.Tensor, steered: str) -> Texts:
    """All strengths of all prompts, the rows of a batch."""
    touched = [range(len(ids)) if steered == "every token" else (len(ids) - 1,) for ids in work.ids]
    treated = lambda variants: [Treatment(at, Add(vector, STRENGTHS[variants]))]  # noqa: E731
    return generate(model, work.ids, touched, len(STRENGTHS), treated, [at], Sampling(TOKENS), on_generated=True)


def theirs(model: LoadedModel, work: Workload, at: At, vector: torch.Tensor, steered: str) -> Texts:
    """transformers' own, strength by strength."""
    longest = max(work.lengths)
    ids = torch.tensor([[0] * (longest - len(each)) + list(each) for each in work.ids], device=model.device)
    real = torch.tensor([[0] * (longest - len(each)) + [1] * len(each) for each in work.ids], device=model.device)
    texts = []
    for strength in STRENGTHS.tolist():
        with torch.inference_mode(), _adding(model, at, strength * vector, slice(None) if steered == "every token" else slice(-1, None)):
            found = model.hf.generate(ids, attention_mask=real, do_sample=False, max_new_tokens=TOKENS, pad_token_id=0, use_cache=True)
        texts.append([tuple(row) for row in found[:, longest:].tolist()])
    return texts


@contextmanager
def _adding(model: LoadedModel, at: At, vector: torch.Tensor, tokens: slice):
    def added(module, args, output):
        hidden = output[0] if isinstance(output, tuple) else output
        new = hidden.clone()
        new[:, tokens] += vector.to(hidden)
        return (new, *output[1:]) if isinstance(output, tuple) else new

    handle = model.hook_points.decoder.blocks[at.layer].module.register_forward_hook(added)
    try:
        yield
    finally:
        handle.remove()


if __name__ == "__main__":
    sys.exit(main())
