"""The grid as a workflow: what it would run on each profile, and what it makes again after it was interrupted."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from bluelib.cli import main
from bluelib.editing import catalogue
from bluelib.editing.settings import USER_CONFIGS, model_configs, settings_file
from bluelib.io.assets import ASSETS
from bluelib.io.formats import write_json
from bluelib.io.locks import locked
from bluelib.models import load
from bluelib.models.known import PAPER_MODELS, pocket_models
from bluelib.reports.report import _borrowed
from bluelib.runs.grid import DTYPES, Grid, Place
from bluelib.runs.workflow import run_grid
from bluelib.studies import STUDIES

ROOT = Path(__file__).parents[2]
GRIDS = {path.stem: path for path in (ROOT / "workflow").glob("grid*.yaml")}
TINY = {
    "name": "tiny",
    "models": ["pocket-llama"],
    "datasets": ["pocket-zsre"],
    "editors": ["memit", "memit_blue"],
    "seeds": [0],
    "edits": 6,
    "batch_size": 2,
}


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A checkout of the notebooks and the workflow, with the committed numbers of the analyses."""
    for part in ("notebooks", "workflow"):
        shutil.copytree(ROOT / part, tmp_path / part)
    shutil.copytree(ROOT / "results" / "pocket" / "analysis", tmp_path / "results" / "pocket" / "analysis")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def blue(project, grid, *arguments, **options):
    """``blue reproduce`` in a process of its own."""
    path = project / "tiny.yaml"
    path.write_text(yaml.safe_dump(grid))
    command = [sys.executable, "-m", "bluelib.cli", "reproduce", "--grid", str(path), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command, cwd=project, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options
    )


def finished(process):
    output = process.communicate()[0]
    assert process.returncode == 0, output[-4000:]
    return output


def jobs(output):
    """Job counts by rule, as Snakemake lists them."""
    table = re.search(r"^job\s+count\n[-\s]+\n(.*?)^total", output, re.M | re.S)
    return {name: int(count) for name, count in re.findall(r"^(\S+)\s+(\d+)$", table[1], re.M)} if table else {}


@pytest.mark.slow  # ten seconds each
@pytest.mark.parametrize(
    ("profile", "grid"),
    [
        ("local", "grid"),
        ("local", "grid-real"),
        ("local", "grid-pocket"),
        ("local", "grid-small"),
        ("slurm", "grid-paper"),
        ("kubernetes", "grid-paper"),
    ],
)
def test_a_dry_run_plans_the_whole_grid(project, profile, grid):
    output = finished(blue(project, yaml.safe_load(GRIDS[grid].read_text()), "--profile", profile, "--", "-n"))
    planned, found = jobs(output), Grid.load(GRIDS[grid])
    places = len(found.models) * len(found.datasets) * len(found.seeds)
    assert planned.pop("cell") == places * len(found.editors)
    assert planned.pop("before") == places
    assert planned.pop("statistics") == len(found.models)
    needs = [need for name in found.editors for need in catalogue.entry(name).needs]
    assert planned.pop("null_spaces", 0) == len(found.models) * (catalogue.NULL_SPACE in needs)
    assert planned.pop("follow", 0) == len(found.followed())
    assert planned.pop("figures_followed", 0) == bool(found.followed())
    for notebook in found.notebooks:
        assert planned.pop(f"analysis_{notebook}", 0) <= len(found.models)
        assert planned.pop(f"figures_{notebook}") == 1
    assert planned == {"grid": 1, "tables": 1, "report": 1, "all": 1}


@pytest.mark.slow
def test_what_the_file_names_first_runs_first(project):
    """Each editor on all datasets before the next one; then the sequences; then the analyses. What they share, before."""
    grid = yaml.safe_load(GRIDS["grid-small"].read_text())
    output = finished(blue(project, grid, "--", "-n", "--quiet", "host"))
    blocks = [block for block in re.split(r"^(?:local)?rule ", output, flags=re.M)[1:] if "jobid:" in block]
    priority: dict[str, dict[str, int]] = {}
    for block in blocks:
        rule, given = block.partition(":")[0], re.search(r"priority: (\d+)", block)
        name = re.search(r"output: ([^\s,]+)", block)
        if not name:  # the whole grid
            continue
        priority.setdefault(rule, {})[Path(name[1]).stem] = int(given[1]) if given else 0
    found = Grid.load(project / "tiny.yaml")  # as it was written, keys in another order
    by_editor = [
        found.cell_name(Place(found.models[0], dataset, editor, 0))
        for editor in found.editors
        for dataset in found.datasets
    ]
    assert sorted(priority["cell"], key=priority["cell"].get, reverse=True) == by_editor
    followed = [run.path.stem for run in found.followed()]
    assert sorted(priority["follow"], key=priority["follow"].get, reverse=True) == followed
    shared = [*priority["statistics"].values(), *priority["null_spaces"].values(), *priority["before"].values()]
    assert min(shared) > max(priority["cell"].values())
    assert min(priority["cell"].values()) > max(priority["follow"].values())
    assert {of for rule, given in priority.items() if rule.startswith("analysis") for of in given.values()} == {0}


@pytest.mark.slow
def test_a_grid_on_slurm_asks_for_what_its_file_says(project):
    output = finished(
        blue(
            project,
            yaml.safe_load(GRIDS["grid-paper"].read_text()),
            "--profile",
            "slurm",
            "--",
            "-n",
            "--quiet",
            "host",
        )
    )
    jobs = [block for block in re.split(r"^(?:local)?rule ", output, flags=re.M) if block.startswith("cell:")]
    cells = dict(re.search(r"wildcards: (.*?)\n.*?resources: (.*?)$", job, re.M | re.S).groups() for job in jobs)
    assert len(cells) == 60
    for cell, resources in cells.items():
        assert "slurm_partition=" in resources and "gpu=1" in resources
        memory, minutes = (32000, 720) if "gpt2-xl" in cell else (64000, 1440)
        assert f"mem_mb={memory}" in resources and f"runtime={minutes}" in resources


@pytest.mark.slow
def test_a_grid_is_made_from_nothing_to_its_report(project):
    output = finished(blue(project, TINY))
    assert jobs(output) == {"all": 1, "before": 1, "cell": 2, "grid": 1, "report": 1, "statistics": 1, "tables": 1}
    found = Grid.of(TINY)
    for path in (*found.tables(), found.figures / "report.md", found.figures / "verdicts.json"):
        assert path.stat().st_size > 0, path
    report = (found.figures / "report.md").read_text()
    assert "every BLUE variant edits better" in report and "pocket scale" in report
    cell = json.loads(found.result(Place("pocket-llama", "pocket-zsre", "memit", 0)).read_text())
    assert len(cell["scores"]["efficacy"]) == len(cell["provenance"]["case_ids"]) == 6
    assert cell["peak_memory"]["host_gb"] > 0.1 and cell["provenance"]["threads"] == 1
    assert cell["seconds"]["evaluate_before"] < cell["seconds"]["evaluate_after"]  # it was shared, not measured


@pytest.mark.slow
def test_the_grid_makes_only_what_is_missing(project):
    """Nothing, if nothing but a date has changed; after a deletion, only what hangs on what was deleted."""
    finished(blue(project, TINY))
    found = Grid.of(TINY)
    assert "Nothing to be done" in finished(blue(project, TINY))
    (project / "notebooks" / "06_main_table.ipynb").touch()
    assert "Nothing to be done" in finished(blue(project, TINY))

    deleted = found.result(Place("pocket-llama", "pocket-zsre", "memit_blue", 0))
    content = json.loads(deleted.read_text())
    deleted.unlink()
    assert jobs(finished(blue(project, TINY))) == {"cell": 1, "tables": 1, "report": 1, "all": 1}
    again = json.loads(deleted.read_text())
    for key in ("after", "scores", "batches", "weight_change"):
        assert again[key] == content[key]


@pytest.mark.slow
def test_a_killed_grid_continues(project):
    """SIGKILL of the workflow alone: its jobs end with it, and the cell at work goes on from its own checkpoint."""
    grid = {**TINY, "edits": 40}
    checkpoint = project / "results" / "raw" / "tiny" / "checkpoints"
    process = blue(project, grid, "--", "--until", "cell")
    manifest, batches = None, []
    deadline = time.monotonic() + 300
    while len(batches) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
        for manifest in checkpoint.glob("*/manifest.json"):
            batches = json.loads(manifest.read_text())["batches"]
    assert 2 <= len(batches) < 20, "too late to interrupt"
    started = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    _, alive = psutil.wait_procs(started, timeout=30)
    assert not alive

    cell, content = manifest.parent.name, json.loads(manifest.read_text())
    reached = content["batches"]
    content["seconds"]["targets"] = 1e6  # who continues from here will say so
    write_json(manifest, {key: value for key, value in content.items() if key != "sha256"}, sealed=True)
    content_of = Grid.of(grid).result(next(c for c in Grid.of(grid).cells() if Grid.of(grid).cell_name(c) == cell))
    output = finished(blue(project, grid, "--", "--until", "cell"))
    assert jobs(output)["cell"] <= 2 and "before" not in jobs(output)
    result = json.loads(content_of.read_text())
    assert result["seconds"]["targets"] >= 1e6
    assert result["batches"][: len(reached)] == reached and len(result["batches"]) == 20
    assert not list(checkpoint.iterdir()), "a finished cell needs no checkpoint"


@pytest.mark.slow
def test_a_grid_s_cells_measure_what_it_asks_for(project):
    """What is compared with is taken once, before editing; and a table has what is not the paper's."""
    groups = ["editing", "generated", "locality", "portability"]
    grid = {**TINY, "datasets": ["pocket-ripple"], "edits": 4, "metrics": groups, "contexts": ["bare", "instruction"]}
    finished(blue(project, grid, "--", "--until", "tables"))
    for cell in Grid.of(grid).cells():
        content = json.loads(Grid.of(grid).result(cell).read_text())
        assert content["metrics"] == groups and content["contexts"] == ["bare", "instruction"]
        assert {"exact_efficacy", "instruction_executed", "kl"} <= content["after"].keys()
        assert content["before"]["kl"]["mean"] == 0 < content["after"]["kl"]["mean"]
    table = (Grid.of(grid).figures / "further_pocket-ripple.md").read_text()
    assert "| metric | pre-edited | MEMIT | MEMIT_BLUE |" in table and "| instruction_executed |" in table


def seem_made(project, grid):
    """Have Snakemake believe that the cells of a grid were made."""
    found, (dataset,) = Grid.of(grid), grid["datasets"]
    made = [
        *map(found.result, found.cells()),
        found.work / "statistics" / "pocket-llama.json",
        found.work / "before" / f"pocket-llama_{Path(dataset).stem}_6_seed0.json",
    ]
    for path in made:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    finished(blue(project, grid, "--", "--touch", "--forceall", "--until", "cell"))
    assert jobs(finished(blue(project, grid, "--", "-n", "--until", "cell"))) == {}


@pytest.mark.slow
def test_other_records_make_their_cells_again(project):
    """A dataset that is named by its path: what was made of its old content is out of date."""
    data = project / "mine.json"
    data.write_text("[]")
    grid = {**TINY, "datasets": [str(data)]}
    seem_made(project, grid)
    data.write_text("[{}]")
    assert jobs(finished(blue(project, grid, "--", "-n", "--until", "cell"))) == {"cell": 2}


@pytest.mark.slow
def test_an_analysis_is_made_again_when_what_it_reads_has_changed(project):
    """By content: in a fresh clone the data are newer than the results that came with it."""
    data, runs = project / "mine.json", project / "results" / "ablation" / "pocket-llama.json"
    data.write_text("[]")
    write_json(runs, {})
    grid = {**TINY, "notebooks": {"04_residuals": {"dataset": str(data)}, "05_error_growth": {}}}
    both = {"analysis_04_residuals": 1, "analysis_05_error_growth": 1}

    def planned(**how):
        output = finished(blue(project, grid, "--", *how.get("options", ["-n"]), "--until", *both))
        return {name: count for name, count in jobs(output).items() if name.startswith("analysis")}

    assert planned() == both
    for notebook in grid["notebooks"]:
        write_json(Grid.of(grid).numbers(notebook, "pocket-llama"), {})
    assert planned() == {}, "they came with the checkout, and the data after them"
    planned(options=["--touch", "--forceall"])
    later = time.time() + 10
    for path in (data, runs):
        os.utime(path, (later, later))
    assert planned() == {}
    data.write_text("[{}]")
    assert planned() == {"analysis_04_residuals": 1}
    write_json(runs, {"more": 1})
    assert planned() == both


def test_the_files_that_an_analysis_reads(project):
    """Datasets, the data that task files name, and results of other commands; what is no file is not among them."""
    names = ("mine.json", "long.json", "items.tsv", "more.jsonl")
    for name in names:
        (project / name).write_text("")
    (project / "one.yaml").write_text(
        "dataset_kwargs: {data_files: items.tsv, delimiter: ' '}\nprocess_docs: !function a.b"
    )
    (project / "two.yaml").write_text('dataset_kwargs:\n  data_files: "more.jsonl"\n')
    write_json(project / "results" / "ablation" / "pocket-llama.json", {})
    grid = Grid.of(
        {
            **TINY,
            "notebooks": {
                "05_error_growth": {"dataset": "mine.json"},
                "07_general_capability": {
                    "dataset": "pocket-zsre",
                    "tasks": ["one.yaml", "two.yaml", "lost.yaml", "rte"],
                },
                "09_long_texts_and_batches": {"dataset": "mine.json", "long_dataset": "long.json", "sizes": [2, 3]},
            },
        }
    )

    def read(notebook, model="pocket-llama"):
        return {path.relative_to(project).as_posix() for path in grid.read_by(notebook, model)}

    assert read("05_error_growth") == {"mine.json", "results/ablation/pocket-llama.json"}
    assert read("05_error_growth", "pocket-gpt2") == {"mine.json"}
    assert read("07_general_capability") == {"one.yaml", "two.yaml", "items.tsv", "more.jsonl"}
    assert read("09_long_texts_and_batches") == {"mine.json", "long.json"}


def test_a_notebook_s_dataset_that_is_nowhere_is_refused_before_anything_runs(project):
    grid = Grid.of({**TINY, "notebooks": {"09_long_texts_and_batches": {"long_dataset": "lost.json"}}})
    with pytest.raises(ValueError, match=r"the grid's dataset 'lost\.json' is neither a name that"):
        grid.check_files()
    (project / "lost.json").write_text("[]")
    grid.check_files()


@pytest.mark.slow
def test_a_grid_that_has_changed_is_told_to_its_tables(project):
    """Results that came with a checkout have no history: whether the grid beside them is this one is looked up."""
    grid = Grid.of(TINY)
    write_json(grid.results / "grid.json", grid.as_dict())
    assert "grid" not in jobs(finished(blue(project, TINY, "--", "-n")))
    for place in grid.cells():
        write_json(grid.result(place), {})
    assert "cell" not in jobs(finished(blue(project, TINY, "--", "-n", "--until", "cell")))
    one = grid.result(grid.cells()[0])
    one.unlink()
    planned = jobs(finished(blue(project, TINY, "--", "-n", "--until", "cell")))
    assert planned == {"statistics": 1, "before": 1, "cell": 1}, "the other stays, though what they share is made"
    write_json(one, {})
    stronger = {**TINY, "settings": [{"editors": ["memit"], "values": {"mom2_update_weight": 1}}]}
    planned = jobs(finished(blue(project, stronger, "--", "-n")))
    assert planned["cell"] == planned["grid"] == 1, "its own, and not what shares the scores before editing"
    planned = jobs(finished(blue(project, stronger, "--", "-n", "--until", "grid")))
    assert planned["cell"] == 1, "before the change is written down: an interrupted run has it still to make"
    other = {**TINY, "edits": 4}
    assert jobs(finished(blue(project, other, "--", "-n")))["grid"] == 1
    one = Grid.of(other).result(Place("pocket-llama", "pocket-zsre", "memit", 0)).relative_to(project)
    planned = jobs(finished(blue(project, other, "--", "-n", str(one))))
    assert planned["cell"] == 1 and "tables" not in planned, "one result is asked for"
    assert jobs(finished(blue(project, other, "--", str(one), "-n")))["cell"] == 1


@pytest.mark.slow
def test_another_editor_is_one_more_cell(project):
    """What a grid has already is not made again when an editor is added to it."""
    seem_made(project, TINY)
    more = {**TINY, "editors": [*TINY["editors"], "alphaedit"]}
    planned = jobs(finished(blue(project, more, "--", "-n", "--until", "cell")))
    assert planned == {"cell": 1, "null_spaces": 1, "statistics": 1}


def test_one_run_at_a_time(project):
    (project / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    with locked(project / "snakemake"), pytest.raises(RuntimeError, match="another run is under way in"):
        run_grid(project / "tiny.yaml")


def test_an_unknown_profile_is_refused(project):
    (project / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    with pytest.raises(ValueError, match="no profile is called 'lsf'; known: kubernetes, local, slurm"):
        run_grid(project / "tiny.yaml", profile="lsf")


def test_grid_files():
    assert set(GRIDS) == {"grid", "grid-pocket", "grid-paper", "grid-small", "grid-real"}
    grids = {name: Grid.load(path) for name, path in GRIDS.items()}
    for name in ("grid", "grid-pocket"):
        assert set(grids[name].models) == set(pocket_models())
        assert set(grids[name].editors) == {
            row.name
            for row in map(catalogue.known, catalogue.names())
            if row.variant in ("", "blue") and (row.reported or row.family == "MEMIT (history)")
        }
    assert grids["grid-paper"].models == PAPER_MODELS
    assert set(grids["grid-paper"].editors) <= set(catalogue.names())
    small = grids["grid-small"]
    assert small.models == ("smollm2-135m",) and set(small.editors) == set(catalogue.names()) - {
        "mend",  # has no network for this model
        "alphaedit_nas",  # nor an anchor
    }
    assert grids["grid-real"].models == small.models and grids["grid-real"].datasets == ("facts",), (
        "nothing to fetch by hand"
    )
    assert len({grid.name for grid in grids.values()}) == 5
    assert all(Grid.of(grid.as_dict()) == grid for grid in grids.values())
    for grid in grids.values():  # `blue reproduce` compares what is kept with it
        assert json.loads(json.dumps(grid.as_dict())) == grid.as_dict()


def test_what_a_grid_names_beside_it_is_found_and_what_is_nowhere_is_refused(project, monkeypatch):
    """Relative to the grid's own folder, from wherever it is run; a name of the project's own stays a name."""
    folder = project / "elsewhere"
    (folder / "mymodel").mkdir(parents=True)
    (folder / "three.json").write_text("[]")
    values = {**TINY, "models": ["pocket-llama", "mymodel"], "datasets": ["pocket-zsre", "three.json"]}
    path = folder / "own.yaml"
    path.write_text(yaml.safe_dump({**values, "resources": {"mymodel": {"mem_mb": 100}}}))
    grid = Grid.load(path)
    assert grid.models == ("pocket-llama", str(folder / "mymodel"))
    assert grid.datasets == ("pocket-zsre", str(folder / "three.json"))
    assert grid.resources == {str(folder / "mymodel"): {"mem_mb": 100}}
    grid.check_files()
    path.write_text(yaml.safe_dump({**TINY, "datasets": ["four.json"]}))
    with pytest.raises(ValueError, match=r"dataset 'four.json' is neither a name .* nor a file beside the grid"):
        run_grid(path)
    assert not (project / "results" / "tiny").exists()


@pytest.mark.slow
def test_a_grid_outside_the_checkout_runs_with_what_is_beside_it(project, tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("elsewhere")
    model = shutil.copytree(pocket_models()["pocket-llama"], folder / "mymodel")
    settings = yaml.safe_load(settings_file("pocket-llama").read_text(encoding="utf-8"))
    (folder / "configs").mkdir()
    (folder / "configs" / "mine.yaml").write_text(yaml.safe_dump({**settings, "models": [str(model)]}))
    monkeypatch.setenv(USER_CONFIGS, str(folder / "configs"))
    entries = json.loads((ASSETS / "datasets" / "pocket-zsre.json").read_text())
    (folder / "mine.json").write_text(json.dumps([e for e in entries if e.get("split") != "tune"][:6]))
    (folder / "own.yaml").write_text(yaml.safe_dump({**TINY, "models": ["mymodel"], "datasets": ["mine.json"]}))
    grid = Grid.load(folder / "own.yaml")
    result = grid.result(Place(str(model), str(folder / "mine.json"), "memit", 0))
    command = [sys.executable, "-m", "bluelib.cli", "reproduce", "--grid", str(folder / "own.yaml"), "--"]
    process = subprocess.run(
        [*command, str(result.relative_to(project))],
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        text=True,
        capture_output=True,
    )
    assert process.returncode == 0, process.stdout + process.stderr
    assert len(json.loads(result.read_text())["scores"]["efficacy"]) == 6
    assert json.loads((project / "results" / "raw" / "tiny" / "grid.json").read_text()) == grid.as_dict()


def test_a_grid_knows_all_editors():
    """The names that a grid may have are those of the configurations: they are there without loading torch."""
    assert {name for config in model_configs().values() for name in config["editors"]} == set(catalogue.names())
    assert set(DTYPES) == set(load.DTYPES)


def test_the_committed_grid_runs_every_study():
    assert list(Grid.load(GRIDS["grid-pocket"]).notebooks) == [study.notebook for study in STUDIES.values()]
    for study in STUDIES.values():
        assert (ROOT / "notebooks" / f"{study.notebook}.ipynb").exists()


def test_a_report_takes_from_the_committed_grid_what_its_own_does_not_run(project):
    grid = Grid.of({**TINY, "notebooks": {"04_residuals": {"edits": 4}}})
    assert grid.source_of(STUDIES["residuals"]) is grid
    assert grid.numbers("04_residuals", "pocket-llama").parent == project / "results" / "tiny" / "analysis"
    other = grid.source_of(STUDIES["locate"])
    assert (other.models, other.notebooks) == (grid.models, {"02_locate": STUDIES["locate"].parameters})
    assert other.numbers("02_locate", "pocket-llama").exists()
    assert other.drawn("02_locate")[0] == project / "figures" / "pocket" / "02_causal_traces.png"
    told = _borrowed(grid)
    assert "did not run 02_locate, " in told and "04_residuals" not in told and "the grid `pocket`" in told
    assert _borrowed(Grid.load(GRIDS["grid-pocket"])) == ""


def test_what_has_not_run_yet_is_not_drawn(project, capsys, caplog):
    (project / "own.yaml").write_text(yaml.safe_dump({**TINY, "notebooks": {"04_residuals": {}}}))
    assert main(["draw", "--grid", "own.yaml"]) == 0
    assert "04_residuals is not drawn: " in caplog.text and "04_residuals_pocket-llama.json is missing" in caplog.text
    assert main(["draw", "--grid", "own.yaml", "04_residuals"]) == 2, "it was asked for by name"
    assert main(["draw", "--grid", "own.yaml", "04_residuals", "--followed"]) == 2, "there is no such figure"
    caplog.clear()
    assert main(["draw", "--grid", "own.yaml", "--followed"]) == 0 and not caplog.text


FOLLOW = {"editors": ["memit", "memit_blue"], "edits": 4, "batch_size": 2}


def test_every_value_of_an_option_is_followed_by_itself():
    grid = Grid.of({**TINY, "follow": [FOLLOW | {"at": [2]}, FOLLOW | {"options": {"l2": [1, 2], "p": ["x"]}}]})
    runs = grid.followed()
    places = len(grid.models) * len(grid.datasets) * 2
    assert len(runs) == places * (1 + 3) == len({run.path for run in runs})
    assert runs[0].at == (2,) and [run.options for run in runs[places::places]] == [{"l2": 1}, {"l2": 2}, {"p": "x"}]
    assert Grid.of(grid.as_dict()) == grid and "follow" not in Grid.of(TINY).as_dict()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"modles": []}, "a grid has no key 'modles'; known: name, models"),
        ({"follow": {}}, "follow of the grid must be a list, not {}"),
        (
            {"follow": [FOLLOW, FOLLOW | {"scored": 3}]},
            "two runs of follow of the grid would be written to pocket-llama_pocket-zsre_memit_.*drop one, or merge",
        ),
        ({"settings": {"memit": {}}}, "settings of the grid must be a list, not {'memit'"),
        (
            {"settings": [{"editor": "memit"}]},
            r"settings\[0\] of the grid must map models, datasets, editors and values",
        ),
        ({"settings": [{"editors": ["memit"]}]}, r"values of settings\[0\] of the grid must map hyper-parameters"),
        (
            {"settings": [{"datasets": ["zsre"], "values": {"l2": 1}}]},
            r"datasets of settings\[0\] of the grid has zsre, which the grid does not have",
        ),
        ({"follow": [{"editors": ["memit"], "edits": 4}]}, r"follow\[0\] of the grid lacks batch_size"),
        ({"follow": [FOLLOW | {"length": 4}]}, r"follow\[0\] of the grid has no key 'length'; known: editors, edits"),
        ({"follow": [FOLLOW | {"edits": -5}]}, r"edits of follow\[0\] of the grid must be at least 1, not -5"),
        ({"follow": [FOLLOW | {"batch_size": 0}]}, r"batch_size of follow\[0\] of the grid must be at least 1, not 0"),
        ({"follow": [FOLLOW | {"others": -1}]}, r"others of follow\[0\] of the grid must be at least 0, not -1"),
        ({"follow": [FOLLOW | {"at": ["a"]}]}, r"a number of at of follow\[0\] of the grid must be a whole number"),
        ({"follow": [FOLLOW | {"at": [10**6]}]}, r"at of follow\[0\] of the grid must be between 1 and its edits"),
        ({"seeds": [2**40]}, "a seed of the grid must be between 0 and 4294967295; it is 1099511627776"),
        ({"follow": [FOLLOW | {"at": 4}]}, r"at of follow\[0\] of the grid must be of type list, not 4"),
        (
            {"follow": [FOLLOW | {"options": {"l2": 1}}]},
            r"options of follow\[0\] of the grid must list the values of l2",
        ),
        ({"models": []}, "models of the grid must name at least one, not an empty list"),
        ({"models": "pocket-llama"}, "models of the grid must be a list of distinct str, not 'pocket-llama'"),
        ({"seeds": [0, 0]}, "seeds of the grid must be a list of distinct int"),
        ({"seeds": [True]}, "seeds of the grid must be a list of distinct int"),
        ({"edits": 0}, "edits of the grid must be at least 1, not 0"),
        ({"edits": "40"}, "edits of the grid must be a whole number, not '40'"),
        ({"batch_size": 50}, "batch_size of the grid, 50, exceeds its edits, 6"),
        ({"name": "../outside"}, "name of the grid becomes a folder"),
        ({"name": "raw"}, "name of the grid becomes a folder"),
        ({"device": 0}, "device of the grid must be a string, not 0"),
        ({"notebooks": {"10_none": {}}}, "no analysis notebook is called '10_none'; known: 02_locate"),
        ({"notebooks": {"02_locate": 3}}, "notebooks.02_locate of the grid must be a mapping, not 3"),
        (
            {"resources": {"gpt-5": {"gpu": 8}}},
            "resources of the grid name gpt-5, which are neither models nor default",
        ),
        (
            {"resources": {"default": {"mem": 1}}},
            "resources.default of the grid must map mem_mb, runtime, gpu to whole",
        ),
        ({"resources": {"default": 3}}, "resources.default of the grid must map mem_mb, runtime, gpu to whole numbers"),
        (
            {"editors": ["memit", "rome"]},
            r"no editor is given both with and without BLUE \(memit, rome\); give both, e.g. memit and",
        ),
        ({"seeds": [-1]}, "a seed of the grid must be between 0 and 4294967295; it is -1"),
        ({"dtype": "float99"}, "dtype of the grid must be one of float32, bfloat16, float16, not 'float99'"),
        ({"models": ["a/b", "a-b"]}, "models of the grid must differ in their file names"),
        ({"datasets": ["a/zsre.json", "b/zsre.json"]}, "datasets of the grid must differ in their file names"),
    ],
)
def test_a_wrong_grid_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Grid.of({**TINY, **change})


def test_a_grid_of_unknown_editors_makes_tables_and_does_not_run(tmp_path):
    values = {**TINY, "editors": ["memit", "memit_blue", "memmit"]}
    assert Grid.of(values).editors[-1] == "memmit"
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(ValueError, match="no editor is called 'memmit'; did you mean 'memit'"):
        run_grid(tmp_path / "grid.yaml")


def test_a_grid_s_settings_are_those_of_the_cells_that_they_name(tmp_path):
    models = ["pocket-llama", "pocket-gpt2"]
    entries = [
        {"editors": ["memit"], "values": {"mom2_update_weight": 7, "clamp": 1}},
        {"editors": ["memit"], "models": ["pocket-gpt2"], "values": {"mom2_update_weight": 8}},
    ]
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump({**TINY, "models": models, "settings": entries}))
    grid = Grid.load(tmp_path / "grid.yaml")
    assert Grid.of(grid.as_dict()) == grid
    given = {(c.model, c.editor): grid.parameters(c).get("settings") for c in grid.cells()}
    assert given["pocket-llama", "memit"] == {"mom2_update_weight": 7, "clamp": 1}
    assert given["pocket-gpt2", "memit"] == {"mom2_update_weight": 8, "clamp": 1}
    assert given["pocket-gpt2", "memit_blue"] is None
    assert Grid.of(grid.only(["pocket-llama"]).as_dict()).settings == grid.settings[:1]
    grid.check_editors()
    with pytest.raises(ValueError, match="editor 'memit' has no hyper-parameter l2; it has"):
        Grid.of({**TINY, "settings": [{"editors": ["memit"], "values": {"l2": 1}}]}).check_editors()


def test_a_grid_whose_editor_misses_a_measured_setting_does_not_run():
    """All statistics are one job: it would fail, and with it every cell."""
    editors = ["memit", "memit_blue", "alphaedit_nas"]
    grid = Grid.of({**TINY, "models": ["pocket-gpt2", "smollm2-135m"], "editors": editors})
    with pytest.raises(
        ValueError, match=r"'alphaedit_nas' needs anchor.*: `blue tune smollm2-135m --editor alphaedit_nas`"
    ):
        grid.check_editors()
    grid.only(["pocket-gpt2"]).check_editors()


def test_outside_a_checkout_a_grid_must_be_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["reproduce"]) == 2
    assert "there is no grid file workflow/grid.yaml: run this in a checkout of the project" in capsys.readouterr().err


def test_a_grid_that_lacks_something_is_refused(tmp_path):
    with pytest.raises(ValueError, match="the grid lacks seeds, batch_size"):
        Grid.of({key: value for key, value in TINY.items() if key not in ("seeds", "batch_size")})
    (tmp_path / "list.yaml").write_text("- a\n- b\n")
    with pytest.raises(ValueError, match="must hold the keys of a grid"):
        Grid.load(tmp_path / "list.yaml")
    (tmp_path / "broken.yaml").write_text("a: [")
    with pytest.raises(ValueError, match=r"broken\.yaml is not valid YAML"):
        Grid.load(tmp_path / "broken.yaml")


def test_parts_of_a_grid():
    found = Grid.of({**TINY, "corpus": "text.txt", "resources": {"default": {"gpu": 1}, "pocket-llama": {"mem_mb": 9}}})
    assert [cell.editor for cell in found.cells()] == ["memit", "memit_blue"]
    assert found.parameters(found.cells()[0]) == {
        "model": "pocket-llama",
        "dataset": "pocket-zsre",
        "editor": "memit",
        "seed": 0,
        "edits": 6,
        "batch_size": 2,
        "device": "cpu",
        "dtype": "float32",
        "corpus": "text.txt",
    }
    assert found.resources_of("pocket-llama") == {"gpu": 1, "mem_mb": 9}
    with pytest.raises(ValueError, match="the grid has no model gpt2-xl; it has pocket-llama"):
        found.only(["gpt2-xl"])
