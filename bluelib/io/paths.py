"""Where numbers and figures are kept; without torch, for the workflow."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import platformdirs


def plain(name: str) -> str:
    """A name as part of a file name."""
    return re.sub(r"[^\w.-]+", "-", name).strip("-.")


def cell_name(model: str, dataset: str, editor: str, edits: int, batch_size: int, seed: int) -> str:
    """The name of a cell of a results table, for files."""
    return f"{plain(model)}_{plain(Path(dataset).stem)}_{editor}_{edits}x{batch_size}_seed{seed}"


def followed_path(
    model: str, dataset: str, editor: str, edits: int, batch_size: int, seed: int, options: Mapping[str, Any]
) -> Path:
    """Where the scores of one editor along a sequence are kept; ``model`` as file names have it."""
    name = cell_name(model, dataset, editor, edits, batch_size, seed)
    given = "".join(f"_{plain(str(key))}-{plain(str(value))}" for key, value in options.items())
    return project_path("results", "follow", f"{name}{given}.json")


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


def config_dir() -> Path:
    """The folder of the user's settings files (``$BLUELIB_CONFIG_HOME``, or ``configs`` in the platform's folder for
    configurations); it need not exist."""
    root = os.environ.get("BLUELIB_CONFIG_HOME")
    return Path(root) if root else platformdirs.user_config_path("bluelib") / "configs"


def stem_of(name: str, revision: str) -> str:
    """A model's name in names of results: of a path its last part and eight digits of the weights' hash, since many
    folders are called ``model``; any other name as it is."""
    if not Path(name).exists():
        return plain(name)
    return f"{plain(Path(name).resolve().name)}-{revision.removeprefix('sha256:')[:8]}"


def project_path(*parts: str) -> Path:
    """A path in the project's checkout: the nearest folder upwards with a ``notebooks`` folder, or else here."""
    here = Path.cwd()
    root = next((folder for folder in (here, *here.parents) if (folder / "notebooks").is_dir()), here)
    return root.joinpath(*parts)
