"""`mi.effects.effect("entropy")`: how open it is what the model says next, in nats (Shannon 1948)."""

from mi_audit.causal.effect import OfLogits
from mi_audit.errors import DetectorError


def entropy(spec):
    if spec.arguments:
        raise DetectorError(f"{spec}: it takes no arguments; leave them out")
    return OfLogits(continuations=lambda prompt: ("",), part=_entropy, value=lambda parts, prompt: parts[0])


def _entropy(logits, ids):
    logp = logits[:, 0].log_softmax(dim=-1)
    return -(logp.exp() * logp).sum(dim=-1)
