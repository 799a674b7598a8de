"""Claims of ``09_long_texts_and_batches``."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd

from ...editing.catalogue import APPENDIX, entry
from ...metrics.editing import EDITING
from . import Claim, Numbers, above
from .wording import band, points


class View:
    """BLUE variants minus their plain methods in one large batch and on long texts, and how much longer they take.

    Attributes:
        size: the size of the largest batch.
        pmet, editing, specificity: differences in that batch. ``pmet`` has PMET's in efficacy and generalization,
            ``editing`` the other methods' in these, and ``specificity`` all methods' in specificity.
        edits: the number of edits with long texts.
        long: differences after the question, in all measures but that of the whole text.
        times: ratios of times, by BLUE variant.
    """

    def __init__(self, numbers: Numbers) -> None:
        batch = pd.DataFrame(numbers["batch_differences"])
        self.size = int(batch.edits.max())
        largest = batch[batch.edits == self.size]
        editing = largest.metric.isin(EDITING)
        of_pmet = largest.plain.map(lambda name: entry(name).reported == APPENDIX)
        self.pmet, self.editing = largest[editing & of_pmet], largest[editing & ~of_pmet]
        self.specificity = largest[largest.metric == "specificity"]
        self.edits = numbers["parameters"]["edits"]
        long = pd.DataFrame(numbers["long_form_differences"])
        self.long = long[(long.prompt == "question") & (long.metric != "whole")]
        self.times = pd.DataFrame(numbers["time_ratios"])


def _by_variant(rows: pd.DataFrame) -> str:
    """Each BLUE variant's differences, metric by metric."""
    return "; ".join(
        f"{entry(name).label} {', '.join(f'{row.metric} {points(row)}' for _, row in group.iterrows())}"
        for name, group in rows.groupby("blue", sort=False)
    )


def _in_one_batch(text: str, rows_of: Callable[[View], pd.DataFrame]) -> Claim:
    """A claim about some of the differences in the largest batch, if there are any."""
    return Claim(
        text,
        lambda v: f"one batch of {v.size}, BLUE minus plain in points: {_by_variant(rows_of(v))}; paired over records",
        {
            "the interval of the difference in the largest batch is above 0, for each BLUE variant and metric": (
                lambda v: above(rows_of(v))
            )
        },
        size=lambda v: f"one batch of {v.size}",
        applies=lambda v: len(rows_of(v)) > 0,
    )


CLAIMS = (
    _in_one_batch("PMET_BLUE edits better than PMET in one large batch", lambda v: v.pmet),
    _in_one_batch("BLUE edits better in one large batch, with methods other than PMET", lambda v: v.editing),
    _in_one_batch("BLUE leaves more of the rest alone in one large batch, PMET included", lambda v: v.specificity),
    Claim(
        "BLUE edits better where the target is a text of several sentences",
        lambda v: (
            f"{v.edits} edits, after the question, BLUE minus plain in points: {_by_variant(v.long)}; "
            "paired over records"
        ),
        {
            "the interval of the difference after the question is above 0, for each BLUE variant and each measure but "
            "that of the whole text": lambda v: above(v.long),
        },
    ),
    Claim(
        "an edit with BLUE takes longer than one without",
        lambda v: (
            f"times as long: {'; '.join(f'{entry(row.blue).label} {band(row)}' for _, row in v.times.iterrows())}, "
            "paired over batches"
        ),
        {"the interval of the ratio of times is above 1, for each BLUE variant": lambda v: above(v.times, 1)},
        source="replication",
        published="slower per edit",
    ),
)
