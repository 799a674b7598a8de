"""Figures, in one style; the same numbers give the same bytes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from ..files import atomic_file
from ..metrics.editing import METRICS
from .published import METHOD

#: Okabe and Ito's palette, safe for colour-blind readers.
ORANGE, SKY, GREEN, YELLOW, BLUE, VERMILION, PURPLE = (
    "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7",
)  # fmt: skip
GREY = "#999999"
#: One colour per method family; BLUE variants are hatched.
_FAMILY = {
    "pre-edited": "#BBBBBB",
    "FT": GREY,
    "MEND": GREY,
    "ROME": GREY,
    "MEMIT": ORANGE,
    "MEMIT (history)": YELLOW,
    "PRUNE": VERMILION,
    "RECT": PURPLE,
    "AlphaEdit": BLUE,
    "PMET": GREEN,
}
COLOURS = {method: _FAMILY[method.removesuffix("_BLUE")] for method in METHOD.values()}
UNITS = {
    "efficacy": "efficacy (%)",
    "generalization": "generalization (%)",
    "specificity": "specificity (%)",
    "fluency": "fluency (bits × 100)",
    "consistency": "consistency (cosine × 100)",
}


@contextmanager
def style() -> Iterator[None]:
    """The project's style: seaborn's white grid, fixed font, no date or random id in the files."""
    settings = {
        "font.family": "DejaVu Sans",
        "svg.hashsalt": "bluelib",
        "svg.fonttype": "path",
        "figure.dpi": 100,
        "savefig.dpi": 150,
        "hatch.linewidth": 1.5,
    }
    with sns.axes_style("whitegrid"), sns.plotting_context("paper", font_scale=1.1), plt.rc_context(settings):
        yield


def save(figure: Figure, stem: Path) -> None:
    """Write ``stem.png`` and ``stem.svg``."""
    for suffix, metadata in ((".png", {"Software": None}), (".svg", {"Date": None})):
        with atomic_file(stem.with_suffix(suffix)) as temporary, style():
            figure.savefig(temporary, bbox_inches="tight", metadata=metadata)


def plot_methods(frame: pd.DataFrame) -> Figure:
    """One panel per metric: a bar per method with its standard error, a diamond for the published figure.

    Args:
        frame: rows of one model and one dataset, see :func:`bluelib.reports.tables.results_frame`.
    """
    metrics = [metric for metric in METRICS if metric in set(frame.metric)]
    first = frame.iloc[0]
    with style():
        n, many = len(metrics), frame.method.nunique() > 6  # many methods: one panel below the other
        shape, size = ((n, 1), (7.5, 1.6 * n + 1.5)) if many else ((1, n), (2.5 * n, 3.6))
        figure, axes = plt.subplots(*shape, figsize=size, layout="constrained", sharex=many, squeeze=False)
        for axis, metric in zip(axes.flat, metrics, strict=True):
            rows = frame[frame.metric == metric].set_index("method")
            methods = sorted(rows.index, key=list(COLOURS).index)
            rows = rows.loc[methods]
            sns.barplot(
                x=methods,
                y=rows["mean"],
                hue=methods,
                palette=COLOURS,
                legend=False,
                ax=axis,
                edgecolor="white",
            )
            for bar, method in zip(axis.patches, methods, strict=True):
                bar.set_hatch("//" if method.endswith("_BLUE") else "")
            x = range(len(methods))
            axis.errorbar(x, rows["mean"], rows["standard_error"], fmt="none", ecolor="black", capsize=3)
            axis.plot(
                x,
                rows["published"],
                "D",
                color="black",
                markersize=5,
                markerfacecolor="white",
                linestyle="none",
            )
            axis.set(title=UNITS[metric], xlabel="", ylabel="")
            axis.tick_params(axis="x", rotation=60)
            for label in axis.get_xticklabels():
                label.set_horizontalalignment("right")
                label.set_rotation_mode("anchor")
        figure.suptitle(
            f"{first.model} on {first.dataset} ({first.scale} scale): {first.edits} edits in batches of "
            f"{first.batch_size}; bars: mean ± standard error\n◇ published at paper scale ({first.published_model}, "
            "2,000 edits in batches of 100): compare the pattern, not the size",
            fontsize=10,
        )
        return figure
