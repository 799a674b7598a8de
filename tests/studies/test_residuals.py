"""The measurements behind BLUE against the same done by hand, and that they leave the model alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from bluelib.editing.constraints import Constraint, Damp, Project, Sparsify
from bluelib.editing.residuals import DIRECT
from bluelib.editing.sequence import edit_sequence
from bluelib.editing.solvers import Ridge
from bluelib.editing.targets import optimise_targets
from bluelib.io.timing import Timer
from bluelib.metrics import evaluate
from bluelib.metrics.intervals import growth_exponent, interval, intervals_by, less
from bluelib.models.model import Model
from bluelib.models.prompts import locate
from bluelib.models.scoring import score_targets
from bluelib.models.tracing import trace
from bluelib.studies.growth import (
    batch_sizes,
    error_by_batch_size,
    error_by_distance,
    scores_along_sequence,
    scores_by_batch_size,
    sequence_against_once,
    shifts_along_sequence,
    shifts_of_batch,
    violations,
    weight_shifts,
)
from bluelib.studies.residuals import (
    compare_residuals,
    measure_residuals,
    residual_contributions,
    single_layer_scores,
    steps_left,
)
from bluelib.studies.theory import BOUNDS, spectral_norm
from tests.support.small import PREFIXES, RECORDS, editor, random_model

REQUESTS = [record.request for record in RECORDS]


@pytest.fixture
def world(any_model, small_world, monkeypatch):
    monkeypatch.setattr("bluelib.studies.residuals.context_prefixes", lambda *_: PREFIXES)
    return any_model, editor()


@pytest.fixture
def unchanged(any_model):
    before = [any_model.weight(layer).clone() for layer in range(any_model.n_layers)]
    yield
    for layer, weight in enumerate(before):
        assert torch.equal(any_model.weight(layer), weight)


def test_errors_are_differences_of_the_solver_s_updates(world, unchanged):
    model, method = world
    found = measure_residuals(model, REQUESTS, method.layers, method)
    states = method.prepare(model).solvers
    rows = weight_shifts(found, method.solver, states, [[0, 1, 2], [4]])
    assert len(rows) == 2 * 6 and (rows.error[rows["layer"] == rows["last"]] == 0).all()
    row = rows[(rows.batch == 0) & (rows.layer == 0) & (rows["last"] == 2)].iloc[0]
    keys = found.keys[0][:, :3]
    updates = [method.solver.solve(states[0], keys, r[:, :3]) for r in (found.direct(0), found.distributed(0))]
    assert row.error == pytest.approx(spectral_norm(updates[0] - updates[1]), rel=1e-6)
    assert row.relative == pytest.approx(row.error / spectral_norm(updates[0]), rel=1e-6)
    assert row.distance == 2 and (rows[list(BOUNDS)].diff(axis=1).iloc[:, 1:] >= -1e-9).all().all()
    total = (updates[0] - updates[1]).square().sum().item()
    assert row.deviation + row.division + row.cross == pytest.approx(total, rel=1e-6)


def test_a_violated_bound_is_counted(world):
    model, method = world
    rows = weight_shifts(
        measure_residuals(model, REQUESTS, (0, 1), method), method.solver, method.prepare(model).solvers, [[0, 1]]
    )
    assert violations(rows) == 0
    assert violations(rows.assign(error=rows.error + rows.paper + 1)) == len(rows)
    assert violations(rows.assign(tight=2 * rows.paper + 1)) == len(rows)
    assert violations(rows.assign(error=np.nan)) == len(rows)


def test_errors_by_distance_and_batch_size_are_those_of_their_cells(world):
    model, method = world
    found, states = measure_residuals(model, REQUESTS, (0, 1, 2), method), method.prepare(model).solvers
    distances = error_by_distance(found, method.solver, states).set_index(["request", "distance"]).relative
    cells = weight_shifts(found, method.solver, states, [[3]]).set_index(["layer", "last"]).relative
    assert distances[3, 1] == pytest.approx((cells[0, 1] + cells[1, 2]) / 2) and distances[3, 0] == 0
    sizes = error_by_batch_size(found, method.solver, states, [[4, 0], [2, 1]])
    assert list(zip(sizes.group, sizes.edits, strict=True)) == [(0, 1), (0, 2), (1, 1), (1, 2), (-1, 4)]
    whole = weight_shifts(found, method.solver, states, [[4, 0, 2, 1], [2]]).query("layer == 0 and last == 2")
    assert sizes.error.iloc[[4, 2]].tolist() == pytest.approx(whole.error.tolist())


def test_residuals_are_compared_per_request(world, unchanged):
    model, method = world
    found = measure_residuals(model, REQUESTS, (1, 2), method)
    rows = compare_residuals(found).set_index(["layer", "request"])
    a, b = found.direct(1)[:, 3], found.direct(2)[:, 3]
    assert rows.cosine[1, 3] == pytest.approx((a @ b / (a.norm() * b.norm())).item(), rel=1e-5)
    assert rows.deviation[1, 3] == pytest.approx((a - b).norm().item(), rel=1e-5)
    assert rows.cosine[2].min() == pytest.approx(1.0) and (rows.deviation[2] == 0).all()


def test_a_contribution_is_what_the_residual_adds_to_the_hidden_state(world, unchanged):
    model, method = world
    found = measure_residuals(model, REQUESTS, (0, 1, 2), method)
    rows = (
        residual_contributions(model, REQUESTS, found)
        .set_index(["layer", "residual", "request"])
        .contribution.sort_index()
    )
    request = REQUESTS[2]
    at = locate(model.tokenizer, request.prompt, request.subject).subject_last
    pairs = [(request.text, request.target)]
    before = np.exp(score_targets(model, pairs)[0].log_prob)

    def add(key, hidden):
        hidden = hidden.clone()
        hidden[:, at] += found.direct(2)[:, 2] / 2
        return hidden

    with trace(outputs={1: model.blocks[1]}, edit=add):
        after = np.exp(score_targets(model, pairs)[0].log_prob)
    assert rows[1, "distributed", 2] == pytest.approx(after - before, rel=1e-4, abs=1e-9)
    assert (rows[2, "direct"] == rows[2, "distributed"]).all()
    assert rows.xs("direct", level="residual").mean() > 0  # optimised for it


def test_a_batch_is_edited_as_the_editor_does_and_the_error_is_measured_before_each_update(world):
    model, method = world
    state = method.prepare(model)
    before = {layer: model.weight(layer).clone() for layer in method.layers}
    result = method.edit(model, REQUESTS, state, Timer())
    expected = {layer: model.weight(layer).clone() for layer in method.layers}
    for layer in method.layers:
        model.weight(layer).copy_(before[layer])
    measured = shifts_of_batch(model, REQUESTS, method, state)
    rows = [(m.row, m.error) for m in measured]
    for layer in method.layers:
        torch.testing.assert_close(model.weight(layer), expected[layer])
    assert [row["layer"] for row, _ in rows] == [0, 1, 2]
    for row, error in rows:
        assert row["error"] == pytest.approx(spectral_norm(error))
        assert row["error"] <= row["residual"] * (1 + 1e-9)
    # at the first layer nothing has been updated yet: the direct update less the editor's own is the error
    for layer in method.layers:
        model.weight(layer).copy_(before[layer])
    found = measure_residuals(model, REQUESTS, (0,), method)
    direct = method.solver.solve(state.solvers[0], found.keys[0], found.direct(0))
    torch.testing.assert_close(rows[0][1], direct - result.updates[0].double(), rtol=1e-4, atol=1e-8)


def test_errors_gather_along_a_sequence(world, unchanged):
    model, _ = world
    method = editor(Ridge(50.0, remembers=True))
    originals = {layer: model.weight(layer).clone() for layer in method.layers}
    rows = shifts_along_sequence(model, RECORDS, method, 2, (0, 1))
    assert rows.groupby("batch").layer.apply(list).tolist() == [[0, 1]] * 3
    assert rows.total_edits.tolist() == [2, 2, 4, 4, 5, 5]
    first = rows[rows.layer == 0]
    assert first.total.iloc[0] == pytest.approx(first.error.iloc[0])
    assert (first.total <= first.error.cumsum() * (1 + 1e-9)).all()
    # the keys of earlier batches, as the solver took them in: at layer 1 they depend on the update of layer 0
    state = method.prepare(model)
    kept = [method.edit(model, REQUESTS[:2], state, Timer()).keys]
    method.remember(state, kept[0])
    kept.append(method.edit(model, REQUESTS[2:4], state, Timer()).keys)
    for layer in (0, 1):
        history = rows[rows.layer == layer].norm_history.tolist()
        expected = [0.0, spectral_norm(kept[0][layer]) ** 2, spectral_norm(torch.cat([k[layer] for k in kept], 1)) ** 2]
        assert history == pytest.approx(expected, rel=1e-5)
    for layer in method.layers:
        model.weight(layer).copy_(originals[layer])


def test_steps_left_fall_once_a_layer_has_been_updated(world, unchanged):
    model, method = world
    method = replace(method, targets=replace(method.targets, steps=12, early_stop=6.0))
    rows = steps_left(model, REQUESTS, method)
    assert rows.groupby("layer").request.count().tolist() == [5, 5, 5]
    # by hand: the first layer's update, then what the second still needs
    with model.preserved((0,)):
        found = measure_residuals(model, REQUESTS, (0,), method)
        update = method.solver.solve(method.prepare(model).solvers[0], found.keys[0], found.direct(0))
        model.weight(0).add_(update)
        second = optimise_targets(model, REQUESTS, 1, PREFIXES, method.targets)
    assert rows[rows.layer == 0].steps.tolist() == (found.targets[0].steps - 1).tolist()
    assert rows[rows.layer == 1].steps.tolist() == (second.steps - 1).tolist()
    assert rows[rows.layer == 0].steps.sum() > rows[rows.layer == 1].steps.sum()


def test_single_layer_scores_leave_the_model_and_agree_at_the_last_layer(world, unchanged):
    model, method = world
    found = measure_residuals(model, REQUESTS, method.layers, method)
    rows = single_layer_scores(model, RECORDS, found, method, generate=False)
    table = rows.set_index(["layer", "residual", "metric", "record"]).value.sort_index()
    assert (table[2, "direct"] == table[2, "distributed"]).all()
    assert (
        set(rows.layer) == {0, 1, 2}
        and rows[rows.metric == "efficacy"].groupby(["layer", "residual"]).size().eq(5).all()
    )


@pytest.mark.parametrize("constraint", [Constraint(), Sparsify(0.05), Damp(), Project(0.9, 1.0)])
def test_one_layer_with_its_direct_residual_is_an_edit_that_the_editor_can_make(
    world, unchanged, constraint, monkeypatch
):
    model, method = world
    method = replace(method, constraint=constraint)
    found, made, measure = measure_residuals(model, REQUESTS, method.layers, method), [], evaluate

    def evaluated(*given, **how):
        made.append({layer: model.weight(layer).clone() for layer in method.layers})
        return measure(*given, **how)

    monkeypatch.setattr("bluelib.studies.residuals.evaluate", evaluated)
    single_layer_scores(model, RECORDS, found, method, generate=False)
    assert len(made) == 2 * len(method.layers) - 1, "the last layer once"
    for layer, weights in zip(method.layers, [*made[1::2], made[-1]], strict=True):
        alone = replace(method, layers=(layer,), residual=DIRECT)
        with model.preserved((layer,)):
            edit_sequence(model, RECORDS, alone, batch_size=5, progress=False)
            torch.testing.assert_close(weights[layer], model.weight(layer), rtol=1e-3, atol=1e-5)


def test_scores_along_the_axes_leave_the_model(world, unchanged):
    model, method = world
    along = scores_along_sequence(model, RECORDS, method, 2, at=(1, 3))
    assert sorted(along.edits.unique()) == [2, 5]
    assert along[along.metric == "efficacy"].groupby("edits").size().to_dict() == {2: 2, 5: 5}
    with model.preserved(method.layers):
        edit_sequence(model, RECORDS, method, batch_size=2, progress=False)
        expected = evaluate(model, RECORDS, generate=False)
    assert along.query("edits == 5 and metric == 'efficacy'").value.tolist() == expected.values("efficacy")
    with pytest.raises(ValueError, match="makes at most 1 edits together"):
        scores_along_sequence(model, RECORDS, replace(method, max_batch=1), 2, at=(1,))
    by_size = scores_by_batch_size(model, RECORDS, editor(residual=DIRECT, layers=(0, 2)), [1, 4])
    assert by_size[by_size.metric == "efficacy"].groupby("edits").size().to_dict() == {1: 1, 4: 4}
    with pytest.raises(ValueError, match="makes at most 1 edits together, but the batch size is 4"):
        scores_by_batch_size(model, RECORDS, replace(method, max_batch=1), [1, 4])


def test_a_sequence_is_compared_with_one_batch(world, unchanged, monkeypatch):
    """And is the same as one batch of all, with history, where the targets are those of the unedited model, and the key
    is that of the prompt that the residual is measured on."""
    model, _ = world
    method = editor(Ridge(50.0, remembers=True), layers=(1,))
    found = sequence_against_once(model, RECORDS, method, [2, len(RECORDS)])
    assert found.set_index("batch_size").deviation[len(RECORDS)] == 0 < found.deviation.iloc[0]
    requests = [record.request for record in RECORDS]
    fixed = optimise_targets(model, requests, 1, method.prefixes(model), method.targets)

    def same(model, asked, layer, prefixes, options, *, token_budget):
        at = [requests.index(request) for request in asked]
        return replace(fixed, **{name: getattr(fixed, name)[..., at] for name in ("values", "hidden", "steps", "loss")})

    monkeypatch.setattr("bluelib.editing.editor.optimise_targets", same)
    monkeypatch.setattr("bluelib.editing.editor.context_prefixes", lambda model, contexts: ("",))
    assert sequence_against_once(model, RECORDS, method, [2]).deviation.max() < 1e-3  # the weights are float32
    forgets = editor(Ridge(50.0), layers=(1,))
    assert sequence_against_once(model, RECORDS, forgets, [2]).deviation.max() > 1e-2
    with pytest.raises(ValueError, match="makes at most 1 edits together"):
        sequence_against_once(model, RECORDS, replace(method, max_batch=1), [1])


@pytest.mark.parametrize(
    ("most", "sizes"),
    [(1, [1]), (4, [1, 2, 4]), (50, [1, 2, 5, 10, 20, 50]), (800, [1, 2, 5, 10, 20, 50, 100, 200, 500, 800])],
)
def test_batch_sizes(most, sizes):
    assert batch_sizes(most) == sizes


@pytest.mark.parametrize("n", [3, 5, 40])
def test_an_interval_covers_the_mean_as_often_as_it_says(n):
    random = np.random.default_rng(0)
    covered = sum(low <= 2.0 <= high for _, low, high in (interval(random.normal(2, 3, n)) for _ in range(200)))
    assert 0.9 * 200 <= covered <= 0.99 * 200


def test_intervals_of_few_and_of_equal_values():
    assert interval([5.0, 5.0]) == (5.0, 5.0, 5.0) and np.isnan(interval([1.0]).low)
    for few in ([0.0, 1.0], [0.0, 1.0, 4.0], [*range(19)]):
        low, high = stats.ttest_1samp(few, 0).confidence_interval(0.95)
        assert interval(few) == pytest.approx((np.mean(few), low, high))
    many = [0, 1, 1, 0, 1] * 5
    assert interval(many, seed=3) == interval(many, seed=3)
    with pytest.raises(ValueError, match="no values"):
        interval([])


@pytest.mark.parametrize(("n", "symmetric"), [(19, True), (20, False)])
def test_from_20_values_on_an_interval_is_bootstrapped(n, symmetric):
    """Of one success among failures: Student's t puts the low end below zero, where no draw's mean can be."""
    for clusters in (None, range(n)):
        found = interval([100.0] + [0.0] * (n - 1), clusters=clusters)
        assert (found.low < 0) == symmetric
        assert (found.mean - found.low == pytest.approx(found.high - found.mean)) == symmetric
    twice = interval(([100.0] + [0.0] * (n - 1)) * 2, clusters=[*range(n)] * 2)  # 38 and 40 values
    assert (twice.low < 0) == symmetric, "clusters are counted, not values"


def test_intervals_by_groups():
    frame = pd.DataFrame({"a": [1, 1, 2, 2], "b": "x", "v": [0.0, 1.0, 3.0, 3.0]})
    found = intervals_by(frame, ["a", "b"], "v")
    assert found["mean"].tolist() == [0.5, 3.0] and found.n.tolist() == [2, 2] and list(found.b) == ["x", "x"]


def test_a_growth_exponent_is_found_again():
    random = np.random.default_rng(0)
    x = np.array([1, 2, 5, 10, 20, 50])
    frame = pd.concat(
        [pd.DataFrame({"x": x, "y": 3 * x**0.7 * np.exp(random.normal(0, 0.05, 6)), "seed": i}) for i in range(5)]
    )
    found = growth_exponent(frame, "x", "y", "seed")
    assert found.low < 0.7 < found.high and found.high - found.low < 0.1
    with pytest.raises(ValueError, match="at least two groups"):
        growth_exponent(frame[frame.seed == 0], "x", "y", "seed")
    with pytest.raises(ValueError, match="not positive"):
        growth_exponent(frame.assign(y=0.0), "x", "y", "seed")
    with pytest.raises(ValueError, match="one value of x"):
        growth_exponent(frame[frame.x == 1], "x", "y", "seed")


def test_an_editor_that_does_not_distribute_evenly_is_refused(world, unchanged):
    model, method = world
    state = method.prepare(model)
    for other in (replace(method, residual=DIRECT), replace(method, layers=(0, 2))):
        with pytest.raises(ValueError, match="does not distribute its residual evenly over consecutive layers"):
            shifts_of_batch(model, REQUESTS, other, state)
    with pytest.raises(ValueError, match=r"updates layers \[0, 1, 2\], not all of \[3\]"):
        shifts_of_batch(model, REQUESTS, method, state, layers=(3,))


@pytest.mark.slow
def test_updates_of_a_low_precision_model_are_not_lost(small_world, monkeypatch):
    monkeypatch.setattr("bluelib.studies.residuals.context_prefixes", lambda *_: PREFIXES)
    made = random_model("pocket-llama")
    model = Model.of("random-bfloat16", made.hf_model.to(torch.bfloat16), made.tokenizer)
    method = editor()
    found = measure_residuals(model, REQUESTS, method.layers, method)
    single_layer_scores(model, RECORDS, found, method, generate=False)
    shifts_of_batch(model, REQUESTS, method, method.prepare(model), layers=(0,))
    assert all(model.weight(layer).dtype == torch.float32 for layer in method.layers)


def test_an_interval_over_few_clusters_is_student_s():
    """Two records of one subject must not make it shorter than if they had two; and gaps in the numbers mean nothing."""
    values = [0.0, 100.0, 0.0, 100.0, 100.0, 0.0]
    alone, shared = interval(values), interval(values, clusters=[0, 1, 2, 3, 3, 4])
    assert shared.mean == alone.mean and shared.high - shared.low > alone.high - alone.low
    assert interval(values, clusters=range(6)) == pytest.approx(alone)
    assert interval(values, clusters=[7, 11, 12, 13, 13, 40]) == shared
    assert np.isnan(interval([1.0, 2.0], clusters=[0, 0]).low), "one cluster says nothing of others"
    assert np.isnan(interval([1.0, 1.0], clusters=[0, 0]).low), "nor if all its values are the same"
    many = np.random.default_rng(0).normal(size=60)
    codes = np.arange(60) // 2
    assert interval(many, clusters=codes) == interval(many, clusters=codes * 3 + 5)


def test_a_record_without_a_value_is_left_out_with_its_cluster():
    assert interval([1.0, None, 3.0], clusters=[0, 0, 1]) == interval([1.0, 3.0])
    assert np.isnan(interval([None, None])).all()
    assert less([3.0, None, 1.0], [1.0, 1.0, None]) == [2.0, None, None]
