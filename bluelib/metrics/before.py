"""What a model says before it is edited, kept for the metrics that compare with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ..data import Record
from ..data.chat import in_chat
from ..data.records import Query
from ..io.tensors import file_hash, load_tensors, save_tensors
from ..models.model import Model
from .locality import Reference, probes_of
from .portability import conditions

#: The groups of metrics that compare with the model before editing.
COMPARING = ("locality", "portability")


@dataclass(frozen=True)
class Before:
    """What an unedited model says.

    Attributes:
        reference: what it says after the locality probes; None if that is not needed.
        held: for each context, whether each condition of a consequence holds.
    """

    reference: Reference | None = None
    held: Mapping[str, Mapping[Query, bool]] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        model: Model,
        records: Sequence[Record],
        metrics: Sequence[str] = COMPARING,
        *,
        contexts: Sequence[str] = ("bare",),
        chat: bool = False,
    ) -> Before:
        """What these groups of metrics will compare with, from the model as it is now.

        Args:
            model: the model, before it is edited.
            records: what it will be evaluated on.
            metrics, contexts, chat: as for :func:`~bluelib.evaluate`.
        """
        probes = probes_of(in_chat(model, records) if chat else records) if "locality" in metrics else []
        asked = contexts if "portability" in metrics else ()
        held = {context: conditions(model, records, context=context) for context in asked}
        return cls(Reference.of(model, probes) if probes else None, held)

    def save(self, path: Path) -> str:
        """Write it as a safetensors file; returns the file's SHA-256."""
        states = torch.empty(0) if self.reference is None else self.reference.states
        held = {
            context: [[query.prompt, query.answers, right] for query, right in of_context.items()]
            for context, of_context in self.held.items()
        }
        prompts = None if self.reference is None else self.reference.prompts
        save_tensors(path, {"states": states}, {"prompts": prompts, "held": held})
        return file_hash(path)

    @classmethod
    def load(cls, path: Path, sha256: str | None = None) -> Before:
        """Read what :meth:`save` wrote.

        Args:
            path: the file.
            sha256: what :meth:`save` returned.

        Raises:
            DamagedError: if the file is not what was written, or has another hash.
        """
        tensors, about = load_tensors(path, sha256=sha256)
        held = {
            context: {Query(prompt, tuple(map(tuple, answers))): right for prompt, answers, right in of_context}
            for context, of_context in about["held"].items()
        }
        prompts = about["prompts"]
        return cls(None if prompts is None else Reference(tuple(prompts), tensors["states"]), held)
