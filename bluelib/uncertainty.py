"""Intervals: how far a mean or a growth exponent can be trusted."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

LEVEL = 0.95
RESAMPLES = 2000


class Interval(NamedTuple):
    """A mean with its 95 % interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3g} [{self.low:.3g}, {self.high:.3g}]"


def bootstrap(values: Sequence[float], *, seed: int = 0) -> Interval:
    """The mean of ``values`` (one per record) with its percentile bootstrap interval.

    For paired comparisons, give the differences of the two methods on each record.

    Raises:
        ValueError: for no values.
    """
    values = np.asarray(values, dtype=float)
    if not len(values):
        raise ValueError("no values to take the mean of")
    mean = float(values.mean())
    if len(values) == 1 or np.ptp(values) == 0:
        return Interval(mean, mean, mean)
    found = stats.bootstrap(
        (values,), np.mean, confidence_level=LEVEL, n_resamples=RESAMPLES, method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval  # fmt: skip
    return Interval(mean, float(found.low), float(found.high))


def bootstrap_by(frame: pd.DataFrame, keys: Sequence[str], value: str) -> pd.DataFrame:
    """:func:`bootstrap` of ``value`` in each group of ``keys``: columns ``mean``, ``low``, ``high``, ``n``."""
    rows = [
        {**dict(zip(keys, names, strict=True)), **bootstrap(group[value])._asdict(), "n": len(group)}
        for names, group in frame.groupby(list(keys), sort=False)
    ]
    return pd.DataFrame(rows)


def growth_exponent(frame: pd.DataFrame, x: str, y: str, by: str) -> Interval:
    """The exponent b of y ∝ xᵇ: the mean over the groups ``by`` (seeds, sequences) of each one's least-squares slope
    of log y against log x, with Student's t interval over the groups.

    Raises:
        ValueError: for fewer than two groups, or fewer than two values of ``x`` in one.
    """
    slopes = []
    for name, group in frame.groupby(by):
        if group[x].nunique() < 2:
            raise ValueError(f"group {name!r} has one value of {x}: no growth can be fitted")
        slopes.append(stats.linregress(np.log(group[x]), np.log(group[y])).slope)
    if len(slopes) < 2:
        raise ValueError(f"an interval needs at least two groups of {by}, not {len(slopes)}")
    if np.ptp(slopes) == 0:
        return Interval(slopes[0], slopes[0], slopes[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        interval = stats.ttest_1samp(slopes, 0.0).confidence_interval(LEVEL)
    return Interval(float(np.mean(slopes)), float(interval.low), float(interval.high))
