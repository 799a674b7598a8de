"""Figures of ``05_error_growth``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ...editing.catalogue import entry
from ...io.palette import GREEN, GREY, PURPLE, SKY, VERMILION
from ...studies.ablation import PAIR, SHARED, SINGLE
from ..plots import style
from .common import DIRECT, DISTRIBUTED, NumbersByModel, band, integers, log_axis, panels, table

EDITOR_COLOURS = {"memit": DISTRIBUTED, "memit_blue": DIRECT}


#: By axis of growth: its column, its label, and per measure the label, colour and marker.
_GROWTH = {
    "batch": ("edits", "edits in one batch (n)", {"error": ("‖E‖", DIRECT, "o"), "norm_q": ("‖Q‖", DISTRIBUTED, "s")}),
    "sequence": (
        "total_edits",
        "edits made so far (n)",
        {
            "total": ("‖Σ E‖ so far", DIRECT, "o"),
            "error": ("‖E‖ of one batch", GREEN, "^"),
            "norm_q": ("‖Q‖ of one batch", DISTRIBUTED, "s"),
        },
    ),
}


def error_growth(numbers: NumbersByModel) -> Figure:
    """The relative error against distance, and the absolute one against batch size and number of edits."""
    with style():
        figure, axes = panels(numbers, 3, 2.8)
        for column, found in enumerate(numbers.values()):
            _relative_error(axes[0, column], table(found, "by_distance"))
            for axis, name in zip(axes[1:, column], _GROWTH, strict=True):
                _growth(axis, table(found, f"by_{name}"), found["growth"][name], *_GROWTH[name])
        axes[0, 0].set_ylabel("‖E‖ / ‖R*Q‖")
        axes[1, 0].set_ylabel("relative to n = 1")
        axes[2, 0].set_ylabel("relative to\nthe first batch")
        return figure


def _relative_error(axis: Axes, frame: pd.DataFrame) -> None:
    band(axis, frame, "distance", "measured", color=DIRECT, marker="o")
    steps = sorted(set(frame.distance))
    divided = [1 - 1 / (step + 1) for step in steps]
    axis.plot(steps, divided, color=GREY, linestyle="--", label="1 − 1/c: the same residual, divided")
    axis.set(xlabel="distribution distance L − l", ylim=(0, None))
    axis.legend(fontsize=7)
    integers(axis, steps)


def _growth(
    axis: Axes, frame: pd.DataFrame, exponents: Mapping[str, Any], x: str, label: str, measures: Mapping[str, tuple]
) -> None:
    """Each measure relative to its first value, on logarithmic axes, with its fitted exponent in the legend."""
    note = "\n(no band where an interval reaches 0)"
    for measure, (name, colour, marker) in measures.items():
        rows = frame[frame.measure == measure].sort_values(x)
        relative = rows.assign(**{end: rows[end] / rows["mean"].iloc[0] for end in ("mean", "low", "high")})
        fit = exponents[measure]
        text = f"{name} ∝ n^{fit['mean']:.2f} [{fit['low']:.2f}, {fit['high']:.2f}]"
        without = relative.low <= 0  # for which a logarithmic axis has no place
        relative.loc[without, ["low", "high"]] = math.nan
        if without.any() and note not in label:
            label += note
        band(axis, relative, x, text, color=colour, marker=marker)
    axis.set(yscale="log", xlabel=label)
    low, high = axis.get_ylim()
    ticks = [tick for tick in (0.25, 0.5, 0.7, 1, 1.5, 2, 3, 4, 6, 8) if low <= tick <= high]
    axis.set_yticks(ticks, [str(tick) for tick in ticks])
    axis.set_yticks([], minor=True)
    log_axis(axis, frame[x])
    axis.legend(fontsize=7)


def score_growth(numbers: NumbersByModel) -> Figure:
    """Efficacy, generalization and specificity against batch size and length of the sequence."""
    metrics = {"efficacy": "-", "generalization": "--", "specificity": ":"}
    with style():
        figure, axes = panels(numbers, 2, 3.0, sharey=True)
        for column, found in enumerate(numbers.values()):
            for row, (name, label) in enumerate((("batch", "edits in one batch"), ("sequence", "edits made so far"))):
                scores = table(found, f"scores_by_{name}")
                for editor, colour in EDITOR_COLOURS.items():
                    for metric, line in metrics.items():
                        chosen = scores[(scores.editor == editor) & (scores.metric == metric)]
                        chosen = chosen.assign(low=chosen.low.clip(lower=0), high=chosen.high.clip(upper=100))
                        band(
                            axes[row, column],
                            chosen,
                            "edits",
                            f"{entry(editor).label}, {metric}",
                            color=colour,
                            linestyle=line,
                            marker="o",
                            markersize=3,
                        )
                axes[row, column].set(xlabel=label, ylim=(0, 102))
                log_axis(axes[row, column], scores.edits)
        for axis in axes[:, 0]:
            axis.set_ylabel("%")
        axes[0, -1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
        return figure


#: The kinds of choices of layers, from top to bottom, with colour and marker.
_FAMILIES = {
    "BLUE: first and last layer": (DIRECT, "o"),
    "all layers, direct": (VERMILION, "D"),
    PAIR: (SKY, "o"),
    SINGLE: (GREEN, "^"),
    SHARED: (PURPLE, "v"),
    "MEMIT": (DISTRIBUTED, "s"),
}


def ablation(numbers: NumbersByModel) -> Figure:
    """The ablation: each choice of layers less BLUE, at equal specificity, with 95 % intervals; hollow where BLUE's
    specificity is not reached. A model without one has an empty panel."""
    made = [found for found in numbers.values() if "ablation_best" in found]
    first = table(made[0], "ablation_best") if made else pd.DataFrame(columns=["choice", "family"])
    rank = {family: place for place, family in enumerate(_FAMILIES)}
    choices = first.sort_values("choice").sort_values("family", key=lambda column: column.map(rank), kind="stable")
    with style():
        figure, axes = panels(numbers, 1, 0.24 * len(choices) + 1.4, width=3.6, sharey=True, sharex=True)
        for axis, found in zip(axes[0], numbers.values(), strict=True):
            if "ablation_best" not in found:
                axis.text(0.5, 0.5, "not run", transform=axis.transAxes, ha="center")
                continue
            best = table(found, "ablation_best").set_index("choice")
            gaps = table(found, "ablation_differences").set_index("choice")
            axis.axvline(0, color="black", linewidth=1)
            for place, choice in enumerate(choices.choice):
                gap, (colour, marker) = gaps.loc[choice], _FAMILIES[best.family[choice]]
                face = colour if best.reached[choice] else "white"
                axis.plot([gap.low, gap.high], [place, place], color=colour, linewidth=1.3)
                axis.plot(gap["mean"], place, marker, color=colour, markerfacecolor=face)
            axis.set_yticks(range(len(choices)), list(choices.choice), fontsize=8)
            axis.set(xlabel="success less BLUE's, points", ylim=(len(choices) - 0.5, -0.5))
        handles = [
            Line2D([], [], color=colour, marker=marker, linestyle="none", label=family)
            for family, (colour, marker) in _FAMILIES.items()
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=8)
        return figure
