"""The ablation of layers: what is tried, how choices are compared, and that a run that was stopped goes on."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from bluelib import load_dataset, load_model
from bluelib.data.provenance import records_hash
from bluelib.editing.method import describe
from bluelib.editing.solvers import Ridge
from bluelib.io.formats import read_json, write_json
from bluelib.metrics.editing import TEACHER_FORCED
from bluelib.models.choices import CHOICES
from bluelib.models.known import pocket_models
from bluelib.studies.ablation import (
    BATCH_SIZE,
    DATASET,
    EDITS,
    SINGLE,
    WEIGHTS,
    ablation_numbers,
    at_equal_specificity,
    best_single_layer,
    choices,
    load_ablation,
    rerun,
    run_ablation,
)


def test_every_pair_every_layer_all_and_memit_are_tried():
    found = choices(load_model("pocket-llama"))
    direct = {name: editor.layers for name, (_, editor) in found.items() if editor.residual.direct}
    pairs = [layers for layers in direct.values() if len(layers) == 2]
    assert len(pairs) == len(set(pairs)) == 10 and direct["BLUE"] == (0, 4)
    assert sorted(layers for layers in direct.values() if len(layers) == 1) == [(0,), (1,), (2,), (3,), (4,)]
    assert direct["all layers"] == (0, 1, 2, 3, 4) and len(found) == 19
    shared = {name: editor.layers for name, (_, editor) in found.items() if name not in direct}
    every = (0, 1, 2, 3, 4)
    assert shared == {"MEMIT": every, "all layers, distributed": every, "first and last, distributed": (0, 4)}
    blue = found["BLUE"][1]
    assert all(e.targets == blue.targets for name, (_, e) in found.items() if name != "MEMIT")


def frame(rows):
    data = pd.DataFrame(rows, columns=["choice", "mom2_update_weight", "success", "mean_specificity"])
    data["mean_success"] = [sum(values) / len(values) for values in data.success]
    return data.assign(family="f", seconds_per_edit=0.1, mean_efficacy=0.0, mean_generalization=0.0)


def test_choices_are_compared_at_blue_s_specificity():
    runs = frame(
        [
            ("BLUE", 1, [60, 60, 90, 90], 90.0),
            ("BLUE", 10, [80, 80, 80, 80], 95.0),
            ("one", 1, [100, 100, 100, 100], 94.0),  # better, at the price of specificity
            ("one", 10, [70, 80, 80, 70], 94.6),
            ("one", 100, [10, 10, 10, 10], 99.0),
            ("never", 1, [90, 90, 90, 90], 50.0),
            ("never", 10, [20, 20, 20, 20], 60.0),
        ]
    )
    best, differences, goal = at_equal_specificity(runs)
    assert goal == 94.5
    best, differences = best.set_index("choice"), differences.set_index("choice")
    assert best.mom2_update_weight.to_dict() == {"BLUE": 10, "one": 10, "never": 10}
    assert best.edge.to_dict() == {"BLUE": True, "one": False, "never": True}
    assert best.reached.to_dict() == {"BLUE": True, "one": True, "never": False}
    assert differences["mean"].to_dict() == {"BLUE": 0.0, "one": -5.0, "never": -60.0}
    assert differences.low["one"] < -5.0 < differences.high["one"]


def test_the_best_single_layer_is_chosen_anew_in_each_draw():
    """Five layers that differ by luck only: the best of them is no better than it is."""
    rng = np.random.default_rng(0)
    blue = rng.choice([0.0, 100.0], 60)
    rows = [("BLUE", 1, blue, 90.0)]
    rows += [(f"layer {layer}", 1, rng.permutation(blue), 90.0) for layer in range(5)]
    rows.append(("layer 5", 1, np.full(60, 100.0), 50.0))  # the best, without BLUE's specificity
    runs = frame(rows)
    runs["family"] = ["BLUE: first and last layer", *[SINGLE] * 6]
    runs["specificity"] = [[mean] * 60 for mean in runs.mean_specificity]
    found = best_single_layer(runs)
    assert found.mean == 0.0, "each has BLUE's mean"
    _, differences, _ = at_equal_specificity(runs)
    fixed = differences.set_index("choice").loc["layer 0"]
    assert found.high > fixed.high and found.low > fixed.low, "the best of five draws"
    alone = best_single_layer(runs[runs.choice.isin(["BLUE", "layer 5"])])
    assert np.isnan(alone).all()


def test_records_of_one_subject_are_drawn_together():
    """Each of 30 records, four times over, says no more than the 30; all records for themselves would."""
    rng = np.random.default_rng(1)
    blue, other = rng.choice([0.0, 100.0], (2, 30))
    runs = frame([("BLUE", 1, blue, 90.0), ("layer 1", 1, other, 90.0)])
    runs["family"], runs["specificity"] = ["BLUE: first and last layer", SINGLE], [[90.0] * 30] * 2
    four = runs.assign(**{name: runs[name].map(lambda values: list(values) * 4) for name in ("success", "specificity")})
    subjects = [*range(30)] * 4
    assert best_single_layer(four, subjects) == best_single_layer(runs)
    assert best_single_layer(four).low > best_single_layer(runs).low
    by_subject, by_record = (at_equal_specificity(four, codes)[1].low[1] for codes in (subjects, None))
    assert by_subject == pytest.approx(at_equal_specificity(runs)[1].low[1], abs=1e-11)
    assert by_subject < by_record


@pytest.mark.slow
def test_a_stopped_ablation_goes_on(tmp_path, monkeypatch):
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path)
    model = load_model("pocket-gpt2")
    few = {name: choice for name, choice in choices(model).items() if name in ("MEMIT", "layer 0")}
    monkeypatch.setattr("bluelib.studies.ablation.choices", lambda model: few)
    path = run_ablation(model, edits=2, batch_size=2, weights=(100,))
    content = read_json(path)
    assert [run["choice"] for run in content["runs"]] == ["MEMIT", "layer 0"]
    content["runs"] = [{**content["runs"][0], "seconds_per_edit": -1.0}]  # as if it had been stopped after the first
    stale = {**content["runs"][0], "choice": "layer 0", "settings": {"name": "other"}}
    content["runs"].append(stale)  # and a run of other settings, which is made again
    content["runs"] += [
        {**stale, "mom2_update_weight": 7},
        {**content["runs"][0], "choice": "layer 9"},
    ]  # and is dropped
    write_json(path, content, sealed=True)
    runs = json.loads(run_ablation(model, edits=2, batch_size=2, weights=(100,)).read_text())["runs"]
    assert [run["seconds_per_edit"] < 0 for run in runs] == [True, False]
    found, origin = load_ablation("pocket-gpt2")
    assert origin["identity"]["edits"] == 2 and found.mean_specificity.between(0, 100).all()
    again = rerun(model, "layer 0", 100)
    assert again == {metric: pytest.approx(found.iloc[1][f"mean_{metric}"], abs=0.01) for metric in TEACHER_FORCED}
    # other settings: begun anew
    runs = json.loads(run_ablation(model, edits=3, batch_size=3, weights=(100,)).read_text())["runs"]
    assert all(run["seconds_per_edit"] > 0 and len(run["efficacy"]) == 3 for run in runs)
    with pytest.raises(FileNotFoundError, match="blue ablation --model pocket-bert"):
        load_ablation("pocket-bert")
    assert ablation_numbers("pocket-bert") == {}
    assert "subjects" not in origin, "all differ"


def as_then(settings):
    """Settings without what is younger than the committed runs: the points at which text and public code differ, which
    were as the text says (docs/as-published.md), and Adam's rate, which was searched again."""
    return {
        key: as_then(value) if isinstance(value, dict) else value
        for key, value in settings.items()
        if key not in CHOICES and key != "learning_rate"
    }


@pytest.mark.parametrize("name", sorted(pocket_models()))
def test_the_committed_ablation_is_whole_and_of_the_shipped_weights(name):
    model = load_model(name)
    runs, origin = load_ablation(name)
    assert origin["identity"]["model_revision"] == model.revision
    records = load_dataset(DATASET, split="report", limit=EDITS)
    assert origin["identity"]["records_hash"] == records_hash(records)
    assert (origin["identity"]["edits"], origin["identity"]["batch_size"]) == (EDITS, BATCH_SIZE)
    tried = {(run.choice, run.mom2_update_weight): as_then(run.settings) for run in runs.itertuples()}
    expected = {
        (choice, weight): as_then(json.loads(json.dumps(describe(replace(editor, solver=Ridge(weight))))))
        for choice, (_, editor) in choices(model).items()
        for weight in WEIGHTS
    }
    assert tried == expected
    assert runs.efficacy.map(len).eq(EDITS).all()


def test_records_that_lack_what_is_compared_are_refused_before_anything_runs(monkeypatch):
    records = load_dataset("pocket-counterfact", split="report", limit=2)
    unanswered = tuple(replace(probe, answer=None) for probe in records[1].locality)
    for without, what in (
        ({"paraphrases": ()}, "paraphrases"),
        ({"locality": unanswered}, "locality probe with an answer"),
        ({"target_true": None}, "target_true"),
    ):
        bare = [records[0], replace(records[1], **without)]
        monkeypatch.setattr("bluelib.studies.ablation.load_dataset", lambda *_, chosen=bare, **__: chosen)
        with pytest.raises(ValueError, match=f"record {records[1].case_id} has no {what}: choices of layers"):
            run_ablation(load_model("pocket-llama"))
