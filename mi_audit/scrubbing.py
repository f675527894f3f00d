"""Texts made fit for evidence."""

import re
from pathlib import Path
from typing import Final

LONGEST: Final = 20_000
"""Characters of a text that are kept."""


def scrubbed(text: str) -> str:
    """The text without absolute paths, which name people and machines: of each only the last part stays. Without what is no Unicode, and cut if very long."""
    text = text.encode("utf-8", "backslashreplace").decode()
    if len(text) > LONGEST:
        text = f"{text[:LONGEST]}… (cut, {len(text)} characters)"
    return re.sub(r"(?<![\w.])(?:~|[A-Za-z]:|\.{1,2})?[/\\](?:[^\s'\"/\\]+[/\\])+([^\s'\"/\\]*)", r"…/\1", text.replace(str(Path.home()), "~"))
