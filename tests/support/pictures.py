"""Committed pictures, compared with those that the code draws."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from bluelib.reports.plots import in_few_colours


def same_file(one: Path, other: Path) -> bool:
    """Whether two files have the same content; pictures, the same pixels. One that was committed in true colour is
    reduced to 256 colours first, as new ones are."""
    if one.suffix != ".png":
        return one.read_bytes() == other.read_bytes()
    return np.array_equal(_pixels(one), _pixels(other))


def _pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        reduced = image if image.mode == "P" else in_few_colours(image)
        return np.asarray(reduced.convert("RGB"))
