"""Read a GGUF file, as written by llama.cpp: its weights, dequantised, and the tokenizer that it describes.

transformers reads such a file too, but then treats its model as a quantised one and does not save it. The model that
this module returns is like any other: plain matrices of one type, which can be edited and saved.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from gguf import MODEL_ARCH_NAMES, GGUFReader, GGUFValueType, get_tensor_name_map
from tokenizers import Regex, pre_tokenizers
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from .adapters import ADAPTERS, adapter_for

MAGIC = b"GGUF"
#: The end of a file's name if it is one of several that make up a model.
_PART = re.compile(r"-\d{5}-of-\d{5}\.gguf$", re.IGNORECASE)


def _then_bytes(first: pre_tokenizers.PreTokenizer, *, use_regex: bool = False) -> pre_tokenizers.PreTokenizer:
    """A rule, and then bytes as characters; with ``use_regex``, GPT-2's rule splits what is left before that."""
    rest = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
    return pre_tokenizers.Sequence([first, rest])


def _tiktoken(digits: str) -> pre_tokenizers.PreTokenizer:
    """The rule of Llama 3 and of Qwen2, which differ in how many digits stay together."""
    pattern = (
        rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{digits}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    return _then_bytes(pre_tokenizers.Split(Regex(pattern), "isolated"))


#: The names of Llama 3's rule. Its tokenizer also takes a piece that is in the vocabulary as it is, without merging.
LLAMA3 = ("llama-bpe", "llama3", "llama-v3")
#: The rules by which byte-level tokenizers split a text, by llama.cpp's names; None is GPT-2's, which transformers
#: takes for some of the others, too.
SPLITS = {
    "gpt-2": None,
    "smollm": _then_bytes(pre_tokenizers.Digits(individual_digits=True), use_regex=True),
    **dict.fromkeys(LLAMA3, _tiktoken("{1,3}")),
    "qwen2": _tiktoken(""),
}


@dataclass(frozen=True)
class Header:
    """What a GGUF file says about itself before its weights.

    Attributes:
        architecture: llama.cpp's name for it; that of Mistral is ``llama``.
        tensors: the names of its tensors.
        splits: of a byte-level tokenizer, the name of the rule by which texts are split before byte pairs are merged;
            None if it has no name, or for another kind of tokenizer.
    """

    architecture: str
    tensors: tuple[str, ...]
    splits: str | None


def gguf_file(name: str) -> Path | None:
    """The GGUF file that a model's name refers to: the file itself, or the only one in a folder without safetensors
    files.

    Returns None if the name is neither such a file nor such a folder.

    Raises:
        ValueError: if a folder has several GGUF files and no safetensors files; the message lists them.
    """
    path = Path(name)
    if path.is_file():
        return path
    if not path.is_dir() or ((path / "config.json").exists() and any(path.glob("*.safetensors"))):
        return None
    found = sorted(file for file in path.iterdir() if file.suffix.lower() == ".gguf")
    whole = [file for file in found if not _PART.search(file.name)]
    if len(whole) > 1:
        raise ValueError(
            f"{name!r} holds {len(whole)} GGUF files; give the path of one of them: "
            f"{', '.join(str(path / file.name) for file in whole)}"
        )
    return next(iter(whole or found), None)


def read_gguf(
    path: Path, dtype: torch.dtype, device: str = "cpu"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, dict[str, Any]]:
    """Read a GGUF file's model, with plain weights of one type, and its tokenizer.

    Everything that decides whether the file can be used is read from its header, before any weight.

    Args:
        path: the file.
        dtype: the type of the weights once they are dequantised.
        device: a torch device, or ``auto``.

    Returns:
        The model, the tokenizer, and which weights the file lacks or has in another shape (transformers'
        ``output_loading_info``).

    Raises:
        ValueError: if the architecture has no adapter, or transformers does not read it from such files; if the file is
            one of several files of a model, or is not a model's; if it has no tokenizer, or has tensors that
            transformers would leave out.
        OSError: if the file is not a GGUF file, or is damaged.
    """
    path = path.absolute()
    header = read_header(path)
    with tempfile.TemporaryDirectory() as empty:  # in the file's own folder, transformers would read other files too
        where: dict[str, Any] = {"gguf_file": str(path)}
        config = _config(path, header, empty, where)
        with _file_named(path):
            tokenizer = AutoTokenizer.from_pretrained(empty, **where)
            if hasattr(transformers, "GgufConfig"):  # later versions keep quantised blocks if they can use them
                where["quantization_config"] = transformers.GgufConfig(dequantize=True)
            hf_model, found = AutoModelForCausalLM.from_pretrained(
                empty,
                config=config,
                dtype=dtype,
                device_map=None if device == "cpu" else device,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                **where,
            )
    for name in ("hf_quantizer", "is_quantized", "quantization_method"):
        vars(hf_model).pop(name, None)
    vars(hf_model.config).pop("quantization_config", None)
    hf_model.config.architectures = [type(hf_model).__name__]  # as a checkpoint's says
    hf_model.config.name_or_path = tokenizer.name_or_path = str(path)
    _check_all_read(path, header, hf_model)
    if rule := SPLITS.get(header.splits or ""):
        tokenizer.backend_tokenizer.pre_tokenizer = rule
    if header.splits in LLAMA3:  # transformers does not read it
        tokenizer.backend_tokenizer.model.ignore_merges = True
    return hf_model, tokenizer, found


def read_header(path: Path) -> Header:
    """Read what a GGUF file says about itself, and check that it is a model's only file and has a tokenizer.

    Raises:
        ValueError: if it is not or has none; if its rotary positions are scaled, which transformers does not read; if
            its tokenizer splits texts by a rule that is not in :data:`SPLITS`.
        OSError: if the file is not a GGUF file, or is damaged.
    """
    with open(path, "rb") as file:
        begins = file.read(len(MAGIC))
    if begins != MAGIC:
        raise OSError(f"{path} is not a GGUF file: it begins with {begins!r}, not with {MAGIC!r}")
    try:
        reader = GGUFReader(path)
    except Exception as error:  # of any kind: the reader trusts the numbers in the file
        raise OSError(
            f"{path} is damaged or cut off: {type(error).__name__}: {error}; copy or download it again"
        ) from error

    def value(key: str) -> Any:
        """The value of a key: text, or the first number; None if the key is missing."""
        field = reader.fields.get(key)
        if field is None or not field.data:
            return None
        part = field.parts[field.data[0]]
        is_text = field.types[-1] == GGUFValueType.STRING
        return bytes(part).decode("utf-8", "replace") if is_text else part[0].item()

    kind, architecture = value("general.type"), value("general.architecture")
    if kind not in (None, "model"):
        raise ValueError(f"{path} holds a GGUF {kind}, not a model; merge it into its model first, and load that")
    if _PART.search(path.name) or (value("split.count") or 1) > 1:
        raise ValueError(
            f"{path} is one of several files of a model, and only a whole model is read: join them first "
            "(llama.cpp's `llama-gguf-split --merge FIRST WHOLE.gguf`)"
        )
    if architecture is None:
        raise ValueError(f"{path} has no general.architecture, which a model must have; take another file")
    if "tokenizer.ggml.model" not in reader.fields or "tokenizer.ggml.tokens" not in reader.fields:
        raise ValueError(
            f"{path} has no tokenizer (tokenizer.ggml.model and .tokens), and without one the model reads no text; "
            "take a file that has one, or the checkpoint that it was made from"
        )
    tensors = tuple(tensor.name for tensor in reader.tensors)
    scaling = value(f"{architecture}.rope.scaling.type")
    if "rope_freqs.weight" in tensors or scaling not in (None, "none"):
        raise ValueError(
            f"{path} has scaled rotary positions ({scaling or 'rope_freqs.weight'}), which transformers does not read "
            "from a GGUF file: it would compute a different model. Take the checkpoint that it was made from"
        )
    splits = value("tokenizer.ggml.pre") if value("tokenizer.ggml.model") == "gpt2" else None
    if splits is not None and splits not in SPLITS:
        raise ValueError(
            f"{path}: its tokenizer splits texts by the rule {splits!r} (tokenizer.ggml.pre), and only "
            f"{', '.join(SPLITS)} are known: the model would read other tokens. Take the checkpoint that it was made "
            "from"
        )
    return Header(architecture, tensors, splits)


def _config(path: Path, header: Header, folder: str, where: dict[str, Any]) -> PreTrainedConfig:
    """The configuration that transformers reads from the header.

    Raises:
        ValueError: if transformers does not know the architecture, or the architecture has no adapter.
    """
    try:
        found, _ = PreTrainedConfig.get_config_dict(folder, **where)
    except Exception as error:
        if header.architecture not in ADAPTERS:
            adapter_for(header.architecture)
        raise ValueError(
            f"transformers {transformers.__version__} does not read {path}, of architecture {header.architecture!r}: "
            f"{error} Take the checkpoint that it was made from"
        ) from error
    adapter_for(found["model_type"])
    found.pop("_model_name_or_path", None)  # a title, which a file of another quantisation may lack
    return AutoConfig.for_model(**found)


def _check_all_read(path: Path, header: Header, hf_model: nn.Module) -> None:
    """Refuse a file with tensors that transformers left out, such as biases that its configuration cannot name.

    Raises:
        ValueError: if there are any; the message names the first of them.
    """
    weights = [name for name, _ in hf_model.named_parameters()]
    if len(header.tensors) <= len(weights):
        return
    kind = next(key for key, name in MODEL_ARCH_NAMES.items() if name == header.architecture)
    names = get_tensor_name_map(kind, len(header.tensors))
    read = {names.get_name(name, try_suffixes=(".weight", ".bias")) for name in weights}
    over = [name for name in header.tensors if name not in read]
    more = f" and {len(over) - 3} more" if len(over) > 3 else ""
    raise ValueError(
        f"{path} has {', '.join(over[:3])}{more}, which transformers does not read into a "
        f"{type(hf_model).__name__}: it would compute a different model. Take the checkpoint that it was made from"
    )


@contextmanager
def _file_named(path: Path) -> Iterator[None]:
    """Name the file in any error: numbers in it that do not fit cause errors of any kind, few of which name it."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:
        raise OSError(
            f"{path} is damaged, or transformers {transformers.__version__} cannot read it: "
            f"{type(error).__name__}: {error}"
        ) from error
