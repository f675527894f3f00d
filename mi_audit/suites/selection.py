"""Choosing some prompts of a suite: at random by seed, or few but of every kind."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import zip_longest

from mi_audit.suites.prompt import Prompt


def sample_positions(prompts: Sequence[Prompt], count: int, seed: int) -> list[int]:
    """`count` positions at random, in order: those whose SHA-256 of `seed|id` is lowest, so that it is the same on every machine."""
    ranked = sorted(range(len(prompts)), key=lambda index: hashlib.sha256(f"{seed}|{prompts[index].id}".encode()).hexdigest())
    return sorted(ranked[:count])


def spread_positions(prompts: Sequence[Prompt], kinds: Sequence[str], count: int) -> list[int]:
    """`count` positions, in order, taken from the kinds in turn, and within a kind from its groups in turn."""
    first_seen: dict[str, int] = {}
    taken: Counter[tuple[str, str]] = Counter()
    queues: defaultdict[str, list[tuple[int, int, int]]] = defaultdict(list)
    for index, (prompt, kind) in enumerate(zip(prompts, kinds, strict=True)):
        turn = taken[kind, prompt.group]
        taken[kind, prompt.group] += 1
        queues[kind].append((turn, first_seen.setdefault(prompt.group, len(first_seen)), index))
    in_turn = (entry for row in zip_longest(*(sorted(queues[kind]) for kind in sorted(queues))) for entry in row if entry is not None)
    return sorted(entry[2] for entry, _ in zip(in_turn, range(count), strict=False))
