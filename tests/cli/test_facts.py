"""`blue edit --facts`, what it answers, and `blue ask`: on the shipped models, with files that tests write."""

from __future__ import annotations

import json
import re

import pytest

from bluelib import apply_delta, edit_sequence, get_editor, load_dataset, load_facts, load_model
from bluelib.cli import main
from bluelib.cli.common import answers_table
from bluelib.cli.editing import _answers
from bluelib.data.datasets import _warn
from bluelib.metrics.answers import ask_about, compare
from bluelib.metrics.drift import PROMPTS, drift
from bluelib.metrics.locality import Reference


@pytest.fixture(scope="module")
def known():
    """Facts that the pocket models know, and what they are to be edited to."""
    return load_dataset("pocket-counterfact", split="report", limit=3)


@pytest.fixture
def facts(tmp_path, known):
    def write(*changes, name="my.json"):
        entries = [
            {"subject": r.subject, "prompt": r.request.text, "target_new": r.target_new} | (change or {})
            for r, change in zip(known, changes or ({}, {}, {}), strict=False)
        ]
        path = tmp_path / name
        path.write_text(json.dumps(entries), encoding="utf-8")
        return path

    return write


def edit(path, *options):
    return main(["edit", "--model", "pocket-llama", "--facts", str(path), *options])


def test_three_facts_are_edited_with_nothing_but_their_file(facts, known, capsys):
    path = facts()
    assert edit(path, "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["edits"], printed["batch_size"], printed["dataset"]) == (3, 3, str(path))
    assert printed["editor"]["name"] == "memit_blue"
    assert printed["before"] == printed["after"] == printed["scores"] == {}, "there is nothing to compare with"

    model, records = load_model("pocket-llama"), load_facts(path)
    before, reference = ask_about(model, records), Reference.of(model, PROMPTS)
    edit_sequence(model, records, get_editor("memit_blue", model), batch_size=3)
    assert printed["answers"] == compare(before, ask_about(model, records))
    assert printed["drift"] == drift(model, reference)
    for row, record in zip(printed["answers"], known, strict=True):
        assert row["before"]["says"].startswith(record.target_true) and not row["before"]["first_choice"]
        assert row["after"]["says"].startswith(record.target_new) and row["after"]["first_choice"]
    assert printed["drift"]["max_nats"] > 0


def test_the_answer_is_a_line_a_fact(facts, known, capsys, caplog):
    _warn.cache_clear()
    probes = [{"prompt": probe.prompt, "answer": probe.answer} for probe in known[0].locality]
    whole = {"target_true": known[0].target_true, "paraphrases": list(known[0].paraphrases), "neighbours": probes}
    assert edit(facts(whole, {}, {})) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["before", "after", "first", "choice", "paraphrases"]
    for line, record in zip(lines[1:4], known, strict=True):
        *prompt, before, after, first, _ = re.split(r" {2,}", line)
        assert prompt[0].lstrip("…") in record.request.text and prompt[0].endswith(record.request.text[-20:])
        assert (before, after, first) == (f"{record.target_true}.", f"{record.target_new}.", "yes")
    assert lines[1].endswith(("/2",)) and lines[2].endswith("–")
    assert lines[5].startswith("new object is the first choice: 0 of 3 before (0 of 2 after paraphrases), 3 of 3 after")
    assert lines[6] == "other answers about neighbours: 0 of 10"
    assert lines[7].startswith("next tokens after 20 unrelated prompts moved by ")
    assert "efficacy" in lines[9] and "specificity" in lines[9] and lines[11].startswith("after memit_blue")
    assert caplog.text.count("2 of 3 records have no target_true") == 1


def test_without_anything_to_compare_the_answer_says_so(facts, capsys):
    assert edit(facts()) == 0
    assert "no metric can be measured on these records" in capsys.readouterr().out


@pytest.mark.slow
def test_of_a_dataset_the_first_records_are_told_of(capsys):
    command = "edit --model pocket-llama --dataset pocket-zsre --editor memit_blue --edits 7 --no-generate"
    assert main([*command.split(), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [row["case_id"] for row in printed["answers"]] == printed["provenance"]["case_ids"][:5]
    assert printed["batch_size"] == 7 and set(printed["after"]) == {"efficacy", "generalization", "specificity"}
    assert main(command.split()) == 0
    text = capsys.readouterr().out
    assert "new object is the first choice, in the first 5 of 7 records: " in text and "after memit_blue" in text


def test_how_many_are_edited_by_default(tmp_path, capsys, monkeypatch):
    """A hundred of a dataset; all of a file that has fewer; of a file of facts all."""
    seen = []

    class Enough(Exception):
        pass

    def check(records, editor, *, batch_size, **how):
        seen.append((len(records), batch_size))
        raise Enough

    monkeypatch.setattr("bluelib.editing.sequence.check_sequence", check)
    entries = [{"subject": f"S{i}", "prompt": f"S{i} is in", "target_new": "Rome"} for i in range(120)]
    (tmp_path / "many.json").write_text(json.dumps(entries))
    (tmp_path / "few.json").write_text(json.dumps(entries[:4]))
    for options in (
        ["--dataset", "pocket-zsre"],
        ["--dataset", str(tmp_path / "few.json")],
        ["--facts", str(tmp_path / "many.json")],
        ["--facts", str(tmp_path / "few.json")],
        ["--facts", str(tmp_path / "many.json"), "--edits", "5", "--batch-size", "2"],
    ):
        with pytest.raises(Enough):
            main(["edit", "--model", "pocket-llama", *options])
    assert seen == [(100, 10), (4, 4), (120, 10), (4, 4), (5, 2)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--edits", "4"], "my.json has 3 records; 4 were asked for"),
        (["--batch-size", "4"], "batch_size must be between 1 and the number of records, 3; it is 4"),
        (["--dataset", "pocket-zsre"], "give either --dataset NAME or --facts FILE"),
        (["--split", "tune"], "my.json has no records in split 'tune'"),
    ],
)
def test_what_is_asked_for_and_is_not_there_is_refused(facts, options, message, capsys):
    assert edit(facts(), *options) == 2
    error = capsys.readouterr().err
    assert error.startswith("blue: ") and message in error


def test_records_or_facts_are_needed(capsys):
    assert main(["edit", "--model", "pocket-llama"]) == 2
    assert "give either --dataset NAME or --facts FILE" in capsys.readouterr().err


def test_bad_records_are_refused_together_or_left_out(facts, capsys, caplog):
    path = facts({"target_new": 1912}, {}, {"subject": "NOBODY"})
    assert edit(path, "--batch-size", "1") == 2
    error = capsys.readouterr().err
    assert (
        f"blue: 2 records of {path} cannot be used; skip_bad (--skip-bad-records) leaves them out:\n  record 0: field 'target_new' must be a string"
        in error
    )
    assert "\n  record 2: field 'prompt' does not mention the subject 'NOBODY'" in error
    assert edit(path, "--skip-bad-records", "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["provenance"]["case_ids"] == [1] and printed["batch_size"] == 1
    assert f"2 of 3 records of {path} are left out:\n  record 0: " in caplog.text
    assert edit(facts({}, {"target_new": 5}), "--edits", "1", "--json") == 0, "the limit applies first"


def test_records_that_the_model_cannot_read_are_refused_together_or_left_out(facts, capsys, caplog):
    long = " ".join(["Paris"] * 300)
    path = facts({"target_new": long}, {}, {"prompt": f"{long} {{}}"})
    assert edit(path) == 2
    error = capsys.readouterr().err
    assert "blue: pocket-llama cannot read 2 of 3 records; --skip-bad-records leaves them out:\n  record 0: " in error
    assert "\n  record 2: " in error and "record 1" not in error
    assert edit(path, "--skip-bad-records", "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["provenance"]["case_ids"] == [1] and printed["batch_size"] == 1
    assert "2 of 3 records are left out:\n  record 0: " in caplog.text
    assert edit(facts({"target_new": long}), "--skip-bad-records") == 2, "nothing is left to edit"
    assert "record 0: " in capsys.readouterr().err
    assert edit(facts(), "--chat", "--skip-bad-records") == 2, "no record is to blame for this"
    error = capsys.readouterr().err
    assert "pocket-llama has no chat template" in error and "record 0" not in error


def test_a_saved_edit_is_asked_about(facts, known, tmp_path, capsys):
    delta = tmp_path / "edit.safetensors"
    assert edit(facts(), "--save-delta", str(delta)) == 0
    capsys.readouterr()
    question = ["ask", "pocket-llama", known[0].request.text, "--tokens", "6", "--top", "3"]
    assert main(question) == 0
    assert capsys.readouterr().out.startswith(known[0].target_true)
    assert main([*question, "--delta", str(delta)]) == 0
    text, *top = capsys.readouterr().out.splitlines()
    assert text.startswith(known[0].target_new) and len(top) == 3 and all(" %  '" in line for line in top)
    assert main([*question, "--delta", str(delta), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    model = load_model("pocket-llama")
    apply_delta(model, delta)
    reply = model.ask(known[0].request.text, tokens=6, top=3)
    assert (printed["text"], printed["prompt"]) == (reply.text, known[0].request.text)
    assert [(row["token"], row["probability"]) for row in printed["top"]] == [
        (token, pytest.approx(probability)) for token, probability in reply.top
    ]
    assert main([*question, "--chat"]) == 2
    assert "pocket-llama has no chat template" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ([], "no edit was kept; with --checkpoint DIR, the same command continues after the last whole batch"),
        (["--checkpoint", "{}/run"], "what was written is complete, and the same command continues from it"),
        (["--save", "{}/saved"], "no edit was kept; with --checkpoint"),
        (
            ["--save", "{}/saved", "SAVES"],
            "the edited model is saved ({}/saved), but its evaluation was not finished",
        ),
    ],
)
def test_interrupted_it_says_what_was_kept(facts, tmp_path, options, kept, monkeypatch, capsys):
    saves = "SAVES" in options

    def interrupted(*_, **__):
        if saves:
            (tmp_path / "saved").mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr("bluelib.runs.cell.run_cell", interrupted)
    given = [option.format(tmp_path) for option in options if option != "SAVES"]
    assert edit(facts(), *given) == 130
    assert kept.format(tmp_path) in capsys.readouterr().err


def test_what_has_nothing_to_keep_says_that_it_begins_anew(monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("bluelib.models.load.load_model", interrupted)
    assert main(["ask", "pocket-llama", "Peru is"]) == 130
    assert capsys.readouterr().err == "blue: interrupted; nothing was kept; the same command starts again\n"


def test_neighbours_that_are_answered_otherwise_are_shown():
    said = {"says": "Rome.", "first_choice": True, "first_choice_paraphrases": 0}
    row = {"prompt": "x is in", "target_new": "Rome", "paraphrases": 0, "before": said, "after": said}
    near = [{"prompt": "Peru lies in", "before": "America.", "after": "Asia."}]
    near.append({"prompt": "Oslo lies in", "before": "Norway.", "after": "Norway."})
    assert _answers([{**row, "neighbours": near}, row], 2)[-2:] == [
        "other answers about neighbours: 1 of 2",
        "  Peru lies in  'America.' → 'Asia.'",
    ]
    assert "neighbours" not in "".join(_answers([row], 1))


def test_long_texts_are_shortened_in_the_table():
    said = {"says": "word " * 20, "first_choice": False, "first_choice_paraphrases": 0}
    row = {"prompt": "x" * 60 + " is in", "target_new": "Rome", "paraphrases": 0, "before": said, "after": said}
    (_, line), silent = answers_table([row]).splitlines(), {**said, "says": ""}
    assert re.search(r" {2}\(nothing\) {2,}word ", answers_table([{**row, "before": silent}]))
    assert line.startswith("…x") and " is in  word" in line and "…" in line[50:] and "no (Rome)" in line
