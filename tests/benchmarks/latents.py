"""Latents read by selected columns, against a full encode, and beside a probe on the way of a pass: `python -m tests.benchmarks.latents`.

Encoders: 8 of 16 384 latents of an SAE on 576 numbers, at 1 024 tokens; the full encode is sae-lens's own, and the values must be equal. Top-k needs every
pre-activation: what selecting costs there must not show. Runs: the prompts pass as far as the middle layer, read by a probe's site, or by those of 8 latents of
one SAE with the random latents of their nulls, at the last token, which is the default, or at all; what the SAE is checked for is measured once and kept, and
not timed. Top-k latents at all tokens are not judged: each token takes a full encode, whose 2 × width × latents operations show beside those of a small model.
"""

import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from sae_lens import SAE

import mi_audit as mi
from mi_audit.engine.capture import Captures, capture
from mi_audit.engine.site import Site
from mi_audit.model.load import load
from mi_audit.plan.places import Tokens
from mi_audit.plan.saes import SaeSpec
from mi_audit.saes.encoding import Encoder
from mi_audit.saes.latents import LatentGroups, weights_of
from tests.benchmarks.options import options, parser
from tests.benchmarks.prompts import Workload, choose
from tests.benchmarks.table import Ratio, Timed, alternate, conclude, show
from tests.unit.saes import save_sae

WIDTH, TOKENS, TIMES = 16_384, 1_024, 20
LATENTS = tuple(range(5, WIDTH, WIDTH // 8))[:8]
NULLS = 99
FASTER, TOP_K, BESIDE = 300.0, 1.1, 1.05
LARGEST_DIFFERENCE = 1e-5


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    given = options(parser(__doc__, prompts=256), arguments)
    model = load(given.model, device=given.device, dtype=given.dtype, progress=False)
    prompts = choose(given)
    at = mi.at("resid_post", depth=0.5).in_model(model.n_layers)
    print(f"{model!r}\n{Workload.of(model, prompts)}")
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        for architecture in ("standard", "jumprelu", "topk"):
            sae = _saved(Path(folder) / architecture, model.d_model, architecture, f"blocks.{at.layer}.hook_resid_post")
            ratios += _encoding(sae, architecture, given.repeats, quick=given.quick)
            for tokens in ("last", "all"):
                ratios.append(_beside(sae, architecture, Tokens(tokens), partial(capture, model, prompts), given.repeats, quick=given.quick))
    return conclude("latents", {"model": given.model, "device": model.identity.device, "prompts": len(prompts), "latents": WIDTH}, ratios)


def _saved(folder: Path, d_in: int, architecture: str, hook: str) -> SaeSpec:
    options = {"k": 32} if architecture == "topk" else {}
    return mi.sae(save_sae(folder, d_in, WIDTH, architecture, metadata={"hook_name": hook}, **options))


def _encoding(sae: SaeSpec, architecture: str, repeats: int, *, quick: bool) -> list[Ratio]:
    acts = torch.randn(TOKENS, sae.config.d_in, generator=torch.Generator().manual_seed(0))
    whole, selected = SAE.load_from_disk(sae.folder).eval(), Encoder.of(sae.config, weights_of(sae), LATENTS)

    def times(encode: Callable[[torch.Tensor], torch.Tensor], number: int) -> torch.Tensor:
        with torch.inference_mode():
            for _ in range(number):
                found = encode(acts)
        return found

    times(whole.encode, 1), times(selected, 1)
    few = TIMES if architecture == "topk" else 50 * TIMES  # what takes microseconds is timed often
    timed = alternate({"whole": partial(times, whole.encode, TIMES), "selected": partial(times, selected, few)}, repeats)
    one, other = timed["selected"].result, timed["whole"].result[:, list(LATENTS)]
    difference = float((one - other).abs().max() / other.abs().max())
    ratio = timed["whole"].median / timed["selected"].median * few / TIMES
    _table(f"{architecture}: {len(LATENTS)} of {WIDTH} latents at {TOKENS} tokens", timed, {"whole": TIMES, "selected": few})
    judged = Ratio(f"{architecture}: whole ÷ selected", ratio, at_least=None if quick else FASTER)
    if architecture == "topk":
        judged = Ratio(f"{architecture}: selected ÷ whole", 1 / ratio, at_most=None if quick else TOP_K)
    return [judged, Ratio(f"{architecture}: largest difference", difference, at_most=LARGEST_DIFFERENCE)]


def _beside(sae: SaeSpec, architecture: str, tokens: Tokens, read: Callable[[list[Site]], Captures], repeats: int, *, quick: bool) -> Ratio:
    draw = torch.Generator().manual_seed(1)
    probe = [Site(sae.at, tokens)]
    latents = [
        Site(sae.at, tokens, LatentGroups(sae, ((latent,), *((int(other),) for other in torch.randint(WIDTH, (NULLS,), generator=draw))), "sum", "mean"))
        for latent in LATENTS
    ]
    read(latents)
    timed = alternate({"probe": partial(read, probe), "8 latents": partial(read, latents)}, repeats)
    _table(f"{architecture}: a run, tokens {tokens.kind}", timed, {})
    judged = not quick and (sae.config.selectable or tokens.kind == "last")
    ratio = timed["8 latents"].median / timed["probe"].median
    return Ratio(f"{architecture}: 8 latents ÷ probe, tokens {tokens.kind}", ratio, at_most=BESIDE if judged else None)


def _table(title: str, timed: dict[str, Timed], times: dict[str, int]) -> None:
    rows = [[name, *(f"{seconds / times.get(name, 1):.6f}" for seconds in (each.median, min(each.seconds), max(each.seconds)))] for name, each in timed.items()]
    show(title, ["variant", "s", "least", "most"], rows)


if __name__ == "__main__":
    sys.exit(main())
