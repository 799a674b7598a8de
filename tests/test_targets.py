"""The batched target optimisation against the plain one of ``benchmarks``: one request, the whole model."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks.plain import plain_target
from bluelib.prompts import Request
from bluelib.targets import (
    MOST_TOKENS,
    OVERHEAD,
    TargetError,
    TargetOptions,
    _by_suffix,
    default_token_budget,
    optimise_targets,
)

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


def test_neither_micro_batches_nor_groups_change_the_result(any_model, monkeypatch):
    whole = optimise_targets(any_model, REQUESTS, 1, PREFIXES, OPTIONS)
    parts = optimise_targets(any_model, REQUESTS, 1, PREFIXES, OPTIONS, token_budget=1)
    torch.testing.assert_close(whole.values, parts.values, rtol=1e-5, atol=1e-5)
    for overhead in (0, 10**6):  # a group for each length, and one for all
        monkeypatch.setattr("bluelib.targets.OVERHEAD", (overhead, overhead))
        found = optimise_targets(any_model, REQUESTS, 1, PREFIXES, OPTIONS)
        torch.testing.assert_close(whole.values, found.values, rtol=1e-5, atol=1e-5)


def test_a_micro_batch_fits_into_the_free_memory(any_model, monkeypatch):
    assert default_token_budget(any_model) == MOST_TOKENS[0]
    free = {"SC_AVPHYS_PAGES": 1000, "SC_PAGE_SIZE": 4096}
    monkeypatch.setattr("os.sysconf", free.get)
    budget = default_token_budget(any_model)
    assert 1 < budget < 1000
    free["SC_AVPHYS_PAGES"] = 2000
    assert budget * 2 <= default_token_budget(any_model) <= budget * 2 + 1
    free["SC_AVPHYS_PAGES"] = 0
    assert default_token_budget(any_model) == 1


def test_rows_are_grouped_by_length():
    assert _by_suffix([3, 5, 3, 9], overhead=0) == [[3], [1], [0, 2]]
    assert _by_suffix([3, 5, 3, 9], overhead=5) == [[3, 1], [0, 2]]
    assert _by_suffix([3, 5, 3, 9], overhead=100) == [[3, 1, 0, 2]]
    assert OVERHEAD[0] < OVERHEAD[1]


def test_delta_stays_within_its_clamp(any_model):
    options = TargetOptions(steps=8, learning_rate=5.0, clamp=0.2)
    found = optimise_targets(any_model, REQUESTS, 1, PREFIXES, options)
    assert (found.deltas.norm(dim=0) <= 0.2 * found.hidden.norm(dim=0) * (1 + 1e-5)).all()


def test_a_loss_that_is_not_finite_names_the_request(any_model):
    weight = any_model.weight(3)
    original = weight.clone()
    weight.fill_(float("nan"))
    try:
        with pytest.raises(TargetError, match=r"'The mother tongue of Ilvane Quillbrook is' → 'Swedish' at layer 1"):
            optimise_targets(any_model, REQUESTS[:1], 1, PREFIXES, OPTIONS)
    finally:
        weight.copy_(original)
