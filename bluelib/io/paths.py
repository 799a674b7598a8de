"""Where numbers and figures are kept; without torch, for the workflow."""

from __future__ import annotations

import os
import re
from pathlib import Path

import platformdirs


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
