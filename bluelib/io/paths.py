"""Where numbers and figures are kept; needs no torch, so the workflow can use it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import platformdirs


def plain(name: str) -> str:
    """A name in a form that can be part of a file name."""
    return re.sub(r"[^\w.-]+", "-", name).strip("-.")


def cell_name(model: str, dataset: str, editor: str, edits: int, batch_size: int, seed: int) -> str:
    """The name of a cell of a results table, as used in file names."""
    return f"{plain(model)}_{plain(Path(dataset).stem)}_{editor}_{edits}x{batch_size}_seed{seed}"


def sequence_path(
    study: str,
    model: str,
    dataset: str,
    editor: str,
    edits: int,
    batch_size: int,
    seed: int,
    options: Mapping[str, Any],
) -> Path:
    """Where a study of sequences, ``follow`` or ``single``, keeps the scores of one editor; ``model`` is given as in
    file names."""
    name = cell_name(model, dataset, editor, edits, batch_size, seed)
    given = "".join(f"_{plain(str(key))}-{plain(str(value))}" for key, value in options.items())
    return project_path("results", study, f"{name}{given}.json")


def raw_path(*parts: str) -> Path:
    """A path under ``results/raw``, where runs put files that are not committed."""
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


def config_dir() -> Path:
    """The folder of the user's settings files (``$BLUELIB_CONFIG_HOME``, or ``configs`` in the platform's folder for
    configurations); it need not exist."""
    root = os.environ.get("BLUELIB_CONFIG_HOME")
    return Path(root) if root else platformdirs.user_config_path("bluelib") / "configs"


def stem_of(name: str, revision: str) -> str:
    """A model's name in the names of results. For a path, it is its last part and eight digits of the weights' hash,
    since many folders are called ``model``; any other name is used as :func:`plain` has it."""
    if not Path(name).exists():
        return plain(name)
    return f"{plain(Path(name).resolve().name)}-{revision.removeprefix('sha256:')[:8]}"


def project_path(*parts: str) -> Path:
    """A path in the project's checkout. That is the nearest folder with a ``notebooks`` folder, from the current one
    upwards; if there is none, the current folder."""
    here = Path.cwd()
    root = next((folder for folder in (here, *here.parents) if (folder / "notebooks").is_dir()), here)
    return root.joinpath(*parts)
