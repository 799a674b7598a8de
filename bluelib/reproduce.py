"""``blue reproduce``: one cell per editor through papermill, then the table and the figure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from .experiment import cell_path, plain
from .files import project_path
from .reports.plots import plot_methods, save
from .reports.tables import write_table

EDITORS = ("memit", "memit_blue", "alphaedit", "alphaedit_blue")
NOTEBOOK = "05_sequential_editing.ipynb"


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
    """Run ``notebooks/05_sequential_editing.ipynb`` for the editors on ``model``; write table and figure.

    Executed notebooks go to ``results/raw``, cells' numbers to ``results``, table and figure to ``figures`` under names
    that begin with ``name``.

    Returns:
        The files of the table and the figure.

    Raises:
        FileNotFoundError: outside a checkout of the project.
    """
    import papermill

    notebook = project_path("notebooks", NOTEBOOK)
    if not notebook.exists():
        raise FileNotFoundError(f"{notebook} does not exist: run this in a checkout of the project")
    cells = []
    for editor in editors:
        parameters = {"model": model, "dataset": dataset, "editor": editor, "edits": edits, "batch_size": batch_size,
                      "seed": seed}  # fmt: skip
        path = cell_path(**parameters)
        executed = project_path("results", "raw", f"{path.stem}.ipynb")
        executed.parent.mkdir(parents=True, exist_ok=True)
        papermill.execute_notebook(str(notebook), str(executed), parameters, cwd=str(project_path()),
                                   kernel_name="python3", progress_bar=False)  # fmt: skip
        cells.append(json.loads(path.read_text(encoding="utf-8")))
        scores = ", ".join(f"{metric} {s['mean']:.1f}" for metric, s in cells[-1]["after"].items())
        print(f"{model} {dataset} {editor}: {scores}", flush=True)
    stem = project_path("figures", f"{name}_{plain(model)}_{dataset}")
    frame = write_table(cells, stem)
    save(plot_methods(frame), stem)
    return [stem.with_suffix(suffix) for suffix in (".csv", ".md", ".png", ".svg")]
