"""Matrix products in bfloat16: where they are made, what they come to, and what they do to targets."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from bluelib.editing.matmuls import matmuls
from bluelib.editing.targets import TargetOptions, optimise_targets
from tests.support.small import ARCHITECTURES, PREFIXES, RECORDS, random_model

REQUESTS = [record.request for record in RECORDS]
OPTIONS = TargetOptions(steps=6, learning_rate=0.1)


def rounded(value):
    return value.bfloat16().double()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", [torch.nn.Linear, Conv1D])
def test_a_product_is_that_of_rounded_factors_and_so_is_its_gradient(kind, bias):
    torch.manual_seed(0)
    layer = kind(64, 32, bias=bias) if kind is torch.nn.Linear else Conv1D(32, 64)
    layer.requires_grad_(False)
    if kind is Conv1D:
        layer.bias.normal_()
    x, gradient = torch.randn(5, 7, 64, requires_grad=True), torch.randn(5, 7, 32)
    with matmuls("bfloat16"):
        y = layer(x)
        y.backward(gradient)
    weight = layer.weight.T if kind is torch.nn.Linear else layer.weight
    exact = rounded(x) @ rounded(weight)
    added = 0 if layer.bias is None else layer.bias
    # one rounding to bfloat16, of 8 bits, after a sum in float32
    torch.testing.assert_close(y.double() - added, exact, rtol=2**-8, atol=1e-4)
    torch.testing.assert_close(x.grad.double(), rounded(gradient) @ rounded(weight).T, rtol=2**-8, atol=1e-4)
    assert y.dtype == x.grad.dtype == torch.float32 and not torch.equal(y, layer(x))


def test_other_precisions_and_other_functions_are_left_alone():
    x, weight = torch.randn(3, 8, dtype=torch.float64), torch.randn(4, 8, dtype=torch.float64)
    with matmuls("bfloat16"):
        assert torch.equal(functional.linear(x, weight), x @ weight.T)
        low = functional.linear(x.bfloat16(), weight.bfloat16())
    assert torch.equal(low, functional.linear(x.bfloat16(), weight.bfloat16()))
    with matmuls("model"):
        assert torch.equal(functional.linear(x.float(), weight.float()), x.float() @ weight.float().T)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_targets_come_out_nearly_the_same_and_h_exactly(architecture):
    model = random_model(architecture)
    model.hf_model.float()
    exact = optimise_targets(model, REQUESTS, 1, PREFIXES, OPTIONS)
    found = optimise_targets(model, REQUESTS, 1, PREFIXES, replace(OPTIONS, matmuls="bfloat16"))
    assert torch.equal(found.hidden, exact.hidden)
    assert not torch.equal(found.values, exact.values)
    assert functional.cosine_similarity(found.deltas, exact.deltas, dim=0).min() > 0.9
    torch.testing.assert_close(found.loss, exact.loss, rtol=0.05, atol=0.05)


def test_another_kind_is_refused():
    with pytest.raises(ValueError, match="matmuls must be model or bfloat16, not 'float16'"):
        TargetOptions(matmuls="float16")
