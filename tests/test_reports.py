"""Tables and figures: what they say of scale and source, and that the same numbers give the same bytes."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pandas as pd
import pytest

from bluelib import load_model
from bluelib.configs import editor_settings, model_configs
from bluelib.contributions import layers_by_editing
from bluelib.editors import EDITORS
from bluelib.models import PAPER_MODELS, pocket_models, scale_of
from bluelib.nullspace import THRESHOLDS, energy_shares
from bluelib.pocket.pretrain import RECIPES
from bluelib.pocket.recall import short_of_bar
from bluelib.pocket.text import text_hash
from bluelib.reports.plots import plot_methods, save
from bluelib.reports.published import published, published_score
from bluelib.reports.tables import results_frame, write_table

ROOT = Path(__file__).parent.parent


def cell(editor="memit_blue", model="pocket-llama", efficacy=91.5):
    scores = {"efficacy": {"mean": efficacy, "standard_error": 1.25, "n": 200},
              "fluency": {"mean": 500.0, "standard_error": 2.0, "n": 200}}  # fmt: skip
    before = {"efficacy": {"mean": 1.0, "standard_error": 0.5, "n": 200}}
    return {
        "model": model, "dataset": "pocket-counterfact", "edits": 200, "batch_size": 10, "seed": 0,
        "editor": {"name": editor, "layers": [2, 6], "residual": {"name": "direct", "power": 0.0}, "solver": {"kind": "Ridge", "weight": 30}, "constraint": {"kind": "Constraint"}, "max_batch": None, "targets": {"kind": "TargetOptions", "steps": 25}},
        "before": before, "after": scores,
        "provenance": {"scale": "pocket", "dtype": "float32", "device": "cpu (x)", "model_revision": "sha256:ab",
                       "records_hash": "sha256:cd", "versions": {"python": "3.11"}, "git_commit": "ef"},
    }  # fmt: skip


def test_published_figures_have_their_source():
    value, source = published_score("Llama3-8B-Instruct", "counterfact", "MEMIT", "efficacy")
    assert (value, "arXiv" in source) == (65.65, True)
    assert published_score("GPT2-XL", "counterfact", "MEMIT_BLUE", "efficacy") is None
    for name in ("published_results", "single_layer_editing", "optimisation_steps", "edit_seconds"):
        assert published(name).source.notna().all()


def test_a_table_says_scale_source_and_what_is_missing(tmp_path):
    frame = write_table([cell(), cell("alphaedit", efficacy=80.0)], tmp_path / "t")
    text = (tmp_path / "t.md").read_text()
    assert "pocket scale, 200 edits in batches of 10" in text
    assert "| MEMIT_BLUE | 91.50 ± 1.25 (*99.57*) | 500.00 ± 2.00 (*626.26*) |" in text
    assert (
        "- memit_blue: layers [2, 6], residual direct, solver (Ridge: weight 30), constraint Constraint, targets"
        in text.replace("(Constraint)", "Constraint")
    )
    assert "arXiv:2502.03748" in text and "sha256:ab" in text and "not found in any public source" in text
    assert list(frame.method.unique()) == ["pre-edited", "MEMIT_BLUE", "AlphaEdit"]
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "t.csv"), frame)
    missing = results_frame([cell(model="pocket-gpt2")])
    row = missing[(missing.method == "MEMIT_BLUE") & (missing.metric == "efficacy")].iloc[0]
    assert pd.isna(row.published) and row.published_source == "n/a"
    write_table([cell(model="pocket-gpt2")], tmp_path / "g")
    assert "91.50 ± 1.25 (*n/a*)" in (tmp_path / "g.md").read_text()


def test_the_same_numbers_give_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        cells = copy.deepcopy([cell(), cell("memit", efficacy=70.0)])
        frame = write_table(cells, tmp_path / name)
        save(plot_methods(frame), tmp_path / name)
    for suffix in (".csv", ".md", ".svg", ".png"):
        assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()
    frame = write_table([cell(efficacy=91.6), cell("memit", efficacy=70.0)], tmp_path / "c")
    save(plot_methods(frame), tmp_path / "c")
    assert (tmp_path / "a.svg").read_bytes() != (tmp_path / "c.svg").read_bytes()


def test_scales_are_told_apart():
    assert [scale_of(name) for name in ("pocket-llama", PAPER_MODELS[0], "/some/checkpoint")] == [
        "pocket",
        "paper",
        "other",
    ]


def test_every_pocket_model_has_a_configuration():
    configs = model_configs()
    assert pocket_models() and set(pocket_models()) <= set(RECIPES)
    for name in pocket_models():
        assert set(configs[name]["editors"]) == set(EDITORS)


#: (our setting, the table's column) of each method's own settings.
OWN_COLUMNS = {
    "alphaedit": {"nullspace_threshold": "nullspace_threshold", "l2": "L2"},
    "ft": {"steps": "num_steps", "learning_rate": "lr", "norm_constraint": "norm_constraint"},
    "rome": {"mom2_adjustment": "mom2_adjustment"},
}
TARGET_COLUMNS = {"clamp": "clamp_norm_factor", "steps": "v_num_grad_steps", "learning_rate": "v_lr",
                  "weight_decay": "v_weight_decay", "kl_factor": "kl_factor"}  # fmt: skip
SAME_AS = {"rect": "memit", "prune": "memit", "memit_history": "memit"}


@pytest.mark.parametrize("model", PAPER_MODELS)
@pytest.mark.parametrize("editor", [name for name in EDITORS if name != "mend"])
def test_configurations_of_the_llms_are_the_published_ones(model, editor):
    table = published("hyperparameters")
    method, is_blue = editor.removesuffix("_blue"), editor.endswith("_blue")
    method = SAME_AS.get(method, method)
    rows = table[
        (table.model == model) & (table.method.str.lower() == method) & (table.blue == ("yes" if is_blue else "no"))
    ]
    if method == "ft" and len(rows) > 1:
        rows = rows[rows.source_file.str.endswith("_constr")]
    (row,) = rows.to_dict("records")
    settings = editor_settings(model, editor, shared=method != "ft")
    layers = settings["layers"]
    assert str([layers[0], layers[-1]] if is_blue else layers) == row["layers"]
    columns = OWN_COLUMNS.get(method, {"mom2_update_weight": "mom2_update_weight"})
    for setting, column in {**columns, **(TARGET_COLUMNS if method != "ft" else {})}.items():
        found = {"false": None, "true": True}.get(str(row[column]).lower(), row[column])
        if setting == "mom2_adjustment":
            assert settings.get(setting, True) == bool(found)
        else:
            assert settings[setting] == (None if found is None else pytest.approx(float(found))), setting


def test_energy_shares_by_hand():
    import torch

    c = torch.diag(torch.tensor([1e-6, 1e-6, 1.0, 3.0]))
    keys = torch.tensor([[1.0], [1.0], [1.0], [1.0]])
    rows = energy_shares(c, keys, [1e-3, 2.0])
    assert rows[0] == pytest.approx(
        {"threshold": 1e-3, "dimension": 0.5, "key_energy": 0.5, "moment_energy": 2e-6 / 4.000002}, rel=1e-5
    )
    assert rows[1]["dimension"] == 0.75 and rows[1]["key_energy"] == pytest.approx(0.75)
    assert sorted(THRESHOLDS) == list(THRESHOLDS)


def test_settings_of_the_pocket_models_are_those_the_search_found():
    """Each file in results/tuning is what the configuration says, and records its whole search."""
    found = sorted((ROOT / "results" / "tuning").glob("*.json"))
    configs = model_configs()  # MEND has a trained network in place of settings
    assert {path.stem for path in found} == {
        f"{model}-{editor}" for model in pocket_models() for editor in configs[model]["editors"] if editor != "mend"
    }
    for path in found:
        search = json.loads(path.read_text())
        settings = editor_settings(search["model"], search["editor"], shared=search["editor"] != "ft")
        assert settings.items() >= search["best"].items(), path.name
        best = max(trial["score"] for trial in search["trials"])
        (trial,) = [trial for trial in search["trials"] if trial["choice"] == search["best"]]
        assert trial["score"] == best
        assert search["split"] == "tune"
        assert search["provenance"]["model_revision"] == weights_revision(search["model"])


def test_critical_layers_are_those_that_contribute_most():
    for name in pocket_models():
        frame = pd.read_csv(ROOT / "results" / "contributions" / f"{name}.csv")
        assert model_configs()[name]["critical_layers"] == layers_by_editing(frame)


def weights_revision(name):
    return json.loads((pocket_models()[name] / "recall.json").read_text())["weights"]


def test_the_shipped_models_meet_their_bars():
    """As recorded when they were made, for the weights that are shipped now; `blue recall` measures it again."""
    for name, folder in pocket_models().items():
        record = json.loads((folder / "recall.json").read_text())
        assert record.pop("weights") == load_model(name).revision
        assert short_of_bar(record) == [], name
        assert len(record) == 9
        assert json.loads((folder / "training.json").read_text())["data"] == text_hash()
        assert (folder / "model.safetensors").stat().st_size < 12_000_000
