"""Figures of ``08_hidden_states``."""

from __future__ import annotations

import math
from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpecBase
from scipy import stats

from ...editing.catalogue import entry
from ...io.palette import SKY, VERMILION
from ..plots import style
from .common import NumbersByModel, editor_points, editors_of, measure_panels, panels, table, title

BEFORE, AFTER = SKY, VERMILION


def hidden_states(numbers: NumbersByModel) -> Figure:
    """States of known facts before and after, in the plane, with both marginals: models in rows, editors in columns.

    The panels' places are given, not solved for: for so many nested panels, the last digits of the solution differ from
    one process to another, and so would the file.
    """
    columns = max(len(editors_of(found)) for found in numbers.values())
    with style():
        figure = plt.figure(figsize=(3.3 * columns, 3.6 * len(numbers)))
        blocks = figure.add_gridspec(len(numbers), columns, hspace=0.42, wspace=0.18)
        for row, (model, found) in enumerate(numbers.items()):
            points = table(found, "picture")
            limits = {axis: (points[axis].min(), points[axis].max()) for axis in "xy"}
            limits = {axis: (a - 0.08 * (b - a), b + 0.08 * (b - a)) for axis, (a, b) in limits.items()}
            energy = table(found, "shift").query("measure == 'energy'").set_index("editor")["mean"]
            x, y = found["picture_axes"]
            for column, editor in enumerate(editors_of(found)):
                block = blocks[row, column].subgridspec(
                    2, 2, width_ratios=[4, 1], height_ratios=[1, 4], hspace=0.04, wspace=0.04
                )
                top, middle = _joint(block, points, editor, limits)
                top.set_title(f"{entry(editor).label}\nenergy distance {_short(energy[editor])}", fontsize=9)
                whose = f"{title(model, found)}\n{y}"
                middle.set(xlabel=x, ylabel=whose if column == 0 else "")
        handles = [plt.Line2D([], [], color=colour, marker="o", linestyle="") for colour in (BEFORE, AFTER)]
        below = 0.03 if len(numbers) > 1 else -0.1  # of the figure's height, which grows with the rows
        figure.legend(handles, ["before", "after"], loc="lower center", bbox_to_anchor=(0.5, below), ncols=2)
        return figure


def _joint(
    block: GridSpecBase, points: pd.DataFrame, editor: str, limits: Mapping[str, tuple[float, float]]
) -> tuple[Axes, Axes]:
    """One scatter plot with its marginal densities above and at its right; returns the upper panel and the middle."""
    (top, corner), (middle, right) = block.subplots(squeeze=False)
    for axis in (top, corner, right):
        axis.set_axis_off()
    for state, colour, size in (("before", BEFORE, 10), (editor, AFTER, 5)):
        rows = points[points.state == state]
        middle.scatter(rows.x, rows.y, color=colour, s=size, alpha=0.8, linewidths=0)
        for axis, name in ((top, "x"), (right, "y")):
            places = np.linspace(*limits[name], 200)
            density = stats.gaussian_kde(rows[name])(places)
            density = np.round(density / density.max(), 4)  # so that the last bits of a sum don't show in the file
            if state == "before":
                fill = axis.fill_between if name == "x" else axis.fill_betweenx
                fill(places, density, color=colour, alpha=0.5, linewidth=0)
            else:
                axis.plot(*((places, density) if name == "x" else (density, places)), color=colour, linewidth=1.4)
    middle.set(xlim=limits["x"], ylim=limits["y"])
    middle.tick_params(labelsize=7)
    top.set(xlim=limits["x"])
    right.set(ylim=limits["y"])
    return top, middle


def _short(value: float) -> str:
    """Two significant digits, without an exponent."""
    return f"{value:.{max(0, 1 - math.floor(math.log10(abs(value))))}f}" if value else "0"


def shift_measures(numbers: NumbersByModel) -> Figure:
    """Each measure per editor with its interval, and the 95 % limit of each of its two nulls."""
    labels = {
        "displacement": "displacement\nof a fact",
        "mean_shift": "mean shift",
        "energy": "energy distance",
        "recalled": "still recalled (%)",
    }
    with style():
        figure, axes = panels(numbers, len(labels), 2.1, sharex="col")
        for axis, found, measure in measure_panels(axes, numbers, labels):
            shift, editors = table(found, "shift"), editors_of(found)
            rows = shift[shift.measure == measure].set_index("editor").loc[editors]
            editor_points(axis, rows, editors)
            if measure in found["halves"]:
                axis.axhline(
                    found["halves"][measure],
                    color="black",
                    linestyle="--",
                    linewidth=1,
                    label="two halves of the unedited facts, 95 %",
                )
                axis.plot(
                    range(len(rows)),
                    rows.swaps,
                    "_",
                    color="black",
                    markersize=14,
                    label="before and after swapped, 95 %",
                )
            if measure != "recalled":
                axis.set(ylim=(min(0, axis.get_ylim()[0]), None))
        handles, names = axes[2, 0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=1, fontsize=8)
        return figure
