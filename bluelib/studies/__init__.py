"""What the project measures: one module per study, and the table of the studies that have a notebook.

Imports neither torch nor matplotlib, as the workflow reads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Study:
    """A study with its own notebook: a row of :data:`STUDIES`.

    Attributes:
        name: of its modules in :mod:`bluelib.reports.figures` and :mod:`bluelib.reports.claims`.
        notebook: the notebook that makes its numbers.
        parameters: of the committed analysis, where they differ from the notebook's own.
        figures: by file name without suffix, the function that draws the figure from the numbers of all models.
        reads: results of other commands that the notebook takes numbers from, with ``{model}`` for the model's name.
    """

    name: str
    notebook: str
    parameters: Mapping[str, Any]
    figures: Mapping[str, str]
    reads: tuple[str, ...] = ()


_ROWS = (
    Study(
        "locate",
        "02_locate",
        {"edits": 40, "samples": 10},
        {"02_causal_traces": "causal_traces", "02_severed_paths": "severed_paths"},
    ),
    Study(
        "theory",
        "03_theory",
        {"edits": 100},
        {"03_bounds": "error_and_bounds", "03_error_terms": "error_terms"},
    ),
    Study(
        "residuals",
        "04_residuals",
        {"edits": 100, "batch_size": 100, "generate": True},
        {
            "04_residuals": "residual_comparison",
            "04_picture": "residual_picture",
            "04_steps_left": "steps_left",
            "04_single_layer": "single_layers",
        },
    ),
    Study(
        "growth",
        "05_error_growth",
        {"edits": 100, "batch_size": 10, "largest": 400},
        {"05_error_growth": "error_growth", "05_score_growth": "score_growth", "05_ablation": "ablation"},
        reads=("results/ablation/{model}.json",),
    ),
    Study(
        "capability",
        "07_general_capability",
        {"edits": 200, "batch_size": 10, "every": 5, "limit": 100},
        {
            "07_mean_capability": "mean_capability",
            "07_task_capability": "task_capability",
            "07_further_tasks": "further_tasks",
        },
    ),
    Study(
        "shift",
        "08_hidden_states",
        {"edits": 100, "batch_size": 10, "facts": 400},
        {"08_hidden_states": "hidden_states", "08_shift": "shift_measures"},
    ),
    Study(
        "longform",
        "09_long_texts_and_batches",
        {"edits": 20, "batch_size": 5, "sizes": [50, 200, 800]},
        {"09_batch": "batch_scores", "09_long_form": "long_form_scores", "09_seconds": "edit_times"},
    ),
    Study(
        "rules",
        "10_methods_since",
        {"edits": 40, "batch_size": 10, "live_edits": 40},
        {"10_which_residual": "which_residual", "10_one_time": "one_time"},
    ),
)
#: The studies by name, in the order of their notebooks.
STUDIES = {study.name: study for study in _ROWS}


def study_of(notebook: str) -> Study:
    """The study that a notebook belongs to.

    Raises:
        ValueError: if it belongs to none; the message lists the notebooks that do.
    """
    for study in STUDIES.values():
        if study.notebook == notebook:
            return study
    known = ", ".join(study.notebook for study in STUDIES.values())
    raise ValueError(f"no analysis notebook is called {notebook!r}; known: {known}")
