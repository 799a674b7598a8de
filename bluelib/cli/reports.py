"""Commands that show results: tables, figures, the site."""

from __future__ import annotations

import logging
from argparse import Namespace
from pathlib import Path

from .common import GRID, Answer, Gather, Option, command, written

log = logging.getLogger(__name__)


@command(
    GRID,
    Option("--partial", action="store_true", help="for an unfinished grid: show the cells that have been run so far"),
    example="blue tables --grid workflow/grid-pocket.yaml",
)
def tables(arguments: Namespace) -> Answer:
    """Make a grid's tables and pictures from its results."""
    from ..reports.tables import write_tables
    from ..runs.grid import Grid

    return written(write_tables(Grid.load(arguments.grid), partial=arguments.partial))


@command(
    Option("notebook", nargs="*", help="names of notebooks; by default all of the grid's"),
    Option("--followed", action="store_true", help="only the figures of `blue follow`"),
    Option("--grid", type=Path, default=Path("workflow/grid-pocket.yaml"), help="the grid file"),
    example="blue draw --grid workflow/grid-pocket.yaml 04_residuals",
)
def draw(arguments: Namespace) -> Answer:
    """Draw the figures of analysis notebooks, with the models side by side, and of `blue follow`."""
    from ..reports import figures
    from ..reports.figures.follow import draw_followed
    from ..runs.grid import Grid
    from ..studies import study_of

    grid = Grid.load(arguments.grid)
    if arguments.followed and arguments.notebook:
        raise ValueError("--followed draws what no notebook does; give it or names of notebooks, not both")
    paths = []
    for notebook in () if arguments.followed else arguments.notebook or grid.notebooks:
        numbers = {model: grid.numbers(notebook, model) for model in grid.models}
        if not arguments.notebook and (missing := [path for path in numbers.values() if not path.exists()]):
            log.warning("%s is not drawn: %s is missing, so the notebook has not run yet", notebook, missing[0])
            continue
        paths += figures.draw(study_of(notebook).name, numbers, grid.figures)
    if not arguments.notebook:
        paths += draw_followed(grid.models, grid.figures)
    return written(paths)


@command(
    Option("--output", type=Path, metavar="DIR", help="the folder of the site; by default build/site"),
    Option(
        "--only", nargs="+", action=Gather, default=[], metavar="NOTEBOOK", help="only these notebooks; by default all"
    ),
    Option(
        "--no-execute",
        action="store_true",
        help="use the notebooks with the outputs that are kept in them, instead of running those that have changed",
    ),
    Option("--plain", action="store_true", help="build plain pages with nbconvert, without MyST"),
    example="blue site --plain --only 00_quickstart",
)
def site(arguments: Namespace) -> Answer:
    """Build a static site from the executed notebooks, the figures and the tables."""
    from ..io.paths import project_path
    from ..reports.site import build_site

    output = arguments.output or project_path("build", "site")
    return written([build_site(output, only=arguments.only, execute=not arguments.no_execute, plain=arguments.plain)])
