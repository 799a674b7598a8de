"""Where numbers and figures are kept, and the sizes of the committed analyses; without torch, for the workflow."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import platformdirs

#: By analysis notebook, the parameters of the committed analysis where they are not the notebook's own.
ANALYSIS: dict[str, dict[str, Any]] = {
    "01_locate": {"edits": 40, "samples": 10},
    "02_weight_shift_theory": {"edits": 100},
    "03_residuals": {"edits": 100, "batch_size": 100, "generate": True},
    "04_error_growth": {"edits": 100, "batch_size": 10, "largest": 400},
    "06_general_capability": {"edits": 200, "batch_size": 10, "every": 5, "limit": 100},
    "07_hidden_state_shift": {"edits": 100, "batch_size": 10, "facts": 400},
    "08_long_form_and_batch": {"edits": 20, "batch_size": 5, "sizes": [50, 200, 800]},
}
#: By analysis notebook, its figures with the models side by side: see :mod:`bluelib.reports.figures`.
ANALYSIS_FIGURES: dict[str, tuple[str, ...]] = {
    "01_locate": ("01_causal_traces", "01_severed_paths"),
    "02_weight_shift_theory": ("02_bounds", "02_error_terms"),
    "03_residuals": ("03_residuals", "03_picture", "03_steps_left", "03_single_layer"),
    "04_error_growth": ("04_error_growth", "04_score_growth", "04_ablation"),
    "06_general_capability": ("06_mean_capability", "06_task_capability"),
    "07_hidden_state_shift": ("07_hidden_states", "07_shift"),
    "08_long_form_and_batch": ("08_batch", "08_long_form", "08_seconds"),
}


def plain(name: str) -> str:
    """A name as part of a file name."""
    return re.sub(r"[^\w.-]+", "-", name).strip("-.")


def cell_name(model: str, dataset: str, editor: str, edits: int, batch_size: int, seed: int) -> str:
    """The name of a cell of a results table, for files."""
    return f"{plain(model)}_{plain(Path(dataset).stem)}_{editor}_{edits}x{batch_size}_seed{seed}"


def raw_path(*parts: str) -> Path:
    """A path under ``results/raw``, where runs leave what is not committed."""
    return project_path("results", "raw", *parts)


def numbers_name(notebook: str, model: str) -> str:
    """The name of the file of a notebook's numbers for a model."""
    return f"{notebook}_{plain(model)}.json"


def cache_dir(part: str) -> Path:
    """The folder for ``part`` in the user's cache (``$BLUELIB_CACHE``, or the platform's cache folder)."""
    root = os.environ.get("BLUELIB_CACHE")
    path = (Path(root) if root else platformdirs.user_cache_path("bluelib")) / part
    path.mkdir(parents=True, exist_ok=True)
    return path


def project_path(*parts: str) -> Path:
    """A path in the project's checkout: the nearest folder upwards with a ``notebooks`` folder, or else here."""
    here = Path.cwd()
    root = next((folder for folder in (here, *here.parents) if (folder / "notebooks").is_dir()), here)
    return root.joinpath(*parts)
