"""Figures of runs along a sequence (:mod:`bluelib.studies.follow`): how far a method gets, what an option trades."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ...editing.catalogue import Entry, entry, in_order, labelled
from ...io.palette import GREY
from ...io.paths import plain
from ...metrics.editing import editing_scores
from ...metrics.intervals import interval
from ...models.known import scale_of, short_label
from ...studies.follow import followed
from ..plots import keep, style
from ..published import benchmark
from .common import log_axis

#: The label of each panel of :func:`lengths`, by the column of the frame that it shows.
PANELS = {
    "editing": "efficacy and\ngeneralization (%)",
    "specificity": "specificity (%)",
    "elsewhere": "moved elsewhere\n($D_{KL}$, nats)",
    "weight_change": r"largest $\Vert\Delta W\Vert/\Vert W\Vert$",
}


def with_editing(frame: pd.DataFrame) -> pd.DataFrame:
    """The runs with a further column ``editing``, see :func:`~bluelib.studies.follow.editing`."""
    return frame.assign(editing=[editing_scores(row) for _, row in frame.iterrows()])


def lengths(frame: pd.DataFrame) -> Figure:
    """How editing, preservation and the weights fare as a sequence grows, a column of panels per dataset.

    Args:
        frame: frame of :func:`~bluelib.studies.follow.followed` with runs of one model at the editors' own settings.
            Runs that differ in an option are drawn dotted, with crosses.
    """
    frame = with_editing(frame)
    datasets = list(dict.fromkeys(frame.dataset))
    with style():
        figure, axes = plt.subplots(
            len(PANELS),
            len(datasets),
            figsize=(5.2 * len(datasets) + 1.8, 2.2 * len(PANELS)),
            layout="constrained",
            squeeze=False,
            sharex="col",
        )
        for column, dataset in zip(axes.T, datasets, strict=True):
            chosen = frame[frame.dataset == dataset]
            for label in in_order({entry(name).label for name in chosen.editor}):
                of_editor = chosen[chosen.editor == labelled(label).name].sort_values("length")
                for options in sorted(set(of_editor.options)):
                    rows = of_editor[[one == options for one in of_editor.options]]
                    for axis, what in zip(column, PANELS, strict=True):
                        _line(axis, rows, what, label, options)
            for axis, what in zip(column, PANELS, strict=True):
                axis.set(ylim=(0, 102) if what in ("editing", "specificity") else (0, None))
                log_axis(axis, chosen.length.tolist())
            column[0].set_title(benchmark(dataset))
            column[-1].set_xlabel("edits made so far")
        for axis, label in zip(axes[:, 0], PANELS.values(), strict=True):
            axis.set_ylabel(label)
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right center", fontsize=8)
        figure.suptitle(_title(frame), fontsize=10)
        return figure


def _title(frame: pd.DataFrame) -> str:
    first = frame.iloc[0]
    return (
        f"{short_label(first.model)} ({scale_of(first.model)} scale), batches of "
        f"{first.batch_size};\nup to {frame.n.max()} of the edits so far are scored; bands: 95 % over records"
    )


#: What an option is called in legends and sentences.
SHORT = {"mom2_update_weight": "λ", "l2": "L2"}


def _line(axis: Axes, rows: pd.DataFrame, what: str, label: str, options: tuple[tuple[str, Any], ...] = ()) -> None:
    row = labelled(label)
    style_of = {"color": row.colour, "marker": row.marker, "linestyle": row.line, **row.face}
    if options:
        style_of |= {"marker": "x", "linestyle": ":"}
    label = ", ".join([label, *(f"{SHORT.get(name, name)} = {value}" for name, value in options)])
    if what in ("elsewhere", "weight_change"):
        axis.plot(rows.length, rows[what], label=label, **style_of)
        return
    found = [interval(values, clusters=subjects) for values, subjects in zip(rows[what], rows.subjects, strict=True)]
    axis.plot(rows.length, [one.mean for one in found], label=label, **style_of)
    ends = ([one.low for one in found], [one.high for one in found])
    axis.fill_between(rows.length, *ends, color=row.colour, alpha=0.12, linewidth=0)


def mark_of(row: Entry) -> dict[str, Any]:
    """A method's marker, without a line."""
    return {"color": row.colour, "marker": row.marker, "linestyle": "none", **row.face}


def frontiers(frame: pd.DataFrame, option: str) -> Figure:
    """Editing against specificity as one option of the editors varies: a line per editor, a panel per dataset.

    Args:
        frame: frame of :func:`~bluelib.studies.follow.followed` with runs of one model and one length that differ in
            ``option``.
        option: the option's name.
    """
    frame = with_editing(frame).assign(value=[dict(options)[option] for options in frame.options])
    datasets = list(dict.fromkeys(frame.dataset))
    values = sorted(set(frame.value))
    sizes = dict(zip(values, np.linspace(4, 11, len(values)), strict=True))
    with style():
        figure, axes = plt.subplots(
            1,
            len(datasets),
            figsize=(5.6 * len(datasets) + 1.5, 4.4),
            layout="constrained",
            squeeze=False,
        )
        for axis, dataset in zip(axes.flat, datasets, strict=True):
            chosen = frame[frame.dataset == dataset]
            for label in in_order({entry(name).label for name in chosen.editor}):
                row = labelled(label)
                rows = chosen[chosen.editor == row.name].sort_values("value")
                x, y = rows.specificity.map(np.mean), rows.editing.map(np.mean)
                axis.plot(x, y, color=row.colour, linestyle=row.line, linewidth=1)
                for one, other, value in zip(x, y, rows.value, strict=True):
                    axis.plot(one, other, **mark_of(row), markersize=sizes[value])
            axis.set(title=benchmark(dataset), xlabel="specificity (%)")
        axes[0, 0].set_ylabel("mean of efficacy and generalization (%)")
        used = map(labelled, in_order({entry(name).label for name in frame.editor}))
        handles = [plt.Line2D([], [], **mark_of(row), label=row.label) for row in used]
        grey: dict[str, Any] = {"color": GREY, "marker": "o", "linestyle": "none"}
        handles += [
            plt.Line2D([], [], **grey, markersize=sizes[value], label=f"{SHORT.get(option, option)} = {value:g}")
            for value in values
        ]
        axes[0, -1].legend(handles=handles, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
        first = frame.iloc[0]
        figure.suptitle(
            f"{short_label(first.model)} ({scale_of(first.model)} scale): {first.length} edits in batches of "
            f"{first.batch_size}",
            fontsize=10,
        )
        return figure


def draw_followed(models: Sequence[str], folder: Path, source: Path | None = None) -> list[Path]:
    """Draw the followed runs of these models into ``folder``.

    :func:`lengths` draws the runs that were scored at several lengths. :func:`frontiers` draws those that have several
    values of one option, with a figure for each option.
    """
    frame = followed(source)
    drawn: list[Path] = []
    if frame.empty:
        return drawn
    for model, of_model in frame[frame.model.isin(models)].groupby("model", sort=False):
        several = of_model.groupby(["editor", "options", "edits", "batch_size"]).length.transform("nunique") > 1
        for (edits, size), rows in of_model[several].groupby(["edits", "batch_size"]):
            if any(not options for options in rows.options):
                drawn.append(keep(lengths(rows), folder / f"lengths_{plain(model)}_{edits}x{size}"))
        single = of_model[[len(options) == 1 for options in of_model.options]]
        by_option: Mapping[Any, pd.DataFrame] = dict(
            tuple(single.groupby([single.options.map(lambda options: options[0][0]), "edits", "batch_size"]))
        )
        for (option, edits, size), rows in by_option.items():
            ends = rows[rows.length == rows.edits]
            ends = ends[ends.groupby("dataset").options.transform("nunique") > 1]  # one value alone is no frontier
            if not ends.empty:
                drawn.append(keep(frontiers(ends, option), folder / f"frontier_{plain(model)}_{option}_{edits}x{size}"))
    return drawn
