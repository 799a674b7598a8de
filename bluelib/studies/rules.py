"""Rules for residuals, side by side: the residual that each gives a layer, and the one optimised at that layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
import torch
from torch import Tensor

from ..editing.residuals import Residual
from ..models.model import Model
from ..models.prompts import Request
from ..models.representations import replayed_hidden, subject_hidden
from ..models.scoring import request_nll
from .residuals import Residuals, probability_with

#: What is compared, by layer and request.
MEASURES = ("cosine", "length", "contribution")


def by_rule(model: Model, requests: Sequence[Request], found: Residuals, rule: Residual) -> dict[int, Tensor]:
    """The residual ``(d_model, u)`` that a rule gives each layer of the unedited model, as if no layer before it were
    updated."""
    first, *later = found.layers
    if rule.direct:
        return {layer: found.direct(layer) for layer in found.layers}
    if rule.replayed:
        goals = replayed_hidden(model, requests, first, found.targets[first].values, later)
        now = {layer: subject_hidden(model, requests, layer, "block") for layer in later}
        return {first: found.direct(first)} | {layer: goals[layer] - now[layer] for layer in later}
    left = len(found.layers)
    return {layer: found.last(layer) / rule.divisor(left - at) for at, layer in enumerate(found.layers)}


@torch.no_grad()
def compare_rules(
    model: Model, requests: Sequence[Request], found: Residuals, rules: Mapping[str, Residual]
) -> pd.DataFrame:
    """Each rule's residual at each layer beside the direct one, R*.

    Columns: editor, layer, request; the ``cosine`` with R*, the ``length`` over that of R*, and the ``contribution``
    P(new | residual added) − P(new), see :func:`~bluelib.studies.residuals.residual_contributions`.
    """
    original = (-request_nll(model, requests)).exp()
    frames = []
    for editor, rule in rules.items():
        for layer, residual in by_rule(model, requests, found, rule).items():
            direct = found.direct(layer)
            values = (
                torch.nn.functional.cosine_similarity(residual, direct, dim=0),
                residual.norm(dim=0) / direct.norm(dim=0),
                probability_with(model, requests, layer, residual) - original,
            )
            columns = {name: value.tolist() for name, value in zip(MEASURES, values, strict=True)}
            frames.append(pd.DataFrame({"editor": editor, "layer": layer, "request": range(len(requests)), **columns}))
    return pd.concat(frames, ignore_index=True)


def one_time_and_sequence(keys: Tensor, residuals: Tensor, matrix: Tensor, sizes: Sequence[int]) -> pd.DataFrame:
    """How far editing batch by batch ends from editing in one batch, if a layer's keys and targets stay the same.

    Args:
        keys, residuals: K ``(d_mlp, u)`` and R ``(d_model, u)`` of all edits.
        matrix: λC, ``(d_mlp, d_mlp)``, on any device.
        sizes: batch sizes.

    Returns:
        Columns edits (in a batch), history (whether earlier keys are remembered) and ``distance``,
        ‖Δ_sequence − Δ_once‖ / ‖Δ_once‖ (Frobenius).
    """
    keys, residuals = keys.double(), residuals.to(keys.device, torch.float64)
    matrix = matrix.to(keys.device, torch.float64)
    once = _update(residuals, keys, matrix)
    rows = []
    for size in sizes:
        for history in (False, True):
            total, protected = torch.zeros_like(once), matrix
            for start in range(0, keys.shape[1], size):
                part = keys[:, start : start + size]
                missing = residuals[:, start : start + size] - total @ part  # what the earlier batches left to do
                total = total + _update(missing, part, protected)
                protected = protected + part @ part.T if history else matrix
            rows.append({"edits": size, "history": history, "distance": ((total - once).norm() / once.norm()).item()})
    return pd.DataFrame(rows)


def _update(residuals: Tensor, keys: Tensor, matrix: Tensor) -> Tensor:
    return torch.linalg.solve(matrix + keys @ keys.T, keys @ residuals.T).T
