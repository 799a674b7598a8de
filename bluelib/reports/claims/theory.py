"""Claims of ``03_theory``."""

from __future__ import annotations

import pandas as pd

from . import Claim, Numbers, above, apart
from .wording import listed, ordered, rises


class View:
    """The error against its bounds, by distance, and the gain with a history of keys.

    Attributes:
        cells, violations: how many errors were measured, and how often one was above a bound.
        far: by bound, the median of bound / error at the largest distance.
        relative: ‖E‖/‖R*Q‖ by distance.
        history: ‖Q_p‖/‖Q‖ with all other edits made before.
    """

    def __init__(self, numbers: Numbers) -> None:
        self.cells, self.violations = numbers["cells"], numbers["violations"]
        tightness = pd.DataFrame(numbers["tightness"])
        self.far = tightness[tightness.distance == tightness.distance.max()].set_index("bound")["median"]
        self.relative = ordered(numbers, "relative", "distance")
        self.history = numbers["history_ratio"]


CLAIMS = (
    Claim(
        "‖Δ* − Δ‖ is at most the bound of Theorem 4.1",
        lambda v: f"{v.violations} violations in {v.cells} cells, of it and of three closer bounds",
        {"no measured error is above this bound or one of three closer ones": lambda v: v.violations == 0},
    ),
    Claim(
        "the bound tells how large the error is",
        lambda v: (
            f"at the largest distance the paper's bound is {v.far['paper']:.1f} times the error, "
            f"tight {v.far['tight']:.1f}, shared {v.far['shared']:.1f} times (medians)"
        ),
        {
            "at the largest distance, the paper's bound is under 2 times the error (median)": lambda v: (
                v.far["paper"] < 2
            )
        },
    ),
    Claim(
        "the error grows with the distance L − l",
        lambda v: f"‖E‖/‖R*Q‖ at L − l = 1, 2, …: {listed(v.relative['mean'])}",
        {
            "the mean of ‖E‖/‖R*Q‖ (our normalisation) rises at every step of the distance": lambda v: rises(
                v.relative["mean"]
            ),
            "its interval at the largest distance is above that at the smallest": (
                lambda v: apart(v.relative.iloc[-1], v.relative.iloc[0])
            ),
        },
    ),
    Claim(
        "earlier keys make ‖Q‖, and so the bound, grow (Lemma 4.3)",
        lambda v: (
            f"‖Q_p‖/‖Q‖ with all other edits made before: {v.history['mean']:.3f} "
            f"[{v.history['low']:.3f}, {v.history['high']:.3f}]"
        ),
        {"the interval of ‖Q_p‖/‖Q‖ is above 1": lambda v: above(v.history, 1)},
    ),
)
