"""Checkpoints of the real models' architectures, scaled down, with random weights and tokenizers of their kinds."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    GemmaConfig,
    GPT2Config,
    GPTJConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from tests.support.tokenizers import make_tokenizer

LAYERS, D_MODEL, D_MLP = 4, 48, 96
_GATED = {"hidden_size": D_MODEL, "intermediate_size": D_MLP, "num_hidden_layers": LAYERS, "num_attention_heads": 6}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
#: By name: the kind of tokenizer, the class of the configuration, and the options that make the real one what it is.
ARCHITECTURES: dict[str, tuple[str, type[PreTrainedConfig], dict[str, Any]]] = {
    # n_inner None: four times d_model
    "gpt2-xl": ("gpt2", GPT2Config, {"n_embd": 24, "n_layer": LAYERS, "n_head": 4, "n_positions": 128}),
    # rotary positions on a part of each head; a biased head of its own
    "gpt-j": (
        "gpt2",
        GPTJConfig,
        {"n_embd": D_MODEL, "n_layer": LAYERS, "n_head": 4, "rotary_dim": 4, "n_inner": D_MLP, "n_positions": 128},
    ),
    # grouped queries
    "llama-3": (
        "llama3",
        LlamaConfig,
        {
            **_GATED,
            "num_key_value_heads": 2,
            "tie_word_embeddings": False,
            "rope_parameters": {"rope_type": "default", "rope_theta": 5e5},
        },
    ),
    # the same with scaled rotary positions
    "llama-3.1": ("llama3", LlamaConfig, {**_GATED, "num_key_value_heads": 2, "rope_parameters": _LLAMA3_ROPE}),
    # biases of queries, keys and values; tied embeddings
    "qwen2": ("qwen2", Qwen2Config, {**_GATED, "num_key_value_heads": 2, "tie_word_embeddings": True}),
    # norms of queries and keys; heads wider than d_model / n
    "qwen3": ("qwen2", Qwen3Config, {**_GATED, "num_key_value_heads": 2, "head_dim": 12}),
    # a window of attention that is shorter than any prompt
    "mistral": ("mistral", MistralConfig, {**_GATED, "num_key_value_heads": 2, "sliding_window": 3}),
    # scaled embeddings, norms with 1 + w, one key-value head, heads wider than d_model / n
    "gemma": ("gemma", GemmaConfig, {**_GATED, "num_key_value_heads": 1, "head_dim": 16}),
}

#: An MLP's first projections: large, for keys that depend on their token in more than a linear way have a C of full rank.
_FIRST = ("c_fc", "fc_in", "gate_proj", "up_proj")


def tokenizer_of(name: str) -> PreTrainedTokenizerFast:
    return make_tokenizer(ARCHITECTURES[name][0])


def write_checkpoint(folder: Path, name: str, dtype: torch.dtype = torch.float32, max_shard_size: str = "50GB") -> Path:
    """A checkpoint as the hub has it: configuration, safetensors, tokenizer. Weights are larger than at initialisation,
    so that the blocks matter, and norms are not what they begin as."""
    _, config, options = ARCHITECTURES[name]
    tokenizer = tokenizer_of(name)
    special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": None}
    torch.manual_seed(0)
    made = config(vocab_size=len(tokenizer), **special, **options)
    lm = AutoModelForCausalLM.from_config(made, dtype=torch.float32)
    with torch.no_grad():
        for key, parameter in lm.named_parameters():
            if key.endswith("bias"):
                parameter.normal_(std=0.3)
            elif parameter.ndim > 1:
                parameter.mul_(20.0 if any(part in key for part in _FIRST) else 4.0)
            else:
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
    lm.to(dtype).save_pretrained(folder, max_shard_size=max_shard_size)
    tokenizer.save_pretrained(folder)
    return folder


class _Opens:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def pickle_weights(folder: Path, executed: Path) -> Path:
    """Put a pickle in place of a checkpoint's safetensors: whoever unpickles it makes the file ``executed``."""
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(_Opens(executed)))
    return folder


def add_code(folder: Path, executed: Path, model_type: str) -> Path:
    """Let a checkpoint bring code of its own, which makes the file ``executed`` when it is imported."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config |= {
        "model_type": model_type,
        "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"},
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "evil.py").write_text(f"open({str(executed)!r}, 'w')\n", encoding="utf-8")
    return folder
