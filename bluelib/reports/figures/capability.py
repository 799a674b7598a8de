"""Figures of ``07_general_capability``."""

from __future__ import annotations

import math
from collections.abc import Sequence

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ...editing.catalogue import entry
from ...studies.capability import MEAN
from ..plots import style
from .common import NumbersByModel, band, integers, panels, table, title


def mean_capability(numbers: NumbersByModel) -> Figure:
    """The mean accuracy over the tasks along the sequence of edits, a line per editor."""
    with style():
        figure, axes = panels(numbers, 1, 3.2, sharey=True)
        for axis, found in zip(axes[0], numbers.values(), strict=True):
            scores = table(found, "scores")
            _by_editor(axis, scores[scores.task == MEAN])
            axis.set(xlabel="edits made")
        axes[0, 0].set_ylabel("mean accuracy\nover the tasks (%)")
        axes[0, -1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
        return figure


def task_capability(numbers: NumbersByModel) -> Figure:
    """The accuracy of the three tasks that lose most along the edits, a line per editor; dotted: guessing."""
    return _task_panels(numbers, _by_loss(numbers)[:SHOWN])


def further_tasks(numbers: NumbersByModel) -> Figure:
    """:func:`task_capability` for the other tasks, or, if there are no others, for the last one."""
    tasks = _by_loss(numbers)
    return _task_panels(numbers, tasks[SHOWN:] or tasks[-1:])


#: How many tasks :func:`task_capability` shows.
SHOWN = 3


def _by_loss(numbers: NumbersByModel) -> list[str]:
    """The tasks, sorted by the largest loss of any editor on any model, the largest first."""
    loss: dict[str, float] = {}
    for found in numbers.values():
        scores = table(found, "scores")
        for (task, _), rows in scores[scores.task != MEAN].groupby(["task", "editor"], sort=False):
            along = rows.sort_values("edits")["mean"]
            loss[task] = max(loss.get(task, -math.inf), along.iloc[0] - along.iloc[-1])
    return sorted(loss, key=lambda task: -loss[task])


def _task_panels(numbers: NumbersByModel, tasks: Sequence[str]) -> Figure:
    """Rows are tasks and columns are models; if there is only one model, its tasks are laid out in rows of three."""
    shown = [(task, model) for task in tasks for model in numbers]
    columns = len(numbers) if len(numbers) > 1 else min(3, len(tasks))
    rows = math.ceil(len(shown) / columns)
    with style():
        figure, axes = plt.subplots(
            rows,
            columns,
            figsize=(3.0 * columns + 1.6, 1.9 * rows + 0.5),
            squeeze=False,
            layout="constrained",
            sharex="col",
        )
        for axis, (task, model) in zip(axes.flat, shown, strict=False):
            found = numbers[model]
            scores, chance = table(found, "scores"), table(found, "chance").set_index("task").chance
            _by_editor(axis, scores[scores.task == task])
            axis.axhline(chance[task], color="black", linewidth=0.8, linestyle=":", label="guessing")
            axis.set_title(f"{task}\n{title(model, found)}", fontsize=9)
            axis.set_ylim(0, 104)
        for axis in axes.flat[len(shown) :]:
            axis.set_axis_off()
        for axis in axes[-1]:
            axis.set_xlabel("edits made")
        for axis in axes[:, 0]:
            axis.set_ylabel("accuracy (%)")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right center", fontsize=8)
        return figure


def _by_editor(axis: Axes, scores: pd.DataFrame) -> None:
    """A line per editor in its family's colour; variants have circles and the line style of their kind."""
    for editor, rows in scores.groupby("editor", sort=False):
        method = entry(editor)
        line, marker = method.line, "o" if method.variant else "s"
        band(axis, rows, "edits", method.label, color=method.colour, linestyle=line, marker=marker, markersize=4)
    integers(axis, scores.edits)
