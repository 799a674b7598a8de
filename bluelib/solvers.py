"""Solvers of the editing problem of one layer: given keys K and residuals R, a weight update Δ.

Shapes: W and Δ are (d_model, d_mlp), K is (d_mlp, u), R is (d_model, u), C is (d_mlp, d_mlp). All solve in float64.

A solver is used in two steps. :meth:`prepare` takes what does not depend on a batch (the layer's second moment) and
factors it once; :meth:`solve` takes that state with a batch's K and R, and returns Δ with the state for the next
batch of a sequence.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor


class SolverError(ArithmeticError):
    """A matrix that cannot be factored; the message says which and why."""


class Solver(Protocol):
    """What an editor needs of a solver."""

    def prepare(self, second_moment: Tensor) -> Any:
        """The state before the first batch, from C."""

    def solve(self, state: Any, keys: Tensor, residuals: Tensor) -> tuple[Tensor, Any]:
        """Δ in float64, and the state for the next batch."""


@dataclass(frozen=True)
class Ridge:
    """Ridge regression against the second moment of keys: MEMIT (Meng et al. 2023, Eq. 14).

    Δ = R Kᵀ (λ C + K Kᵀ)⁻¹

    λ C is factored once (Cholesky). For the u keys of a batch, Woodbury's identity gives the same Δ from a u × u
    system: with A = (λ C)⁻¹ K, Δ = R (I + Kᵀ A)⁻¹ Aᵀ. That costs d_mlp² u in place of d_mlp³/3 per batch.

    Attributes:
        weight: λ, MEMIT's ``mom2_update_weight``; C is a mean over tokens, so λ counts as that many tokens.
    """

    weight: float

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise ValueError(f"the ridge weight λ must be positive, not {self.weight}")

    def prepare(self, second_moment: Tensor) -> Tensor:
        return _cholesky(self.weight * second_moment.double(), "λC")

    def solve(self, state: Tensor, keys: Tensor, residuals: Tensor) -> tuple[Tensor, Tensor]:
        keys, residuals = keys.double(), residuals.double()
        solved = torch.cholesky_solve(keys, state)  # A, (d_mlp, u)
        inner = torch.eye(keys.shape[1], dtype=keys.dtype, device=keys.device) + keys.T @ solved
        return torch.cholesky_solve(residuals.T, _cholesky(inner, "I + Kᵀ(λC)⁻¹K")).T @ solved.T, state


@dataclass(frozen=True)
class NullSpaceState:
    """The basis U of C's null space, (d_mlp, r), and Uᵀ K_p K_pᵀ U of all earlier batches, (r, r)."""

    basis: Tensor
    history: Tensor = field(repr=False)


@dataclass(frozen=True)
class NullSpace:
    """Updates confined to the null space of the second moment: AlphaEdit (Fang et al. 2025, Eq. 14).

    Δ = R Kᵀ P (K_p K_pᵀ P + K Kᵀ P + L2 · I)⁻¹

    P = U Uᵀ, where U holds the eigenvectors of C with eigenvalues under the threshold. The matrix above is not
    symmetric, but its restriction to the null space is: with K̃ = Uᵀ K,

    Δ = R K̃ᵀ (K̃_p K̃_pᵀ + K̃ K̃ᵀ + L2 · I)⁻¹ Uᵀ,

    an r × r positive definite system, solved by Cholesky; P itself is never formed.

    Attributes:
        threshold: eigenvalues of C below it count as zero.
        l2: the weight of ‖Δ‖².
    """

    threshold: float
    l2: float

    def __post_init__(self) -> None:
        if not (self.threshold > 0 and self.l2 > 0):
            raise ValueError(f"threshold and L2 must be positive, not {self.threshold} and {self.l2}")

    def prepare(self, second_moment: Tensor) -> NullSpaceState:
        basis = null_space(second_moment, self.threshold)
        if basis.shape[1] == 0:
            raise SolverError(
                f"no eigenvalue of C is below {self.threshold}: its null space is empty; raise the threshold"
            )
        return NullSpaceState(basis, basis.new_zeros(basis.shape[1], basis.shape[1]))

    def solve(self, state: NullSpaceState, keys: Tensor, residuals: Tensor) -> tuple[Tensor, NullSpaceState]:
        inside = state.basis.T @ keys.double()  # K̃, (r, u)
        history = state.history + inside @ inside.T
        matrix = history.clone()
        matrix.diagonal().add_(self.l2)
        solved = torch.cholesky_solve(inside, _cholesky(matrix, "K̃_pK̃_pᵀ + K̃K̃ᵀ + L2·I"))
        return residuals.double() @ solved.T @ state.basis.T, replace(state, history=history)


def null_space(second_moment: Tensor, threshold: float) -> Tensor:
    """Eigenvectors of C with eigenvalues under ``threshold``, ``(d_mlp, r)`` float64, by a symmetric eigen-solver."""
    values, vectors = torch.linalg.eigh(second_moment.double())
    return vectors[:, values < threshold].contiguous()


def _cholesky(matrix: Tensor, name: str) -> Tensor:
    factor, info = torch.linalg.cholesky_ex(matrix)
    if info.item() or not torch.isfinite(factor).all():
        raise SolverError(
            f"{name} ({matrix.shape[0]} × {matrix.shape[1]}) is not positive definite: "
            "the second moment is singular (measure it over more tokens), or it or the keys are not finite"
        )
    return factor
