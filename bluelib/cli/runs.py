"""Commands that run notebooks: one, or a grid of them."""

from __future__ import annotations

import sys
from argparse import Namespace
from contextlib import nullcontext, redirect_stdout
from pathlib import Path

from .common import GRID, Answer, Gather, Option, command, named_values, written


@command(
    Option("name", help="the notebook's name, without .ipynb"),
    Option("executed", type=Path, help="the file for the executed copy"),
    Option(
        "-p",
        "--parameters",
        nargs="+",
        action=Gather,
        default=[],
        metavar="NAME=VALUE",
        help="parameters of the notebook; values in JSON or as plain strings",
    ),
    example="blue notebook 04_residuals out.ipynb -p model=pocket-gpt2 edits=20",
)
def notebook(arguments: Namespace) -> Answer:
    """Run a notebook through papermill."""
    from ..runs.execute import run_notebook

    run_notebook(arguments.name, named_values("parameter", arguments.parameters), arguments.executed)
    return written([arguments.executed])


@command(
    GRID,
    Option("--profile", default="local", help="where jobs run: local, slurm or kubernetes"),
    Option("snakemake", nargs="*", help="after --, further arguments for Snakemake"),
    example="blue reproduce --grid workflow/grid-pocket.yaml -- --dry-run",
)
def reproduce(arguments: Namespace) -> Answer:
    """Make a grid's cells, tables, pictures and report. Only what is missing is made."""
    from ..runs.grid import Grid
    from ..runs.workflow import run_grid

    grid = Grid.load(arguments.grid)
    with redirect_stdout(sys.stderr) if arguments.json else nullcontext():  # for Snakemake's own output
        status = run_grid(arguments.grid, profile=arguments.profile, arguments=arguments.snakemake)
    return Answer({"grid": grid.name, "figures": str(grid.figures)}, "", status)
