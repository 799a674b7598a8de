from __future__ import annotations

import pytest
import torch
from torch import nn

from bluelib.models.tracing import trace


class TupleBlock(nn.Module):
    def forward(self, x):
        return (x * 2, "attention")


class TensorBlock(nn.Module):
    def forward(self, x):
        return x * 2


@pytest.mark.parametrize("block", [TensorBlock(), TupleBlock()], ids=["tensor", "tuple"])
def test_reads_and_edits_outputs_of_both_kinds(block):
    x = torch.ones(2, 3)
    with trace(outputs={"b": block}) as seen:
        plain = block(x)
    assert torch.equal(seen["b"], 2 * x)
    with trace(outputs={"b": block}, edit=lambda key, h: h + 1) as seen:
        edited = block(x)
    assert type(edited) is type(plain)
    hidden = edited[0] if isinstance(edited, tuple) else edited
    assert torch.equal(hidden, 2 * x + 1)
    assert torch.equal(seen["b"], 2 * x + 1)
    if isinstance(edited, tuple):
        assert edited[1] == "attention"
    assert not block._forward_hooks


def test_hooks_are_gone_after_an_error():
    block = TensorBlock()
    with pytest.raises(RuntimeError, match="on purpose"), trace(inputs={"b": block}):
        raise RuntimeError("on purpose")
    assert not block._forward_pre_hooks


def test_stop_ends_the_forward_pass_at_the_last_module_wanted():
    calls = []
    first, second = TensorBlock(), TensorBlock()
    second.register_forward_hook(lambda *_: calls.append("second"))
    with trace(outputs={1: first}, stop=True) as seen:
        second(first(torch.ones(1)))
    assert not calls
    assert torch.equal(seen[1], torch.full((1,), 2.0))


def test_real_blocks_return_what_their_architecture_does(any_model):
    """An edit at a block changes the logits, whether its output is a tensor or a tuple, and leaves nothing behind."""
    ids = torch.tensor([[5, 6, 7, 8]])
    before = any_model.hf_model(input_ids=ids).logits
    with trace(outputs={0: any_model.blocks[1]}, edit=lambda key, h: h + torch.arange(h.shape[-1]) / 50):
        during = any_model.hf_model(input_ids=ids).logits
    after = any_model.hf_model(input_ids=ids).logits
    assert not torch.allclose(before, during)
    assert torch.equal(before, after)
