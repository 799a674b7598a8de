"""Verdicts follow from the numbers, and the analysis figures from the committed ones, byte for byte."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text

from bluelib.io.paths import numbers_name
from bluelib.models.known import pocket_models
from bluelib.reports.claims import SOURCES, Claim, above, apart, below, claims_of, judge, main, verdicts
from bluelib.reports.claims.capability import KEPT
from bluelib.reports.claims.growth import UNRELATED
from bluelib.reports.figures import draw, functions
from bluelib.runs.grid import Grid
from bluelib.studies import STUDIES, study_of
from bluelib.studies.capability import MEAN
from tests.support.pictures import same_file

ROOT = Path(__file__).parents[2]
NUMBERS, PICTURES = ROOT / "results" / "pocket" / "analysis", ROOT / "figures" / "pocket"
MODELS = sorted(pocket_models())
SMALL = Grid.load(ROOT / "results" / "small" / "grid.json")


def numbers(study, model="pocket-llama"):
    return json.loads((NUMBERS / f"{STUDIES[study].notebook}_{model}.json").read_text())


def test_judge():
    assert judge(True, True) == "reproduced"
    assert judge(True, False) == "partly"
    assert judge(1, -1) == "partly"
    assert judge(False, 0) == "not seen here"
    assert judge(0, -1) == judge(-1) == "reversed here"


@pytest.mark.parametrize(
    ("answers", "mark"),
    [
        ((1, 1), "✓"),
        ((1, 0, 0, 0), "◐ 1/4"),
        ((1, 0, -1, 0), "◐ 1/4 −1"),
        ((0, 0), "○"),
        ((0, -1), "✗ 1/2"),
        ((-1,), "✗"),
    ],
)
def test_a_mark_says_how_many_conditions_hold_or_say_the_opposite(answers, mark):
    claim = Claim("it helps", lambda view: "", {"it does": lambda view: view})
    assert claim.verdict(answers).mark == mark


def test_no_answers_make_no_verdict():
    with pytest.raises(ValueError, match="no verdict if the numbers answer none"):
        judge()


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("study", STUDIES)
def test_the_committed_numbers_are_of_the_analysis_that_is_described_and_are_judged(study, model):
    content = numbers(study, model)
    found = verdicts(study, content)
    assert found and {verdict.claim for verdict in found} <= {claim.text for claim in claims_of(study)}
    assert "verdicts" not in content, "they are made from the numbers"
    assert content["provenance"]["scale"] == "pocket" and content["provenance"]["model"] == model
    parameters = content["parameters"]
    assert parameters.items() >= STUDIES[study].parameters.items(), (
        "the committed analysis is not the one that is described"
    )
    assert (
        content["provenance"]["model_revision"]
        == json.loads((pocket_models()[model] / "recall.json").read_text())["weights"]
    )


def has_run(notebook: str) -> bool:
    """The grid of the real model is not finished."""
    return all((ROOT / "results/small/analysis" / numbers_name(notebook, model)).exists() for model in SMALL.models)


@pytest.mark.parametrize("notebook", [*filter(has_run, SMALL.notebooks)])
def test_so_are_those_of_the_real_model(notebook, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    study = study_of(notebook)
    (model,) = SMALL.models
    content = json.loads(SMALL.numbers(notebook, model).read_text())
    judged = study.name != "capability"  # this model does no better there than guessing
    assert bool(verdicts(study.name, content)) == judged and content["provenance"]["scale"] == "small"
    assert content["parameters"].items() >= SMALL.notebooks[notebook].items()
    for path in draw(study.name, {model: SMALL.numbers(notebook, model)}, tmp_path):
        assert same_file(path, SMALL.figures / path.name), path.name


@pytest.mark.parametrize("claims", [*map(claims_of, STUDIES), (*main.CLAIMS, main.AVERAGE)], ids=[*STUDIES, "main"])
def test_every_claim_has_its_rule_in_words(claims):
    rules = [rule for claim in claims for rule in claim.conditions]
    assert all(claim.text and claim.conditions and claim.source in SOURCES for claim in claims)
    assert all(rule in claim.bar for claim in claims for rule in claim.conditions)
    assert all(len(rule.split()) >= 5 for rule in rules), rules
    assert len({claim.text for claim in claims}) == len(claims)


def test_an_interval_is_above_a_bar_below_it_or_covers_it():
    rows = pd.DataFrame({"low": [1.0, -2.0, -1.0, None], "high": [2.0, -1.0, 1.0, None]})
    assert above(rows).tolist() == [1, -1, 0, 0] and below(rows).tolist() == [-1, 1, 0, 0]
    assert above(rows.iloc[0], 3) == -1 and above({"low": 1, "high": 2}, 0.5) == 1
    assert above(rows, [1.5, -3.0, 0.0, 0.0]).tolist() == [0, 1, 0, 0]
    assert apart(rows.iloc[0], rows.iloc[1]) == 1 and apart(rows.iloc[1], rows.iloc[0]) == -1
    assert apart(rows.iloc[0], rows.iloc[2]) == 0


def test_a_condition_about_each_of_several_things_has_an_answer_for_each():
    claim = Claim("it grows", lambda rows: f"{len(rows)} rows", {"each is above 0": lambda rows: rows > 0})
    assert claim.verdict(np.array([1, 2])) == ("it grows", "2 rows", "reproduced", "", (1, 1))
    assert claim.verdict(np.array([1, -2])).verdict == "partly"
    with pytest.raises(ValueError, match="no verdict if the numbers answer none"):
        claim.verdict(np.array([]))


def test_a_method_that_nobody_knows_is_called_by_its_name():
    content = json.loads(
        json.dumps(numbers("shift")).replace("alphaedit_blue", "mine").replace("AlphaEdit_BLUE", "Mine")
    )
    assert "mine " in verdicts("shift", content)[1].seen
    assert [v.verdict for v in verdicts("shift", content)] == [v.verdict for v in verdicts("shift", numbers("shift"))]
    labels = [text.get_text() for text in functions("shift")["08_shift"]({"pocket-llama": content}).findobj(Text)]
    assert "mine" in labels and "AlphaEdit" in labels


def test_a_violated_bound_would_be_seen():
    content = copy.deepcopy(numbers("theory"))
    assert content["violations"] == 0 and content["cells"] > 100
    content["violations"] = 1
    assert verdicts("theory", content)[0].verdict == "not seen here"


def test_residual_verdicts_change_with_the_numbers():
    content = copy.deepcopy(numbers("residuals"))
    claims = {v.claim: v.verdict for v in verdicts("residuals", content)}
    cosine = next(claim for claim in claims if "cosine" in claim)
    for row in content["compared"]:
        if row["measure"] == "cosine":
            row["mean"] = 1 - row["mean"]
    assert {v.claim: v.verdict for v in verdicts("residuals", content)}[cosine] == "partly"
    for high, verdict in ((1.0, "not seen here"), (-0.5, "reversed here")):
        for row in content["trend"]:
            row["low"], row["high"] = -1.0, high
        assert {v.claim: v.verdict for v in verdicts("residuals", content)}[cosine] == verdict


def test_the_ablation_s_verdict_needs_an_interval_near_zero():
    content = copy.deepcopy(numbers("growth"))
    for low, high, verdict in ((-2, 1, "reproduced"), (-9, 1, "not seen here"), (-9, -4, "reversed here")):
        for row in (*content["ablation_differences"], content["ablation_single"]):
            row["low"], row["high"] = low, high
        assert verdicts("growth", content)[-1].verdict == verdict
    for row in content["ablation_best"]:
        row["reached"] = False
    found = {v.claim: v for v in verdicts("growth", content)}
    assert verdicts("growth", content)[-1].seen == "no single layer reaches BLUE's specificity"
    assert verdicts("growth", content)[-1].verdict == "not seen here"
    direct = found["it is the direct residual that makes BLUE better"]
    assert "(does not reach BLUE's specificity)" in direct.seen and direct.verdict == "partly"
    assert found["the error grows with the batch size, through ‖Q‖"].size == "batches of up to 400 edits"
    assert direct.size == "60 edits" and not found["the error grows with the length of the edit sequence"].size


def test_a_pair_that_edits_better_at_less_specificity_says_nothing():
    content, claim = copy.deepcopy(numbers("growth")), "the first and the last are the two layers to update"
    rows = {row["choice"]: row for row in content["ablation_best"] if row["family"] == "another pair, direct"}
    for row in content["ablation_differences"]:
        if row["choice"] in rows:
            row["low"], row["high"] = -1.0, 1.0
            rows[row["choice"]]["reached"] = False
    better, worse = (row for row in content["ablation_differences"] if row["choice"] in list(rows)[:2])

    def verdict():
        return {v.claim: v for v in verdicts("growth", content)}[claim].mark

    better["low"], better["high"] = 1.0, 3.0
    assert verdict() == "○"
    rows[better["choice"]]["reached"] = True
    assert verdict() == f"✗ 1/{len(rows)}"
    worse["low"], worse["high"] = -3.0, -1.0
    assert verdict() == f"◐ 1/{len(rows)} −1", "worse, even at less specificity"


def test_a_model_without_an_ablation_has_no_verdicts_about_layers():
    content = {key: value for key, value in numbers("growth").items() if not key.startswith("ablation")}
    left = {v.claim for v in verdicts("growth", numbers("growth"))} - {v.claim for v in verdicts("growth", content)}
    assert left == {
        "it is the direct residual that makes BLUE better",
        "the first and the last are the two layers to update",
        "one layer is about as good as BLUE's two",
    }
    one_weight = {**numbers("growth"), "ablation": numbers("growth")["ablation"][:1]}
    found = {v.claim for v in verdicts("growth", one_weight)}
    assert left - found == {"one layer is about as good as BLUE's two"}, "it may need another λ"
    figure = functions("growth")["05_ablation"]({"pocket-llama": numbers("growth"), "mine": content})
    ran, missing = figure.axes
    assert ran.lines and not missing.lines and [text.get_text() for text in missing.texts] == ["not run"]
    alone = functions("growth")["05_ablation"]({"mine": content}).axes[0]
    assert [text.get_text() for text in alone.texts] == ["not run"]


@pytest.mark.parametrize("d_mlp", [1024, 1280])
def test_unrelated_errors_gather_like_it_is_said(d_mlp):
    """Ten random matrices of rank ten, of the pocket models' shapes: the slope of log ‖ΣE‖ over log n."""
    rng, slopes = np.random.default_rng(0), []
    for _ in range(10):
        errors = np.cumsum([rng.normal(size=(128, 10)) @ rng.normal(size=(10, d_mlp)) for _ in range(10)], axis=0)
        norms = np.linalg.norm(errors, 2, axis=(1, 2))
        slopes.append(np.polyfit(np.log(np.arange(1, 11)), np.log(norms), 1)[0])
    assert np.mean(slopes) == pytest.approx(UNRELATED, abs=0.02)


def test_errors_that_gather_like_unrelated_ones_do_not_count_as_growth():
    content = copy.deepcopy(numbers("growth"))
    claim = "the error grows with the length of the edit sequence"
    for one, gathered, verdict in ((0.1, 0.3, "reproduced"), (-0.1, 0.3, "partly"), (-0.1, 0.19, "not seen here")):
        content["growth"]["sequence"]["error"]["low"], content["growth"]["sequence"]["total"]["low"] = one, gathered
        assert {v.claim: v.verdict for v in verdicts("growth", content)}[claim] == verdict


def capability_numbers(gain, loss):
    """Of memit and memit_blue: the interval of the gain, and that of memit's losses from the start and the middle."""
    row = lambda ends, **names: {**names, **dict(zip(("mean", "low", "high"), ends, strict=True))}  # noqa: E731
    other = {"editor": "memit_blue", "plain": "memit", "task": "pocket_nli"}
    return {
        "parameters": {"edits": 40},
        "chance": [{"task": "pocket_nli", "chance": 50}],
        "scores": [row((90, 80, 95), editor="memit", edits=0, task=MEAN), row((9, 9, 9), edits=20, task=MEAN)],
        "gains": [row(gain, editor="memit_blue", plain="memit", task=MEAN), row((9, 9, 9), **other)],
        "changes": [row(loss, editor="memit", since=since, task=MEAN) for since in (0, 20)]
        + [row((-1, -2, 0), editor="memit_blue", since=since, task=MEAN) for since in (0, 20)],
    }


@pytest.mark.parametrize(
    ("gain", "loss", "expected"),
    [
        ((5, 1, 9), (-6, -9, -3), ["reproduced", "reproduced", "reproduced"]),
        ((5, -1, 9), (-6, -12, 0), ["not seen here", "not seen here", "reproduced"]),
    ],
)
def test_capability_verdicts_are_about_the_mean_and_need_intervals_beyond_zero(gain, loss, expected):
    found = verdicts("capability", capability_numbers(gain, loss))
    assert [verdict.verdict for verdict in found] == expected
    assert "MEMIT_BLUE +5.0" in found[0].seen and "MEMIT -6.0" in found[1].seen and "from edit 20 on" in found[1].seen


def test_a_model_that_guesses_has_no_capability_to_keep():
    content = capability_numbers((5, 1, 9), (-6, -9, -3))
    content["scores"][0]["low"] = 49.0
    assert verdicts("capability", content) == []


def test_a_loss_that_does_not_go_on_is_partly_reproduced_and_a_large_one_is_not_kept():
    content = capability_numbers((5, 1, 9), (-6, -9, -3))
    content["changes"][1] |= {"mean": 0, "low": -1, "high": 1}
    content["changes"][2] |= {"low": -KEPT - 1}
    assert [verdict.verdict for verdict in verdicts("capability", content)] == [
        "reproduced",
        "partly",
        "not seen here",
    ]


@pytest.mark.parametrize("study", STUDIES)
def test_every_figure_has_its_function_and_its_committed_picture(study):
    for stem, function in functions(study).items():
        assert function.__doc__ and function.__module__ == f"bluelib.reports.figures.{study}"
        assert (PICTURES / f"{stem}.png").exists()


def test_with_few_tasks_every_declared_picture_is_drawn(tmp_path):
    """The workflow waits for each of them."""
    path = NUMBERS / f"{STUDIES['capability'].notebook}_pocket-llama.json"
    content = json.loads(path.read_text())
    tasks = list(dict.fromkeys(row["task"] for row in content["scores"] if row["task"] != MEAN))[:2]
    content["scores"] = [row for row in content["scores"] if row["task"] in (*tasks, MEAN)]
    (tmp_path / path.name).write_text(json.dumps(content))
    drawn = draw("capability", {"pocket-llama": tmp_path / path.name}, tmp_path)
    assert {picture.stem for picture in drawn} == set(STUDIES["capability"].figures)


def test_the_table_of_studies_needs_neither_torch_nor_matplotlib():
    modules = "bluelib.studies, bluelib.runs.grid, bluelib.runs.execute"
    code = f"import sys, {modules}; print({{'torch', 'matplotlib'}} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"


@pytest.mark.parametrize(
    "study",
    [
        pytest.param(study, marks=[] if name == "theory" else pytest.mark.slow, id=name)
        for name, study in STUDIES.items()
    ],
)
def test_the_figures_are_those_of_the_committed_numbers(study, tmp_path):
    committed = {model: NUMBERS / f"{study.notebook}_{model}.json" for model in MODELS}
    drawn = draw(study.name, committed, tmp_path)
    assert {path.stem for path in drawn} == set(study.figures)
    for path in drawn:
        assert same_file(path, PICTURES / path.name), path.name
