"""Direct and distributed residuals: how they differ, what each contributes, and how single-layer edits score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import pandas as pd
import torch
from torch import Tensor

from ..data import Record
from ..editing.editor import Editor
from ..editing.residuals import DIRECT
from ..editing.targets import Targets, optimise_targets
from ..metrics import evaluate
from ..metrics.editing import scores_frame
from ..models.contexts import context_prefixes
from ..models.model import Model
from ..models.prompts import Request, locate
from ..models.representations import subject_keys
from ..models.scoring import request_nll
from ..models.tracing import trace
from .theory import gain


@dataclass(frozen=True)
class Residuals:
    """Targets and keys of u requests at each of ``layers`` (ascending), before any layer is updated.

    The targets of one request do not depend on the others. Distances are counted in the model's own layers, as if all
    layers from the first to the last were updated; L is the last of ``layers``.

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


def measure_residuals(model: Model, requests: Sequence[Request], layers: Sequence[int], editor: Editor) -> Residuals:
    """Optimise the targets of ``requests`` at each of ``layers`` with the editor's options; measure their keys."""
    layers = model.check_layers(layers)
    prefixes = context_prefixes(model, editor.contexts)
    return Residuals(
        layers,
        {layer: optimise_targets(model, requests, layer, prefixes, editor.targets) for layer in layers},
        {layer: subject_keys(model, requests, layer, prefixes, editor.key_mean) for layer in layers},
    )


def compare_residuals(found: Residuals) -> pd.DataFrame:
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
def probability_with(model: Model, requests: Sequence[Request], layer: int, residual: Tensor) -> Tensor:
    """P(new object), ``(u,)``, with a residual ``(d_model, u)`` added to a block's output at the subject's last token.

    The geometric mean over the object's tokens; weights are untouched.
    """
    rows = list(range(len(requests)))
    columns = [locate(model.tokenizer, r.prompt, r.subject, before=r.before).subject_last for r in requests]

    def add(key: object, hidden: Tensor) -> Tensor:
        hidden = hidden.clone()
        hidden[rows, columns] += residual.T.to(hidden.dtype)
        return hidden

    with trace(outputs={layer: model.blocks[layer]}, edit=add):
        return (-request_nll(model, requests)).exp()


@torch.no_grad()
def residual_contributions(model: Model, requests: Sequence[Request], found: Residuals) -> pd.DataFrame:
    """The paper's contribution s = P(new | edited) − P(new | original), per layer and request, of three residuals.

    The residuals are R* (``direct``), R^L / (L − l + 1) (``distributed``) and R^L itself (``undivided``). The last has
    the direction of the second, but not its length. *Edited* means here that the residual is added to the block's
    output at the subject's last token; weights are untouched. P is the geometric mean over the new object's tokens.
    """
    original = (-request_nll(model, requests)).exp()
    frames = []
    for layer in found.layers:
        residuals = {
            "distributed": found.distributed(layer),
            "undivided": found.last(layer),
            "direct": found.direct(layer),
        }
        for kind, residual in residuals.items():
            gains = (probability_with(model, requests, layer, residual) - original).tolist()
            frames.append(
                pd.DataFrame({"layer": layer, "residual": kind, "request": range(len(gains)), "contribution": gains})
            )
    return pd.concat(frames, ignore_index=True)


def steps_left(model: Model, requests: Sequence[Request], editor: Editor) -> pd.DataFrame:
    """Optimisation steps each layer still needs after the earlier ones were updated with direct residuals.

    A step is an update of δ: a request whose loss is below the threshold from the start needs no step. The model is
    left as it was. Columns: layer, request, steps.
    """
    method = replace(editor, residual=DIRECT)
    rows = []
    with model.preserved(method.layers):
        model.edit_in_float32(method.layers)
        for step in method.steps(model, requests, method.prepare(model)):
            rows += [
                {"layer": step.layer, "request": i, "steps": steps - 1}
                for i, steps in enumerate(step.targets.steps.tolist())
            ]
    return pd.DataFrame(rows)


def single_layer_scores(
    model: Model, records: Sequence[Record], found: Residuals, editor: Editor, *, generate: bool = True, seed: int = 0
) -> pd.DataFrame:
    """Edit one layer alone, all records in one batch, with its distributed and with its direct residual.

    Both residuals are those of the unedited model, in ``found``. At the last layer they are the same, so it is edited
    once. The editor's constraint applies. The model is left as it was. Columns: layer, residual, metric, record, value.
    """
    state = replace(editor, layers=found.layers).prepare(model)
    frames = []
    for layer in found.layers:
        residuals: dict[tuple[str, ...], Tensor] = {
            ("distributed",): found.distributed(layer),
            ("direct",): found.direct(layer),
        }
        if layer == found.layers[-1]:
            residuals = {("distributed", "direct"): found.direct(layer)}
        q = gain(editor.solver, state.solvers[layer], found.keys[layer])
        for kinds, residual in residuals.items():
            with model.preserved((layer,)):
                model.edit_in_float32((layer,))
                weight, constraint = model.weight(layer), editor.constraint
                update = constraint.batch((residual.double() @ q).to(weight.dtype), weight)
                weight.add_(constraint.total(update, weight))
                scores = scores_frame(evaluate(model, records, generate=generate, seed=seed))
            frames += [scores.assign(layer=layer, residual=kind) for kind in kinds]
    return pd.concat(frames, ignore_index=True)
