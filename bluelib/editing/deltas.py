"""An edit as a small file: only the changed matrices, the revision of the weights they belong to, and the keys that a
method with a history needs to continue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..io.tensors import load_tensors, save_tensors
from ..models.model import Model

FORMAT = "bluelib-delta-2"
#: An earlier format, without keys.
EARLIER = "bluelib-delta-1"
_KEYS = "keys."


@dataclass(frozen=True)
class Delta:
    """The contents of an edit's file.

    Attributes:
        weights: the edited W by layer, ``(d_model, d_mlp)``.
        keys: K of all its edits by layer, ``(d_mlp, u)``; empty where the method remembers none.
        about: what was written about the edit.
    """

    weights: Mapping[int, Tensor] = field(repr=False)
    keys: Mapping[int, Tensor] = field(repr=False)
    about: dict[str, Any]


def save_delta(
    model: Model,
    layers: tuple[int, ...],
    path: str | Path,
    about: dict[str, Any] | None = None,
    keys: Sequence[Mapping[int, Tensor]] = (),
) -> Path:
    """Write the value projections of ``layers`` as they are now, and those of any other layers changed since loading,
    with the hash of the weights as loaded and the ``keys`` of the batches by layer.

    The edited matrices themselves are kept, not differences, so that applying them gives the same bits.
    """
    changed = sorted({*layers, *model.changed_layers()})
    tensors = {str(layer): model.weight(layer).contiguous().cpu() for layer in changed}
    for layer in keys[0] if keys else ():
        tensors[f"{_KEYS}{layer}"] = torch.cat([batch[layer].cpu() for batch in keys], dim=1)
    dtype = model.dtype_name
    belongs = {"model": model.name, "model_revision": model.revision, "dtype": dtype, "about": about or {}}
    save_tensors(path, tensors, {FORMAT: belongs})
    return Path(path)


def read_delta(model: Model, path: str | Path) -> Delta:
    """Read a file that :func:`save_delta` wrote, for the unedited ``model``.

    Raises:
        ValueError: if the file is not a delta, is damaged, belongs to other weights or another type, or the model has
            been edited already.
        FileNotFoundError: if there is no file at ``path``.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} is not a file; name one that `save_delta` wrote")
    tensors, found = load_tensors(path)
    if not {FORMAT, EARLIER} & found.keys():
        raise ValueError(f"{path} is not a delta of bluelib: it holds {list(found) or 'nothing'}, not {FORMAT}")
    metadata = found.get(FORMAT) or found[EARLIER]
    if metadata["model_revision"] != model.revision:
        raise ValueError(
            f"{path} belongs to {metadata['model']} with weights {metadata['model_revision']}; "
            f"{model.name} has {model.revision}"
        )
    dtype = model.dtype_name
    if metadata.get("dtype", dtype) != dtype:
        raise ValueError(f"{path} was made in {metadata['dtype']}, and {model.name} was loaded in {dtype}")
    model.check_unedited("the delta's matrices")
    keys = {int(name.removeprefix(_KEYS)): tensor for name, tensor in tensors.items() if name.startswith(_KEYS)}
    weights = {int(name): tensor for name, tensor in tensors.items() if not name.startswith(_KEYS)}
    for layer, weight in weights.items():
        model.check_layers([layer])
        wanted = torch.float32 if model.hf_model.dtype.itemsize < 4 else model.hf_model.dtype  # as it is edited
        if (weight.dtype, weight.shape) != (wanted, model.weight(layer).shape):
            raise ValueError(
                f"{path} has layer {layer} as {weight.dtype} {tuple(weight.shape)}; "
                f"{model.name} was loaded with {wanted} {tuple(model.weight(layer).shape)}"
            )
    return Delta(weights, keys, metadata["about"])


@torch.no_grad()
def put(model: Model, delta: Delta) -> None:
    """Put the matrices of a delta into ``model``."""
    model.edit_in_float32(delta.weights)
    for layer, weight in delta.weights.items():
        model.weight(layer).copy_(weight)


def apply_delta(model: Model, path: str | Path) -> dict[str, Any]:
    """Put the matrices of a file that :func:`save_delta` wrote into ``model``.

    Returns:
        What was written ``about`` the edit.

    Raises:
        ValueError, FileNotFoundError: as :func:`read_delta`; the model is then not changed.
    """
    delta = read_delta(model, path)
    put(model, delta)
    return delta.about
