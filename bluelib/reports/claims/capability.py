"""Claims of ``07_general_capability``."""

from __future__ import annotations

import pandas as pd

from ...studies.capability import MEAN
from . import Claim, Numbers, above, below
from .wording import by_method

#: Points of mean accuracy that an editor may lose and still count as keeping what the unedited model can do.
KEPT = 3


class View:
    """Mean accuracy over the tasks: of BLUE variants minus their plain methods, and its change along the sequence.

    Attributes:
        edits: the number of edits in the whole sequence.
        gains: of each BLUE variant, at the end of the sequence.
        plain: changes of the plain methods; ``plain_all`` are those from the start, ``plain_later`` those from the
            middle on.
        blue_all: changes of the BLUE variants from the start.
        able: whether the unedited model does better than guessing, by the interval: else there is nothing to keep.
    """

    def __init__(self, numbers: Numbers) -> None:
        gains, changes = (pd.DataFrame(numbers[name]) for name in ("gains", "changes"))
        self.edits = numbers["parameters"]["edits"]
        self.gains, changes = gains[gains.task == MEAN], changes[changes.task == MEAN]
        self.plain, blue = (changes[changes.editor.isin(set(names))] for names in (self.gains.plain, self.gains.editor))
        self.plain_all, self.plain_later = self.plain[self.plain.since == 0], self.plain[self.plain.since > 0]
        self.blue_all = blue[blue.since == 0]
        scores = pd.DataFrame(numbers["scores"])
        unedited = scores[(scores.task == MEAN) & (scores.edits == 0)]
        self.able = bool((unedited.low > pd.DataFrame(numbers["chance"]).chance.mean()).all())


CLAIMS = (
    Claim(
        "a BLUE variant keeps more of the model's general capability than its plain method",
        lambda v: (
            f"after {v.edits} edits, less the plain method, paired over items: {by_method(v.gains, 'editor')} "
            "points of mean accuracy"
        ),
        {"the interval of the gain in mean accuracy is above 0, for each BLUE variant": lambda v: above(v.gains)},
        applies=lambda v: v.able,
    ),
    Claim(
        "the plain methods lose general capability as edits add up",
        lambda v: (
            f"change over all {v.edits} edits: {by_method(v.plain_all, 'editor')} points; from edit "
            f"{v.plain_later.since.iloc[0]} on: {by_method(v.plain_later, 'editor')} points"
        ),
        {
            "the interval of the change in mean accuracy is below 0, for each plain method, over all edits and over "
            "the later ones": lambda v: below(v.plain),
        },
        applies=lambda v: v.able,
    ),
    Claim(
        f"the BLUE variants keep general capability: they lose less than {KEPT} points",
        lambda v: f"change over all {v.edits} edits: {by_method(v.blue_all, 'editor')} points",
        {
            f"the interval of the change in mean accuracy over all edits is above −{KEPT}, for each BLUE variant": (
                lambda v: above(v.blue_all, -KEPT)
            )
        },
        applies=lambda v: v.able,
    ),
)
