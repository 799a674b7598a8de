"""A causal language model, and the names of its parts.

A transformer MLP is read as a linear associative memory: its value projection W maps a key (the MLP's inner
activation) to a value. An :class:`Adapter` says where that projection, the blocks, the final norm and the head of an
architecture are. Everything else in the library works on these names alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from ..io.paths import stem_of
from ..io.tensors import tensors_hash, tensors_in
from ..io.writing import atomic_directory
from .adapters import Adapter, adapter_for
from .known import known_models

if TYPE_CHECKING:
    from .asking import Reply


@dataclass(frozen=True)
class Snapshot:
    """Value projections at one moment.

    Attributes:
        weights: W by layer, ``(d_model, d_mlp)``, on the layer's device.
        in_float32: those of the layers that were kept in float32 at that moment, in a model of lower precision.
    """

    weights: Mapping[int, Tensor] = field(repr=False)
    in_float32: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Model:
    """A language model with its tokenizer and the names of its parts.

    Attributes:
        name: what it was loaded as.
        hf_model: the transformers model, in evaluation mode, with parameters that do not require gradients.
        tokenizer: its tokenizer.
        adapter: the names of its parts.
        revision: identifies the weights it was loaded with (hub commit, or SHA-256 of the weights).
        checksum: by layer, that of the value projection as loaded; see :meth:`check_unedited`.
    """

    name: str
    hf_model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    adapter: Adapter
    revision: str
    checksum: tuple[int, ...]
    _in_float32: dict[int, tuple[RemovableHandle, ...]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @classmethod
    def of(
        cls, name: str, hf_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, revision: str | None = None
    ) -> Model:
        """Describe a transformers model; without a revision, its weights are hashed.

        Raises:
            ValueError: for an architecture without an adapter.
        """
        adapter = adapter_for(hf_model.config.model_type)
        tokenizer.embedded = hf_model.get_input_embeddings().weight.shape[0]  # read by prompts.encode_prompt
        return cls(name, hf_model, tokenizer, adapter, revision or weights_hash(hf_model), _checksum(hf_model, adapter))

    @cached_property
    def lacks_embeddings(self) -> bool:
        """Whether the tokenizer has tokens, added later, that the model has no embedding of."""
        rows = self.hf_model.get_input_embeddings().weight.shape[0]
        return max(self.tokenizer.get_vocab().values()) >= rows

    @cached_property
    def cache_key(self) -> str:
        """A key for the names of files that are kept about the model as loaded. It identifies its weights, their type,
        and, by a hash, its configuration and its tokenizer, which also decide what it computes from a text."""
        config, tokenizer = self.hf_model.config.to_dict(), self.tokenizer
        rules = json.loads(tokenizer.backend_tokenizer.to_str()) if tokenizer.is_fast else tokenizer.get_vocab()
        for part in (config, rules):  # drop what says where it came from, or how it was last called
            for name in ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "truncation", "padding"):
                part.pop(name, None)
        about = [config, rules, tokenizer.special_tokens_map, tokenizer("a").input_ids]
        digest = hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()
        return f"{self.revision.removeprefix('sha256:')[:16]}-{self.dtype_name}-{digest[:8]}"

    @property
    def dtype_name(self) -> str:
        """The type of its weights, such as ``float32``."""
        return str(self.hf_model.dtype).removeprefix("torch.")

    @property
    def stem(self) -> str:
        """The model's name in the names of results, see :func:`.stem_of`."""
        return self.name if self.name in known_models() else stem_of(self.name, self.revision)

    def check_unedited(self, purpose: str) -> None:
        """Make sure that what is kept on disk under this model's revision is measured on the weights as loaded.

        Raises:
            ValueError: if a value projection is no longer what it was when the model was loaded.
        """
        if self.changed_layers():
            raise ValueError(
                f"{self.name} has been edited: {purpose} belong to the weights as loaded; revert the edits first"
            )

    def changed_layers(self) -> list[int]:
        """The layers whose value projections are no longer what they were when the model was loaded."""
        now = _checksum(self.hf_model, self.adapter)
        return [layer for layer in range(self.n_layers) if now[layer] != self.checksum[layer]]

    def weight_change(self, originals: Mapping[int, Tensor]) -> dict[int, float]:
        """‖W − W₀‖ / ‖W₀‖ (Frobenius) of each layer of ``originals``, which has its W₀."""
        return {
            layer: ((self.weight(layer).float() - original.float()).norm() / original.float().norm()).item()
            for layer, original in originals.items()
        }

    def edit_in_float32(self, layers: Iterable[int]) -> None:
        """Keep the value projections of ``layers`` in float32 from now on, in a model of lower precision.

        Most entries of an update are smaller than the distance from one bfloat16 number to the next and would be lost.
        The conversion is exact and the layer's outputs keep the model's type; calling it again changes nothing.
        :meth:`as_loaded` undoes it.

        Raises:
            ValueError: if :meth:`check_editable` refuses a layer.
        """
        for layer in self.check_editable(layers):
            module, dtype = self.value_projection(layer), self.hf_model.dtype
            if module.weight.dtype.itemsize < 4:
                module.float()
                self._in_float32[layer] = (
                    module.register_forward_pre_hook(lambda module, args: (args[0].float(), *args[1:])),
                    module.register_forward_hook(lambda module, args, output, dtype=dtype: output.to(dtype)),
                )

    def as_loaded(self, layers: Iterable[int]) -> None:
        """Give the value projections of ``layers`` the type that they had before :meth:`edit_in_float32`. Weights that
        are the same as before stay exact; others are rounded."""
        for layer in self._in_float32.keys() & {*layers}:
            for hook in self._in_float32.pop(layer):
                hook.remove()
            self.value_projection(layer).to(self.hf_model.dtype)

    def snapshot(self, layers: Iterable[int]) -> Snapshot:
        """The value projections of ``layers`` as they are now, for :meth:`restore`.

        Raises:
            ValueError: if one is not a layer of this model.
        """
        layers = self.check_layers(layers)
        return Snapshot(
            {layer: self.weight(layer).clone() for layer in layers},
            frozenset(layer for layer in layers if layer in self._in_float32),
        )

    def restore(self, snapshot: Snapshot) -> None:
        """Put the value projections back, bit for bit, and in their old type unless they were in float32 then."""
        if snapshot.in_float32:
            self.edit_in_float32(snapshot.in_float32)
        for layer, weight in snapshot.weights.items():
            self.weight(layer).copy_(weight)
        self.as_loaded(snapshot.weights.keys() - snapshot.in_float32)

    @contextmanager
    def restored_on_error(self, layers: Iterable[int]) -> Iterator[Snapshot]:
        """Restore the value projections of ``layers`` if the block fails. Yields the snapshot taken before it."""
        before = self.snapshot(layers)
        try:
            yield before
        except BaseException:
            self.restore(before)
            raise

    @contextmanager
    def preserved(self, layers: Iterable[int]) -> Iterator[None]:
        """Restore the value projections of ``layers`` after the block, whatever happens inside it."""
        before = self.snapshot(layers)
        try:
            yield
        finally:
            self.restore(before)

    def save(self, path: str | Path) -> Path:
        """Write the model in its present state as a checkpoint that ``transformers`` loads, whole or not at all.

        Matrices that are edited in float32 are rounded to the model's type. The value projections are read back from
        the checkpoint and compared with the model's.

        Raises:
            FileExistsError: if there is something at ``path`` already.
            OSError: if the checkpoint does not have the model's value projections; nothing is left at ``path`` then.
        """
        path = Path(path)
        if path.exists() and not (path.is_dir() and not any(path.iterdir())):
            raise FileExistsError(f"{path} exists already; choose a new folder")
        self.check_here("a checkpoint")
        with atomic_directory(path, replace=False) as temporary:
            state = {
                k: v.to(self.hf_model.dtype) if v.is_floating_point() else v
                for k, v in self.hf_model.state_dict().items()
            }
            names = [f"{self.adapter.blocks}.{n}.{self.adapter.value_projection}.weight" for n in range(self.n_layers)]
            projections = {name: state.get(name) for name in names}  # transformers empties the dictionary as it writes
            self.hf_model.save_pretrained(temporary, state_dict=state)
            self.tokenizer.save_pretrained(temporary)
            for name, written in tensors_in(temporary, names):
                weight = projections[name]
                if written is None or weight is None or not torch.equal(written, weight.cpu()):
                    found = "has a different" if written is not None and weight is not None else "lacks"
                    raise OSError(
                        f"nothing was saved at {path}: the checkpoint that transformers wrote {found} {name}. If an "
                        "adapter is active (peft), merge it into the model first"
                    )
        return path

    def ask(self, prompt: str, *, chat: bool = False, tokens: int = 40, top: int = 5) -> Reply:
        """What the model says after a prompt, and its first choices there: see :func:`bluelib.models.asking.ask`."""
        from .asking import ask  # it imports this module

        return ask(self, prompt, chat=chat, tokens=tokens, top=top)

    @property
    def n_layers(self) -> int:
        return len(self.blocks)

    @property
    def blocks(self) -> nn.ModuleList:
        return self.hf_model.get_submodule(self.adapter.blocks)

    @property
    def norm(self) -> nn.Module:
        return self.hf_model.get_submodule(self.adapter.norm)

    @property
    def head(self) -> nn.Linear:
        return self.hf_model.get_submodule(self.adapter.head)

    @property
    def device(self) -> torch.device:
        """The device of the embeddings, where inputs go. In a model on several devices, a layer is on the device of its
        :meth:`weight`."""
        return self.hf_model.get_input_embeddings().weight.device

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
        """Make sure that this many tokens fit into the model's context. Beyond it, some architectures fail somewhere
        inside, and others compute something meaningless.

        Raises:
            ValueError: if they do not fit; the message begins with ``what`` they are.
        """
        if tokens > self.max_positions:
            raise ValueError(f"{what}: {tokens} tokens exceed {self.name}'s context of {self.max_positions}")

    def check_editable(self, layers: Iterable[int]) -> tuple[int, ...]:
        """``layers`` as a sorted tuple, once it is certain that all of them can be edited in place. Other layers may be
        offloaded.

        Raises:
            ValueError: if one is not a layer of this model, or is offloaded: for lack of memory on the devices,
                accelerate keeps it in the host's memory or on disk, and copies it to a device each time it runs.
        """
        layers = self.check_layers(layers)
        away = [layer for layer in layers if self.weight(layer).is_meta]
        if away:
            raise ValueError(
                f"layers {', '.join(map(str, away))} of {self.name} cannot be edited: they are offloaded to the host's "
                "memory or to disk; use devices with more memory, or a smaller dtype"
            )
        return layers

    def check_here(self, what: str) -> None:
        """Make sure that all weights are on a device or in memory.

        Raises:
            ValueError: if accelerate has offloaded some: they cannot be written as ``what``.
        """
        if any(parameter.is_meta for parameter in self.hf_model.parameters()):
            raise ValueError(
                f"{self.name} cannot be saved as {what}: some of its weights are offloaded to the host's memory or to "
                "disk. Save the delta (save_delta, --save-delta), and apply it where the model fits: blue apply"
            )

    @property
    def max_positions(self) -> int:
        return getattr(self.hf_model.config, "max_position_embeddings", 2**31)

    @property
    def has_bos(self) -> bool:
        """Whether the tokenizer itself starts every text with a BOS token."""
        ids = self.tokenizer("a").input_ids
        return bool(ids) and ids[0] == self.tokenizer.bos_token_id


def _checksum(hf_model: PreTrainedModel, adapter: Adapter) -> tuple[int, ...]:
    """A sum of each value projection's bits: exact, so it does not depend on the device or the number of threads."""
    blocks = hf_model.get_submodule(adapter.blocks)
    weights = (block.get_submodule(adapter.value_projection).weight for block in blocks)
    # accelerate has offloaded the weights that are on the meta device; they cannot be edited
    return tuple(0 if w.is_meta else _bits(w) for w in weights)


def _bits(weight: Tensor) -> int:
    """The sum of the weights' bits, in halves, so that it cannot overflow. They are taken as float64, since an edited
    matrix may be kept in another type than before."""
    return int(weight.detach().double().contiguous().view(torch.int32).sum(dtype=torch.int64))


def check_finite(name: str, hf_model: nn.Module) -> None:
    """Refuse NaN and infinity in a model's parameters: nothing meaningful can be computed with them.

    Raises:
        ValueError: if there are any; the message names the first parameters that have them.
    """
    wrong = [key for key, weight in hf_model.named_parameters() if not (weight.is_meta or torch.isfinite(weight).all())]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ValueError(
            f"{name!r} has NaN or infinity in {', '.join(wrong[:3])}{more}: it can be neither evaluated nor edited; "
            "save or download it again, in another dtype if this one overflows"
        )


def weights_hash(hf_model: nn.Module) -> str:
    """SHA-256 over the names, shapes, types and bytes of all parameters and buffers that are saved.

    Raises:
        ValueError: if a tensor is not in memory.
    """
    state = hf_model.state_dict()
    for name, tensor in sorted(state.items()):
        if tensor.is_meta:
            raise ValueError(
                f"{name} is offloaded, so the weights of this checkpoint cannot be identified: "
                "use devices with more memory, a smaller dtype, or a hub id"
            )
    return "sha256:" + tensors_hash(state)
