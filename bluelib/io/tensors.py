"""Tensors as safetensors files, each with a hash of its content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .formats import DamagedError
from .signals import uninterrupted
from .writing import atomic_file

if TYPE_CHECKING:
    from torch import Tensor

#: The entry of a safetensors file's metadata that has the hash of its content.
SEAL = "bluelib"


def save_tensors(path: str | Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any] | None = None) -> str:
    """Write tensors and what is known ``about`` them (plain values) as a safetensors file, whole or not at all.

    The file also has a hash of both, which is returned: safetensors itself has no checksum."""
    from safetensors.torch import save_file

    tensors, about = dict(tensors), dict(about or {})
    # One entry: safetensors writes several in any order, and the same content should always give the same bytes.
    digest = tensors_hash(tensors, about)
    with atomic_file(Path(path)) as temporary:
        save_file(tensors, temporary, {SEAL: json.dumps({"sha256": digest, "about": about})})
    return digest


def load_tensors(path: str | Path, *, sha256: str | None = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What :func:`save_tensors` wrote: the tensors, and what is known about them.

    Args:
        path: the file.
        sha256: the hash of the file's bytes, for a file without a hash of its content.

    Raises:
        DamagedError: if the file is not what was written, or has no hash.
    """
    if sha256 is not None and file_hash(path) != sha256:
        raise DamagedError(f"{path} is damaged: its SHA-256 is not {sha256}; delete it and make it again")
    tensors, metadata = _read_tensors(path)
    if sha256 is not None and SEAL not in metadata:
        return tensors, {key: json.loads(value) for key, value in metadata.items()}
    if SEAL not in metadata:
        raise DamagedError(
            f"{path} has no hash of its content, so it cannot be checked: this version of bluelib did not write it. "
            "Delete it and make it again"
        )
    try:
        seal = json.loads(metadata[SEAL])
        right = seal["sha256"] == tensors_hash(tensors, seal["about"])
    except (ValueError, KeyError, TypeError):
        right = False
    if not right:
        raise DamagedError(
            f"{path} is damaged: its content does not match the SHA-256 that was written with it; "
            "delete it and make it again"
        )
    return tensors, seal["about"]


def _read_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with uninterrupted(), safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}
    except (SafetensorError, ValueError, RuntimeError) as error:  # also torch's, for impossible shapes
        raise DamagedError(f"{path} is not a safetensors file, or is damaged: {error}") from error


def tensors_in(folder: Path, names: Iterable[str]) -> Iterator[tuple[str, Tensor | None]]:
    """Each name with its tensor from a checkpoint's safetensors files, one at a time; None if no file has it."""
    from safetensors import safe_open

    with ExitStack() as stack:
        files = [stack.enter_context(safe_open(path, "pt")) for path in sorted(folder.glob("*.safetensors"))]
        holder = {name: file for file in files for name in file.keys()}
        for name in names:
            yield name, holder[name].get_tensor(name) if name in holder else None


def tensors_hash(tensors: Mapping[str, Tensor], about: Mapping[str, Any] | None = None) -> str:
    """SHA-256 over the names, shapes, types and bytes of tensors, and over what is known ``about`` them."""
    import torch

    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode() if about else b"")
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}:{tuple(tensor.shape)}:{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def file_hash(path: str | Path) -> str:
    """SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
