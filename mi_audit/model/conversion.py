"""GGUF → safetensors, config and tokenizer, once, byte for byte the same on every machine."""

import json
from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from mi_audit.errors import ModelError
from mi_audit.model.cache import write_manifest
from mi_audit.model.identity import digest_file
from mi_audit.model.transformers_io import LOAD_ERRORS, quietly, refuse_incomplete

VOLATILE = ("_model_name_or_path", "_name_or_path", "transformers_version", "quantization_config", "is_local", "local_files_only", "name_or_path")
"""Keys that say where and with what a file was written, and not what the model is."""


def convert_gguf(gguf: Path, folder: Path, *, source_sha256: str) -> None:
    """Write `gguf` into the empty `folder` as a model that transformers loads, dequantised to float32 (exact; half precision would round).

    A model loaded from GGUF refuses `save_pretrained`, so its weights go into a fresh model of the same config. `conversion.json` lists the digests
    of what was written. ModelError if transformers can't read the file.
    """
    try:
        with quietly():
            local: dict[str, Any] = {"gguf_file": gguf.name, "local_files_only": True}
            loaded, info = cast(Any, AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, output_loading_info=True, **local))
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **local)
            refuse_incomplete(str(gguf), info)
            _fresh(loaded).save_pretrained(folder, max_shard_size="1000GB")
            tokenizer.save_pretrained(folder)
    except LOAD_ERRORS as error:
        raise ModelError(
            f"{gguf} can't be converted: {error}; give a GGUF of an architecture that transformers reads, or the model's safetensors folder"
        ) from error
    # what generate() would take from this file follows from the config already
    (folder / "generation_config.json").unlink(missing_ok=True)
    for name in ("config.json", "tokenizer_config.json"):
        _make_portable(folder / name)
    write_manifest(folder, {path.name: digest_file(path)[0] for path in folder.iterdir()}, source_sha256=source_sha256)


def _fresh(loaded: PreTrainedModel) -> PreTrainedModel:
    """A model of the same class that holds the same tensors and knows nothing of GGUF."""
    config = type(loaded.config)(**{key: value for key, value in loaded.config.to_dict().items() if key not in VOLATILE})
    with torch.device("meta"):
        fresh: PreTrainedModel = type(loaded)(config)
    fresh.load_state_dict(loaded.state_dict(), assign=True)
    fresh.tie_weights()
    return fresh


def _make_portable(path: Path) -> None:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    kept = {key: value for key, value in content.items() if key not in VOLATILE}
    path.write_text(json.dumps(kept, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
