"""The shift of hidden states: estimators against the definitions, nulls at their level, facts that nobody edits."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bluelib import load_dataset, load_model
from bluelib.data import Probe
from bluelib.editing.sequence import edited
from bluelib.metrics.intervals import paired_differences
from bluelib.models.representations import prompt_hidden
from bluelib.pocket.datasets import edited_subjects
from bluelib.pocket.world import build_world
from bluelib.studies import shift
from bluelib.studies.shift import (
    fact_states,
    halves,
    known_facts,
    measure_shift,
    project,
    recalled,
    shift_frame,
    shift_table,
    typical_distance,
)
from tests.support.small import RECORDS, editor

FACTS = [
    Probe("Peru is far from the", "sea"),
    Probe("Ilvane Quillbrook plays the", "harp"),
    Probe("Rome is", "old"),
    Probe("The capital of Kenya is", "Nairobi"),
    Probe("Zoë D'Astrelle works as a", "judge"),
]


def energy(x, y):
    """The U-statistic as it is defined, one pair after the other."""
    n, total = len(x), 0.0
    for i, j in product(range(n), repeat=2):
        if i != j:
            total += 2 * np.linalg.norm(x[i] - y[j]) - np.linalg.norm(x[i] - x[j]) - np.linalg.norm(y[i] - y[j])
    return total / (n * (n - 1))


def pair(n, d=3, moved=0.0, seed=0, noise=1.0):
    """Exchangeable states before and after, of facts around centres of their own; ``moved`` is added after."""
    random = np.random.default_rng(seed)
    centre = random.normal(size=(n, d))
    return centre + noise * random.normal(size=(n, d)), centre + noise * random.normal(size=(n, d)) + moved


def test_measures_are_their_definitions_and_their_jackknife():
    x, y = pair(7, moved=0.5)
    unit = typical_distance(x)
    assert unit == pytest.approx(np.mean([np.linalg.norm(a - b) for i, a in enumerate(x) for b in np.delete(x, i, 0)]))
    found = measure_shift(x, y).values
    x, y = x / unit, y / unit
    assert found["displacement"] == pytest.approx(np.linalg.norm(y - x, axis=1))
    assert found["energy"].mean() == pytest.approx(energy(x, y))
    statistics = {"energy": energy, "mean_shift": lambda a, b: np.linalg.norm((b - a).mean(0))}
    for name, statistic in statistics.items():
        whole = statistic(x, y)
        for i in range(7):
            without = statistic(np.delete(x, i, 0), np.delete(y, i, 0))
            assert found[name][i] == pytest.approx(7 * whole - 6 * without)


def test_the_null_by_swaps_is_what_swapping_gives():
    """Of four facts there are eight different swaps, so that the 95 % quantile of many draws is the largest value."""
    x, y = pair(4, moved=0.3, seed=2)
    found = measure_shift(x, y)
    unit = typical_distance(x)
    energies, means = [], []
    for swapped in product([False, True], repeat=4):
        mask = np.array(swapped)[:, None]
        a, b = np.where(mask, y, x) / unit, np.where(mask, x, y) / unit
        energies.append(energy(a, b))
        means.append(np.linalg.norm((b - a).mean(0)))
    assert found.swaps["energy"] == pytest.approx(max(energies))
    assert found.swaps["mean_shift"] == pytest.approx(max(means))
    assert found.p["energy"] == pytest.approx(np.mean(np.array(energies) >= energies[0] - 1e-12), abs=0.05)


def test_a_shift_is_detected_and_an_identical_sample_is_not():
    x, y = pair(60, moved=1.0)
    found, yardstick = measure_shift(x, y), halves(x)
    assert found.p["energy"] < 0.002 and found.p["mean_shift"] < 0.002
    assert found.values["energy"].mean() > yardstick["energy"]
    same = measure_shift(x, x)
    assert same.p == {"mean_shift": 1.0, "energy": 1.0} and same.swaps == {"mean_shift": 0.0, "energy": 0.0}
    assert all((values == 0).all() for values in same.values.values())


def test_a_common_shift_much_smaller_than_the_spread_is_found_and_is_small_by_the_halves():
    x, y = pair(100, moved=0.05, noise=0.0)
    found = measure_shift(x, y + np.random.default_rng(1).normal(0, 0.01, y.shape))
    assert found.p["energy"] < 0.01 and found.p["mean_shift"] < 0.01
    assert found.values["energy"].mean() < halves(x)["energy"]


def test_a_spread_that_grows_is_seen_by_the_energy_distance_only():
    random = np.random.default_rng(0)
    x = random.normal(size=(150, 3))
    found = measure_shift(x, 1.6 * x)
    assert found.p["energy"] < 0.01 and found.values["mean_shift"].mean() < halves(x)["mean_shift"]


def test_the_null_by_swaps_keeps_its_level_and_the_energy_distance_has_no_bias():
    found = [measure_shift(*pair(30, seed=seed), seed=seed) for seed in range(300)]
    for name in ("energy", "mean_shift"):
        assert 0.02 < np.mean([f.p[name] <= 0.05 for f in found]) < 0.09
    energies = np.array([f.values["energy"].mean() for f in found])
    assert abs(energies.mean()) < 3 * energies.std() / np.sqrt(len(energies))


def test_two_samples_of_one_distribution_are_within_the_halves_as_often_as_they_say():
    beyond = []
    for seed in range(100):
        random = np.random.default_rng(seed)
        x = random.normal(size=(40, 3))
        a, b = x[:20], x[20:]
        within = [np.mean([np.linalg.norm(p - q) for i, p in enumerate(s) for q in np.delete(s, i, 0)]) for s in (a, b)]
        cross = np.mean([np.linalg.norm(p - q) for p in a for q in b])
        beyond.append((2 * cross - sum(within)) / typical_distance(x) > halves(x, seed=seed)["energy"])
    assert 0.005 < np.mean(beyond) < 0.12


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.01, 100), st.floats(-50, 50), st.integers(5, 12))
def test_measures_do_not_depend_on_units_place_and_axes(seed, scale, offset, n):
    x, y = pair(n, moved=0.4, seed=seed)
    turn = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))[0]
    order = np.random.default_rng(seed).permutation(n)
    one, two = measure_shift(x, y), measure_shift(scale * x[order] @ turn + offset, scale * y[order] @ turn + offset)
    for name, values in one.values.items():
        assert two.values[name] == pytest.approx(values[order], rel=1e-6, abs=1e-7)


def test_what_cannot_be_measured_is_refused():
    x, y = pair(5)
    with pytest.raises(ValueError, match="are not of the same facts"):
        measure_shift(x, y[:4])
    with pytest.raises(ValueError, match="3 states have no typical distance"):
        measure_shift(x[:3], y[:3])
    with pytest.raises(ValueError, match="not all alike"):
        halves(np.ones((6, 2)))


def test_tables_hold_both_nulls_and_pair_over_facts():
    x, y = pair(25, moved=0.2)
    shifts = {"memit": measure_shift(x, y), "memit_blue": measure_shift(x, x)}
    values = shift_frame(shifts, {"memit": [True] * 20 + [False] * 5, "memit_blue": [True] * 25})
    table = shift_table(values, shifts).set_index(["editor", "measure"])
    assert table["mean"]["memit", "recalled"] == 80 and table.n.eq(25).all()
    assert table.swaps["memit", "energy"] == shifts["memit"].swaps["energy"] and table.p["memit_blue", "energy"] == 1
    assert table.p["memit", "displacement"] is None
    gains = paired_differences(values, [("memit", "memit_blue")], ["measure"], "fact").set_index("measure")
    assert gains["mean"]["recalled"] == 20 and gains.high["displacement"] < 0
    assert gains["mean"]["energy"] == pytest.approx(-table["mean"]["memit", "energy"])


def test_axes_are_those_of_the_states_before():
    x, y = pair(30)
    step = 2.0 * np.linalg.svd(x - x.mean(0))[2][0]  # along the first component
    points, labels = project(x, {"a": y, "b": x + step})
    places = {state: rows[["x", "y"]].to_numpy() for state, rows in points.groupby("state")}
    assert places["before"].mean(0) == pytest.approx([0, 0], abs=1e-9)
    assert np.abs(places["b"] - places["before"]) == pytest.approx(np.tile([2.0, 0.0], (30, 1)), abs=1e-9)
    assert project(x, {"b": x + step})[0].query("state == 'b'").x.tolist() == pytest.approx(places["b"][:, 0].tolist())
    assert labels[0].startswith("first component (")
    drawn, labels = project(x, {"a": y}, "tsne")
    assert len(drawn) == 60 and labels == ["t-SNE 1", "t-SNE 2"] and drawn.notna().all(axis=None)
    with pytest.raises(ValueError, match="projection must be one of pca, tsne, not 'umap'"):
        project(x, {}, "umap")


def test_states_are_those_at_the_last_token(any_model):
    texts = [fact.prompt for fact in FACTS]
    found = prompt_hidden(any_model, texts, 1)
    for column, text in enumerate(texts):
        ids = any_model.tokenizer(text, return_tensors="pt")
        hidden = any_model.hf_model(**ids, output_hidden_states=True).hidden_states[2][0, -1]
        torch.testing.assert_close(found[:, column], hidden.float())
    assert fact_states(any_model, FACTS, 1) == pytest.approx(found.T.double().numpy())


def test_edits_move_states_and_leave_the_model(any_model, small_world):
    before = fact_states(any_model, FACTS, 2)
    weights = [any_model.weight(layer).clone() for layer in range(any_model.n_layers)]
    with edited(any_model, RECORDS, editor(), batch_size=2):
        after, known = fact_states(any_model, FACTS, 2), recalled(any_model, FACTS)
    assert after.shape == before.shape and len(known) == len(FACTS)
    assert np.linalg.norm(after - before, axis=1).min() > 0
    assert all(torch.equal(any_model.weight(layer), weight) for layer, weight in enumerate(weights))
    assert (fact_states(any_model, FACTS, 2) == before).all()


@pytest.mark.slow
def test_known_facts_of_the_pocket_world_are_known_and_edited_by_nobody():
    model = load_model("pocket-llama")
    records = load_dataset("pocket-counterfact", split="report", limit=3)
    facts = known_facts(model, "pocket-counterfact", records, 30, seed=1)
    assert len(facts) == 30 and all(recalled(model, facts))
    told = {(template.format(f.subject), f.object): f.subject for f in build_world().facts for template in f.seen}
    subjects = [told[fact.prompt, fact.answer] for fact in facts]
    assert len(set(subjects)) == 30 and not set(subjects) & edited_subjects()
    assert facts == known_facts(model, "pocket-counterfact", records, 30, seed=1)
    assert facts != known_facts(model, "pocket-counterfact", records, 30, seed=2)
    weight = model.weight(0)
    weight.mul_(1.01)
    with pytest.raises(ValueError, match="pocket-llama has been edited: known facts belong to the weights as loaded"):
        known_facts(model, "pocket-counterfact", records, 30)


def test_known_facts_of_another_dataset_are_its_probes_without_edited_subjects(any_model, monkeypatch, small_world):
    from dataclasses import replace

    probes = (*FACTS, FACTS[0], Probe("Sofia lies in", "Bulgaria"))
    records = [replace(RECORDS[0], locality=probes), replace(RECORDS[1], locality=(FACTS[2],))]
    with pytest.raises(ValueError, match=r"knows 0 of the 5 facts that some\.json has besides the 2 edited ones"):
        known_facts(any_model, "some.json", records, 10)  # a random model knows nothing
    monkeypatch.setattr(shift, "recalled", lambda model, facts: [fact.answer != "old" for fact in facts])
    found = known_facts(any_model, "some.json", records, 10)
    assert {fact.answer for fact in found} == {"sea", "Nairobi", "judge", "Bulgaria"}
    assert len(found) == 4, "each prompt once, none about Ilvane Quillbrook, who is edited"
