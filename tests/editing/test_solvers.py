"""Closed forms against direct float64 solutions of the normal equations."""

from __future__ import annotations

import pytest
import torch

from bluelib.editing.solvers import Equality, NormRidge, NullSpace, Ridge, SolverError, null_space, on_device

D_MODEL, D_MLP, U = 5, 12, 4


def problem(seed: int = 0, rank: int = D_MLP):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    old = draw(D_MLP, 40)
    old[rank:] = 0.0  # the last directions never occur in the text
    rotation = torch.linalg.qr(draw(D_MLP, D_MLP)).Q
    old = rotation @ old
    return old @ old.T / old.shape[1], draw(D_MLP, U), draw(D_MODEL, U)


@pytest.mark.parametrize("weight", [1e-3, 1.0, 1e4])
def test_memit_solves_its_normal_equations(weight):
    """Δ minimises λ tr(Δ C Δᵀ) + ‖ΔK − R‖², so Δ (λC + KKᵀ) = R Kᵀ."""
    c, k, r = problem()
    solver = Ridge(weight)
    delta = solver.solve(solver.prepare(c), k, r)
    direct = torch.linalg.solve(weight * c + k @ k.T, k @ r.T).T
    torch.testing.assert_close(delta, direct, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(delta @ (weight * c + k @ k.T), r @ k.T, rtol=1e-9, atol=1e-9)


def test_memit_is_accurate_for_an_ill_conditioned_second_moment():
    c, k, r = problem()
    values = torch.logspace(-9, 1, D_MLP, dtype=torch.float64)
    vectors = torch.linalg.eigh(c).eigenvectors
    c = vectors @ torch.diag(values) @ vectors.T
    solver = Ridge(2.0)
    delta = solver.solve(solver.prepare(c), k, r)
    torch.testing.assert_close(delta, torch.linalg.solve(2.0 * c + k @ k.T, k @ r.T).T, rtol=1e-5, atol=1e-7)


def test_memit_minimises_its_objective():
    c, k, r = problem(1)
    solver = Ridge(0.7)
    delta = solver.solve(solver.prepare(c), k, r)

    def objective(d):
        return 0.7 * torch.trace(d @ c @ d.T) + ((d @ k - r) ** 2).sum()

    least = objective(delta)
    for seed in range(5):
        step = torch.randn(delta.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        assert objective(delta + 1e-3 * step) > least


@pytest.mark.parametrize("l2", [1e-2, 1.0, 10.0])
def test_alphaedit_equals_its_published_form_over_a_sequence(l2):
    """Three batches against Δ = R Kᵀ P (K_p K_pᵀ P + K Kᵀ P + L2 I)⁻¹ with the dense projector."""
    c, _, _ = problem(rank=7)
    solver = NullSpace(threshold=1e-8, l2=l2)
    state = solver.prepare(c)
    values, vectors = torch.linalg.eigh(c)
    u = vectors[:, values < 1e-8]
    p = u @ u.T
    assert u.shape[1] == D_MLP - 7
    earlier = torch.zeros(D_MLP, D_MLP, dtype=torch.float64)
    for seed in range(3):
        _, k, r = problem(seed + 10)
        delta = solver.solve(state, k, r)
        state = solver.remember(state, k)
        matrix = earlier @ p + k @ k.T @ p + l2 * torch.eye(D_MLP, dtype=torch.float64)
        direct = torch.linalg.solve(matrix.T, (r @ k.T @ p).T).T
        torch.testing.assert_close(delta, direct, rtol=1e-9, atol=1e-11)
        earlier = earlier + k @ k.T


@pytest.mark.parametrize("condition", [1e1, 1e9])
def test_memit_with_history_protects_earlier_keys(condition):
    """Three batches against R Kᵀ (λC + K_pK_pᵀ + KKᵀ)⁻¹ solved directly, also for an ill-conditioned C."""
    c, _, _ = problem()
    vectors = torch.linalg.eigh(c).eigenvectors
    c = (
        vectors
        @ torch.diag(torch.logspace(0, -torch.tensor(condition).log10().item(), D_MLP, dtype=c.dtype))
        @ vectors.T
    )
    solver = Ridge(3.0, remembers=True)
    state = solver.prepare(c)
    matrix = 3.0 * c
    for seed in range(3):
        _, k, r = problem(seed + 10)
        matrix = matrix + k @ k.T
        direct = torch.linalg.solve(matrix, k @ r.T).T
        torch.testing.assert_close(solver.solve(state, k, r), direct, rtol=1e-5, atol=1e-7)
        state = solver.remember(state, k)


def test_a_solver_without_history_forgets():
    c, k, _ = problem()
    solver = Ridge(3.0)
    state = solver.prepare(c)
    assert solver.remember(state, k) is state


@pytest.mark.parametrize("solver", [Ridge(2.0), Ridge(2.0, remembers=True), NullSpace(1e-8, 0.5)])
def test_more_keys_than_dimensions_give_the_same_solution(solver):
    """Where u exceeds d_mlp the other identity is used; splitting the keys' energy over copies changes nothing."""
    c, k, r = problem(rank=D_MLP if isinstance(solver, Ridge) else 5)
    copies = D_MLP
    state = solver.prepare(c)
    many = solver.solve(state, k.repeat(1, copies) / copies**0.5, r.repeat(1, copies) / copies**0.5)
    torch.testing.assert_close(many, solver.solve(state, k, r), rtol=1e-8, atol=1e-10)


def test_rome_reaches_its_residual_with_the_least_disturbance():
    c, k, r = problem()
    solver = Equality()
    state = solver.prepare(c)
    one = solver.solve(state, k[:, :1], r[:, :1])
    inverse = torch.linalg.inv(c) @ k[:, :1]
    torch.testing.assert_close(one, r[:, :1] @ inverse.T / (k[:, :1].T @ inverse), rtol=1e-9, atol=1e-11)
    assert torch.linalg.matrix_rank(one) == 1
    delta = solver.solve(state, k, r)
    torch.testing.assert_close(delta @ k, r, rtol=1e-8, atol=1e-9)
    nearly = Ridge(1e-9)  # the equality is the ridge's limit
    torch.testing.assert_close(nearly.solve(nearly.prepare(c), k, r), delta, rtol=1e-5, atol=1e-7)
    with pytest.raises(SolverError, match="if two have the same key"):
        solver.solve(state, k[:, [0, 0]], r[:, :2])


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_keys_that_are_nearly_the_same_are_refused_and_others_are_reached(size):
    """Whatever their size."""
    c, k, r = problem()
    k, solver = size * k, Equality()
    state = solver.prepare(c)
    for apart, refused in ((1e-6, True), (1e-3, False)):
        keys = torch.stack([k[:, 0], k[:, 0] + apart * k[:, 1]], 1)
        if refused:
            with pytest.raises(SolverError, match="if two have the same key"):
                solver.solve(state, keys, r[:, :2])
        else:
            torch.testing.assert_close(solver.solve(state, keys, r[:, :2]) @ keys, r[:, :2], rtol=1e-6, atol=1e-6)
    with pytest.raises(SolverError, match=r"kᵀC⁻¹k \(1 × 1\) is not positive definite"):
        solver.solve(state, torch.zeros(D_MLP, 1), r[:, :1])


def test_a_norm_does_not_hide_that_c_is_no_second_moment():
    solver, c = NormRidge(1.0, norm_weight=2.0), torch.diag(torch.linspace(0, 0.5, D_MLP, dtype=torch.float64))
    solver.prepare(c)  # singular, which the norm may mend
    for wrong in (torch.zeros_like(c), c - 0.1 * torch.eye(D_MLP)):
        with pytest.raises(SolverError, match="C is not a second moment: its diagonal"):
            solver.prepare(wrong)


def test_rome_without_whitening_takes_the_pseudo_inverse_of_the_keys():
    c, k, r = problem()
    solver = Equality(whitened=False)
    torch.testing.assert_close(solver.solve(solver.prepare(c), k, r), r @ torch.linalg.pinv(k), rtol=1e-9, atol=1e-11)


def test_alphaedit_leaves_old_keys_alone():
    c, k, r = problem(rank=6)
    solver = NullSpace(threshold=1e-8, l2=0.1)
    delta = solver.solve(solver.prepare(c), k, r)
    old = torch.linalg.eigh(c).eigenvectors[:, -6:]  # directions that the text does use
    assert (delta @ old).abs().max() < 1e-10
    assert delta.abs().max() > 1e-3


def test_null_space_is_orthonormal_and_annihilates_c():
    c, _, _ = problem(rank=5)
    basis = null_space(c, 1e-8)
    torch.testing.assert_close(basis.T @ basis, torch.eye(D_MLP - 5, dtype=torch.float64))
    assert (c @ basis).abs().max() < 1e-12


def test_what_cannot_be_solved_is_refused():
    c, _, _ = problem(rank=6)
    with pytest.raises(SolverError, match=r"^λC \(12 × 12\) is not positive definite"):
        Ridge(1.0).prepare(c - 1e-3 * torch.eye(D_MLP))
    with pytest.raises(SolverError, match=r"^λC \(12 × 12\) is not positive definite"):
        Ridge(1.0, remembers=True).prepare(c - 1e-3 * torch.eye(D_MLP))
    state = Ridge(1.0, remembers=True).prepare(problem()[0])
    with pytest.raises(SolverError, match=r"^λC \+ K_pK_pᵀ \(12 × 12\) is not positive definite"):
        state.at(torch.full((D_MLP, 1), torch.inf, dtype=torch.float64))
    with pytest.raises(SolverError, match="not positive definite"):
        Ridge(1.0).prepare(c * float("nan"))
    with pytest.raises(SolverError, match="null space is empty"):
        NullSpace(1e-30, 1.0).prepare(problem()[0])
    with pytest.raises(ValueError, match="must be positive, not 0"):
        Ridge(0)
    with pytest.raises(ValueError, match="must be positive"):
        NullSpace(0.02, -1)
    with pytest.raises(ValueError, match="threshold must be positive, not 0"):
        NullSpace(0, 1.0)


@pytest.mark.parametrize("solver", [Equality(), Ridge(1.0), NullSpace(1e-8, 0.1)])
def test_a_state_moves_with_all_its_tensors(solver):
    c, k, r = problem(rank=D_MLP if not isinstance(solver, NullSpace) else 6)
    state = solver.prepare(c)
    away = on_device(state, "meta")
    tensors = (
        [away]
        if isinstance(away, torch.Tensor)
        else [
            getattr(away, "factor", None),
            getattr(away, "basis", None),
            getattr(getattr(away, "inside", None), "matrix", None),
        ]
    )
    assert {t.device.type for t in tensors if t is not None} == {"meta"}
    torch.testing.assert_close(solver.solve(on_device(state, "cpu"), k, r), solver.solve(state, k, r))


def test_a_moved_state_still_names_its_matrix_in_messages():
    state = on_device(Ridge(1.0).prepare(problem()[0]), "cpu")
    with pytest.raises(SolverError, match=r"I \+ Kᵀ\(λC\)⁻¹K \(1 × 1\)"):
        state.at(torch.full((D_MLP, 1), torch.inf, dtype=torch.float64))


def test_the_solvers_that_remember_keys_or_need_a_text_say_so():
    assert Ridge(1.0, remembers=True).remembers and NullSpace(1e-8, 0.1).remembers
    assert not Ridge(1.0).remembers and not Equality().remembers
    assert all(solver.needs_text for solver in (Ridge(1.0), NullSpace(1e-8, 0.1), Equality()))
    assert not Equality(whitened=False).needs_text
    c, k, _ = problem()
    state = Equality().prepare(c)
    assert Equality().remember(state, k) is state
