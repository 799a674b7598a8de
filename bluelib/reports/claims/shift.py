"""Claims of ``08_hidden_states``."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from ...editing.catalogue import entry
from . import Claim, Numbers, above, below
from .wording import by_method


class View:
    """How far the states of known facts move, for each editor, and for BLUE variants minus their plain methods.

    Attributes:
        facts: how many are known.
        half: the 95 % limit of the energy distance between two halves of the unedited facts.
        pairs: each plain method with its BLUE variant; ``plain`` and ``blue`` are their names.
        distance: of each editor, the energy distance to the unedited states, with its interval and ``p`` by swaps.
        energy, displacement, recalled: differences, BLUE minus plain.
    """

    def __init__(self, numbers: Numbers) -> None:
        self.facts, self.half = numbers["facts"], numbers["halves"]["energy"]
        found = pd.DataFrame(numbers["shift"])
        self.distance = found[found.measure == "energy"].set_index("editor")
        differences = pd.DataFrame(numbers["differences"]).set_index("measure")
        self.energy, self.displacement, self.recalled = (
            differences.loc[[name]] for name in ("energy", "displacement", "recalled")
        )
        self.plain, self.blue = self.energy.plain.tolist(), self.energy.blue.tolist()
        self.pairs = list(zip(self.plain, self.blue, strict=True))

    def distances(self, names: Sequence[str]) -> str:
        return "; ".join(f"{entry(name).label} {self.distance['mean'][name]:.4f}" for name in names)


CLAIMS = (
    Claim(
        "editing without BLUE shifts the hidden states of known facts",
        lambda v: (
            f"energy distance to the unedited states, {v.facts} facts: {v.distances(v.plain)} (p by swaps up to "
            f"{v.distance.p[v.plain].max():.4f}); two halves of the unedited facts have up to {v.half:.4f}"
        ),
        {
            "p by swaps is under 0.05, for each plain method": lambda v: v.distance.p[v.plain] < 0.05,
            "the interval of the energy distance is above what two halves of the unedited facts have, for each plain "
            "method": lambda v: above(v.distance.loc[v.plain], v.half) > 0,  # with few facts two halves are far apart
        },
    ),
    Claim(
        "BLUE keeps the hidden states of known facts closer to their original distribution",
        lambda v: f"energy distance, BLUE minus plain: {by_method(v.energy, 'blue', 4)}, paired over facts",
        {"the interval of the difference in energy distance is below 0, for each pair": lambda v: below(v.energy)},
    ),
    Claim(
        "with BLUE the distribution of hidden states hardly differs from before, and without BLUE it does",
        lambda v: (
            f"{v.distances(v.blue)}; without: {v.distances(v.plain)}; two halves of the unedited facts have up to "
            f"{v.half:.4f}"
        ),
        {
            "what two halves of the unedited facts have is above the interval with BLUE and below that without, for "
            "each pair": lambda v: [v.distance.high[blue] < v.half < v.distance.low[plain] for plain, blue in v.pairs],
        },
    ),
    Claim(
        "BLUE moves the hidden states of single known facts less",
        lambda v: (
            f"displacement, BLUE minus plain, in typical distances of two facts: {by_method(v.displacement, 'blue', 3)}"
        ),
        {"the interval of the difference in displacement is below 0, for each pair": lambda v: below(v.displacement)},
    ),
    Claim(
        "with BLUE more of the known facts are still recalled",
        lambda v: f"BLUE minus plain: {by_method(v.recalled, 'blue')} points",
        {"the interval of the difference in recalled facts is above 0, for each pair": lambda v: above(v.recalled)},
    ),
)
