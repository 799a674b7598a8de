"""Claims of ``10_methods_since``."""

from __future__ import annotations

import pandas as pd

from . import Claim, Numbers, above
from .wording import band, ordered


class View:
    """What rules for residuals give the layers, less what MEMIT's equal shares give.

    Attributes:
        replayed, weighted: differences of FE and of CAKE to MEMIT, by layer and measure, paired over requests; the last
            critical layer is left out, and of FE the first, where its residual is the direct one.
    """

    def __init__(self, numbers: Numbers) -> None:
        gaps = ordered(numbers, "gaps", "layer")
        gaps = gaps[gaps.layer < gaps.layer.max()]
        self.replayed = gaps[(gaps.rule == "replayed") & (gaps.layer > gaps.layer.min())]
        self.weighted = gaps[gaps.rule == "weighted"]


def _listed(rows: pd.DataFrame, measure: str) -> str:
    return ", ".join(f"layer {row.layer} {band(row._asdict())}" for row in rows[rows.measure == measure].itertuples())


CLAIMS = (
    Claim(
        "a replayed residual points more nearly where a layer's own does than a distributed one",
        lambda v: f"cosine with the direct residual, FE less MEMIT: {_listed(v.replayed, 'cosine')}",
        {
            "the interval of the difference in cosine is above 0, at each layer between the first and the last": (
                lambda v: above(v.replayed[v.replayed.measure == "cosine"])
            )
        },
        source="FE",
    ),
    Claim(
        "a replayed residual contributes more than a distributed one",
        lambda v: f"contribution, FE less MEMIT: {_listed(v.replayed, 'contribution')}",
        {
            "the interval of the difference in contribution is above 0, at each layer between the first and the last": (
                lambda v: above(v.replayed[v.replayed.measure == "contribution"])
            )
        },
        source="FE",
    ),
    Claim(
        "shares by causal effect contribute more than equal ones",
        lambda v: f"contribution, CAKE less MEMIT: {_listed(v.weighted, 'contribution')}",
        {
            "the interval of the difference in contribution is above 0, at each layer before the last": (
                lambda v: above(v.weighted[v.weighted.measure == "contribution"])
            )
        },
        source="CAKE",
    ),
)
