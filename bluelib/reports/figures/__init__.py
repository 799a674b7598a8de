"""Figures of the studies: one module per study, one column of panels per model, from the numbers that notebooks write.

Every drawing function takes ``numbers``, a mapping from model name to the notebook's JSON content. So the same code
draws a notebook's own model in the notebook, and all models side by side in :func:`draw`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path

from matplotlib.figure import Figure

from ...io.formats import read_json
from ...studies import STUDIES
from ..plots import keep
from .common import NumbersByModel


def functions(study: str) -> dict[str, Callable[[NumbersByModel], Figure]]:
    """The functions that draw the figures of a study, by file name without suffix."""
    module = import_module(f".{study}", __package__)
    return {stem: getattr(module, name) for stem, name in STUDIES[study].figures.items()}


def draw(study: str, numbers: Mapping[str, Path], folder: Path) -> list[Path]:
    """Draw a study's figures into ``folder``, the models side by side, from the file of each model's numbers."""
    contents = {model: read_json(path) for model, path in numbers.items()}
    return [keep(function(contents), folder / name) for name, function in functions(study).items()]
