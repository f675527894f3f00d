"""Search an SAE for latents, from a script or a notebook. Importing this module is free of torch."""

from typing import TYPE_CHECKING, get_args

from mi_audit.config import DEFAULT_MODEL, Settings
from mi_audit.errors import PlanError
from mi_audit.loading import open_audited
from mi_audit.plan.latents import Pooling
from mi_audit.plan.places import Tokens
from mi_audit.plan.saes import SaeSpec
from mi_audit.suites.suite import Suite

if TYPE_CHECKING:
    from mi_audit.detectors.found_latents import FoundLatents


def find_latents(
    sae: SaeSpec,
    suite: Suite,
    *,
    model: str | None = None,
    tokens: str | Tokens = "last",
    pooling: Pooling = "mean",
    rate: float = 0.05,
    alpha: float = 0.025,
    most: int = 20,
    seed: int = 0,
    device: str = "auto",
) -> "FoundLatents":
    """Find the latents of an SAE that separate a suite's labels.

    They are ranked on the suite's train split, where the false discovery rate is held (Benjamini & Hochberg 1995), and confirmed on its test split (Holm 1979);
    the calibration split is left for thresholds. n is counted in groups, by shuffles of the labels within their structure. Each is held against random latents
    that fire as often, against the best latent found in the same way in an SAE with a random encoder, and against a probe on the raw activations; what else it
    tracks is told. Where several added up do better than any alone, that group is confirmed and held against the same; not where the highest of several tokens
    is read, which no detector adds up so.

    A detector that is made of the first, or of the group, says `found_on=suite["train"]` and may be claimed on the test split. To choose among what is found by
    a held-out number uses that split up too: `found_on=[suite["train"], suite["test"]]`.

    Args:
        sae: from `mi.sae`.
        suite: from `mi.suite`, labelled and whole.
        model: the model, as `--audit-model` takes it; by default the one that the SAE is declared for, or the default model.
        tokens: which tokens are read, as for `mi.probe`.
        pooling: how several tokens become one number, as for `mi.latent`.
        rate: of false discoveries among the candidates, at most.
        alpha: the probability that any of them is wrongly confirmed.
        most: candidates that are confirmed, at most.
        seed: of every random step.
        device: as `--audit-device`.

    Raises:
        PlanError: an argument is of the wrong kind.
        DetectorError: the SAE does not match the model, or a split holds one class only.
        ModelError, SuiteError, PromptError: the model can't be opened, the suite has no labels, or a prompt can't be read.
    """
    if not isinstance(sae, SaeSpec) or not isinstance(suite, Suite):
        raise PlanError(f"mi.find_latents({sae!r}, {suite!r}): give an SAE made with mi.sae(…) and a suite made with mi.suite(…)")
    chosen = Tokens.of(tokens)
    if pooling not in get_args(Pooling):
        raise PlanError(f"mi.find_latents(pooling={pooling!r}): known are {', '.join(get_args(Pooling))}")
    for name, share in (("rate", rate), ("alpha", alpha)):
        if not 0 < share < 1:
            raise PlanError(f"mi.find_latents({name}={share!r}): give a number between 0 and 1")
    if most < 1 or seed < 0:
        raise PlanError(f"mi.find_latents(most={most!r}, seed={seed!r}): most is a whole number from 1, seed one from 0")
    for split in ("train", "test"):
        if len(set(suite[split].labels())) < 2:
            raise PlanError(f"mi.find_latents(…, {suite.name}): its {split} split holds one class only; name the class to be found with positive=")
    audited, cache, progress = open_audited(Settings(model=model or sae.model or DEFAULT_MODEL, device=device))
    from mi_audit.detectors.latent_search import search

    return search(audited, sae, suite, tokens=chosen, pooling=pooling, rate=rate, alpha=alpha, most=most, seed=seed, cache=cache, progress=progress)
