"""Runs along a sequence: what is kept of them, and the pictures that they make."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from bluelib import edit_sequence, evaluate, get_editor, load_dataset
from bluelib.editing.checkpoints import held
from bluelib.io.formats import read_json, write_json
from bluelib.io.paths import sequence_path
from bluelib.metrics.editing import editing_scores
from bluelib.reports import summary
from bluelib.reports.figures.follow import draw_followed, frontiers, lengths
from bluelib.studies import follow as module
from bluelib.studies.follow import follow, followed, some_of

HOW = {"dataset": "pocket-counterfact", "edits": 8, "batch_size": 2}


def test_a_run_is_scored_at_each_length_as_if_it_had_ended_there(llama, project):
    before = llama.weight(0).clone()
    path = follow(llama, "memit", at=(4,), others=3, **HOW)
    assert llama.weight(0).equal(before), "the model is left as it was"
    frame = followed()
    assert path == sequence_path(
        "follow", "pocket-llama", "pocket-counterfact", "memit", 8, 2, 0, {}
    ) and frame.length.tolist() == [4, 8]
    assert frame.n.tolist() == [4, 8] and (frame.elsewhere > 0).all() and (frame.weight_change > 0).all()
    records = load_dataset("pocket-counterfact", split="report", limit=4)
    run = edit_sequence(llama, records, get_editor("memit", llama), batch_size=2)
    try:
        scores = evaluate(llama, records, generate=False)
        assert frame.efficacy[0] == pytest.approx(scores.values("efficacy"))
        assert frame.weight_change[0] == pytest.approx(max(run.weight_change().values()), rel=1e-3)
    finally:
        run.revert()


@pytest.mark.slow
def test_a_run_that_is_there_is_kept_and_another_one_has_its_own_place(llama, project, monkeypatch):
    path = follow(llama, "memit", others=0, **HOW)
    written = path.stat().st_mtime_ns
    assert follow(llama, "memit", others=0, **HOW).stat().st_mtime_ns == written
    assert json.loads(path.read_text())["points"][0]["elsewhere"] is None
    other = follow(llama, "memit", others=0, options={"mom2_update_weight": 1.0}, **HOW)
    assert other != path and "mom2_update_weight-1.0" in other.name and len(list(path.parent.glob("*.json"))) == 2


@pytest.mark.slow
def test_a_run_can_be_written_elsewhere_and_read_another_text(llama, project):
    """A grid knows where its run is to be, also that of a checkpoint in a folder; and it has a text of its own."""
    path = follow(
        llama, "memit", others=0, corpus="pocket-others", tokens=5000, output=project / "there" / "run.json", **HOW
    )
    assert path == project / "there" / "run.json" and followed().empty
    assert read_json(path)["identity"]["settings"]["corpus"] == "pocket-others"
    with pytest.raises(ValueError, match="editor 'memit' has no hyper-parameter name; it has"):
        follow(llama, "memit", others=0, options={"name": "x"}, **HOW)


@pytest.mark.slow
@pytest.mark.parametrize("at", [1, 2, 3])
def test_an_interrupted_run_continues_with_the_scores_it_has(llama, project, monkeypatch, caplog, at):
    how = {**HOW, "at": (2, 6), "others": 2}
    whole = read_json(follow(llama, "memit_history", **how))
    sequence_path("follow", llama.name, HOW["dataset"], "memit_history", 8, 2, 0, {}).unlink()
    evaluate, scored = module.evaluate, []

    def interrupted(model, records, **options):
        scored.append(len(records))
        if len(scored) == at:
            raise KeyboardInterrupt
        return evaluate(model, records, **options)

    monkeypatch.setattr(module, "evaluate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        follow(llama, "memit_history", **how)
    llama.check_unedited("what was followed")
    assert not sequence_path("follow", llama.name, HOW["dataset"], "memit_history", 8, 2, 0, {}).exists()
    found = read_json(follow(llama, "memit_history", **how))
    assert scored == [*[2, 6, 8][:at], *[2, 6, 8][at - 1 :]], "what was scored is not scored again"
    assert found["points"] == whole["points"] and found["identity"] == whole["identity"]
    assert not list((project / "results" / "raw" / "follow").iterdir())


@pytest.mark.slow
def test_what_is_left_of_a_run_with_other_settings_is_removed(llama, project, monkeypatch, caplog):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(module, "evaluate", interrupted)
        follow(llama, "memit", others=0, **HOW)
    name = sequence_path("follow", llama.name, HOW["dataset"], "memit", 8, 2, 0, {}).stem
    left = project / "results" / "raw" / "follow" / name
    kept = sorted(path.name for path in left.iterdir())
    with held(left), pytest.raises(BlockingIOError, match="in use by another process"):
        follow(llama, "memit", others=0, scored=3, **HOW)
    assert sorted(path.name for path in left.iterdir()) == kept, "what another process is at work on"
    found = read_json(follow(llama, "memit", others=0, scored=3, **HOW))
    assert [len(point["case_ids"]) for point in found["points"]] == [3]
    assert "holds an interrupted run with other settings" in caplog.text


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"at": (3,)}, "ends of batches of 2 among 8 edits; 3 is not one"),
        ({"at": (10,)}, "edits; 10 is not one"),
        ({"batch_size": 9}, "batch_size"),
        ({"scored": 0}, "scored"),
    ],
)
def test_lengths_that_are_no_ends_of_batches_are_refused(llama, project, changed, message):
    with pytest.raises(ValueError, match=message):
        follow(llama, "memit", **{**HOW, **changed})
    assert not (project / "results").exists()


def test_who_is_scored_is_the_same_for_every_editor():
    assert some_of([1, 2, 3], 3) == [1, 2, 3]
    drawn = some_of(list(range(50)), 20)
    assert drawn == sorted(drawn) == some_of(list(range(50)), 20) and len(set(drawn)) == 20


def written_run(folder: Path, editor: str, options: dict, lengths: tuple[int, ...], good: float) -> None:
    rng = np.random.default_rng(len(editor))
    points = [
        {
            "edits": length,
            "case_ids": list(range(length)),
            "scores": {
                name: (100.0 * (rng.random(length) < good)).tolist()
                for name in ("efficacy", "generalization", "specificity")
            },
            "elsewhere": [0.1] * 5,
            "weight_change": {"0": 0.2, "4": 0.5},
        }
        for length in lengths
    ]
    identity = {"model": "pocket-llama", "dataset": "d", "editor": editor, "options": options, "edits": lengths[-1]}
    name = "-".join([editor, *map(str, options.values()), str(lengths[-1])])
    write_json(
        folder / f"{name}.json", {"identity": {**identity, "batch_size": 10, "seed": 0}, "points": points}, sealed=True
    )


def test_the_pictures_show_every_run_once(tmp_path):
    for editor in ("memit", "memit_blue", "a-stranger"):
        written_run(tmp_path, editor, {}, (10, 20, 40), 0.8)
        for weight in (1, 100):
            written_run(tmp_path, editor, {"mom2_update_weight": weight}, (20,), 0.7)
    frame = followed(tmp_path)
    own = frame[[not options for options in frame.options]]
    figure = lengths(own)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["MEMIT", "MEMIT_BLUE", "a-stranger"]
    assert figure.axes[0].lines[0].get_xdata().tolist() == [10, 20, 40]
    written_run(tmp_path, "memit", {"mom2_update_weight": 7}, (10, 20, 40), 0.6)
    at_seven = followed(tmp_path)
    several = at_seven[[options in ((), (("mom2_update_weight", 7),)) for options in at_seven.options]]
    assert [text.get_text() for text in lengths(several).legends[0].get_texts()][1] == "MEMIT, λ = 7"
    varied = frame[[bool(options) for options in frame.options]]
    figure = frontiers(varied, "mom2_update_weight")
    names = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert names == ["MEMIT", "MEMIT_BLUE", "a-stranger", "λ = 1", "λ = 100"], "what marks and their sizes mean"
    drawn = draw_followed(["pocket-llama"], tmp_path / "out", tmp_path)
    assert [path.name for path in drawn if path.suffix == ".png"] == [
        "lengths_pocket-llama_40x10.png",
        "frontier_pocket-llama_mom2_update_weight_20x10.png",
    ]
    assert draw_followed(["pocket-gpt2"], tmp_path / "none", tmp_path) == []
    assert draw_followed(["pocket-gpt2"], tmp_path / "none", tmp_path / "empty") == []


@pytest.mark.slow
def test_a_run_on_records_without_paraphrases_is_drawn_and_told(llama, project):
    records = load_dataset("pocket-counterfact", split="report", limit=8)
    flat = [
        {
            "subject": record.subject,
            "prompt": record.request.text,
            "target_new": record.target_new,
            "ground_truth": record.target_true,
            "paraphrases": list(record.paraphrases) if number < 6 else [],
        }
        for number, record in enumerate(records)
    ]
    (project / "mine.json").write_text(json.dumps(flat))
    for name, facts in {"mine": flat, "bare": [{**fact, "paraphrases": []} for fact in flat]}.items():
        (project / f"{name}.json").write_text(json.dumps(facts))
        for editor in ("memit", "memit_blue"):
            follow(llama, editor, dataset=str(project / f"{name}.json"), edits=8, batch_size=4, at=(4,), others=0)
    frame = followed()
    of_mine = frame[(frame.dataset == "mine.json") & (frame.length == 8)].iloc[0]
    assert [value is None for value in editing_scores(of_mine)] == [False] * 6 + [True] * 2
    assert draw_followed(["pocket-llama"], project / "figures")
    assert "MEMIT_BLUE" in summary._length(frame)


@pytest.mark.slow
def test_a_run_with_other_settings_is_not_written_over(llama, project):
    path = follow(llama, "memit", at=(4,), others=0, **HOW)
    kept = path.read_bytes()
    with pytest.raises(ValueError, match=r"holds another run: at is \[4, 8\], not \[8\]; move it away"):
        follow(llama, "memit", others=0, **HOW)
    assert path.read_bytes() == kept
