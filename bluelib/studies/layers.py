"""How much an edit of one layer alone contributes: the analysis behind the choice of critical layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import fmean

import pandas as pd

from ..data import Record
from ..editing.editor import Editor
from ..editing.residuals import DIRECT
from ..editing.sequence import edited
from ..io.timing import progress_bar
from ..models.model import Model
from ..models.scoring import score_targets


def layer_contributions(model: Model, records: Sequence[Record], editor: Editor, layers: Sequence[int]) -> pd.DataFrame:
    """Edit each layer alone with a direct residual, all records in one batch, and measure its contribution.

    The score is the paper's s = P(new | edited) − P(new | original). The paper compares direct with distributed
    residuals by it; here it compares layers.

    Args:
        model: left as it was found.
        records: the edits.
        editor: gives the solver and the options of the targets; its layers and residual are replaced.
        layers: the layers to try.

    Returns:
        Per layer the mean score over records after the rewrite prompt and after the paraphrases (P is the geometric
        mean over the new object's tokens).
    """
    growth = growth_of_probability(model, records)
    rows = []
    for layer in progress_bar(model.check_layers(layers), desc="layers", unit="layer"):
        method = replace(editor, layers=(layer,), residual=DIRECT)
        with edited(model, records, method, batch_size=len(records)):
            rows.append({"model": model.name, "layer": layer, **growth()})
    return pd.DataFrame(rows)


def growth_of_probability(model: Model, records: Sequence[Record]) -> Callable[[], dict[str, float]]:
    """Measure how probable the model finds the new objects now; the function returned measures the growth since then.

    Returns:
        A function without arguments, to be called on the edited model: the mean of s = P(new | edited) − P(new |
        original) after the rewrite prompt, ``rewrite``, and after the paraphrases, ``paraphrase``.

    Raises:
        ValueError: if no record has paraphrases.
    """
    if not any(record.paraphrases for record in records):
        raise ValueError("no record has paraphrases, which the comparison of layers needs: use records that have some")
    pairs = [(prompt, r.target_new) for r in records for prompt in (r.request.text, *r.paraphrases)]
    separators = [r.separator for r in records for _ in (r.request.text, *r.paraphrases)]

    def probabilities() -> list[float]:
        return [math.exp(score.log_prob) for score in score_targets(model, pairs, separators=separators)]

    original = probabilities()

    def growth() -> dict[str, float]:
        gains = iter([one - other for one, other in zip(probabilities(), original, strict=True)])
        rewrite, paraphrase = [], []
        for record in records:
            rewrite.append(next(gains))
            paraphrase += [next(gains) for _ in record.paraphrases]
        return {"rewrite": fmean(rewrite), "paraphrase": fmean(paraphrase)}

    return growth


def window_width(n_layers: int) -> int:
    """How many layers count as critical: five, as in MEMIT, or half the layers of a model that has fewer than ten."""
    return min(5, n_layers // 2) or 1


def layers_by_editing(contributions: pd.DataFrame, width: int = 5) -> list[int]:
    """The ``width`` consecutive layers with the largest mean contribution after paraphrases."""
    return best_window(contributions.set_index("layer").paraphrase, width)


def best_window(scores: pd.Series, width: int) -> list[int]:
    """The ``width`` consecutive layers with the largest mean of ``scores``, which is indexed by layer."""
    starts = [layer for layer in scores.index if all(layer + i in scores.index for i in range(width))]
    best = max(starts, key=lambda start: scores.loc[start : start + width - 1].mean())
    return list(range(best, best + width))
