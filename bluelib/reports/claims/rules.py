"""Claims of ``10_methods_since``."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd

from . import Claim, Numbers, above
from .wording import band, ordered


class View:
    """What rules for residuals give the layers, less what MEMIT's equal shares give.

    Attributes:
        replayed, weighted: differences of FE and of CAKE from MEMIT, by layer and measure, paired over requests. The
            last critical layer is left out; for FE so is the first, where its residual is the direct one.
    """

    def __init__(self, numbers: Numbers) -> None:
        gaps = ordered(numbers, "gaps", "layer")
        gaps = gaps[gaps.layer < gaps.layer.max()]
        self.replayed = gaps[(gaps.rule == "replayed") & (gaps.layer > gaps.layer.min())]
        self.weighted = gaps[gaps.rule == "weighted"]


#: These claims are this project's: they test the idea of a paper by single residuals, which the paper does not.
OURS = "not claimed there: our test of its idea"


def _larger(text: str, measure: str, rows: Callable[[View], pd.DataFrame], what: str, where: str, source: str) -> Claim:
    """The claim that a rule gives more of a measure than equal shares do, at each layer."""

    def of(view: View) -> pd.DataFrame:
        found = rows(view)
        return found[found.measure == measure]

    return Claim(
        text,
        lambda v: f"{what}: {', '.join(f'layer {row.layer} {band(row._asdict())}' for row in of(v).itertuples())}",
        {f"the interval of the difference in {measure} is above 0, at each layer {where}": lambda v: above(of(v))},
        source=source,
        published=OURS,
    )


CLAIMS = (
    _larger(
        "a replayed residual points more nearly where a layer's own does than a distributed one",
        "cosine",
        lambda v: v.replayed,
        "cosine with the direct residual, FE minus MEMIT",
        "between the first and the last",
        "FE",
    ),
    _larger(
        "a replayed residual contributes more than a distributed one",
        "contribution",
        lambda v: v.replayed,
        "contribution, FE minus MEMIT",
        "between the first and the last",
        "FE",
    ),
    _larger(
        "shares by causal effect contribute more than equal ones",
        "contribution",
        lambda v: v.weighted,
        "contribution, CAKE minus MEMIT",
        "before the last",
        "CAKE",
    ),
)
