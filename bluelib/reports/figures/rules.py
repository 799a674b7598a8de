"""Figures of ``10_methods_since``."""

from __future__ import annotations

from matplotlib.figure import Figure

from ...editing.catalogue import entry, in_order, labelled
from ...io.palette import GREY
from ..plots import style
from .common import NumbersByModel, band, integers, panels, table

_LABELS = {
    "cosine": "cosine with $R^{l*}$",
    "length": r"length, $\Vert R\Vert/\Vert R^{l*}\Vert$",
    "contribution": "contribution $s$",
}


def which_residual(numbers: NumbersByModel) -> Figure:
    """What each rule gives a layer: its direction and length beside the direct residual's, and what it contributes."""
    with style():
        figure, axes = panels(numbers, 3, 2.4, sharex="col", sharey="row")
        for column, found in enumerate(numbers.values()):
            compared = table(found, "compared")
            for row, (measure, quantity) in enumerate(_LABELS.items()):
                axis, rows = axes[row, column], compared[compared.measure == measure]
                for label in in_order({entry(name).label for name in rows.editor}):
                    shown = labelled(label)
                    how = {"color": shown.colour, "marker": shown.marker, "linestyle": shown.line, **shown.face}
                    band(axis, rows[rows.editor == shown.name], "layer", label, **how)
                axis.axhline(1, color=GREY, linewidth=0.8, linestyle=":")
                axis.set_ylim(0, 1.15 if measure != "length" else None)
                if not column:
                    axis.set_ylabel(quantity)
            axes[-1, column].set(xlabel="layer")
            integers(axes[-1, column], compared.layer)
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8)
        return figure


def one_time(numbers: NumbersByModel) -> Figure:
    """How far a sequence of batches ends from one batch of the same keys and targets, with and without history."""
    with style():
        figure, axes = panels(numbers, 1, 2.8, sharey=True)
        for axis, found in zip(axes[0], numbers.values(), strict=True):
            rows = table(found, "once")
            for history, group in rows.groupby("history"):
                label, marker, face = (
                    ("earlier keys remembered", "o", "black") if history else ("forgotten", "s", "white")
                )
                batches = group.edits.max() / group.edits
                axis.plot(
                    batches, 100 * group.distance, marker=marker, color="black", markerfacecolor=face, label=label
                )
            axis.set(xscale="log", xlabel="number of batches", ylim=(-0.5, None))
            ticks = sorted(set((rows.edits.max() / rows.edits).astype(int)))
            axis.set_xticks(ticks, [str(tick) for tick in ticks])
            axis.set_xticks([], minor=True)
        axes[0, 0].set_ylabel("distance from one batch\n(% of its update)")
        axes[0, 0].legend(fontsize=8, title="earlier keys")
        return figure
