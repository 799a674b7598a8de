"""Rules for residuals against what an editor with that rule asks for, and one batch against a sequence."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from bluelib.editing.residuals import DIRECT, DISTRIBUTED, DISTRIBUTED_SQRT, REPLAYED, Weighted
from bluelib.reports.claims import verdicts
from bluelib.studies.residuals import measure_residuals, residual_contributions
from bluelib.studies.rules import by_rule, compare_rules, one_time_and_sequence
from tests.support.small import PREFIXES, RECORDS, editor

REQUESTS = [record.request for record in RECORDS]
EVEN = Weighted("weighted", direct=False, power=0.0, weights=(1 / 3, 1 / 3, 1 / 3))


@pytest.fixture
def measured(any_model, small_world, monkeypatch):
    monkeypatch.setattr("bluelib.studies.residuals.context_prefixes", lambda *_: PREFIXES)
    method = editor()
    assert len(method.layers) == 3
    return any_model, method, measure_residuals(any_model, REQUESTS, method.layers, method)


@pytest.mark.parametrize("rule", [DISTRIBUTED, DISTRIBUTED_SQRT, DIRECT, REPLAYED, EVEN], ids=lambda rule: rule.name)
def test_a_rule_gives_the_first_layer_what_its_editor_does(measured, rule):
    """The first step of an edit is made on the unedited model, as the comparison is."""
    model, method, found = measured
    ruled = replace(method, residual=rule)
    with model.preserved(method.layers):
        step = next(ruled.steps(model, REQUESTS, ruled.prepare(model)))
    first = method.layers[0]
    torch.testing.assert_close(by_rule(model, REQUESTS, found, rule)[first], step.missing / step.divisor)


def test_a_replayed_residual_is_what_the_target_at_the_first_layer_leaves(measured):
    """With nothing added at the first layer nothing is left at the later ones."""
    model, _, found = measured
    first = found.layers[0]
    still = replace(found.targets[first], values=found.targets[first].values - found.direct(first))
    unmoved = replace(found, targets={**found.targets, first: still})
    for layer, residual in by_rule(model, REQUESTS, unmoved, REPLAYED).items():
        if layer != first:
            assert residual.abs().max() < 1e-4 < by_rule(model, REQUESTS, found, REPLAYED)[layer].abs().max()


def test_rules_are_compared_with_the_direct_residual(measured):
    model, _, found = measured
    table = compare_rules(model, REQUESTS, found, {"memit": DISTRIBUTED, "even": EVEN, "memit_blue": DIRECT})
    blue = table[table.editor == "memit_blue"]
    assert blue.cosine.to_numpy() == pytest.approx(1) and blue.length.to_numpy() == pytest.approx(1)
    memit, even = (table[table.editor == name].drop(columns="editor").to_numpy() for name in ("memit", "even"))
    assert memit == pytest.approx(even), "equal weights are MEMIT's shares"
    contributed = residual_contributions(model, REQUESTS, found)
    of_direct = contributed[contributed.residual == "direct"].contribution.to_numpy()
    assert blue.contribution.to_numpy() == pytest.approx(of_direct)


def test_a_sequence_that_remembers_is_one_batch_and_one_that_forgets_is_not():
    generator = torch.Generator().manual_seed(0)
    keys, residuals = (torch.randn(size, 12, generator=generator, dtype=torch.float64) for size in (9, 5))
    matrix = torch.eye(9, dtype=torch.float64) * 0.3
    table = one_time_and_sequence(keys, residuals, matrix, [1, 4, 12])
    assert (table[table.history].distance < 1e-12).all()
    forgetful = table[~table.history].set_index("edits").distance
    assert forgetful[12] < 1e-12 and forgetful[4] > 0.01 and forgetful[1] > 0.01


def gaps(*, fe: float, cake: float) -> dict:
    rows = [
        {"rule": rule, "layer": layer, "measure": measure, "mean": gap, "low": gap - 0.1, "high": gap + 0.1}
        for rule, gap in (("replayed", fe), ("weighted", cake))
        for layer in (4, 5, 6)
        for measure in ("cosine", "length", "contribution")
    ]
    return {"gaps": rows}


def test_claims_about_rules_can_fail():
    found = [verdict.verdict for verdict in verdicts("rules", gaps(fe=0.3, cake=0.05))]
    assert found == ["reproduced", "reproduced", "not seen here"]
    found = [verdict.verdict for verdict in verdicts("rules", gaps(fe=-0.3, cake=-0.2))]
    assert found == ["reversed here"] * 3
