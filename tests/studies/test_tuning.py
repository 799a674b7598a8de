"""The search for hyper-parameters: its axes for any model, and what it keeps when it is interrupted."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import replace

import pytest
import yaml

from bluelib import get_editor, load_dataset, load_model
from bluelib.cli import main
from bluelib.editing.catalogue import known
from bluelib.editing.settings import write_settings
from bluelib.io.formats import read_json
from bluelib.models.known import pocket_models
from bluelib.studies import tuning
from bluelib.studies.tuning import axes, check_scored, keep_best, tune

EDITORS = {
    "memit_blue": {"mom2_update_weight": 300},
    "alphaedit": {"nullspace_threshold": 0.02, "l2": 1},
    "pmet": {"mom2_update_weight": 300, "clamp": 20},
    "ft": {"layers": [2], "steps": 5, "learning_rate": 0.01, "norm_constraint": None},
    "rome": {"layers": [2]},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """pocket-llama's weights under another name."""
    return shutil.copytree(pocket_models()["pocket-llama"], tmp_path_factory.mktemp("models") / "mine")


@pytest.fixture
def model(folder, tmp_path, monkeypatch):
    """The copy, with settings of its own; results go to a folder of the test's own."""
    config = {
        "models": [str(folder)],
        "critical_layers": [1, 2, 3],
        "statistics": {"corpus": "pocket", "tokens": 3000},
        "targets": {"steps": 4, "learning_rate": 4, "clamp": 1},
        "editors": EDITORS,
    }
    write_settings(tmp_path / "configs" / "mine.yaml", config, "mine")
    monkeypatch.setenv("BLUELIB_CONFIGS", str(tmp_path / "configs"))
    monkeypatch.chdir(tmp_path)
    return load_model(str(folder))


HOW = {"dataset": "pocket-counterfact", "edits": 2, "batch_size": 2}


def test_axes_of_a_pocket_model_are_the_catalogue_s():
    found = axes(load_model("pocket-gpt2"), "alphaedit")
    assert found["nullspace_threshold"] == (0.5, 0.125, 2.0) and found["clamp"] == (0.75, 1.5)
    assert found.keys() == known("alphaedit").axes.keys() and found["l2"] == (10.0, 1.0, 100.0)
    assert axes(load_model("pocket-gpt2"), "pmet", "solver")["mom2_update_weight"] == (100, 10, 1000)


@pytest.mark.parametrize(
    ("editor", "of_solver", "of_targets"),
    [
        ("memit_blue", {"mom2_update_weight": (300, 30, 3000)}, {"learning_rate": (4, 8), "clamp": (1, 2)}),
        (
            "alphaedit",
            {"nullspace_threshold": (0.02, 0.005, 0.08), "l2": (1, 0.1, 10)},
            {"learning_rate": (4, 8), "clamp": (1, 2)},
        ),
        ("pmet", {"mom2_update_weight": (300, 30, 3000)}, {"learning_rate": (4, 8), "clamp": (20, 40)}),
        ("rome", {"layers": ([1], [2], [3])}, {"learning_rate": (4, 8), "clamp": (1, 2)}),
        (
            "ft",
            {
                "layers": ([1], [2], [3]),
                "steps": (5,),
                "learning_rate": (0.01, 0.001, 0.1),
                "norm_constraint": (None, 0.03, 0.01),
            },
            {},
        ),
    ],
)
def test_axes_of_another_model_stand_around_its_settings(model, editor, of_solver, of_targets):
    assert axes(model, editor) == axes(model, editor, "solver") == of_solver
    assert axes(model, editor, "all") == {**of_solver, **of_targets}


def test_an_axis_goes_on_in_numbers_that_can_be_read():
    assert tuning.further((10.0, 1.0, 100.0), 1.0) == 0.1 and tuning.further((1.0, 0.1, 10.0), 0.1) == 0.01
    assert tuning.further((10.0, 1.0, 100.0), 10.0) is None and tuning.further((0.75, 1.5), 1.5) is None


def test_a_search_is_larger_for_a_model_that_is_edited_in_seconds(model):
    assert tuning.default_size("pocket-llama") == (60, 3) and tuning.default_size(model.name) == (20, 10)


def test_axes_that_there_are_none_of(model):
    for editor, which, message in (
        ("memit", None, "the settings of memit for .*mine lack mom2_update_weight"),
        ("mend", None, "there is no search for editor 'mend'"),
        ("memit_blue", "some", "axes must be one of solver, all, not 'some'"),
        ("memit_blue", {"l2": [1, 10]}, "editor 'memit_blue' has no hyper-parameter l2"),
        ("alphaedit", {"l2": 10}, r"candidates of l2 must be a list of distinct values, as \[1, 10\], not 10"),
        ("alphaedit", {"l2": [10, 10]}, r"candidates of l2 must be a list of distinct values.*not \[10, 10\]"),
    ):
        with pytest.raises(ValueError, match=message):
            axes(model, editor, which)


def test_an_axis_that_starts_from_a_target_s_setting_needs_it(model, tmp_path):
    settings = {
        "models": [model.name],
        "critical_layers": [1, 2, 3],
        "statistics": {"corpus": "pocket", "tokens": 3000},
    }
    write_settings(
        tmp_path / "configs" / "mine.yaml", {**settings, "targets": {"steps": 4}, "editors": EDITORS}, "mine"
    )
    with pytest.raises(ValueError, match=r"the settings of memit_blue for .*mine lack learning_rate, from which"):
        axes(model, "memit_blue", "all")


def test_a_search_is_written_and_put_into_the_settings(model, tmp_path):
    path = tune(model, "memit_blue", **HOW)
    assert path == tmp_path / "results" / "tuning" / f"{model.stem}-memit_blue.json" and "mine-" in path.name
    found = read_json(path)
    assert [trial["choice"]["mom2_update_weight"] for trial in found["trials"]][:3] == [300, 30, 3000]
    best = max(found["trials"], key=lambda trial: trial["score"])
    assert found["best"] == best["choice"] and found["layers"] == [1, 3] and found["split"] == "tune"
    assert "choosing_split" not in found and found["edits"] == 2
    model.check_unedited("what is written here")
    file = keep_best(model, [path])
    assert yaml.safe_load(file.read_text())["editors"] == {**EDITORS, "memit_blue": best["choice"]}
    assert file.read_text().startswith("# mine\n")


def test_candidates_of_your_own_are_searched_alone(model, tmp_path, capsys):
    command = ["tune", model.name, "--editor", "memit_blue", "--dataset", "pocket-counterfact", "--edits", "2"]
    assert main([*command, "--candidates", "mom2_update_weight=[5,50]", "--output", str(tmp_path / "other")]) == 0
    found = read_json(tmp_path / "other" / f"{model.stem}-memit_blue.json")
    assert [trial["choice"] for trial in found["trials"]] == [{"mom2_update_weight": 5}, {"mom2_update_weight": 50}]
    assert not (tmp_path / "results").exists()
    assert main([*command, "--candidates", "mom2_update_weight=[5,50]", "--axes", "all"]) != 0
    assert "give only one of them" in capsys.readouterr().err


@pytest.mark.slow
def test_a_norm_anchor_is_measured_once_for_each_way_to_optimise_targets(model, monkeypatch):
    """Its settings are AlphaEdit's. A choice is of what is searched; the best one has the anchor as well."""
    measured, anchor_of = [], tuning.norm_anchor
    monkeypatch.setattr(tuning, "norm_anchor", lambda *how: measured.append(how) or anchor_of(*how))
    path = tune(model, "alphaedit_nas", **HOW)
    assert len(measured) == 1, "the solver's axes do not change it"
    found = json.loads(path.read_text())
    assert found["axes"].keys() == {"nullspace_threshold", "l2"}
    assert all(trial["choice"].keys() == found["axes"].keys() for trial in found["trials"])
    anchor = found["best"]["anchor"]
    assert found["best"].keys() == {*found["axes"], "anchor"} and anchor > 0
    keep_best(model, [path])
    assert get_editor("alphaedit_nas", model).anchor == anchor


def test_a_norm_anchor_of_your_own_candidates_is_not_measured(model, monkeypatch):
    """And a search of one setting leaves the others as they were, though they are AlphaEdit's."""
    monkeypatch.setattr(tuning, "norm_anchor", None)
    path = tune(model, "alphaedit_nas", which={"anchor": [5.0, 8.0]}, **HOW)
    best = read_json(path)["best"]
    assert best.keys() == {"anchor"} and best["anchor"] in (5.0, 8.0)
    keep_best(model, [path])
    found = get_editor("alphaedit_nas", model)
    assert found.anchor == best["anchor"] and found.solver == get_editor("alphaedit", model).solver


@pytest.mark.slow
def test_an_interrupted_search_goes_on(model, tmp_path, monkeypatch, caplog):
    evaluate, calls = tuning.evaluate, []

    def interrupted(*arguments, **options):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return evaluate(*arguments, **options)

    monkeypatch.setattr(tuning, "evaluate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tune(model, "memit_blue", **HOW)
    model.check_unedited("what is written here")
    (path,) = (tmp_path / "results" / "tuning").iterdir()
    unfinished = read_json(path)
    assert len(unfinished["trials"]) == 2 and unfinished["best"] is None
    with pytest.raises(ValueError, match="is not finished"):
        keep_best(model, [path])
    marked = json.loads(path.read_text())
    marked["trials"][0]["kept"] = True
    path.write_text(json.dumps(marked))
    with caplog.at_level(logging.WARNING):
        tune(model, "memit_blue", **HOW)
    assert "unfinished: continuing after 2 trials" in caplog.text
    finished, made = read_json(path), len(calls)
    assert finished["best"] and finished["trials"][0]["kept"]
    assert finished["trials"][1] == unfinished["trials"][1]
    tune(model, "memit_blue", **HOW)  # is there already
    assert len(calls) == made and read_json(path) == finished
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        tune(model, "memit_blue", **{**HOW, "batch_size": 1})
    assert "holds another search; this one starts over" in caplog.text
    assert not any("kept" in trial for trial in read_json(path)["trials"]) and len(calls) > made


def test_without_a_split_all_is_chosen_from_and_that_is_said(model, tmp_path):
    entries = json.loads((pocket_models()["pocket-llama"].parents[1] / "datasets/pocket-counterfact.json").read_text())
    for entry in entries[:4]:
        entry.pop("split", None)
    (tmp_path / "mine.json").write_text(json.dumps(entries[:4]))
    found = read_json(tune(model, "rome", dataset=tmp_path / "mine.json", batch_size=4))
    assert found["edits"] == 4 and found["split"] == "report"
    assert found["choosing_split"] == "mine.json has no split tune: all of it was chosen from"
    assert found["dataset"] == "mine.json" and str(tmp_path) not in json.dumps(found), "no folder of this machine"


def test_records_must_have_what_settings_are_chosen_by():
    records = load_dataset("pocket-counterfact", split="tune", limit=2)
    check_scored(records)
    for without, message in (
        ({"paraphrases": ()}, "no record has paraphrases"),
        ({"locality": ()}, "no record has neighbours with answers"),
        ({"target_true": None}, "no record has target_true"),
    ):
        with pytest.raises(ValueError, match=message):
            check_scored([replace(record, **without) for record in records])


def test_the_settings_that_ship_are_not_written(tmp_path):
    search = tmp_path / "x.json"
    search.write_text(json.dumps({"editor": "memit", "best": {"mom2_update_weight": 1}}))
    with pytest.raises(ValueError, match=r"pocket-llama.yaml ships with the project, and is not overwritten"):
        keep_best(load_model("pocket-llama"), [search])
