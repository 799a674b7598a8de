"""FT: constrained fine-tuning of one value projection, the baseline of this field (Zhu et al. 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..io.checks import check_real, check_whole
from ..io.timing import Timer
from ..models.model import Model
from ..models.prompts import Request
from ..models.scoring import request_nll
from .method import BatchResult, Memory, Method, Size


@dataclass(frozen=True)
class FineTuning(Method):
    """Adam on the value projections of ``layers``, all requests of a batch together.

    loss = mean over requests of the mean NLL of the new object's tokens after the bare prompt

    Attributes:
        name, layers: see :class:`~bluelib.editing.method.Method`.
        steps: the largest number of loss evaluations; there is one update fewer.
        learning_rate: Adam's.
        norm_constraint: every entry of W stays within this distance of its value before the batch; None for no
            constraint.
        early_stop: training ends when the loss is below this.
    """

    name: str
    layers: tuple[int, ...]
    steps: int = 25
    learning_rate: float = 5e-4
    norm_constraint: float | None = None
    early_stop: float = 0.01

    def __post_init__(self) -> None:
        check_whole("steps", self.steps, 1)
        check_real("learning_rate", self.learning_rate)
        check_real("early_stop", self.early_stop, zero=True)
        if self.norm_constraint is not None:
            check_real("norm_constraint", self.norm_constraint)

    def memory(self, size: Size, batch: int) -> Memory:
        """Six copies of each edited matrix: from before the run, before the batch and before its training, the
        gradient, and Adam's two moments. A batch is run as a whole: its activations come on top."""
        return Memory(0, 0, size.weights + size.copies(len(self.layers), 6))

    @torch.enable_grad()
    def edit(self, model: Model, requests: Sequence[Request], state: None, timer: Timer) -> BatchResult:
        before = {layer: model.weight(layer).clone() for layer in self.layers}
        parameters = [model.value_projection(layer).weight.requires_grad_() for layer in self.layers]
        adam = torch.optim.Adam(parameters, lr=self.learning_rate)
        try:
            with timer("fine-tuning"):
                for step in range(1, self.steps + 1):
                    each = request_nll(model, requests)
                    loss = each.mean()
                    if not torch.isfinite(loss):
                        first = requests[int((~torch.isfinite(each)).int().argmax())]
                        raise FloatingPointError(
                            f"{self.name}: the loss of {first.text!r} is {loss.item()} at step "
                            f"{step}; lower the learning rate"
                        )
                    if loss < self.early_stop or step == self.steps:
                        break
                    adam.zero_grad()
                    loss.backward()
                    adam.step()
                    if self.norm_constraint is not None:
                        for layer, old in before.items():
                            model.weight(layer).clamp_(old - self.norm_constraint, old + self.norm_constraint)
        finally:
            for parameter in parameters:
                parameter.requires_grad_(False).grad = None
        updates = {layer: model.weight(layer) - old for layer, old in before.items()}
        return BatchResult(updates, steps=step, loss=loss.item())
