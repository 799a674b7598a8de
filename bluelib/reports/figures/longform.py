"""Figures of ``09_long_texts_and_batches``."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from ...editing.catalogue import entry
from ...io.palette import GREEN, GREY, PURPLE
from ...metrics.editing import TEACHER_FORCED
from ..plots import style
from .common import (
    DIRECT,
    DISTRIBUTED,
    NumbersByModel,
    band,
    editor_points,
    editor_ticks,
    editors_of,
    log_axis,
    measure_panels,
    panels,
    table,
)


def batch_scores(numbers: NumbersByModel) -> Figure:
    """Efficacy, generalization and specificity of one batch against its size."""
    with style():
        figure, axes = panels(numbers, len(TEACHER_FORCED), 2.4, sharex="col", sharey="row")
        for column, found in enumerate(numbers.values()):
            scores = table(found, "batch")
            for axis, metric in zip(axes[:, column], TEACHER_FORCED, strict=True):
                for editor in found["parameters"]["batch_editors"]:
                    method, rows = entry(editor), scores[scores.metric == metric]
                    band(
                        axis,
                        rows[rows.editor == editor],
                        "edits",
                        method.label,
                        color=method.colour,
                        linestyle=method.line,
                        marker="o",
                        markersize=4,
                        **method.face,
                    )
                axis.set_ylabel(f"{metric} (%)" if column == 0 else "")
            log_axis(axes[-1, column], scores.edits)
            axes[-1, column].set(xlabel="edits in one batch")
        for axis in axes[:, 0]:  # only now: the columns share this axis
            axis.set(ylim=(None, 101))
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8)
        return figure


def long_form_scores(numbers: NumbersByModel) -> Figure:
    """Long-form targets: each measure after the question and after the rephrased one, and before editing."""
    labels = {
        "rouge_l": "ROUGE-L (%)",
        "token_recall": "token recall (%)",
        "object_recall": "object recall (%)",
        "whole": "whole text (%)",
    }
    with style():
        figure, axes = panels(numbers, len(labels), 2.1, sharex="col", sharey="row")
        for axis, found, metric in measure_panels(axes, numbers, labels):
            scores, editors = table(found, "long_form"), editors_of(found)
            rows = scores[scores.metric == metric].set_index(["prompt", "editor"])
            for prompt, shift, marker in (("question", -0.12, "o"), ("rephrased", 0.12, "^")):
                if prompt in rows.index:  # a dataset may have no paraphrases, or no object beside the text
                    editor_points(axis, rows.loc[prompt], editors, shift, marker)
            if "question" in rows.index:
                axis.axhline(rows["mean"]["question", "before"], color="black", linestyle=":", linewidth=1)
            axis.set(ylim=(-3, 103))
        handles = [plt.Line2D([], [], color=GREY, marker=marker, linestyle="") for marker in "o^"]
        handles.append(plt.Line2D([], [], color="black", linestyle=":"))
        names = ["the question", "the rephrased question", "before editing, the question"]
        figure.legend(handles, names, loc="outside lower center", ncols=3, fontsize=8)
        return figure


_PHASES = {"targets": DISTRIBUTED, "keys": DIRECT, "solve": GREEN, "remember": PURPLE}


def edit_times(numbers: NumbersByModel) -> Figure:
    """Seconds per 100 edits by phase, and how many times as long BLUE takes."""
    with style():
        figure, axes = panels(numbers, 1, 3.2)
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
            editor_ticks(axis, editors)
        axes[0, -1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
        return figure
