"""The interface that every editing method offers to :func:`~bluelib.edit_sequence`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, NamedTuple

from torch import Tensor

from ..io.timing import Timer
from ..models.model import Model
from ..models.prompts import Request
from .targets import Targets


@dataclass(frozen=True)
class BatchResult:
    """The outcome of one batch.

    Attributes:
        updates: Δ that was added to W, ``(d_model, d_mlp)`` by layer.
        keys: K that later batches need, ``(d_mlp, u)`` float32 by layer; empty if they need none.
        targets: optimised targets by the layer they were optimised at; empty for methods without targets.
        steps: optimisation steps made, mean over requests and summed over layers.
        loss: last loss, mean over requests.
    """

    updates: Mapping[int, Tensor]
    keys: Mapping[int, Tensor] = field(default_factory=dict)
    targets: Mapping[int, Targets] = field(default_factory=dict)
    steps: float = 0.0
    loss: float = 0.0


@dataclass(frozen=True)
class Size:
    """The sizes that decide how much memory editing a model takes.

    Attributes:
        d_model, d_mlp: the dimensions of a value projection.
        weights: bytes of all parameters in memory.
        itemsize: bytes of a parameter.
    """

    d_model: int
    d_mlp: int
    weights: int
    itemsize: int

    @classmethod
    def of(cls, model: Model) -> Size:
        d_model, d_mlp = model.weight(0).shape
        weights = sum(p.numel() * p.element_size() for p in model.hf_model.parameters() if not p.is_meta)
        return cls(d_model, d_mlp, weights, model.hf_model.dtype.itemsize)

    def copies(self, layers: int, each: int) -> int:
        """Bytes of ``each`` copies of every edited matrix, in float32 if the model's precision is lower. (The first
        copy, from before the run, has the model's type; the matrix itself takes what that saves, once it is
        float32.)"""
        return self.d_model * self.d_mlp * layers * each * max(4, self.itemsize)


class Memory(NamedTuple):
    """Bytes that editing takes: an estimate, not a measurement.

    Attributes:
        disk: statistics of the model that are kept: second moments, null spaces.
        host: what stays in the host's memory throughout the run.
        device: the weights and what is held beside them while a batch is edited, without activations.
    """

    disk: int
    host: int
    device: int


class Method(ABC):
    """An editing method: a frozen dataclass of its settings that changes the value projections of ``layers``, in place.

    Attributes:
        name: for tables and provenance.
        layers: the layers it changes.
        max_batch: the largest number of edits that it can make together; None for any number.
    """

    name: str
    layers: tuple[int, ...]
    max_batch: int | None = None

    @property
    def remembers(self) -> bool:
        """Whether a batch needs the keys of earlier ones."""
        return False

    @property
    def acts_once(self) -> bool:
        """Whether :meth:`finish` does something to all edits together, so a finished run cannot continue."""
        return False

    def prefixes(self, model: Model) -> tuple[str, ...]:
        """Texts that are put before a prompt while it is edited, the empty one first."""
        return ("",)

    def check(self, model: Model) -> None:
        """Check, before any long work, that no input of the method is missing.

        Raises:
            ValueError, FileNotFoundError: if one is missing; the message says which.
        """
        return None

    def prepare(self, model: Model) -> Any:
        """Prepare what does not depend on a batch, from the model before any edit."""
        model.check_editable(self.layers)
        return None

    def inputs(self, model: Model, state: Any) -> dict[str, Any]:
        """What its outcome depends on besides its settings, the model and the requests: for a checkpoint's identity."""
        return {}

    @abstractmethod
    def edit(self, model: Model, requests: Sequence[Request], state: Any, timer: Timer) -> BatchResult:
        """Edit one batch in place. ``state`` is not changed.

        A method that draws random numbers takes them from its own generator, seeded by its settings, so that a
        continued run ends with the same weights.
        """

    def remember(self, state: Any, keys: Mapping[int, Tensor]) -> None:
        """Advance ``state`` past a batch with these keys."""
        return None

    def finish(self, model: Model, originals: Mapping[int, Tensor]) -> None:
        """Called once, after the last batch; ``originals`` are the weights before the first one."""
        return None

    def memory(self, size: Size, batch: int) -> Memory:
        """The memory that editing in batches of ``batch`` takes. By default: the weights, and three copies of each
        edited matrix, from before the run, from before the batch, and the update."""
        return Memory(0, 0, size.weights + size.copies(len(self.layers), 3))


#: Settings that were added later, with their defaults. Defaults are left out: results are the same as without the
#: setting.
_LATER: dict[str, Any] = {"stop": "loss", "matmuls": "model", "anchor": None}


def describe(value: Any) -> Any:
    """A method's settings as plain values, for provenance: dataclasses become dictionaries, with their kind."""
    if is_dataclass(value):
        settings = {
            f.name: describe(getattr(value, f.name))
            for f in fields(value)
            if _LATER.get(f.name, ...) != getattr(value, f.name)
        }
        return settings if "name" in settings else {"kind": type(value).__name__, **settings}
    return list(value) if isinstance(value, tuple) else value
