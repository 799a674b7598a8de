"""The workflow that runs a grid: Snakemake, started on its file."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from ..io.formats import read_json, write_json
from ..io.locks import locked
from ..io.paths import project_path
from .grid import Grid


def run_grid(path: Path, *, profile: str = "local", arguments: Sequence[str] = ()) -> int:
    """Run the workflow for a grid file with Snakemake; only what is missing is made.

    Args:
        path: the grid file.
        profile: a folder of ``workflow/profiles``: ``local``, ``slurm`` or ``kubernetes``.
        arguments: further arguments for Snakemake, such as ``-n``.

    Returns:
        Snakemake's exit status.

    Raises:
        ValueError: if the grid file cannot be used, or the profile is unknown.
        FileNotFoundError: outside a checkout of the project.
        RuntimeError: if Snakemake is not installed, or another run is under way in this checkout.
    """
    snakefile, profiles = project_path("workflow", "Snakefile"), project_path("workflow", "profiles")
    if not snakefile.exists():
        raise FileNotFoundError(f"{snakefile} does not exist: run this in a checkout of the project")
    known = sorted(folder.name for folder in profiles.iterdir())
    if profile not in known:
        raise ValueError(f"no profile is called {profile!r}; known: {', '.join(known)}")
    grid = Grid.load(path)
    if not {"-n", "--dry-run"} & {*arguments}:  # a plan needs no data
        grid.check_files()
    grid.check_editors()
    told = grid.results / "grid.json"
    # A result that came with the checkout has no history from which Snakemake could tell that the grid has changed.
    same = not told.exists() or read_json(told) == grid.as_dict()
    changed = [] if same else ["--forcerun", "grid", *_outdated(grid, told)]
    try:
        from snakemake.cli import main
    except ImportError as error:
        raise RuntimeError("Snakemake is not installed: pip install -e '.[workflow]' in the clone") from error
    os.chdir(project_path())
    # Jobs call plain `python`: that of this environment.
    os.environ["PATH"] = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    logging.getLogger().handlers.clear()  # Snakemake has its own handler
    # The system releases this lock when the process dies; Snakemake's own would have to be removed by hand.
    try:
        with locked(project_path("snakemake"), wait=False):
            # With models and datasets named by their paths, where they are beside the grid file.
            values = write_json(grid.work / "grid.json", grid.as_dict())
            # `changed` comes first: an option must follow it, as anything else would be taken for a rule to force.
            main(
                [
                    *changed,
                    "--snakefile",
                    str(snakefile),
                    "--configfile",
                    str(values),
                    "--nolock",
                    # Not "input": a result that is there has fewer.
                    "--rerun-triggers",
                    "mtime",
                    "params",
                    "code",
                    "--workflow-profile",
                    str(profiles / profile),
                    *arguments,
                ]
            )
    except BlockingIOError as error:
        raise RuntimeError(f"another run is under way in {project_path()}; wait until it ends") from error
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def _outdated(grid: Grid, told: Path) -> list[str]:
    """The results that were made with other parameters than the grid has now, as Snakemake names them.

    Args:
        grid: as it is now.
        told: where it is written as it was run.
    """
    old = Grid.load(told)
    then = {old.result(cell): old.parameters(cell) for cell in old.cells()}
    found = [path for cell in grid.cells() if then.get(path := grid.result(cell)) not in (None, grid.parameters(cell))]
    for notebook in grid.notebooks.keys() & old.notebooks.keys():
        if old.of_notebook(notebook) != grid.of_notebook(notebook):
            found += [grid.numbers(notebook, model) for model in grid.models]
    return [os.path.relpath(path, project_path()) for path in sorted(found) if path.exists()]
