"""The commands of studies on a model that is nobody's: any dataset, any text, and results where they belong."""

from __future__ import annotations

import json
import shutil

import pandas as pd
import pytest

from bluelib import load_model
from bluelib.cli import main
from bluelib.editing.settings import write_settings
from bluelib.models.known import pocket_models

SETTINGS = {
    "critical_layers": [1, 2],
    "statistics": {"corpus": "pocket", "tokens": 3000},
    "targets": {"steps": 4, "learning_rate": 4, "clamp": 1},
    "editors": {
        "mend": {"layers": [1]},
        "memit": {"mom2_update_weight": 300},
        "memit_blue": {"mom2_update_weight": 300},
        "alphaedit": {"nullspace_threshold": 0.02, "l2": 1},
        "alphaedit_blue": {"nullspace_threshold": 0.02, "l2": 1},
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return shutil.copytree(pocket_models()["pocket-llama"], tmp_path_factory.mktemp("models") / "model")


@pytest.fixture
def place(folder, tmp_path, monkeypatch):
    """A folder that is no checkout of the project, with settings for a copy of pocket-llama."""
    write_settings(tmp_path / "configs" / "x.yaml", {"models": [str(folder)], **SETTINGS})
    monkeypatch.setenv("BLUELIB_CONFIGS", str(tmp_path / "configs"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def options(text: str, folder) -> list[str]:
    return text.replace("MODEL", str(folder)).split()


@pytest.fixture
def stem(folder):
    revision = load_model(str(folder)).revision.removeprefix("sha256:")
    return f"model-{revision[:8]}"


@pytest.mark.slow
def test_contributions_of_any_model(place, folder, stem, capsys):
    command = "contributions --model MODEL --dataset pocket-zsre --edits 2 --json"
    assert main(options(command, folder)) == 0
    found = json.loads(capsys.readouterr().out)
    path = place / "results" / "contributions" / f"{stem}.csv"
    assert found["written"] == [str(path)] and found["split"] == "tune"
    frame = pd.read_csv(path)
    assert list(frame.layer) == list(range(10)) and set(frame.model) == {str(folder)}
    assert len(found["layers"]) == 2  # as many as are configured


@pytest.mark.parametrize("study", ["follow", "single"])
def test_one_file_is_not_for_several_editors(study, capsys):
    command = [study, "--model", "pocket-llama", "--editor", "memit", "memit_blue", "--output", "x.json"]
    assert main(command) == 2
    assert "--output is the file of one editor's scores; 2 editors were named" in capsys.readouterr().err


@pytest.mark.slow
def test_single_shows_both_protocols_beside_each_other(place, folder, stem, capsys):
    assert main(options("single --model MODEL --dataset pocket-ripple --edits 2 --editor memit --json", folder)) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["written"] == [str(place / "results" / "single" / f"{stem}_pocket-ripple_memit_2x1_seed0.json")]
    assert {*found["scores"]} == {"memit, one at a time", "memit, in sequence"}
    assert all(scores["executed"]["n"] == 2 for scores in found["scores"].values())


@pytest.mark.slow
def test_tables_say_their_scale(place, folder, stem, capsys):
    for command in (
        "nullspace --model MODEL --dataset pocket-zsre --edits 2",
        "convergence --model MODEL --dataset pocket-zsre --edits 2 --tokens 2000 --editor memit_blue",
    ):
        kind = command.split()[0]
        assert main(options(command, folder)) == 0
        said = capsys.readouterr().out
        table = place / "results" / kind / f"{stem}.md"
        assert said.strip() == table.read_text().strip() and "(other scale" in said and "pocket scale" not in said
        assert table.with_suffix(".csv").exists()
    assert set(pd.read_csv(table.with_suffix(".csv")).tokens) == {6, 20, 60, 200, 600, 2000}
    assert list(pd.read_csv(place / "results" / "nullspace" / f"{stem}.csv").corpus.unique()) == ["pocket"]


@pytest.mark.slow
def test_the_ablation_of_any_model(place, folder, stem):
    command = "ablation --model MODEL --dataset pocket-zsre --split tune --edits 2 --batch-size 1 --weights 50"
    assert main(options(command, folder)) == 0
    content = json.loads((place / "results" / "ablation" / f"{stem}.json").read_text())
    assert content["identity"] | {"split": "tune", "edits": 2, "batch_size": 1} == content["identity"]
    assert {run["mom2_update_weight"] for run in content["runs"]} == {50}


def test_mend_of_any_model_is_trained_and_found(place, folder, stem, monkeypatch, capsys):
    monkeypatch.setenv("BLUELIB_CACHE", str(place / "cache"))
    edit = options("edit --model MODEL --dataset pocket-zsre --edits 1 --editor mend --no-generate --json", folder)
    assert main(edit) == 2
    assert f"train one: blue train-mend --model {folder}" in capsys.readouterr().err
    train = "train-mend --model MODEL --dataset pocket-zsre --edits 3 --layers 1 --steps 1 --json"
    assert main(options(train, folder)) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["written"] == str(place / "cache" / "mend" / f"{stem}.safetensors") and found["layers"] == [1]
    assert main(edit) == 0
    assert not list(folder.glob("*mend*"))


def test_tune_takes_its_model_both_ways_and_writes_a_file_of_one_s_own(place, folder, capsys):
    tail = " --editor memit_blue --dataset pocket-zsre --edits 1"
    assert main(options(f"tune MODEL --no-write{tail}", folder)) == 0
    assert f"not written into {place / 'configs' / 'x.yaml'}" in capsys.readouterr().out
    before = (place / "configs" / "x.yaml").read_text()
    assert main(options(f"tune --model MODEL --json{tail}", folder)) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["written"][-1] == str(place / "configs" / "x.yaml")
    value = found["best"]["memit_blue"]["best"]["mom2_update_weight"]
    assert (place / "configs" / "x.yaml").read_text() == before.replace(
        "memit_blue: {mom2_update_weight: 300}", f"memit_blue: {{mom2_update_weight: {value}}}"
    )


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("tune --editor memit", "name one model: blue tune MODEL"),
        ("tune MODEL --model MODEL", "name one model: blue tune MODEL"),
        (
            "tune pocket-llama --editor memit --write",
            "pocket-llama.yaml ships with the project, and is not overwritten",
        ),
        ("tune MODEL --editor memit --corpus nowhere.txt", "no corpus is called 'nowhere.txt'"),
        ("contributions --model MODEL --corpus nowhere.txt", "no corpus is called 'nowhere.txt'"),
        ("contributions --model MODEL --dataset nowhere", "no dataset is called 'nowhere'"),
        ("locate pocket-llama", "the settings of pocket-llama ship with the project"),
        ("locate MODEL", "x.yaml exists already; --force replaces it"),
        ("locate MODEL --output x.json", "settings are written into a .yaml or .yml file, not x.json"),
        ("edit --model MODEL --dataset pocket-zsre --corpus nowhere.txt", "no corpus is called 'nowhere.txt'"),
    ],
)
def test_what_can_be_refused_before_the_model_is_loaded_is(command, message, place, folder, monkeypatch, capsys):
    load = load_model

    def loads(name, **how):
        if name == "pocket-llama" and "--write" in command:  # whose settings its weights could find
            return load(name, **how)
        raise AssertionError("the model is loaded")

    monkeypatch.setattr("bluelib.models.load.load_model", loads)
    assert main(options(command, folder)) == 2
    assert message in capsys.readouterr().err


@pytest.fixture
def three(tmp_path):
    """Three facts as people write them first: without a true object, paraphrases or neighbours."""
    facts = [{"subject": who, "prompt": "{} lives in", "target_new": "Rome"} for who in ("Ada", "Ben", "Cy")]
    (tmp_path / "three.json").write_text(json.dumps(facts))
    return str(tmp_path / "three.json")


def test_layers_are_compared_after_paraphrases_or_not_at_all(place, folder, three, capsys):
    assert main(options(f"contributions --model MODEL --dataset {three}", folder)) == 2
    assert "no record has paraphrases, which the comparison of layers needs" in capsys.readouterr().err


def test_follow_takes_as_many_records_as_there_are(place, folder, three, capsys):
    assert main(options(f"follow --model MODEL --dataset {three} --editor memit --json", folder)) == 0
    (path,) = json.loads(capsys.readouterr().out)["written"]
    about = json.loads((place / path).read_text())["identity"]
    assert (about["edits"], about["batch_size"], about["others"]) == (3, 3, [])


def test_edits_go_on_from_a_delta(place, folder, tmp_path, capsys):
    edit = "edit --model MODEL --dataset pocket-zsre --editor alphaedit --edits 2 --no-generate --json"
    assert main(options(f"{edit} --save-delta {tmp_path / 'today'}", folder)) == 0
    go_on = f"{edit} --seed 1 --from {tmp_path / 'today'}"
    assert main(options(f"{go_on} --save-delta {tmp_path / 'tomorrow'} --save {tmp_path / 'saved'}", folder)) == 0
    capsys.readouterr()
    assert main(options(f"edit --model {tmp_path / 'saved'} --dataset pocket-zsre --edits 2", folder)) == 2
    assert "continue from them with --from FILE" in capsys.readouterr().err
    assert main(options(f"{go_on} --editor memit_blue --from {tmp_path / 'none'}", folder)) == 2
    assert "is not a file; name one that `save_delta` wrote" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["edit", "contributions", "nullspace", "convergence", "tune", "ablation"])
def test_a_text_that_is_too_short_is_noticed_first(command, place, folder, monkeypatch, capsys):
    def work(*_, **__):
        raise AssertionError("work has begun")

    for name in (
        "models.scoring.score_targets",
        "metrics.editing.score_targets",
        "editing.second_moments._measure",
        "metrics.answers.ask_about",
    ):
        monkeypatch.setattr(f"bluelib.{name}", work)
    (place / "short.txt").write_text("A harp is old, and a tuba is older.\n" * 60)
    line = f"{command} --model MODEL --dataset pocket-zsre --edits 1 --corpus short.txt --tokens 5000"
    assert main(options(line, folder)) == 2
    said = capsys.readouterr().err
    assert (
        "corpus 'short.txt' has " in said
        and "5000 were asked for; MEMIT has no unique solution with less than one" in said
    )


def test_edit_takes_as_many_tokens_as_it_is_told(place, folder, capsys):
    line = "edit --model MODEL --dataset pocket-zsre --edits 1 --editor memit_blue --no-generate --json --tokens 2500"
    assert main(options(line, folder)) == 0
    assert json.loads(capsys.readouterr().out)["editor"]["tokens"] == 2500
