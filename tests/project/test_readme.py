"""What the pages tell readers to type works, and what they link to is there.

Every command in a fenced block of these pages has to be known to ``CHECKS``: those of the pocket scale are run as they
stand; of those that need a GPU, the hub or hours, what can be checked without is.
"""

from __future__ import annotations

import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pytest

from bluelib import load_facts
from bluelib.cli import _parser
from bluelib.data.datasets import DATASETS
from bluelib.data.download import FILES
from bluelib.editing import catalogue
from bluelib.runs.grid import Grid

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
PAGES = {
    page: (ROOT / page).read_text(encoding="utf-8")
    for page in ("README.md", "CONTRIBUTING.md", *(f"docs/{p.name}" for p in sorted((ROOT / "docs").glob("*.md"))))
}


def blocks(text: str) -> list[tuple[str, str]]:
    """The language and the text of each fenced block, without the indentation of its fence."""
    return [
        (language, re.sub(rf"^{indent}", "", body, flags=re.M))
        for indent, language, body in re.findall(r"^( *)```(\w*)\n(.*?)^\1```$", text, re.M | re.S)
    ]


def commands(text: str) -> list[list[str]]:
    """The words of each command, in the blocks of bash."""
    lines = [
        line for language, body in blocks(text) if language == "bash" for line in body.replace("\\\n", " ").splitlines()
    ]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


COMMANDS = [(page, words) for page, text in PAGES.items() for words in commands(text)]


def run(folder: Path, *command: str | Path) -> str:
    """What a command prints, in a folder with the notebooks and a ``.venv`` that is this environment."""
    shutil.copytree(ROOT / "notebooks", folder / "notebooks", ignore=shutil.ignore_patterns(".*"))
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def is_run(folder: Path, program: str, *arguments: str) -> None:
    printed = run(folder, BIN / Path(program).name, *arguments)
    if program.endswith("papermill"):
        written = nbformat.read(folder / arguments[1], as_version=4)
        assert all(cell.execution_count for cell in written.cells if cell.cell_type == "code")
    else:
        assert re.search(r"efficacy +|usage: blue", printed)


def is_opened(folder: Path, program: str, *arguments: str) -> None:
    """A server, which would not end: it is installed, and there is the notebook that it is to show."""
    subprocess.run([BIN / Path(program).name, *arguments[:-1], "--version"], check=True, capture_output=True)
    assert (ROOT / arguments[-1]).suffix == ".ipynb" and (ROOT / arguments[-1]).exists()


def is_a_target(folder: Path, program: str, target: str) -> None:
    subprocess.run(["make", "-n", target], cwd=ROOT, check=True, capture_output=True)


def is_understood(folder: Path, program: str, *arguments: str) -> None:
    """A command of ``blue`` whose options, datasets, editors and grids there are."""
    parsed = vars(_parser().parse_args(arguments))
    if parsed.get("facts"):  # the reader's own, as the README shows it
        assert str(parsed["facts"]) in ("my.json", "more.json")
    elif parsed.get("dataset"):  # or the model decides
        assert parsed["dataset"] in {*DATASETS, *FILES}
    if arguments[0] == "download":
        assert set(parsed["name"]) <= FILES.keys()
    asked = parsed.get("editor") or []
    assert {*([asked] if isinstance(asked, str) else asked)} <= {*catalogue.names()}
    if "grid" in parsed and parsed["grid"] != Path("my-grid.yaml"):  # the reader's own
        Grid.load(ROOT / parsed["grid"])


def has_parameters(folder: Path, program: str, notebook: str, executed: str, *options: str) -> None:
    """A notebook with these parameters."""
    cells = nbformat.read(ROOT / notebook, as_version=4).cells
    (source,) = [cell.source for cell in cells if "parameters" in cell.metadata.get("tags", [])]
    known = {target.id for node in ast.parse(source).body for target in node.targets}
    assert options[::3] == ("-p",) * (len(options) // 3) and set(options[1::3]) <= known


def is_a_program(folder: Path, program: str, *arguments: str) -> None:
    """A program of the environment, and its files."""
    assert (BIN / program).exists() or shutil.which(program)
    for argument in arguments:
        assert "/" not in argument or (ROOT / argument).exists()


def has_extras(folder: Path, program: str, *arguments: str) -> None:
    """An installation, which needs the network: the extras and files that it names are there."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    for argument in arguments:
        if named := re.fullmatch(r"\.\[(.*)\]", argument):
            assert set(named[1].split(",")) <= extras.keys()
        assert not argument.endswith(".txt") or (ROOT / argument).exists()


#: By what a command begins with, how it is checked. The first that fits.
CHECKS = (
    (r"\.venv/bin/(blue|papermill) ", is_run),
    (r"\.venv/bin/(jupyter lab|voila) ", is_opened),
    (r"make \S+( ARGS=.*)?$", is_a_target),
    (r"(pip|python3\.11) ", has_extras),
    (r"blue ", is_understood),
    (r"papermill ", has_parameters),
    (r"(OMP_NUM_THREADS=1 )?(jupyter nbconvert|nbstripout|python scripts/\S+$)|hf auth login$", is_a_program),
)


def check_of(words: list[str]):
    line = " ".join(words)
    found = next((check for pattern, check in CHECKS if re.match(pattern, line)), None)
    assert found, f"no test knows what to do with this command: {line}"
    return found


@pytest.mark.parametrize(
    ("page", "words"),
    [
        pytest.param(
            page, words, marks=[pytest.mark.slow] * (words[0].startswith(".venv")), id=f"{page}: {' '.join(words)[:60]}"
        )
        for page, words in COMMANDS
    ],
)
def test_a_command_works(page, words, tmp_path):
    check = check_of(words)
    check(tmp_path, *(word for word in words if not re.match(r"[A-Z_]+=", word)))


def test_a_command_that_no_check_knows_is_noticed():
    with pytest.raises(AssertionError, match="no test knows what to do with this command: rm -rf results"):
        check_of(["rm", "-rf", "results"])


def test_blocks_are_of_known_languages():
    """Others would be read by nobody here; those without one are formulas and output."""
    for page, text in PAGES.items():
        assert {language for language, _ in blocks(text)} <= {"bash", "python", "json", ""}, page
        assert len(re.findall(r"^ *```", text, re.M)) == 2 * len(blocks(text)), page


@pytest.mark.slow
@pytest.mark.parametrize("page", ["README.md", "docs/build-on-it.md"])
def test_python_of_pages_for_everybody_runs(page, tmp_path):
    (python,) = [body for language, body in blocks(PAGES[page]) if language == "python"]
    run(tmp_path, sys.executable, "-c", python)


def test_the_facts_that_a_page_shows_are_read(tmp_path):
    page = PAGES["docs/your-facts.md"]
    (shown,) = [body for language, body in blocks(page) if language == "json"]
    (tmp_path / "my.json").write_text(shown, encoding="utf-8")
    found = load_facts(tmp_path / "my.json")
    assert [record.target_new for record in found] == ["Rome", "Russian", "botany"]
    answer = page.partition("This is the answer")[2]
    assert [record.request.text in answer for record in found] == [True] * 3


@pytest.mark.parametrize("page", PAGES)
def test_python_in_other_pages_imports_what_there_is(page):
    """It needs models of the paper's scale, so that only its imports are run."""
    for language, body in blocks(PAGES[page]):
        if language == "python":
            imports = [node for node in ast.parse(body).body if isinstance(node, ast.Import | ast.ImportFrom)]
            exec(compile(ast.Module(imports, []), page, "exec"), {})


@pytest.mark.parametrize("page", PAGES)
def test_commands_in_sentences_exist(page):
    known = next(action.choices for action in _parser()._actions if action.choices)
    named = set(re.findall(r"`blue ([a-z][a-z-]*)", PAGES[page]))
    assert named <= known.keys()


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ +(.+)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_and_pictures_lead_somewhere(page):
    links = re.findall(r"\]\(([^)\s]+)\)", PAGES[page])
    for link in links:
        url = urlsplit(link)
        if url.scheme:
            continue
        target = (ROOT / page).parent / unquote(url.path) if url.path else ROOT / page
        assert target.exists(), f"{page} links to {link}, which is not there"
        assert not url.fragment or url.fragment in anchors(target.read_text(encoding="utf-8")), (
            f"{page}: no heading {link}"
        )
