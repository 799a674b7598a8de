"""Claims of the main table, from the frames of :mod:`bluelib.reports.comparison`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from ..published import PUBLISHED_IMPROVEMENT
from . import Claim, Verdict


class View:
    """One model's gains: of the paper's methods, ``editing`` and ``specificity``; of PMET, ``pmet``, where the grid has
    it; and of the best BLUE variant against the best other method on each dataset, ``best``."""

    def __init__(self, gains: pd.DataFrame, best: pd.DataFrame, of_pmet: pd.DataFrame) -> None:
        self.editing, self.specificity = (gains[gains.measure == name] for name in ("editing", "specificity"))
        self.best = best
        self.pmet = of_pmet[of_pmet.measure == "editing"]


def _interval(row: Any) -> str:
    return f"{row.mean:+.1f} [{row.low:+.1f}, {row.high:+.1f}]"


def _gains(rows: pd.DataFrame) -> str:
    each = "; ".join(f"{row.method} {_interval(row)}" for row in rows.itertuples())
    return f"{each} points, paired over records, both datasets"


CLAIMS = (
    Claim(
        "every BLUE variant edits better than its plain method (efficacy, generalization)",
        lambda v: _gains(v.editing),
        {
            "the interval of the gain, the mean of efficacy and generalization, is above 0, for each method": (
                lambda v: v.editing.low > 0
            )
        },
        applies=lambda v: len(v.editing) > 0,
    ),
    Claim(
        "every BLUE variant leaves more of the rest alone (specificity)",
        lambda v: _gains(v.specificity),
        {"the interval of the gain in specificity is above 0, for each method": lambda v: v.specificity.low > 0},
        applies=lambda v: len(v.specificity) > 0,
    ),
    Claim(
        "a BLUE variant is the best of the paper's methods, on either dataset",
        lambda v: "; ".join(
            f"{row.dataset}: {row.blue} {_interval(row)} points of success against {row.other}"
            for row in v.best.itertuples()
        ),
        {
            "the interval of the difference in success between the best BLUE variant and the best other method is "
            "above 0, on each dataset": lambda v: v.best.low > 0,
        },
    ),
    Claim(
        "BLUE works with PMET too (efficacy, generalization)",
        lambda v: _gains(v.pmet),
        {
            "the interval of PMET's gain, the mean of efficacy and generalization, is above 0": (
                lambda v: v.pmet.low > 0
            )
        },
        applies=lambda v: len(v.pmet) > 0,
    ),
)
#: The claim about all models together; it takes the average's row.
AVERAGE = Claim(
    f"BLUE improves its methods by {PUBLISHED_IMPROVEMENT} % on average (the paper's abstract)",
    lambda row: (
        f"{row['improvement']:+.1f} % [{row['low']:+.1f}, {row['high']:+.1f}], median over settings "
        f"{row['median']:+.1f} %; {row['points']:+.1f} [{row['points_low']:+.1f}, {row['points_high']:+.1f}] points"
    ),
    {
        "the interval of the average is above 0, in per cent and in points": (
            lambda row: row["low"] > 0 and row["points_low"] > 0
        ),
        f"the interval in per cent is above 0 and holds {PUBLISHED_IMPROVEMENT} %": (
            lambda row: 0 < row["low"] <= PUBLISHED_IMPROVEMENT <= row["high"]
        ),
    },
)


def blue_against_plain(gains: pd.DataFrame, best: pd.DataFrame, of_pmet: pd.DataFrame) -> list[Verdict]:
    """Of the main table, for one model: see :func:`~bluelib.reports.comparison.family_gains`, which has the paper's
    methods and, by themselves, PMET where the grid has it, and ``champions``."""
    view = View(gains, best, of_pmet)
    return [claim.verdict(view) for claim in CLAIMS if claim.applies(view)]


def average_improvement(average: Mapping[str, Any]) -> Verdict:
    """Of the last row of :func:`~bluelib.reports.comparison.improvement`, which is about all models."""
    return AVERAGE.verdict(average)
