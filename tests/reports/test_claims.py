"""Verdicts follow from the numbers, and the analysis figures from the committed ones, byte for byte."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest

from bluelib.models.known import pocket_models
from bluelib.reports import verdicts
from bluelib.reports.figures import draw
from bluelib.studies import STUDIES, study_of
from bluelib.studies.capability import MEAN

ROOT = Path(__file__).parents[2]
NUMBERS, PICTURES = ROOT / "results" / "pocket" / "analysis", ROOT / "figures" / "pocket"
MODELS = sorted(pocket_models())
JUDGES = {
    "01_locate": verdicts.locate,
    "02_weight_shift_theory": verdicts.theory,
    "03_residuals": verdicts.residuals,
    "04_error_growth": verdicts.growth,
    "06_general_capability": verdicts.capability,
    "07_hidden_state_shift": verdicts.shift,
    "08_long_form_and_batch": verdicts.long_form,
}


def numbers(notebook, model="pocket-llama"):
    return json.loads((NUMBERS / f"{notebook}_{model}.json").read_text())


def test_judge():
    assert verdicts.judge(True, True) == "reproduced"
    assert verdicts.judge(True, False) == "partly"
    assert verdicts.judge(False) == "not at this scale"
    with pytest.raises(ValueError, match="without conditions"):
        verdicts.judge()


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("notebook", list(JUDGES))
def test_the_committed_verdicts_follow_from_the_committed_numbers(notebook, model):
    content = numbers(notebook, model)
    assert [verdict._asdict() for verdict in JUDGES[notebook](content)] == content["verdicts"]
    assert content["provenance"]["scale"] == "pocket" and content["provenance"]["model"] == model
    parameters = content["parameters"]
    assert parameters.items() >= study_of(notebook).parameters.items(), (
        "the committed analysis is not the one that is described"
    )
    assert (
        content["provenance"]["model_revision"]
        == json.loads((pocket_models()[model] / "recall.json").read_text())["weights"]
    )


def test_a_violated_bound_would_be_seen():
    content = copy.deepcopy(numbers("02_weight_shift_theory"))
    assert content["violations"] == 0 and content["cells"] > 100
    content["violations"] = 1
    assert verdicts.theory(content)[0].verdict == "not at this scale"


def test_residual_verdicts_change_with_the_numbers():
    content = copy.deepcopy(numbers("03_residuals"))
    claims = {v.claim: v.verdict for v in verdicts.residuals(content)}
    cosine = next(claim for claim in claims if "cosine" in claim)
    for row in content["compared"]:
        if row["measure"] == "cosine":
            row["mean"] = 1 - row["mean"]
    assert {v.claim: v.verdict for v in verdicts.residuals(content)}[cosine] == "partly"
    for row in content["trend"]:
        row["low"] = -1.0
    assert {v.claim: v.verdict for v in verdicts.residuals(content)}[cosine] == "not at this scale"


def test_the_ablation_s_verdict_needs_an_interval_near_zero():
    content = copy.deepcopy(numbers("04_error_growth"))
    for low, verdict in ((-2, "reproduced"), (-9, "not at this scale")):
        for row in content["ablation_differences"]:
            row["low"] = low
        assert verdicts.growth(content)[-1].verdict == verdict
    for row in content["ablation_best"]:
        row["reached"] = False
    found = {v.claim: v for v in verdicts.growth(content)}
    assert verdicts.growth(content)[-1].seen == "no single layer reaches BLUE's specificity"
    assert verdicts.growth(content)[-1].verdict == "not at this scale"
    direct = found["it is the direct residual that makes BLUE better"]
    assert "(does not reach BLUE's specificity)" in direct.seen and direct.verdict == "partly"
    assert direct.size == "60 edits" and not found["the error grows with the distribution distance"].size


@pytest.mark.parametrize("d_mlp", [1024, 1280])
def test_unrelated_errors_gather_like_it_is_said(d_mlp):
    """Ten random matrices of rank ten, of the pocket models' shapes: the slope of log ‖ΣE‖ over log n."""
    rng, slopes = np.random.default_rng(0), []
    for _ in range(10):
        errors = np.cumsum([rng.normal(size=(128, 10)) @ rng.normal(size=(10, d_mlp)) for _ in range(10)], axis=0)
        norms = np.linalg.norm(errors, 2, axis=(1, 2))
        slopes.append(np.polyfit(np.log(np.arange(1, 11)), np.log(norms), 1)[0])
    assert np.mean(slopes) == pytest.approx(verdicts.UNRELATED, abs=0.02)


def test_errors_that_gather_like_unrelated_ones_do_not_count_as_growth():
    content = copy.deepcopy(numbers("04_error_growth"))
    claim = "the error grows with the length of the edit sequence"
    for one, gathered, verdict in ((0.1, 0.3, "reproduced"), (-0.1, 0.3, "partly"), (-0.1, 0.19, "not at this scale")):
        content["growth"]["sequence"]["error"]["low"], content["growth"]["sequence"]["total"]["low"] = one, gathered
        assert {v.claim: v.verdict for v in verdicts.growth(content)}[claim] == verdict


def capability_numbers(gain, loss):
    """Of memit and memit_blue: the interval of the gain, and that of memit's losses from the start and the middle."""
    row = lambda ends, **names: {**names, **dict(zip(("mean", "low", "high"), ends, strict=True))}  # noqa: E731
    other = {"editor": "memit_blue", "plain": "memit", "task": "pocket_nli"}
    return {
        "parameters": {"edits": 40},
        "gains": [row(gain, editor="memit_blue", plain="memit", task=MEAN), row((9, 9, 9), **other)],
        "changes": [row(loss, editor="memit", since=since, task=MEAN) for since in (0, 20)]
        + [row((-1, -2, 0), editor="memit_blue", since=since, task=MEAN) for since in (0, 20)],
    }


@pytest.mark.parametrize(
    ("gain", "loss", "expected"),
    [
        ((5, 1, 9), (-6, -9, -3), ["reproduced", "reproduced", "reproduced"]),
        ((5, -1, 9), (-6, -12, 0), ["not at this scale", "not at this scale", "reproduced"]),
    ],
)
def test_capability_verdicts_are_about_the_mean_and_need_intervals_beyond_zero(gain, loss, expected):
    found = verdicts.capability(capability_numbers(gain, loss))
    assert [verdict.verdict for verdict in found] == expected
    assert "MEMIT_BLUE +5.0" in found[0].seen and "MEMIT -6.0" in found[1].seen and "from edit 20 on" in found[1].seen


def test_a_loss_that_does_not_go_on_is_partly_reproduced_and_a_large_one_is_not_kept():
    content = capability_numbers((5, 1, 9), (-6, -9, -3))
    content["changes"][1] |= {"mean": 0, "low": -1, "high": 1}
    content["changes"][2] |= {"low": -verdicts.KEPT - 1}
    assert [verdict.verdict for verdict in verdicts.capability(content)] == [
        "reproduced",
        "partly",
        "not at this scale",
    ]


@pytest.mark.parametrize("study", STUDIES.values(), ids=STUDIES)
def test_the_figures_are_those_of_the_committed_numbers(study, tmp_path):
    committed = {model: NUMBERS / f"{study.notebook}_{model}.json" for model in MODELS}
    drawn = draw(study.name, committed, tmp_path)
    assert {path.stem for path in drawn} == set(study.figures)
    for path in drawn:
        if path.suffix == ".svg":
            assert path.read_bytes() == (PICTURES / path.name).read_bytes(), path.name
