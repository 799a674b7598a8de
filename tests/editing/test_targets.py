"""The batched target optimisation against the plain one of ``benchmarks``: one request, the whole model."""

from __future__ import annotations

from dataclasses import replace
from inspect import signature

import pytest
import torch

from benchmarks.plain import plain_memit, plain_target
from bluelib.editing.editor import Editor
from bluelib.editing.residuals import DISTRIBUTED
from bluelib.editing.second_moments import second_moments
from bluelib.editing.solvers import Ridge
from bluelib.editing.targets import (
    BUDGETS,
    TargetError,
    TargetOptions,
    default_token_budget,
    optimise_targets,
)
from bluelib.io.timing import Timer
from bluelib.models.prompts import Request

REQUESTS = [
    Request("The mother tongue of {} is", "Ilvane Quillbrook", "Swedish"),
    Request("{} plays the", "Zoë D'Astrelle", "bassoon"),
    Request("Which country is {} a citizen of?", "Torrin Vantorre", "East Timor"),
    Request("The birth of {}", "Maelis Ashby-Quorn", "Rio de Janeiro"),
]
PREFIXES = ("", "The main product of Badgerwick is tea. ", "In Paris, people laugh. ")
OPTIONS = TargetOptions(steps=6, learning_rate=0.3, kl_factor=0.5, clamp=0.9, early_stop=0.0)


@pytest.mark.parametrize("component", ["block", "mlp"])
@pytest.mark.parametrize("layer", [0, 2, 3])
def test_batched_targets_equal_plain_ones(any_model, layer, component):
    options = replace(OPTIONS, component=component)
    found = optimise_targets(any_model, REQUESTS, layer, PREFIXES, options)
    for i, request in enumerate(REQUESTS):
        target, steps, loss = plain_target(any_model, request, layer, PREFIXES, options)
        torch.testing.assert_close(found.values[:, i], target, rtol=1e-4, atol=1e-4)
        assert found.steps[i] == steps
        assert found.loss[i].item() == pytest.approx(loss, rel=1e-4)


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_the_cache_is_handed_over_by_the_name_that_the_models_code_has_for_it(any_model, name, monkeypatch):
    """Transformers renamed the argument in 5.24, and warns of the old name."""
    kind = type(any_model.hf_model.base_model)
    forward = kind.forward
    own = "cache" if "cache" in signature(forward).parameters else "past_key_values"
    if name == "cache":

        def renamed(self, input_ids=None, attention_mask=None, use_cache=None, cache=None):
            return forward(self, input_ids, attention_mask=attention_mask, use_cache=use_cache, **{own: cache})
    else:

        def renamed(self, input_ids=None, attention_mask=None, use_cache=None, past_key_values=None):
            return forward(
                self, input_ids, attention_mask=attention_mask, use_cache=use_cache, **{own: past_key_values}
            )

    expected = optimise_targets(any_model, REQUESTS, 1, PREFIXES, OPTIONS)
    monkeypatch.setattr(kind, "forward", renamed)
    assert torch.equal(optimise_targets(any_model, REQUESTS, 1, PREFIXES, OPTIONS).values, expected.values)


def test_early_stop_is_per_request_and_leaves_the_others_alone(any_model):
    """With a stop between the requests' losses some finish early; the rest are as without a stop."""
    free = optimise_targets(any_model, REQUESTS, 1, PREFIXES, OPTIONS)
    stop = free.loss.sort().values[1].item() + 1e-3
    options = TargetOptions(steps=6, learning_rate=0.3, kl_factor=0.5, clamp=0.9, early_stop=stop)
    found = optimise_targets(any_model, REQUESTS, 1, PREFIXES, options)
    for i, request in enumerate(REQUESTS):
        target, steps, _ = plain_target(any_model, request, 1, PREFIXES, options)
        assert found.steps[i] == steps
        torch.testing.assert_close(found.values[:, i], target, rtol=1e-4, atol=1e-4)
    assert (found.loss < stop).sum() >= 1


def test_neither_micro_batches_nor_packing_change_the_result(any_model, monkeypatch):
    whole = optimise_targets(any_model, REQUESTS, 1, PREFIXES, OPTIONS)
    parts = optimise_targets(any_model, REQUESTS, 1, PREFIXES, OPTIONS, token_budget=1)
    torch.testing.assert_close(whole.values, parts.values, rtol=1e-5, atol=1e-5)
    for widths in ((1.0,), (100.0,)):  # hardly a line with two rows, and one for all
        monkeypatch.setattr("bluelib.editing.packing.WIDTHS", widths)
        found = optimise_targets(any_model, REQUESTS, 1, PREFIXES, OPTIONS)
        torch.testing.assert_close(whole.values, found.values, rtol=1e-5, atol=1e-5)


def test_a_micro_batch_is_bounded_by_speed_and_by_memory(any_model, monkeypatch):
    """By the class of the device, and not by what happens to be free there."""
    most, _ = BUDGETS["cpu"]
    assert default_token_budget(any_model) == most == 8192
    monkeypatch.setitem(BUDGETS, "cpu", (most, 50_000_000))
    budget = default_token_budget(any_model)
    assert 1 < budget < 2000 and budget.bit_count() == 1
    monkeypatch.setitem(BUDGETS, "cpu", (most, 100_000_000))
    assert default_token_budget(any_model) == budget * 2
    monkeypatch.setitem(BUDGETS, "cpu", (most, 0))
    assert default_token_budget(any_model) == 1


def test_delta_stays_within_its_clamp(any_model):
    options = TargetOptions(steps=8, learning_rate=5.0, clamp=0.2)
    found = optimise_targets(any_model, REQUESTS, 1, PREFIXES, options)
    assert (found.deltas.norm(dim=0) <= 0.2 * found.hidden.norm(dim=0) * (1 + 1e-5)).all()


def test_targets_are_optimised_where_gradients_are_off(any_model):
    expected = optimise_targets(any_model, REQUESTS, 1, PREFIXES, OPTIONS)
    with torch.no_grad():
        assert torch.equal(optimise_targets(any_model, REQUESTS, 1, PREFIXES, OPTIONS).values, expected.values)
        assert not torch.is_grad_enabled()


def test_a_loss_that_is_not_finite_names_the_request(any_model):
    weight = any_model.weight(3)
    original = weight.clone()
    weight.fill_(float("nan"))
    try:
        with pytest.raises(TargetError, match=r"'The mother tongue of Ilvane Quillbrook is' → 'Swedish' at layer 1"):
            optimise_targets(any_model, REQUESTS[:1], 1, PREFIXES, OPTIONS)
    finally:
        weight.copy_(original)


def test_whole_edits_equal_plain_ones(any_model, tmp_path, monkeypatch):
    """What the benchmark compares does the same: MEMIT by the library and from the normal equations."""
    monkeypatch.setenv("BLUELIB_CACHE", str(tmp_path))
    monkeypatch.setattr("bluelib.editing.editor.context_prefixes", lambda *_: PREFIXES)
    editor = Editor((0, 2), DISTRIBUTED, Ridge(50.0), targets=OPTIONS, corpus="pocket", tokens=3000)
    state = editor.prepare(any_model)
    with any_model.preserved((0, 2)):
        editor.edit(any_model, REQUESTS, state, Timer())
        ours = {layer: any_model.weight(layer).clone() for layer in (0, 2)}
    moments = {layer: m.matrix for layer, m in second_moments(any_model, (0, 2), tokens=3000).items()}
    plain_memit(any_model, REQUESTS, (0, 2), PREFIXES, OPTIONS, 50.0, moments)
    for layer, weight in ours.items():
        torch.testing.assert_close(any_model.weight(layer), weight, rtol=1e-4, atol=1e-4)
