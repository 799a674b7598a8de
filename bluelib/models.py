"""Load a causal language model, and name its parts.

A transformer MLP is read as a linear associative memory: its value projection W maps a key (the MLP's inner
activation) to a value. An :class:`Adapter` says where that projection, the blocks, the final norm and the head of an
architecture are. Everything else in the library works on these names alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.pytorch_utils import Conv1D
from transformers.utils import cached_file
from transformers.utils import logging as hf_logging
from transformers.utils.hub import extract_commit_hash

from .io.assets import ASSETS, check_shipped
from .io.tensors import tensors_hash
from .io.writing import atomic_directory

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Adapter:
    """The names of a model's parts, as dotted paths. How to write one: ``docs/adapters.md``.

    What the library takes for granted: a block adds its MLP's output to the residual stream as it is, the logits are
    those of ``head`` on the output of ``norm``, and that is what ``base_model`` returns. ``blue doctor`` measures it.

    ``value_projection``, ``mlp``, ``attention`` and ``mlp_norm`` are relative to a block. ``mlp_norm`` is what the MLP
    reads the residual stream through, after attention; None for a block whose MLP stands beside attention, not after
    it. ``input_major`` says that the value projection's weight is stored as (d_mlp, d_model), as GPT-2's ``Conv1D``
    does, and not as (d_model, d_mlp).
    """

    blocks: str
    value_projection: str
    mlp: str
    attention: str
    mlp_norm: str | None
    norm: str
    head: str = "lm_head"
    input_major: bool = False


_LLAMA = Adapter("model.layers", "mlp.down_proj", "mlp", "self_attn", "post_attention_layernorm", "model.norm")
#: By ``config.model_type`` of transformers. Qwen2.5 is a ``qwen2``.
ADAPTERS = {
    "gpt2": Adapter("transformer.h", "mlp.c_proj", "mlp", "attn", "ln_2", "transformer.ln_f", input_major=True),
    "gptj": Adapter("transformer.h", "mlp.fc_out", "mlp", "attn", None, "transformer.ln_f"),
    "llama": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "mistral": _LLAMA,
    "gemma": _LLAMA,
}
_NORMALISED = "it normalises its MLPs' outputs before adding them, so that no change of W adds R to the residual stream"
#: By ``config.model_type``, why a well-known architecture cannot be edited by what this library computes.
UNFIT = {"gemma2": _NORMALISED, "gemma3": _NORMALISED, "gemma3_text": _NORMALISED}


@dataclass(frozen=True)
class Model:
    """A language model with its tokenizer and the names of its parts.

    Attributes:
        name: what it was loaded as.
        lm: the transformers model; in evaluation mode, its parameters do not require gradients.
        tokenizer: its tokenizer.
        adapter: the names of its parts.
        revision: identifies the weights it was loaded with (hub commit, or SHA-256 of the weights).
        checksum: of the value projections as loaded, see :meth:`check_unedited`.
    """

    name: str
    lm: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    adapter: Adapter
    revision: str
    checksum: tuple[float, ...]

    @classmethod
    def of(
        cls, name: str, lm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, revision: str | None = None
    ) -> Model:
        """Describe a transformers model; without a revision, its weights are hashed.

        Raises:
            ValueError: for an architecture without an adapter.
        """
        adapter = adapter_for(lm.config.model_type)
        return cls(name, lm, tokenizer, adapter, revision or weights_hash(lm), _checksum(lm, adapter))

    @cached_property
    def cache_key(self) -> str:
        """For the names of what is kept about the model as loaded: its weights, their type, and a hash of what else
        decides what it computes of a text, which is its configuration and its tokenizer."""
        config, tokenizer = self.lm.config.to_dict(), self.tokenizer
        rules = json.loads(tokenizer.backend_tokenizer.to_str()) if tokenizer.is_fast else tokenizer.get_vocab()
        for part in (config, rules):  # which say where it came from, or how it was last called
            for name in ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "truncation", "padding"):
                part.pop(name, None)
        about = [config, rules, tokenizer.special_tokens_map, tokenizer("a").input_ids]
        digest = hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()
        dtype = str(self.lm.dtype).removeprefix("torch.")
        return f"{self.revision.removeprefix('sha256:')[:16]}-{dtype}-{digest[:8]}"

    def check_unedited(self, purpose: str) -> None:
        """Make sure that what is kept on disk under this model's revision is measured on those weights.

        Raises:
            ValueError: if a value projection is no longer what it was when the model was loaded.
        """
        if self.changed_layers():
            raise ValueError(f"{self.name} has been edited: {purpose} belong to the weights as loaded; revert it first")

    def changed_layers(self) -> list[int]:
        """The layers whose value projections are no longer what they were when the model was loaded."""
        now = _checksum(self.lm, self.adapter)
        return [layer for layer in range(self.n_layers) if now[layer] != self.checksum[layer]]

    def edit_in_float32(self, layers: Iterable[int]) -> None:
        """Keep the value projections of ``layers`` in float32 from now on, in a model of lower precision.

        Most entries of an update are smaller than a bfloat16's distance to the next one and would be lost. The
        conversion is exact and the layer's outputs keep the model's type; calling it again changes nothing.

        Raises:
            ValueError: from :meth:`check_editable`.
        """
        for layer in self.check_editable(layers):
            module, dtype = self.value_projection(layer), self.lm.dtype
            if module.weight.dtype.itemsize < 4:
                module.float()
                module.register_forward_pre_hook(lambda module, args: (args[0].float(), *args[1:]))
                module.register_forward_hook(lambda module, args, output, dtype=dtype: output.to(dtype))

    def save(self, path: str | Path) -> Path:
        """Write the model in its present state as a checkpoint that ``transformers`` loads, whole or not at all.

        Matrices that are edited in float32 are rounded to the model's type.

        Raises:
            FileExistsError: if there is something at ``path`` already.
        """
        path = Path(path)
        if path.exists() and not (path.is_dir() and not any(path.iterdir())):
            raise FileExistsError(f"{path} exists already; choose a new folder")
        with atomic_directory(path, replace=False) as temporary:
            state = {k: v.to(self.lm.dtype) if v.is_floating_point() else v for k, v in self.lm.state_dict().items()}
            self.lm.save_pretrained(temporary, state_dict=state)
            self.tokenizer.save_pretrained(temporary)
        return path

    def is_saved_in(self, path: str | Path) -> bool:
        """Whether the folder has the value projections as :meth:`save` would write them now."""
        name = f"{self.adapter.blocks}.{{}}.{self.adapter.value_projection}.weight"
        left = {name.format(layer): self.value_projection(layer).weight for layer in range(self.n_layers)}
        for file in Path(path).glob("*.safetensors"):
            with safe_open(file, "pt") as saved:
                for found in left.keys() & set(saved.keys()):
                    if not torch.equal(saved.get_tensor(found), left.pop(found).to(self.lm.dtype).cpu()):
                        return False
        return not left

    @property
    def n_layers(self) -> int:
        return len(self.blocks)

    @property
    def blocks(self) -> nn.ModuleList:
        return self.lm.get_submodule(self.adapter.blocks)

    @property
    def norm(self) -> nn.Module:
        return self.lm.get_submodule(self.adapter.norm)

    @property
    def head(self) -> nn.Linear:
        return self.lm.get_submodule(self.adapter.head)

    @property
    def device(self) -> torch.device:
        """Where inputs go: the device of the embeddings. A layer of a model on several devices has its own, which is
        that of its :meth:`weight`."""
        return self.lm.get_input_embeddings().weight.device

    def value_projection(self, layer: int) -> nn.Linear | Conv1D:
        """The module whose input is the key and whose weight is edited."""
        return self.blocks[layer].get_submodule(self.adapter.value_projection)

    def part(self, layer: int, name: str) -> nn.Module:
        """A part of a block by the adapter's name for it: ``mlp``, ``attention``, ``mlp_norm``."""
        return self.blocks[layer].get_submodule(getattr(self.adapter, name))

    def weight(self, layer: int) -> Tensor:
        """The value projection of a layer as W, ``(d_model, d_mlp)``: a view, so writing to it edits the model."""
        weight = self.value_projection(layer).weight.data
        return weight.T if self.adapter.input_major else weight

    def check_layers(self, layers: Iterable[int]) -> tuple[int, ...]:
        """``layers`` as a sorted tuple.

        Raises:
            ValueError: if one is not a layer of this model, or occurs twice.
        """
        layers = tuple(layers) if isinstance(layers, Iterable) else (layers,)
        whole = all(isinstance(layer, Integral) and not isinstance(layer, bool) for layer in layers)
        layers = tuple(sorted(layers)) if whole else layers
        if not whole or not layers or len({*layers} & {*range(self.n_layers)}) < len(layers):
            raise ValueError(
                f"layers {list(layers)} are not distinct layers of {self.name}, which has 0 to {self.n_layers - 1}"
            )
        return layers

    def check_length(self, tokens: int, what: str) -> None:
        """Make sure that so many tokens fit into the model's context: beyond it, some architectures fail somewhere
        inside, and others compute something.

        Raises:
            ValueError: if they do not; the message begins with ``what`` they are.
        """
        if tokens > self.max_positions:
            raise ValueError(f"{what}: {tokens} tokens exceed {self.name}'s context of {self.max_positions}")

    def check_editable(self, layers: Iterable[int]) -> tuple[int, ...]:
        """``layers`` as a sorted tuple, all of which can be edited in place. Others may be offloaded.

        Raises:
            ValueError: if one is not a layer of this model, or if accelerate, for want of memory on the devices, keeps
                it in the host's memory or on disk and brings a copy when it runs.
        """
        layers = self.check_layers(layers)
        away = [layer for layer in layers if self.weight(layer).is_meta]
        if away:
            raise ValueError(
                f"layers {', '.join(map(str, away))} of {self.name} cannot be edited: they are offloaded to the host's "
                "memory or to disk; a model that is to be edited needs devices with more memory, or a smaller dtype"
            )
        return layers

    @property
    def max_positions(self) -> int:
        return getattr(self.lm.config, "max_position_embeddings", 2**31)

    @property
    def has_bos(self) -> bool:
        """Whether the tokenizer itself starts every text with a BOS token."""
        ids = self.tokenizer("a").input_ids
        return bool(ids) and ids[0] == self.tokenizer.bos_token_id


#: The paper's models.
PAPER_MODELS = ("gpt2-xl", "EleutherAI/gpt-j-6B", "meta-llama/Meta-Llama-3-8B-Instruct")


def scale_of(name: str) -> str:
    """The scale that results of a model belong to: ``pocket``, ``paper``, or ``other`` for any other model."""
    return "pocket" if name in pocket_models() else "paper" if name in PAPER_MODELS else "other"


def pocket_models() -> dict[str, Path]:
    """The models shipped with the project: name to folder."""
    return {path.name: path for path in sorted((ASSETS / "models").glob("pocket-*")) if path.is_dir()}


def load_model(name: str, *, device: str = "cpu", dtype: str = "float32") -> Model:
    """Load a causal language model: from safetensors files only, and without running code that comes with it.

    Args:
        name: a pocket model (see :func:`pocket_models`), a local checkpoint folder, or a hub id.
        device: a torch device; or ``auto``, to spread the model over all there are (accelerate's
            ``device_map="auto"``).
        dtype: ``float32``, ``bfloat16`` or ``float16``.

    Raises:
        ValueError: for an unknown dtype or device, an architecture without an adapter, or a checkpoint that lacks
            weights, has them in other shapes, or has some that are not finite; for a shipped model that is not what
            was shipped. Of another checkpoint no hash is known: what else is wrong with its numbers is not seen.
        OSError: if the name is neither known, nor a folder, nor on the hub, if the hub does not hand it out, or if a
            file is damaged; the message says what to do.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    check_device(device)
    shipped = pocket_models()
    if name.startswith("pocket-") and name not in shipped and not Path(name).exists():
        raise ValueError(
            f"model {name!r} is not shipped here; known: {', '.join(shipped) or 'none'}, "
            "or a local checkpoint folder, or a hub id"
        )
    if Path(name).is_absolute() and not Path(name).is_dir():
        raise OSError(f"there is no checkpoint folder at {name}")
    if name in shipped:
        check_shipped(shipped[name])
    source = str(shipped.get(name, name))
    try:
        config_file = cached_file(source, "config.json")
        commit = extract_commit_hash(config_file, None)  # None for a local folder
        # All of it as of one commit. Asked for `main`, transformers has a hub model without safetensors converted by
        # a service elsewhere, and reads what somebody proposes there as its weights.
        pinned = {"revision": commit or "main", "trust_remote_code": False}
        with _any_error_named():
            config, _ = PreTrainedConfig.get_config_dict(source, revision=pinned["revision"])
        if "model_type" not in config:
            raise ValueError(f"{name!r} has no config.json that names a model_type, as a checkpoint must")
        adapter_for(config["model_type"])  # refuse an unknown architecture before loading its weights
        with _without_progress_bar(name in shipped), _any_error_named():
            lm, found = AutoModelForCausalLM.from_pretrained(
                source,
                dtype=DTYPES[dtype],
                use_safetensors=True,
                device_map=None if device == "cpu" else device,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                **pinned,
            )
        _check_complete(name, found)
        with _any_error_named():
            tokenizer = AutoTokenizer.from_pretrained(source, **pinned)
    except SafetensorError as error:
        raise OSError(_damaged(name, Path(config_file).parent, error)) from error
    except OSError as error:
        raise OSError(_why_not(name, error)) from error
    lm = lm.eval().requires_grad_(False)
    check_finite(name, lm)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return Model.of(name, lm, tokenizer, commit)


@contextmanager
def _any_error_named() -> Iterator[None]:
    """Damaged files make transformers and tokenizers raise errors of any kind, few of which say what was read."""
    try:
        yield
    except (OSError, SafetensorError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {error}") from error


def check_device(device: str) -> None:
    if device == "auto":
        return
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise ValueError(f"device {device!r} is neither auto nor a torch device such as cpu, cuda or cuda:1") from error
    if kind != "cpu" and not getattr(torch, kind).is_available():
        raise ValueError(f"device {device!r} is not there: torch {torch.__version__} finds no {kind}; use cpu")


def _check_complete(name: str, found: dict[str, Any]) -> None:
    """Refuse weights that do not fill the model: transformers draws the rest at random.

    Raises:
        ValueError: if the checkpoint lacks a weight, or has one in another shape; the message names the first ones.
    """
    lacking = sorted(found["missing_keys"])
    other = [f"{key} (there {tuple(there)}, needed {tuple(needed)})" for key, there, needed in found["mismatched_keys"]]
    for what, keys in (("lacks", lacking), ("has in another shape than its config.json says", sorted(other))):
        if keys:
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            raise ValueError(
                f"checkpoint {name!r} {what} {', '.join(keys[:3])}{more}: it must have all weights of its "
                "architecture; save or download it again"
            )


def _damaged(name: str, folder: Path, error: SafetensorError) -> str:
    """Which of a checkpoint's files are no whole safetensors files, and what to do."""
    damaged = []
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, "pt"):
                pass
        except (SafetensorError, OSError):
            damaged.append(path.name)
    return (
        f"{name!r} cannot be loaded: {', '.join(damaged) or 'a weights file'} in {folder} is incomplete, or no "
        f"safetensors file ({error}); delete it, and copy or download it again"
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
            f"the hub hands {name!r} out only to those who have accepted its licence: do that at "
            f"https://huggingface.co/{name}, then log in (`hf auth login`, or set HF_TOKEN)"
        )
    if "safetensors" in said:
        return (
            f"{name!r} has no weights in safetensors files, and no other kind is read, for a pickle can run code; "
            f"docs/paper-scale.md shows how to convert a checkpoint ({said})"
        )
    return (
        f"{name!r} cannot be loaded: {said} A model is a pocket model ({', '.join(pocket_models())}), a local "
        "checkpoint folder, or a hub id; without a connection, what the hub's cache holds; for a private one, log in "
        "(`hf auth login`, or set HF_TOKEN)"
    )


@contextmanager
def _without_progress_bar(quiet: bool) -> Iterator[None]:
    """Silence transformers' progress bar for models that load in no time."""
    shown = hf_logging.is_progress_bar_enabled()
    if quiet:
        hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            hf_logging.enable_progress_bar()


def adapter_for(model_type: str) -> Adapter:
    """The adapter of an architecture.

    Raises:
        ValueError: if there is none, or the architecture cannot have one; the message says what one must provide.
    """
    if model_type in UNFIT:
        raise ValueError(f"architecture {model_type!r} cannot be edited: {UNFIT[model_type]}")
    if model_type not in ADAPTERS:
        raise ValueError(
            f"no adapter for architecture {model_type!r} (known: {', '.join(ADAPTERS)}). An Adapter names, as dotted "
            "paths, the list of blocks; in a block the MLP's value projection, the MLP, attention and the norm before "
            "the MLP; the final norm and the head. It goes into bluelib.models.ADAPTERS: see docs/adapters.md"
        )
    return ADAPTERS[model_type]


def _checksum(lm: PreTrainedModel, adapter: Adapter) -> tuple[float, ...]:
    blocks = lm.get_submodule(adapter.blocks)
    weights = (block.get_submodule(adapter.value_projection).weight for block in blocks)
    # what is on the meta device has been offloaded by accelerate, and cannot be edited
    return tuple(0.0 if weight.is_meta else weight.detach().double().abs().sum().item() for weight in weights)


def check_finite(name: str, lm: nn.Module) -> None:
    """Refuse NaN and infinity in a model's parameters: what is computed with them is no result.

    Raises:
        ValueError: naming the first parameters that have any.
    """
    wrong = [key for key, weight in lm.named_parameters() if not (weight.is_meta or torch.isfinite(weight).all())]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ValueError(
            f"{name!r} has NaN or infinity in {', '.join(wrong[:3])}{more}: no fact can be asked of it, "
            "nor edited; save or download it again, in another dtype if this one overflows"
        )


def weights_hash(lm: nn.Module) -> str:
    """SHA-256 over the names, shapes, types and bytes of all parameters and buffers that are saved."""
    state = lm.state_dict()
    for name, tensor in sorted(state.items()):
        if tensor.is_meta:
            raise ValueError(
                f"{name} is offloaded, so that the weights of this checkpoint cannot be identified: "
                "use devices with more memory, a smaller dtype, or a hub id"
            )
    return "sha256:" + tensors_hash(state)
