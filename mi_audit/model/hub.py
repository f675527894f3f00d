"""Models from a Hugging Face hub: a snapshot of safetensors and tokenizer files at one commit. No torch."""

import re
from pathlib import Path

from mi_audit.errors import MissingDependencyError, ModelError
from mi_audit.model.checkpoint import CHAT_TEMPLATES, INDEX
from mi_audit.model.identity import TOKENIZER_FILES
from mi_audit.model.progress import Steps

WANTED = ["config.json", "generation_config.json", "*.safetensors", INDEX, *CHAT_TEMPLATES, "additional_chat_templates/*.jinja", *sorted(TOKENIZER_FILES)]
UNWANTED = ["consolidated*", "original/*", "onnx/*", "*/*.safetensors"]
COMMIT = re.compile(r"[0-9a-f]{40}")


def download(name: str, revision: str | None, steps: Steps) -> tuple[Path, str]:
    """The local snapshot of a hub repository and the commit that it is, downloading what is missing.

    A revision that is a full commit and lies in the local cache is taken from there without asking the hub. Raises ModelError.
    """
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    except ImportError as error:
        raise MissingDependencyError("loading a model needs torch and transformers. Install with: pip install 'mi-audit[run]'") from error
    steps.begin(f"Fetching {name} from the hub")
    try:
        if revision is not None and COMMIT.fullmatch(revision):
            try:
                return _snapshot(snapshot_download(name, revision=revision, local_files_only=True, allow_patterns=WANTED, ignore_patterns=UNWANTED))
            except LocalEntryNotFoundError:
                steps.begin(f"Fetching {name} from the hub")
        return _snapshot(snapshot_download(name, revision=revision, allow_patterns=WANTED, ignore_patterns=UNWANTED))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        at = f"@{revision}" if revision else ""
        raise ModelError(
            f"{name}{at} could not be fetched from the hub ({error}); check the name and the network, log in if it is gated, or give a local folder"
        ) from error


def _snapshot(folder: str) -> tuple[Path, str]:
    return Path(folder), Path(folder).name
