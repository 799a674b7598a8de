"""Figures of ``04_residuals``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ...io.palette import GREEN, GREY
from ...metrics.editing import TEACHER_FORCED
from ...models.known import label_of_model
from ..plots import style
from ..published import counterpart, published
from .common import DIRECT, DISTRIBUTED, NumbersByModel, band, bars, integers, panels, table

RESIDUAL_COLOURS = {"distributed": DISTRIBUTED, "direct": DIRECT}
#: By residual, its colour, its marker, and what a legend calls it.
CONTRIBUTING = {
    "direct": (DIRECT, "o", r"$R^{l*}$, direct"),
    "undivided": (GREY, "^", r"$R^{L*}$, not divided"),
    "distributed": (DISTRIBUTED, "s", r"$R^{L*}/(L-l+1)$, distributed"),
}


def residual_comparison(numbers: NumbersByModel) -> Figure:
    """Contribution, cosine and deviation of the residuals, by layer, and the published values of the counterpart.

    The published values stand at the same distance from the last critical layer. Their deviations are in units of
    another model, so they are scaled to agree with ours one layer before the last.
    """
    with style():
        figure, axes = panels(numbers, 3, 2.5, sharex="col")
        for column, (model, found) in enumerate(numbers.items()):
            contribution, compared = table(found, "contributions"), table(found, "compared")
            for kind, (colour, marker, label) in CONTRIBUTING.items():
                rows = contribution[contribution.residual == kind]
                if len(rows):
                    band(axes[0, column], rows, "layer", label, color=colour, marker=marker)
            axes[0, column].set(ylim=(-0.05, 1.05))
            for row, measure in ((1, "cosine"), (2, "deviation")):
                band(axes[row, column], compared[compared.measure == measure], "layer", None, color=GREEN, marker="o")
            _published_points(axes[:, column], counterpart(model), compared)
            axes[1, column].set(ylim=(0, 1.05))
            axes[2, column].set(xlabel="layer", ylim=(0, None))
            integers(axes[2, column], compared.layer)
        axes[0, 0].set_ylabel("contribution $s$")
        axes[1, 0].set_ylabel("cosine of\n$R^{l*}$ and $R^{L*}$")
        axes[2, 0].set_ylabel(r"$\Vert R^{l*}-R^{L*}\Vert$" + "\nper request")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8)
        return figure


def _published_points(axes: np.ndarray, theirs: str, compared: pd.DataFrame) -> None:
    """Draw the published values of an LLM by layer, with hollow marks, in the three panels of a column."""
    values = published("layer_analysis")
    values = values[values.model == theirs]
    first, last = compared.layer.min(), compared.layer.max()
    deviation = compared[compared.measure == "deviation"].set_index("layer")["mean"]
    shift = last - values[values.quantity == "contribution_distributed"].layer.max()
    kinds = {
        "contribution_direct": (axes[0], DIRECT, "o"),
        "contribution_distributed": (axes[0], DISTRIBUTED, "s"),
        "cosine": (axes[1], "black", "D"),
        "deviation_norm": (axes[2], "black", "D"),
    }
    names = {"contribution_direct": "published, direct", "contribution_distributed": "published, distributed"}
    for quantity, (axis, colour, marker) in kinds.items():
        rows = values[(values.quantity == quantity) & (values.layer + shift >= first)].sort_values("layer")
        if rows.empty:
            continue
        places, shown = rows.layer + shift, rows.value
        if quantity == "deviation_norm":
            shown = shown * deviation[last - 1] / shown.iloc[-1]
        axis.plot(
            places,
            shown,
            marker,
            color=colour,
            markerfacecolor="white",
            markersize=7,
            zorder=5,
            label=names.get(quantity, f"published, {theirs}"),
        )
        if axis is not axes[0]:
            scaled = ", scaled" if quantity == "deviation_norm" else ""
            axis.legend([axis.lines[-1]], [f"published, {theirs}{scaled}"], fontsize=7, loc="lower left")


def residual_picture(numbers: NumbersByModel) -> Figure:
    """Residuals of the first and the last critical layer in their first two principal components."""
    with style():
        figure, axes = panels(numbers, 1, 3.8)
        for axis, found in zip(axes[0], numbers.values(), strict=True):
            points = table(found, "picture")
            markers = zip(points.groupby("residual", sort=False), (DIRECT, DISTRIBUTED, GREY), "ox^", strict=True)
            for (name, chosen), colour, marker in markers:
                axis.scatter(chosen.x, chosen.y, color=colour, marker=marker, s=18, linewidths=1, label=name)
            x, y = found["picture_variance"]
            axis.set(xlabel=f"first component ({x:.0%} of the variance)", ylabel=f"second component ({y:.0%})")
            axis.legend(fontsize=7)
        return figure


def steps_left(numbers: NumbersByModel) -> Figure:
    """Steps each critical layer still needs, ours and as published for the counterpart, by position."""
    with style():
        figure, axes = panels(numbers, 1, 3.0, sharey=True)
        for axis, (model, found) in zip(axes[0], numbers.items(), strict=True):
            ours = table(found, "steps").sort_values("layer").reset_index(drop=True)
            bars(axis, ours.index, ours, color=DIRECT, width=0.6, label="ours")
            theirs = published("optimisation_steps")
            theirs = theirs[theirs.model == counterpart(model)].reset_index(drop=True)
            axis.plot(
                theirs.index,
                theirs.mean_steps,
                "D",
                color="black",
                markerfacecolor="white",
                markersize=6,
                label=f"published, {counterpart(model)}",
            )
            axis.set(xlabel="critical layer, first to last")
            positions = range(max(len(ours), len(theirs)))
            axis.set_xticks(positions, [str(i + 1) for i in positions])
            axis.legend(fontsize=8)
        axes[0, 0].set_ylabel("optimisation steps needed")
        return figure


def single_layers(numbers: NumbersByModel) -> Figure:
    """Scores of each critical layer edited alone with either residual.

    Ours have intervals; hollow marks are the published scores of the counterpart. For Llama3 there are also a
    replication's scores of single layers after 10,000 edits.
    """
    with style():
        figure, axes = panels(numbers, len(TEACHER_FORCED), 2.3, sharex="col", sharey="row")
        for column, (model, found) in enumerate(numbers.items()):
            ours = table(found, "single_layer")
            layers = sorted(ours.layer.unique())
            theirs = published("single_layer_editing")
            theirs = theirs[theirs.model == counterpart(model)]
            again = published("single_layer_replication")
            again = again[again.model == counterpart(model)].sort_values("layer")
            for axis, metric in zip(axes[:, column], TEACHER_FORCED, strict=True):
                for kind in RESIDUAL_COLOURS:
                    colour, marker, label = CONTRIBUTING[kind]
                    rows = ours[(ours.metric == metric) & (ours.residual == kind)].sort_values("layer")
                    band(axis, rows, "layer", label, color=colour, marker=marker)
                    shown = theirs[theirs.residual == kind].sort_values("layer")
                    hollow = {"color": colour, "markerfacecolor": "white", "markersize": 7, "linestyle": "none"}
                    axis.plot(_moved(shown.layer, layers), shown[metric], marker=marker, **hollow)
                axis.plot(
                    _moved(again.layer, layers),
                    again[metric],
                    "D",
                    color="black",
                    markerfacecolor="white",
                    markersize=5,
                    label="replication, AlphaEdit, 10,000 edits" if len(again) else None,
                )
                axis.set(ylim=(-3, 103))
            integers(axes[-1, column], layers)
            axes[-1, column].set_xlabel(f"the layer edited (hollow: {counterpart(model)})")
        for axis, metric in zip(axes[:, 0], TEACHER_FORCED, strict=True):
            axis.set_ylabel(f"{metric} (%)")
        handles, labels = axes[0, -1].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8)
        return figure


def _moved(theirs: pd.Series, ours: Sequence[int]) -> pd.Series:
    """The layers of another model, moved to the same distance from our last critical one; NaN before our first."""
    places = theirs + ours[-1] - theirs.max()
    return places.where(places >= ours[0])


#: By published model, its marker in :func:`overlay`.
_PUBLISHED_MARKERS = {"GPT2-XL": "s", "GPT-J-6B": "^", "Llama3-8B-Instruct": "D"}
#: The markers of our models there, in order.
_OUR_MARKERS = "osv^Pp"


def overlay(numbers: NumbersByModel) -> Figure:
    """Contribution and cosine of all models in one picture, by the distance from the last critical layer.

    The first model has thick lines with a band, the others have thin lines. Hollow marks are the published values of
    the three LLMs.
    """
    with style():
        figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 3.7), layout="constrained")
        for number, found in enumerate(numbers.values()):
            contribution, compared = table(found, "contributions"), table(found, "compared")
            last = compared.layer.max()
            strong = number == 0
            look: dict[str, Any] = {"linewidth": 2, "markersize": 7} if strong else {"linewidth": 0.8, "markersize": 4}
            look |= {"marker": _OUR_MARKERS[number % len(_OUR_MARKERS)], "alpha": 1 if strong else 0.55}
            for axis, frame, kinds in (
                (left, contribution, {"direct": DIRECT, "distributed": DISTRIBUTED, "undivided": GREY}),
                (right, compared[compared.measure == "cosine"].assign(residual="cosine"), {"cosine": GREEN}),
            ):
                for kind, colour in kinds.items():
                    rows = frame[frame.residual == kind].sort_values("layer")
                    if rows.empty or (kind == "undivided" and not strong):
                        continue
                    axis.plot(rows.layer - last, rows["mean"], color=colour, **look)
                    if strong:
                        axis.fill_between(rows.layer - last, rows.low, rows.high, color=colour, alpha=0.2, linewidth=0)
        values = published("layer_analysis")
        for model, marker in _PUBLISHED_MARKERS.items():
            of_model = values[values.model == model]
            last = of_model[of_model.quantity == "contribution_distributed"].layer.max()
            for axis, quantity, colour in (
                (left, "contribution_direct", DIRECT),
                (left, "contribution_distributed", DISTRIBUTED),
                (right, "cosine", GREEN),
            ):
                rows = of_model[of_model.quantity == quantity].sort_values("layer")
                hollow: dict[str, Any] = {
                    "markerfacecolor": "white",
                    "markersize": 6,
                    "linewidth": 0.6,
                    "linestyle": ":",
                }
                axis.plot(rows.layer - last, rows.value, marker, color=colour, **hollow)
        for axis in (left, right):
            axis.set(xlabel="layers from the last critical one", ylim=(-0.04, 1.06))
            axis.set_xticks(range(-5, 1))
        left.set_ylabel("contribution $s$")
        right.set_ylabel("cosine of $R^{l*}$ and $R^{L*}$")
        colours = {"direct": DIRECT, "last, not divided": GREY, "distributed": DISTRIBUTED}
        handles = [Line2D([], [], color=colour, linewidth=2, label=label) for label, colour in colours.items()]
        left.legend(handles=handles, fontsize=8, loc="center left")
        handles = [
            Line2D(
                [],
                [],
                color="black",
                linestyle="-",
                marker=_OUR_MARKERS[number % len(_OUR_MARKERS)],
                label=label_of_model(model),
            )
            for number, model in enumerate(numbers)
        ]
        handles += [
            Line2D(
                [],
                [],
                color="black",
                linestyle=":",
                marker=marker,
                markerfacecolor="white",
                label=f"{model} (published)",
            )
            for model, marker in _PUBLISHED_MARKERS.items()
        ]
        figure.legend(handles=handles, fontsize=8, loc="outside lower center", ncols=4)
        return figure
