"""``blue reproduce`` and ``blue analyse``: notebooks through papermill, then tables and figures from their numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from .experiment import ANALYSIS, cell_path, numbers_path, plain
from .files import project_path
from .models import pocket_models, scale_of
from .reports.figures import FIGURES
from .reports.plots import plot_methods, save
from .reports.tables import write_table

EDITORS = ("memit", "memit_blue", "alphaedit", "alphaedit_blue")


def run_notebook(name: str, parameters: Mapping[str, Any], stem: str) -> None:
    """Run ``notebooks/<name>.ipynb`` with papermill; the executed copy goes to ``results/raw/<stem>.ipynb``.

    Raises:
        FileNotFoundError: outside a checkout of the project.
    """
    import papermill

    notebook = project_path("notebooks", f"{name}.ipynb")
    if not notebook.exists():
        raise FileNotFoundError(f"{notebook} does not exist: run this in a checkout of the project")
    executed = project_path("results", "raw", f"{stem}.ipynb")
    executed.parent.mkdir(parents=True, exist_ok=True)
    papermill.execute_notebook(str(notebook), str(executed), dict(parameters), cwd=str(project_path()),
                               kernel_name="python3", progress_bar=False)  # fmt: skip


def reproduce(
    model: str,
    dataset: str,
    *,
    edits: int,
    batch_size: int,
    editors: Sequence[str] = EDITORS,
    seed: int = 0,
    name: str = "main",
) -> list[Path]:
    """Run ``05_sequential_editing`` for the editors on ``model``; write table and figure.

    Cells' numbers go to ``results``, table and figure to ``figures`` under names that begin with ``name``.

    Returns:
        The files of the table and the figure.

    Raises:
        FileNotFoundError: outside a checkout of the project.
    """
    cells = []
    for editor in editors:
        parameters = {"model": model, "dataset": dataset, "editor": editor, "edits": edits, "batch_size": batch_size,
                      "seed": seed}  # fmt: skip
        path = cell_path(**parameters)
        run_notebook("05_sequential_editing", parameters, path.stem)
        cells.append(json.loads(path.read_text(encoding="utf-8")))
        scores = ", ".join(f"{metric} {s['mean']:.1f}" for metric, s in cells[-1]["after"].items())
        print(f"{model} {dataset} {editor}: {scores}", flush=True)
    stem = project_path("figures", f"{name}_{plain(model)}_{dataset}")
    frame = write_table(cells, stem)
    save(plot_methods(frame), stem)
    return [stem.with_suffix(suffix) for suffix in (".csv", ".md", ".png", ".svg")]


def analyse(models: Sequence[str], notebooks: Sequence[str] = tuple(ANALYSIS)) -> list[Path]:
    """Run analysis notebooks for each model at the committed size and draw their figures, the models side by side.

    Args:
        models: of one scale.
        notebooks: names, from :data:`ANALYSIS`.

    Returns:
        The figures.

    Raises:
        ValueError: for an unknown notebook, or models of several scales.
        FileNotFoundError: outside a checkout of the project.
    """
    unknown = [name for name in notebooks if name not in ANALYSIS]
    if unknown:
        raise ValueError(f"no analysis notebook is called {', '.join(unknown)}; known: {', '.join(ANALYSIS)}")
    _one_scale(models)
    drawn = []
    for name in notebooks:
        for model in models:
            run_notebook(name, {"model": model, **ANALYSIS[name]}, f"{name}_{plain(model)}")
            print(f"{name} {model}: done", flush=True)
        drawn += draw_analysis(name, models)
    return drawn


def draw_analysis(notebook: str, models: Sequence[str], folder: Path | None = None) -> list[Path]:
    """Draw a notebook's figures from the committed numbers of ``models``, side by side, into ``figures``.

    The names of figures of other than all pocket models end with the models'.

    Raises:
        ValueError: for models of several scales.
        FileNotFoundError: if a model's numbers are missing.
    """
    _one_scale(models)
    paths = {model: numbers_path(notebook, model, ANALYSIS[notebook]) for model in models}
    numbers = {model: json.loads(path.read_text(encoding="utf-8")) for model, path in paths.items()}
    suffix = "" if set(models) == set(pocket_models()) else "_" + "_".join(map(plain, models))
    drawn = []
    for name, draw in FIGURES[notebook].items():
        stem = (folder or project_path("figures")) / (name + suffix)
        figure = draw(numbers)
        save(figure, stem)
        plt.close(figure)
        drawn += [stem.with_suffix(extension) for extension in (".png", ".svg")]
    return drawn


def _one_scale(models: Sequence[str]) -> None:
    scales = sorted({scale_of(model) for model in models})
    if len(scales) != 1:
        raise ValueError(f"models of one scale are shown side by side, not of {', '.join(scales) or 'none'}")
