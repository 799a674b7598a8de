"""Claims of the main table, from the frames of :mod:`bluelib.reports.comparison`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from ...metrics.editing import TEACHER_FORCED
from ..published import PUBLISHED_IMPROVEMENT
from . import Claim, Verdict, above
from .wording import points, published_mean


class View:
    """One model's gains in points, see :func:`~bluelib.reports.comparison.gains`; all datasets have equal weight.

    Attributes:
        editing, specificity: of BLUE variants of the paper's methods, over the plain ones.
        best: of the best BLUE variant over the best other method, on each dataset.
        pmet: of PMET_BLUE in editing.
        replayed, replayed_specificity: of FE variants over the plain ones.
        against_blue: of FE variants over BLUE's, in the score.
        shares: of CAKE's methods over those with even shares, in the score.
    """

    def __init__(self, gains: Mapping[str, pd.DataFrame], best: pd.DataFrame) -> None:
        def of(pairs: str, measure: str) -> pd.DataFrame:
            frame = gains[pairs]
            return frame[frame.measure == measure]

        self.editing, self.specificity = of("blue", "editing"), of("blue", "specificity")
        self.best = best
        self.pmet = of("pmet", "editing")
        self.replayed, self.replayed_specificity = of("fe", "editing"), of("fe", "specificity")
        self.against_blue, self.shares = of("fe over blue", "score"), of("cake", "score")


_OF_FE = published_mean(
    "Llama3-8B-Instruct", "MEMIT", "MEMIT_BLUE", "MEMIT_FE", table="replications_fe", kind="replication"
)


def _gains(rows: pd.DataFrame, of: str = "method") -> str:
    each = "; ".join(f"{row[of]} {points(row)}" for _, row in rows.iterrows())
    return f"{each} points, paired over records"


CLAIMS = (
    Claim(
        "every BLUE variant edits better than its plain method (efficacy, generalization)",
        lambda v: _gains(v.editing),
        {
            "the interval of the gain, the mean of efficacy and generalization, is above 0, for each method "
            "(where a single model is judged, on each dataset that it was run on)": (lambda v: above(v.editing))
        },
        published=published_mean("Llama3-8B-Instruct", "MEMIT", "MEMIT_BLUE", "AlphaEdit", "AlphaEdit_BLUE"),
        applies=lambda v: len(v.editing) > 0,
    ),
    Claim(
        "every BLUE variant leaves more of the rest alone (specificity)",
        lambda v: _gains(v.specificity),
        {
            "the interval of the gain in specificity is above 0, for each method (where a single model is judged, on "
            "each dataset that it was run on)": lambda v: above(v.specificity)
        },
        published=published_mean(
            "Llama3-8B-Instruct", "MEMIT", "MEMIT_BLUE", "AlphaEdit", "AlphaEdit_BLUE", of=TEACHER_FORCED[2:]
        ),
        applies=lambda v: len(v.specificity) > 0,
    ),
    Claim(
        "a BLUE variant is the best of the paper's methods, on each dataset",
        lambda v: "; ".join(
            f"{row.dataset}: {row.blue} {points(row)} points, mean of all three metrics, against {row.other}"
            for _, row in v.best.iterrows()
        ),
        {
            "the interval of the difference in the score between the best BLUE variant and the best other method is "
            "above 0, on each dataset": lambda v: above(v.best),
        },
        applies=lambda v: len(v.best) > 0,
    ),
    Claim(
        "BLUE works with PMET too (efficacy, generalization)",
        lambda v: _gains(v.pmet),
        {"the interval of PMET's gain, the mean of efficacy and generalization, is above 0": (lambda v: above(v.pmet))},
        applies=lambda v: len(v.pmet) > 0,
    ),
    Claim(
        "replaying one target of the first critical layer edits better than dividing one of the last",
        lambda v: _gains(v.replayed, "other"),
        {
            "the interval of FE's gain over the plain method, the mean of efficacy and generalization, is above 0, for "
            "each method": lambda v: above(v.replayed),
        },
        source="FE",
        published=f"one batch of 2,000; {_OF_FE}",
        applies=lambda v: len(v.replayed) > 0,
    ),
    Claim(
        "replaying does better than BLUE's two targets",
        lambda v: _gains(v.against_blue, "other"),
        {
            "the interval of FE's gain in the score over BLUE's is above 0, for each method": (
                lambda v: above(v.against_blue)
            ),
        },
        source="FE",
        published=f"one batch of 2,000; {_OF_FE}",
        applies=lambda v: len(v.against_blue) > 0,
    ),
    Claim(
        "shares by the layers' causal effect do better than even ones",
        lambda v: _gains(v.shares, "other"),
        {
            "the interval of the gain in the score over the method with even shares is above 0, for each method": (
                lambda v: above(v.shares)
            ),
        },
        source="CAKE",
        applies=lambda v: len(v.shares) > 0,
    ),
)


def _both(one: int, other: int) -> int:
    """1 or −1 where two answers agree on it, else 0."""
    return one if one == other else 0


#: The claim about all models together; its functions take the row of the average.
AVERAGE = Claim(
    f"BLUE improves its methods by {PUBLISHED_IMPROVEMENT} % on average",
    lambda row: (
        f"{row['improvement']:+.1f} % [{row['low']:+.1f}, {row['high']:+.1f}], median over settings "
        f"{row['median']:+.1f} %; {row['points']:+.1f} [{row['points_low']:+.1f}, {row['points_high']:+.1f}] points"
    ),
    {
        "the interval of the average is above 0, in per cent and in points": lambda row: _both(
            above(row), above({"low": row["points_low"], "high": row["points_high"]})
        ),
        f"the interval in per cent is above half of {PUBLISHED_IMPROVEMENT} % and holds {PUBLISHED_IMPROVEMENT} %": (
            lambda row: (
                -1
                if row["high"] < PUBLISHED_IMPROVEMENT
                else PUBLISHED_IMPROVEMENT / 2 < row["low"] <= PUBLISHED_IMPROVEMENT
            )
        ),
    },
    published=f"{PUBLISHED_IMPROVEMENT} % (the abstract)",
)


def of_main_table(gains: Mapping[str, pd.DataFrame], best: pd.DataFrame) -> list[Verdict]:
    """The verdicts on the claims of the main table, for one model.

    Args:
        gains: frames of :func:`~bluelib.reports.comparison.gains` under ``blue``, ``pmet``, ``fe``, ``fe over blue``
            and ``cake``, see :class:`View`.
        best: frame of :func:`~bluelib.reports.comparison.champions`.
    """
    view = View(gains, best)
    return [claim.verdict(view) for claim in CLAIMS if claim.applies(view)]


def average_improvement(average: Mapping[str, Any]) -> Verdict:
    """The verdict on :data:`AVERAGE`, from the last row of :func:`~bluelib.reports.comparison.improvement`."""
    return AVERAGE.verdict(average)
