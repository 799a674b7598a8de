"""Norm anchors (NAS, arXiv:2602.02543): after optimisation, every v* is scaled to the same length.

At the MLP's output, v₀ = h − (the rest of the block), a target is v* = v₀ + δ. In a long sequence ‖v*‖ grows from batch
to batch, and the residuals grow with it. So v* is scaled to the length ν̄ that it has on average in the unedited model.
A request whose v* is longer than 2 ν̄ gets h as its target: nothing is installed, and the output for its key is kept,
as far as the batch's other keys allow.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..io.checks import check_real
from ..models.model import Model
from ..models.prompts import Request
from ..models.representations import subject_hidden
from .targets import TargetOptions, Targets, optimise_targets

log = logging.getLogger(__name__)

#: Share of the requests, those with the longest v*, that ν̄ leaves out.
DROPPED = 0.05


def anchored(model: Model, requests: Sequence[Request], layer: int, targets: Targets, anchor: float) -> Targets:
    """Targets of a block's output with v* = v₀ + δ scaled to the length ``anchor``. A request whose v* is more than
    twice as long gets h as its target, and is logged.

    Args:
        model: in the state in which the targets were optimised.
        requests: u requests.
        layer: the targets' block.
        targets: ``(d_model, u)``.
        anchor: ν̄.

    Raises:
        ValueError: if the length is not positive.
    """
    check_real("anchor", anchor)
    before, star = _stars(model, requests, layer, targets)
    norms = star.norm(dim=0)
    scaled = targets.hidden - before + star * (anchor / norms.clamp_min(1e-12))
    held = norms > 2 * anchor
    if held.any():
        texts = [repr(request.text[:60]) for request, out in zip(requests, held.tolist(), strict=True) if out]
        log.warning("layer %d: v* is over twice its norm anchor, nothing is installed: %s", layer, ", ".join(texts))
    return replace(targets, values=torch.where(held, targets.hidden, scaled))


def norm_anchor(
    model: Model, requests: Sequence[Request], layer: int, prefixes: Sequence[str], options: TargetOptions
) -> float:
    """ν̄ of an unedited model: the mean ‖v*‖ of requests whose targets are optimised on it, without the longest 5 %.

    Raises:
        ValueError: if there are no requests, or the model has been edited; as :func:`.optimise_targets`.
    """
    if not requests:
        raise ValueError("there are no requests to measure a norm anchor on")
    model.check_unedited("norm anchors")
    found = optimise_targets(model, requests, layer, prefixes, options)
    norms = _stars(model, requests, layer, found)[1].norm(dim=0).sort().values
    return norms[: len(norms) - int(DROPPED * len(norms))].double().mean().item()


def _stars(model: Model, requests: Sequence[Request], layer: int, targets: Targets) -> tuple[Tensor, Tensor]:
    """v₀ and v*, ``(d_model, u)``."""
    before = subject_hidden(model, requests, layer, "mlp").to(targets.values.device)
    return before, before + targets.deltas
