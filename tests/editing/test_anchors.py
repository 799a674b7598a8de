"""Norm anchors: the length of targets after their optimisation."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from bluelib import get_editor, load_dataset
from bluelib.editing.anchors import anchored, norm_anchor
from bluelib.editing.targets import TargetOptions, optimise_targets
from bluelib.models.representations import subject_hidden
from tests.support.small import LLAMA_FIRST, PREFIXES, editor

OPTIONS = TargetOptions(steps=4, learning_rate=0.5)
REQUESTS = [record.request for record in load_dataset("pocket-counterfact", split="tune", limit=4)]


def stars(model, values, layer=2):
    """v* of targets: what the MLP would have to put out for them."""
    rest = subject_hidden(model, REQUESTS, layer) - subject_hidden(model, REQUESTS, layer, "mlp")
    return values - rest


def test_targets_get_one_length_in_their_own_direction(any_model):
    found = optimise_targets(any_model, REQUESTS, 2, PREFIXES, OPTIONS)
    before = stars(any_model, found.values)
    length = before.norm(dim=0).max().item()
    after = stars(any_model, anchored(any_model, REQUESTS, 2, found, length).values)
    torch.testing.assert_close(after.norm(dim=0), torch.full((4,), length), rtol=1e-4, atol=0)
    torch.testing.assert_close(torch.cosine_similarity(after, before, dim=0), torch.ones(4), rtol=1e-5, atol=0)


def test_a_request_with_twice_the_length_is_not_installed(any_model, caplog):
    found = optimise_targets(any_model, REQUESTS, 2, PREFIXES, OPTIONS)
    norms = stars(any_model, found.values).norm(dim=0)
    middle = norms.sort().values[1:3].mean().item() / 2  # two of four are longer than twice that
    values = anchored(any_model, REQUESTS, 2, found, middle).values
    out = norms > 2 * middle
    assert out.sum() == 2 and caplog.text.count("v* is over twice its norm anchor, nothing is installed") == 1
    torch.testing.assert_close(values[:, out], found.hidden[:, out])
    assert not torch.equal(values[:, ~out], found.hidden[:, ~out])


def test_the_anchor_is_the_mean_without_the_longest(any_model, monkeypatch):
    monkeypatch.setattr("bluelib.editing.anchors.DROPPED", 0.3)  # of four, one
    found = optimise_targets(any_model, REQUESTS, 2, PREFIXES, OPTIONS)
    expected = stars(any_model, found.values).norm(dim=0).sort().values[:3].mean().item()
    assert norm_anchor(any_model, REQUESTS, 2, PREFIXES, OPTIONS) == pytest.approx(expected, rel=1e-4)
    with pytest.raises(ValueError, match="there are no requests to measure a norm anchor on"):
        norm_anchor(any_model, [], 2, PREFIXES, OPTIONS)
    with any_model.preserved([2]):
        any_model.weight(2).add_(0.01)
        with pytest.raises(ValueError, match="norm anchors"):
            norm_anchor(any_model, REQUESTS, 2, PREFIXES, OPTIONS)


def test_of_a_hundred_the_five_longest_do_not_count(any_model, monkeypatch):
    lengths = torch.arange(1.0, 101.0)
    star = torch.zeros(3, 100)
    star[0] = lengths
    monkeypatch.setattr("bluelib.editing.anchors.optimise_targets", lambda *args: None)
    monkeypatch.setattr("bluelib.editing.anchors._stars", lambda *args: (None, star))
    assert norm_anchor(any_model, REQUESTS * 25, 2, PREFIXES, OPTIONS) == pytest.approx(lengths[:95].mean().item())


@LLAMA_FIRST
def test_an_editor_with_an_anchor_aims_at_anchored_targets(any_model):
    plain = editor(layers=(1, 2))
    method = replace(plain, anchor=1.5)
    (first, *_) = method.steps(any_model, REQUESTS, method.prepare(any_model))
    own = optimise_targets(any_model, REQUESTS, 2, first_prefixes(any_model, plain), plain.targets)
    torch.testing.assert_close(first.targets.values, anchored(any_model, REQUESTS, 2, own, 1.5).values)
    named = get_editor("alphaedit_nas", any_model, layers=[1, 2], nullspace_threshold=0.5, l2=1.0, anchor=1.5)
    assert named.anchor == 1.5 and get_editor("memit", any_model, layers=[1], mom2_update_weight=3.0).anchor is None


def first_prefixes(model, method):
    return method.prepare(model).prefixes


def test_anchors_that_cannot_be_used():
    with pytest.raises(ValueError, match="anchor must be"):
        replace(editor(), anchor=-1.0)
    with pytest.raises(ValueError, match="norm anchors are for targets of blocks, not of mlp"):
        replace(editor(), targets=TargetOptions(component="mlp"), anchor=1.0)
