"""Layers and settings for a model that has none: how they are chosen, and the file that is written."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace

import pandas as pd
import pytest
import torch
import yaml

from bluelib import get_editor, load_dataset, load_model
from bluelib.cli import main
from bluelib.data.records import Probe
from bluelib.editing import catalogue
from bluelib.editing.second_moments import second_moments
from bluelib.editing.settings import find_settings, write_settings
from bluelib.models.known import pocket_models
from bluelib.models.scoring import top_tokens
from bluelib.reports.figures.locate import critical_layers
from bluelib.studies import critical
from bluelib.studies.critical import climb, explain, find, settings_target, target_options
from bluelib.studies.layers import window_width
from bluelib.studies.locate import known_facts
from tests.support.small import RECORDS, random_model

#: With all that settings are chosen by.
SCORED = [
    replace(
        r, paraphrases=(f"Truly, {r.request.text}",), locality=(Probe("Peru is", "far"), Probe("The harp is", "old"))
    )
    for r in RECORDS
]


def test_a_climb_ends_on_the_best_rung_and_stays_where_all_are_alike():
    asked = []

    def cost(value):
        asked.append(value)
        return abs(value - 40)

    assert climb((1, 2, 5, 10, 20, 50, 100), 5, cost) == 50
    assert asked == [5, 2, 10, 20, 50, 100]  # each once
    assert climb((1, 2, 5), 2, lambda value: 0) == 2
    assert climb((1, 2, 5), 5, lambda value: math.inf if value == 5 else value) == 1


def test_the_window_is_five_layers_or_half_of_a_small_model():
    assert [window_width(n) for n in (1, 2, 4, 9, 10, 32)] == [1, 1, 2, 4, 5, 5]


def test_known_facts_are_the_model_s_first_choice():
    model = load_model("pocket-llama")
    records = load_dataset("pocket-counterfact", split="tune", limit=12)
    wrong = [replace(record, target_true=record.target_new, target_new=record.target_true) for record in records[:6]]
    known = known_facts(model, [*wrong, *records[6:], replace(records[0], target_true=None, case_id="x", kind="zsre")])
    expected = []
    for record in (*wrong, *records[6:]):
        (first, _), *_ = top_tokens(model, record.request.text, 1)
        if record.target_true.startswith(first.strip()):
            expected.append(record.subject)
    assert [fact.subject for fact in known] == expected and 0 < len(expected) < 12


@pytest.fixture(scope="module")
def located(tmp_path_factory):
    model = random_model("pocket-llama")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BLUELIB_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(critical, "records_to_choose_on", lambda *_, **__: (SCORED, {"split": "tune"}))
        return find(model, corpus="pocket", tokens=3000)


def test_a_model_that_knows_nothing_is_located_by_contributions(located, small_world):
    model = located.model
    assert located.facts == {"asked": 5, "known": 0, "traced": 0, "edited": 5} and located.tracing.empty
    assert list(located.contributions.layer) == [0, 1, 2, 3]
    curve = located.contributions.set_index("layer").paraphrase
    window = located.windows["contributions"]
    assert len(window) == 2
    assert curve[window].mean() == max(curve[[i, i + 1]].mean() for i in range(3))
    assert located.windows["tracing"] is None
    assert "The model knows 0 of 5 facts, fewer than the 5 that tracing needs" in explain(located)
    model.check_unedited("what is written here")

    config, trials = located.config, located.trials
    moments = second_moments(model, window, corpus="pocket", tokens=3000)
    under = [
        (torch.linalg.eigvalsh(moment.matrix.double()) < config["editors"]["alphaedit"]["nullspace_threshold"])
        for moment in moments.values()
    ]
    assert sum(share.double().mean() for share in under) / len(under) == pytest.approx(critical.NULL_SHARE, abs=0.15)
    by_loss = min(trials["learning_rate"], key=lambda row: (row["loss"], row["steps"]))
    assert config["targets"]["learning_rate"] == by_loss["value"]
    at = [row for row in trials["mom2_update_weight"] if row["layer"] == window[1]]
    assert config["editors"]["memit"]["mom2_update_weight"] in [
        row["value"] for row in at if row["score"] == max(row["score"] for row in at)
    ]
    assert len({(row["layer"], row["value"]) for row in trials["l2"]}) == len(trials["l2"])


def test_the_settings_file_configures_every_editor(located, tmp_path, monkeypatch):
    file = located.write_settings(tmp_path / "configs" / "mine.yaml")
    monkeypatch.setenv("BLUELIB_CONFIGS", str(file.parent))
    text = file.read_text()
    assert text.startswith("# Written by `blue locate`.\n# layers") and yaml.safe_load(text) == located.config
    copy = replace(located.model, name="another")
    assert find_settings(copy) == (file, located.config)
    with pytest.raises(
        ValueError, match="needs anchor, which is measured on a model: `blue tune another --editor alph"
    ):
        get_editor("alphaedit_nas", copy)
    for name in catalogue.names():
        editor = get_editor(name, copy, **({"anchor": 2.0} if name == "alphaedit_nas" else {}))
        assert set(editor.layers) <= {0, 1, 2, 3} and editor.name == name
    pmet = get_editor("pmet", copy)
    assert pmet.targets.clamp > get_editor("memit", copy).targets.clamp and pmet.tokens == 3000


def test_numbers_are_written_and_drawn(located, tmp_path):
    found = json.loads(located.write(tmp_path / "x-1.5").read_text())
    assert (tmp_path / "x-1.5.json").exists()
    assert found["windows"] == dict(located.windows) and len(found["contributions"]) == 4
    figure = critical_layers(found)
    assert len(figure.axes) == 1 and list(figure.axes[0].lines[0].get_xdata()) == [0, 1, 2, 3]
    tracing = [
        {"kind": kind, "layer": i, "mean": i / 9, "low": 0, "high": 1} for kind in ("hidden", "mlp") for i in range(4)
    ]
    figure = critical_layers({**found, "tracing": tracing, "windows": {**found["windows"], "tracing": [2, 3]}})
    assert len(figure.axes) == 2 and list(figure.axes[1].lines[1].get_ydata()) == [0, 1 / 9, 2 / 9, 3 / 9]


def test_where_tracing_disagrees_contributions_decide(located):
    facts = {"asked": 9, "known": 7, "traced": 6, "edited": 5}
    window = located.windows["contributions"]
    disagrees = replace(located, facts=facts, windows={"tracing": [0], "contributions": window})
    said = explain(disagrees)
    assert "causal tracing finds 0 (6 of the 7 facts that the model knows, of 9, were traced)" in said
    assert "contributions decide" in said
    assert "finds the same" in explain(
        replace(located, facts=facts, windows={"tracing": window, "contributions": window})
    )


def test_many_layers_are_edited_in_two_passes(monkeypatch, small_world):
    """Every third of the first two thirds, then what is in the best window and beside it."""

    class Fake:
        records = SCORED

        def moments(self, layers):
            return None

        def after(self, layer, solver, measure):
            edited.append(layer)
            return {"rewrite": 0.0, "paraphrase": 1 - abs(layer - 8) / 30}

    class Deep:
        n_layers = 30

    edited = []
    monkeypatch.setattr(critical, "growth_of_probability", lambda *_: None)
    frame = critical._contributions(Deep(), Fake(), 1.0, 5)
    assert edited[:7] == [0, 3, 6, 9, 12, 15, 18] and sorted(edited[7:]) == [5, 7, 8, 10, 11]
    assert list(frame.layer) == sorted(edited)


def test_rates_that_diverge_are_passed_over(monkeypatch):
    model = random_model("pocket-llama")
    optimise = critical.optimise_targets

    def diverges(*arguments):
        if arguments[-1].learning_rate > 0.05:
            raise FloatingPointError("loss inf")
        return optimise(*arguments)

    monkeypatch.setattr(critical, "optimise_targets", diverges)
    trials = {}
    options = target_options(model, [RECORDS[0].request], 1, trials)
    assert options.learning_rate <= 0.05 and options.clamp in critical.CLAMPS
    assert [row["value"] for row in trials["learning_rate"] if "loss" not in row]
    monkeypatch.setattr(critical, "optimise_targets", lambda *_: diverges(TargetDiverges))
    with pytest.raises(FloatingPointError, match=r"no rate from 0\.01 to 50 gives finite targets"):
        target_options(model, [RECORDS[0].request], 1, {})


class TargetDiverges:
    learning_rate = math.inf


def test_settings_are_not_overwritten_unasked(tmp_path, monkeypatch):
    model = random_model("pocket-llama")
    monkeypatch.setenv("BLUELIB_CONFIGS", str(tmp_path))
    assert settings_target(model) == tmp_path / f"{model.stem}.yaml"
    assert settings_target("not loaded yet") is None
    file = write_settings(
        tmp_path / "mine.yml", {"models": [model.name], "critical_layers": [0], "targets": {}, "editors": {}}
    )
    with pytest.raises(FileExistsError, match=r"mine\.yml exists already; --force replaces it"):
        settings_target(model.name)
    assert settings_target(model, force=True) == file
    with pytest.raises(FileExistsError, match="exists already"):
        settings_target(model, file)
    with pytest.raises(ValueError, match=r"settings are written into a .yaml or .yml file, not .*x.json"):
        settings_target(model, tmp_path / "x.json")
    with pytest.raises(ValueError, match="the settings of pocket-llama ship with the project"):
        settings_target("pocket-llama")
    assert settings_target("pocket-llama", tmp_path / "x.yaml") == tmp_path / "x.yaml"


def test_what_cannot_be_located_is_refused_first(small_world, monkeypatch, tmp_path):
    def work(*_, **__):
        raise AssertionError("work has begun")

    monkeypatch.setattr(critical, "known_facts", work)
    model = random_model("pocket-llama")
    with pytest.raises(ValueError, match="no corpus is called 'nowhere'"):
        find(model, corpus="nowhere")
    (tmp_path / "short.txt").write_text("A harp is old.\n" * 20)
    with pytest.raises(
        ValueError, match="has 120 tokens; 20000 were asked for; about 960 are needed, 10 for each of the 96"
    ):
        find(model, corpus=str(tmp_path / "short.txt"))
    with pytest.raises(ValueError, match="edits must be between 1 and the number of records"):
        find(model, dataset="pocket-counterfact", corpus="pocket", tokens=100, edits=999)
    monkeypatch.setattr(critical, "records_to_choose_on", lambda *_, **__: (RECORDS, {"split": "tune"}))
    with pytest.raises(ValueError, match="no record has paraphrases"):
        find(model, corpus="pocket", tokens=100)


@pytest.mark.slow
def test_a_copy_of_a_pocket_model_gets_its_layers_back(tmp_path, monkeypatch, capsys):
    """From nothing but its folder, under a path that tells nothing: layers 0 to 4, as its own settings have it."""
    folder = shutil.copytree(pocket_models()["pocket-llama"], tmp_path / "models" / "model")
    monkeypatch.setenv("BLUELIB_CONFIG_HOME", str(tmp_path / "configs"))
    monkeypatch.chdir(tmp_path)
    command = ["locate", "models/model/", *"--dataset pocket-counterfact --corpus pocket --tokens 3000".split()]
    assert main(command) == 0
    said = capsys.readouterr().out
    (file,) = (tmp_path / "configs").iterdir()
    config = yaml.safe_load(file.read_text())
    assert config["models"] == [str(folder)] and config["critical_layers"] == [0, 1, 2, 3, 4]
    for part in (str(file), "layers 0–4", "blue tune models/model/", "blue edit --model models/model/"):
        assert part in said
    stem = tmp_path / "results" / "locate" / file.stem
    assert stem.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    tracing = pd.DataFrame(json.loads(stem.with_suffix(".json").read_text())["tracing"])
    assert set(tracing.kind) == {"hidden", "mlp"} and len(tracing) == 2 * 10
    assert main(command) == 2
    assert "exists already; --force replaces it" in capsys.readouterr().err
    moved = shutil.copytree(folder, tmp_path / "elsewhere")
    monkeypatch.setenv("BLUELIB_CACHE", str(tmp_path / "cache"))
    edit = ["edit", "--model", str(moved), *"--dataset pocket-counterfact --edits 3 --no-generate --json".split()]
    assert main(edit) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["editor"]["layers"] == [0, 4] and found["after"]["efficacy"]["mean"] == 100
