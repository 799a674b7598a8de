"""Figures of the studies: one module a study, one column of panels per model, from the numbers that notebooks write.

Every drawing function takes ``numbers``, a mapping of model name to the notebook's JSON content, so that a notebook
draws its own model and :func:`draw` all of them side by side by the same code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path

from matplotlib.figure import Figure

from ...io.formats import read_json
from ...studies import STUDIES
from ..plots import keep
from .common import Numbers


def functions(study: str) -> dict[str, Callable[[Numbers], Figure | None]]:
    """By file name without suffix, the function that draws each figure of a study of
    :data:`~bluelib.studies.STUDIES`; it returns None where there is nothing to show."""
    module = import_module(f".{study}", __package__)
    return {stem: getattr(module, name) for stem, name in STUDIES[study].figures.items()}


def draw(study: str, numbers: Mapping[str, Path], folder: Path) -> list[Path]:
    """Draw a study's figures into ``folder`` from the files of its numbers by model, the models side by side."""
    contents = {model: read_json(path) for model, path in numbers.items()}
    drawn = []
    for name, function in functions(study).items():
        if (figure := function(contents)) is not None:
            drawn.append(keep(figure, folder / name))
    return drawn
