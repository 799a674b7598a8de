"""The weight-shift error of distributed residuals: against distance, batch size and the length of a sequence.

A solver's update is linear in the residual. So if the :class:`~bluelib.studies.residuals.Residuals` of some requests
are known, the error of every batch of them is known too (:mod:`bluelib.studies.theory`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations_with_replacement
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from ..data import Record
from ..editing.editor import Editor, EditState
from ..editing.method import Method
from ..editing.residuals import DISTRIBUTED
from ..editing.sequence import check_together, edit_sequence, edited
from ..editing.solvers import Solver
from ..editing.targets import optimise_targets
from ..io.timing import progress_bar
from ..metrics import evaluate
from ..metrics.editing import scores_frame
from ..models.model import Model
from ..models.prompts import Request
from .residuals import Residuals
from .theory import BOUNDS, Norms, error_terms, gain, spectral_norm, weight_shift


def weight_shifts(
    found: Residuals,
    solver: Solver,
    states: Mapping[int, Any],
    batches: Sequence[Sequence[int]],
    pairs: Sequence[tuple[int, int]] | None = None,
) -> pd.DataFrame:
    """The weight-shift error and its bounds at pairs of a layer l and a last layer L ≥ l, for each batch.

    Args:
        found: the residuals of a model in its present state.
        solver, states: the solver and its state at each layer.
        batches: indices of the requests of ``found``.
        pairs: (l, L); by default every pair of its layers.

    Returns:
        Per (``batch``, ``layer``, ``last``): ``distance`` L − l, ``error`` ‖E‖₂, ``relative`` ‖E‖₂ / ‖R*Q‖₂ (NaN where
        R* is zero), the bounds by name, the norms they are made of (``norm_q``, ``norm_direct``, ``norm_last``,
        ``norm_deviation``), and the terms of ‖E‖²_F (:class:`~bluelib.studies.theory.ErrorTerms`).
    """
    pairs = list(combinations_with_replacement(found.layers, 2)) if pairs is None else pairs
    direct = {layer: found.direct(layer) for layer in found.layers}
    rows = []
    for number, batch in enumerate(batches):
        index = list(batch)
        layers = dict.fromkeys(layer for layer, _ in pairs)
        gains = {layer: gain(solver, states[layer], found.keys[layer][:, index]) for layer in layers}
        for layer, last in pairs:
            missing = direct[last][:, index].to(gains[layer].device)
            measured = _row(direct[layer][:, index], missing, last - layer + 1, gains[layer])
            rows.append({"batch": number, "edits": len(index), "layer": layer, "last": last, **measured})
    return pd.DataFrame(rows)


def _row(direct: Tensor, last: Tensor, divisor: float, q: Tensor) -> dict[str, float]:
    """One comparison: the columns of :func:`weight_shifts`; all on the device of the layer l."""
    whole = spectral_norm(direct.double() @ q)
    error = spectral_norm(weight_shift(direct, last, divisor, q))
    norms = Norms.of(direct, last, divisor, q)
    return {
        "distance": round(divisor) - 1,
        "error": error,
        "relative": error / whole if whole else math.nan,
        **norms.bounds(),
        "norm_q": norms.q,
        "norm_direct": norms.direct,
        "norm_last": norms.last,
        "norm_deviation": norms.deviation,
        **asdict(error_terms(direct, last, divisor, q)),
    }


def violations(shifts: pd.DataFrame) -> int:
    """How many rows violate error ≤ residual ≤ shared ≤ tight ≤ paper, up to rounding, or contain a NaN."""
    steps = shifts[["error", *BOUNDS]].diff(axis=1).iloc[:, 1:]
    holds = steps.ge(-1e-9 * shifts["paper"], axis=0).all(axis=1)
    return int((~holds).sum())


def error_by_distance(found: Residuals, solver: Solver, states: Mapping[int, Any]) -> pd.DataFrame:
    """‖E‖ / ‖R*Q‖ of every request alone: the mean over the pairs of layers (l, L) at each distance.

    Columns: request, distance, relative.
    """
    requests = range(found.keys[found.layers[0]].shape[1])
    rows = weight_shifts(found, solver, states, [[request] for request in requests])
    means = rows.groupby(["batch", "distance"]).relative.mean().reset_index()
    return means.rename(columns={"batch": "request"})


def error_by_batch_size(
    found: Residuals, solver: Solver, states: Mapping[int, Any], groups: Sequence[Sequence[int]]
) -> pd.DataFrame:
    """:func:`weight_shifts` between the first and the last layer, by batch size.

    Batches are the first 1, 2, 5, 10, … requests of each of the disjoint ``groups``, numbered by the column ``group``,
    and all requests in one batch (``group`` −1).
    """
    batches = [(number, group[:size]) for number, group in enumerate(groups) for size in batch_sizes(len(group))]
    batches.append((-1, [request for group in groups for request in group]))
    ends = [(found.layers[0], found.layers[-1])]
    rows = weight_shifts(found, solver, states, [batch for _, batch in batches], ends)
    return rows.assign(group=[number for number, _ in batches])


@dataclass(frozen=True)
class MeasuredUpdate:
    """What :func:`shifts_of_batch` measured at one layer: the row of numbers, E ``(d_model, d_mlp)``, and K."""

    row: dict[str, float]
    error: Tensor
    keys: Tensor


def shifts_of_batch(
    model: Model, requests: Sequence[Request], editor: Editor, state: EditState, layers: Sequence[int] | None = None
) -> list[MeasuredUpdate]:
    """Edit one batch as the editor does, and before each layer's update measure the error that it makes there.

    R^L is what is missing at L when the layer's turn comes, after the updates before it. R* is optimised at the layer
    in the same state. The model stays edited, and ``state`` has the batch's keys if the solver remembers them.

    Args:
        editor: an editor that distributes its residual evenly over consecutive layers.
        state: from the editor's ``prepare``, on the unedited model.
        layers: where to measure; by default all of the editor's.

    Raises:
        ValueError: if the editor is of another kind, or does not update one of the layers.
    """
    first, last = editor.layers[0], editor.layers[-1]
    if editor.residual != DISTRIBUTED or editor.layers != tuple(range(first, last + 1)):
        raise ValueError(f"{editor.name} does not distribute its residual evenly over consecutive layers")
    chosen = editor.layers if layers is None else model.check_layers(layers)
    if not set(chosen) <= set(editor.layers):
        raise ValueError(f"{editor.name} updates layers {list(editor.layers)}, not all of {list(chosen)}")
    model.edit_in_float32(editor.layers)
    measured, keys = [], {}
    for step in editor.steps(model, requests, state):
        layer = step.layer
        if layer in chosen:
            direct = optimise_targets(
                model, requests, layer, state.prefixes, editor.targets, token_budget=state.token_budget
            ).deltas
            missing, divisor = step.missing.to(direct.device), last - layer + 1
            q = gain(editor.solver, state.solvers[layer], step.keys)
            row = {"layer": layer, "last": last, "edits": len(requests), **_row(direct, missing, divisor, q)}
            measured.append(MeasuredUpdate(row, weight_shift(direct, missing, divisor, q), step.keys))
        keys[layer] = step.keys
    if editor.solver.remembers:
        editor.remember(state, keys)
    return measured


def shifts_along_sequence(
    model: Model, records: Sequence[Record], editor: Editor, batch_size: int, layers: Sequence[int]
) -> pd.DataFrame:
    """:func:`shifts_of_batch` for one batch after the other; the model is left as it was.

    ``total`` is ‖Σ E‖₂ over the batches so far, the sum of the errors along the editor's own path. ``total_edits`` is
    the number of edits so far. ``norm_history`` is ‖K_pK_pᵀ‖₂ of the layer's keys from earlier batches.
    """
    state = editor.prepare(model)
    totals: dict[int, Tensor] = {}
    earlier: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    rows = []
    with model.preserved(editor.layers):
        starts = range(0, len(records), batch_size)
        for number, first in enumerate(progress_bar(starts, desc="batches", unit="batch", leave=False)):
            requests = [record.request for record in records[first : first + batch_size]]
            for measured in shifts_of_batch(model, requests, editor, state, layers):
                layer = int(measured.row["layer"])
                totals[layer] = totals.get(layer, 0) + measured.error
                history = spectral_norm(torch.cat(earlier[layer], 1)) ** 2 if earlier[layer] else 0.0
                rows.append(
                    {
                        "batch": number,
                        "total_edits": first + len(requests),
                        **measured.row,
                        "total": spectral_norm(totals[layer]),
                        "norm_history": history,
                    }
                )
                earlier[layer].append(measured.keys)
    return pd.DataFrame(rows)


def scores_along_sequence(
    model: Model, records: Sequence[Record], editor: Method, batch_size: int, at: Sequence[int]
) -> pd.DataFrame:
    """Edit in batches and evaluate all records edited so far after each number of batches in ``at``.

    The model is left as it was. Columns: edits, metric, record, value.

    Raises:
        ValueError: if the editor cannot make batches of this size.
    """
    check_together(editor, batch_size)
    frames = []

    def evaluate_so_far(number: int, result: object) -> None:
        if number + 1 in at:
            done = min(len(records), (number + 1) * batch_size)
            scores = evaluate(model, records[:done], generate=False)
            frames.append(scores_frame(scores).assign(edits=done))

    with model.preserved(editor.layers):
        edit_sequence(model, records, editor, batch_size=batch_size, progress=False, after_batch=evaluate_so_far)
    return pd.concat(frames, ignore_index=True)


def scores_by_batch_size(model: Model, records: Sequence[Record], editor: Method, sizes: Sequence[int]) -> pd.DataFrame:
    """Edit the first u records in one batch, for each u in ``sizes``, and evaluate them.

    The model is left as it was. Columns: edits, metric, record, value.

    Raises:
        ValueError: if the editor cannot make batches of these sizes.
    """
    check_together(editor, max(sizes))
    frames = []
    for size in progress_bar(sizes, desc="batch sizes", unit="size", leave=False):
        with edited(model, records[:size], editor, batch_size=size):
            frames.append(scores_frame(evaluate(model, records[:size], generate=False)).assign(edits=size))
    return pd.concat(frames, ignore_index=True)


def sequence_against_once(
    model: Model, records: Sequence[Record], editor: Method, sizes: Sequence[int]
) -> pd.DataFrame:
    """How far a sequence of batches ends from one batch of all records: ‖ΔW_sequence − ΔW_once‖_F / ‖ΔW_once‖_F.

    If the keys and targets of one layer stayed the same, MEMIT with history would make the two equal
    (arXiv:2605.26670), and MEMIT would not. In an edit they do not stay the same: each batch changes the keys of later
    layers, and the model on which the next targets are optimised. Also, the residual is measured on the bare prompt,
    while the key is a mean over context prefixes.

    The model is left as it was. Columns: batch_size, layer, deviation.

    Raises:
        ValueError: if the editor cannot make batches of this size.
    """
    check_together(editor, len(records))
    layers = model.check_layers(editor.layers)
    before = {layer: model.weight(layer).double().clone() for layer in layers}

    def changes(size: int) -> dict[int, Tensor]:
        with model.preserved(layers):  # makes all edits, even several of the same fact
            edit_sequence(model, records, editor, batch_size=size, progress=False, on_conflict="keep")
            return {layer: model.weight(layer).double() - before[layer] for layer in layers}

    once = changes(len(records))
    rows = [
        {"batch_size": size, "layer": layer, "deviation": ((change - once[layer]).norm() / once[layer].norm()).item()}
        for size in sizes
        for layer, change in changes(size).items()
    ]
    return pd.DataFrame(rows)


def batch_sizes(most: int) -> list[int]:
    """1, 2, 5, 10, 20, 50, … up to ``most``, which comes last."""
    sizes = [digit * 10**power for power in range(int(math.log10(most)) + 1) for digit in (1, 2, 5)]
    return [*(size for size in sizes if size < most), most]
