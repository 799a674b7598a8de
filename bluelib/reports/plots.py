"""Figures, in one style; the same numbers give the same bytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from textwrap import fill
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

from ..editing.catalogue import UNEDITED, VARIANTS, Variant, entry, in_order, labelled
from ..io.palette import GREY
from ..io.writing import atomic_file
from ..metrics.editing import EDITING, METRICS
from ..metrics.intervals import share_interval
from ..models.known import short_label
from .published import benchmark, counterpart, has_published

#: The sign of a kind of variants, by how its marker is filled.
SIGNS = {"full": "●", "left": "◐"}
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
    settings: dict[Any, Any] = {
        "font.family": "DejaVu Sans",
        "svg.hashsalt": "bluelib",
        "svg.fonttype": "path",
        "figure.dpi": 100,
        "savefig.dpi": 150,
        "hatch.linewidth": 1.5,
    }
    with sns.axes_style("whitegrid"), sns.plotting_context("paper", font_scale=1.1), plt.rc_context(settings):
        yield


def save(figure: Figure, stem: Path, suffix: str = ".png") -> Path:
    """Write ``stem.png``, or ``stem.svg``, and return its path. A PNG has 256 colours: a third of the size."""
    path = stem.with_name(stem.name + suffix)
    with atomic_file(path) as temporary, style():
        figure.savefig(temporary, bbox_inches="tight", metadata={"Date" if suffix == ".svg" else "Software": None})
        if suffix == ".png":
            with Image.open(temporary) as image:
                drawn = in_few_colours(image)
            drawn.save(temporary, format="PNG", optimize=True)
    return path


def in_few_colours(image: Image.Image) -> Image.Image:
    """A picture in 256 colours of its own."""
    return image.convert("RGB").quantize(256, dither=Image.Dither.NONE)


def keep(figure: Figure, stem: Path) -> Path:
    """:func:`save` a figure that is not shown here, and close it."""
    path = save(figure, stem)
    plt.close(figure)
    return path


def plot_methods(frame: pd.DataFrame) -> Figure:
    """One panel per metric: a bar per method with its standard error, a diamond for the published score.

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
            methods = in_order(rows.index)
            rows = rows.loc[methods]
            sns.barplot(
                x=methods,
                y=rows["mean"],
                hue=methods,
                palette={method: labelled(method).colour for method in methods},
                legend=False,
                ax=axis,
                edgecolor="white",
            )
            for bar, method in zip(axis.patches, methods, strict=True):
                variant = labelled(method).variant
                bar.set_hatch(VARIANTS[variant].hatch if variant else "")
            x = range(len(methods))
            axis.errorbar(x, rows["mean"], rows["standard_error"].astype(float), fmt="none", ecolor="black", capsize=3)
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
            f"{short_label(first.model)} on {benchmark(first.dataset)} ({first.scale} scale): {first.edits} edits in "
            f"batches of {first.batch_size}; bars: mean ± standard error\n◇ published at paper scale "
            f"({first.published_model}, 2,000 edits in batches of 100): compare the pattern, not the size",
            fontsize=10,
        )
        return figure


def plot_main(frame: pd.DataFrame) -> Figure:
    """The main table of one dataset: a row of panels per metric, a column per model.

    A line leads from each plain method (hollow) to its variants (filled). Small grey marks are the published scores at
    the paper scale.

    Args:
        frame: rows of one dataset, see :func:`bluelib.reports.tables.main_frame`.
    """
    metrics = [metric for metric in METRICS if metric in set(frame.metric)]
    models = list(dict.fromkeys(frame.model))
    rows = list(dict.fromkeys(_plain(method) for method in _edited(frame)))
    first = frame.iloc[0]
    with style():
        figure, axes = plt.subplots(
            len(metrics),
            len(models),
            figsize=(3.6 * len(models) + 1, (0.27 * len(rows) + 0.25) * len(metrics) + 1.6),
            layout="constrained",
            sharex="row",
            sharey=True,
            squeeze=False,
        )
        for line, metric in zip(axes, metrics, strict=True):
            for axis, model in zip(line, models, strict=True):
                values = frame[(frame.model == model) & (frame.metric == metric)].set_index("method")
                _dumbbells(axis, rows, values)
                axis.set(xlabel=UNITS[metric], ylabel="")
                if metric == metrics[0]:
                    theirs = f"\n(published: {counterpart(model)})" if has_published(model) else ""
                    axis.set_title(f"{short_label(model)}{theirs}", fontsize=10)
        axes[0, 0].set_yticks(range(len(rows)), rows)
        axes[0, 0].set_ylim(len(rows) - 0.4, -0.6)
        figure.suptitle(
            f"{benchmark(first.dataset)} ({first.scale} scale): {first.edits} edits in batches of {first.batch_size}, "
            f"{first.seeds} {'seed' if first.seeds == 1 else 'seeds'}, mean ± standard error; ○ plain, "
            f"{_signs(frame)}, | before editing;\n"
            "grey: published at the paper scale (2,000 edits in batches of 100), to compare the pattern, not the size",
            fontsize=9,
        )
        return figure


#: How one edit can be asked about, from the mildest question to the hardest: by panel, each question and its metric.
WAYS = {
    "the edit's own prompt": {
        "P(new) > P(true)": "efficacy",
        "the new object is the first choice": "argmax_efficacy",
        "the answer names it": "contains_efficacy",
        "the answer is it": "exact_efficacy",
        "the answer names it, in chat": "chat_contains_efficacy",
    },
    "in other words": {
        "P(new) > P(true)": "generalization",
        "the new object is the first choice": "argmax_generalization",
        "the answer names it": "contains_generalization",
        "the answer is it": "exact_generalization",
        "the answer names it, in chat": "chat_contains_generalization",
    },
    "other subjects": {
        "P(true) > P(new)": "specificity",
        "same first choice as before": "overlap_1",
        "same first five choices": "overlap_5",
        "the answer names its object": "contains_specificity",
        "the answer names its object, in chat": "chat_contains_specificity",
    },
}


#: What zsRE asks in place of CounterFact's comparison of two objects: see docs/metrics.md.
_TOKENS = {
    "P(new) > P(true)": "tokens of the new object\nthat are first choice",
    "P(true) > P(new)": "tokens of its object\nthat are first choice",
}


def plot_ways(frame: pd.DataFrame) -> Figure:
    """The same edits asked about in several ways, with a panel each for their own prompts, paraphrases, other subjects.

    Args:
        frame: rows of one dataset, see :func:`bluelib.reports.tables.main_frame`; its first model is drawn.
    """
    first = frame.iloc[0]
    rows = frame[frame.model == first.model].set_index(["metric", "method"])
    methods = [UNEDITED, *_edited(frame)]
    with style():
        figure, axes = plt.subplots(len(WAYS), 1, figsize=(7.8, 8.2), layout="constrained", sharex=True)
        for axis, (title, questions) in zip(axes, WAYS.items(), strict=True):
            for (number, metric), (place, name) in product(enumerate(questions.values()), enumerate(methods)):
                if (metric, name) not in rows.index:
                    continue
                seen, row = rows.loc[(metric, name)], labelled(name)
                at = number + 0.7 * ((place + 0.5) / len(methods) - 0.5)
                found = share_interval(seen["mean"], int(seen.records))
                axis.plot([found.low, found.high], [at, at], color=row.colour, linewidth=1)
                axis.plot([found.mean], [at], row.marker, color=row.colour, **row.face)
            names = _TOKENS if benchmark(first.dataset) == "zsre" else {}
            axis.set_yticks(range(len(questions)), [names.get(question, question) for question in questions])
            axis.set(title=title, xlim=(-1, 101), ylim=(len(questions) - 0.5, -0.5))
            axis.grid(axis="y", visible=False)
        axes[-1].set_xlabel("share (%)")
        handles = [
            Line2D([], [], color=labelled(name).colour, marker=labelled(name).marker, linestyle="none", label=name)
            for name in methods
        ]
        for handle, name in zip(handles, methods, strict=True):
            handle.set(**labelled(name).face)
        figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=8)
        figure.suptitle(
            f"{short_label(first.model)} ({first.scale} scale), {benchmark(first.dataset)}: "
            f"{first.edits} edits in batches of {first.batch_size}; 95 % intervals",
            fontsize=10,
        )
        return figure


def _edited(frame: pd.DataFrame) -> list[str]:
    """The methods of a frame that edit the model, in the order of plots."""
    return [method for method in in_order(frame.method.unique()) if method != UNEDITED]


def _plain(method: str) -> str:
    """The label of a method's plain method: its own label, unless it is a variant."""
    row = labelled(method)
    return entry(row.plain).label if row.variant else method


def _variants(frame: pd.DataFrame) -> list[Variant]:
    """The kinds of variants in a frame; BLUE if there are none."""
    there = {labelled(method).variant for method in frame.method.unique()}
    return [kind for kind in VARIANTS.values() if kind.name in there] or [VARIANTS["blue"]]


def _signs(frame: pd.DataFrame) -> str:
    return ", ".join(f"{SIGNS[kind.fill]} {kind.name.upper()}" for kind in _variants(frame))


def _dumbbells(axis: Axes, rows: Sequence[str], values: pd.DataFrame) -> None:
    if UNEDITED in values.index:
        axis.axvline(values["mean"][UNEDITED], color=GREY, linewidth=1, linestyle=":")
    for place, method in enumerate(rows):
        variants = [kind.label_of(method) for kind in VARIANTS.values()]
        for column, colour, size, shift in (
            ("published", GREY, 3.5, 0.25),
            ("mean", labelled(method).colour, 6, -0.08),
        ):
            there = [name for name in (method, *variants) if name in values.index]
            ends = [name for name in there if not pd.isna(values[column][name])]
            for name in ends[1:] if method in ends else ():
                axis.annotate(
                    "",
                    (values[column][name], place + shift),
                    (values[column][method], place + shift),
                    arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 1, "shrinkA": 0, "shrinkB": 0},
                )
            for name in ends:
                error = values["standard_error"][name] if column == "mean" else None
                axis.errorbar(
                    values[column][name],
                    place + shift,
                    xerr=error,
                    fmt="o",
                    color=colour,
                    markersize=size,
                    **{**labelled(name).face, **({"markerfacecolor": colour} if name != method else {})},
                    elinewidth=1,
                )


NO_BREAK = "\N{NO-BREAK SPACE}"
#: Percentage of editing, or of specificity, below which a method is left out of a picture that compares working
#: methods.
EDITS = 40


def plot_pareto(frame: pd.DataFrame) -> Figure:
    """Editing against preservation: the mean of efficacy and generalization against specificity.

    There is a row of panels per dataset, and a column per model; with one model, the datasets stand side by side.
    Arrows lead from a plain method to its variants. Methods that hardly edit, or hardly preserve anything, are listed
    below their panel, so the others have room.

    Args:
        frame: see :func:`bluelib.reports.tables.main_frame`.
    """
    datasets, models = list(dict.fromkeys(frame.dataset)), list(dict.fromkeys(frame.model))
    first, outside = frame.iloc[0], False
    rows, columns = (len(datasets), len(models)) if len(models) > 1 else (1, len(datasets))
    with style():
        figure, axes = plt.subplots(
            rows,
            columns,
            figsize=(3.5 * columns + 1.6, 3.3 * rows + 0.4 * (rows == 1)),
            layout="constrained",
            squeeze=False,
        )
        for line, dataset in zip(axes.reshape(len(datasets), len(models)), datasets, strict=True):
            for axis, model in zip(line, models, strict=True):
                chosen = frame[(frame.model == model) & (frame.dataset == dataset)]
                means, errors = (
                    chosen.pivot(index="method", columns="metric", values=value) for value in ("mean", "standard_error")
                )
                axis.set_title(f"{short_label(model)}, {benchmark(dataset)}", fontsize=9)
                axis.set(xlabel="specificity (%)")
                if "specificity" not in means:  # its records have no neighbours
                    axis.text(0.5, 0.5, "not measured", ha="center", transform=axis.transAxes)
                    continue
                editing = [metric for metric in EDITING if metric in means]
                x, y = means.specificity, sum(means[metric] for metric in editing) / len(editing)
                # Both come from the same records, so the error of their mean is not taken to be smaller than this.
                spread = sum(errors[metric] for metric in editing) / len(editing)
                far = _outside(x, y, _edited(chosen))
                if far:
                    outside = True
                    words = [f"{method} {x[method]:.0f} | {y[method]:.0f}".replace(" ", NO_BREAK) for method in far]
                    axis.set_xlabel("specificity (%)\n" + fill("outside: " + ", ".join(words), 46), fontsize=8)
                for method in _edited(chosen):
                    if method in far:
                        continue
                    row, start = labelled(method), _plain(method)
                    colour, is_variant = row.colour, bool(row.variant)
                    axis.errorbar(
                        x[method],
                        y[method],
                        spread[method],
                        errors.specificity[method],
                        fmt=row.marker,
                        color=colour,
                        markersize=6,
                        **row.face,
                        elinewidth=0.8,
                        label=None if is_variant else method,
                    )
                    if is_variant and start in means.index and start not in far:
                        axis.annotate(
                            "",
                            (x[method], y[method]),
                            (x[start], y[start]),
                            arrowprops={"arrowstyle": "->", "color": colour, "linewidth": 1.2},
                        )
        for axis in axes[:, 0]:
            axis.set_ylabel("mean of efficacy and\ngeneralization (%)")
        handles = {
            label: handle for axis in axes.flat for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
        }
        if handles:
            order = in_order(handles)
            figure.legend([handles[name] for name in order], order, fontsize=8, loc="outside right center")
        variants = " or ".join(f"{kind.name.upper()} variant ({SIGNS[kind.fill]})" for kind in _variants(frame))
        figure.suptitle(
            f"{first.scale} scale, {first.edits} edits in batches of {first.batch_size}:"
            + (" " if columns > 2 else "\n")
            + f"arrows lead from a plain method (○) to its {variants}; up and right is better"
            + ";\nbelow, specificity | editing of methods outside" * outside,
            fontsize=10,
        )
        return figure


def _outside(x: pd.Series, y: pd.Series, methods: Sequence[str]) -> list[str]:
    """The methods left out to make room for the others: those that hardly edit or hardly preserve anything, and those
    without a variant that lie far below the ones that have one."""
    works = {method for method in methods if min(x[method], y[method]) >= EDITS}
    compared = [m for m in works if labelled(m).variant or any(_plain(other) == m != other for other in works)]
    if not compared:
        return []
    return [m for m in methods if m not in works or x[m] < x[compared].min() - 5 or y[m] < y[compared].min() - 5]


def plot_forest(gains: pd.DataFrame, theirs: pd.DataFrame) -> Figure:
    """How much each variant gains over its plain method: a row per setting, a panel each for editing and specificity.

    Diamonds are the published differences of the counterpart, triangles those of FE's replication.

    Args:
        gains: frame of :func:`bluelib.reports.comparison.all_gains`, each row of one model and dataset.
        theirs: frame of :func:`bluelib.reports.comparison.published_gains`.
    """
    measures = {"editing": "efficacy and generalization", "specificity": "specificity"}
    rows = list(dict.fromkeys(zip(gains.model, gains.dataset, gains.other, strict=True)))
    places = {row: place for place, row in enumerate(rows)}
    with style():
        figure, axes = plt.subplots(
            1, 2, figsize=(9.5, 0.24 * len(rows) + 1.8), layout="constrained", sharey=True, squeeze=False
        )
        for axis, (measure, words) in zip(axes.flat, measures.items(), strict=True):
            axis.axvline(0, color="black", linewidth=1)
            for row in gains[gains.measure == measure].itertuples():
                method = labelled(row.other)
                axis.errorbar(
                    row.mean,
                    places[row.model, row.dataset, row.other],
                    xerr=[[row.mean - row.low], [row.high - row.mean]],
                    fmt="o",
                    color=method.colour,
                    **method.face,
                    markersize=6,
                    elinewidth=1.2,
                    capsize=2,
                )
            for row in theirs[theirs.measure == measure].itertuples():
                place = places.get((row.model, row.dataset, row.other))
                if place is not None:
                    marker = {"published": "D", "replication": "^"}[row.kind]
                    axis.plot(
                        row.difference, place, marker, color=GREY, markerfacecolor="white", markersize=5, zorder=0
                    )
            axis.set(title=words, xlabel="gain, points", ylim=(len(rows) - 0.4, -0.6))
        labels = [f"{short_label(model)}, {benchmark(dataset)}: {other}" for model, dataset, other in rows]
        axes[0, 0].set_yticks(range(len(rows)), labels, fontsize=8)
        figure.suptitle(
            "Variant less plain method, on the same records, with 95 % intervals;\n"
            "for the LLM of the same architecture: ◇ published, △ replicated by FE's authors (one batch of 2,000)",
            fontsize=10,
        )
        return figure


def plot_improvement(frame: pd.DataFrame, published_average: float, claimed: float) -> Figure:
    """The relative improvement in each setting, and the average with its interval, beside the paper's headline number.

    Args:
        frame: frame of :func:`bluelib.reports.comparison.improvement`; the average is its last row.
        published_average: the average over the published pairs, by the same formula.
        claimed: the average that the paper's abstract claims.
    """
    settings, average = frame.iloc[:-1], frame.iloc[-1]
    with style():
        figure, axis = plt.subplots(figsize=(8, 0.26 * len(settings) + 1.9), layout="constrained")
        for place, row in enumerate(settings.itertuples()):
            method = labelled(VARIANTS["blue"].label_of(row.method))
            if pd.notna(row.improvement):
                axis.plot(row.improvement, place, "o", color=method.colour, **method.face, markersize=6)
        bottom = len(settings) + 0.4
        axis.errorbar(
            average.improvement,
            bottom,
            xerr=[[average.improvement - average.low], [average.high - average.improvement]],
            fmt="o",
            color="black",
            markersize=8,
            capsize=3,
        )
        axis.plot(average["median"], bottom, "|", color="black", markersize=14)
        axis.axvline(0, color="black", linewidth=1)
        for value, line, words in (
            (claimed, "--", f"the paper's abstract: {claimed:g} %"),
            (published_average, ":", f"the published pairs, by this formula: {published_average:.1f} %"),
        ):
            axis.axvline(value, color=GREY, linestyle=line, label=words)
        names = [f"{short_label(row.model)}, {benchmark(row.dataset)}: {row.method}" for row in settings.itertuples()]
        axis.set_yticks([*range(len(settings)), bottom], [*names, "average (| median)"], fontsize=8)
        axis.set(xlabel="relative improvement of BLUE over plain, mean over metrics (%)", ylim=(bottom + 0.7, -0.7))
        axis.legend(fontsize=8, loc="lower right")
        return figure
