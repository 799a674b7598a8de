"""What every editing method offers to :func:`~bluelib.edit_sequence`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, ClassVar, Protocol

from torch import Tensor

from ..io.timing import Timer
from ..models.model import Model
from ..models.prompts import Request
from .targets import Targets


@dataclass(frozen=True)
class BatchResult:
    """What one batch did.

    Attributes:
        updates: Δ that was added to W, ``(d_model, d_mlp)`` by layer.
        keys: K that the next batches have to know, ``(d_mlp, u)`` float32 by layer; empty if none.
        targets: optimised targets by the layer they were optimised at; empty for methods without.
        steps: optimisation steps made, mean over requests and summed over layers.
        loss: last loss, mean over requests.
    """

    updates: Mapping[int, Tensor]
    keys: Mapping[int, Tensor] = field(default_factory=dict)
    targets: Mapping[int, Targets] = field(default_factory=dict)
    steps: float = 0.0
    loss: float = 0.0


class Method(Protocol):
    """An editing method: it changes the value projections of ``layers``, in place.

    One that keeps nothing from batch to batch inherits the rest from here.

    Attributes:
        name: for tables and provenance.
        layers: the layers it changes.
        max_batch: edits that it can make together; None for any number.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]  # a method is a dataclass of its settings
    name: str
    layers: tuple[int, ...]
    max_batch: int | None = None

    def prefixes(self, model: Model) -> tuple[str, ...]:
        """Texts that stand before a prompt while it is edited, the empty one first."""
        return ("",)

    def prepare(self, model: Model) -> Any:
        """What does not depend on a batch; from the model before any edit."""

    def inputs(self, model: Model, state: Any) -> dict[str, Any]:
        """What its outcome depends on besides its settings, the model and the requests: for a checkpoint's identity."""
        return {}

    def chosen(self, state: Any) -> dict[str, Any]:
        """What :meth:`prepare` chose by the state of the machine: a run that is continued goes on with it."""
        return {}

    def choose(self, state: Any, chosen: dict[str, Any]) -> None:
        """Have ``state`` go on with what was ``chosen`` when the run began."""
        return None

    def edit(self, model: Model, requests: Sequence[Request], state: Any, timer: Timer) -> BatchResult:
        """Edit one batch in place. ``state`` is not changed."""

    def remember(self, state: Any, keys: Mapping[int, Tensor]) -> None:
        """Advance ``state`` past a batch with these keys."""
        return None

    def finish(self, model: Model, originals: Mapping[int, Tensor]) -> None:
        """After the last batch, once; ``originals`` are the weights before the first one."""
        return None


def describe(value: Any) -> Any:
    """A method's settings as plain values, for provenance: dataclasses become dictionaries, with their kind."""
    if is_dataclass(value):
        settings = {f.name: describe(getattr(value, f.name)) for f in fields(value)}
        return settings if "name" in settings else {"kind": type(value).__name__, **settings}
    return list(value) if isinstance(value, tuple) else value
