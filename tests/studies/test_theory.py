"""The bounds hold for every K, R, C; the tighter ones are never above the paper's; each is attained where proved."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bluelib.editing.solvers import Equality, NullSpace, Ridge
from bluelib.studies.theory import (
    BOUNDS,
    Norms,
    error_terms,
    gain,
    gain_cap,
    gains_with_history,
    history_bound,
    spectral_norm,
    weight_shift,
)


@st.composite
def problems(draw):
    """Random shapes, scales and conditioning; R* anything from R^L's multiple to unrelated to it."""
    d_model, d_mlp = draw(st.integers(1, 7)), draw(st.integers(2, 9))
    u = draw(st.integers(1, 12))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    spread = draw(st.floats(0, 8))
    values = torch.logspace(-spread, 0, d_mlp, dtype=torch.float64) * 10 ** draw(st.floats(-3, 3))
    rotation = torch.linalg.qr(normal(d_mlp, d_mlp)).Q
    c = rotation @ torch.diag(values) @ rotation.T
    keys = normal(d_mlp, u) * 10 ** draw(st.floats(-3, 3))
    last = normal(d_model, u) * 10 ** draw(st.floats(-3, 3))
    mix = draw(st.sampled_from([0.0, 1e-6, 0.3, 1.0]))
    direct = draw(st.integers(-20, 30)) / 10 * last + mix * spectral_norm(last) * normal(d_model, u)
    return (c + c.T) / 2, keys, direct, last, draw(st.floats(1, 12))


SLACK = 1 + 1e-9


@settings(max_examples=300, deadline=None)
@given(problems(), st.floats(-2, 4))
def test_every_bound_holds_and_each_is_at_most_the_next(problem, log_weight):
    c, keys, direct, last, divisor = problem
    solver = Ridge(10**log_weight)
    q = gain(solver, solver.prepare(c), keys)
    error = spectral_norm(weight_shift(direct, last, divisor, q))
    found = Norms.of(direct, last, divisor, q).bounds()
    chain = [error, *(found[name] for name in BOUNDS)]
    for lower, upper in itertools.pairwise(chain):
        assert lower <= upper * SLACK + 1e-300


@settings(max_examples=100, deadline=None)
@given(problems())
def test_the_gain_gives_the_solver_s_update(problem):
    c, keys, direct, _, _ = problem
    solver = Ridge(3.0, remembers=True)
    state = solver.remember(solver.prepare(c + 1e-6 * torch.eye(len(c))), keys.flip(1) * 0.5)
    update, q = solver.solve(state, keys, direct), gain(solver, state, keys)
    torch.testing.assert_close(direct @ q, update, rtol=1e-6, atol=1e-9 * spectral_norm(update))
    past = keys.flip(1) * 0.5
    matrix = 3 * (c + 1e-6 * torch.eye(len(c))) + past @ past.T + keys @ keys.T
    torch.testing.assert_close(q @ matrix, keys.T, rtol=1e-6, atol=1e-6 * spectral_norm(keys))


def test_the_gain_of_other_solvers():
    """Of ROME, and in the null space of C's four smallest eigenvalues."""
    generator = torch.Generator().manual_seed(0)
    c = torch.diag(torch.linspace(0.1, 1.0, 8, dtype=torch.float64))
    keys, residuals = (torch.randn(n, 3, generator=generator, dtype=torch.float64) for n in (8, 5))
    whitened, inside = torch.linalg.solve(c, keys), keys[:4]  # c is diagonal: its eigenvectors are the axes
    exact = torch.linalg.solve(keys.T @ whitened, whitened.T)
    confined = inside.T @ torch.linalg.inv(0.1 * torch.eye(4) + inside @ inside.T) @ torch.eye(8, dtype=c.dtype)[:4]
    for solver, wanted in ((Equality(), exact), (NullSpace(0.5, 0.1), confined)):
        state = solver.prepare(c)
        torch.testing.assert_close(gain(solver, state, keys), wanted)
        torch.testing.assert_close(residuals @ wanted, solver.solve(state, keys, residuals))


@settings(max_examples=100, deadline=None)
@given(problems())
def test_the_terms_add_up_to_the_error(problem):
    c, keys, direct, last, divisor = problem
    solver = Ridge(1.0)
    q = gain(solver, solver.prepare(c), keys)
    terms = error_terms(direct, last, divisor, q)
    whole = weight_shift(direct, last, divisor, q).square().sum().item()
    slack = 1e-9 * (terms.deviation + terms.division)
    assert terms.deviation + terms.division + terms.cross == pytest.approx(whole, rel=1e-7, abs=slack)
    assert terms.direction + terms.amount == pytest.approx(whole, rel=1e-7, abs=slack)
    if abs(terms.share - 1) > 1e-6 and divisor > 1 + 1e-6 and terms.division > 0:
        assert (terms.cross < 0) == (terms.share < 1)
    if terms.cosine == terms.cosine:
        size = (direct @ q).square().sum().item()
        assert terms.direction == pytest.approx((1 - terms.cosine**2) * size, rel=1e-6, abs=1e-9 * size + slack)


def test_what_is_zero_leaves_the_other_residual_s_terms():
    some, none, q = torch.ones(3, 2), torch.zeros(3, 2), torch.eye(2)
    nothing_last = error_terms(some, none, 4, q)
    assert (nothing_last.direction, nothing_last.amount, nothing_last.deviation) == (6, 0, 6)
    assert math.isnan(nothing_last.share) and math.isnan(nothing_last.cosine)
    nothing_direct = error_terms(none, some, 4, q)
    assert (nothing_direct.direction, nothing_direct.amount, nothing_direct.share) == (0, 6 / 16, 0)
    assert math.isnan(nothing_direct.cosine)


def single(*, multiple: float | None = None, divisor: float, seed: int = 1) -> tuple[float, dict[str, float]]:
    """The error of one edit and its bounds, where R* is a multiple of R^L, or unrelated to it."""
    generator = torch.Generator().manual_seed(seed)
    last, other = (torch.randn(4, 1, generator=generator, dtype=torch.float64) for _ in range(2))
    q = torch.randn(1, 6, generator=generator, dtype=torch.float64)
    direct = other if multiple is None else multiple * last
    return spectral_norm(weight_shift(direct, last, divisor, q)), Norms.of(direct, last, divisor, q).bounds()


@pytest.mark.parametrize("divisor", [2, 5])
@pytest.mark.parametrize(
    ("multiple", "attained"),
    [
        (1.5, {"residual", "shared", "tight"}),
        (1.0, {"residual", "shared", "tight"}),
        (0.0, {"residual", "shared"}),
        (-1.0, {"residual", "shared"}),
        (0.6, {"residual"}),
        (None, {"residual"}),
    ],
)
def test_for_one_edit_the_bounds_are_attained_where_proved(multiple, attained, divisor):
    """R* = a R^L: all but the paper's for a ≥ 1, the shared one also for a ≤ 0, neither in between or off the line."""
    error, found = single(multiple=multiple, divisor=divisor)
    assert {name for name in BOUNDS if found[name] == pytest.approx(error)} == attained


def test_at_the_last_layer_all_bounds_are_one():
    error, found = single(divisor=1)
    assert set(found) == {name for name in BOUNDS if found[name] == pytest.approx(error)}


@settings(max_examples=200, deadline=None)
@given(problems(), st.floats(-2, 3))
def test_no_batch_s_gain_is_above_the_cap_and_earlier_keys_lower_the_cap(problem, log_weight):
    c, keys, *_ = problem
    matrix = 10**log_weight * c
    solver = Ridge(10**log_weight)
    q = spectral_norm(gain(solver, solver.prepare(c), keys))
    cap = gain_cap(matrix)
    assert q <= cap * (1 + 1e-6)
    earlier = torch.randn(len(c), 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    assert gain_cap(matrix + earlier @ earlier.T) <= cap * (1 + 1e-6)


def test_the_cap_is_attained():
    """One key along the weakest direction of M, with |k|² = λ_min."""
    matrix = torch.diag(torch.tensor([4.0, 9.0]))
    solver = Ridge(1.0)
    q = gain(solver, solver.prepare(matrix), torch.tensor([[2.0], [0.0]]))
    assert spectral_norm(q) == pytest.approx(gain_cap(matrix)) == pytest.approx(0.25)
    with pytest.raises(ValueError, match="M is not positive definite"):
        gain_cap(matrix - 5 * torch.eye(2))
    with pytest.raises(ValueError, match="A is not positive definite"):
        history_bound(1.0, matrix - 5 * torch.eye(2), torch.ones(2, 1))


@settings(max_examples=200, deadline=None)
@given(problems(), st.floats(-2, 2))
def test_the_history_bound_holds(problem, scale):
    c, keys, _, _, _ = problem
    solver = Ridge(1.0, remembers=True)
    state = solver.prepare(c)
    earlier = 10**scale * torch.randn(len(c), 3, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    q = spectral_norm(gain(solver, state, keys))
    with_history = spectral_norm(gain(solver, solver.remember(state, earlier), keys))
    assert with_history <= history_bound(q, c + keys @ keys.T, earlier) * (1 + 1e-6)


def test_the_history_bound_by_hand():
    """‖Q‖ = 2, A = 4·I, ‖K_p‖² = 9."""
    earlier = torch.tensor([[3.0], [0.0]])
    assert history_bound(2.0, 4 * torch.eye(2), earlier) == pytest.approx(2 * (1 + 9 / 4))


def test_gains_with_history_are_those_of_the_closed_form():
    generator = torch.Generator().manual_seed(3)
    c, keys = (
        torch.diag(torch.linspace(0.1, 2, 6, dtype=torch.float64)),
        torch.randn(6, 5, generator=generator).double(),
    )
    rows = gains_with_history(keys, c, 2)
    assert len(rows) == 2  # the fifth key is no batch of its own
    new, past = keys[:, 2:4], torch.cat([keys[:, :2], keys[:, 4:]], 1)
    assert rows[1]["norm_q"] == pytest.approx(spectral_norm(new.T @ torch.linalg.inv(c + new @ new.T)))
    after = spectral_norm(new.T @ torch.linalg.inv(c + past @ past.T + new @ new.T))
    assert rows[1]["norm_q_with_history"] == pytest.approx(after) and after <= rows[1]["history_bound"]
    assert rows[1]["ratio"] == pytest.approx(after / rows[1]["norm_q"])
    assert rows[1]["norm_history"] == pytest.approx(spectral_norm(past @ past.T))


def test_earlier_keys_can_raise_a_gain_all_the_same():
    """‖Q_p‖ ≤ ‖Q‖ is not a theorem: inverses fall in the Loewner order, their squares need not."""
    c = torch.diag(torch.tensor([1.0, 1e-4], dtype=torch.float64))
    keys = torch.tensor([[1.0], [0.0]], dtype=torch.float64)
    earlier = torch.tensor([[1.0], [0.01]], dtype=torch.float64)
    solver = Ridge(1.0, remembers=True)
    state = solver.prepare(c)
    before, after = (spectral_norm(gain(solver, s, keys)) for s in (state, solver.remember(state, earlier)))
    assert after > 2 * before


@settings(max_examples=100, deadline=None)
@given(problems(), st.floats(-1, 2))
def test_no_share_is_better_than_the_best(problem, other):
    c, keys, direct, last, divisor = problem
    solver = Ridge(1.0)
    q = gain(solver, solver.prepare(c), keys)
    best = error_terms(direct, last, divisor, q).share
    error = lambda a: ((direct - a * last) @ q).norm().item()  # noqa: E731
    assert error(best) <= error(other) * SLACK + 1e-12 * (direct @ q).norm().item()


@pytest.mark.parametrize("shape", [(1, 1), (3, 1), (1, 7), (5, 40), (40, 5), (30, 30), (2, 0)])
@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_the_spectral_norm_is_the_largest_singular_value(shape, scale):
    matrix = scale * torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = torch.linalg.svdvals(matrix).max().item() if matrix.numel() else 0.0
    assert spectral_norm(matrix) == pytest.approx(expected, rel=1e-12)
    assert spectral_norm(torch.zeros(3, 4)) == 0.0


def test_shapes_that_do_not_fit_are_refused():
    r, q = torch.ones(3, 2), torch.ones(2, 5)
    with pytest.raises(ValueError, match=r"at least 1, not 0\.5"):
        weight_shift(r, r, 0.5, q)
    with pytest.raises(ValueError, match=r"\(3, 2\), \(3, 1\) and \(2, 5\)"):
        Norms.of(r, r[:, :1], 2, q).bounds()
    with pytest.raises(ValueError, match=r"\(2, 5\)|\(1, 5\)"):
        error_terms(r, r, 2, q[:1])


def test_a_singular_matrix_has_no_cap_and_no_history_bound():
    singular = torch.diag(torch.tensor([1.0, 0.0]))
    with pytest.raises(ValueError, match="M is not positive definite: its smallest eigenvalue is 0"):
        gain_cap(singular)
    with pytest.raises(ValueError, match="A is not positive definite: its smallest eigenvalue is 0"):
        history_bound(1.0, singular, torch.ones(2, 1))
