"""What a suite may hold at most. A file beyond a limit is refused with an error that names the limit."""

from typing import Final

FILE_BYTES: Final = 512 * 2**20
"""Size of a suite file; for Parquet also its uncompressed size."""
ROWS: Final = 1_000_000
"""Prompts in a suite."""
ROW_CHARACTERS: Final = 1_000_000
"""Length of a JSONL line, of an object in a JSON array, or of all the text in a CSV or Parquet row."""
DEPTH: Final = 16
"""Levels of nested lists and objects in a row."""
COLUMNS: Final = 256
"""Columns of a table, or keys of an object."""
NAME_CHARACTERS: Final = 500
"""Length of an id, label, group or field name."""
INTEGER: Final = 2**63 - 1
"""Largest absolute value of an integer, that of Parquet's int64."""
PROBLEMS: Final = 50
"""Errors that a check lists before it stops reading."""
