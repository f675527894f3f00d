"""`--audit-model shelf:NAME`: the folder NAME on the shelf that $MODEL_SHELF names."""

import os
from pathlib import Path

from mi_audit.errors import ModelError
from mi_audit.hookspecs import ModelFiles


def shelf(name, steps):
    steps.begin(f"Looking for {name} on the shelf")
    folder = Path(os.environ["MODEL_SHELF"]) / name
    if not folder.is_dir():
        raise ModelError(f"there is no {name} on the shelf {folder.parent}; put the model's folder there")
    return ModelFiles(folder, revision="shelf-1", licence="CC0-1.0")
