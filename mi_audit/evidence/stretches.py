"""Stretches of a sorted table: the rows of one reading, of one prompt."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa


def stretches(table: pa.Table, *names: str) -> Iterator[tuple[tuple[object, ...], pa.Table]]:
    """Rows that agree in the named columns, which hold no nulls, as far as they follow one another; the shared values first. Slices, nothing is copied."""
    columns = [
        np.asarray(table[name].cast(pa.string()), dtype=object) if pa.types.is_dictionary(table[name].type) else np.asarray(table[name]) for name in names
    ]
    changes = np.zeros(table.num_rows, dtype=np.bool_)
    changes[:1] = True
    for column in columns:
        changes[1:] |= column[1:] != column[:-1]
    starts = np.flatnonzero(changes).tolist()
    for start, end in zip(starts, [*starts, table.num_rows][1:], strict=True):
        yield tuple(column[start] for column in columns), table.slice(start, end - start)
