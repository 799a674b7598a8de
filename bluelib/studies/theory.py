"""The weight-shift error of residual distribution: its exact value, and bounds on it (proofs: ``03_theory.ipynb``).

A solver's update is linear in the residual: Δ = R Q, where the gain Q ``(u, d_mlp)`` depends on the keys alone. With a
target optimised at layer l itself, the update would be R* Q. A rule that takes a share η of R^L, the residual at the
last critical layer L, makes it η R^L Q. The error is

    E = (R* − η R^L) Q,    η = 1 / c,

with a divisor c of L − l + 1 in MEMIT, its square root in PMET, Σ_{k ≥ l} w_k / w_l in CAKE. BLUE takes R* itself, so
E = 0. FE replaces η R^L by R^F, the residual at l of a target that is replayed from the first layer, with c = 1:
E = (R* − R^F) Q is zero at the first layer, and at the later ones it is what replay changes in R*.

With D = R* − R^L, and every norm the spectral one, for any c ≥ 1:

    ‖E‖ ≤ ‖R* − R^L/c‖ ‖Q‖                             residual
        ≤ (‖D‖ + (c − 1) ‖R*‖) / c · ‖Q‖               shared
        ≤ (‖D‖ + (c − 1)/c · ‖R^L‖) ‖Q‖                tight
        ≤ (‖D‖ + (c − 1) ‖R^L‖) ‖Q‖                    paper (Theorem 4.1, where c − 1 = L − l: MEMIT)

Shapes: R* (``direct``) and R^L (``last``) are ``(d_model, u)``; K is ``(d_mlp, u)``. Everything in float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..editing.solvers import Ridge, Solver, on_device

#: Names of the bounds, from the tightest one to the paper's.
BOUNDS = ("residual", "shared", "tight", "paper")


def gain(solver: Solver, state: Any, keys: Tensor) -> Tensor:
    """Q ``(u, d_mlp)`` with Δ = R Q for every R: the solver's answer to R = I.

    For MEMIT Q = Kᵀ(λC + KKᵀ)⁻¹, for AlphaEdit K̃ᵀ(L2·I + K̃_pK̃_pᵀ + K̃K̃ᵀ)⁻¹Uᵀ.

    Args:
        solver, state: a solver and what its ``prepare`` or ``remember`` returned.
        keys: K.
    """
    identity = torch.eye(keys.shape[1], dtype=torch.float64, device=keys.device)
    return solver.solve(on_device(state, keys.device), keys, identity)


def weight_shift(direct: Tensor, last: Tensor, divisor: float, gain: Tensor) -> Tensor:
    """E = (R* − R^L / c) Q, ``(d_model, d_mlp)``: the exact error that distribution makes in a layer's weights.

    Raises:
        ValueError: if the divisor is below 1, or shapes do not fit.
    """
    direct, last, gain = _checked(direct, last, divisor, gain)
    return (direct - last / divisor) @ gain


@dataclass(frozen=True)
class Norms:
    """Spectral norms that the bounds are made of: ‖Q‖, ‖R*‖, ‖R^L‖, ‖D‖ and ‖R* − R^L/c‖, with the divisor c."""

    q: float
    direct: float
    last: float
    deviation: float
    residual: float
    divisor: float

    @classmethod
    def of(cls, direct: Tensor, last: Tensor, divisor: float, gain: Tensor) -> Norms:
        """
        Raises:
            ValueError: see :func:`weight_shift`.
        """
        direct, last, gain = _checked(direct, last, divisor, gain)
        measured = (gain, direct, last, direct - last, direct - last / divisor)
        return cls(*(*map(spectral_norm, measured), divisor))

    def bounds(self) -> dict[str, float]:
        """Upper bounds on ‖E‖₂ by name, in the order of :data:`BOUNDS`: each is at most the next one.

        ``paper`` is Theorem 4.1; ``tight`` has the coefficient (c − 1)/c in place of c − 1; ``shared`` splits
        R* − R^L/c as D/c + (1 − 1/c) R* and is never above ``tight``, by ‖R*‖ ≤ ‖D‖ + ‖R^L‖; ``residual`` only uses
        ‖AQ‖ ≤ ‖A‖‖Q‖.
        """
        c = self.divisor
        return {
            "residual": self.residual * self.q,
            "shared": (self.deviation + (c - 1) * self.direct) / c * self.q,
            "tight": (self.deviation + (c - 1) / c * self.last) * self.q,
            "paper": (self.deviation + (c - 1) * self.last) * self.q,
        }


@dataclass(frozen=True)
class ErrorTerms:
    """‖E‖²_F split by where it comes from, in two ways; the terms of each add up to it.

    E = D Q + (1 − 1/c) R^L Q:

    Attributes:
        deviation: ‖D Q‖²: the residual at l differs from the one at L.
        division: ‖(1 − 1/c) R^L Q‖²: only a share of it is applied.
        cross: 2⟨D Q, (1 − 1/c) R^L Q⟩, negative exactly where ``share`` is below 1 (and c above 1).

    E = (R* − a R^L) Q + (a − 1/c) R^L Q, two orthogonal parts, with a the ``share`` below:

        direction: ‖(R* − a R^L) Q‖² = (1 − ρ²) ‖R*Q‖²: what no multiple of R^L can give.
        amount: (a − 1/c)² ‖R^L Q‖²: another multiple would have been better.
        share: a = ⟨R*Q, R^LQ⟩ / ‖R^LQ‖², the real number for which a R^L comes closest to R* in ‖(R* − a R^L) Q‖_F.
        cosine: ρ = ⟨R*Q, R^LQ⟩ / (‖R*Q‖ ‖R^LQ‖).
    """

    deviation: float
    division: float
    cross: float
    direction: float
    amount: float
    share: float
    cosine: float


def error_terms(direct: Tensor, last: Tensor, divisor: float, gain: Tensor) -> ErrorTerms:
    """The terms of ‖E‖²_F. Where R^LQ is zero, ``share`` and ``cosine`` are NaN and all of R*Q is ``direction``; where
    R*Q is zero, ``cosine`` is NaN.

    Raises:
        ValueError: see :func:`weight_shift`.
    """
    direct, last, gain = _checked(direct, last, divisor, gain)
    a, b = direct @ gain, last @ gain
    inner, squared = (a * b).sum(), b.square().sum()
    share = inner / squared
    deviation, division = a - b, (1 - 1 / divisor) * b
    return ErrorTerms(
        deviation.square().sum().item(),
        division.square().sum().item(),
        2 * (deviation * division).sum().item(),
        (a - share.nan_to_num() * b).square().sum().item(),
        ((share.nan_to_num() - 1 / divisor).square() * squared).item(),
        share.item(),
        (inner / (a.norm() * b.norm())).item(),
    )


def gain_cap(matrix: Tensor) -> float:
    """½ λ_min(M)^(−1/2): no batch of keys, of whatever size, has a larger ‖Kᵀ(M + KKᵀ)⁻¹‖₂.

    With K̂ = M^(−1/2) K, Q = K̂ᵀ(I + K̂K̂ᵀ)⁻¹ M^(−1/2), and σ/(1 + σ²) ≤ ½ for every singular value σ of K̂.

    Args:
        matrix: M, ``(d_mlp, d_mlp)``, symmetric: λC, or λC + K_pK_pᵀ; for AlphaEdit L2·I, in the coordinates of K̃.

    Raises:
        ValueError: if M is not positive definite.
    """
    return 0.5 * _least_eigenvalue(matrix, "M") ** -0.5


def history_bound(gain_norm: float, matrix: Tensor, earlier: Tensor) -> float:
    """‖Q‖₂ (1 + ‖K_pK_pᵀ‖₂ / λ_min(A)) ≥ ‖Q_p‖₂: a bound that grows with earlier keys, as Lemma 4.3's does.

    From Q_p = Q − Q K_p (I + K_pᵀA⁻¹K_p)⁻¹ K_pᵀA⁻¹ by the triangle inequality. This bound grows without limit, but
    ‖Q_p‖ does not: :func:`gain_cap` does not rise as earlier keys are added.

    Args:
        gain_norm: ‖Q‖₂, of the solution without earlier keys, Q = Kᵀ A⁻¹.
        matrix: A = M + KKᵀ, ``(d_mlp, d_mlp)``.
        earlier: K_p, ``(d_mlp, any)``.

    Raises:
        ValueError: if A is not positive definite.
    """
    return gain_norm * (1 + spectral_norm(earlier) ** 2 / _least_eigenvalue(matrix, "A"))


def gains_with_history(keys: Tensor, matrix: Tensor, batch_size: int) -> list[dict[str, float]]:
    """‖Q‖ of each batch of ``batch_size`` keys in turn, alone and with all other keys as earlier ones.

    Args:
        keys: K of all edits, ``(d_mlp, any)``.
        matrix: M, ``(d_mlp, d_mlp)``, on any device.

    Returns:
        Per batch ``norm_q`` ‖Q‖₂, ``norm_q_with_history`` ‖Q_p‖₂, their ``ratio``, ``norm_history`` ‖K_pK_pᵀ‖₂, and
        ``history_bound`` (:func:`history_bound`).
    """
    solver, rows = Ridge(1.0, remembers=True), []
    keys, matrix = keys.double(), matrix.to(keys.device, torch.float64)
    state = solver.prepare(matrix)
    for start in range(0, keys.shape[1] - batch_size + 1, batch_size):
        new = keys[:, start : start + batch_size]
        past = torch.cat([keys[:, :start], keys[:, start + batch_size :]], 1)
        alone, after = (spectral_norm(gain(solver, s, new)) for s in (state, solver.remember(state, past)))
        rows.append(
            {
                "norm_q": alone,
                "norm_q_with_history": after,
                "ratio": after / alone,
                "norm_history": spectral_norm(past) ** 2,
                "history_bound": history_bound(alone, matrix + new @ new.T, past),
            }
        )
    return rows


def _least_eigenvalue(matrix: Tensor, name: str) -> float:
    least = torch.linalg.eigvalsh(matrix.double())[0].item()
    if least <= 0:
        raise ValueError(f"{name} is not positive definite: its smallest eigenvalue is {least:g}")
    return least


def spectral_norm(matrix: Tensor) -> float:
    """The largest singular value, in float64: the root of the largest eigenvalue of the smaller Gram matrix.

    As accurate as a singular value decomposition for the largest one, and 20 times faster for a weight's shape.
    """
    matrix = matrix.double()
    if not matrix.numel():
        return 0.0
    gram = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
    return max(torch.linalg.eigvalsh(gram)[-1].item(), 0.0) ** 0.5


def _checked(direct: Tensor, last: Tensor, divisor: float, gain: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if not divisor >= 1:
        raise ValueError(f"the divisor must be at least 1, not {divisor}")
    if direct.shape != last.shape or direct.ndim != 2 or direct.shape[1] != gain.shape[0]:
        raise ValueError(
            f"residuals must be (d_model, u) and the gain (u, d_mlp); they are {tuple(direct.shape)}, "
            f"{tuple(last.shape)} and {tuple(gain.shape)}"
        )
    return direct.double(), last.double(), gain.double()
