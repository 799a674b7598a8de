"""Helpers that the figures of several studies share."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ...editing.catalogue import entry
from ...io.palette import BLUE, ORANGE
from ...models.known import short_label

NumbersByModel = Mapping[str, Mapping[str, Any]]

DISTRIBUTED, DIRECT = ORANGE, BLUE
#: The largest number of layers that are all named on an axis.
MOST = 16


def table(numbers: Mapping[str, Any], name: str) -> pd.DataFrame:
    """One of a notebook's tables as a frame."""
    return pd.DataFrame(numbers[name])


def title(model: str, found: Mapping[str, Any]) -> str:
    """The title of a panel: its model, and the scale of its numbers unless the model's name says it."""
    label, scale = short_label(model), found["provenance"]["scale"]
    return label if label.startswith(scale) else f"{label} ({scale} scale)"


def panels(
    numbers: NumbersByModel, rows: int, height: float, width: float = 4.0, **how: Any
) -> tuple[Figure, np.ndarray]:
    """Rows of panels, a column per model; titles name the model and its scale."""
    figure, axes = plt.subplots(
        rows,
        len(numbers),
        figsize=(max(4.6, width * len(numbers)), height * rows),
        layout="constrained",
        squeeze=False,
        **how,
    )
    for axis, (model, found) in zip(axes[0], numbers.items(), strict=True):
        axis.set_title(title(model, found))
    return figure, axes


def band(axis: Axes, frame: pd.DataFrame, x: str, label: str | None, **how: Any) -> None:
    """A line with its 95 % interval."""
    frame = frame.sort_values(x)
    (line,) = axis.plot(frame[x], frame["mean"], label=label, **how)
    axis.fill_between(frame[x], frame["low"], frame["high"], color=line.get_color(), alpha=0.2, linewidth=0)


def bars(axis: Axes, x: Any, rows: pd.DataFrame, **how: Any) -> None:
    """Bars with their 95 % intervals."""
    axis.bar(x, rows["mean"], **how)
    ends = [rows["mean"] - rows["low"], rows["high"] - rows["mean"]]
    axis.errorbar(x, rows["mean"], ends, fmt="none", ecolor="black", capsize=3)


def log_axis(axis: Axes, values: Sequence[int]) -> None:
    """A logarithmic x axis with the values themselves as ticks, as far as there is room."""
    ticks = sorted(set(values))
    room = math.log(ticks[-1] / ticks[0]) / 12
    kept = [ticks[-1]]
    for tick in reversed(ticks):
        if math.log(kept[-1] / tick) > room:
            kept.append(tick)
    axis.set(xscale="log")
    axis.set_xticks(kept, [str(tick) for tick in kept])
    axis.set_xticks([], minor=True)


def integers(axis: Axes, values: Sequence[int]) -> None:
    """The values as ticks of the x axis; of many only every fifth."""
    ticks = sorted(set(values))
    axis.set_xticks(ticks if len(ticks) <= MOST else [tick for tick in ticks if tick % 5 == 0])


def editors_of(numbers: Mapping[str, Any]) -> list[str]:
    """The editors that a notebook was run with."""
    return list(numbers["parameters"]["editors"])


def measure_panels(
    axes: np.ndarray, numbers: NumbersByModel, labels: Mapping[str, str]
) -> Iterator[tuple[Axes, Mapping[str, Any], str]]:
    """Each panel with its model's numbers and its measure. Rows are measures, columns models, and x has the editors."""
    for column, found in zip(axes.T, numbers.values(), strict=True):
        for axis, measure in zip(column, labels, strict=True):
            yield axis, found, measure
        editor_ticks(column[-1], editors_of(found))
    for axis, label in zip(axes[:, 0], labels.values(), strict=True):
        axis.set_ylabel(label)


def editor_points(
    axis: Axes, rows: pd.DataFrame, editors: Sequence[str], shift: float = 0.0, marker: str = "o"
) -> None:
    """A point with its 95 % interval per editor; the points of variants are filled as their kind's markers are."""
    for x, editor in enumerate(editors):
        row, method = rows.loc[editor], entry(editor)
        ends = [[row["mean"] - row.low], [row.high - row["mean"]]]
        axis.errorbar([x + shift], [row["mean"]], ends, fmt=marker, color=method.colour, **method.face, capsize=3)
    axis.set(xlim=(-0.6, len(editors) - 0.4))


def editor_ticks(axis: Axes, editors: Sequence[str]) -> None:
    """The editors' labels along the x axis."""
    axis.set_xticks(range(len(editors)), [entry(editor).label for editor in editors], rotation=30, ha="right")
