"""Commands that run notebooks: one, or a grid of them."""

from __future__ import annotations

import sys
from argparse import Namespace
from contextlib import nullcontext, redirect_stdout
from pathlib import Path

from .common import GRID, Answer, Gather, Option, command, named_values, written


@command(
    Option("name", help="the notebook's name, without .ipynb"),
    Option("executed", type=Path, help="where the executed copy goes"),
    Option(
        "-p",
        "--parameters",
        nargs="+",
        action=Gather,
        default=[],
        metavar="NAME=VALUE",
        help="values in JSON, or plain strings",
    ),
    example="blue notebook 04_residuals out.ipynb -p model=pocket-gpt2 edits=20",
)
def notebook(arguments: Namespace) -> Answer:
    """Run a notebook through papermill."""
    from ..runs.notebooks import run_notebook

    run_notebook(arguments.name, named_values("parameter", arguments.parameters), arguments.executed)
    return written([arguments.executed])


@command(
    GRID,
    Option("--profile", default="local", help="where jobs run: local, slurm or kubernetes"),
    Option("snakemake", nargs="*", help="after --, more arguments for Snakemake"),
    example="blue reproduce --grid workflow/grid-pocket.yaml -- --dry-run",
)
def reproduce(arguments: Namespace) -> Answer:
    """Run a grid: cells, tables, pictures, report. Makes only what is missing."""
    from ..runs.grid import Grid
    from ..runs.workflow import run_grid

    grid = Grid.load(arguments.grid)
    with redirect_stdout(sys.stderr) if arguments.json else nullcontext():  # of Snakemake's own words
        status = run_grid(arguments.grid, profile=arguments.profile, arguments=arguments.snakemake)
    return Answer({"grid": grid.name, "figures": str(grid.figures)}, "", status)
