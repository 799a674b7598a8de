"""How BLUE variants compare with the methods they come from, over the same records and seeds."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from ..editing.catalogue import MAIN_TABLE, VARIANTS, Entry, entry, in_order, label_pairs, labelled
from ..metrics.editing import EDITING, METRICS, TEACHER_FORCED
from ..metrics.intervals import RESAMPLES, bootstrap_means, limits
from ..models.known import label_of_model, scale_of
from .published import PUBLISHED_IMPROVEMENT, benchmark, counterpart, published

#: Draws of each sign-flip test.
FLIPS = 4999
#: The false discovery rate of the paired table's verdicts: the bar for adjusted p-values. (Those of claims are not
#: adjusted for their number.)
LEVEL = 0.05

Table = tuple[pd.DataFrame, list[list[str]], list[str], str]
#: See :func:`record_scores`.
RecordScores = Mapping[tuple[str, str], pd.DataFrame]


def record_scores(cells: Sequence[dict[str, Any]]) -> dict[tuple[str, str], pd.DataFrame]:
    """The scores of each record after editing in the paper's metrics, by (model, dataset): rows (seed, case id,
    number of the subject), columns (method, metric).

    A record that cannot have a metric (because it has no prompts to generate from) has NaN there.

    Raises:
        ValueError: if the cells of a seed were not evaluated on the same records.
    """
    found: dict[tuple[str, str], dict[tuple[str, str], list[pd.Series]]] = {}
    for cell in cells:
        ids = cell["provenance"]["case_ids"]
        subjects = cell["provenance"].get("subjects", range(len(ids)))
        index = pd.MultiIndex.from_arrays(
            [[cell["seed"]] * len(ids), ids, subjects], names=["seed", "record", "subject"]
        )
        columns = found.setdefault((cell["model"], cell["dataset"]), {})
        for metric, values in ((metric, cell["scores"][metric]) for metric in METRICS if metric in cell["scores"]):
            series = pd.Series(values, index=index, dtype=float)
            columns.setdefault((entry(cell["editor"]["name"]).label, metric), []).append(series)
    frames = {
        place: pd.DataFrame({name: pd.concat(parts) for name, parts in columns.items()})
        for place, columns in found.items()
    }
    for (model, dataset), frame in frames.items():
        for metric in frame.columns.unique(1):
            holes = frame.xs(metric, axis=1, level=1).isna()
            if (holes.any(axis=1) != holes.all(axis=1)).any():
                raise ValueError(
                    f"{model}, {dataset}: {metric} was not measured on the same records for all methods; delete the "
                    "cells that are out of date and run the grid again"
                )
    return frames


def draws(frame: pd.DataFrame) -> pd.DataFrame:
    """Resampled means of every (method, metric): 2,000 rows.

    Seeds are resampled, and subjects within each seed, each with all its records. One draw takes the same records for
    all methods, so differences between columns are paired. Where no subject repeats, draws of several frames take
    records at the same positions. So the records of a benchmark and of its sibling, which may be about the same
    subjects, stay together.
    """
    groups = [group for _, group in frame.groupby(level="seed", sort=True)]
    values = np.stack([group.to_numpy().T for group in groups], axis=1)  # (columns, seeds, records)
    clusters = np.stack([group.index.get_level_values("subject") for group in groups])
    return pd.DataFrame(bootstrap_means(values, clusters).T, columns=frame.columns)


def paired(scores: RecordScores) -> pd.DataFrame:
    """BLUE minus plain for every (model, dataset, method, metric), with its 95 % interval over seeds and,
    within them, subjects.

    Each row also has the p-value of a sign-flip test over subjects, raw and adjusted for the number of tests
    (Benjamini–Hochberg).
    """
    rows = []
    for (model, dataset), frame in scores.items():
        resampled = draws(frame)
        for method, variant in label_pairs(frame.columns.unique(0)):
            for metric in [m for m in METRICS if (method, m) in frame.columns]:
                plain, blue = (frame[name, metric].dropna() for name in (method, variant))
                difference = blue - plain
                low, high = limits(resampled[variant, metric] - resampled[method, metric])
                rows.append(
                    {
                        "model": model,
                        "dataset": dataset,
                        "method": method,
                        "metric": metric,
                        "plain": plain.mean(),
                        "blue": blue.mean(),
                        "difference": difference.mean(),
                        "low": low,
                        "high": high,
                        "p": _sign_flip(difference.groupby(["seed", "subject"]).sum().to_numpy()),
                        "records": len(difference),
                        "seeds": frame.index.get_level_values("seed").nunique(),
                    }
                )
    found = pd.DataFrame(rows)
    found["p_adjusted"] = stats.false_discovery_control(found.p)
    found["verdict"] = np.select(
        [(found.p_adjusted < LEVEL) & (found.low > 0), (found.p_adjusted < LEVEL) & (found.high < 0)],
        ["better", "worse"],
        "neither",
    )
    return found


def _sign_flip(differences: np.ndarray) -> float:
    """The probability of a sum at least as far from 0 if each difference had a random sign."""
    if not differences.any():
        return 1.0
    found = stats.permutation_test(
        (differences,),
        np.mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=FLIPS,
        rng=np.random.default_rng(0),
    )
    return float(found.pvalue)


def paired_table(scores: RecordScores) -> Table:
    """:func:`paired` as a table."""
    frame = paired(scores)
    rows = [
        [
            row.model,
            row.dataset,
            row.method,
            row.metric,
            f"{row.plain:.2f}",
            f"{row.blue:.2f}",
            f"{row.difference:+.2f} [{row.low:+.2f}, {row.high:+.2f}]",
            f"{row.p_adjusted:.4f}",
            row.verdict,
        ]
        for row in frame.itertuples()
    ]
    header = ["model", "dataset", "method", "metric", "plain", "BLUE", "BLUE − plain", "p (adjusted)", "BLUE is"]
    below = (
        "BLUE minus plain, paired over records: mean with its 95 % interval (bootstrap of seeds, and of subjects within"
        f" seeds, {RESAMPLES:,} draws). p: sign-flip test over subjects ({FLIPS:,} draws), adjusted for all rows by "
        f"Benjamini and Hochberg. BLUE is called better or worse where p is below {LEVEL} and the interval excludes 0."
    )
    return frame, rows, header, f"{_scale(scores)} {below} {_of_seeds(scores)}".strip()


def _of_seeds(scores: RecordScores) -> str:
    """What the intervals cannot show if there are few seeds."""
    seeds = next(iter(scores.values())).index.get_level_values("seed").nunique()
    if seeds == 1:
        return "One seed: the interval says nothing of other sequences of edits."
    return f"Only {seeds} seeds: the interval says little of other sequences of edits." if seeds < 5 else ""


def _scale(scores: RecordScores) -> str:
    models = list(dict.fromkeys(model for model, _ in scores))
    return f"{scale_of(models[0]).capitalize()} scale ({', '.join(map(label_of_model, models))})."


def there(scores: RecordScores) -> list[str]:
    """The labels of the methods that every model and dataset has."""
    frames = [frame.columns.unique(0) for frame in scores.values()]
    return [label for label in frames[0] if all(label in labels for labels in frames)]


def families(scores: RecordScores) -> list[str]:
    """The methods of the paper's main table that are there plain and with BLUE; if none are, other methods that are."""
    plain = [method for method, _ in label_pairs(there(scores))]
    return [method for method in plain if labelled(method).reported == MAIN_TABLE] or plain


def _blue(method: str) -> str:
    return VARIANTS["blue"].label_of(method)


#: The score of a plain method (per cent, or units of its metric) below which no relative improvement is given.
FLOOR = 5.0


def improvement(scores: RecordScores) -> Table:
    """The relative improvement of each BLUE variant over its plain method, and the average that the paper's abstract
    gives as 35.59 %.

    Per setting (model, dataset, method) it is the mean over the benchmark's metrics of 100 · (BLUE − plain) / plain,
    and the average is over all settings of MEMIT, PRUNE, RECT and AlphaEdit. A metric on which the plain method has
    less than :data:`FLOOR` has no meaningful relative improvement and is left out of the mean; the text below the table
    counts these. Relative improvements are unbounded where the plain method is near 0. So the median, and the mean in
    points of efficacy, generalization and specificity, stand beside the mean.
    """
    settings, resampled = [], []
    for (model, dataset), frame in scores.items():
        means, sampled = frame.mean(), draws(frame)
        for method in families({(model, dataset): frame}):
            metrics = [m for m in METRICS if (method, m) in means]
            defined = [m for m in metrics if means[method, m] >= FLOOR]
            relative = {
                m: _relative(means[method, m], means[_blue(method), m]) if m in defined else np.nan for m in metrics
            }
            scored = _measured(frame, TEACHER_FORCED)
            pair = method, _blue(method)
            points = _gain(means, pair, scored)
            settings.append(
                {
                    "model": model,
                    "dataset": dataset,
                    "method": method,
                    **relative,
                    "improvement": np.mean([relative[m] for m in defined]) if defined else np.nan,
                    "undefined": len(metrics) - len(defined),
                    "points": points,
                }
            )
            resampled.append(
                {
                    "improvement": np.mean(
                        [_relative(sampled[method, m], sampled[_blue(method), m]) for m in defined], axis=0
                    )
                    if defined
                    else np.full(len(sampled), np.nan),
                    "points": _gain(sampled, pair, scored),
                }
            )
    frame = pd.DataFrame(settings)
    metrics = [m for m in METRICS if m in frame]
    rows = [
        [
            row["model"],
            row["dataset"],
            row["method"],
            *("–" if metric not in row or pd.isna(row[metric]) else f"{row[metric]:+.1f} %" for metric in metrics),
            "–" if pd.isna(row["improvement"]) else f"{row['improvement']:+.1f} %",
            f"{row['points']:+.1f}",
        ]
        for row in settings
    ]
    drawn = [draw["improvement"] for draw in resampled if np.isfinite(draw["improvement"]).any()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a draw in which no improvement is defined stays NaN
        low, high = limits(np.nanmean(drawn, axis=0)) if drawn else (np.nan, np.nan)
    down, up = limits(np.mean([draw["points"] for draw in resampled], axis=0))
    average = {
        "model": "average",
        "improvement": frame.improvement.mean(),
        "low": low,
        "high": high,
        "median": frame.improvement.median(),
        "undefined": int(frame.undefined.sum()),
        "points": frame.points.mean(),
        "points_low": down,
        "points_high": up,
    }
    frame = pd.concat([frame, pd.DataFrame([average])], ignore_index=True)
    rows.append(
        [
            "average",
            "",
            "",
            *("" for _ in metrics),
            f"{average['improvement']:+.1f} %" if drawn else "–",
            f"{average['points']:+.1f}",
        ]
    )
    theirs, pairs = published_improvement()
    without_text, _ = published_improvement(TEACHER_FORCED)
    below = (
        f"{_scale(scores)} Relative improvement of each BLUE variant over its plain method, in per cent, and its mean "
        f"over the benchmark's metrics. Average over {len(settings)} settings: {average['improvement']:+.1f} % "
        f"[{low:+.1f}, {high:+.1f}] (95 % interval, bootstrap of seeds, and of subjects within them), median over "
        f"settings {average['median']:+.1f} %; in points of efficacy, generalization and specificity "
        f"{average['points']:+.1f} [{down:+.1f}, {up:+.1f}]. {_of_seeds(scores)} Values left out (–), where the plain "
        f"method has less than {FLOOR:g}: {average['undefined']}.\n\n"
        f"The paper's abstract says {PUBLISHED_IMPROVEMENT} % on average, and its formula was not found in a public "
        f"source; this one is ours. On the {pairs} pairs of which both numbers were found published, it gives "
        f"{theirs:+.1f} %, and {without_text:+.2f} % if fluency and consistency are left out, which is near. But "
        "RECT_BLUE, PRUNE_BLUE, all BLUE rows of GPT2-XL and of GPT-J on zsRE were not found, so that "
        f"{PUBLISHED_IMPROVEMENT} % cannot be checked: the agreement may be chance."
    )
    return frame, rows, ["model", "dataset", "method", *metrics, "mean", "points"], below


def _relative(plain: Any, blue: Any) -> Any:
    """The relative improvement in per cent; NaN where the plain method has 0, as in a rare draw."""
    with np.errstate(divide="ignore", invalid="ignore"):
        found = 100 * (np.asarray(blue) - plain) / np.asarray(plain)
    return np.where(np.asarray(plain) == 0, np.nan, found)[()]


def published_improvement(metrics: Sequence[str] = METRICS) -> tuple[float, int]:
    """The average of :func:`improvement` over the published pairs of a plain method and its BLUE variant, and the
    number of pairs. It uses those metrics for which both scores of a pair are published."""
    table = published("published_results")
    table = table[(table.kind == "published") & (table.edits == 2000)]
    wide = table.pivot(index=["model", "dataset", "method"], columns="metric", values="value")
    found = []
    for (model, dataset, method), blue in wide.iterrows():
        if labelled(method).variant == "blue":
            plain = wide.loc[(model, dataset, entry(labelled(method).plain).label)]
            found.append((100 * (blue - plain) / plain).reindex(metrics).mean())
    return float(np.mean(found)), len(found)


def published_gains(scores: RecordScores) -> pd.DataFrame:
    """The same differences as published for the counterparts of these models: by the authors of a method (``kind`` is
    ``published``), and by FE's authors, in one batch of 2,000 (``replication``).

    A measure is left out if not all of its metrics were published.
    """
    table = published("published_results")
    sources = {
        "published": table[(table.kind == "published") & (table.edits == 2000)],
        "replication": published("replications_fe"),
    }
    rows = []
    pairs = [pair for kind in VARIANTS for pair in variant_pairs(there(scores), "", kind)]
    for kind, source in sources.items():
        wide = source.pivot(index=["model", "dataset", "method"], columns="metric", values="value")
        for (model, dataset), (method, other) in product(scores, pairs):
            places = [(counterpart(model), benchmark(dataset), name) for name in (method, other)]
            if not all(place in wide.index for place in places):
                continue
            plain, blue = (wide.loc[place] for place in places)
            for measure, metrics in MEASURES.items():
                difference = float(
                    np.mean([blue.get(metric, np.nan) - plain.get(metric, np.nan) for metric in metrics])
                )
                if np.isfinite(difference):
                    rows.append((model, dataset, other, measure, difference, kind))
    return pd.DataFrame(rows, columns=["model", "dataset", "other", "measure", "difference", "kind"])


def all_gains(scores: RecordScores) -> pd.DataFrame:
    """:func:`gains` of every variant over its plain method, for each model and dataset separately, with a column
    ``dataset``."""
    frames = []
    for place, frame in scores.items():
        labels = frame.columns.unique(0)
        pairs = sorted(
            (pair for kind in VARIANTS for pair in variant_pairs(labels, "", kind)),
            key=lambda pair: labelled(pair[1]).order,
        )
        frames.append(gains({place: frame}, pairs).assign(dataset=place[1]))
    return pd.concat(frames, ignore_index=True)


#: The measures that verdicts on BLUE look at: the name of each, and the metrics whose mean it is.
MEASURES = {"editing": EDITING, "specificity": TEACHER_FORCED[2:], "score": TEACHER_FORCED}


def family_gains(scores: RecordScores, methods: Sequence[str] | None = None) -> pd.DataFrame:
    """BLUE minus plain by model, method and measure: :func:`gains` of the paper's methods, or of those named."""
    chosen = families(scores) if methods is None else methods
    return gains(scores, [(method, _blue(method)) for method in chosen]).drop(columns="other")


def by_benchmark(scores: RecordScores) -> list[RecordScores]:
    """The scores in the parts that are judged: of a single model each dataset apart, for nothing else tells whether
    they agree; of several models all together."""
    if len({model for model, _ in scores}) > 1:
        return [scores]
    return [{place: frame} for place, frame in scores.items()]


def gains(scores: RecordScores, pairs: Sequence[tuple[str, str]]) -> pd.DataFrame:
    """How much better the second of two methods is than the first, by model and measure (:data:`MEASURES`): mean and
    95 % interval over seeds and subjects. All datasets have equal weight.

    A measure is the mean of those of its metrics that a dataset's records have; it is left out where they have none.

    Args:
        scores: see :func:`record_scores`.
        pairs: pairs of methods, by their labels.

    Returns:
        Columns ``model``, ``method``, ``other``, ``measure``, ``mean``, ``low``, ``high``.
    """
    rows = []
    for model in dict.fromkeys(model for model, _ in scores):
        frames = [frame for (name, _), frame in scores.items() if name == model]
        sampled = [draws(frame) for frame in frames]
        for pair in pairs:
            for measure, metrics in MEASURES.items():
                measured = [
                    (frame, drawn, scored)
                    for frame, drawn in zip(frames, sampled, strict=True)
                    if {*pair} <= {*frame.columns.unique(0)} and (scored := _measured(frame, metrics))
                ]
                if measured:
                    found = [_gain(frame.mean(), pair, scored) for frame, _, scored in measured]
                    low, high = limits(np.mean([_gain(draw, pair, scored) for _, draw, scored in measured], axis=0))
                    rows.append((model, *pair, measure, np.mean(found), low, high))
    return pd.DataFrame(rows, columns=["model", "method", "other", "measure", "mean", "low", "high"])


def variant_pairs(labels: Iterable[str], base: str, variant: str) -> list[tuple[str, str]]:
    """The pairs of labels of two variants of one method, in the order of plots; ``""`` is the plain method."""
    rows = [labelled(label) for label in in_order(labels)]
    found = {(row.plain if row.variant else row.name, row.variant): row.label for row in rows}
    return [
        (label, found[name, variant])
        for (name, kind), label in found.items()
        if kind == base and (name, variant) in found
    ]


def later_pairs(labels: Iterable[str], paper: str = "") -> list[tuple[str, str]]:
    """The labels of later methods, each after that of the method that it is like; with ``paper``, only that paper's."""
    there = list(labels)
    rows = [labelled(label) for label in in_order(there)]
    pairs = [(entry(row.like).label, row.label) for row in rows if row.like and not row.variant and paper in row.paper]
    return [pair for pair in pairs if pair[0] in there]


def _measured(frame: pd.DataFrame, metrics: Sequence[str]) -> list[str]:
    """Those metrics for which the records have prompts."""
    return [metric for metric in metrics if metric in frame.columns.unique(1)]


def _gain(means: Any, pair: tuple[str, str], metrics: Sequence[str]) -> Any:
    method, other = pair
    return np.mean([means[other, m] - means[method, m] for m in metrics], axis=0)


def champions(scores: RecordScores) -> pd.DataFrame:
    """The best BLUE variant and the best other method of the paper's table, by model and dataset, and their difference
    with its 95 % interval.

    The best are those with the highest score (the mean of efficacy, generalization and specificity). Both are chosen
    again in each draw, because the best of several on some records is not as good on others.
    """
    rows = []
    chosen = families(scores)
    for (model, dataset), frame in scores.items() if chosen else ():
        sampled = draws(frame)
        methods = [m for m in frame.columns.unique(0) if _in_contest(labelled(m), chosen)]
        scored = _measured(frame, TEACHER_FORCED)
        score = pd.Series({m: np.mean([frame[m, metric].mean() for metric in scored]) for m in methods})
        drawn = pd.DataFrame({m: np.mean([sampled[m, metric] for metric in scored], axis=0) for m in methods})
        is_blue = np.array([labelled(m).variant == "blue" for m in score.index])
        blue, other = score[is_blue].idxmax(), score[~is_blue].idxmax()
        low, high = limits(drawn.loc[:, is_blue].max(axis=1) - drawn.loc[:, ~is_blue].max(axis=1))
        rows.append(
            {
                "model": model,
                "dataset": dataset,
                "blue": blue,
                "other": other,
                "mean": score[blue] - score[other],
                "low": low,
                "high": high,
            }
        )
    return pd.DataFrame(rows, columns=["model", "dataset", "blue", "other", "mean", "low", "high"])


def _in_contest(method: Entry, families: Sequence[str]) -> bool:
    """Whether a method is one of the families, of their BLUE variants, or of the paper's methods without a variant."""
    if method.variant not in ("", "blue"):
        return False
    plain = entry(method.plain) if method.variant else method
    return plain.label in families or (plain.reported == MAIN_TABLE and not plain.variants)
