"""Every notebook follows the rules, runs, and gives the numbers that are kept in it."""

from __future__ import annotations

import ast
import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pandas as pd
import papermill
import pytest

from bluelib import load_model
from bluelib.runs.notebooks import check_answer, write_numbers
from bluelib.runs.parameters import check_parameters

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
COMMON = ("model", "dataset", "edits", "batch_size", "seed")
#: Notebooks that make no sequence of edits: one batch is edited from scratch, the report reads a grid's numbers, and the
#: demo edits what it is told to.
OTHERS = {
    "01_blue_from_scratch.ipynb": ("model", "dataset", "edits", "seed"),
    "12_report.ipynb": ("grid", "models"),
    "demo_edit_a_fact.ipynb": ("model", "dataset", "editor"),
}
#: Statements of a notebook at most: where the computation is the subject, it stands in the notebook.
LONG = {"01_blue_from_scratch.ipynb": 200, "03_theory.ipynb": 150}


def code_cells(path):
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def tags(cell):
    return cell.metadata.get("tags", [])


def test_there_are_notebooks():
    assert {path.name[:2] for path in NOTEBOOKS} >= {f"{number:02d}" for number in range(10)}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.name)
def test_a_notebook_follows_the_rules(path):
    notebook = nbformat.read(path, as_version=4)
    assert notebook.cells[0].cell_type == "markdown" and "**Cost.**" in notebook.cells[0].source
    cells = code_cells(path)
    source = "\n".join(cell.source for cell in cells)
    code = ast.parse(re.sub(r"%pip .*", "pass", source))
    assert sum(isinstance(node, ast.stmt) for node in ast.walk(code)) < LONG.get(path.name, 120)
    (parameters,) = [cell for cell in cells if "parameters" in tags(cell)]
    for name in OTHERS.get(path.name, COMMON):
        assert re.search(rf"^{name} = ", parameters.source, re.M), f"{name} is not a parameter"
    after = cells[cells.index(parameters) + 1]
    assert after.source.startswith("check_parameters("), "parameters are checked first of all"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.name)
def test_a_notebook_has_checked_cells_with_outputs(path):
    """nbval passes a stripped notebook without comparing anything."""
    checked = [cell for cell in code_cells(path) if "nbval-check-output" in tags(cell)]
    assert checked
    for cell in checked:
        assert "keep_output" in tags(cell)
        assert cell.outputs and cell.execution_count, "run the notebook, and keep this cell's output"
        assert any(re.search(r"\w", output.get("text", "")) for output in cell.outputs)


@pytest.mark.parametrize(
    ("answer", "right", "said"),
    [
        (None, 3, "No answer yet"),
        (3, 3, "Right"),
        (4, 3, "Not yet"),
        (0.99, 1.0, "Right"),
        (-1.01, -1.0, "Right"),
        (1.03, 1.0, "Not yet"),
        ("memit", "memit", "Right"),
        ("prune", "memit", "Not yet"),
        (False, True, "Not yet"),
        ([4, 8], [4, 8], "Right"),
    ],
)
def test_an_exercise_tells_right_from_wrong(answer, right, said, capsys):
    check_answer(answer, right, within=0.02)
    assert capsys.readouterr().out.startswith(said)


@pytest.mark.parametrize(("answer", "right"), [("3", 3), (True, 1.0), (3, "memit"), (1, True)])
def test_an_answer_of_another_kind_is_refused(answer, right):
    with pytest.raises(TypeError, match="the answer must be"):
        check_answer(answer, right)


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.name)
def test_a_notebook_gives_its_numbers(path, tmp_path):
    """nbval in a process of its own, on a copy, so that what the notebook writes stays out of the checkout.

    On one thread, as the kept outputs were made: the number of threads decides how sums are rounded.
    """
    (tmp_path / "notebooks").mkdir()
    for part in ("ablation", "contributions", "small", "pocket"):  # what notebooks read
        shutil.copytree(ROOT / "results" / part, tmp_path / "results" / part)
    copy = tmp_path / "notebooks" / path.name
    copy.write_bytes(path.read_bytes())
    done = subprocess.run(
        [
            sys.executable,
            *"-m pytest -q -p no:cacheprovider --nbval-lax --nbval-current-env --nbval-sanitize-with".split(),
            str(ROOT / "tests" / "nbval_sanitize.cfg"),
            "--rootdir",
            str(tmp_path),
            str(copy),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert f"{len(code_cells(path))} passed" in done.stdout


def test_nbval_would_notice_another_number(tmp_path):
    """The check itself is checked: a kept output with one digit changed fails."""
    notebook = nbformat.v4.new_notebook()
    cell = nbformat.v4.new_code_cell("print('efficacy', 90 + 5)", metadata={"tags": ["nbval-check-output"]})
    cell.execution_count, cell.outputs = 1, [nbformat.v4.new_output("stream", name="stdout", text="efficacy 94\n")]
    notebook.cells = [cell]
    nbformat.write(notebook, tmp_path / "wrong.ipynb")
    done = subprocess.run(
        [
            sys.executable,
            *"-m pytest -q --nbval-lax --nbval-current-env --nbval-sanitize-with".split(),
            str(ROOT / "tests" / "nbval_sanitize.cfg"),
            "--rootdir",
            str(tmp_path),
            str(tmp_path / "wrong.ipynb"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1 and "1 failed" in done.stdout


SEQUENTIAL = ROOT / "notebooks" / "06_main_table.ipynb"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (
            {"modle": "x"},
            r"unknown parameter: modle; known: model \(str\), dataset \(str\), editor \(str\), edits \(int\)",
        ),
        ({"editor": "nonsense"}, "no editor is called 'nonsense'; known: ft, mend, rome, memit, memit_blue"),
        ({"edits": "forty"}, r"parameter edits must be int, not 'forty'; known: model \(str\)"),
        ({"model": "pocket-bert"}, "model 'pocket-bert' is not shipped here; known: "),
        ({"dataset": "pocket-trivia"}, "no dataset is called 'pocket-trivia'; known: pocket-counterfact, "),
    ],
)
def test_a_wrong_parameter_is_refused_with_the_known_ones(parameters, message, tmp_path):
    with pytest.raises(papermill.PapermillExecutionError, match=message):
        papermill.execute_notebook(
            str(SEQUENTIAL), str(tmp_path / "out.ipynb"), parameters, cwd=str(tmp_path), progress_bar=False
        )


def test_a_cell_of_the_table_by_papermill(tmp_path):
    """One cell at a small size, on the other dataset, writing into a folder of its own."""
    (tmp_path / "notebooks").mkdir()
    parameters = {
        "model": "pocket-llama",
        "editor": "alphaedit_blue",
        "edits": 4,
        "batch_size": 2,
        "dataset": "pocket-zsre",
    }
    papermill.execute_notebook(
        str(SEQUENTIAL), str(tmp_path / "out.ipynb"), parameters, cwd=str(tmp_path), progress_bar=False
    )
    (written,) = (tmp_path / "results" / "raw").glob("*.json")
    assert written.name == "pocket-llama_pocket-zsre_alphaedit_blue_4x2_seed0.json"


def test_numbers_that_are_not_defined_are_kept_as_none(tmp_path, small_world):
    """Such as the interval of one value; infinity is a mistake."""
    frame = pd.DataFrame({"mean": [1.23456789], "standard_error": [math.nan]})
    model = load_model("pocket-llama")
    write_numbers("x", model, [], {"frame": frame, "one": {"relative": math.nan}}, tmp_path / "x.json")
    found = json.loads((tmp_path / "x.json").read_text())
    assert found["frame"] == [{"mean": 1.2346, "standard_error": None}] and found["one"] == {"relative": None}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_numbers("x", model, [], {"value": math.inf}, tmp_path / "y.json")
    assert not (tmp_path / "y.json").exists()


def test_a_list_that_papermill_gives_as_text_is_refused_with_how_to_give_it():
    with pytest.raises(
        ValueError, match=r"must be list, not '\[\"memit\"\]' \(papermill's -p gives text; -y 'editors: "
    ):
        check_parameters({"editors": '["memit"]'}, {"editors": list})
