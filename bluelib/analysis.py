"""The measurements behind BLUE: direct and distributed residuals, the weight-shift error, and what either edits.

A :class:`Study` holds, for some requests and layers of one model as it stands, the target optimised at each layer
itself and the layer's keys. The targets of one request do not depend on the others, so every batch of the requests can
be looked at from one study. Distributed residuals are R^L / (L − l + 1), with L the last layer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations_with_replacement
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from .data import Record
from .editing.editor import Editor, EditState
from .editing.method import Method
from .editing.residuals import DIRECT, DISTRIBUTED
from .editing.sequence import edit_sequence, edited, preserved
from .editing.solvers import Solver
from .editing.targets import Targets, optimise_targets
from .editing.theory import BOUNDS, Norms, error_terms, gain, spectral_norm, weight_shift
from .io.timing import Timer, progress_bar
from .metrics import evaluate
from .metrics.capability import Tasks, capability
from .metrics.editing import scores_frame
from .metrics.intervals import intervals_by, stratified_interval
from .models.contexts import context_prefixes
from .models.model import Model
from .models.prompts import Request, locate
from .models.representations import subject_hidden, subject_keys
from .models.scoring import request_nll
from .models.tracing import trace


@dataclass(frozen=True)
class Study:
    """Targets and keys of u requests at each of ``layers`` (ascending), none of them updated.

    Distances are counted in the model's own layers, as where all layers from the first to the last are updated.

    Attributes:
        targets: by layer, optimised there.
        keys: by layer, K ``(d_mlp, u)``.
    """

    layers: tuple[int, ...]
    targets: Mapping[int, Targets]
    keys: Mapping[int, Tensor]

    def direct(self, layer: int) -> Tensor:
        """R* of a layer, ``(d_model, u)``."""
        return self.targets[layer].deltas

    def distributed(self, layer: int) -> Tensor:
        """R^L / (L − l + 1), ``(d_model, u)``."""
        return self.last(layer) / (self.layers[-1] - layer + 1)

    def last(self, layer: int) -> Tensor:
        """R^L, ``(d_model, u)``, on the device of ``layer``."""
        return self.direct(self.layers[-1]).to(self.keys[layer].device)


def study(model: Model, requests: Sequence[Request], layers: Sequence[int], editor: Editor) -> Study:
    """Optimise the targets of ``requests`` at every one of ``layers`` by the editor's options; measure their keys."""
    layers = model.check_layers(layers)
    prefixes = context_prefixes(model)
    return Study(
        layers,
        {layer: optimise_targets(model, requests, layer, prefixes, editor.targets) for layer in layers},
        {layer: subject_keys(model, requests, layer, prefixes) for layer in layers},
    )


def compare_residuals(found: Study) -> pd.DataFrame:
    """Per layer and request: the ``cosine`` of R* and R^L, and their ``deviation`` ‖R* − R^L‖."""
    rows = []
    for layer in found.layers:
        direct, last = found.direct(layer), found.last(layer)
        cosines = torch.nn.functional.cosine_similarity(direct, last, dim=0)
        measures = zip(cosines.tolist(), (direct - last).norm(dim=0).tolist(), strict=True)
        for request, (cosine, deviation) in enumerate(measures):
            rows.append({"layer": layer, "request": request, "cosine": cosine, "deviation": deviation})
    return pd.DataFrame(rows)


@torch.no_grad()
def residual_contributions(model: Model, requests: Sequence[Request], found: Study) -> pd.DataFrame:
    """The paper's contribution s = P(new | edited) − P(new | original) of either residual, per layer and request.

    *Edited* is read as: with the residual added to the block's output at the subject's last token, weights untouched.
    P is the geometric mean over the new object's tokens.
    """
    rows = list(range(len(requests)))
    columns = [locate(model.tokenizer, r.prompt, r.subject).subject_last for r in requests]

    def probabilities(layer: int, added: Tensor) -> Tensor:
        def add(key: object, hidden: Tensor) -> Tensor:
            hidden = hidden.clone()
            hidden[rows, columns] += added.T.to(hidden.dtype)
            return hidden

        with trace(outputs={layer: model.blocks[layer]}, edit=add):
            return (-request_nll(model, requests)).exp()

    original = (-request_nll(model, requests)).exp()
    frames = []
    for layer in found.layers:
        for kind, residual in (("distributed", found.distributed(layer)), ("direct", found.direct(layer))):
            gains = (probabilities(layer, residual) - original).tolist()
            frames.append(
                pd.DataFrame({"layer": layer, "residual": kind, "request": range(len(gains)), "contribution": gains})
            )
    return pd.concat(frames, ignore_index=True)


def steps_left(model: Model, requests: Sequence[Request], editor: Editor) -> pd.DataFrame:
    """Optimisation steps each layer still needs after the earlier ones were updated with direct residuals.

    A step is an update of δ: a request whose loss is under the threshold at once needs none. The model is left as it
    was. Columns: layer, request, steps.
    """
    method = replace(editor, residual=DIRECT)
    model.edit_in_float32(method.layers)
    with preserved(model, method.layers):
        result = method.edit(model, requests, method.prepare(model), Timer())
    return pd.DataFrame(
        [
            {"layer": layer, "request": i, "steps": steps - 1}
            for layer, targets in result.targets.items()
            for i, steps in enumerate(targets.steps.tolist())
        ]
    )


def single_layer_scores(
    model: Model, records: Sequence[Record], found: Study, editor: Editor, *, generate: bool = True, seed: int = 0
) -> pd.DataFrame:
    """Edit one layer alone, all records in one batch, with its distributed and with its direct residual.

    Both are those of the unedited model, in ``found``; at the last layer they are the same, and edited once. The model
    is left as it was. Columns: layer, residual, metric, record, value.
    """
    method = replace(editor, layers=found.layers)
    model.edit_in_float32(method.layers)
    state = method.prepare(model)
    frames = []
    for layer in found.layers:
        residuals: dict[tuple[str, ...], Tensor] = {
            ("distributed",): found.distributed(layer),
            ("direct",): found.direct(layer),
        }
        if layer == found.layers[-1]:
            residuals = {("distributed", "direct"): found.direct(layer)}
        q, weight = gain(method.solver, state.solvers[layer], found.keys[layer]), model.weight(layer)
        for kinds, residual in residuals.items():
            with preserved(model, (layer,)):
                weight.add_((residual.double() @ q).to(weight.dtype))
                scores = scores_frame(evaluate(model, records, generate=generate, seed=seed))
            frames += [scores.assign(layer=layer, residual=kind) for kind in kinds]
    return pd.concat(frames, ignore_index=True)


def weight_shifts(
    found: Study,
    solver: Solver,
    states: Mapping[int, Any],
    batches: Sequence[Sequence[int]],
    pairs: Sequence[tuple[int, int]] | None = None,
) -> pd.DataFrame:
    """The weight-shift error and its bounds at pairs of a layer l and a last layer L ≥ l, for each batch.

    Args:
        found: of a model as it stands.
        solver, states: the solver and its state at each layer.
        batches: indices of the study's requests.
        pairs: (l, L); by default every pair of the study's layers.

    Returns:
        Per (``batch``, ``layer``, ``last``): ``distance`` L − l, ``error`` ‖E‖₂, ``relative`` ‖E‖₂ / ‖R*Q‖₂ (NaN where
        R* is zero), the bounds by name, the norms they are made of (``norm_q``, ``norm_direct``, ``norm_last``,
        ``norm_deviation``), and the terms of ‖E‖²_F (:class:`~bluelib.editing.theory.ErrorTerms`).
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
    """Rows in which error ≤ residual ≤ shared ≤ tight ≤ paper does not hold, up to rounding, or is not a number."""
    steps = shifts[["error", *BOUNDS]].diff(axis=1).iloc[:, 1:]
    holds = steps.ge(-1e-9 * shifts["paper"], axis=0).all(axis=1)
    return int((~holds).sum())


def error_by_distance(found: Study, solver: Solver, states: Mapping[int, Any]) -> pd.DataFrame:
    """‖E‖ / ‖R*Q‖ of every request alone, the mean over the layers (l, L) of one distance.

    Columns: request, distance, relative.
    """
    requests = range(found.keys[found.layers[0]].shape[1])
    rows = weight_shifts(found, solver, states, [[request] for request in requests])
    means = rows.groupby(["batch", "distance"]).relative.mean().reset_index()
    return means.rename(columns={"batch": "request"})


def error_by_batch_size(
    found: Study, solver: Solver, states: Mapping[int, Any], groups: Sequence[Sequence[int]]
) -> pd.DataFrame:
    """The columns of :func:`weight_shifts` between the first and the last layer for batches of 1, 2, 5, 10, … requests
    of each of the disjoint ``groups``, numbered by ``group``, and for all of them in one batch (``group`` −1)."""
    batches = [(number, group[:size]) for number, group in enumerate(groups) for size in batch_sizes(len(group))]
    batches.append((-1, [request for group in groups for request in group]))
    ends = [(found.layers[0], found.layers[-1])]
    rows = weight_shifts(found, solver, states, [batch for _, batch in batches], ends)
    return rows.assign(group=[number for number, _ in batches])


@dataclass(frozen=True)
class MeasuredUpdate:
    """What :func:`shifts_of_batch` saw at one layer: the row of numbers, E ``(d_model, d_mlp)``, and K."""

    row: dict[str, float]
    error: Tensor
    keys: Tensor


def shifts_of_batch(
    model: Model, requests: Sequence[Request], editor: Editor, state: EditState, layers: Sequence[int] | None = None
) -> list[MeasuredUpdate]:
    """Edit one batch as the editor does, and before each layer's update measure the error it makes there.

    R^L is what is missing at L when the layer's turn comes, after the updates before it, and R* is optimised at the
    layer in the same state. The model ends edited, and ``state`` has taken in the batch's keys.

    Args:
        editor: one that distributes its residual evenly over consecutive layers.
        state: from the editor's ``prepare``, of the unedited model.
        layers: where to measure; by default all of the editor's.

    Raises:
        ValueError: for another editor, or a layer that it does not update.
    """
    first, last = editor.layers[0], editor.layers[-1]
    if editor.residual != DISTRIBUTED or editor.layers != tuple(range(first, last + 1)):
        raise ValueError(f"{editor.name} does not distribute its residual evenly over consecutive layers")
    chosen = editor.layers if layers is None else model.check_layers(layers)
    if not set(chosen) <= set(editor.layers):
        raise ValueError(f"{editor.name} updates layers {list(editor.layers)}, not all of {list(chosen)}")
    model.edit_in_float32(editor.layers)
    with preserved(model, editor.layers):
        result = editor.edit(model, requests, state, Timer())
    measured = []
    for layer in editor.layers:
        if layer in chosen:
            direct = optimise_targets(
                model, requests, layer, state.prefixes, editor.targets, token_budget=state.token_budget
            ).deltas
            missing = (result.targets[last].values - subject_hidden(model, requests, last)).to(direct.device)
            keys = subject_keys(model, requests, layer, state.prefixes)
            q, divisor = gain(editor.solver, state.solvers[layer], keys), last - layer + 1
            row = {"layer": layer, "last": last, "edits": len(requests), **_row(direct, missing, divisor, q)}
            measured.append(MeasuredUpdate(row, weight_shift(direct, missing, divisor, q), keys))
        weight = model.weight(layer)
        weight.add_(result.updates[layer].to(weight.dtype))
    editor.remember(state, result.keys)
    return measured


def shifts_along_sequence(
    model: Model, records: Sequence[Record], editor: Editor, batch_size: int, layers: Sequence[int]
) -> pd.DataFrame:
    """:func:`shifts_of_batch` for one batch after the other; the model is left as it was.

    ``total`` is ‖Σ E‖₂ over the batches so far, the error that has gathered in the weights, and ``total_edits`` the
    number of edits so far; ``norm_history`` is ‖K_pK_pᵀ‖₂ of the layer's keys of the batches before.
    """
    state = editor.prepare(model)
    totals: dict[int, Tensor] = {}
    earlier: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    rows = []
    with preserved(model, editor.layers):
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
        ValueError: for a batch size that the editor does not make.
    """
    _check_batch(editor, batch_size)
    frames = []

    def evaluate_so_far(number: int, result: object) -> None:
        if number + 1 in at:
            done = min(len(records), (number + 1) * batch_size)
            scores = evaluate(model, records[:done], generate=False)
            frames.append(scores_frame(scores).assign(edits=done))

    with preserved(model, editor.layers):
        edit_sequence(model, records, editor, batch_size=batch_size, progress=False, after_batch=evaluate_so_far)
    return pd.concat(frames, ignore_index=True)


def _check_batch(editor: Method, batch_size: int) -> None:
    if batch_size > (editor.max_batch or batch_size):
        raise ValueError(f"{editor.name} makes at most {editor.max_batch} edits together, not {batch_size}")


def scores_by_batch_size(model: Model, records: Sequence[Record], editor: Method, sizes: Sequence[int]) -> pd.DataFrame:
    """Edit the first u records in one batch, for each u in ``sizes``, and evaluate them.

    The model is left as it was. Columns: edits, metric, record, value.
    """
    frames = []
    for size in progress_bar(sizes, desc="batch sizes", unit="size", leave=False):
        with edited(model, records[:size], editor, batch_size=size):
            frames.append(scores_frame(evaluate(model, records[:size], generate=False)).assign(edits=size))
    return pd.concat(frames, ignore_index=True)


def capability_along_sequence(
    model: Model,
    records: Sequence[Record],
    editors: Sequence[Method],
    tasks: Tasks,
    *,
    every: int,
    batch_size: int,
    limit: int | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> pd.DataFrame:
    """Edit with each editor in turn; evaluate the tasks before, after every so many batches, and after the last one.

    The model is left as it was. PRUNE damps its update after the last batch only, so before that its scores are those
    of the undamped one.

    Args:
        tasks: see :func:`~bluelib.metrics.capability.load_tasks`.
        every: batches between two evaluations.
        limit: items per task; by default all.

    Returns:
        The items of :class:`~bluelib.metrics.capability.Capability` with their ``editor`` and number of ``edits``.
        What the unedited model does is there for every editor, with 0 edits. ``names_edit`` marks the items whose
        prompt has the subject of one of ``records``: there another answer may be what the edit is for.

    Raises:
        ValueError: for ``every`` below 1, or a batch size that an editor does not make.
    """
    if every < 1:
        raise ValueError(f"every must be at least 1 batch, not {every}")
    for editor in editors:
        _check_batch(editor, batch_size)
    start = capability(model, tasks, limit=limit).items
    subjects = {record.subject for record in records}
    start["names_edit"] = [any(subject in prompt for subject in subjects) for prompt in start.prompt]
    batches = math.ceil(len(records) / batch_size)
    frames = []
    for editor in editors:
        frames.append(start.assign(editor=editor.name, edits=0))

        def evaluate_now(number: int, result: object, name: str = editor.name) -> None:
            if (number + 1) % every == 0 or number + 1 == batches:
                found = capability(model, tasks, limit=limit).items.assign(names_edit=start.names_edit)
                frames.append(found.assign(editor=name, edits=min(len(records), (number + 1) * batch_size)))

        with preserved(model, editor.layers):
            edit_sequence(
                model, records, editor, batch_size=batch_size, seed=seed, progress=progress, after_batch=evaluate_now
            )
    return pd.concat(frames, ignore_index=True).drop(columns="prompt")


#: The name under which the mean over tasks stands among the tasks.
MEAN = "mean of the tasks"


def _by_task(items: pd.DataFrame, value: str) -> pd.DataFrame:
    """The mean of ``value`` over each task's items, then that over tasks, with intervals over items."""
    mean = stratified_interval([group[value] for _, group in items.groupby("task", sort=False)])
    total = pd.DataFrame([{"task": MEAN, **mean._asdict(), "n": len(items)}])
    return pd.concat([intervals_by(items, ["task"], value), total], ignore_index=True)


def capability_scores(along: pd.DataFrame) -> pd.DataFrame:
    """From :func:`capability_along_sequence`: the accuracy per editor, number of edits and task, and the mean over
    tasks, with its interval over items. Columns: editor, edits, task, mean, low, high, n."""
    groups = along.groupby(["editor", "edits"], sort=False)
    frames = [_by_task(group, "accuracy").assign(editor=editor, edits=edits) for (editor, edits), group in groups]
    return pd.concat(frames, ignore_index=True)


def capability_difference(along: pd.DataFrame, one: tuple[str, int], other: tuple[str, int]) -> pd.DataFrame:
    """How many points more has ``one`` than ``other``, both an editor's name and a number of edits, on the same items:
    per task and in the mean over tasks, with intervals over items. Columns: task, mean, low, high, n.

    Raises:
        ValueError: if one of the two was not evaluated.
    """
    wide = along.pivot(index=["task", "item"], columns=["editor", "edits"], values="accuracy")
    missing = [key for key in (one, other) if key not in wide.columns]
    if missing:
        raise ValueError(f"not evaluated: {missing}; known: {list(wide.columns)}")
    difference = (wide[one] - wide[other]).rename("difference").reset_index()
    return _by_task(difference, "difference")


def batch_sizes(most: int) -> list[int]:
    """1, 2, 5, 10, 20, 50, … up to ``most``, which is the last."""
    sizes = [digit * 10**power for power in range(int(math.log10(most)) + 1) for digit in (1, 2, 5)]
    return [*(size for size in sizes if size < most), most]


def seconds_by_batch(
    model: Model, records: Sequence[Record], editors: Sequence[Method], batch_size: int
) -> pd.DataFrame:
    """Wall-clock seconds of every batch by phase, for each editor; the model is left as it was.

    Every batch is edited by one editor after the other, so that they are compared under the same load, and each time
    into the unedited weights; keys of earlier batches are remembered as in a sequence. The first batch is edited once
    more before, which is not counted. What is made once per model (second moments, their factors) is not in it.

    Returns:
        Columns ``editor``, ``batch``, ``edits``, ``phase``, ``seconds``.
    """
    batches = [[r.request for r in records[i : i + batch_size]] for i in range(0, len(records), batch_size)]
    states = {}
    for editor in editors:
        model.edit_in_float32(editor.layers)
        states[editor.name] = editor.prepare(model)
    rows = []
    for number, requests in enumerate(progress_bar([batches[0], *batches], desc="timing", unit="batch", leave=False)):
        for editor in editors:
            timer, state = Timer(), states[editor.name]
            with preserved(model, editor.layers):
                result = editor.edit(model, requests, state, timer)
            if number:
                with timer("remember"):
                    editor.remember(state, result.keys)
                rows += [
                    {
                        "editor": editor.name,
                        "batch": number - 1,
                        "edits": len(requests),
                        "phase": phase,
                        "seconds": seconds,
                    }
                    for phase, seconds in timer.seconds.items()
                ]
    return pd.DataFrame(rows)
