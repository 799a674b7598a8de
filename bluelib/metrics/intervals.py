"""Intervals: how far a mean or a growth exponent can be trusted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

LEVEL = 0.95
RESAMPLES = 2000
FEW = 20


class Interval(NamedTuple):
    """A mean with its 95 % interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3g} [{self.low:.3g}, {self.high:.3g}]"


def interval(values: Sequence[float | None], *, clusters: Sequence[int] | None = None, seed: int = 0) -> Interval:
    """The mean of ``values`` (one per record, or per independent run) with its interval.

    For 20 values or more, the percentile bootstrap; for fewer, where its intervals are too short, Student's t. One
    value, or one cluster, has no interval: its ends are NaN. Of values that are all equal it is a single point, which
    says too much: of shares, use :func:`share_interval` then. For paired comparisons, give the differences of the two
    methods on each record.

    Args:
        values: the values; None where a record has none. (Without any value, mean and ends are NaN.)
        clusters: for each value a number, the same for values that are not independent of each other, such as those of
            records with one subject: the bootstrap then draws clusters. With fewer than 20 clusters, Student's t with
            as many degrees of freedom as clusters but one, and the standard error of their sums.
        seed: of the bootstrap.

    Raises:
        ValueError: if there are no values.
    """
    values = list(values)
    if not values:
        raise ValueError("no values to take the mean of")
    there = [number for number, value in enumerate(values) if value is not None]
    sample = np.asarray([values[number] for number in there], dtype=float)
    if not there:
        return Interval(math.nan, math.nan, math.nan)
    mean = float(sample.mean())
    given = range(len(values)) if clusters is None else clusters
    _, codes = np.unique([given[number] for number in there], return_inverse=True)
    n = codes.max() + 1
    if n == 1:
        return Interval(mean, math.nan, math.nan)
    if np.ptp(sample) == 0:
        return Interval(mean, mean, mean)
    if n < FEW:
        sums = np.bincount(codes, sample - mean)
        error = math.sqrt(n / (n - 1) * (sums**2).sum()) / len(sample)  # of single values, their standard error
        half = stats.t.ppf((1 + LEVEL) / 2, n - 1) * error
        return Interval(mean, float(mean - half), float(mean + half))
    if n < len(sample):
        return Interval(mean, *limits(bootstrap_means(sample[None, None], codes[None], seed=seed)[0]))
    found = stats.bootstrap(
        (sample,),
        np.mean,
        confidence_level=LEVEL,
        n_resamples=RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(mean, float(found.low), float(found.high))


def share_interval(percent: float, n: int) -> Interval:
    """Wilson's 95 % interval of a share, in per cent; it stays within 0 and 100.

    Args:
        percent: the share that was observed. For a mean of shares the interval is wider than it need be, as no values
            from 0 to 1 vary more around their mean than zeros and ones do.
        n: the number of independent records.
    """
    found = stats.binomtest(round(percent / 100 * n), n).proportion_ci(method="wilson")
    return Interval(percent, 100 * found.low, 100 * found.high)


def less(one: Sequence[float | None], other: Sequence[float | None]) -> list[float | None]:
    """One metric less another, of the same records; None for a record that has not both."""
    return [None if a is None or b is None else a - b for a, b in zip(one, other, strict=True)]


def bootstrap_means(values: np.ndarray, clusters: np.ndarray | None = None, *, seed: int = 0) -> np.ndarray:
    """Means of resampled values that come in groups (the records of several seeds): groups are drawn with replacement,
    and clusters of values within each.

    Args:
        values: ``(m, groups, n)``: m measures of the same n items in each group, NaN where there is no value. A draw
            takes the same items for all measures, so differences between measures are paired.
        clusters: ``(groups, n)``, the number of each item's cluster, from 0; by default each item is one.
        seed: of the draws.

    Returns:
        ``(m, RESAMPLES)``.
    """
    rng = np.random.default_rng(seed)
    _, groups, n = values.shape
    each = np.broadcast_to(np.arange(n), (groups, n)) if clusters is None else clusters
    codes = np.stack([np.unique(of_group, return_inverse=True)[1] for of_group in each])  # without gaps
    counts = codes.max(axis=1) + 1
    picked = np.empty((RESAMPLES, groups), dtype=int)
    times = np.empty((RESAMPLES, groups, n))  # how often a draw takes each item of each of its groups
    for draw in range(RESAMPLES):
        picked[draw] = rng.integers(groups, size=groups)
        for place, g in enumerate(picked[draw]):
            size = int(counts[g])
            times[draw, place] = np.bincount(rng.integers(size, size=size), minlength=size)[codes[g]]
    there = np.isfinite(values)
    known = np.where(there, values, 0)
    means = np.empty((RESAMPLES, groups, len(values)))
    for g in range(groups):
        of_group = times[picked == g]
        with np.errstate(invalid="ignore"):
            means[picked == g] = (of_group @ known[:, g].T) / (of_group @ there[:, g].T)
    return means.mean(axis=1).T


def limits(draws: Sequence[float]) -> tuple[float, float]:
    """The ends of the 95 % percentile interval of bootstrap draws; undefined draws (NaN) are left out.

    Draws count to 12 decimals, so that an end that lies on a tie is printed alike whatever order a processor adds in.
    """
    low, high = np.nanquantile(np.round(draws, 12), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def stratified_interval(groups: Sequence[Sequence[float]], *, seed: int = 0) -> Interval:
    """The mean of the groups' means, each group counting the same however large it is, with its interval.

    The interval is from the percentile bootstrap, which resamples the values of each group separately.

    Raises:
        ValueError: if there are no groups, or one has no values.
    """
    samples = [np.asarray(group, dtype=float) for group in groups]
    if not samples or not all(map(len, samples)):
        raise ValueError("no values to take the mean of")

    def mean_of_means(*samples: np.ndarray, axis: int = -1) -> np.ndarray:
        return np.mean([sample.mean(axis=axis) for sample in samples], axis=0)

    mean = float(mean_of_means(*samples))
    varied = [sample for sample in samples if np.ptp(sample)]  # others add no uncertainty, and scipy needs two values
    if not varied:
        return Interval(mean, mean, mean)
    found = stats.bootstrap(
        varied,
        mean_of_means,
        confidence_level=LEVEL,
        n_resamples=RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    share, middle = len(varied) / len(samples), float(mean_of_means(*varied))
    return Interval(mean, *(float(mean + share * (end - middle)) for end in found))


def intervals_by(frame: pd.DataFrame, keys: Sequence[str], value: str) -> pd.DataFrame:
    """:func:`interval` of ``value`` in each group of ``keys``: columns ``mean``, ``low``, ``high``, ``n``."""
    rows = [
        {**dict(zip(keys, names, strict=True)), **interval(group[value])._asdict(), "n": len(group)}
        for names, group in frame.groupby(list(keys), sort=False)
    ]
    return pd.DataFrame(rows)


def paired_differences(
    frame: pd.DataFrame, pairs: Sequence[tuple[str, str]], keys: Sequence[str], unit: str
) -> pd.DataFrame:
    """BLUE minus plain, paired: :func:`interval` over ``unit`` of the difference in ``value`` between two editors.

    Args:
        frame: columns ``editor``, ``keys``, ``unit`` and ``value``, one row for each combination.
        pairs: names of a plain editor and its BLUE variant.
        keys: the groups.
        unit: what the two are paired over (records, facts, batches).

    Returns:
        Columns ``plain``, ``blue``, ``keys``, ``mean``, ``low``, ``high``, ``n``.
    """
    wide = frame.pivot(index=[*keys, unit], columns="editor", values="value")
    gains = [
        (wide[blue] - wide[plain]).dropna().rename("gain").reset_index().assign(plain=plain, blue=blue)
        for plain, blue in pairs
    ]
    return intervals_by(pd.concat(gains), ["plain", "blue", *keys], "gain")


def growth_exponent(frame: pd.DataFrame, x: str, y: str, by: str) -> Interval:
    """The exponent b of y ∝ xᵇ: the least-squares slope of log y against log x in each of the groups ``by`` (seeds,
    sequences), and the interval over the groups.

    Raises:
        ValueError: if there are fewer than two groups, a group has fewer than two values of ``x``, or values have no
            logarithm.
    """
    slopes = []
    for name, group in frame.groupby(by):
        if group[x].nunique() < 2:
            raise ValueError(f"group {name!r} has one value of {x}: no growth can be fitted")
        if not (group[[x, y]] > 0).all(axis=None):
            raise ValueError(f"group {name!r} has values of {x} or {y} that are not positive")
        slopes.append(stats.linregress(np.log(group[x]), np.log(group[y])).slope)
    if len(slopes) < 2:
        raise ValueError(f"an interval needs at least two groups of {by}, not {len(slopes)}")
    return interval(slopes)
