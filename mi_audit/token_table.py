"""From readings to the token table of the evidence. A prompt that can't be scored token by token is noted; it changes no verdict."""

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from time import perf_counter
from typing import TYPE_CHECKING

from mi_audit.errors import MiAuditError
from mi_audit.evidence.tokens import PROMPTS, TokenTable
from mi_audit.plan.measurements import AttributionSpec, ReadSpec

if TYPE_CHECKING:
    from mi_audit.detectors.bench import Bench
    from mi_audit.model.audited import AuditedModel


def add_token_scores(
    model: "AuditedModel",
    bench: "Bench",
    readings: Sequence[ReadSpec],
    attributions: Mapping[ReadSpec, AttributionSpec],
    table: TokenTable,
    seconds: dict[str, float],
) -> dict[ReadSpec, str]:
    """Score every token of each reading's highest prompts and add them to the table, with what each is attributed where an audit asks for that; the time is
    added to `seconds`.

    Returns:
        for each reading that could not be scored so, why; the table has nothing of it.
    """
    from mi_audit.detectors.token_scores import token_scores

    began = perf_counter()
    missing: dict[ReadSpec, str] = {}
    for spec in readings:
        try:
            scored = token_scores(model, bench.detector(spec.detector), bench.read(spec), PROMPTS, bench.cache)
            attributed = bench.attribute(attributions[spec]) if spec in attributions else ()
        except MiAuditError as error:
            missing[spec] = f"{type(error).__name__}: {error}"
            continue
        for rank, (each, found) in enumerate(zip_longest(scored, attributed)):
            parts = None if found is None else found.attributions
            table.add(spec.digest, rank, each.prompt, texts=each.texts, scores=each.scores, read=each.read, sinks=each.sinks, attributions=parts)
    seconds["token scores"] = seconds.get("token scores", 0.0) + perf_counter() - began
    return missing
