"""Figures of the analysis notebooks: one column of panels per model, from the numbers that the notebooks write.

Every function takes ``numbers``, a mapping of model name to the notebook's JSON content, so that a notebook draws its
own model and :func:`bluelib.reports.figures.draw_analysis` all of them side by side by the same code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpecBase
from scipy import stats

from ..editing.catalogue import entry
from ..editing.theory import BOUNDS
from ..io.formats import read_json
from ..io.palette import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILION
from ..metrics.editing import TEACHER_FORCED
from ..studies.capability import MEAN
from ..studies.locate import ROLES
from .plots import save, style
from .published import counterpart, published

Numbers = Mapping[str, Mapping[str, Any]]

DISTRIBUTED, DIRECT = ORANGE, BLUE
RESIDUAL_COLOURS = {"distributed": DISTRIBUTED, "direct": DIRECT}
EDITOR_COLOURS = {"memit": DISTRIBUTED, "memit_blue": DIRECT}
BEFORE, AFTER = SKY, VERMILION


def table(numbers: Mapping[str, Any], name: str) -> pd.DataFrame:
    """One of a notebook's tables as a frame."""
    return pd.DataFrame(numbers[name])


def _panels(numbers: Numbers, rows: int, height: float, width: float = 4.0, **how: Any) -> tuple[Figure, np.ndarray]:
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
        axis.set_title(f"{model} ({found['provenance']['scale']} scale)")
    return figure, axes


def _band(axis: Axes, frame: pd.DataFrame, x: str, label: str | None, **how: Any) -> None:
    """A line with its 95 % interval."""
    frame = frame.sort_values(x)
    (line,) = axis.plot(frame[x], frame["mean"], label=label, **how)
    axis.fill_between(frame[x], frame["low"], frame["high"], color=line.get_color(), alpha=0.2, linewidth=0)


def _bars(axis: Axes, x: Any, rows: pd.DataFrame, **how: Any) -> None:
    """Bars with their 95 % intervals."""
    axis.bar(x, rows["mean"], **how)
    ends = [rows["mean"] - rows["low"], rows["high"] - rows["mean"]]
    axis.errorbar(x, rows["mean"], ends, fmt="none", ecolor="black", capsize=3)


def _log_axis(axis: Axes, values: Sequence[int]) -> None:
    """A logarithmic x axis with the values themselves as ticks, as far as they have room."""
    ticks = sorted(set(values))
    room = math.log(ticks[-1] / ticks[0]) / 12
    kept = [ticks[-1]]
    for tick in reversed(ticks):
        if math.log(kept[-1] / tick) > room:
            kept.append(tick)
    axis.set(xscale="log")
    axis.set_xticks(kept, [str(tick) for tick in kept])
    axis.set_xticks([], minor=True)


def _integers(axis: Axes, values: Sequence[int]) -> None:
    axis.set_xticks(sorted(set(values)))


def causal_traces(numbers: Numbers) -> Figure:
    """Mean indirect effects, token role × layer, of hidden states, MLP and attention outputs."""
    kinds = ("hidden", "mlp", "attention")
    with style():
        figure, axes = _panels(numbers, len(kinds), 2.3)
        every = pd.concat([table(found, "effects") for found in numbers.values()])
        for column, found in enumerate(numbers.values()):
            effects = table(found, "effects")
            for row, kind in enumerate(kinds):
                grid = effects[effects.kind == kind].pivot(index="role", columns="layer", values="mean")
                grid = grid.reindex([role for role in ROLES if role in grid.index])
                axis, last = axes[row, column], column == len(numbers) - 1
                scale = every[every.kind == kind]["mean"]  # the same for all models
                sns.heatmap(
                    grid,
                    ax=axis,
                    cmap="cividis",
                    vmin=min(0, scale.min()),
                    vmax=scale.max(),
                    cbar=last,
                    cbar_kws={"label": "indirect effect"} if last else None,
                )
                axis.set(xlabel="layer", ylabel={"mlp": "MLP"}.get(kind, kind) if column == 0 else "")
                axis.tick_params(axis="y", rotation=0)
                if column:
                    axis.set_yticklabels([])
        return figure


def severed_paths(numbers: Numbers) -> Figure:
    """Effect of the hidden state at the subject's last token, and what is left of it when later parts are severed."""
    styles = {
        "hidden": ("all paths", "black", "o"),
        "hidden, MLPs severed": ("later MLPs severed", DISTRIBUTED, "s"),
        "hidden, attention severed": ("later attention severed", DIRECT, "^"),
    }
    with style():
        figure, axes = _panels(numbers, 1, 3.2, sharey=True)
        for axis, found in zip(axes[0], numbers.values(), strict=True):
            effects = table(found, "effects")
            effects = effects[effects.role == "last subject"]
            for kind, (label, colour, marker) in styles.items():
                _band(axis, effects[effects.kind == kind], "layer", label, color=colour, marker=marker)
            critical = found["layers"]["configured"]
            axis.axvspan(
                critical[0] - 0.4,
                critical[-1] + 0.4,
                color="grey",
                alpha=0.15,
                linewidth=0,
                label="critical layers (configured)",
            )
            axis.set(xlabel="layer whose hidden state is restored")
            _integers(axis, effects.layer)
        axes[0, 0].set_ylabel("indirect effect")
        axes[0, -1].legend(fontsize=8)
        return figure


def error_and_bounds(numbers: Numbers) -> Figure:
    """The measured error against each bound, as a ratio, by distance: 1 means attained, below 1 never."""
    names = {"residual": "residual", "shared": "shared", "tight": "tight", "paper": "paper (Theorem 4.1)"}
    markers = dict(zip(BOUNDS, "o^sD", strict=True))
    colours = dict(zip(BOUNDS, ("black", GREEN, DIRECT, DISTRIBUTED), strict=True))
    with style():
        figure, axes = _panels(numbers, 1, 3.4, sharey=True)
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
            _integers(axis, ratios.distance)
        axes[0, 0].set_ylabel("bound / measured error\n(median, range)")
        axes[0, -1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
        return figure


def error_terms(numbers: Numbers) -> Figure:
    """Shares of ‖E‖²: what the theorem's two terms give and how much of them cancels; and direction against amount."""
    parts = (
        {
            "deviation": ("‖DQ‖²", DIRECT),
            "division": ("‖(1 − 1/c) R^L Q‖²", DISTRIBUTED),
            "cross": ("cross term", GREY),
        },
        {"direction": ("direction", GREEN), "amount": ("amount", VERMILION)},
    )
    with style():
        figure, axes = _panels(numbers, 2, 2.9, sharey="row")
        for column, found in enumerate(numbers.values()):
            terms = table(found, "terms").sort_values("distance")
            for axis, group in zip(axes[:, column], parts, strict=True):
                for number, (part, (label, colour)) in enumerate(group.items()):
                    rows, at = terms[terms.term == part], 0.27 * (number - (len(group) - 1) / 2)
                    _bars(axis, rows.distance + at, rows, width=0.25, color=colour, label=label)
                axis.axhline(1, color="black", linewidth=0.8, linestyle=":")
                _integers(axis, terms.distance)
            axes[1, column].set(xlabel="distribution distance L − l")
        for row in (0, 1):
            axes[row, 0].set_ylabel("share of ‖E‖²")
            axes[row, 0].legend(fontsize=8)
        return figure


def residual_comparison(numbers: Numbers) -> Figure:
    """Contribution, cosine and deviation of the residuals, by layer."""
    with style():
        figure, axes = _panels(numbers, 3, 2.5, sharex="col")
        for column, found in enumerate(numbers.values()):
            contribution, compared = table(found, "contributions"), table(found, "compared")
            for kind, colour in RESIDUAL_COLOURS.items():
                _band(
                    axes[0, column],
                    contribution[contribution.residual == kind],
                    "layer",
                    kind,
                    color=colour,
                    marker="o" if kind == "direct" else "s",
                )
            axes[0, column].set(ylim=(-0.05, 1.05))
            for row, measure in ((1, "cosine"), (2, "deviation")):
                _band(axes[row, column], compared[compared.measure == measure], "layer", None, color=GREEN, marker="o")
            axes[1, column].set(ylim=(0, 1.05))
            axes[2, column].set(xlabel="layer", ylim=(0, None))
            _integers(axes[2, column], compared.layer)
        axes[0, 0].set_ylabel("contribution s")
        axes[1, 0].set_ylabel("cosine of\nR* and R^L")
        axes[2, 0].set_ylabel("‖R* − R^L‖\nper request")
        axes[0, 0].legend(fontsize=8)
        return figure


def residual_picture(numbers: Numbers) -> Figure:
    """Residuals of the first and the last critical layer in their two first principal components."""
    with style():
        figure, axes = _panels(numbers, 1, 3.8)
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
        figure, axes = _panels(numbers, 1, 3.0, sharey=True)
        for axis, (model, found) in zip(axes[0], numbers.items(), strict=True):
            ours = table(found, "steps").sort_values("layer").reset_index(drop=True)
            _bars(axis, ours.index, ours, color=DIRECT, width=0.6, label="ours")
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
        sources.append((f"{model}\n({found['provenance']['scale']} scale)", table(found, "single_layer")))
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


def error_growth(numbers: Numbers) -> Figure:
    """The relative error against distance, and the absolute one against batch size and number of edits."""
    with style():
        figure, axes = _panels(numbers, 3, 2.8)
        for column, found in enumerate(numbers.values()):
            _relative_error(axes[0, column], table(found, "by_distance"))
            for axis, name in zip(axes[1:, column], _GROWTH, strict=True):
                _growth(axis, table(found, f"by_{name}"), found["growth"][name], *_GROWTH[name])
        axes[0, 0].set_ylabel("‖E‖ / ‖R*Q‖")
        axes[1, 0].set_ylabel("relative to n = 1")
        axes[2, 0].set_ylabel("relative to\nthe first batch")
        return figure


def _relative_error(axis: Axes, frame: pd.DataFrame) -> None:
    _band(axis, frame, "distance", "measured", color=DIRECT, marker="o")
    steps = sorted(set(frame.distance))
    divided = [1 - 1 / (step + 1) for step in steps]
    axis.plot(steps, divided, color=GREY, linestyle="--", label="1 − 1/c: the same residual, divided")
    axis.set(xlabel="distribution distance L − l", ylim=(0, None))
    axis.legend(fontsize=7)
    _integers(axis, steps)


def _growth(
    axis: Axes, frame: pd.DataFrame, exponents: Mapping[str, Any], x: str, label: str, measures: Mapping[str, tuple]
) -> None:
    """Each measure relative to its first value, on logarithmic axes, with its fitted exponent in the legend."""
    for measure, (name, colour, marker) in measures.items():
        rows = frame[frame.measure == measure].sort_values(x)
        relative = rows.assign(**{end: rows[end] / rows["mean"].iloc[0] for end in ("mean", "low", "high")})
        fit = exponents[measure]
        text = f"{name} ∝ n^{fit['mean']:.2f} [{fit['low']:.2f}, {fit['high']:.2f}]"
        _band(axis, relative, x, text, color=colour, marker=marker)
    axis.set(yscale="log", xlabel=label)
    low, high = axis.get_ylim()
    ticks = [tick for tick in (0.25, 0.5, 0.7, 1, 1.5, 2, 3, 4, 6, 8) if low <= tick <= high]
    axis.set_yticks(ticks, [str(tick) for tick in ticks])
    axis.set_yticks([], minor=True)
    _log_axis(axis, frame[x])
    axis.legend(fontsize=7)


def score_growth(numbers: Numbers) -> Figure:
    """Efficacy, generalization and specificity against batch size and length of the sequence."""
    metrics = {"efficacy": "-", "generalization": "--", "specificity": ":"}
    with style():
        figure, axes = _panels(numbers, 2, 3.0, sharey=True)
        for column, found in enumerate(numbers.values()):
            for row, (name, label) in enumerate((("batch", "edits in one batch"), ("sequence", "edits made so far"))):
                scores = table(found, f"scores_by_{name}")
                for editor, colour in EDITOR_COLOURS.items():
                    for metric, line in metrics.items():
                        chosen = scores[(scores.editor == editor) & (scores.metric == metric)]
                        _band(
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
                _log_axis(axes[row, column], scores.edits)
        for axis in axes[:, 0]:
            axis.set_ylabel("%")
        axes[0, -1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
        return figure


def pareto(numbers: Numbers) -> Figure:
    """The ablation: efficacy and generalization against specificity as λ varies, one line per choice of layers."""
    with style():
        figure, axes = _panels(numbers, 2, 3.4, width=4.6)
        for column, found in enumerate(numbers.values()):
            scores = table(found, "ablation")
            for row, metric in enumerate(("efficacy", "generalization")):
                axis = axes[row, column]
                for family, rows in scores.groupby("family", sort=False):
                    colour, marker, alpha = _FAMILIES[family]
                    for name, line in rows.groupby("choice", sort=False):
                        line = line.sort_values("mom2_update_weight")
                        axis.plot(line.specificity, line[metric], color=colour, linewidth=0.9, alpha=alpha)
                        sizes = [12 + 16 * i for i in range(len(line))]
                        axis.scatter(
                            line.specificity,
                            line[metric],
                            color=colour,
                            marker=marker,
                            s=sizes,
                            alpha=alpha,
                            label=family if name == rows.choice.iloc[0] else None,
                            zorder=3 if alpha == 1 else 2,
                        )
                axis.set(
                    xlabel="specificity (%); larger marks: larger λ", ylabel=f"{metric} (%)" if column == 0 else ""
                )
        axes[0, -1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
        return figure


_FAMILIES: dict[str, tuple[str, str, float]] = {
    "MEMIT": (DISTRIBUTED, "s", 1.0),
    "BLUE: first and last layer": (DIRECT, "o", 1.0),
    "another pair, direct": (SKY, "o", 0.45),
    "one layer, direct": (GREEN, "^", 0.8),
    "all layers, direct": (VERMILION, "D", 1.0),
    "distributed, BLUE's settings": (PURPLE, "v", 1.0),
}


def mean_capability(numbers: Numbers) -> Figure:
    """The mean accuracy over the tasks along the sequence of edits, a line per editor."""
    with style():
        figure, axes = _panels(numbers, 1, 3.2, sharey=True)
        for axis, found in zip(axes[0], numbers.values(), strict=True):
            scores = table(found, "scores")
            _by_editor(axis, scores[scores.task == MEAN])
            axis.set(xlabel="edits made")
        axes[0, 0].set_ylabel("mean accuracy\nover the tasks (%)")
        axes[0, -1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
        return figure


def task_capability(numbers: Numbers) -> Figure:
    """The accuracy of each task along the sequence of edits, a line per editor; dotted: guessing.

    Rows are tasks and columns models; the tasks of one model alone stand in rows of three.
    """
    tasks = [task for task in table(next(iter(numbers.values())), "scores").task.unique() if task != MEAN]
    panels = [(task, model) for task in tasks for model in numbers]
    columns = len(numbers) if len(numbers) > 1 else min(3, len(tasks))
    rows = math.ceil(len(panels) / columns)
    with style():
        figure, axes = plt.subplots(
            rows,
            columns,
            figsize=(3.0 * columns + 1.6, 1.9 * rows + 0.5),
            squeeze=False,
            layout="constrained",
            sharex="col",
        )
        for axis, (task, model) in zip(axes.flat, panels, strict=False):
            found = numbers[model]
            scores, chance = table(found, "scores"), table(found, "chance").set_index("task").chance
            _by_editor(axis, scores[scores.task == task])
            axis.axhline(chance[task], color="black", linewidth=0.8, linestyle=":", label="guessing")
            axis.set_title(f"{task}\n{model} ({found['provenance']['scale']} scale)", fontsize=9)
            axis.set_ylim(0, 104)
        for axis in axes.flat[len(panels) :]:
            axis.set_axis_off()
        for axis in axes[-1]:
            axis.set_xlabel("edits made")
        for axis in axes[:, 0]:
            axis.set_ylabel("accuracy (%)")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right center", fontsize=8)
        return figure


def _by_editor(axis: Axes, scores: pd.DataFrame) -> None:
    """A line per editor in its family's colour, BLUE variants with circles and a full line."""
    for editor, rows in scores.groupby("editor", sort=False):
        method = entry(editor).label
        line, marker = ("-", "o") if entry(editor).variant else ("--", "s")
        _band(axis, rows, "edits", method, color=entry(editor).colour, linestyle=line, marker=marker, markersize=4)
    _integers(axis, scores.edits)


def hidden_states(numbers: Numbers) -> Figure:
    """States of known facts before and after, in the plane, with both marginals: models in rows, editors in columns.

    Places are given and not solved for: the solution of so many nested panels differs in its last digits from one
    process to another, and with it the file.
    """
    columns = max(len(_editors(found)) for found in numbers.values())
    with style():
        figure = plt.figure(figsize=(3.3 * columns, 3.6 * len(numbers)))
        blocks = figure.add_gridspec(len(numbers), columns, hspace=0.42, wspace=0.18)
        for row, (model, found) in enumerate(numbers.items()):
            points = table(found, "picture")
            limits = {axis: (points[axis].min(), points[axis].max()) for axis in "xy"}
            limits = {axis: (a - 0.08 * (b - a), b + 0.08 * (b - a)) for axis, (a, b) in limits.items()}
            energy = table(found, "shift").query("measure == 'energy'").set_index("editor")["mean"]
            x, y = found["picture_axes"]
            for column, editor in enumerate(_editors(found)):
                block = blocks[row, column].subgridspec(
                    2, 2, width_ratios=[4, 1], height_ratios=[1, 4], hspace=0.04, wspace=0.04
                )
                top, middle = _joint(block, points, editor, limits)
                top.set_title(f"{entry(editor).label}\nenergy distance {_short(energy[editor])}", fontsize=9)
                whose = f"{model} ({found['provenance']['scale']} scale)\n{y}"
                middle.set(xlabel=x, ylabel=whose if column == 0 else "")
        handles = [plt.Line2D([], [], color=colour, marker="o", linestyle="") for colour in (BEFORE, AFTER)]
        figure.legend(handles, ["before", "after"], loc="lower center", bbox_to_anchor=(0.5, 0.03), ncols=2)
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


def _editors(numbers: Mapping[str, Any]) -> list[str]:
    return list(numbers["parameters"]["editors"])


def _short(value: float) -> str:
    """Two significant digits, without an exponent."""
    return f"{value:.{max(0, 1 - math.floor(math.log10(abs(value))))}f}" if value else "0"


def _measure_panels(
    axes: np.ndarray, numbers: Numbers, labels: Mapping[str, str]
) -> Iterator[tuple[Axes, Mapping[str, Any], str]]:
    """Each panel with its model's numbers and its measure: rows are measures, columns models, along x are editors."""
    for column, found in zip(axes.T, numbers.values(), strict=True):
        for axis, measure in zip(column, labels, strict=True):
            yield axis, found, measure
        _editor_ticks(column[-1], _editors(found))
    for axis, label in zip(axes[:, 0], labels.values(), strict=True):
        axis.set_ylabel(label)


def shift_measures(numbers: Numbers) -> Figure:
    """Each measure per editor with its interval, and what its two nulls reach."""
    labels = {
        "displacement": "displacement\nof a fact",
        "mean_shift": "mean shift",
        "energy": "energy distance",
        "recalled": "still recalled (%)",
    }
    with style():
        figure, axes = _panels(numbers, len(labels), 2.1, sharex="col")
        for axis, found, measure in _measure_panels(axes, numbers, labels):
            shift, editors = table(found, "shift"), _editors(found)
            rows = shift[shift.measure == measure].set_index("editor").loc[editors]
            _points(axis, rows, editors)
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


def _points(axis: Axes, rows: pd.DataFrame, editors: Sequence[str], shift: float = 0.0, marker: str = "o") -> None:
    """A point with its 95 % interval per editor; those of BLUE variants are filled."""
    for x, editor in enumerate(editors):
        row, colour = rows.loc[editor], entry(editor).colour
        ends = [[row["mean"] - row.low], [row.high - row["mean"]]]
        face = colour if bool(entry(editor).variant) else "white"
        axis.errorbar([x + shift], [row["mean"]], ends, fmt=marker, color=colour, markerfacecolor=face, capsize=3)
    axis.set(xlim=(-0.6, len(editors) - 0.4))


def _editor_ticks(axis: Axes, editors: Sequence[str]) -> None:
    axis.set_xticks(range(len(editors)), [entry(editor).label for editor in editors], rotation=30, ha="right")


def batch_scores(numbers: Numbers) -> Figure:
    """Efficacy, generalization and specificity of one batch against its size."""
    with style():
        figure, axes = _panels(numbers, len(TEACHER_FORCED), 2.4, sharex="col", sharey="row")
        for column, found in enumerate(numbers.values()):
            scores = table(found, "batch")
            for axis, metric in zip(axes[:, column], TEACHER_FORCED, strict=True):
                for editor in found["parameters"]["batch_editors"]:
                    with_blue, rows = bool(entry(editor).variant), scores[scores.metric == metric]
                    _band(
                        axis,
                        rows[rows.editor == editor],
                        "edits",
                        entry(editor).label,
                        color=entry(editor).colour,
                        linestyle="-" if with_blue else "--",
                        marker="o",
                        markersize=4,
                        markerfacecolor=entry(editor).colour if with_blue else "white",
                    )
                axis.set_ylabel(f"{metric} (%)" if column == 0 else "")
            _log_axis(axes[-1, column], scores.edits)
            axes[-1, column].set(xlabel="edits in one batch")
        for axis in axes[:, 0]:  # now that all columns have had their say
            axis.set(ylim=(None, 101))
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8)
        return figure


def long_form_scores(numbers: Numbers) -> Figure:
    """Long-form targets: each measure after the question and after the rephrased one, and before editing."""
    labels = {
        "rouge_l": "ROUGE-L (%)",
        "token_recall": "token recall (%)",
        "object_recall": "object recall (%)",
        "whole": "whole text (%)",
    }
    with style():
        figure, axes = _panels(numbers, len(labels), 2.1, sharex="col", sharey="row")
        for axis, found, metric in _measure_panels(axes, numbers, labels):
            scores, editors = table(found, "long_form"), _editors(found)
            rows = scores[scores.metric == metric].set_index(["prompt", "editor"])
            for prompt, shift, marker in (("question", -0.12, "o"), ("rephrased", 0.12, "^")):
                _points(axis, rows.loc[prompt], editors, shift, marker)
            axis.axhline(rows["mean"]["question", "before"], color="black", linestyle=":", linewidth=1)
            axis.set(ylim=(-3, 103))
        handles = [plt.Line2D([], [], color=GREY, marker=marker, linestyle="") for marker in "o^"]
        handles.append(plt.Line2D([], [], color="black", linestyle=":"))
        names = ["the question", "the rephrased question", "before editing, the question"]
        figure.legend(handles, names, loc="outside lower center", ncols=3, fontsize=8)
        return figure


_PHASES = {"targets": DISTRIBUTED, "keys": DIRECT, "solve": GREEN, "remember": PURPLE}


def edit_times(numbers: Numbers) -> Figure:
    """Seconds per 100 edits by phase, and how many times as long BLUE takes."""
    with style():
        figure, axes = _panels(numbers, 1, 3.2)
        for column, (axis, found) in enumerate(zip(axes[0], numbers.values(), strict=True)):
            rows, ratios = table(found, "seconds"), table(found, "time_ratios").set_index("blue")
            editors = list(dict.fromkeys(rows.editor))
            wide = rows.pivot(index="editor", columns="phase", values="mean").reindex(editors).fillna(0)
            phases = [phase for phase in _PHASES if phase in wide] + [p for p in wide if p not in _PHASES]
            low = np.zeros(len(editors))
            for phase in phases:
                axis.bar(range(len(editors)), wide[phase], bottom=low, color=_PHASES.get(phase, GREY), label=phase)
                low += wide[phase].to_numpy()
            for x, editor in enumerate(editors):
                if editor in ratios.index:
                    axis.annotate(f"×{ratios['mean'][editor]:.1f}", (x, low[x]), ha="center", va="bottom", fontsize=8)
            axis.set(ylim=(0, 1.12 * low.max()))
            origin = found["provenance"]
            axis.set_xlabel(f"{origin['device']}, {origin['threads']} thread(s)", fontsize=8)
            axis.set_ylabel("seconds per 100 edits" if column == 0 else "")
            _editor_ticks(axis, editors)
        axes[0, -1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
        return figure


#: By notebook, its figures: file name and the function that draws it.
FIGURES: dict[str, dict[str, Callable[[Numbers], Figure]]] = {
    "01_locate": {"01_causal_traces": causal_traces, "01_severed_paths": severed_paths},
    "02_weight_shift_theory": {"02_bounds": error_and_bounds, "02_error_terms": error_terms},
    "03_residuals": {
        "03_residuals": residual_comparison,
        "03_picture": residual_picture,
        "03_steps_left": steps_left,
        "03_single_layer": radar,
    },
    "04_error_growth": {"04_error_growth": error_growth, "04_score_growth": score_growth, "04_ablation": pareto},
    "06_general_capability": {"06_mean_capability": mean_capability, "06_task_capability": task_capability},
    "07_hidden_state_shift": {"07_hidden_states": hidden_states, "07_shift": shift_measures},
    "08_long_form_and_batch": {
        "08_batch": batch_scores,
        "08_long_form": long_form_scores,
        "08_seconds": edit_times,
    },
}


def draw_analysis(notebook: str, numbers: Mapping[str, Path], folder: Path) -> list[Path]:
    """Draw a notebook's figures into ``folder`` from the files of its numbers by model, the models side by side."""
    contents = {model: read_json(path) for model, path in numbers.items()}
    drawn = []
    for name, draw in FIGURES[notebook].items():
        stem = folder / name
        figure = draw(contents)
        save(figure, stem)
        plt.close(figure)
        drawn += [stem.with_suffix(extension) for extension in (".png", ".svg")]
    return drawn
