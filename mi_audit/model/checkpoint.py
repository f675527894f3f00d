"""A model's folder, taken as hostile: which of its files may be loaded, checked before anything reads them. No torch."""

import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from mi_audit.errors import ModelError
from mi_audit.model.identity import TOKENIZER_FILES

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
CHAT_TEMPLATES = ("chat_template.jinja", "chat_template.json")
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5", ".msgpack")
MEBIBYTE = 1 << 20
LIMITS = {"config.json": MEBIBYTE, "generation_config.json": MEBIBYTE, "tokenizer_config.json": 16 * MEBIBYTE, INDEX: 64 * MEBIBYTE}
"""Bytes beyond which a file is no honest one of its name; tokenizers have `TOKENIZER_LIMIT`, weights none."""
TOKENIZER_LIMIT = 256 * MEBIBYTE
KERNEL_KEYS = ("attn_implementation", "_attn_implementation", "_attn_implementation_internal", "_experts_implementation_internal", "experts_implementation")
KERNELS = (None, "eager", "sdpa")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The files of one model that may be loaded: relative name → real path."""

    files: dict[str, Path]
    config: dict[str, Any]

    @property
    def size(self) -> int:
        """Bytes in all."""
        return sum(path.stat().st_size for path in self.files.values())

    @property
    def weights_size(self) -> int:
        """Bytes of the safetensors."""
        return sum(path.stat().st_size for name, path in self.files.items() if name.endswith(".safetensors"))


def inspect(folder: Path, *, contained_in: Path | None = None) -> Checkpoint:
    """The loadable files of `folder`, none of them outside `contained_in` (the folder itself by default) once symlinks are followed.

    Raises ModelError for pickle weights, remote code, adapters, kernels from elsewhere, paths that leave the folder, and absent or oversized files.
    """
    home = (contained_in or folder).resolve()
    names = {entry.name for entry in folder.iterdir()}
    if "config.json" not in names:
        raise ModelError(f"{folder} has no config.json: give the folder that save_pretrained wrote")
    if "adapter_config.json" in names:
        raise ModelError(f"{folder} holds an adapter (adapter_config.json): merge it into its model, save that, and audit the result")
    config = _object(_contained(folder, "config.json", home))
    chosen = ["config.json", *_weights(folder, names, home)]
    chosen += sorted(names & (TOKENIZER_FILES | {*CHAT_TEMPLATES, "generation_config.json"}))
    if not names & {"tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt", "tekken.json", "spiece.model"}:
        raise ModelError(f"{folder} has no tokenizer (tokenizer.json or tokenizer.model): save it there with tokenizer.save_pretrained")
    if (folder / "additional_chat_templates").is_dir():
        chosen += sorted(f"additional_chat_templates/{path.name}" for path in (folder / "additional_chat_templates").glob("*.jinja"))
    files = {name: _contained(folder, name, home) for name in dict.fromkeys(chosen)}
    _refuse_code(folder / "config.json", config)
    if "tokenizer_config.json" in files:
        _refuse_code(folder / "tokenizer_config.json", _object(files["tokenizer_config.json"]))
    return Checkpoint(files, config)


def _weights(folder: Path, names: set[str], home: Path) -> list[str]:
    """Names of the safetensors shards (and their index), in the order in which transformers looks for them."""
    if WEIGHTS in names:
        return [WEIGHTS]
    if INDEX in names:
        shards = _object(_contained(folder, INDEX, home)).get("weight_map")
        if not isinstance(shards, dict) or not shards or not all(isinstance(name, str) for name in shards.values()):
            raise ModelError(f"{folder / INDEX} has no weight_map from tensor names to files: save the model again")
        for name in set(shards.values()):
            if PurePosixPath(name).name != name or "\\" in name or not name.endswith(".safetensors"):
                raise ModelError(f"{folder / INDEX} names the file {name!r}: only .safetensors files in the same folder are loaded")
        return [INDEX, *sorted(set(shards.values()))]
    pickles = sorted(name for name in names if name.endswith(PICKLES))
    found = (
        f"only {', '.join(pickles)}, and pickle weights are never loaded because they can run code"
        if pickles
        else "and no safetensors of another name is loaded"
    )
    raise ModelError(f"{folder} has no {WEIGHTS} and no {INDEX}, {found}: save it as safetensors (model.save_pretrained) where you trust its source")


def _contained(folder: Path, name: str, home: Path) -> Path:
    path = folder / name
    if not path.is_file():
        raise ModelError(f"{path} is missing or no regular file")
    real = path.resolve()
    if not real.is_relative_to(home):
        raise ModelError(f"{path} is a link that leaves {home}: copy the file into the folder")
    limit = LIMITS.get(name, TOKENIZER_LIMIT if not name.endswith(".safetensors") else None)
    if limit is not None and real.stat().st_size > limit:
        raise ModelError(f"{path} is larger than {limit // MEBIBYTE} MiB: this is not what a file of that name holds")
    return real


def _object(path: Path) -> dict[str, Any]:
    """A JSON file that must hold an object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} holds no JSON object")
    return value


def _refuse_code(path: Path, content: dict[str, Any]) -> None:
    if content.get("auto_map"):
        raise ModelError(
            f"{path} asks for code that comes with the model (auto_map); remote code is never run: use an architecture that is part of transformers"
        )
    for key in KERNEL_KEYS:
        if content.get(key) not in KERNELS:
            raise ModelError(f"{path} asks for the kernel {content[key]!r} ({key}), which could be fetched code: remove that key")
