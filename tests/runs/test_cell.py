"""A cell with metrics beyond the paper's, and what is kept of the unedited model for them."""

from __future__ import annotations

import json

import pytest

from bluelib import evaluate, get_editor, load_dataset, load_model
from bluelib.cli import main
from bluelib.io.formats import DamagedError
from bluelib.metrics.before import Before
from bluelib.metrics.definitions import DEFINITIONS
from bluelib.metrics.editing import GROUPS
from bluelib.runs.cell import evaluate_unedited, run_cell
from bluelib.runs.grid import Grid

HOW = {"seed": 0, "generate": False}
ALL = {"metrics": GROUPS, "contexts": ("bare", "instruction")}


@pytest.fixture(scope="module")
def model():
    return load_model("pocket-llama")


@pytest.fixture(scope="module")
def records():
    return load_dataset("pocket-ripple", split="report", limit=4)


def test_a_cell_measures_every_group_before_and_after(model, records, tmp_path):
    path = tmp_path / "before.json"
    cell = run_cell(
        model, "pocket-ripple", records, get_editor("memit", model), batch_size=4, before=path, **HOW, **ALL
    )
    try:
        before, after = cell.result["before"], cell.result["after"]
        assert cell.result["metrics"] == [*GROUPS] and cell.result["contexts"] == ["bare", "instruction"]
        assert before["kl"]["mean"] == 0 and after["kl"]["mean"] > 0
        assert before["overlap_10"]["mean"] == 100 and before["edited"]["mean"] == 0 < after["edited"]["mean"]
        assert before["executed"] == after["executed"] and after["executed"]["mean"] > 0
        assert "instruction_exact_efficacy" in after and "instruction_executed" in after
        # What was compared with is what the unedited model said, from the file.
        again = evaluate(model, records, **HOW, **ALL, before=Before.load(tmp_path / "before.json.before.safetensors"))
        assert again.means == cell.after.means
    finally:
        cell.run.revert()


def test_what_is_compared_with_is_kept_beside_the_scores(model, records, tmp_path, monkeypatch):
    path = tmp_path / "scores.json"
    first = evaluate_unedited(model, "pocket-ripple", records, path=path, **HOW, **ALL)
    monkeypatch.setattr("bluelib.runs.cell.evaluate", None)  # nothing is measured again
    again = evaluate_unedited(model, "pocket-ripple", records, path=path, **HOW, **ALL)
    assert again.scores == first.scores and again.before.held == first.before.held
    assert again.before.reference.prompts == first.before.reference.prompts
    assert (again.before.reference.states == first.before.reference.states).all()
    with pytest.raises(ValueError, match=r"metrics is \['editing', .*\], not 'the usual one'; .*delete it"):
        evaluate_unedited(model, "pocket-ripple", records, path=path, **HOW)
    shuffled = {"metrics": GROUPS[::-1], "contexts": ALL["contexts"][::-1]}
    assert evaluate_unedited(model, "pocket-ripple", records, path=path, **HOW, **shuffled).scores == first.scores
    Before().save(tmp_path / "scores.json.before.safetensors")
    with pytest.raises(DamagedError, match="is damaged: its SHA-256 is not"):
        evaluate_unedited(model, "pocket-ripple", records, path=path, **HOW, **ALL)
    (tmp_path / "scores.json.before.safetensors").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"scores\.json\.before\.safetensors, which belongs to .*scores\.json, is missing"
    ):
        evaluate_unedited(model, "pocket-ripple", records, path=path, **HOW, **ALL)


def test_the_usual_metrics_keep_nothing_and_say_nothing(model, records, tmp_path):
    found = evaluate_unedited(model, "pocket-ripple", records, path=tmp_path / "scores.json", **HOW)
    assert found.before is None and {path.suffix for path in tmp_path.iterdir()} <= {".json", ".lock"}
    assert not {"metrics", "contexts"} & json.loads((tmp_path / "scores.json").read_text()).keys()


def test_what_was_never_learned_is_not_executed(model):
    records = [r for r in load_dataset("pocket-ripple", split="report") if "Compositionality_I" in r.portability][:20]
    held = Before.of(model, records, metrics=("portability",)).held["bare"]
    composed = [one for record in records for one in record.portability["Compositionality_I"]]
    assert not any(all(held[query] for query in one.conditions) for one in composed)
    kept = [one for record in records for one in record.portability.get("Relation_Specificity", ())]
    assert sum(held[one.conditions[0]] for one in kept) / len(kept) > 0.8


def test_every_metric_has_its_definition(model, records):
    before = Before.of(model, records, contexts=("bare",))
    found = evaluate(model, records, metrics=GROUPS, before=before).metrics
    prompts, groups = (
        ("efficacy", "generalization", "specificity"),
        {group for record in records for group in record.portability},
    )
    named = {one.name for one in DEFINITIONS}
    for name in found:
        varying = [name.replace(part, "<metric>") for part in prompts]
        varying += [name.replace(group, "<group>") for group in groups]
        assert named & {name, *varying}, name
    assert {one.group for one in DEFINITIONS} == set(GROUPS)


def test_commands_take_groups_of_metrics(capsys):
    arguments = ["--model", "pocket-llama", "--dataset", "pocket-ripple", "--edits", "2", "--no-generate"]
    assert main(["edit", *arguments, "--metrics", "editing", "argmax", "locality", "portability", "negation"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if "±" in line}
    assert {"efficacy", "argmax_efficacy", "kl", "overlap_5", "edited", "executed"} <= lines.keys()
    assert main(["edit", *arguments, "--metrics", "speed"]) == 2
    assert "metrics: there is no 'speed'; known: editing, argmax" in capsys.readouterr().err
    assert main(["evaluate", *arguments, "--metrics", "generated", "--contexts", "bare", "loud"]) == 2
    assert "contexts: there is no 'loud'; known: bare, instruction, chat" in capsys.readouterr().err


def test_answers_are_written_for_a_judge(tmp_path, capsys):
    path = tmp_path / "answers.jsonl"
    arguments = ["export", "--model", "pocket-llama", "--dataset", "pocket-counterfact", "--edits", "2", "--judge"]
    assert main([*arguments, str(path), "--contexts", "bare", "instruction"]) == 0
    entries = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    records = load_dataset("pocket-counterfact", split="report", limit=2)
    asked = sum(1 + len(r.paraphrases) + len(r.locality) for r in records)
    assert len(entries) == 2 * asked and {entry["context"] for entry in entries} == {"bare", "instruction"}
    assert list(entries[0]) == ["case_id", "metric", "context", "question", "answer", "generation"]
    assert (entries[0]["question"], entries[0]["answer"]) == (records[0].request.text, records[0].target_new)
    assert any(entry["generation"] == entry["answer"] for entry in entries if entry["metric"] == "specificity")
    assert main([*arguments, str(tmp_path), "--contexts", "bare"]) == 2 and "is a folder" in capsys.readouterr().err


def grid(**more):
    usual = {"name": "g", "models": ["m"], "datasets": ["d"], "editors": ["memit", "memit_blue"], "seeds": [0]}
    return {**usual, "edits": 2, "batch_size": 1, **more}


def test_a_grid_says_what_its_cells_measure():
    usual = Grid.of(grid())
    assert not {"metrics", "contexts"} & (usual.as_dict().keys() | usual.parameters(usual.cells()[0]).keys())
    asked = Grid.of(grid(metrics=["editing", "generated"], contexts=["chat"]))
    assert asked.parameters(asked.cells()[0])["metrics"] == ["editing", "generated"]
    assert Grid.of(asked.as_dict()) == asked
    with pytest.raises(ValueError, match="metrics: there is no 'speed'"):
        Grid.of(grid(metrics=["speed"]))
    with pytest.raises(ValueError, match="must include editing, which its tables are made from"):
        Grid.of(grid(metrics=["generated"]))
    with pytest.raises(ValueError, match="contexts of the grid must be a list of distinct str"):
        Grid.of(grid(contexts="chat"))
