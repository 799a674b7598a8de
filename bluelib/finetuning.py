"""FT: constrained fine-tuning of one value projection, the baseline of this field (Zhu et al. 2020)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .methods import BatchResult
from .models import Model
from .prompts import Request, encode_prompt, encode_target, pad
from .timing import Timer


@dataclass(frozen=True)
class FineTuning:
    """Adam on the value projections of ``layers``, all requests of a batch together.

    loss = mean over requests of the mean NLL of the new object's tokens after the bare prompt

    Attributes:
        name, layers: see :class:`~bluelib.methods.Method`.
        steps: loss evaluations at most; there is one update less.
        learning_rate: Adam's.
        norm_constraint: every entry of W stays within this distance of its value before the batch; None for no
            constraint.
        early_stop: training ends when the loss is under this.
    """

    name: str
    layers: tuple[int, ...]
    steps: int = 25
    learning_rate: float = 5e-4
    norm_constraint: float | None = None
    early_stop: float = 0.01
    max_batch = None

    def inputs(self, model: Model, state: None) -> dict[str, str]:
        return {}

    def prepare(self, model: Model) -> None:
        model.check_layers(self.layers)

    @torch.enable_grad()
    def edit(self, model: Model, requests: Sequence[Request], state: None, timer: Timer) -> BatchResult:
        weights = [model.value_projection(layer).weight for layer in self.layers]
        before = [weight.detach().clone() for weight in weights]
        adam = torch.optim.Adam([weight.requires_grad_() for weight in weights], lr=self.learning_rate)
        try:
            with timer("fine-tuning"):
                for step in range(1, self.steps + 1):
                    loss = request_nll(model, requests).mean()
                    if not torch.isfinite(loss):
                        raise FloatingPointError(f"{self.name}: the loss is {loss.item()} at step {step}; "
                                                 "lower the learning rate")  # fmt: skip
                    if loss < self.early_stop or step == self.steps:
                        break
                    adam.zero_grad()
                    loss.backward()
                    adam.step()
                    if self.norm_constraint is not None:
                        with torch.no_grad():
                            for weight, old in zip(weights, before, strict=True):
                                weight.clamp_(old - self.norm_constraint, old + self.norm_constraint)
        finally:
            for weight in weights:
                weight.requires_grad_(False).grad = None
        transposed = model.adapter.input_major
        updates = {
            layer: (weight - old).T if transposed else weight - old
            for layer, weight, old in zip(self.layers, weights, before, strict=True)
        }
        return BatchResult(updates, steps=step, loss=loss.item())

    def remember(self, state: None, keys: Mapping[int, Tensor]) -> None:
        """Nothing: each batch starts from the weights alone."""

    def finish(self, model: Model, originals: Mapping[int, Tensor]) -> None:
        """Nothing."""


def request_nll(model: Model, requests: Sequence[Request]) -> Tensor:
    """Mean negative log-likelihood of each request's target tokens after its bare prompt, ``(u,)``, differentiable."""
    prompts = [encode_prompt(model.tokenizer, request.text) for request in requests]
    targets = [encode_target(model.tokenizer, request.target) for request in requests]
    inputs = pad(
        [p + t[:-1] for p, t in zip(prompts, targets, strict=True)], model.tokenizer.pad_token_id, model.device
    )
    hidden = model.lm.base_model(**inputs, use_cache=False).last_hidden_state
    reads = [
        (row, len(prompt) - 1 + j, token)
        for row, (prompt, target) in enumerate(zip(prompts, targets, strict=True))
        for j, token in enumerate(target)
    ]
    rows, columns, tokens = (torch.tensor(column, device=model.device) for column in zip(*reads, strict=True))
    log_probs = model.head(hidden[rows, columns]).float().log_softmax(-1).gather(1, tokens[:, None])[:, 0]
    lengths = torch.tensor([len(target) for target in targets], device=model.device)
    return log_probs.new_zeros(len(requests)).index_add(0, rows, -log_probs / lengths[rows])
