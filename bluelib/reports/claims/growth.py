"""Claims of ``05_error_growth``."""

from __future__ import annotations

import pandas as pd

from ...metrics.editing import EDITING
from ...studies.ablation import PAIR, SHARED, SINGLE
from . import Claim, Numbers, above, apart, below
from .wording import band, listed, points

#: Points of success by which a choice of layers may be behind BLUE and still count as "about as good".
MARGIN = 3
#: The spectral norm of a sum of independent Gaussian matrices of rank ten, with the pocket models' shapes, grows like
#: this power of their number (`tests/reports/test_claims.py`).
UNRELATED = 0.2


class View:
    """How the error grows, what BLUE gains at the end of the sequence, and every choice of layers against BLUE.

    Attributes:
        batch, sequence: by measure, the exponent of its growth with the batch size, and along the sequence.
        editing, specificity: BLUE minus MEMIT at the end, by metric.
        ablated: whether the model has an ablation; without it, what follows is missing.
        against: by choice, its success minus BLUE's, at BLUE's specificity; ``pairs``, ``distributed``: rows of it.
        reached: by choice, whether it has BLUE's specificity, less half a point; ``edge``: whether its λ is the
            smallest or the largest that was tried.
        single: the best single layer that reaches BLUE's specificity, or None; ``gain``: its success minus BLUE's,
            with an interval in which the choice is repeated.
        searched: whether the ablation tried several λ. At one λ for all, a single layer may lack only strength.
        largest: the size of the largest batch whose error was measured.
        edits: the number of edits in the ablation.
        once: by layer, how far a sequence ends from one batch, with and without history (True, False); or None.
    """

    def __init__(self, numbers: Numbers) -> None:
        self.batch, self.sequence = (numbers["growth"][name] for name in ("batch", "sequence"))
        self.largest = max(row["edits"] for row in numbers["by_batch"])
        end = pd.DataFrame(numbers["end_differences"]).set_index("metric")
        self.editing, self.specificity = end.loc[end.index.isin(EDITING)], end.loc[["specificity"]]
        once = numbers.get("against_once")
        self.once = (
            None if once is None else pd.DataFrame(once).pivot(index="layer", columns="remembers", values="deviation")
        )
        self.ablated = "ablation_best" in numbers
        if not self.ablated:
            return
        choices = pd.DataFrame(numbers["ablation_best"]).set_index("choice")
        self.against = pd.DataFrame(numbers["ablation_differences"]).set_index("choice")
        self.pairs = self.against.loc[choices.index[choices.family == PAIR]]
        self.distributed = self.against.loc[choices.index[choices.family == SHARED]]
        self.reached, self.edge = choices.reached, choices.edge
        singles = choices[(choices.family == SINGLE) & choices.reached]
        self.single = singles.success.idxmax() if len(singles) else None
        self.gain = numbers["ablation_single"]
        self.searched = pd.DataFrame(numbers["ablation"]).mom2_update_weight.nunique() > 1
        self.edits = len(numbers["ablation_provenance"]["case_ids"])


def _power(exponent: Numbers) -> str:
    return f"n^{band(exponent)}"


def _gains(rows: pd.DataFrame) -> str:
    return "; ".join(f"{metric} {points(row)}" for metric, row in rows.iterrows()) + " points, paired over records"


def _distributed(view: View) -> str:
    found = []
    for name, row in view.distributed.iterrows():
        short = "" if view.reached[name] else " (does not reach BLUE's specificity)"
        found.append(f"{name.removesuffix(', distributed')} {points(row)}{short}")
    return f"with distributed residuals and BLUE's settings, against BLUE: {'; '.join(found)}"


def _single(view: View) -> str:
    if view.single is None:
        return "no single layer reaches BLUE's specificity"
    gain, at_edge = points(pd.Series(view.gain)), view.edge[view.single]
    found = (
        f"best single layer at BLUE's specificity: {view.single}, {gain} points of efficacy and generalization, the "
        "choice repeated in each draw"
    )
    return found + (" (at an end of the λ tried)" if at_edge else "")


def _against_once(view: View) -> str:
    assert view.once is not None  # or the claim would not apply
    return "‖ΔW_sequence − ΔW_once‖/‖ΔW_once‖ by layer: " + "; ".join(
        f"{'with' if remembers else 'without'} history {listed(view.once[remembers])}" for remembers in view.once
    )


def _pairs(view: View) -> list[int]:
    """By pair, whether it is worse than BLUE (1), better with BLUE's specificity (−1), or neither (0)."""
    answers = zip(view.pairs.index, below(view.pairs), strict=True)
    return [int(answer) if answer > 0 or view.reached[pair] else 0 for pair, answer in answers]


def _has_ablation(view: View) -> bool:
    return view.ablated


def _of_ablation(view: View) -> str:
    return f"{view.edits} edits"


CLAIMS = (
    Claim(
        "the error grows with the batch size, through ‖Q‖",
        lambda v: (
            f"‖E‖ ∝ {_power(v.batch['error'])}, ‖Q‖ ∝ {_power(v.batch['norm_q'])}, "
            f"‖R*‖ ∝ {_power(v.batch['norm_direct'])}"
        ),
        {
            "‖E‖ grows like nᵃ with the batch's size n: the interval of a is above 0": lambda v: above(
                v.batch["error"]
            ),
            "so does ‖Q‖: the interval of its a is above 0": lambda v: above(v.batch["norm_q"]),
            "‖Q‖ grows faster than ‖R*‖: the interval of its a is above ‖R*‖'s": (
                lambda v: apart(v.batch["norm_q"], v.batch["norm_direct"])
            ),
        },
        size=lambda v: f"batches of up to {v.largest} edits",
    ),
    Claim(
        "the error grows with the length of the edit sequence",
        lambda v: (
            f"of one batch ∝ {_power(v.sequence['error'])}; summed ∝ {_power(v.sequence['total'])}, where independent "
            f"Gaussian matrices give n^{UNRELATED}"
        ),
        {
            "each batch's own error grows like nᵃ along the sequence: the interval of a is above 0": lambda v: above(
                v.sequence["error"]
            ),
            f"their sum grows faster than one of Gaussian matrices: the interval of its a is above {UNRELATED}": (
                lambda v: above(v.sequence["total"], UNRELATED)
            ),
        },
    ),
    Claim(
        "with earlier keys remembered, a sequence of batches ends where one batch does",
        _against_once,
        {
            "with history the end is at most a tenth away, at each layer": lambda v: v.once[True] < 0.1,
            "it is nearer than without history, at each layer": lambda v: v.once[True] < v.once[False],
        },
        source="one-time",
        published="equal, where the keys do not move (a proof)",
        applies=lambda v: v.once is not None,
    ),
    Claim(
        "BLUE edits better than MEMIT at the end of the sequence",
        lambda v: _gains(v.editing),
        {"the interval of the gain is above 0, for each of efficacy and generalization": lambda v: above(v.editing)},
    ),
    Claim(
        "BLUE leaves more of the rest alone than MEMIT at the end of the sequence",
        lambda v: _gains(v.specificity),
        {"the interval of the gain in specificity is above 0": lambda v: above(v.specificity)},
    ),
    Claim(
        "it is the direct residual that makes BLUE better",
        _distributed,
        {
            "the interval of the difference from BLUE is below 0, for each choice with distributed residuals": (
                lambda v: below(v.distributed)
            ),
            "BLUE's specificity, less half a point, is reached, by each choice with distributed residuals": (
                lambda v: v.reached[v.distributed.index]
            ),
        },
        size=_of_ablation,
        applies=_has_ablation,
    ),
    Claim(
        "the first and the last are the two layers to update",
        lambda v: (
            f"of {len(v.pairs)} other pairs {int((v.pairs.high < 0).sum())} are worse than BLUE and "
            f"{int((v.pairs.low > 0).sum())} better by their intervals; all layers "
            f"{points(v.against.loc['all layers'])}"
        ),
        {
            "the interval of the difference from BLUE is below 0, for each other pair (above 0 it says the opposite if "
            "the pair reaches BLUE's specificity, less half a point)": _pairs,
        },
        size=_of_ablation,
        applies=_has_ablation,
    ),
    Claim(
        "one layer is about as good as BLUE's two",
        _single,
        {
            "take the best single layer whose specificity is at most half a point under BLUE's, chosen anew in each "
            f"draw: the interval of its difference from BLUE is above −{MARGIN} points": lambda v: (
                v.single is not None and above(v.gain, -MARGIN)
            ),
        },
        source="replication",
        published=(
            "Llama3, 10,000 edits, mean of efficacy and generalization: AlphaEdit at layer 4 alone 97.5, "
            "AlphaEdit_BLUE 97.3"
        ),
        size=_of_ablation,
        applies=lambda v: v.ablated and v.searched,
    ),
)
