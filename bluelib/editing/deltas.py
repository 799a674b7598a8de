"""An edit as a small file: only the matrices it changed, and the weights they belong to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..io.tensors import load_tensors, save_tensors
from ..models.model import Model

FORMAT = "bluelib-delta-1"


def save_delta(model: Model, layers: tuple[int, ...], path: str | Path, about: dict[str, Any] | None = None) -> Path:
    """Write the value projections of ``layers`` as they are now, with the hash of the model's weights as loaded, and of
    any other layers that are no longer as loaded.

    The edited matrices themselves are kept, not differences, so that applying them gives the same bits.
    """
    changed = sorted({*layers, *model.changed_layers()})
    tensors = {str(layer): model.weight(layer).contiguous().cpu() for layer in changed}
    belongs = {"model": model.name, "model_revision": model.revision, "about": about or {}}
    save_tensors(path, tensors, {FORMAT: belongs})
    return Path(path)


@torch.no_grad()
def apply_delta(model: Model, path: str | Path) -> dict[str, Any]:
    """Put the matrices of a file that :func:`save_delta` wrote into ``model``.

    Returns:
        What was written ``about`` the edit.

    Raises:
        ValueError: if the file is no such file, is damaged, belongs to other weights, or the model has been edited
            already; the model is not changed then.
        FileNotFoundError: if there is no file at ``path``.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} is no file; a delta is what `save_delta` wrote")
    tensors, found = load_tensors(path)
    if FORMAT not in found:
        raise ValueError(f"{path} is not a delta of bluelib: it holds {list(found) or 'nothing'}, not {FORMAT}")
    metadata = found[FORMAT]
    if metadata["model_revision"] != model.revision:
        raise ValueError(
            f"{path} belongs to {metadata['model']} with weights {metadata['model_revision']}; "
            f"{model.name} has {model.revision}"
        )
    model.check_unedited("the delta's matrices")
    model.edit_in_float32(map(int, tensors))
    for layer, weight in tensors.items():
        wanted = model.weight(int(layer))
        if (weight.dtype, weight.shape) != (wanted.dtype, wanted.shape):
            raise ValueError(
                f"{path} has layer {layer} as {weight.dtype} {tuple(weight.shape)}; "
                f"{model.name} was loaded with {wanted.dtype} {tuple(wanted.shape)}"
            )
    for layer, weight in tensors.items():
        model.weight(int(layer)).copy_(weight)
    return metadata["about"]
