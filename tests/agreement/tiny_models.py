"""Small random models of many architectures, with a tokenizer made in memory: nothing is fetched.

`save_tiny(path, architecture)` writes a folder that `mi_audit.load_model` accepts; `tiny(architecture)` gives the model and tokenizer themselves.
The weights are spread wider than at initialisation, so that no sub-layer's contribution is lost in rounding.
"""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

LAYERS, WIDTH, HEADS, HEAD_DIM, NEURONS, CONTEXT = 4, 32, 4, 8, 64, 512
SPECIAL = ["<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_LLAMA_LIKE: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": NEURONS,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
}
_GEMMA_LIKE: dict[str, Any] = {**_LLAMA_LIKE, "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 8}

CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "n_positions": CONTEXT, "n_inner": NEURONS}),
    "gpt_neox": ("gpt_neox", {key: value for key, value in _LLAMA_LIKE.items() if key != "num_key_value_heads"}),
    "gpt_neox_sequential": ("gpt_neox", {**{key: value for key, value in _LLAMA_LIKE.items() if key != "num_key_value_heads"}, "use_parallel_residual": False}),
    "llama": ("llama", _LLAMA_LIKE),
    "mistral": ("mistral", {**_LLAMA_LIKE, "sliding_window": 8}),
    "qwen2": ("qwen2", _LLAMA_LIKE),
    "qwen3": ("qwen3", {**_LLAMA_LIKE, "head_dim": 16}),
    "gemma2": ("gemma2", _GEMMA_LIKE),
    "gemma3": ("gemma3_text", {**_GEMMA_LIKE, "layer_types": ["sliding_attention", "full_attention"] * (LAYERS // 2)}),
    "olmo2": ("olmo2", _LLAMA_LIKE),
    "mixtral": ("mixtral", {**_LLAMA_LIKE, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "phi": ("phi", _LLAMA_LIKE),
    "falcon": ("falcon", {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "ffn_hidden_size": NEURONS}),
    "opt": (
        "opt",
        {
            **{key: value for key, value in _LLAMA_LIKE.items() if key not in ("intermediate_size", "num_key_value_heads")},
            "ffn_dim": NEURONS,
            "word_embed_proj_dim": WIDTH,
        },
    ),
    "bloom": ("bloom", {"hidden_size": WIDTH, "n_layer": LAYERS, "n_head": HEADS}),
    "granite": ("granite", {**_LLAMA_LIKE, "embedding_multiplier": 12.0, "residual_multiplier": 0.5}),
}
"""Architecture → (transformers' model type, its settings)."""


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, plus BOS before plain text and a chat template with turn markers (ids 0 … 4 are special, 261 in all)."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(SPECIAL + alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex("."), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>", extra_special_tokens=SPECIAL[3:], model_max_length=CONTEXT
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def tiny_config(architecture: str) -> Any:
    """The configuration of a small model; `architecture` is a key of `CONFIGS`."""
    model_type, settings = CONFIGS[architecture]
    tokens = {"vocab_size": len(SPECIAL) + 256, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return AutoConfig.for_model(model_type, **tokens, **settings)


def tiny_model(architecture: str, *, seed: int = 0, attention: str | None = None) -> PreTrainedModel:
    """A small random model in float32 and evaluation mode; the same seed gives the same weights, whatever was drawn before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(tiny_config(architecture), dtype=torch.float32, attn_implementation=attention)
        for parameter in model.parameters():
            parameter.data += 0.05 * torch.randn_like(parameter)
    return model.eval().requires_grad_(False)


def tiny(architecture: str, *, seed: int = 0) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """A small random model and its tokenizer."""
    return tiny_model(architecture, seed=seed), tiny_tokenizer()


def save_tiny(path: Path, architecture: str = "llama", *, seed: int = 0) -> Path:
    """Write a small random model with its tokenizer as a local folder (safetensors); returns the folder."""
    model, tokenizer = tiny(architecture, seed=seed)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path
