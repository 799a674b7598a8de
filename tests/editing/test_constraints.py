"""RECT and PRUNE on matrices small enough to work out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from bluelib.editing.constraints import Constraint, Damp, Sparsify

WEIGHT = torch.tensor([[1.0, 2.0, 4.0], [-8.0, 1.0, 0.5]])
DELTA = torch.tensor([[0.5, 0.4, -3.0], [4.0, 0.1, -0.3]])  # relative: .5 .2 .75 / .5 .1 .6


def test_rect_keeps_the_largest_relative_changes():
    kept = Sparsify(keep=1 / 3).batch(DELTA, WEIGHT)
    assert kept.tolist() == [[0.0, 0.0, -3.0], [0.0, 0.0, pytest.approx(-0.3)]]
    assert torch.equal(Sparsify(keep=1.0).batch(DELTA, WEIGHT), DELTA)
    assert torch.equal(Sparsify(keep=1 / 3).total(DELTA, WEIGHT), DELTA)


def test_rect_can_act_once_at_the_end():
    late = Sparsify(keep=1 / 3, at_end=True)
    assert late.once and not Sparsify().once
    assert torch.equal(late.batch(DELTA, WEIGHT), DELTA)
    assert (late.total(DELTA, WEIGHT) != 0).sum() == 2


def test_rect_counts_a_change_of_a_zero_weight_as_the_largest():
    kept = Sparsify(keep=0.5).batch(torch.tensor([[1e-6, 5.0]]), torch.tensor([[0.0, 1.0]]))
    assert kept.tolist() == [[pytest.approx(1e-6), 0.0]]


def test_rect_counts_no_change_of_a_zero_weight_as_none():
    kept = Sparsify(keep=0.5).batch(torch.tensor([[0.0, 0.5]]), torch.tensor([[0.0, 1.0]]))
    assert kept.tolist() == [[0.0, 0.5]]


def test_prune_damps_singular_values_above_the_weights_own():
    weight = torch.diag(torch.tensor([2.0, 1.0, 0.5])).double()
    delta = torch.diag(torch.tensor([10.0, 2.0, 0.1])).double()
    expected = torch.diag(torch.tensor([math.log(10) - math.log(2) + 2, 2.0, 0.1])).double()
    torch.testing.assert_close(Damp(False).total(delta, weight), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(Damp(twice=True).total(delta, weight), expected + delta, rtol=1e-6, atol=1e-6)
    assert torch.equal(Damp().batch(delta, weight), delta) and Damp().once
    torch.testing.assert_close(Damp(False).total(delta[:2], weight[:2]), expected[:2], rtol=1e-6, atol=1e-6)
    rotation = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0)).double()).Q
    torch.testing.assert_close(Damp(False).total(rotation @ delta, weight), rotation @ expected, rtol=1e-6, atol=1e-6)


def test_no_constraint_changes_nothing():
    none = Constraint()
    assert none.batch(DELTA, WEIGHT) is DELTA and none.total(DELTA, WEIGHT) is DELTA and not none.once
    for share in (0, 1.5):
        with pytest.raises(ValueError, match=rf"keep must be .*, not {share}"):
            Sparsify(keep=share)
