"""From readings to the token table of the evidence. A prompt that can't be scored token by token is noted; it changes no verdict."""

from collections.abc import Sequence
from time import perf_counter
from typing import TYPE_CHECKING

from mi_audit.errors import MiAuditError
from mi_audit.evidence.tokens import PROMPTS, TokenTable
from mi_audit.plan.measurements import ReadSpec

if TYPE_CHECKING:
    from mi_audit.detectors.bench import Bench
    from mi_audit.model.audited import AuditedModel


def add_token_scores(model: "AuditedModel", bench: "Bench", readings: Sequence[ReadSpec], table: TokenTable, seconds: dict[str, float]) -> dict[ReadSpec, str]:
    """Score every token of each reading's highest prompts and add them to the table; the time is added to `seconds`.

    Returns:
        for each reading that could not be scored so, why; the table has nothing of it.
    """
    from mi_audit.detectors.token_scores import token_scores

    began = perf_counter()
    missing: dict[ReadSpec, str] = {}
    for spec in readings:
        try:
            scored = token_scores(model, bench.detector(spec.detector), bench.read(spec), PROMPTS, bench.cache)
        except MiAuditError as error:
            missing[spec] = f"{type(error).__name__}: {error}"
            continue
        for rank, each in enumerate(scored):
            table.add(spec.digest, rank, each.prompt, texts=each.texts, scores=each.scores, read=each.read, sinks=each.sinks)
    seconds["token scores"] = seconds.get("token scores", 0.0) + perf_counter() - began
    return missing
