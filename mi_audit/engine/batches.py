"""Which prompts pass through the model together, and in which rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from mi_audit.model.packing import LONGEST_ROW, Packing

DEFAULT_BUDGET: Final = 512
"""Tokens in a batch, with those that fill up its rows and, in each row, the shared ones. On a CPU more is no faster: small batches keep all cores busy to the
end, and their tensors stay in memory that the process already has."""

ROW_TOKENS: Final = 128
"""Tokens, shared ones left out, up to which a row is filled with prompts. Attention costs the square of a row."""

LEAST_SHARED: Final = 8
"""Prompts that begin with the same tokens, and how many of these, before it is worth a pass of its own."""

Ids = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Batch:
    """Prompts that pass together: `rows` of indices, in a packed batch several prompts to a row, else one; `prefix`, tokens that all of them begin with and
    that the rows therefore leave out."""

    rows: tuple[tuple[int, ...], ...]
    packed: bool
    prefix: Ids = ()

    @property
    def prompts(self) -> tuple[int, ...]:
        """The indices of its prompts, row by row."""
        return tuple(index for row in self.rows for index in row)

    def halves(self) -> "tuple[Batch, Batch] | None":
        """Two batches of half the rows, or of half the one row; None for a single prompt."""
        rows = self.rows if len(self.rows) > 1 else tuple((index,) for index in self.rows[0])
        if len(rows) == 1:
            return None
        half = len(rows) // 2
        return Batch(rows[:half], self.packed, self.prefix), Batch(rows[half:], self.packed, self.prefix)

    def tokens(self, prompts: Sequence[Ids]) -> int:
        """What it takes of a budget: rows × (shared tokens + longest row)."""
        shared = len(self.prefix)
        return len(self.rows) * (shared + max(sum(len(prompts[index]) - shared for index in row) for row in self.rows))

    def alone(self) -> "tuple[Batch, ...]":
        """Every prompt in a batch of its own, from its first token on."""
        return tuple(Batch(((index,),), packed=False) for index in self.prompts)


def plan_batches(prompts: Sequence[Ids], packing: Packing, budget: int = DEFAULT_BUDGET) -> list[Batch]:
    """Cut prompts into batches of at most `budget` tokens; a longer prompt makes a batch of its own. The same prompts give the same batches.

    Where packing is exact, prompts that begin with the same tokens (a chat template's system prompt) share one pass over these, and what is left of them fills
    rows of about `ROW_TOKENS`, best fit, longest first. Prompts that don't fit, and all where packing is not exact, are sorted by length and padded; those
    beyond a length of `packing.apart` have batches of their own.

    Args:
        prompts: the token ids of each.
        packing: what is exact on this model.
        budget: rows × (shared tokens + longest row) of a batch, at most; each row has its own copies of the keys and values of the shared tokens.

    Returns:
        The batches; every index into `prompts` occurs once.

    Raises:
        ValueError: a budget below 1.
    """
    if budget < 1:
        raise ValueError(f"a batch holds at least one token, not {budget}")
    packable = [index for index, ids in enumerate(prompts) if len(ids) <= packing.longest]
    taken = set(packable)
    padded: dict[int, list[tuple[int, ...]]] = {}
    for index in (index for index in range(len(prompts)) if index not in taken):
        padded.setdefault(sum(len(prompts[index]) > length for length in packing.apart), []).append((index,))
    batches = [Batch(rows, packed=False) for kind in sorted(padded) for rows in _cut(padded[kind], prompts, 0, budget)]
    for prefix, members in _sharing(packable, prompts) if packing.shared_prefix else [((), packable)]:
        batches += [Batch(rows, True, prefix) for rows in _cut(_fill(members, prompts, len(prefix)), prompts, len(prefix), budget)]
    return batches


def _sharing(indices: Sequence[int], prompts: Sequence[Ids]) -> list[tuple[Ids, list[int]]]:
    """The prompts by the tokens that they begin with, where enough of them share enough; the last token of a prompt is always its own."""
    families: dict[Ids, list[int]] = {}
    for index in indices:
        families.setdefault(prompts[index][:LEAST_SHARED], []).append(index)
    found: list[tuple[Ids, list[int]]] = []
    single: list[int] = []
    for family in families.values():
        shared = _common([prompts[index] for index in family])
        if len(family) >= LEAST_SHARED and len(shared) >= LEAST_SHARED:
            found.append((shared, family))
        else:
            single += family
    return [*found, ((), sorted(single))]


def _common(prompts: Sequence[Ids]) -> Ids:
    low, high = min(prompts), max(prompts)
    length = min(len(ids) for ids in prompts) - 1
    return low[: next((at for at, (one, other) in enumerate(zip(low, high, strict=False)) if one != other or at == length), length)]


def _fill(indices: Sequence[int], prompts: Sequence[Ids], shared: int) -> list[tuple[int, ...]]:
    """Rows of at most `ROW_TOKENS`, longest first, each into the fullest row that takes it; a longer prompt has a row to itself."""
    room = min(ROW_TOKENS, LONGEST_ROW - shared)
    by_space: list[list[list[int]]] = [[] for _ in range(room + 1)]
    for index in sorted(indices, key=lambda index: (-len(prompts[index]), index)):
        length = len(prompts[index]) - shared
        space = next((space for space in range(length, room) if by_space[space]), max(room, length))
        row = by_space[space].pop() if space < room and by_space[space] else []
        row.append(index)
        by_space[space - length].append(row)
    return [tuple(row) for rows in by_space for row in rows]


def _cut(rows: list[tuple[int, ...]], prompts: Sequence[Ids], shared: int, budget: int) -> list[tuple[tuple[int, ...], ...]]:
    """Batches of rows: the longest rows come first, so that a batch that does not fit into memory fails at once."""
    used = {row: sum(len(prompts[index]) - shared for index in row) for row in rows}
    batches: list[list[tuple[int, ...]]] = []
    left = 0
    for row in sorted(rows, key=lambda row: (-used[row], row)):
        if left == 0:
            batches.append([])
            left = max(1, budget // (shared + used[row]))
        batches[-1].append(row)
        left -= 1
    return [tuple(batch) for batch in batches]
