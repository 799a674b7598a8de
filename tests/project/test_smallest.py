"""Every notebook runs with the fewest edits that it takes, on a model that ships, on the real one, and on one of the
user's own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from bluelib.cli import main
from bluelib.editing.settings import USER_CONFIGS, settings_file
from bluelib.models.known import pocket_models

ROOT = Path(__file__).parents[2]
SMALLEST = {
    "00_quickstart": {"edits": 1, "batch_size": 1},
    "01_blue_from_scratch": {"edits": 1},
    "02_locate": {"edits": 1, "samples": 1, "window": 1},
    "03_theory": {"edits": 1, "batch_size": 1},
    "04_residuals": {"edits": 1, "batch_size": 1},
    "05_error_growth": {"edits": 2, "batch_size": 1, "sequences": 2, "largest": 10},
    "06_main_table": {"edits": 1, "batch_size": 1},
    "07_general_capability": {"edits": 2, "batch_size": 1, "every": 1, "limit": 1, "tasks": ["pocket_sentiment"]},
    "08_hidden_states": {"edits": 1, "batch_size": 1, "facts": 4},
    "09_long_texts_and_batches": {"edits": 1, "batch_size": 1, "sizes": [1]},
    "10_methods_since": {"edits": 1, "batch_size": 1, "live_edits": 1},
    "11_beyond_likelihood": {"edits": 1, "batch_size": 1},
}
#: On the shipped facts of the real model: of the first alone it does not know the answer, and none has a long text.
OF_FACTS = {"02_locate": {"edits": 4}, "09_long_texts_and_batches": {"long_dataset": "long.json"}}
LONG = {
    "prompt": "Where does {} lie?",
    "subject": "Rome",
    "target_new": "In Peru. Rome lies in Peru.",
    "target_true": "Italy",
}


def test_all_notebooks_are_here():
    found = {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert found == SMALLEST.keys() | {"12_report", "demo_edit_a_fact"}, "which edit nothing, and what they are told to"


@pytest.fixture(params=["pocket-llama", "smollm2-135m", "own"])
def model(request, tmp_path, monkeypatch):
    """The name of a model, in a checkout of the notebooks and the committed numbers that they read."""
    (tmp_path / "notebooks").mkdir()
    for part in ("ablation", "contributions", "small", "pocket"):
        shutil.copytree(ROOT / "results" / part, tmp_path / "results" / part)
    monkeypatch.chdir(tmp_path)
    if request.param == "smollm2-135m":
        request.getfixturevalue("smollm2")
    if request.param != "own":
        return request.param
    folder = shutil.copytree(pocket_models()["pocket-llama"], tmp_path / "models" / "mine")
    settings = yaml.safe_load(settings_file("pocket-llama").read_text(encoding="utf-8"))
    weights = folder / "model.safetensors"  # others than pocket-llama's, which would be known by their hash
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "mine.yml").write_text(yaml.safe_dump({**settings, "models": [str(folder)]}))
    monkeypatch.setenv(USER_CONFIGS, str(tmp_path / "configs"))
    return str(folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SMALLEST))
def test_a_notebook_runs_with_the_fewest_edits(name, model, tmp_path, capsys):
    shutil.copy(ROOT / "notebooks" / f"{name}.ipynb", tmp_path / "notebooks")
    dataset = "facts" if model == "smollm2-135m" else "pocket-counterfact"
    given = {"model": model, "dataset": dataset, **SMALLEST[name]}
    if dataset == "facts":
        given |= OF_FACTS.get(name, {})
        (tmp_path / "long.json").write_text(json.dumps([LONG]), encoding="utf-8")
    parameters = [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in given.items()]
    status = main(["notebook", name, str(tmp_path / "out.ipynb"), "-p", *parameters])
    said = capsys.readouterr().err
    assert status == 0, said[-3000:]
    if name == "05_error_growth":
        # Its last part is about runs that a model may not have, on records that may be missing.
        printed = (tmp_path / "out.ipynb").read_text(encoding="utf-8")
        asked = f"{model} has no ablation yet. To make it: blue ablation --model {model}"
        assert (asked in printed) == (model not in ("pocket-llama", "smollm2-135m"))
        assert ("for its records are missing: data/zsre_2000.json" in printed) == (model == "smollm2-135m")
