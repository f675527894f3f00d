"""Texts made fit for evidence."""

import re
from pathlib import Path


def scrubbed(text: str) -> str:
    """The text without absolute paths, which name people and machines: of each only the last part stays."""
    return re.sub(r"(?<![\w.])(?:~|[A-Za-z]:|\.{1,2})?[/\\](?:[^\s'\"/\\]+[/\\])+([^\s'\"/\\]*)", r"…/\1", text.replace(str(Path.home()), "~"))
