"""What pages say of the results follows from them: the README's findings, and the tables of the open questions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bluelib.io.formats import read_json, write_json
from bluelib.reports import open_questions, summary
from bluelib.reports.claims import Claim, Verdict
from bluelib.reports.report import Finding
from bluelib.runs.grid import Grid
from bluelib.studies.follow import followed

ROOT = Path(__file__).parents[2]
LABELS = ("MEMIT", "MEMIT_BLUE", "MEMIT (history)", "MEMIT (history)_BLUE")


def scores_of(means: dict[str, float], model="smollm2-135m", n=40) -> dict:
    """Of one dataset: each method's scores are around its mean in every metric, and the same records throughout."""
    noise = np.random.default_rng(0).normal(0, 1, n)
    index = pd.MultiIndex.from_arrays([[0] * n, range(n), range(n)], names=["seed", "record", "subject"])
    columns = {
        (label, metric): mean + noise
        for label, mean in means.items()
        for metric in ("efficacy", "generalization", "specificity")
    }
    return {(model, "d"): pd.DataFrame(columns, index=index)}


def test_history_and_blue_are_taken_apart():
    table = open_questions.history([scores_of(dict(zip(LABELS, (60.0, 80.0, 70.0, 85.0), strict=True)))])
    found = dict(re_rows(table))
    assert found["MEMIT (history) − MEMIT"] == "+10.0 [+10.0, +10.0]"
    assert found["MEMIT (history)_BLUE − MEMIT_BLUE"] == "+5.0 [+5.0, +5.0]"
    assert found["MEMIT_BLUE − MEMIT"] == "+20.0 [+20.0, +20.0]"
    assert open_questions.history([scores_of({"MEMIT": 60.0})]) == open_questions.NOTHING


def re_rows(table: str):
    for line in table.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if "−" in line and len(cells) == 5:
            yield cells[2], cells[3]


@pytest.mark.parametrize(
    ("blue", "words"), [(62.0, "is smaller than the abstract's in our runs"), (90.0, "need not be the abstract's")]
)
def test_the_gain_is_worded_by_its_interval(blue, words):
    found = summary._gain({"small": scores_of({"MEMIT": 60.0, "MEMIT_BLUE": blue})})
    assert words in found and f"{blue - 60:+.1f} points" in found
    assert f"SmolLM2-135M-Instruct (d: MEMIT {blue - 60:+.1f})" in found


def test_the_benchmarks_of_the_real_model_stand_apart():
    better, worse = (scores_of({"MEMIT": 60.0, "MEMIT_BLUE": blue}) for blue in (65.0, 50.0))
    found = summary._gain(
        {"small": {(model, d): frame for one, d in ((better, "d"), (worse, "e")) for (model, _), frame in one.items()}}
    )
    assert "+5.0 points [+5.0, +5.0], on SmolLM2-135M-Instruct (d: MEMIT +5.0); -10.0 points" in found
    assert "it is +8.3 % and -16.7 %; the abstract" in found


def test_a_method_that_makes_the_average_is_named():
    """PRUNE's 90 % are more than half of the sum; three of 10 % each are alike, and of two methods each has its half."""
    means = {"MEMIT": 50.0, "MEMIT_BLUE": 55.0, "RECT": 50.0, "RECT_BLUE": 55.0, "PRUNE": 50.0}
    told = summary._gain({"small": scores_of({**means, "PRUNE_BLUE": 95.0})})
    assert "it is +36.7 % (+10.0 % without PRUNE); the abstract" in told
    assert "without" not in summary._gain({"small": scores_of({**means, "PRUNE_BLUE": 55.0})})
    of_two = {"MEMIT": 50.0, "MEMIT_BLUE": 51.0, "PRUNE": 50.0, "PRUNE_BLUE": 95.0}
    assert "without" not in summary._gain({"small": scores_of(of_two)})


def test_what_an_ablation_says_is_told_where_there_is_one(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    grid = Grid.load("results/small/grid.json")
    told = summary._layers(grid, "smollm2-135m")
    numbers = read_json(grid.numbers("05_error_growth", "smollm2-135m"))
    gaps = {row["choice"]: row for row in numbers["ablation_differences"]}
    lost = gaps["first and last, distributed"]
    assert f"loses {-lost['mean']:.0f} points" in told and f"[{-lost['high']:.0f}, {-lost['low']:.0f}]" in told
    assert (
        "is not settled.**" in told
        and "None of the 9 other pairs" in told
        and told.endswith(" is shown to edit worse there.")
    )
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path)
    assert summary._layers(grid, "smollm2-135m") == "", "nothing was run here"
    gaps["layers 4 and 5"] |= {"low": -9.0, "high": -1.0}
    write_json(grid.numbers("05_error_growth", "smollm2-135m"), numbers)
    worse = summary._layers(grid, "smollm2-135m")
    assert (
        "**Direct residuals edit;" in worse
        and "1 of the 9 other pairs" in worse
        and worse.endswith(" is shown to edit worse there.")
    )
    left = {key: value for key, value in numbers.items() if not key.startswith("ablation")}
    write_json(grid.numbers("05_error_growth", "smollm2-135m"), left)
    assert summary._layers(grid, "smollm2-135m") == ""


def test_every_variant_has_a_cell_for_each_model():
    table = summary.differences(
        {"a": scores_of({"MEMIT": 60.0, "MEMIT_FE": 61.0}), "b": scores_of({"MEMIT": 60.0, "MEMIT_BLUE": 55.0}, "mine")}
    )
    header, _, blue, fe = table.splitlines()
    assert header == "|  | SmolLM2-135M-Instruct | mine |"
    assert blue == "| MEMIT_BLUE | – | -5.0 [-5.0, -5.0]<br>-5.0 [-5.0, -5.0] |"
    assert fe == "| MEMIT_FE | +1.0 [+1.0, +1.0]<br>+1.0 [+1.0, +1.0] | – |"


def test_the_benchmarks_of_one_model_have_lines_of_their_own():
    better, worse = (scores_of({"MEMIT": 60.0, "MEMIT_BLUE": blue}) for blue in (65.0, 50.0))
    both = {(model, d): frame for one, d in ((better, "d"), (worse, "e")) for (model, _), frame in one.items()}
    *_, row = summary.differences({"a": both}).splitlines()
    five, ten = "+5.0 [+5.0, +5.0]", "-10.0 [-10.0, -10.0]"
    assert row == f"| MEMIT_BLUE | d: {five}<br>{five}<br>e: {ten}<br>{ten} |"
    history = open_questions.history([both])
    assert "| d | MEMIT_BLUE − MEMIT | +5.0 " in history and "| e | MEMIT_BLUE − MEMIT | -10.0 " in history
    two = {**both, **{("mine", d): frame for (_, d), frame in both.items()}}
    assert "| mine | d, e | MEMIT_BLUE − MEMIT | -2.5 " in open_questions.history([two])


def test_the_real_model_s_sentences_have_the_table_s_numbers():
    def cell(name, **means):
        after = {metric: {"mean": mean} for metric, mean in means.items()}
        return {"editor": {"name": name}, "dataset": "data/counterfact_2000.json", "after": after}

    cells = [cell("memit_blue", kl=0.5, contains_efficacy=90.0), cell("memit", kl=0.85, contains_efficacy=88.5)]
    lines = summary.real_model(scores_of({"MEMIT": 60.0, "MEMIT_BLUE": 62.0}), cells).splitlines()
    assert lines[0].startswith(
        "- *MEMIT_BLUE minus MEMIT* (d): +2.0 [+2.0, +2.0] points of efficacy and generalization"
    )
    assert lines[1].endswith("(CounterFact): MEMIT 0.85, MEMIT_BLUE 0.50 nats of D_KL.")
    assert lines[2].endswith("MEMIT 88.5, MEMIT_BLUE 90.0 %.") and len(lines) == 3, "nothing is said of chat"
    assert summary.real_model(scores_of({"MEMIT": 60.0}), []) == ""


def test_claims_that_a_real_model_or_most_models_reverse_are_told():
    claim = Claim("it helps", str, {"it is above zero": bool})
    verdict = lambda word: Verdict("it helps", "", word)  # noqa: E731

    def told(*words, source="BLUE", models=("pocket-gpt2", "pocket-gptj", "pocket-llama", "smollm2-135m")):
        verdicts = {model: verdict(word) for model, word in zip(models, words, strict=False)}
        return summary.reversals([Finding("n", replace(claim, source=source), verdicts, {})])

    most = told("reversed here", "reversed here", "partly")
    assert most.startswith("- ✗ **Reversed** on the real model, ") and most.endswith(
        ": “it helps” (2 of 3 pocket models)."
    )
    assert told("reversed here", "partly") == "", "half of them are not most"
    assert told("reversed here", "reversed here", source="FE") == ""
    assert "(SmolLM2-135M-Instruct, 1 of 3 pocket models)" in told("reversed here", "partly", "partly", "reversed here")
    assert "(SmolLM2-135M-Instruct)." in told("reversed here", models=("smollm2-135m",))
    assert told("partly", "partly", "partly", "partly") == ""
    assert "(2 of 3 pocket models; reproduced in pocket-llama)" in told("reversed here", "reversed here", "reproduced")


ON = {"device": "cpu", "threads": 1}


def followed_run(folder, editor, options, efficacy, dataset="d.json", seed=0) -> None:
    identity = {"model": "smollm2-135m", "dataset": dataset, "editor": editor, "options": options}
    scores = {name: [efficacy] * 30 for name in ("efficacy", "generalization", "specificity")}
    point = {
        "edits": 30,
        "case_ids": list(range(30)),
        "scores": scores,
        "elsewhere": [0.5],
        "weight_change": {"4": 0.5},
    }
    name = "-".join([editor, dataset, str(seed), *map(str, options.values())])
    content = {"identity": {**identity, "edits": 30, "batch_size": 10, "seed": seed}, "points": [point]}
    content |= {"seconds": {"targets": 100.0, "evaluate": 20.0}, "provenance": ON}
    write_json(folder / "results" / "follow" / f"{name}.json", content, sealed=True)


def test_the_end_of_a_sequence_is_told_of_every_pair(tmp_path, monkeypatch):
    """Which of them BLUE helps follows from the intervals; and whether λ explains it."""
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path)
    for editor, options, efficacy in (
        ("memit", {}, 60.0),
        ("memit_blue", {}, 80.0),
        ("memit", {"mom2_update_weight": 100}, 70.0),
        ("alphaedit", {}, 90.0),
        ("alphaedit_blue", {}, 90.0),
    ):
        followed_run(tmp_path, editor, options, efficacy)
    text = summary._length(followed())
    assert "BLUE holds longer with MEMIT.**" in text and "MEMIT_BLUE 80 %, MEMIT 60 % (+20 [+20, +20]" in text
    assert "AlphaEdit_BLUE 90 %, AlphaEdit 90 % (+0 [+0, +0])" in text
    assert "(+20 [+20, +20]; with MEMIT_BLUE's λ for both, +10 [+10, +10])" in text and text.count("λ") == 1
    followed_run(tmp_path, "memit_blue", {}, 60.0)
    assert "BLUE is not shown to hold longer.**" in summary._length(followed())
    followed_run(tmp_path, "memit_blue", {}, 70.0)
    followed_run(tmp_path, "memit_history", {}, 75.0)
    assert summary._length(followed()).endswith("). MEMIT (history) ends it at 75 %.")
    followed_run(tmp_path, "memit", {}, 5.0, seed=1)
    followed_run(tmp_path, "memit", {}, 20.0, "e.json")
    followed_run(tmp_path, "memit_blue", {}, 30.0, "e.json")
    of_d, of_e = summary._length(followed()).splitlines()
    assert "(d, batches of 10, one sequence)" in of_d and "MEMIT_BLUE 70 %, MEMIT 60 %" in of_d, "of seed 0"
    assert "(e, batches of 10, one sequence)" in of_e and "MEMIT_BLUE 30 %, MEMIT 20 % (+10 [+10, +10])" in of_e
    assert "λ" not in of_e, "nobody ran it there"
    followed_run(tmp_path, "memit_history_blue", {}, 70.0)
    followed_run(tmp_path, "memit_history_blue", {"mom2_update_weight": 100}, 80.0)
    assert "75 % (-5 [-5, -5]; with MEMIT (history)'s λ for both, +5 [+5, +5])" in summary._length(followed())


def test_runs_are_listed_with_their_minutes_and_what_is_missing_is_counted(tmp_path, monkeypatch):
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path)
    grid = Grid.of(
        {
            "name": "mine",
            "models": ["smollm2-135m"],
            "datasets": ["data/zsre.json"],
            "editors": ["memit", "memit_blue"],
            "seeds": [0],
            "edits": 6,
            "batch_size": 2,
            "follow": [{"editors": ["memit"], "edits": 30, "batch_size": 10}],
        }
    )
    followed_run(tmp_path, "memit_blue", {"mom2_update_weight": 10}, 50.0)
    cell = {"editor": {"name": "memit"}, "dataset": "data/zsre.json", "seconds": {"targets": 300.0}, "provenance": ON}
    write_json(grid.result(grid.cells()[0]), {})
    lines = summary.runs(grid, [cell]).splitlines()
    assert "| main table, 6 edits in batches of 2 | zsRE | cpu, 1 thread | MEMIT 5 |" in lines
    assert "| along 30 edits in batches of 10 | d | cpu, 1 thread | MEMIT_BLUE (λ = 10) 2 |" in lines
    assert lines[-1].startswith("Not run yet: 1 of 2 cells of the main table, and 1 of 1 runs along a sequence")


def test_options_are_compared_with_the_run_without(tmp_path, monkeypatch):
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path)
    assert open_questions.choices_measured(30, 10) == open_questions.NOTHING
    for editor, options, efficacy in (
        ("memit", {}, 90.0),
        ("memit", {"kl_at": "prompt"}, 80.0),
        ("memit", {"mom2_update_weight": 10}, 50.0),
        ("memit_blue", {"kl_at": "prompt"}, 80.0),  # without a run to compare with
    ):
        followed_run(tmp_path, editor, options, efficacy)
    table = open_questions.choices_measured(30, 10)
    assert "| `kl_at=prompt` | SmolLM2-135M-Instruct, 4-bit weights dequantised | d.json | MEMIT | -10.0 " in table
    assert "MEMIT_BLUE" not in table and "mom2" not in table
    weights = open_questions.one_option("mom2_update_weight", 30, 10)
    assert "| 10 | MEMIT | 50.0 [50.0, 50.0] |" in weights and "kl_at" not in weights
    assert open_questions.one_option("mom2_update_weight", 40, 10) == open_questions.NOTHING


def test_what_follows_is_shown_for_both_protocols(tmp_path, monkeypatch):
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path)
    assert open_questions.what_follows() == open_questions.NOTHING
    about = {"model": "smollm2-135m", "dataset": "d.json", "edits": 3, "seed": 0, "options": {}}
    for editor, named in (("memit_blue", 100.0), ("memit", 0.0)):
        single = {"edited": [named, 100.0, 100.0], "executed_Forgetfulness": [100.0, 0.0, 50.0]}
        single |= {"all_Forgetfulness": [50.0, None, 100.0]}
        content = {"identity": about | {"editor": editor}, "case_ids": [1, 2, 3]}
        folder, content = tmp_path / "results" / "single", content | {"single": single}
        content["sequential"] = {"edited": [100.0, 100.0, 100.0]}
        write_json(folder / f"{editor}.json", content)
        write_json(folder / f"{editor}_seed1.json", {**content, "identity": {**content["identity"], "seed": 1}})
    lines = open_questions.what_follows().splitlines()
    assert lines[0].endswith("| method | edited | first choice | named | `Forgetfulness` |")
    rows = [line.split(" | ") for line in lines[2:6]]
    assert not lines[6], "of the first order of records alone"
    assert [row[2:4] for row in rows] == [
        [method, protocol] for method in ("MEMIT", "MEMIT_BLUE") for protocol in ("one at a time", "in sequence")
    ]
    assert rows[0][4] == "– (0)" and rows[0][5].startswith("67 [") and rows[0][5].endswith("(3)")
    assert rows[0][6].startswith("75 [") and rows[0][6].endswith("(2) |") and rows[1][6] == "– (0) |"
    assert rows[1][5] == "100 [44, 100] (3)" == rows[2][5], "Wilson's: three of three may be fewer of many"
    other = {**content, "identity": {**content["identity"], "options": {"mom2_update_weight": 1000}}}
    write_json(folder / "memit_1000.json", other)
    assert "| MEMIT (λ = 1,000) | one at a time |" in open_questions.what_follows()
