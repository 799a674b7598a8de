"""Figures of ``03_residuals``."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ...io.palette import GREEN, GREY
from ...metrics.editing import TEACHER_FORCED
from ...models.known import label_of_model
from ..plots import style
from ..published import counterpart, published
from .common import DIRECT, DISTRIBUTED, Numbers, band, bars, integers, panels, table

RESIDUAL_COLOURS = {"distributed": DISTRIBUTED, "direct": DIRECT}
#: By residual, its colour, its marker, and what a legend calls it.
CONTRIBUTING = {
    "direct": (DIRECT, "o", r"$R^{l*}$, direct"),
    "undivided": (GREY, "^", r"$R^{L*}$, not divided"),
    "distributed": (DISTRIBUTED, "s", r"$R^{L*}/(L-l+1)$, distributed"),
}


def residual_comparison(numbers: Numbers) -> Figure:
    """Contribution, cosine and deviation of the residuals, by layer, and the published values of the counterpart.

    Those stand at the same distance from the last critical layer. Their deviations are in units of another model, so
    they are scaled to agree with ours one layer before the last.
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
    """The published values by layer of an LLM, hollow, in the three panels of a column."""
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


def residual_picture(numbers: Numbers) -> Figure:
    """Residuals of the first and the last critical layer in their two first principal components."""
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


def steps_left(numbers: Numbers) -> Figure:
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


def radar(numbers: Numbers) -> Figure:
    """Single-layer editing by either residual, one spoke per critical layer: ours, and as published, for each model."""
    metrics = TEACHER_FORCED
    sources = []
    for model, found in numbers.items():
        sources.append(
            (f"{label_of_model(model)}\n({found['provenance']['scale']} scale)", table(found, "single_layer"))
        )
        theirs = published("single_layer_editing")
        theirs = theirs[theirs.model == counterpart(model)]
        if len(theirs):
            theirs = theirs.melt(["layer", "residual"], list(metrics), "metric", "mean")
            sources.append((f"{counterpart(model)}\n(published)", theirs))
    with style():
        size = (2.6 * len(sources), 2.8 * len(metrics) + 0.8)
        figure, axes = plt.subplots(
            len(metrics),
            len(sources),
            figsize=size,
            layout="constrained",
            squeeze=False,
            subplot_kw={"projection": "polar"},
        )
        for row, metric in zip(axes, metrics, strict=True):
            for axis, (title, frame) in zip(row, sources, strict=True):
                _spokes(axis, frame[frame.metric == metric])
                axis.set_title(f"{title}\n{metric}" if metric == metrics[0] else metric, fontsize=9)
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2)
        return figure


def _spokes(axis: Axes, frame: pd.DataFrame) -> None:
    layers = sorted(frame.layer.unique())
    angles = np.linspace(0, 2 * np.pi, len(layers), endpoint=False)
    for kind, colour in RESIDUAL_COLOURS.items():
        values = frame[frame.residual == kind].set_index("layer").loc[layers, "mean"]
        axis.plot(
            [*angles, angles[0]],
            [*values, values.iloc[0]],
            color=colour,
            label=kind,
            linestyle="-" if kind == "direct" else "--",
        )
        axis.fill(angles, values, color=colour, alpha=0.12)
    axis.set(xticks=angles, xticklabels=[str(layer) for layer in layers], ylim=(0, 100), yticks=(25, 50, 75, 100))
    axis.tick_params(labelsize=7)
