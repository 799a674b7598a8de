"""Tables and figures: what they say of scale and source, and that the same numbers give the same bytes."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from bluelib import load_model
from bluelib.editing import catalogue
from bluelib.editing.settings import editor_settings, model_configs
from bluelib.io.formats import read_json, write_json
from bluelib.metrics.intervals import bootstrap_means, limits
from bluelib.models.known import DOWNLOADS, PAPER_MODELS, pocket_models, scale_of
from bluelib.pocket.pretrain import RECIPES
from bluelib.pocket.recall import short_of_bar
from bluelib.pocket.text import text_hash
from bluelib.reports.claims.main import average_improvement, of_main_table
from bluelib.reports.comparison import (
    champions,
    family_gains,
    improvement,
    later_pairs,
    paired,
    published_improvement,
    record_scores,
    variant_pairs,
)
from bluelib.reports.plots import plot_main, plot_methods, plot_pareto
from bluelib.reports.published import published, published_score
from bluelib.reports.report import claims, contrasts, draw_overlay, filled, shown, write_report
from bluelib.reports.tables import (
    NOT_MEASURED,
    load_cells,
    main_frame,
    main_table,
    provenance_note,
    results_frame,
    short_table,
    write_tables,
)
from bluelib.runs.cell import SCHEMA
from bluelib.runs.grid import Grid
from bluelib.studies.layers import best_window, layers_by_editing
from bluelib.studies.nullspace import THRESHOLDS, energy_shares
from tests.support.pictures import same_file

ROOT = Path(__file__).parents[2]


EDITORS_SHOWN = ("memit", "memit_blue", "alphaedit", "alphaedit_blue")
GRID = Grid.of(
    {
        "name": "made",
        "models": ["pocket-gpt2", "pocket-llama"],
        "datasets": ["pocket-counterfact"],
        "editors": list(EDITORS_SHOWN),
        "seeds": [0, 1],
        "edits": 20,
        "batch_size": 10,
    }
)


def cell(editor="memit_blue", model="pocket-llama", seed=0, n=20, efficacy=91.5, **fixed):
    """A cell's numbers, with scores drawn around the means."""
    rng = np.random.default_rng([seed, len(editor), len(model)])
    means = {"efficacy": efficacy, "generalization": 80.0, "specificity": 90.0, "fluency": 600.0} | fixed
    scores = {metric: [round(float(x), 3) for x in rng.normal(mean, 2, n)] for metric, mean in means.items()}
    after = {
        metric: {"mean": round(float(np.mean(values)), 4), "standard_error": round(float(stats.sem(values)), 4), "n": n}
        for metric, values in scores.items()
    }
    before = {metric: {"mean": 1.0, "standard_error": 0.5, "n": n} for metric in means}
    return {
        "schema": SCHEMA,
        "model": model,
        "dataset": "pocket-counterfact",
        "edits": 20,
        "batch_size": 10,
        "seed": seed,
        "editor": {
            "name": editor,
            "layers": [2, 6],
            "residual": {"name": "direct", "power": 0.0},
            "solver": {"kind": "Ridge", "weight": 30},
            "constraint": {"kind": "Constraint"},
            "max_batch": None,
            "targets": {"kind": "TargetOptions", "steps": 25},
        },
        "before": before,
        "after": after,
        "scores": scores,
        "weight_change": {"2": 0.25 + seed, "6": 12.4},
        "provenance": {
            "scale": "pocket",
            "dtype": "float32",
            "device": "cpu (x)",
            "model_revision": "sha256:ab",
            "case_ids": list(range(seed * n, seed * n + n)),
            "records_hash": f"sha256:cd{seed}",
            "versions": {"python": "3.11"},
            "git_commit": "ef",
        },
    }


@pytest.fixture
def made(tmp_path, monkeypatch):
    """A small grid's numbers in a project of its own. BLUE is 10 points better in efficacy, and nothing else."""
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path)
    for place in GRID.cells():
        efficacy = 80.0 if place.editor.endswith("_blue") else 70.0
        write_json(GRID.result(place), cell(place.editor, place.model, place.seed, efficacy=efficacy))
    return GRID


def test_published_figures_have_their_source():
    value, sd, source = published_score("Llama3-8B-Instruct", "counterfact", "MEMIT", "efficacy")
    assert (value, sd, "arXiv" in source) == (65.65, 0.47, True)
    assert published_score("GPT2-XL", "counterfact", "MEMIT_BLUE", "efficacy") is None
    value, sd, source = published_score("Llama3-8B-Instruct", "counterfact", "MEMIT", "efficacy", kind="replication")
    assert (value, sd, "independent" in source) == (64.75, None, True)
    for name in (
        "published_results",
        "replications_fe",
        "single_layer_editing",
        "layer_analysis",
        "optimisation_steps",
        "edit_seconds",
    ):
        assert published(name).source.notna().all()


def test_every_published_method_has_a_row():
    """Those of the paper's table, before PMET and what it does not have."""
    named = list(dict.fromkeys(published("published_results").query("kind == 'published'").method))
    assert all(catalogue.labelled(method).name != method or method == "pre-edited" for method in named)
    assert {catalogue.labelled(method).reported for method in named} == {catalogue.MAIN_TABLE}


STRANGERS = replace(
    GRID, name="strangers", editors=("memit", "memit_blue", "memit_fe", "stranger", "mine", "mine_blue")
)


@pytest.fixture
def strangers(tmp_path, monkeypatch):
    """A grid with a method that was registered, with BLUE, and one that nobody knows: its numbers, and the committed
    analyses."""
    monkeypatch.setattr(catalogue, "_METHODS", dict(catalogue._METHODS))
    catalogue.register("mine", "bluelib.editing.named:memit", label="Mine", colour="#123456", variants=["blue"])
    (tmp_path / "notebooks").mkdir()
    for folder in ("results", "figures"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "pocket").symlink_to(ROOT / folder / "pocket")
    monkeypatch.chdir(tmp_path)
    for place in STRANGERS.cells():
        best = {"efficacy": 100.0} if place.editor == "memit_fe" else {}
        write_json(STRANGERS.result(place), cell(place.editor, place.model, place.seed, **best))
    return STRANGERS


@pytest.mark.slow
def test_no_method_is_dropped(strangers):
    """Registered or unknown, it is in every table and picture that has its kind, the unknown one under its own name."""
    shown = ["MEMIT", "MEMIT_BLUE", "MEMIT_FE", "stranger", "Mine", "Mine_BLUE"]
    write_tables(strangers)
    frame = pd.read_csv(strangers.figures / "main_pocket-counterfact.csv")
    assert set(frame.method) == {"pre-edited", *shown}
    rows = (strangers.figures / "main_pocket-counterfact.md").read_text().split("| ")
    assert [name for name in ("stranger ", "Mine ", "Mine_BLUE ") if name not in rows] == []
    assert [row.split(" |")[0] for row in short_table(frame.assign(rank=pd.NA)).split("\n| ")[1:]][-3:] == shown[-3:]
    paired_rows = pd.read_csv(strangers.figures / "paired.csv")
    assert list(dict.fromkeys(paired_rows.method)) == ["MEMIT", "Mine"]

    main = main_frame(load_cells(strangers))
    names = [tick.get_text() for tick in plot_main(main).axes[0].get_yticklabels()]
    assert names == ["MEMIT", "stranger", "Mine"]
    pareto = plot_pareto(main)
    drawn = {text.get_text() for text in pareto.legends[0].get_texts()}
    words = " ".join(axis.get_xlabel() for axis in pareto.axes)
    assert all(name in drawn or name in words for name in names)
    one = main[(main.model == "pocket-llama") & (main.dataset == "pocket-counterfact")]
    bars = plot_methods(one).axes[-1].get_xticklabels()
    assert [bar.get_text() for bar in bars] == ["pre-edited", *shown]
    assert "○ plain, ● BLUE, ◐ FE, |" in plot_main(main).get_suptitle()
    assert "BLUE variant (●) or FE variant (◐)" in plot_pareto(main).get_suptitle()

    best = champions(record_scores(load_cells(strangers)))
    assert "MEMIT_BLUE" in set(best.blue) and "MEMIT_FE" not in best.to_string(), "the contest is BLUE's and the plain"

    write_report(strangers, claims(strangers), strangers.figures)
    report = (strangers.figures / "report.md").read_text()
    assert "| pocket-llama | Mine |" in report and "MEMIT" in report


def test_a_main_table_says_scale_source_and_what_is_missing(made):
    assert write_tables(made) == made.tables() and all(path.exists() for path in made.tables())
    text = (made.figures / "main_pocket-counterfact.md").read_text()
    assert "pocket-llama (pocket scale): 20 edits in batches of 10, 2 seeds" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    llama = rows[rows.index("| method | efficacy | generalization | specificity | fluency | ‖ΔW‖/‖W‖ |", 5) :]
    following = {
        row.split(" | ")[0].strip("| "): llama[i + 1]
        for i, row in enumerate(llama)
        if "↳" not in row and i + 1 < len(llama)
    }
    assert following["MEMIT_BLUE"] == "| *↳ published* | *99.57* | *94.13* | *83.77* | *626.26* | *n/a* |"
    assert following["MEND"].startswith("| *↳ published* | *63.24 ± ")
    assert "| *↳ replicated* | *64.75* | *61.70* | *51.83* | *n/a* | *n/a* |" in llama
    assert "| InstructEdit | – | – | – | – | – |" in rows, "a method of the paper that is not here stays visible"
    gpt2 = text[: text.index("**pocket-llama")]
    assert "| *↳ published* | *n/a* | *n/a* | *n/a* | *n/a* | *n/a* |" in gpt2[gpt2.index("MEMIT_BLUE") :]
    for part in (
        "arXiv:2502.03748",
        "sha256:ab",
        "sha256:cd1",
        "commit `ef`",
        "not found in any public source",
        "memit_blue: layers [2, 6], residual direct, solver (Ridge: weight 30)",
    ):
        assert part in text
    latex = (made.figures / "main_pocket-counterfact.tex").read_text()
    assert latex.count(r"\begin{tabular}") == latex.count(r"\end{tabular}") == 2
    assert r"MEMIT\_BLUE & " in latex and r"\quad \textit{published}" in latex
    body = latex[: latex.index(r"\bottomrule")].split(r"\midrule")[2]
    assert all(line.count(" & ") == 5 and line.endswith(r"\\") for line in body.splitlines()[1:] if line)


def test_a_model_that_nobody_has_published_figures_of_has_no_rows_for_them():
    own = main_frame([cell("memit", "/home/me/model"), cell("memit_blue", "/home/me/model")])
    (block,) = main_table(own, lambda title, rows, header: f"{title} {rows}")
    assert "ublished" not in block and "MEMIT_BLUE" in block


def test_a_cell_in_which_nothing_could_be_measured_is_an_empty_frame():
    frame = results_frame([{**cell("memit"), "before": {}, "after": {}}])
    assert frame.empty and {"method", "metric", "mean"} <= set(frame.columns)


def test_a_main_table_pools_seeds_and_marks_the_best(made):
    frame = main_frame(load_cells(made))
    chosen = frame[(frame.model == "pocket-llama") & (frame.metric == "efficacy")].set_index("method")
    cells = [json.loads(made.result(place).read_text()) for place in made.cells()]
    own = [c["after"]["efficacy"] for c in cells if (c["model"], c["editor"]["name"]) == ("pocket-llama", "memit")]
    assert chosen["mean"]["MEMIT"] == pytest.approx(np.mean([score["mean"] for score in own]))
    assert chosen.standard_error["MEMIT"] == pytest.approx(np.hypot(*(score["standard_error"] for score in own)) / 2)
    assert chosen.weight_change["MEMIT"] == 12.4 and pd.isna(chosen.weight_change["pre-edited"])
    assert chosen.records["MEMIT"] == 40 and pd.isna(chosen["rank"]["pre-edited"])
    order = chosen.drop("pre-edited")["mean"].sort_values(ascending=False)
    assert [chosen["rank"][method] for method in order.index] == [1, 2, 3, 4]
    text = (write_tables(made)[0]).read_text()
    best, second = order.index[:2]
    assert f"| **{order[best]:.2f} ± " in text and f"| <u>{order[second]:.2f} ± " in text
    assert " | ‖ΔW‖/‖W‖ |\n" in text and " | 12 |\n" in text and " | *n/a* |\n" in text
    assert (
        "here 12 to 12, half of them above 12. **Where it is far above 1, a pocket model is outside the regime" in text
    )


@pytest.mark.parametrize("missing", ["generalization", pytest.param("specificity", marks=pytest.mark.slow)])
def test_records_without_paraphrases_or_neighbours_make_tables(made, missing):
    for place in made.cells():
        content = json.loads(made.result(place).read_text())
        for part in ("before", "after", "scores"):
            del content[part][missing]
        write_json(made.result(place), content)
    assert write_tables(made) == made.tables()
    scores, main = record_scores(load_cells(made)), main_frame(load_cells(made))
    assert missing not in (made.figures / "main_pocket-counterfact.md").read_text().partition("\n\n")[2].split("\n")[0]
    assert f"{missing[:4]}." not in short_table(main) and "effi." in short_table(main)
    gains, best = family_gains(scores), champions(scores)
    assert set(gains.measure) == {"editing", "score"} | ({"specificity"} - {missing})
    assert set(best.blue) <= {"MEMIT_BLUE", "AlphaEdit_BLUE"}
    verdicts = of_main_table(contrasts(scores), best)
    assert any("leaves more of the rest alone" in verdict.claim for verdict in verdicts) == (missing != "specificity")


def test_a_short_table_of_an_unfinished_grid_says_what_is_not_measured(made):
    for place in made.cells():
        if place.editor == "memit_blue" and place.model == "pocket-llama":
            made.result(place).unlink()
    rows = short_table(main_frame(load_cells(made, partial=True)).query("dataset == 'pocket-counterfact'"))
    (row,) = [line for line in rows.splitlines() if line.startswith("| MEMIT_BLUE |")]
    assert (
        row.split(" | ")[4:] == [NOT_MEASURED, NOT_MEASURED, f"{NOT_MEASURED} |"]
        and NOT_MEASURED not in row.split(" | ")[:4]
    )


def test_a_missing_cell_is_named(made):
    made.result(made.cells()[3]).unlink()
    with pytest.raises(
        FileNotFoundError, match=r"lacks pocket-gpt2_pocket-counterfact_memit_blue_20x10_seed1\.json: run the grid"
    ):
        write_tables(made)


def test_tables_of_an_unfinished_grid_show_the_methods_that_have_all_seeds(made):
    gone = next(place for place in made.cells() if place.editor == "memit_blue" and place.seed == 1)
    made.result(gone).unlink()
    write_tables(made, partial=True)
    table = (made.figures / "main_pocket-counterfact.md").read_text(encoding="utf-8")
    assert "cells have not been run yet or lack another seed.**" in table
    frame = pd.read_csv(made.figures / "main_pocket-counterfact.csv")
    assert gone.model not in set(frame[frame.method == "MEMIT_BLUE"].model)
    assert gone.model in set(frame[frame.method == "MEMIT"].model)
    for place in made.cells():
        if place.seed == 1:
            made.result(place).unlink(missing_ok=True)
    with pytest.raises(FileNotFoundError, match="no method has been run with all 2 seeds yet"):
        write_tables(made, partial=True)


def test_a_table_of_cells_of_two_versions_says_which_are_of_which():
    cells = [cell("memit"), cell("memit_blue"), cell("memit_blue", seed=1)]
    assert provenance_note(cells).count("CPU thread") == 1 and "(MEMIT" not in provenance_note(cells)
    for later in cells[1:]:
        later["provenance"] = {**later["provenance"], "versions": {"bluelib": "9.9"}}
    note = provenance_note(cells)
    assert note.count("CPU thread") == 2 and "bluelib 9.9 (MEMIT_BLUE); commit" in note and "(MEMIT); or " in note


def test_claims_of_an_unfinished_grid_are_about_the_editors_that_have_run_everywhere(made):
    """One cell of AlphaEdit_BLUE is missing: no claim is about it. Which method is best cannot be said yet."""
    whole = [one for one in claims(made) if one.notebook == "06_main_table"]
    gone = next(place for place in made.cells() if place.editor == "alphaedit_blue" and place.model == "pocket-gpt2")
    made.result(gone).unlink()
    found = [one for one in claims(made, partial=True) if one.notebook == "06_main_table"]
    best = "a BLUE variant is the best"
    assert [one.claim for one in found] == [one.claim for one in whole if not one.claim.text.startswith(best)]
    assert any(one.claim.text.startswith(best) for one in whole)
    editing, before = found[0].verdicts["pocket-llama"], whole[0].verdicts["pocket-llama"]
    assert "AlphaEdit" in before.seen and "AlphaEdit" not in editing.seen and "MEMIT" in editing.seen
    assert found[0].size["pocket-llama"].endswith("; so far of MEMIT") and "so far" not in whole[0].size["pocket-llama"]
    for place in made.cells():
        if place.seed == 1:
            made.result(place).unlink(missing_ok=True)
    assert not [one for one in claims(made, partial=True) if one.notebook == "06_main_table"]


def test_claims_of_an_unfinished_grid_of_one_model_count_what_has_run_on_each_dataset(tmp_path, monkeypatch):
    """MEMIT has run on both datasets, AlphaEdit on one: there it is judged, and so are its gains in the average."""
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path)
    datasets = ["pocket-counterfact", "pocket-zsre"]
    grid = replace(GRID, models=("pocket-llama",), datasets=tuple(datasets), seeds=(0,))
    for place in grid.cells():
        if place.dataset == datasets[0] or place.editor.startswith("memit"):
            efficacy = 80.0 if place.editor.endswith("_blue") else 70.0
            write_json(
                grid.result(place), cell(place.editor, place.model, efficacy=efficacy) | {"dataset": place.dataset}
            )
    found = [one for one in claims(grid, partial=True) if one.notebook == "06_main_table"]
    (editing,) = [one.verdicts["pocket-llama"] for one in found if "edits better than its plain" in one.claim.text]
    assert [part.split(" +")[0] for part in editing.seen.split("; ")] == [
        "CounterFact: MEMIT",
        "CounterFact: AlphaEdit",
        "zsRE: MEMIT",
    ]
    assert editing.answers == (1, 1, 1)
    assert found[0].size["pocket-llama"].endswith("; so far of MEMIT; on CounterFact also AlphaEdit")
    frame, *_ = improvement(record_scores(load_cells(grid, partial=True)))
    assert frame[["dataset", "method"]].to_numpy().tolist()[:-1] == [
        [datasets[0], "MEMIT"],
        [datasets[0], "AlphaEdit"],
        [datasets[1], "MEMIT"],
    ]


def test_two_cells_cannot_claim_one_place():
    with pytest.raises(ValueError, match="two cells claim the same place"):
        results_frame([cell(), cell()])


@pytest.mark.slow
def test_the_same_numbers_give_the_same_bytes(made):
    first = {path: path.read_bytes() for path in write_tables(made)}
    assert {path: path.read_bytes() for path in write_tables(made)} == first
    place = made.cells()[0]
    write_json(made.result(place), cell(place.editor, place.model, place.seed, efficacy=71.0))
    changed = {path.name for path in write_tables(made) if path.read_bytes() != first[path]}
    assert changed == {path.name for path in made.tables()}


@pytest.mark.parametrize("grid", ["small", pytest.param("pocket", marks=pytest.mark.slow)])
def test_committed_tables_are_those_of_the_committed_results(grid, tmp_path, monkeypatch):
    """Byte for byte, and pictures pixel for pixel."""
    committed = Grid.load(ROOT / "results" / grid / "grid.json")
    (tmp_path / "notebooks").mkdir()
    shutil.copytree(ROOT / "results" / grid, tmp_path / "results" / grid)
    monkeypatch.chdir(tmp_path)
    for path in write_tables(committed, partial=grid == "small"):
        assert same_file(path, ROOT / "figures" / grid / path.name), path.name


def test_the_pages_show_the_committed_tables_and_verdicts(tmp_path, monkeypatch):
    """``scripts/update_pages.py`` would change nothing."""
    monkeypatch.chdir(ROOT)
    for page, parts in shown().items():
        assert filled(page, parts) == page.read_text(encoding="utf-8"), page.name
    path = draw_overlay(tmp_path)
    assert same_file(path, ROOT / "figures" / path.name)
    with pytest.raises(ValueError, match="the text must have exactly one place for 'nothing'"):
        filled(ROOT / "README.md", {"nothing": "x"})
    with pytest.raises(ValueError, match=r"03_theory.ipynb has 0 cells with the mark <!-- nothing -->"):
        filled(ROOT / "notebooks" / "03_theory.ipynb", {"nothing": "x"})


def test_methods_that_hardly_edit_stand_in_words_below_the_pareto_picture():
    methods = {"MEMIT": (60, 90), "MEMIT_BLUE": (70, 95), "PRUNE": (99, 5), "PRUNE_BLUE": (99, 4), "FT": (30, 90)}
    rows = [
        {"model": "pocket-llama", "dataset": "zsre", "method": method, "metric": metric, "mean": value}
        for method, (specificity, editing) in methods.items()
        for metric, value in (("efficacy", editing), ("generalization", editing), ("specificity", specificity))
    ]
    about = {"standard_error": 1.0, "scale": "pocket", "edits": 10, "batch_size": 5}
    figure = plot_pareto(pd.DataFrame(rows).assign(**about))
    label = " ".join(figure.axes[0].get_xlabel().replace("\N{NO-BREAK SPACE}", " ").split())
    assert label == "specificity (%) outside: FT 30 | 90, PRUNE 99 | 5, PRUNE_BLUE 99 | 4"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["MEMIT"]
    low, high = figure.axes[0].get_ylim()
    assert low > 80 and high < 100, "the others have the room"


def test_blue_is_told_from_plain_where_it_is_better_and_only_there(made):
    frame = paired(record_scores(load_cells(made)))
    assert set(frame[frame.metric == "efficacy"].verdict) == {"better"}
    others = frame[frame.metric != "efficacy"]
    assert (others.verdict == "neither").mean() > 0.8
    efficacy = frame[frame.metric == "efficacy"]
    assert ((efficacy.low < 10) & (efficacy.high > 10)).mean() >= 0.75
    assert (efficacy.seeds == 2).all() and (efficacy.records == 40).all()


def test_records_of_one_subject_are_drawn_together_and_others_as_before():
    """200 records in pairs that agree: the interval is that of 100 records."""
    rng = np.random.default_rng(0)
    gains = np.repeat(rng.normal(1, 10, 100), 2)
    cells = [cell("memit", n=200), cell("memit_blue", n=200)]
    for made, scores in zip(cells, (np.zeros(200), gains), strict=True):
        made["scores"] = {"efficacy": scores.tolist()}
    alone = paired(record_scores(cells)).iloc[0]
    for made in cells:
        made["provenance"]["subjects"] = list(range(200))
    assert paired(record_scores(cells)).iloc[0].equals(alone), "all differ"
    for made in cells:
        made["provenance"]["subjects"] = np.repeat(range(100), 2).tolist()
    together = paired(record_scores(cells)).iloc[0]
    assert together.difference == alone.difference
    assert (together.high - together.low) / (alone.high - alone.low) == pytest.approx(2**0.5, rel=0.1)
    assert together.p > 2 * alone.p
    expected = stats.sem(gains[::2]) * 1.96
    assert together.high - together.difference == pytest.approx(expected, rel=0.15)


def test_paired_comparisons_need_the_same_records():
    cells = [cell("memit"), cell("memit_blue")]
    cells[1]["provenance"]["case_ids"] = list(range(100, 120))
    with pytest.raises(
        ValueError, match=r"pocket-llama, pocket-counterfact: efficacy was not measured on the same records"
    ):
        record_scores(cells)


def test_improvement_by_hand():
    """(90 − 60)/60 = 50 %, (80 − 80)/80 = 0, nothing of 0, (100 − 50)/50 = 100 %: 50 % on average; 26.7 points."""
    flat = {"efficacy": 60.0, "generalization": 80.0, "specificity": 0.0, "fluency": 50.0}
    cells = []
    for editor, means in (
        ("memit", flat),
        ("memit_blue", {"efficacy": 90.0, "generalization": 80.0, "specificity": 50.0, "fluency": 100.0}),
    ):
        made = cell(editor)
        made["scores"] = {metric: [mean] * 20 for metric, mean in means.items()}
        cells.append(made)
    frame, _, _, below = improvement(record_scores(cells))
    row, average = frame.iloc[0], frame.iloc[1]
    assert (row.efficacy, row.generalization, row.fluency, row.improvement) == (50.0, 0.0, 100.0, 50.0)
    assert pd.isna(row.specificity) and row.undefined == 1
    assert row.points == pytest.approx((30 + 0 + 50) / 3)
    assert (average.improvement, average.low, average.high, average["median"]) == (50.0, 50.0, 50.0, 50.0)
    assert "35.59 % on average" in below and "left out (–), where the plain method has less than 5: 1." in below
    for made in cells:  # nothing at all to be relative to
        made["scores"] = {metric: [0.0] * 20 for metric in flat}
    frame = improvement(record_scores(cells))[0]
    assert frame.improvement.isna().all() and frame.undefined.iloc[0] == 4 and frame.points.iloc[0] == 0


def test_records_without_a_metric_are_left_out_of_it_alone():
    cells = [cell("memit"), cell("memit_blue", efficacy=95.0)]
    for made in cells:
        made["scores"]["fluency"][3] = None
    frame = paired(record_scores(cells)).set_index("metric")
    assert (frame.records["efficacy"], frame.records["fluency"]) == (20, 19)
    assert frame[["low", "high"]].notna().all(axis=None)
    cells[0]["scores"]["fluency"][4] = None
    with pytest.raises(ValueError, match="fluency was not measured on the same records for all methods"):
        record_scores(cells)


def test_bootstrap_means_by_hand():
    values = np.array([[[1.0, 1.0, 1.0]], [[0.0, 0.0, 3.0]]])
    drawn = bootstrap_means(values)
    assert (drawn[0] == 1).all() and set(np.round(drawn[1], 9)) == {0.0, 1.0, 2.0, 3.0}
    two = bootstrap_means(np.array([[[0.0, 0.0], [1.0, 1.0]]]))  # groups are drawn, not only values
    assert set(two[0]) == {0.0, 0.5, 1.0}
    wide = np.random.default_rng(0).normal(size=(1, 1, 400))
    low, high = limits(bootstrap_means(wide)[0])
    assert (high - low) / 2 == pytest.approx(1.96 * wide.std() / 20, rel=0.1)


def test_bootstrap_means_are_those_of_the_records_that_were_drawn():
    """Groups of unequal numbers of clusters, with values that are missing, one draw after another."""
    values = np.random.default_rng(1).normal(size=(3, 2, 7))
    values[0, 0, 2] = values[1, 1, 5] = np.nan
    clusters = np.array([[0, 0, 1, 2, 3, 3, 4], [5, 6, 5, 6, 6, 5, 6]])
    rng = np.random.default_rng(4)
    for drawn in bootstrap_means(values, clusters, seed=4).T[:50]:
        means = []
        for group in rng.integers(2, size=2):
            names = np.unique(clusters[group])
            chosen = names[rng.integers(len(names), size=len(names))]
            means.append(
                np.nanmean(
                    [values[:, group, i] for name in chosen for i in np.flatnonzero(clusters[group] == name)], axis=0
                )
            )
        assert drawn == pytest.approx(np.mean(means, axis=0), rel=1e-12)


def test_an_end_of_an_interval_on_a_tie_is_the_same_whatever_order_was_added_in():
    draws = np.repeat([0.0, 0.0175, 0.03], [1000, 980, 20])
    other = draws + np.random.default_rng(0).choice([-1e-17, 0, 1e-17, 4e-18], size=2000)
    assert (draws != other).any() and limits(draws) == limits(other)


def test_cells_of_an_older_schema_or_of_two_scales_are_refused(made):
    path = made.result(made.cells()[0])
    content = json.loads(path.read_text())
    write_json(path, {**content, "schema": 1})
    with pytest.raises(ValueError, match="is of schema 1, not 2: delete it and run the grid again"):
        load_cells(made)
    write_json(path, {**content, "provenance": {**content["provenance"], "scale": "paper"}})
    with pytest.raises(ValueError, match="a table shows one scale, not paper and pocket"):
        load_cells(made)


def test_cells_of_other_weights_or_records_make_no_table(made):
    path = made.result(made.cells()[0])
    content = json.loads(path.read_text())
    for what in ("model_revision", "records_hash"):
        write_json(path, {**content, "provenance": {**content["provenance"], what: "sha256:other"}})
        with pytest.raises(
            ValueError, match=rf"was made with {what} sha256:.*, .*\.json with sha256:.*: delete what is"
        ):
            load_cells(made)


def test_the_published_improvement_is_that_of_the_published_pairs():
    value, pairs = published_improvement()
    table = published("published_results").query("kind == 'published' and edits == 2000")
    assert pairs == len(table[table.method.str.endswith("_BLUE")].groupby(["model", "dataset", "method"]))
    gptj = {r.metric: r.value for r in table[(table.model == "GPT-J-6B") & (table.method == "MEMIT_BLUE")].itertuples()}
    assert gptj == {"efficacy": 99.70, "generalization": 96.90, "specificity": 74.61, "fluency": 620.89}
    assert 30 < value < 60


def test_family_gains_and_champions(made):
    scores = record_scores(load_cells(made))
    gains = family_gains(scores).set_index(["model", "method", "measure"])
    assert len(gains) == 2 * 2 * 3
    row = gains.loc[("pocket-llama", "MEMIT", "editing")]
    frame = scores["pocket-llama", "pocket-counterfact"]
    by_hand = [(frame["MEMIT_BLUE", m] - frame["MEMIT", m]).mean() for m in ("efficacy", "generalization")]
    assert row["mean"] == pytest.approx(np.mean(by_hand)) and row.low < row["mean"] < row.high
    best = champions(scores)
    assert set(best.blue) <= {"MEMIT_BLUE", "AlphaEdit_BLUE"} and (best.low > 0).all()
    compared = contrasts(scores)
    assert compared["blue"].drop(columns="other").equals(gains.reset_index())
    assert all(compared[name].empty for name in ("pmet", "fe", "fe over blue", "cake")), "none of these in this grid"
    first, _, third = of_main_table(compared, best)
    assert (first.verdict, third.verdict) == ("reproduced", "reproduced")
    fourth = of_main_table({**compared, "pmet": compared["blue"].assign(method="PMET")}, best)[3]
    assert fourth.claim.startswith("BLUE works with PMET too") and fourth.verdict == "reproduced"
    worse = best.assign(mean=-best["mean"], low=-best.high, high=-best.low)
    assert of_main_table(compared, worse)[2].verdict == "reversed here"


def test_pairs_of_variants_and_of_later_methods():
    labels = ["MEMIT_FE", "AlphaEdit", "MEMIT", "MEMIT_CAKE", "MEMIT_BLUE", "AlphaEdit_BLUE", "SPHERE", "RECT_FE"]
    assert variant_pairs(labels, "", "blue") == [("MEMIT", "MEMIT_BLUE"), ("AlphaEdit", "AlphaEdit_BLUE")]
    assert variant_pairs(labels, "", "fe") == [("MEMIT", "MEMIT_FE")]
    assert variant_pairs(labels, "blue", "fe") == [("MEMIT_BLUE", "MEMIT_FE")]
    assert later_pairs(labels) == [("MEMIT", "MEMIT_CAKE"), ("AlphaEdit", "SPHERE")]
    assert later_pairs(labels, "CAKE") == [("MEMIT", "MEMIT_CAKE")] and later_pairs(["MEMIT_CAKE"]) == []


def test_replaying_is_judged_against_plain_and_against_blue():
    cells = [cell(name, efficacy=mean) for name, mean in (("memit", 60.0), ("memit_blue", 90.0), ("memit_fe", 75.0))]
    scores = record_scores(cells)
    found = {v.claim: v.verdict for v in of_main_table(contrasts(scores), champions(scores))}
    replaying = [verdict for claim, verdict in found.items() if claim.startswith("replaying")]
    assert replaying == ["reproduced", "reversed here"]


def test_the_average_improvement_needs_an_interval_above_zero():
    row = {
        "improvement": 40.0,
        "low": 20.0,
        "high": 60.0,
        "median": 30.0,
        "points": 5.0,
        "points_low": 4.0,
        "points_high": 6.0,
    }
    assert average_improvement(row).verdict == "reproduced"
    assert average_improvement({**row, "high": 30.0}).verdict == "partly"
    assert average_improvement({**row, "low": 36.0}).verdict == "partly", "another size"
    assert average_improvement({**row, "low": -1.0}).verdict == "not seen here", "noise shows nothing"
    assert average_improvement({**row, "low": -9.0, "high": -1.0, "points_low": -9.0, "points_high": -1.0}).verdict == (
        "reversed here"
    )
    assert average_improvement({**row, "points_low": -1.0}).verdict == "partly", "one baseline near 0 can carry a mean"


def test_scales_are_told_apart():
    assert [scale_of(name) for name in ("pocket-llama", "smollm2-135m", PAPER_MODELS[0], "/some/checkpoint")] == [
        "pocket",
        "small",
        "paper",
        "other",
    ]


def test_every_pocket_model_has_a_configuration():
    configs = model_configs()
    assert pocket_models() and set(pocket_models()) <= set(RECIPES)
    for name in pocket_models():
        assert set(configs[name]["editors"]) == set(catalogue.names())


#: (our setting, the table's column) of each method's own settings.
OWN_COLUMNS = {
    "alphaedit": {"nullspace_threshold": "nullspace_threshold", "l2": "L2"},
    "ft": {"steps": "num_steps", "learning_rate": "lr", "norm_constraint": "norm_constraint"},
    "rome": {"mom2_adjustment": "mom2_adjustment"},
}
TARGET_COLUMNS = {
    "clamp": "clamp_norm_factor",
    "steps": "v_num_grad_steps",
    "learning_rate": "v_lr",
    "weight_decay": "v_weight_decay",
    "kl_factor": "kl_factor",
}
#: What the paper reports, and MEMIT with history; later methods have other sources, or for some models none.
OF_THE_PAPER = [
    name
    for name in catalogue.names()
    for row in [catalogue.known(name)]
    if name != "mend" and row.variant in ("", "blue") and (row.reported or row.family == "MEMIT (history)")
]
SAME_AS = {"rect": "memit", "prune": "memit", "memit_history": "memit"}


@pytest.mark.parametrize("model", PAPER_MODELS)
@pytest.mark.parametrize("editor", OF_THE_PAPER)
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


def test_settings_are_those_the_search_found():
    """Each file in results/tuning is what the configuration says, and records its whole search."""
    found = sorted((ROOT / "results" / "tuning").glob("*.json"))
    configs = model_configs()  # MEND has a trained network in place of settings
    assert {path.stem for path in found if path.stem.startswith("pocket-")} == {
        f"{model}-{editor}" for model in pocket_models() for editor in configs[model]["editors"] if editor != "mend"
    }
    sizes = {}
    for path in found:
        search = json.loads(path.read_text())
        model, editor = search["model"], search["editor"]
        assert path.stem == f"{model}-{editor}"
        settings = editor_settings(model, editor, shared=editor != "ft")
        assert settings.items() >= search["best"].items(), path.name
        best = max(trial["score"] for trial in search["trials"])
        chosen = {axis: search["best"][axis] for axis in search["axes"]}  # the best has what is measured for it, too
        (trial,) = [trial for trial in search["trials"] if trial["choice"] == chosen]
        assert trial["score"] == best and all(t["choice"].keys() == chosen.keys() for t in search["trials"])
        assert search["split"] == "tune" or "choosing_split" in search
        assert search["provenance"]["model_revision"] == weights_revision(model)
        sizes.setdefault(model, set()).add((search["dataset"], search["edits"], search["batch_size"]))
    assert all(len(of_model) == 1 for of_model in sizes.values()), "each method's search must be of the same records"


def test_layers_and_targets_of_the_small_model_are_those_that_were_located():
    (name,) = DOWNLOADS
    located, config = read_json(ROOT / "results" / "locate" / f"{name}.json"), model_configs()[name]
    assert located["provenance"]["model_revision"] == weights_revision(name) == config["revision"]
    assert config["critical_layers"] == located["windows"]["contributions"]
    assert config["targets"] == located["config"]["targets"]
    curve = pd.DataFrame(located["contributions"]).set_index("layer").paraphrase
    assert config["critical_layers"] == best_window(curve, 5)


def test_critical_layers_are_those_that_contribute_most():
    for name in pocket_models():
        frame = pd.read_csv(ROOT / "results" / "contributions" / f"{name}.csv")
        assert model_configs()[name]["critical_layers"] == layers_by_editing(frame)


def weights_revision(name):
    if name in DOWNLOADS:
        return f"sha256:{DOWNLOADS[name].gguf_sha256}"
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
