"""The command line on the shipped models: what it prints, and how it fails."""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import shlex
import signal
import subprocess
import sys
import time

import nbformat
import pytest

from bluelib import apply_delta, edit_sequence, evaluate, get_editor, load_dataset, load_model
from bluelib.cli import _parser, main
from bluelib.editing import catalogue
from bluelib.io.paths import project_path
from bluelib.io.timing import progress_bar
from bluelib.runs.cell import summary
from bluelib.runs.execute import run_notebook
from bluelib.runs.parameters import check_parameters


def test_lists(capsys):
    for command, expected in (
        ("models", "pocket-llama     LlamaForCausalLM"),
        ("datasets", "pocket-zsre"),
        ("editors", "R Kᵀ"),
    ):
        assert main([command]) == 0
        assert expected in capsys.readouterr().out


COMMANDS = next(a for a in _parser()._actions if isinstance(a, argparse._SubParsersAction)).choices


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself_with_an_example_that_parses(name, capsys):
    with pytest.raises(SystemExit) as end:
        main([name, "--help"])
    assert end.value.code == 0
    shown = capsys.readouterr().out
    program, *example = shlex.split(COMMANDS[name].epilog.removeprefix("example: "))
    assert program == "blue" and example[0] == name and "example: blue" in shown
    assert _parser().parse_args(example).command
    assert "--json" in shown


@pytest.mark.parametrize("command", ["models", "datasets", "editors"])
def test_lists_as_json(command, capsys):
    assert main([command, "--json"]) == 0
    (listed, *_) = json.loads(capsys.readouterr().out).values()
    assert {"models": "pocket-gptj", "datasets": "pocket-zsre", "editors": "prune_blue"}[command] in listed


def test_an_option_that_is_given_twice_loses_nothing():
    """As papermill has it: -p for each parameter. The first one takes the default's place, in every call."""
    for _ in range(2):
        parsed = _parser().parse_args(["notebook", "x", "o.ipynb", "-p", "model=a", "-p", "edits=2", "seed=1"])
        assert parsed.parameters == ["model=a", "edits=2", "seed=1"]
        parsed = _parser().parse_args(["statistics", "--model", "m", "--editor", "rect", "--editor", "alphaedit"])
        assert parsed.editor == ["rect", "alphaedit"]
        assert _parser().parse_args(["statistics", "--model", "m"]).editor == ["memit"]


def test_a_parameter_that_is_given_twice_is_refused(tmp_path, capsys):
    command = ["notebook", "06_main_table", str(tmp_path / "o.ipynb"), "-p", "edits=2", "-p", "edits=3"]
    assert main(command) == 2
    assert "parameter edits is given twice, as 2 and as 3" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_error_of_one_record_is_not_told_as_none(capsys):
    assert main(["evaluate", "--model", "pocket-llama", "--dataset", "pocket-zsre", "--edits", "1"]) == 0
    assert " ± –" in capsys.readouterr().out


def test_a_command_that_needs_no_model_loads_no_torch():
    """Torch and transformers take seconds, which help and lists need not wait for."""
    code = "import sys; from bluelib.cli import main; main(['models']); print({'torch', 'pandas'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("\nset()\n")


def test_without_a_command_the_help_is_shown(capsys):
    assert main([]) == 2
    assert "exit status" in capsys.readouterr().err


def test_a_reader_that_has_read_enough_is_no_error():
    """`blue models | true`: the pipe is closed before anything is written."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "bluelib.cli", "models"], stdout=writer, stderr=subprocess.PIPE, check=False
    )
    os.close(writer)
    assert done.returncode == 0 and not done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_says_so_in_a_line(tmp_path, number):
    """Ctrl-C or SIGTERM in the middle of a sequence: one line, status 130, and what is on disk continues."""
    command = [
        sys.executable,
        *"-m bluelib.cli edit --model pocket-llama --dataset pocket-zsre --editor memit --edits 40 --batch-size 1 --no-generate --checkpoint".split(),
        str(tmp_path / "run"),
    ]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored in what a shell starts behind itself
    )
    while not (tmp_path / "run" / "manifest.json").exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    process.send_signal(number)
    out, err = process.communicate()
    assert process.returncode == 130 and not out
    *log, last = err.splitlines()
    assert last == "blue: interrupted; what was written is complete, and the same command continues from it"
    assert log[0] == "evaluating before editing: 40 records"
    assert all(re.match(r"[a-z ]+: [\d.]+ of [\d.]+", line) for line in log[1:]), "progress, as long work gives it"
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["batches"]


def test_datasets_can_be_written(tmp_path, capsys):
    assert main(["datasets", "--write", str(tmp_path)]) == 0
    names = ("facts-ripple", "facts", "pocket-counterfact", "pocket-ripple", "pocket-zsre")
    written = ["README.md", *(f"{name}.json" for name in names)]
    assert sorted(p.name for p in tmp_path.iterdir()) == written


@pytest.mark.parametrize("dataset", [pytest.param("pocket-counterfact", marks=pytest.mark.slow), "pocket-zsre"])
def test_edit_prints_what_the_library_computes(dataset, capsys):
    assert (
        main(
            [
                *"edit --model pocket-llama --dataset".split(),
                dataset,
                *"--editor memit_blue --edits 3 --batch-size 2 --seed 1 --json".split(),
            ]
        )
        == 0
    )
    printed = json.loads(capsys.readouterr().out)
    model = load_model("pocket-llama")
    records = load_dataset(dataset, split="report", limit=3, seed=1)
    before = evaluate(model, records, seed=1, dataset=dataset)
    run = edit_sequence(model, records, get_editor("memit_blue", model), batch_size=2)
    after = evaluate(model, records, seed=1, dataset=dataset)
    assert printed["before"] == json.loads(json.dumps(summary(before)))
    assert printed["after"] == json.loads(json.dumps(summary(after)))
    assert printed["editor"]["layers"] == list(run.editor.layers)
    assert set(printed["seconds"]) >= {"prepare", "targets", "keys", "solve", "evaluate_before", "evaluate_after"}
    assert printed["provenance"]["scale"] == "pocket"
    assert printed["provenance"]["model_revision"] == model.revision
    assert printed["provenance"]["case_ids"] == [record.case_id for record in records]
    assert printed["after"]["efficacy"]["mean"] > printed["before"]["efficacy"]["mean"]


def test_an_edit_is_saved_and_applied_again(tmp_path, capsys):
    delta, saved, applied = tmp_path / "edit.safetensors", tmp_path / "saved", tmp_path / "applied"
    command = "edit --model pocket-llama --dataset pocket-counterfact --editor memit --edits 2 --batch-size 2 --no-generate".split()
    assert main([*command, "--save", str(saved), "--save-delta", str(delta)]) == 0
    assert main(["apply", str(delta), "--model", "pocket-llama", "--save", str(applied)]) == 0
    assert "pocket-llama with 2 edits" in capsys.readouterr().out
    assert (saved / "model.safetensors").read_bytes() == (applied / "model.safetensors").read_bytes()
    assert main([*command, "--save", str(saved)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert main(["apply", str(delta), "--model", str(saved), "--save", str(tmp_path / "x")]) == 2
    assert "belongs to pocket-llama with weights sha256:" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_what_exists_already_is_not_saved_to(tmp_path, monkeypatch, capsys):
    """Not even by the same command, with its own checkpoint."""
    saved, delta = tmp_path / "saved", tmp_path / "edit.safetensors"
    options = "--model pocket-llama --dataset pocket-zsre --editor memit --edits 2 --batch-size 2 --no-generate"
    command = ["edit", *options.split(), "--checkpoint", str(tmp_path / "run")]
    targets = ["--save", str(saved), "--save-delta", str(delta)]
    assert main([*command, *targets]) == 0
    written = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    capsys.readouterr()

    def work(*_, **__):
        raise AssertionError("work has begun")

    monkeypatch.setattr("bluelib.models.load.load_model", work)
    for arguments, target in (
        ([*command, *targets], saved),
        ([*command, *targets[2:]], delta),
        (["apply", str(delta), "--model", "pocket-llama", "--save", str(saved)], saved),
    ):
        assert main(arguments) == 2
        assert capsys.readouterr().err == f"blue: {target} exists already; remove it, or choose another name\n"
    assert main([*command, "--save", str(tmp_path / "x"), "--save-delta", str(tmp_path / "x")]) == 2
    assert "--save is a folder and --save-delta a file" in capsys.readouterr().err
    (empty := tmp_path.parent / "empty").mkdir(exist_ok=True)
    assert main([*command, "--save-delta", str(empty)]) == 2
    assert f"{empty} is a folder; a file is to be written there" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == written


def test_edits_are_saved_before_they_are_evaluated(tmp_path, monkeypatch, capsys):
    from bluelib.runs import cell as experiment

    evaluate, calls = experiment.evaluate, []

    def fails_later(*arguments, **options):
        calls.append(1)
        if len(calls) == 2:
            raise FloatingPointError("no score")
        return evaluate(*arguments, **options)

    monkeypatch.setattr(experiment, "evaluate", fails_later)
    delta = tmp_path / "edit.safetensors"
    assert (
        main(
            [
                *"edit --model pocket-llama --dataset pocket-zsre --editor memit --edits 2 --batch-size 2 --no-generate --save-delta".split(),
                str(delta),
            ]
        )
        == 2
    )
    assert "no score" in capsys.readouterr().err
    assert apply_delta(load_model("pocket-llama"), delta)["edits"] == 2


#: One of each kind that the commands treat differently; `make test-long` has all.
KINDS = ("ft", "mend", "rome", "memit_blue", "memit_cake", "alphaedit_nas")


@pytest.mark.parametrize(
    "editor", [pytest.param(name, marks=[] if name in KINDS else pytest.mark.slow) for name in catalogue.names()]
)
def test_every_editor_edits_a_pocket_model(editor, capsys):
    assert (
        main(
            [
                *"edit --model pocket-llama --dataset pocket-zsre --editor".split(),
                editor,
                *"--edits 4 --batch-size 2 --json".split(),
            ]
        )
        == 0
    )
    printed = json.loads(capsys.readouterr().out)
    assert set(printed["after"]) == {"efficacy", "generalization", "specificity"}
    assert printed["editor"]["name"] == editor
    assert all(change > 0 for change in printed["weight_change"].values())


def test_evaluate_before_editing(capsys):
    assert (
        main(["evaluate", "--model", "pocket-llama", "--dataset", "pocket-counterfact", "--edits", "2", "--json"]) == 0
    )
    printed = json.loads(capsys.readouterr().out)
    assert set(printed["scores"]) == {"efficacy", "generalization", "specificity", "fluency", "consistency"}
    assert (
        main(
            ["evaluate", "--model", "pocket-llama", "--dataset", "pocket-counterfact", "--edits", "2", "--no-generate"]
        )
        == 0
    )
    assert "before editing" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "pocket-bert"], "model 'pocket-bert' is not shipped here; known: "),
        (["--model", "smolm2-135m"], "no model is called 'smolm2-135m'; did you mean 'smollm2-135m'?"),
        (["--editor", "nonsense"], "no editor is called 'nonsense'; known: ft, mend, rome, memit"),
        (["--editor", "MEMIT_BLUE"], "no editor is called 'MEMIT_BLUE'; did you mean 'memit_blue'?"),
        (["--dataset", "fact"], "no dataset is called 'fact'; did you mean 'facts'?"),
        (["--dataset", "nonsense"], "no dataset is called 'nonsense'; known: pocket-counterfact"),
        (["--edits", "100000"], "has 800 records in split report; 100000 were asked for"),
        (["--batch-size", "0"], "batch_size must be between 1 and the number of records, 4; it is 0"),
        (["--dtype", "int8"], "dtype 'int8' is not one of float32, bfloat16, float16"),
        (["--split", "test"], "split 'test' is not one of tune, report"),
    ],
)
def test_errors_are_one_line_and_exit_with_2(arguments, message, capsys):
    command = ["edit", "--model", "pocket-llama", "--dataset", "pocket-zsre", "--editor", "memit", "--edits", "4"]
    assert main(command + arguments) == 2
    printed = capsys.readouterr()
    assert message in printed.err and printed.err.count("\n") == 1
    assert not printed.out


def test_parameters_of_a_notebook_are_checked():
    known = {"model": str, "edits": int, "editor": str}
    good = {"model": "x", "edits": 3, "editor": "memit", "In": [], "_i": "", "lm": object()}
    check_parameters(good, known)
    for bad, message in (
        ({"modle": "x"}, "unknown parameter: modle; known: model"),
        ({"edits": "3"}, "parameter edits must be int, not '3'"),
        ({"edits": True}, "parameter edits must be int, not True"),
        ({"model": 7}, "parameter model must be str, not 7"),
        ({"editor": "x"}, "no editor is called 'x'; known: ft, mend, rome, memit"),
    ):
        with pytest.raises(ValueError, match=message):
            check_parameters({**good, **bad}, known)


TRAIN = ["train-mend", "--model", "pocket-llama"]
EDIT = ["edit", "--model", "pocket-llama", "--dataset", "pocket-zsre", "--editor", "memit", "--edits", "4"]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ([*TRAIN, "--steps", "0"], "steps must be at least 1, not 0"),
        ([*TRAIN, "--batch-size", "0"], "batch_size must be between 1 and the number of records"),
        ([*TRAIN, "--output", "{folder}"], "{folder} is a folder; a file is to be written there"),
        ([*TRAIN, "--output", "{file}/m"], "{file}/m cannot be written: Not a directory"),
        (
            [*EDIT, "--batch-size", "2", "--checkpoint", "{file}"],
            "{file} is a file; name a folder for the checkpoint",
        ),
        ([*EDIT, "--batch-size", "2", "--save", "{file}/s"], "{file}/s cannot be written: Not a directory"),
        ([*EDIT, "--batch-size", "2", "--on-conflict", "x"], "on_conflict must be one of last, keep, refuse, not 'x'"),
        (
            ["apply", "{folder}", "--model", "pocket-llama", "--save", "{folder}/x"],
            "{folder} is not a file; name one that",
        ),
        (["apply", "x.safetensors", "--model", "pocket-llama", "--save", "{file}"], "{file} exists already"),
        (["pretrain", "pocket-gpt2", "--steps", "0", "--output", "{folder}/p"], "steps must be at least 1, not 0"),
        (["pretrain", "pocket-gpt2", "--output", "{file}"], "{file} is a file; a folder is to be written there"),
        (
            ["pretrain", "pocket-gpt2", "--device", "abacus", "--output", "{folder}/p"],
            "device 'abacus' is neither auto",
        ),
        (["statistics", "--model", "pocket-llama", "--tokens", "-5"], "tokens must be at least 1, not -5"),
        (["statistics", "--model", "pocket-llama", "--tokens", "0"], "tokens must be at least 1, not 0"),
        (["statistics", "--model", "pocket-llama", "--output", "{folder}"], "{folder} is a folder; a file is to be"),
        (["convergence", "--model", "pocket-llama", "--tokens", "0"], "tokens must be at least 1, not 0"),
        (["convergence", "--model", "pocket-llama", "--editor", "memit", "ft"], "ft is not a composition of layers"),
        (
            ["tune", "--model", "pocket-llama", "--editor", "ft", "nonsense"],
            "no editor is called 'nonsense'; known: ft, mend",
        ),
        (["notebook", "nonsense", "{folder}/o.ipynb"], "no notebook is called 'nonsense'; known: 00_quickstart"),
        (
            ["notebook", "04_residuals", "{folder}/o.ipynb", "-p", "modle=x"],
            "04_residuals has no parameter modle; known: ",
        ),
        (["notebook", "04_residuals", "{folder}"], "{folder} is a folder; a file is to be written there"),
        (["draw", "00_quickstart"], "no analysis notebook is called '00_quickstart'; known: "),
        (["tables", "--grid", "{file}"], "{file} is not valid YAML: while parsing a flow sequence"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_long_begins(command, message, tmp_path, monkeypatch, capsys):
    def long_work(*_, **__):
        raise AssertionError("long work has begun")

    for name in (
        "runs.cell.evaluate",
        "editing.mend.gradient_pairs",
        "pocket.pretrain.build_tokenizer",
        "editing.second_moments._measure",
        "studies.tuning.evaluate",
    ):
        monkeypatch.setattr(f"bluelib.{name}", long_work)
    monkeypatch.setattr("papermill.execute_notebook", long_work)
    folder, file = tmp_path / "folder", tmp_path / "file"
    folder.mkdir()
    file.write_text("a: [1")
    names = {"folder": folder, "file": file}
    assert main([part.format(**names) for part in command]) == 2
    printed = capsys.readouterr()
    assert message.format(**names) in printed.err and printed.err.count("\n") == 1
    assert not printed.out and not list(folder.iterdir()) and file.read_text() == "a: [1"


def test_a_model_without_a_configuration_has_no_search(tmp_path, capsys):
    load_model("pocket-llama").save(tmp_path / "edited")
    assert main(["tune", "--model", str(tmp_path / "edited"), "--editor", "memit"]) == 2
    assert "has no settings; `blue locate" in capsys.readouterr().err


def test_a_log_has_lines_where_a_terminal_has_a_bar(monkeypatch, caplog):
    """At the start and at the end, and in between every half minute; nothing of a bar within a bar."""
    caplog.set_level(logging.INFO)
    monkeypatch.setenv("TQDM_DISABLE", "1")
    with progress_bar(total=40, desc="memit", unit="edit") as bar:
        assert [record.message for record in caplog.records] == ["memit: 0 of 40 edits after 00:00, ? left"]
        bar.update(20)
        list(progress_bar(range(3), desc="scoring", leave=False))
        bar.update(20)
    assert [record.message.split(" after ")[0] for record in caplog.records] == [
        "memit: 0 of 40 edits",
        "memit: 40 of 40 edits",
    ]
    caplog.clear()
    with monkeypatch.context() as patched:
        patched.setattr("bluelib.io.timing.LINES", 0)
        assert list(progress_bar(range(3), desc="layers", unit="layer")) == [0, 1, 2]
    assert len(caplog.records) >= 4
    assert list(progress_bar(range(3), show=False)) == [0, 1, 2]


@pytest.mark.slow
def test_no_bar_is_left_in_a_notebook_that_runs_unattended(tmp_path, monkeypatch):
    """Whatever the caller's own setting; which is as it was afterwards."""
    monkeypatch.setenv("TQDM_DISABLE", "")
    (tmp_path / "notebooks").mkdir()
    cell = nbformat.v4.new_code_cell(
        "import time\nfrom bluelib.io.timing import progress_bar\nfor _ in progress_bar(range(3)):\n    time.sleep(0.6)\n"
        "print('done')"
    )
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "notebooks" / "slow.ipynb")
    monkeypatch.setenv("PYTHONPATH", str(project_path()))
    monkeypatch.chdir(tmp_path)
    run_notebook("slow", {}, tmp_path / "out.ipynb")
    (ran,) = nbformat.read(tmp_path / "out.ipynb", 4).cells
    assert [(o.output_type, o.text) for o in ran.outputs] == [("stream", "done\n")]
    assert os.environ["TQDM_DISABLE"] == ""
