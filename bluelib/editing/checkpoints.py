"""What a sequence of edits needs to continue after it was killed; written after each batch, read before the first.

A checkpoint is a folder with one ``weights-N.safetensors`` (the edited matrices after N batches), one
``keys-N.safetensors`` per batch for methods that remember earlier keys, and ``manifest.json``, which names these files
with the SHA-256 of their tensors and says which run they belong to. Every file is written under a temporary name and
renamed, the manifest last: whenever the process dies, the manifest on disk names files that are complete.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..io.formats import DamagedError, read_json, write_json
from ..io.locks import locked
from ..io.tensors import load_tensors, save_tensors, tensors_hash

MANIFEST = "manifest.json"
#: The names of a checkpoint's other files: only files with such names are ever removed.
_OURS = re.compile(r"(weights|keys)-\d{5,}\.safetensors")


class CheckpointError(ValueError):
    """A checkpoint that cannot be continued; the message says what differs or which file is damaged."""


@dataclass(frozen=True)
class Progress:
    """Where a run stands.

    Attributes:
        weights: the edited matrices W, ``(d_model, d_mlp)`` by layer.
        keys: per batch, the keys that the method has to remember, by layer.
        batches, seconds: as in :class:`~bluelib.editing.sequence.Run`.
    """

    weights: Mapping[int, Tensor]
    keys: list[Mapping[int, Tensor]]
    batches: list[dict[str, float]]
    seconds: dict[str, float]


def held(folder: str | Path) -> AbstractContextManager[None]:
    """Hold a checkpoint's folder for this run alone.

    Raises:
        BlockingIOError: if another run is at work in it.
    """
    return locked(Path(folder) / MANIFEST, wait=False)


class Checkpoint:
    """The checkpoint in ``folder`` of the run that ``identity`` describes."""

    def __init__(self, folder: str | Path, identity: dict[str, Any]):
        self.folder = Path(folder)
        self.identity = json.loads(json.dumps(identity))
        self.files: dict[str, str] = {}

    def load(self) -> Progress | None:
        """Where the run stands, or None if it has not begun.

        Raises:
            CheckpointError: if the folder holds another run's checkpoint, or a damaged one.
        """
        path = self.folder / MANIFEST
        if not path.exists():
            return None
        try:
            manifest = read_json(path, sealed=True)
            self.files = dict(manifest["files"])
            found, batches = manifest["identity"], manifest["batches"]
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{path} is damaged ({error!r}); delete {self.folder} to start again") from error
        differing = _differences(found, self.identity)
        if differing:
            raise CheckpointError(
                f"{self.folder} holds the checkpoint of another run: {'; '.join(differing)}. "
                "Repeat that run's command, delete the folder, or choose another"
            )
        tensors = {name: self._read(name, digest) for name, digest in self.files.items()}
        keys: list[Mapping[int, Tensor]] = [
            {int(layer): k for layer, k in tensors.get(_keys_name(n), {}).items()} for n in range(1, len(batches) + 1)
        ]
        weights = {int(layer): w for layer, w in tensors[_weights_name(len(batches))].items()}
        return Progress(weights, keys, batches, manifest["seconds"])

    def save(
        self,
        weights: Mapping[int, Tensor],
        keys: Mapping[int, Tensor],
        batches: list[dict[str, float]],
        seconds: dict[str, float],
    ) -> None:
        """Record where the run stands after a batch; ``keys`` are that batch's: earlier ones are on disk already."""
        n = len(batches)
        self.files = {name: digest for name, digest in self.files.items() if name.startswith("keys-")}
        self._write(_weights_name(n), _by_name(weights))
        if keys:
            self._write(_keys_name(n), _by_name(keys))
        manifest = {
            "identity": self.identity,
            "batches": batches,
            "seconds": seconds,
            "files": self.files,
        }
        write_json(self.folder / MANIFEST, manifest, indent=1, sealed=True)
        for old in self.folder.iterdir():
            if _OURS.fullmatch(old.name) and old.name not in self.files:
                old.unlink()

    def _write(self, name: str, tensors: dict[str, Tensor]) -> None:
        self.files[name] = save_tensors(self.folder / name, tensors)

    def _read(self, name: str, digest: str) -> dict[str, Tensor]:
        path, wrong = self.folder / name, "is missing"
        if path.exists():
            try:
                tensors, _ = load_tensors(path)
            except DamagedError:
                wrong = "is damaged"
            else:
                if tensors_hash(tensors) == digest:
                    return tensors
                wrong = "is damaged: its SHA-256 is not the manifest's"
        raise CheckpointError(f"{path} {wrong}; delete {self.folder} to start again")


def _by_name(matrices: Mapping[int, Tensor]) -> dict[str, Tensor]:
    return {str(layer): matrix.contiguous().cpu() for layer, matrix in matrices.items()}


def _weights_name(batches: int) -> str:
    return f"weights-{batches:05}.safetensors"


def _keys_name(batch: int) -> str:
    return f"keys-{batch:05}.safetensors"


def _differences(found: Any, wanted: Any, path: str = "") -> list[str]:
    if isinstance(found, dict) and isinstance(wanted, dict):
        keys = [*found, *(key for key in wanted if key not in found)]
        return [d for key in keys for d in _differences(found.get(key), wanted.get(key), f"{path}.{key}".strip("."))]
    return [] if found == wanted else [f"its {path} is {found}, this run's is {wanted}"]
