"""Commands that run notebooks: one, or a grid of them."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import Any

from .common import GRID, Answer, Gather, Option, command, written


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
    example="blue notebook 03_residuals out.ipynb -p model=pocket-gpt2 edits=20",
)
def notebook(arguments: Namespace) -> Answer:
    """Run a notebook through papermill."""
    from ..runs.notebooks import run_notebook

    parameters: dict[str, Any] = {}
    for name, value in map(_parameter, arguments.parameters):
        if name in parameters:
            raise ValueError(f"parameter {name} is given twice, as {parameters[name]!r} and as {value!r}")
        parameters[name] = value
    run_notebook(arguments.name, parameters, arguments.executed)
    return written([arguments.executed])


def _parameter(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise ValueError(f"a parameter is NAME=VALUE, not {text!r}")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


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
