"""Solvers of the editing problem of one layer: given keys K and residuals R, a weight update Δ.

Shapes: W and Δ are (d_model, d_mlp), K is (d_mlp, u), R is (d_model, u), C is (d_mlp, d_mlp). All solve in float64.

A solver is used in three steps. :meth:`Solver.prepare` takes what does not depend on a batch (the layer's second
moment); :meth:`Solver.solve` takes that state with a batch's K and R and returns Δ; :meth:`Solver.remember` returns the
state for the next batch. No step's cost depends on the number of batches made.

All of them rest on one system, Δ = R Kᵀ (M + K Kᵀ)⁻¹ with a positive definite M. What is solved for is its inverse at
the keys, (M + K Kᵀ)⁻¹ K. Where M stays as it is (:class:`Fixed`), it is factored before the first batch. For a batch of
u keys Woodbury's identity then leaves a u × u system,

    (M + K Kᵀ)⁻¹ K = A (I + Kᵀ A)⁻¹,   A = M⁻¹ K,

at d_mlp² u operations instead of d_mlp³ / 3; where u exceeds d_mlp, M + K Kᵀ is factored itself, which is then cheaper.
Where M takes in the keys of each batch (:class:`Growing`), M + K Kᵀ is factored once per batch. Torch has no update of
a Cholesky factor, and updating the inverse instead (recursive least squares) loses accuracy over many batches when C is
ill-conditioned.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..io.checks import check_real
from .second_moments import null_space


class SolverError(ArithmeticError):
    """A matrix that cannot be factored; the message says which and why."""


class Solver(ABC):
    """The interface between an editor and its solver.

    Attributes:
        remembers: whether :meth:`remember` does anything, so a continued run needs the keys of earlier batches.
    """

    remembers: bool = False

    def matrices(self) -> float:
        """The largest number of float64 matrices of d_mlp² that it has on the device at once, C included."""
        return 2.5

    @property
    def needs_text(self) -> bool:
        """Whether it needs the second moment of a text."""
        return True

    @abstractmethod
    def prepare(self, second_moment: Tensor) -> Any:
        """The state before the first batch, from C; None for a solver that needs no text."""

    @abstractmethod
    def solve(self, state: Any, keys: Tensor, residuals: Tensor) -> Tensor:
        """Δ in float64."""

    def remember(self, state: Any, keys: Tensor) -> Any:
        """The state after a batch with these keys."""
        return state

    def state_bytes(self, d_mlp: int) -> int:
        """One layer's state, kept on the host: a float64 matrix of d_mlp²."""
        return 8 * d_mlp**2

    def disk_bytes(self, d_mlp: int) -> int:
        """What is kept on disk for one layer besides its second moment."""
        return 0

    def work_bytes(self, d_mlp: int, batch: int) -> int:
        """The most that one layer takes on the device: :meth:`matrices` and, for a batch of up to d_mlp keys, K, M⁻¹ K
        and a copy, in float64. (For more keys than d_mlp, K Kᵀ is formed, which takes about twice that.) The workspace
        of a GPU's solvers is not counted."""
        return int(self.matrices() * 8 * d_mlp**2) + 3 * 8 * d_mlp * batch


@dataclass(frozen=True)
class Fixed:
    """M + K Kᵀ with the same M for each batch. Only its Cholesky factor is kept: at d_mlp = 14,336 M is 1.6 GB."""

    factor: Tensor = field(repr=False)
    name: str  # of M, for messages

    @classmethod
    def of(cls, matrix: Tensor, name: str) -> Fixed:
        return cls(_cholesky(matrix, name), name)

    def at(self, keys: Tensor) -> Tensor:
        """(M + K Kᵀ)⁻¹ K, ``(d_mlp, u)``."""
        if keys.shape[1] > keys.shape[0]:
            return Growing(self.factor @ self.factor.T, self.name).at(keys)
        solved = torch.cholesky_solve(keys, self.factor)  # A
        inner = torch.eye(keys.shape[1], dtype=keys.dtype, device=keys.device) + keys.T @ solved
        return torch.cholesky_solve(solved.T, _cholesky(inner, f"I + Kᵀ({self.name})⁻¹K")).T


@dataclass(frozen=True)
class Growing:
    """M + K Kᵀ where M takes in each batch's K Kᵀ. M itself is kept: each batch brings another M + K Kᵀ to factor, and
    the factor of M alone is of no use."""

    matrix: Tensor = field(repr=False)
    name: str

    def at(self, keys: Tensor) -> Tensor:
        """(M + K Kᵀ)⁻¹ K, ``(d_mlp, u)``."""
        return torch.cholesky_solve(keys, _cholesky(self.plus(keys).matrix, self.name))

    def plus(self, keys: Tensor) -> Growing:
        """With K Kᵀ added to M."""
        return Growing(torch.addmm(self.matrix, keys, keys.T), self.name)


@dataclass(frozen=True)
class Ridge(Solver):
    """Ridge regression against the second moment of keys: MEMIT (Meng et al. 2023, Eq. 14).

    Δ = R Kᵀ (λ C + K Kᵀ)⁻¹

    Attributes:
        weight: λ, MEMIT's ``mom2_update_weight``; C is a mean over tokens, so λ counts as that many tokens.
        remembers: protect the keys of earlier batches too ("MEMIT with history"): λ C + K_p K_pᵀ in place of λ C.
    """

    weight: float
    remembers: bool = False
    name: ClassVar[str] = "λC"

    def __post_init__(self) -> None:
        check_real("λ", self.weight)

    def matrices(self) -> float:
        return 3.0 if self.remembers else 2.5

    def prepare(self, second_moment: Tensor) -> Fixed | Growing:
        matrix = self.matrix(second_moment)
        fixed = Fixed.of(matrix, self.name)  # also where M grows: a singular C is found before targets are optimised
        return Growing(matrix, f"{self.name} + K_pK_pᵀ") if self.remembers else fixed

    def matrix(self, second_moment: Tensor) -> Tensor:
        """M before the first batch, in float64."""
        return self.weight * second_moment.double()

    def solve(self, state: Fixed | Growing, keys: Tensor, residuals: Tensor) -> Tensor:
        return residuals.double() @ state.at(keys.double()).T

    def remember(self, state: Fixed | Growing, keys: Tensor) -> Fixed | Growing:
        return state.plus(keys.double()) if isinstance(state, Growing) else state


@dataclass(frozen=True)
class NormRidge(Ridge):
    """Ridge regression that also keeps ‖Δ‖ small: ENCORE (Gupta et al. 2025, arXiv:2502.01636).

    Δ = R Kᵀ (λ C + λ_n I + K_p K_pᵀ + K Kᵀ)⁻¹

    Attributes:
        norm_weight: λ_n, the weight of ‖Δ‖².
    """

    norm_weight: float = 1.0
    name: ClassVar[str] = "λC + λ_n I"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_real("λ_n", self.norm_weight, zero=True)

    def matrix(self, second_moment: Tensor) -> Tensor:
        found = super().matrix(second_moment)
        if not found.diagonal().min() >= 0 or not found.diagonal().max() > 0:  # λ_n would hide it from the Cholesky
            raise SolverError("C is not a second moment: its diagonal must have no entry below 0, and some above")
        found.diagonal().add_(self.norm_weight)
        return found


@dataclass(frozen=True)
class NullSpaceState:
    """The basis U of C's null space, (d_mlp, r), and the system in it, (r, r)."""

    basis: Tensor = field(repr=False)
    inside: Growing


@dataclass(frozen=True)
class NullSpace(Solver):
    """Updates confined to the null space of the second moment: AlphaEdit (Fang et al. 2025, Eq. 14).

    Δ = R Kᵀ P (K_p K_pᵀ P + K Kᵀ P + L2 · I)⁻¹

    P = U Uᵀ, where U holds the eigenvectors of C with eigenvalues under the threshold, and K_p are the keys of all
    earlier batches. The matrix above is not symmetric, but its restriction to the null space is: with K̃ = Uᵀ K,

    Δ = R K̃ᵀ (L2 · I + K̃_p K̃_pᵀ + K̃ K̃ᵀ)⁻¹ Uᵀ,

    an r × r positive definite system; P itself is never formed.

    Attributes:
        threshold: eigenvalues of C below it count as zero.
        l2: the weight of ‖Δ‖².
    """

    threshold: float
    l2: float
    remembers = True

    def __post_init__(self) -> None:
        check_real("threshold", self.threshold)
        check_real("L2", self.l2)

    def matrices(self) -> float:
        return 4.5  # while it is prepared

    def prepare(self, second_moment: Tensor) -> NullSpaceState:
        basis = null_space(second_moment, self.threshold)
        if basis.shape[1] == 0:
            raise SolverError(
                f"no eigenvalue of C is below {self.threshold}: its null space is empty; raise the threshold"
            )
        return NullSpaceState(basis, self.inner(basis, second_moment))

    def inner(self, basis: Tensor, second_moment: Tensor) -> Growing:
        """The system in the null space before the first batch."""
        identity = torch.eye(basis.shape[1], dtype=basis.dtype, device=basis.device)
        return Growing(self.l2 * identity, "L2·I + K̃_pK̃_pᵀ")

    def solve(self, state: NullSpaceState, keys: Tensor, residuals: Tensor) -> Tensor:
        return residuals.double() @ (state.basis @ state.inside.at(state.basis.T @ keys.double())).T

    def remember(self, state: NullSpaceState, keys: Tensor) -> NullSpaceState:
        return NullSpaceState(state.basis, state.inside.plus(state.basis.T @ keys.double()))

    def state_bytes(self, d_mlp: int) -> int:
        """For a null space of r dimensions, d_mlp·r and r² numbers, counted with the largest possible r, d_mlp."""
        return 2 * 8 * d_mlp**2

    def disk_bytes(self, d_mlp: int) -> int:
        """The basis, counted likewise."""
        return 8 * d_mlp**2


@dataclass(frozen=True)
class LeakyNullSpace(NullSpace):
    """AlphaEdit that also weighs what its null space still holds of C: BetaEdit (IJCAI 2026, arXiv:2605.09285).

    Δ = R Kᵀ P [(K_p K_pᵀ + K Kᵀ + λ₁ C) P + λ₂ I]⁻¹

    In the coordinates of the null space, as in :class:`NullSpace`:

    Δ = R K̃ᵀ (λ₂ I + λ₁ UᵀCU + K̃_p K̃_pᵀ + K̃ K̃ᵀ)⁻¹ Uᵀ.

    The null space is that of C throughout. The paper computes it again after every 1,000 edits, from
    (K_p K_pᵀ / n + λ₁ C) / (1 + λ₁). That is not done here. With its λ₁ of 3,000 the keys weigh 1/3001 there; keys of
    large norm can still lift eigenvalues above the threshold, and more so with a smaller λ₁.

    Attributes:
        l2: λ₂.
        leak: λ₁.
    """

    leak: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_real("λ₁", self.leak, zero=True)

    def inner(self, basis: Tensor, second_moment: Tensor) -> Growing:
        matrix = self.leak * (basis.T @ second_moment.double() @ basis)
        matrix.diagonal().add_(self.l2)
        return Growing(matrix, "λ₂I + λ₁UᵀCU + K̃_pK̃_pᵀ")


#: The smallest pivot of a Gram matrix of keys counts as zero if it is below this share of the largest.
SINGULAR = 1e-9


@dataclass(frozen=True)
class Equality(Solver):
    """The smallest update that reaches the residuals exactly: ROME (Meng et al. 2022, Eq. 2), EMMET for u > 1.

    Δ = R (Kᵀ C⁻¹ K)⁻¹ Kᵀ C⁻¹, the minimiser of tr(Δ C Δᵀ) with Δ K = R. For one key, this is ROME's rank-one update
    Δ = r (C⁻¹ k)ᵀ / (kᵀ C⁻¹ k). The key is the same on both sides, as in the paper; public code of ROME divides by
    the bare prompt's key instead, which makes long sequences collapse (Gupta et al. 2024, "Rebuilding ROME").

    Attributes:
        whitened: use C; with False, the identity takes its place (the published setting of ROME for Llama3).
    """

    whitened: bool = True

    @property
    def needs_text(self) -> bool:
        return self.whitened

    def prepare(self, second_moment: Tensor) -> Tensor | None:
        return _cholesky(second_moment.double(), "C") if self.whitened else None

    def solve(self, state: Tensor | None, keys: Tensor, residuals: Tensor) -> Tensor:
        keys = keys.double()
        solved = keys if state is None else torch.cholesky_solve(keys, state)  # C⁻¹ K
        gram = keys.T @ solved
        inner, info = torch.linalg.cholesky_ex(gram)
        pivots = inner.diagonal().square()
        if keys.shape[1] > 1 and (info.item() or not pivots.min() > SINGULAR * pivots.max()):
            raise SolverError(
                f"KᵀC⁻¹K of {keys.shape[1]} edits is singular. This solver reaches each edit exactly, and cannot if "
                "two have the same key, as edits of one subject do, or if there are more edits than key dimensions "
                f"({keys.shape[0]}); make them in different batches"
            )
        inner = _cholesky(gram, "kᵀC⁻¹k") if keys.shape[1] == 1 else inner
        return torch.cholesky_solve(residuals.double().T, inner).T @ solved.T


def on_device(state: Any, device: torch.device | str) -> Any:
    """A solver's state with its tensors on ``device``.

    Factors are large: 1.6 GB each at d_mlp = 14,336. Editors keep them in the host's memory and bring one to the GPU
    when its layer's turn comes, so that the GPU's memory does not grow with the number of layers.
    """
    if isinstance(state, Tensor):
        return state.to(device)
    if is_dataclass(state) and not isinstance(state, type):
        return replace(state, **{f.name: on_device(getattr(state, f.name), device) for f in fields(state)})
    return state


def _cholesky(matrix: Tensor, name: str) -> Tensor:
    factor, info = torch.linalg.cholesky_ex(matrix)
    if info.item() or not torch.isfinite(factor.diagonal()).all():  # an entry that is not finite spoils its row's
        raise SolverError(
            f"{name} ({matrix.shape[0]} × {matrix.shape[1]}) is not positive definite: "
            "the second moment is singular (measure it over more tokens, --tokens: ten for each dimension of a key "
            "are usually enough), or it or the keys are not finite"
        )
    return factor
