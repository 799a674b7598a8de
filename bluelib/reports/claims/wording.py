"""How the evidence for claims is worded, and what several of them look at."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pandas as pd

from ...editing.catalogue import entry
from ...metrics.editing import EDITING
from ..published import published
from . import Numbers


def ordered(numbers: Numbers, name: str, by: str) -> pd.DataFrame:
    """One of a notebook's tables, sorted by a column."""
    return pd.DataFrame(numbers[name]).sort_values(by)


def rises(values: Sequence[float]) -> bool:
    """Whether each value is above the one before."""
    return all(a < b for a, b in pairwise(values))


def listed(values: Sequence[float], digits: int = 2) -> str:
    return ", ".join(f"{value:.{digits}f}" for value in values)


def band(row: Any) -> str:
    """A mean with its interval."""
    return f"{row['mean']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"


def points(row: Any, digits: int = 1) -> str:
    """A difference with its interval and signs."""
    return f"{row['mean']:+.{digits}f} [{row['low']:+.{digits}f}, {row['high']:+.{digits}f}]"


def by_method(rows: pd.DataFrame, column: str, digits: int = 1) -> str:
    """Each row's difference with the label of the method that a column names."""
    return "; ".join(f"{entry(row[column]).label} {points(row, digits)}" for _, row in rows.iterrows())


def published_layers(table: str, value: str = "value", **chosen: str) -> str:
    """What was published by layer, from first to last critical layer, model by model."""
    frame = published(table)
    for column, name in chosen.items():
        frame = frame[frame[column] == name]
    return "; ".join(
        f"{model} {' '.join(f'{one:.3g}' for one in rows.sort_values('layer')[value])}"
        for model, rows in frame.groupby("model", sort=False)
    )


def published_mean(
    model: str, *methods: str, of: Sequence[str] = EDITING, table: str = "published_results", kind: str = "published"
) -> str:
    """The published mean of some metrics after 2,000 edits of CounterFact, method by method."""
    frame = published(table)
    frame = frame[(frame.model == model) & (frame.dataset == "counterfact") & (frame.edits == 2000)]
    frame = frame[(frame.kind == kind) & frame.metric.isin(of)]
    means = frame.groupby("method").value.mean()
    return f"{model}, CounterFact: {', '.join(f'{method} {means[method]:.1f}' for method in methods)}"


def published_single_layers() -> str:
    """The published mean efficacy of single layers before the last, by direct and by distributed residuals."""
    frame = published("single_layer_editing")
    found = []
    for model, rows in frame.groupby("model", sort=False):
        means = rows[rows.layer < rows.layer.max()].groupby("residual").efficacy.mean()
        found.append(f"{model} {means['direct']:.1f} and {means['distributed']:.1f}")
    return f"efficacy direct and distributed: {'; '.join(found)}"
