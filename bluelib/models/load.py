"""Load a causal language model: shipped, fetched on first use, from a folder or a GGUF file, or from a hub."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import cached_file
from transformers.utils import logging as hf_logging
from transformers.utils.hub import extract_commit_hash

from ..io.assets import check_shipped
from ..io.checks import suggestion
from ..io.formats import read_json
from ..io.plugins import load_plugins
from ..io.tensors import file_hash
from .adapters import adapter_for
from .download import download_model
from .gguf import gguf_file, read_gguf
from .known import DOWNLOADS, DTYPES, known_models, pocket_models
from .model import Model, check_finite

#: A folder with a tokenizer has at least one of these files.
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
_NO_TOKENIZER = (
    "has no tokenizer files (tokenizer.json, or those of an older kind): copy them beside its config.json from where "
    "the model comes from, or write them there with `AutoTokenizer.from_pretrained(…).save_pretrained(…)`"
)


def load_model(name: str, *, device: str = "cpu", dtype: str = "float32") -> Model:
    """Load a causal language model: from safetensors or GGUF files only, and without running code that comes with it.

    Args:
        name: a pocket model (see :func:`pocket_models`); ``smollm2-135m``, which is fetched on first use (93 MB); a
            local checkpoint folder; a GGUF file, or a folder that holds one and no safetensors files; or a hub id. A
            GGUF file's weights are dequantised, and the SHA-256 of the file is the model's revision.
        device: a torch device; or ``auto``, to spread the model over all devices (accelerate's
            ``device_map="auto"``).
        dtype: ``float32``, ``bfloat16`` or ``float16``.

    Raises:
        ValueError: if the dtype or device is unknown, or the architecture has no adapter; if the checkpoint lacks
            weights or a tokenizer, or its weights are quantised, not finite or of other shapes; if a shipped or
            downloaded model has changed. No hash is known of other checkpoints, so other errors in their numbers are
            not noticed. For a GGUF file, see :func:`~bluelib.models.gguf.read_gguf`.
        OSError: if the name is neither known, nor a folder, nor on the hub, if the hub does not give access, or if a
            file is damaged or cannot be fetched; the message says what to do.
    """
    load_plugins()
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    check_device(device)
    shipped = pocket_models()
    if name.startswith("pocket-") and name not in shipped and not Path(name).exists():
        raise ValueError(
            f"model {name!r} is not shipped here; known: {', '.join(shipped) or 'none'}, "
            "or a local checkpoint folder, or a hub id"
        )
    revision = None
    if name in shipped:
        check_shipped(shipped[name])
        source = str(shipped[name])
    elif name in DOWNLOADS:
        source, revision = str(download_model(name)), f"sha256:{DOWNLOADS[name].gguf_sha256}"
    else:
        _check_there(name)
        source = name
    if file := gguf_file(source):
        hf_model, tokenizer, found = read_gguf(file, getattr(torch, dtype), device)
        revision = f"sha256:{file_hash(file)}"
    else:
        hf_model, tokenizer, found, commit = _read_checkpoint(name, source, getattr(torch, dtype), device)
        revision = revision or commit
    _check_complete(name, found)
    hf_model = hf_model.eval().requires_grad_(False)
    check_finite(name, hf_model)
    if len(tokenizer) <= len(tokenizer.all_special_ids):  # what transformers makes if the files are missing
        raise ValueError(f"{name!r} {_NO_TOKENIZER}")
    # The padding token is masked, so it only needs an embedding. Without one, id 0 pads: as a special token, it would
    # be taken out of texts once the model is saved.
    rows, pads = hf_model.get_input_embeddings().weight.shape[0], (tokenizer.pad_token, tokenizer.eos_token)
    if tokenizer.bos_token_id is not None and tokenizer.bos_token_id >= rows:
        raise ValueError(
            f"{name!r}: the tokenizer's BOS {tokenizer.bos_token!r} has no embedding (id {tokenizer.bos_token_id}; the "
            f"model has {rows}): resize the model's embeddings, or take the model's own tokenizer"
        )
    usable = (token for token in pads if token and tokenizer.convert_tokens_to_ids(token) < rows)
    tokenizer.pad_token = next(usable, None)
    return Model.of(name, hf_model, tokenizer, revision)


def _check_there(name: str) -> None:
    """Refuse a path that does not lead to a model, before transformers takes it for a hub id.

    Raises:
        OSError: if there is nothing at the path.
        ValueError: if it is one file of a checkpoint, or a folder with an adapter and no model.
    """
    path = Path(name)
    is_file = path.suffix.lower() == ".gguf"
    if (path.is_absolute() or is_file) and not path.exists():
        raise OSError(f"there is no {'GGUF file' if is_file else 'checkpoint folder'} at {name}")
    if "/" not in name and not path.exists() and (close := suggestion(name, known_models())):
        raise OSError(f"no model is called {name!r}{close}")
    if path.is_file() and not is_file and path.suffix in (".safetensors", ".json", ".bin"):
        raise ValueError(f"{name!r} is a file of a checkpoint: name its folder, {path.parent}")
    weights = [file for file in path.glob("*.safetensors") if not file.name.startswith("adapter_")]
    if (path / "adapter_config.json").exists() and not weights:
        raise ValueError(
            f"{name!r} holds an adapter (adapter_config.json) without the model that it belongs to: merge it first "
            "(peft: `AutoPeftModelForCausalLM.from_pretrained(…).merge_and_unload().save_pretrained(…)`), save the "
            "tokenizer beside it, and load that folder"
        )


def _read_checkpoint(
    name: str, source: str, dtype: torch.dtype, device: str
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, dict[str, Any], str | None]:
    """The model and tokenizer of a checkpoint folder or a hub id, transformers' ``output_loading_info``, and the hub's
    commit."""
    try:
        config_file = cached_file(source, "config.json")
        commit = extract_commit_hash(config_file, None)  # None for a local folder
        # Everything is read as of one commit. Asked for `main`, transformers lets a service elsewhere convert a hub
        # model without safetensors, and takes what somebody proposes there for its weights.
        pinned = {"revision": commit or "main", "trust_remote_code": False}
        with _any_error_named():
            config, _ = PreTrainedConfig.get_config_dict(source, revision=pinned["revision"])
        if "model_type" not in config:
            raise ValueError(f"{name!r} has no config.json that names a model_type, as a checkpoint must")
        adapter_for(config["model_type"])  # refuse an unknown architecture before loading its weights
        if quantised := config.get("quantization_config") or config.get("quantization"):  # the latter is MLX's
            raise ValueError(f"{name!r} {_quantised(quantised)}")
        if Path(source).is_dir() and not _has_tokenizer(Path(source)):
            raise ValueError(f"{name!r} {_NO_TOKENIZER}")
        with _without_progress_bar(name in known_models()), _any_error_named():
            hf_model, found = AutoModelForCausalLM.from_pretrained(
                source,
                dtype=dtype,
                use_safetensors=True,
                device_map=None if device == "cpu" else device,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                **pinned,
            )
        if getattr(hf_model, "_hf_peft_config_loaded", False):  # by transformers, if peft is installed
            raise ValueError(
                f"{name!r} has an adapter beside its weights (adapter_config.json), which would be added to them: "
                "remove the adapter's files if it is merged already, or merge it first"
            )
        with _any_error_named():
            tokenizer = AutoTokenizer.from_pretrained(source, **pinned)
            tokenizer("a")  # fails here if its settings cannot work
    except SafetensorError as error:
        raise OSError(_damaged(name, Path(config_file).parent, error)) from error
    except OSError as error:
        raise OSError(_why_not(name, error)) from error
    return hf_model, tokenizer, found, commit


def _quantised(quantization: Any) -> str:
    """The message about a checkpoint with a ``quantization_config``."""
    method = quantization.get("quant_method") if isinstance(quantization, dict) else None
    return (
        f"has quantised weights ({method or 'quantization_config in its config.json'}), and editing needs them in full "
        "precision: take the checkpoint that it was made from, or dequantise it (transformers: "
        "`model.dequantize()`, then `save_pretrained`) and load that folder"
    )


@contextmanager
def _any_error_named() -> Iterator[None]:
    """Raise any error as an :class:`OSError` that names its type: damaged files make transformers and tokenizers raise
    errors of any kind."""
    try:
        yield
    except (OSError, SafetensorError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {error}") from error


def check_device(device: str) -> None:
    """Make sure that torch has a device: ``auto``, or a name such as cpu, cuda or cuda:1.

    Raises:
        ValueError: if torch does not know it, or finds none; the message says which.
    """
    if device == "auto":
        return
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise ValueError(f"device {device!r} is neither auto nor a torch device such as cpu, cuda or cuda:1") from error
    backend = getattr(torch, kind, None)  # none for meta and xla
    if kind != "cpu" and not (backend and backend.is_available()):
        raise ValueError(f"device {device!r} is not available: torch {torch.__version__} finds no {kind}; use cpu")


#: Endings of tensor names that only quantised weights have beside them: of bitsandbytes, fp8, GPTQ and AWQ, and MLX.
_SCALES = (".SCB", ".absmax", "_scale_inv", ".weight_scale", ".qweight", ".qzeros", ".scales")


def _check_complete(name: str, found: dict[str, Any]) -> None:
    """Refuse weights that do not fill the model, because transformers draws the rest at random. Also refuse quantised
    weights if the configuration does not say so, because transformers then takes them for plain numbers.

    Raises:
        ValueError: if the checkpoint lacks a weight, or has one that is quantised or in another shape; the message
            names the first ones.
    """
    if scales := sorted(key for key in found.get("unexpected_keys", ()) if key.endswith(_SCALES)):
        raise ValueError(f"{name!r} {_quantised({'quant_method': f'it has {scales[0]}'})}")
    lacking = sorted(found["missing_keys"])
    other = [f"{key} (there {tuple(there)}, needed {tuple(needed)})" for key, there, needed in found["mismatched_keys"]]
    for what, keys in (("lacks", lacking), ("has weights in another shape than in its config.json:", sorted(other))):
        if keys:
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            raise ValueError(
                f"checkpoint {name!r} {what} {', '.join(keys[:3])}{more}: it must have all weights of its "
                "architecture; save or download it again"
            )


def _damaged(name: str, folder: Path, error: SafetensorError) -> str:
    """The message that says which of a checkpoint's files are not whole safetensors files, and what to do."""
    damaged = []
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, "pt"):
                pass
        except (SafetensorError, OSError):
            damaged.append(path.name)
    return (
        f"{name!r} cannot be loaded: {', '.join(damaged) or 'a weights file'} in {folder} is incomplete, or not "
        f"a safetensors file ({error}); delete it, and copy or download it again"
    )


def _why_not(name: str, error: OSError) -> str:
    """What to do about a model that transformers cannot load."""
    raised: set[str] = set()
    cause: BaseException | None = error
    while cause is not None:
        raised.add(type(cause).__name__)
        cause = cause.__cause__ or cause.__context__
    said = str(error).strip().split("\n")[0].partition(" Please do not set")[0]
    if "GatedRepoError" in raised or "gated repo" in said:
        return (
            f"the hub gives {name!r} only to users who have accepted its licence: accept it at "
            f"https://huggingface.co/{name}, then log in (`hf auth login`, or set HF_TOKEN)"
        )
    if (folder := Path(name)).is_dir():
        if (folder / "adapter_config.json").exists() and "adapter" in said:
            return f"{name!r} has an adapter_config.json beside its weights, but no adapter: remove that file"
        if missing := _missing_shards(folder):
            return f"{name!r} lacks {', '.join(missing)}, which its model.safetensors.index.json names: copy it again"
    if "sentencepiece" in said or "tiktoken" in said:
        return (
            f"{name!r} has its tokenizer as tokenizer.model, which is read with sentencepiece: `pip install "
            "sentencepiece`, or put the model's tokenizer.json beside it"
        )
    if "safetensors" in said:
        return (
            f"{name!r} has no safetensors files, and other weights are not read, because a pickle can run code; "
            f"docs/paper-scale.md shows how to convert a checkpoint ({said})"
        )
    if folder.is_dir():
        broken = [file.name for file in sorted(folder.glob("*.json")) if not _is_json(file)]
        why = f"not JSON: {', '.join(broken)}" if broken else said.rstrip(".")
        return f"{name!r} cannot be loaded ({why}): a file is damaged, or belongs to another model; copy it again"
    return (
        f"{name!r} cannot be loaded: {said} Give a known model ({', '.join(known_models())}), a GGUF file, a local "
        "checkpoint folder, or a hub id. Without a connection, only models in the hub's cache can be loaded; for a "
        "private model, log in (`hf auth login`, or set HF_TOKEN)"
    )


def _has_tokenizer(folder: Path) -> bool:
    """Whether a folder has the files of a tokenizer; byte pairs need ``merges.txt`` beside ``vocab.json``."""
    found = {file for file in _TOKENIZER_FILES if (folder / file).exists()}
    return bool(found - {"vocab.json"}) or ("vocab.json" in found and (folder / "merges.txt").exists())


def _missing_shards(folder: Path) -> list[str]:
    """The files that a sharded checkpoint's index names but its folder lacks."""
    index = folder / "model.safetensors.index.json"
    try:
        named = set(read_json(index)["weight_map"].values()) if index.exists() else set()
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []
    return sorted(name for name in named if isinstance(name, str) and not (folder / name).exists())


def _is_json(file: Path) -> bool:
    try:
        read_json(file)
    except (OSError, ValueError):
        return False
    return True


@contextmanager
def _without_progress_bar(quiet: bool) -> Iterator[None]:
    """Silence transformers' progress bar for models that load in a moment."""
    shown = hf_logging.is_progress_bar_enabled()
    if quiet:
        hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            hf_logging.enable_progress_bar()
