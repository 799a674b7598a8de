"""The ways to an environment agree: pyproject.toml, constraints.txt, conda's file and Binder's; and the addresses."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tomllib
from importlib.metadata import distributions
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import nbformat
import pytest
import yaml
from IPython.core.interactiveshell import InteractiveShell
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

import bluelib
from bluelib.models.known import pocket_models

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
REPOSITORY = PROJECT["urls"]["Repository"]
SLUG = REPOSITORY.removeprefix("https://github.com/")
QUICKSTART = ROOT / "notebooks" / "00_quickstart.ipynb"
DEMO = ROOT / "notebooks" / "demo_edit_a_fact.ipynb"
#: Conda-forge's name of a package, and its name on PyPI.
FROM_CONDA = {"pytorch-cpu": "torch", "matplotlib-base": "matplotlib", "seaborn-base": "seaborn"}
#: What the files ask for beside the library's packages.
TOOLS = {"python", "pip", "make"}
#: What repo2docker's own base environment brings, in versions of its own.
BASE = {"jupyterlab", "ipykernel"}


def bounds(requirements: list[str]) -> dict[str, SpecifierSet]:
    """By PyPI's name, the versions that are asked for; a package that is named twice is refused."""
    found: dict[str, SpecifierSet] = {}
    for text in requirements:
        requirement = Requirement(re.sub(r"^(python)=(?=\d)", r"\1==", text))
        name = canonicalize_name(FROM_CONDA.get(requirement.name, requirement.name))
        assert name not in found, f"{name} is there twice"
        found[name] = requirement.specifier
    return found


def conda_file(path: Path) -> tuple[dict[str, SpecifierSet], list[str]]:
    """The packages that conda is asked for, and the lines for pip."""
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert content["channels"] == ["conda-forge", "nodefaults"]
    lines = [line for line in content["dependencies"] if isinstance(line, str)]
    names = [re.match(r"[\w.-]+", line)[0] for line in lines]
    assert "pytorch-cpu" in names
    assert not [name for name in names if re.fullmatch(r"pytorch|pytorch-gpu|(cuda|cudnn|nvidia).*", name)]
    pip = [line for part in content["dependencies"] if isinstance(part, dict) for line in part["pip"]]
    return bounds(lines), pip


CONDA, CONDA_PIP = conda_file(ROOT / "environment.yml")
BINDER, BINDER_PIP = conda_file(ROOT / "binder" / "environment.yml")
LIBRARY = bounds(PROJECT["dependencies"])
EVERYTHING = bounds([*PROJECT["dependencies"], *(line for extra in EXTRAS.values() for line in extra)])


def test_a_package_named_twice_is_noticed():
    with pytest.raises(AssertionError, match="rouge-score is there twice"):
        bounds(["rouge-score>=0.1.2", "rouge_score>=0.1.2"])


def test_conda_gets_what_the_library_asks_for():
    """All dependencies with the same bounds; of the extras what conda-forge has, and the rest through pip."""
    packages = {name: bound for name, bound in CONDA.items() if name not in TOOLS}
    assert packages.keys() >= LIBRARY.keys()
    assert packages == {name: EVERYTHING.get(name) for name in packages}
    assert CONDA_PIP == [f"-e .[{','.join(EXTRAS)}]"]


def test_binder_gets_the_library_and_the_demo_and_no_more():
    packages = {name: bound for name, bound in BINDER.items() if name not in TOOLS}
    assert packages == {name: bound for name, bound in (LIBRARY | bounds(EXTRAS["demo"])).items() if name not in BASE}
    assert not BINDER_PIP, "a local requirement of pip's would make repo2docker build the environment at each commit"


def test_every_way_has_a_python_that_the_library_takes():
    (python,) = CONDA["python"]
    assert python.version in SpecifierSet(PROJECT["requires-python"])
    assert BINDER["python"] == CONDA["python"]


def test_pins_satisfy_every_bound():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = bounds([line for line in lines if not line.startswith("#")])
    assert pins.keys() >= EVERYTHING.keys()
    for name, pin in pins.items():
        (exact,) = pin
        assert exact.operator == "==" and Version(exact.version) in EVERYTHING.get(name, SpecifierSet()), name


def test_pins_take_the_first_python_that_the_library_takes():
    """A Debian 12 has Python 3.11.2, where what wants 3.11.5 leaves pip without a solution."""
    first = Version(next(s.version for s in SpecifierSet(PROJECT["requires-python"]) if s.operator == ">="))
    pinned = bounds(
        [
            line
            for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
            if line and not line.startswith("#")
        ]
    )
    there = {canonicalize_name(d.metadata["Name"]): d for d in distributions()}
    wanted = {name: there[name].metadata["Requires-Python"] for name in pinned if name in there}
    assert len(wanted) > 100
    assert {name: python for name, python in wanted.items() if python and first not in SpecifierSet(python)} == {}


@pytest.mark.parametrize("path", ["scripts/install.sh", "constraints.txt"])
def test_every_extra_is_installed_and_pinned(path):
    asked = re.findall(r"(?:\.|bluelib)\[([\w,]+)\]", (ROOT / path).read_text(encoding="utf-8"))
    assert asked and {tuple(extras.split(",")) for extras in asked} == {tuple(EXTRAS)}


#: Runs a notebook's code with nothing to be found but the standard library, this package, and what the named
#: distributions bring, and fails where something else is asked for in vain.
_LEAN = """
import importlib.machinery, sys
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

allowed, waiting = set(), [canonicalize_name(name) for name in sys.argv[2:]]
while waiting:
    name = waiting.pop()
    if name in allowed:
        continue
    allowed.add(name)
    try:
        needed = [Requirement(text) for text in requires(name) or ()]
    except PackageNotFoundError:  # needed on another platform
        continue
    waiting += [canonicalize_name(r.name) for r in needed if r.marker is None or r.marker.evaluate({"extra": ""})]
hidden = {
    module for module, names in packages_distributions().items()
    if not {canonicalize_name(name) for name in names} & (allowed | {"bluelib"})
}

class Lean(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in hidden else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(importlib.machinery.PathFinder)] = Lean
import nbformat
from IPython.core.inputtransformer2 import TransformerManager
names = {"__name__": "__main__"}
for cell in nbformat.read(sys.argv[1], as_version=4).cells:
    if cell.cell_type == "code":
        exec(compile(TransformerManager().transform_cell(cell.source), cell.id, "exec"), names)
        if "parameters" in cell.metadata.get("tags", []) and "edits" in names:
            names |= {"edits": 2, "batch_size": 1}
"""


def run_lean(notebook: Path, distributions: set[str], folder: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", _LEAN, str(notebook), *sorted(distributions)],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "MPLBACKEND": "agg"},
    )


@pytest.mark.slow
@pytest.mark.parametrize("notebook", [QUICKSTART, DEMO], ids=lambda path: path.name)
def test_a_notebook_on_binder_finds_all_that_it_imports(notebook, tmp_path):
    done = run_lean(notebook, (BINDER.keys() - TOOLS) | BASE, tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
def test_a_package_that_binder_lacked_would_be_noticed(tmp_path):
    done = run_lean(DEMO, (BINDER.keys() - TOOLS - {"seaborn"}) | BASE, tmp_path)
    assert done.returncode == 1 and "No module named 'seaborn'" in done.stderr


def test_a_push_and_a_pull_request_get_the_whole_check():
    """On the first Python that the library takes, by the script that makes it anywhere, with rights to read alone."""
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "check.yml").read_text(encoding="utf-8"))
    assert workflow[True].keys() == {"push", "pull_request"}, "YAML takes `on` for a truth"
    assert workflow["permissions"] == {"contents": "read"} and "group" in workflow["concurrency"]
    (job,) = workflow["jobs"].values()
    assert job["runs-on"].startswith("ubuntu-") and job["timeout-minutes"] == 90
    assert "permissions" not in job
    (python,) = [step["with"] for step in job["steps"] if step.get("uses", "").startswith("actions/setup-python@")]
    assert f">={python['python-version']}" == PROJECT["requires-python"] and python["cache"] == "pip"
    assert (ROOT / python["cache-dependency-path"]).exists()
    assert [step["run"] for step in job["steps"] if "run" in step] == ["bash .ci/run"]


def test_once_a_week_the_rest_of_the_tests_run():
    """Everything that the whole check leaves out, by the commands that run it anywhere, with rights to read alone."""
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "weekly.yml").read_text(encoding="utf-8"))
    assert workflow[True].keys() == {"schedule", "workflow_dispatch"} and workflow["permissions"] == {
        "contents": "read"
    }
    (job,) = workflow["jobs"].values()
    assert [step["run"] for step in job["steps"] if "run" in step] == ["make ${{ matrix.target }}"]
    for target in job["strategy"]["matrix"]["target"]:
        subprocess.run(["make", "-n", target], cwd=ROOT, check=True, capture_output=True)


def test_a_push_to_main_publishes_what_make_site_builds():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "site.yml").read_text(encoding="utf-8"))
    assert workflow[True]["push"] == {"branches": ["main"]} and workflow["permissions"] == {"contents": "read"}
    (job,) = workflow["jobs"].values()
    assert job["permissions"] == {"contents": "read", "pages": "write", "id-token": "write"}
    assert job["environment"]["name"] == "github-pages"
    used = [step.get("uses", step.get("run", "")).partition("@")[0] for step in job["steps"]]
    assert used.index("make site") < used.index("actions/upload-pages-artifact") < used.index("actions/deploy-pages")
    assert [step["with"]["path"] for step in job["steps"] if "upload" in step.get("uses", "")] == ["build/site"], (
        "where `blue site` builds"
    )


def test_the_whole_check_names_tests_that_are_there():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    subprocess.run(["bash", "-n", str(ROOT / ".ci" / "run")], check=True)
    named = re.findall(r"tests/\S+?\.py", script)
    assert named and all((ROOT / path).exists() for path in named)
    made = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    assert set(re.findall(r"^make ([a-z-]+)", script, re.M)) <= set(made)


@pytest.mark.parametrize("name", ["postBuild", "start"])
def test_binders_scripts_are_executable_bash(name):
    script = ROOT / "binder" / name
    assert script.stat().st_mode & stat.S_IXUSR and script.read_bytes().startswith(b"#!/bin/bash\n")
    subprocess.run(["bash", "-n", str(script)], check=True)


@pytest.mark.parametrize(("given", "expected"), [({}, "1 1"), ({"OMP_NUM_THREADS": "3"}, "3 3")])
def test_binder_starts_its_server_on_one_thread(given, expected):
    """The command is run with its arguments as they are, and its exit status is kept."""
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")} | given
    command = ["sh", "-c", 'echo "$OMP_NUM_THREADS $MKL_NUM_THREADS"; echo "$1"; exit 7', "sh", "two words"]
    done = subprocess.run(
        [ROOT / "binder" / "start", *command], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (7, f"{expected}\ntwo words\n")


@pytest.mark.slow
@pytest.mark.parametrize("cuda", [None, "12.9"])
def test_binders_image_is_checked_and_made_ready(cuda, tmp_path):
    """postBuild with its own check, and pip and blue only written down: CUDA in the image ends the build."""
    shutil.copytree(ROOT / "binder", tmp_path / "binder")
    tools, calls = tmp_path / "bin", tmp_path / "calls"
    tools.mkdir()
    (tools / "blue").write_text(f'#!/bin/sh\necho "$OMP_NUM_THREADS: blue $*" >> {calls}\n')
    (tools / "python").write_text(
        f'#!/bin/sh\n[ "$1" != -m ] || {{ echo "python $*" >> {calls}; exit; }}\n'
        f'[ "$1" = -c ] && exec {sys.executable} -c "import torch; torch.version.cuda = {cuda!r}\n$2"\n'
    )
    for tool in tools.iterdir():
        tool.chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    environment |= {"PATH": f"{tools}:{environment['PATH']}", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["binder/postBuild"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    install, *ready = calls.read_text().splitlines()
    assert install == "python -m pip install --no-cache-dir --no-deps -e ."
    if cuda:
        assert done.returncode == 1 and "AssertionError" in done.stderr and not ready
    else:
        assert done.returncode == 0, done.stderr
        fetched, *measured = ready
        assert fetched.endswith("blue download smollm2-135m")
        assert measured == [
            *(f"1: blue statistics --model {model} --editor memit" for model in pocket_models()),
            "1: blue statistics --model smollm2-135m --editor memit alphaedit",
        ]


def test_badges_open_what_is_there():
    """Binder and Colab get this repository's notebooks, in JupyterLab, as a page, and in Colab."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    badges = re.findall(r"\[!\[[^\]]+\]\([^)]+\)\]\(([^)]+)\)", text)
    binder = [urlsplit(url) for url in badges if "mybinder.org" in url]
    assert [url.path for url in binder] == [f"/v2/gh/{SLUG}/main"] * 2
    assert [parse_qs(url.query)["urlpath"] for url in binder] == [
        [f"lab/tree/{QUICKSTART.relative_to(ROOT)}"],
        [f"voila/render/{DEMO.relative_to(ROOT)}"],
    ]
    assert f"https://colab.research.google.com/github/{SLUG}/blob/main/{QUICKSTART.relative_to(ROOT)}" in badges
    assert QUICKSTART.exists() and DEMO.exists()


def test_the_repository_has_one_address():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["repository-code"] == REPOSITORY
    zenodo = json.loads((ROOT / ".zenodo.json").read_text(encoding="utf-8"))
    assert citation["version"] == zenodo["version"] == bluelib.__version__ == PROJECT["version"]
    released = f"## {PROJECT['version']}, {citation['date-released']}\n"
    assert released in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    for url in re.findall(
        r"https://(?:mybinder\.org|colab\.\S+?)/[^\s)]+", (ROOT / "README.md").read_text(encoding="utf-8")
    ):
        assert f"/{SLUG}/" in url or "badge" in url, url


@pytest.mark.parametrize("installed", [True, False])
@pytest.mark.parametrize("notebook", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.name)
def test_a_notebook_installs_the_library_only_where_it_is_missing(notebook, installed, monkeypatch):
    first = next(cell for cell in nbformat.read(notebook, as_version=4).cells if cell.cell_type == "code")
    if not installed:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    asked: list[str] = []
    shell = InteractiveShell()
    shell.register_magic_function(asked.append, magic_name="pip")
    shell.run_cell(first.source).raise_error()
    if installed:
        assert asked == []
    else:
        (line,) = asked
        assert re.fullmatch(rf"install -q (git\+{REPOSITORY}|\"bluelib\[capability\] @ git\+{REPOSITORY}\")", line)
        needs = "capability(" in notebook.read_text(encoding="utf-8")
        assert ("[capability]" in line) == needs, "lm-eval is asked for where it is used, and only there"
