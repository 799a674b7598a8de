"""Constraints: which part of a computed update is applied to the weights.

A constraint acts at one of two moments: on each batch's Δ before it is added to W (:meth:`Constraint.batch`), or on
the sum of all updates after the last batch (:meth:`Constraint.total`). Shapes ``(d_model, d_mlp)``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..io.checks import check_real
from ..models.choices import check_choice, published


@dataclass(frozen=True)
class Constraint:
    """No constraint; the base class of the others.

    Attributes:
        once: whether :meth:`total` has anything to do.
        restores: whether a batch first updates all layers with the whole Δ, and :meth:`batch` acts afterwards: then
            each layer's W is restored and only the kept part of its Δ is added.
    """

    @property
    def once(self) -> bool:
        return False

    @property
    def restores(self) -> bool:
        return False

    def batch(self, delta: Tensor, weight: Tensor) -> Tensor:
        """The part of a batch's ``delta`` that is added to ``weight``, W before the batch."""
        return delta

    def total(self, delta: Tensor, weight: Tensor) -> Tensor:
        """The replacement for ``delta``, the sum of all updates; ``weight`` is W before the first batch."""
        return delta


@dataclass(frozen=True)
class Sparsify(Constraint):
    """RECT (Gu et al. 2024): only the entries of an update with the largest relative change |Δ / W| are kept.

    Attributes:
        keep: the share of entries that is kept, in (0, 1].
        at_end: apply it once, to the sum of all updates relative to the original W. By default it is applied to each
            batch's Δ relative to W before that batch, as the paper's own code does for each edit.
        order: when a batch's layers get only the kept part. With ``restored``, all are updated with the whole Δ first,
            as in the public code; with ``in_turn``, each gets the kept part before the next one is solved. It has no
            effect with ``at_end``.
    """

    keep: float = 0.4
    at_end: bool = False
    order: str = published("order")

    def __post_init__(self) -> None:
        check_choice("order", self.order)
        check_real("keep", self.keep)
        if self.keep > 1:
            raise ValueError(f"keep must be a share in (0, 1], not {self.keep}")

    @property
    def once(self) -> bool:
        return self.at_end

    @property
    def restores(self) -> bool:
        return self.order == "restored" and not self.at_end

    def batch(self, delta: Tensor, weight: Tensor) -> Tensor:
        return delta if self.at_end else self._largest(delta, weight)

    def total(self, delta: Tensor, weight: Tensor) -> Tensor:
        return self._largest(delta, weight) if self.at_end else delta

    def _largest(self, delta: Tensor, weight: Tensor) -> Tensor:
        change = (delta / weight).abs().nan_to_num()  # 0 / 0 counts as no change, x / 0 as the largest number
        count = max(1, round(self.keep * delta.numel()))
        threshold = change.flatten().kthvalue(delta.numel() - count + 1).values
        return torch.where(change >= threshold, delta, 0.0)


@dataclass(frozen=True)
class Damp(Constraint):
    """PRUNE (Ma et al. 2025): large singular values of the summed update are damped, once, after the last batch.

    With σ the largest singular value of the original W, every singular value s > σ of the sum of all updates becomes
    log(s) − log(σ) + σ. The damped sum then replaces the sum. (Where σ < 1, this formula makes values between σ and
    some s* > 1 larger.)

    Attributes:
        twice: add the damped sum to weights that already hold the undamped one, as two public code bases do, instead of
            to the original weights, as the paper's text says.
    """

    twice: bool = published("twice")
    once = True

    def __post_init__(self) -> None:
        check_choice("twice", self.twice)

    def total(self, delta: Tensor, weight: Tensor) -> Tensor:
        limit = torch.linalg.matrix_norm(weight.double(), ord=2)
        left, values, right = torch.linalg.svd(delta.double(), full_matrices=False)
        damped = torch.where(values > limit, values.log() - limit.log() + limit, values)
        damped = (left * damped) @ right
        return damped + delta if self.twice else damped


@dataclass(frozen=True)
class Project(Constraint):
    """SPHERE (ICLR 2026, arXiv:2510.01172): a share of Δ's component in the principal directions of W is removed.

    Δ becomes Δ (I − α U Uᵀ). U holds the first eigenvectors of ŴᵀŴ, where Ŵ is W with rows scaled to length one: as few
    as make up more than the share η of the sum of eigenvalues.

    Attributes:
        share: η, in (0, 1].
        strength: α, in (0, 1]; with 1 nothing is left in those directions.
        order: when a batch's layers get the projected Δ. With ``in_turn``, each is projected before the next one is
            solved, as in the paper's code; with ``restored``, all are updated with the whole Δ first, as in EasyEdit.
    """

    share: float = 0.5
    strength: float = 0.5
    order: str = "in_turn"

    def __post_init__(self) -> None:
        if self.order not in ("in_turn", "restored"):
            raise ValueError(f"order must be in_turn or restored, not {self.order!r}")
        for name in ("share", "strength"):
            check_real(name, getattr(self, name))
            if getattr(self, name) > 1:
                raise ValueError(f"{name} must be in (0, 1], not {getattr(self, name)}")

    @property
    def restores(self) -> bool:
        return self.order == "restored"

    def batch(self, delta: Tensor, weight: Tensor) -> Tensor:
        rows = weight.double() / weight.double().norm(dim=1, keepdim=True).clamp_min(1e-12)
        values, vectors = torch.linalg.eigh(rows @ rows.T)  # a d_model² matrix instead of a d_mlp² one
        values, vectors = values.flip(0), vectors.flip(1)
        taken = min(len(values), int((values.cumsum(0) / values.sum() <= self.share).sum()) + 1)
        principal = (rows.T @ vectors[:, :taken]) / values[:taken].clamp_min(1e-24).sqrt()  # U, (d_mlp, taken)
        whole = delta.double()
        return (whole - self.strength * (whole @ principal) @ principal.T).to(delta.dtype)
