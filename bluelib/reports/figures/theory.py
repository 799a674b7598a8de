"""Figures of ``03_theory``."""

from __future__ import annotations

from matplotlib.figure import Figure

from ...editing.theory import BOUNDS
from ...io.palette import GREEN, GREY, VERMILION
from ..plots import style
from .common import DIRECT, DISTRIBUTED, Numbers, bars, integers, panels, table


def error_and_bounds(numbers: Numbers) -> Figure:
    """The measured error against each bound, as a ratio, by distance: 1 means attained, below 1 never."""
    names = {"residual": "residual", "shared": "shared", "tight": "tight", "paper": "paper (Theorem 4.1)"}
    markers = dict(zip(BOUNDS, "o^sD", strict=True))
    colours = dict(zip(BOUNDS, ("black", GREEN, DIRECT, DISTRIBUTED), strict=True))
    with style():
        figure, axes = panels(numbers, 1, 3.4, sharey=True)
        for axis, found in zip(axes[0], numbers.values(), strict=True):
            ratios = table(found, "tightness")
            for bound, shift in zip(BOUNDS, (-0.18, -0.06, 0.06, 0.18), strict=True):
                rows = ratios[ratios.bound == bound].sort_values("distance")
                axis.errorbar(
                    rows.distance + shift,
                    rows["median"],
                    [rows["median"] - rows.least, rows.most - rows["median"]],
                    color=colours[bound],
                    marker=markers[bound],
                    capsize=2,
                    elinewidth=1,
                    label=names[bound],
                )
            axis.axhline(1, color="grey", linestyle=":")
            axis.set(yscale="log", xlabel="distribution distance L − l")
            axis.set_yticks([1, 2, 5, 10, 20], ["1", "2", "5", "10", "20"])
            axis.set_yticks([], minor=True)
            integers(axis, ratios.distance)
        axes[0, 0].set_ylabel("bound / measured error\n(median, range)")
        axes[0, -1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
        return figure


def error_terms(numbers: Numbers) -> Figure:
    """Shares of ‖E‖²: what the theorem's two terms give and how much of them cancels; and direction against amount."""
    parts = (
        {
            "deviation": (r"$\Vert DQ\Vert^2$", DIRECT),
            "division": (r"$\Vert(1-1/c)\,R^{L*}Q\Vert^2$", DISTRIBUTED),
            "cross": ("cross term", GREY),
        },
        {"direction": ("direction", GREEN), "amount": ("amount", VERMILION)},
    )
    with style():
        figure, axes = panels(numbers, 2, 2.9, sharey="row")
        for column, found in enumerate(numbers.values()):
            terms = table(found, "terms").sort_values("distance")
            for axis, group in zip(axes[:, column], parts, strict=True):
                for number, (part, (label, colour)) in enumerate(group.items()):
                    rows, at = terms[terms.term == part], 0.27 * (number - (len(group) - 1) / 2)
                    bars(axis, rows.distance + at, rows, width=0.25, color=colour, label=label)
                axis.axhline(1, color="black", linewidth=0.8, linestyle=":")
                integers(axis, terms.distance)
            axes[1, column].set(xlabel="distribution distance L − l")
        for row in (0, 1):
            axes[row, 0].set_ylabel(r"share of $\Vert E\Vert^2$")
            axes[row, 0].legend(fontsize=8)
        return figure
