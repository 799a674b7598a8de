"""The house is as docs/architecture.md says: its subpackages, what they import, and nothing that tests a method's name."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

from bluelib.editing.catalogue import VARIANTS, names
from bluelib.studies import STUDIES

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "bluelib"
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def drawing():
    spec = spec_from_file_location("draw_architecture", ROOT / "scripts" / "draw_architecture.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_root_has_subpackages_and_a_face():
    assert [path.name for path in PACKAGE.glob("*.py")] == ["__init__.py"]
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir() and not path.name.startswith("__")}
    assert all(f"`bluelib/{folder}`" in PAGE for folder in folders)
    assert {path.name for path in (ROOT / "tests").iterdir() if path.is_dir() and not path.name.startswith("__")} == {
        *(path.parent.name for path in PACKAGE.glob("*/__init__.py")),
        "project",
        "support",
    }


def test_a_subpackage_imports_only_those_below_it(drawing):
    """`levels` has no answer for a circle."""
    levels = drawing.levels(drawing.subpackages())
    assert levels == {
        "io": 1,
        "models": 2,
        "pocket": 3,
        "data": 4,
        "editing": 5,
        "metrics": 5,
        "studies": 6,
        "runs": 7,
        "reports": 8,
        "cli": 9,
    }
    assert drawing.ABOUT.keys() == levels.keys()
    with pytest.raises(ValueError, match="data, models import each other in a circle"):
        drawing.levels({"io": set(), "models": {"data"}, "data": {"models", "io"}})


def test_the_picture_is_of_these_imports(drawing, tmp_path):
    drawing.draw(tmp_path / "architecture.svg")
    assert (tmp_path / "architecture.svg").read_bytes() == (ROOT / "docs" / "architecture.svg").read_bytes()


def name_tests(source: str) -> list[str]:
    """Where a text compares something with a method's name, or looks for a variant's suffix."""
    suspects = {*names(), *(variant.name_of("") for variant in VARIANTS.values())}
    suspects |= {variant.label_of("") for variant in VARIANTS.values()}

    def suspect(node: ast.AST) -> bool:
        return any(isinstance(part, ast.Constant) and part.value in suspects for part in ast.walk(node))

    found = []
    for node in ast.walk(ast.parse(source)):
        compared = isinstance(node, ast.Compare) and any(map(suspect, [node.left, *node.comparators]))
        searched = (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in ("startswith", "endswith", "removesuffix", "removeprefix")
            and any(map(suspect, node.args))
        )
        glued = isinstance(node, ast.JoinedStr) and any(
            isinstance(part, ast.Constant) and str(part.value) in suspects for part in node.values
        )
        if compared or searched or glued:
            found.append(ast.unparse(node))
    return found


def test_no_method_is_tested_by_its_name():
    assert name_tests("a == 'rome' or b in ('ft', x) or c.endswith('_blue') or f'{d}_BLUE'") == [
        "a == 'rome'",
        "b in ('ft', x)",
        "c.endswith('_blue')",
        "f'{d}_BLUE'",
    ]
    for path in (*PACKAGE.rglob("*.py"), ROOT / "benchmarks" / "paper_scale.py"):
        assert name_tests(path.read_text(encoding="utf-8")) == [], path


def test_every_study_has_its_modules_and_its_notebook():
    for study in STUDIES.values():
        for kind in ("figures", "claims"):
            assert (PACKAGE / "reports" / kind / f"{study.name}.py").exists()
        assert (ROOT / "notebooks" / f"{study.notebook}.ipynb").exists()


def test_files_and_calls_that_the_page_names_exist():
    for path in re.findall(r"\(`([\w/]+\.py)`\)", PAGE):
        assert any(str(file).endswith(f"/{path}") for file in PACKAGE.rglob("*.py")), path


@pytest.mark.slow
def test_a_method_of_ones_own_stands_in_a_table(tmp_path):
    """The page's examples, as a reader would run them: a composition, and a part of one's own."""
    code, part, parser, _ = re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S)
    assert len([line for line in code.splitlines() if line.strip()]) < 20
    more = "print(bluelib.get_editor('scaled_blue', model, scale=0.25).constraint)\nprint(records[0].request.text)"
    (tmp_path / "triples.json").write_text('[{"triple": ["Peru", "lies in", "Asia"]}]')
    parser = parser.replace("triples.json", str(tmp_path / "triples.json"))
    done = subprocess.run(
        [sys.executable, "-c", "\n".join([code, part, parser, more])],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    assert "Scaled(scale=0.25)\nPeru lies in\n" in done.stdout
    rows = [line.split("|")[1].strip() for line in done.stdout.splitlines() if line.startswith("|")]
    assert rows == ["", "---", "pre-edited", "MEMIT", "MEMIT_BLUE", "Gentle", "Gentle_BLUE"]
