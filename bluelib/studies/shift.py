"""How far edits move the hidden states of facts that they should leave alone.

The states h are outputs of a block at the last token of a known fact's prompt, (n, d_model), one row per fact; X are
those of the unedited model, Y those of the edited one. The unit is the typical distance between two facts, the mean of
‖x_i − x_j‖ over i ≠ j. Three measures:

- *displacement* of a fact, ‖y_i − x_i‖: how far it moves, in any direction;
- *mean shift* ‖mean(y_i − x_i)‖: how far all of them move together;
- *energy distance* of the two distributions, 2 E‖X − Y'‖ − E‖X − X'‖ − E‖Y − Y'‖ (Székely & Rizzo 2013), which is zero
  only for equal distributions. X', Y' are independent of X, Y, so it is estimated by the U-statistic over pairs of
  *different* facts. The estimate has no bias although x_i and y_i belong together, and it may be negative:

      E = Σ_{i≠j} h_ij / (n(n − 1)),   h_ij = ‖x_i − y_j‖ + ‖y_i − x_j‖ − ‖x_i − x_j‖ − ‖y_i − y_j‖.

*Null by swaps.* The samples are paired. If the edit had no preferred direction, before and after could be swapped in
any fact: (x_i, y_i) and (y_i, x_i) would be equally likely. A swap of fact i changes the sign of y_i − x_i and of every
h_ij with this i. So, with independent signs ε_i = ±1, the null of the mean shift is ‖Σ ε_i (y_i − x_i)‖ / n. That of
the energy distance is Σ_{i≠j} ε_i ε_j h_ij / (n(n − 1)), whose mean is zero. p is the share of draws that are at least
as large as the value seen, which itself counts as one draw. The test is exact, and it is strict: it finds a common
shift much smaller than the spread.

*Null by halves.* The yardstick for a picture: how far are two samples of one distribution from each other? The unedited
states are cut at random into two disjoint halves, and the same two distances are taken between them (with the unbiased
U-statistic for two independent samples). Two samples of n/2 facts of the *unedited* model may well be as far apart as
any distance below the 95 % quantile.

*Intervals* are over facts, by the jackknife. If a statistic is T, and T_(−i) without fact i, this fact has the
pseudo-value n·T − (n − 1)·T_(−i). The mean of the pseudo-values is T itself for a U-statistic (and T less its bias of
order 1/n for the mean shift). So they are treated like values, one for each fact, also in paired comparisons of two
editors.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import pandas as pd
from scipy.spatial.distance import cdist
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from ..data import Probe, Record
from ..data.datasets import of_pocket_world
from ..data.download import cached, downloaded, stream_entries
from ..metrics.intervals import intervals_by
from ..models.model import Model
from ..models.representations import prompt_hidden
from ..models.scoring import score_targets
from ..pocket.datasets import edited_subjects
from ..pocket.world import build_world

DRAWS = 2000
PROJECTIONS = ("pca", "tsne")


def known_facts(model: Model, dataset: str, records: Sequence[Record], most: int, *, seed: int = 0) -> list[Probe]:
    """Facts that no record edits and that the model knows: every token of the answer is its first choice.

    For a pocket dataset: one fact about each subject that no record of either split edits, in a wording of the training
    text. For any other dataset: ROME's known facts, if `blue download known-facts` has fetched them, or else the
    records' locality probes. Facts that are about an edited subject or mention one are left out.

    Args:
        model: the unedited model.
        dataset: the name under which ``records`` were loaded.
        records: the edits.
        most: the largest number of facts.
        seed: of the choice.

    Raises:
        ValueError: if the model has been edited, there are fewer than four such facts, or the file of known facts does
            not have the expected hash.
    """
    model.check_unedited("known facts")
    draw = random.Random(seed)
    if of_pocket_world(dataset):
        edited = edited_subjects()
        untouched = [facts for subject, facts in build_world().by_subject().items() if subject not in edited]
        chosen = [draw.choice(facts) for facts in untouched]
        probes = [Probe(draw.choice(fact.seen_statements).format(fact.subject), fact.object) for fact in chosen]
    else:
        subjects = {record.subject for record in records}
        if cached("known-facts").exists():
            facts = [fact for fact in stream_entries(downloaded("known-facts")) if fact["subject"] not in subjects]
            found = {fact["prompt"]: Probe(fact["prompt"].rstrip(), fact["attribute"]) for fact in facts}
        else:
            found = {probe.prompt: probe for record in records for probe in record.locality if probe.answer is not None}
        probes = [probe for prompt, probe in found.items() if not any(subject in prompt for subject in subjects)]
    draw.shuffle(probes)
    known = [probe for probe, right in zip(probes, recalled(model, probes), strict=True) if right][:most]
    if len(known) < 4:
        raise ValueError(
            f"{model.name} knows {len(known)} of the {len(probes)} facts that {dataset} has besides the "
            f"{len(records)} edited ones; at least 4 are needed"
        )
    return known


def recalled(model: Model, facts: Sequence[Probe]) -> list[bool]:
    """For each fact, which must have an answer, whether the model's first choice is right at every token of it."""
    pairs = [(fact.prompt, cast(str, fact.answer)) for fact in facts]
    return [score.accuracy == 1 for score in score_targets(model, pairs)]


def fact_states(model: Model, facts: Sequence[Probe], layer: int) -> np.ndarray:
    """Outputs of block ``layer`` at the last token of each fact's prompt, ``(n, d_model)`` float64."""
    return prompt_hidden(model, [fact.prompt for fact in facts], layer).T.double().cpu().numpy()


@dataclass(frozen=True)
class Shift:
    """How far states moved, in units of the typical distance between two facts.

    Attributes:
        values: by measure, ``(n,)``: displacements, and the other measures' pseudo-values.
        swaps: by measure except displacement, the 95 % quantile of its null by swaps.
        p: by measure except displacement, its p-value under that null.
    """

    values: Mapping[str, np.ndarray]
    swaps: Mapping[str, float]
    p: Mapping[str, float]


def typical_distance(states: np.ndarray) -> float:
    """The mean distance between two different rows.

    Raises:
        ValueError: if there are fewer than four rows, or all rows are equal.
    """
    n = len(states)
    distance = cdist(states, states).sum() / (n * (n - 1)) if n >= 4 else 0.0
    if not distance:
        raise ValueError(f"{n} states have no typical distance: at least 4 are needed, and not all alike")
    return float(distance)


def measure_shift(before: np.ndarray, after: np.ndarray, *, seed: int = 0) -> Shift:
    """All measures with their null by swaps.

    Args:
        before, after: states of the same facts in the same order, ``(n, d)``.
        seed: of the swaps.

    Raises:
        ValueError: if the shapes differ; see also :func:`typical_distance`.
    """
    if before.shape != after.shape:
        raise ValueError(f"states before {before.shape} and after {after.shape} are not of the same facts")
    unit = typical_distance(before)
    x, y = before / unit, after / unit
    moves, n = y - x, len(x)
    cross = cdist(x, y)
    kernel = cross + cross.T - cdist(x, x) - cdist(y, y)  # h_ij
    np.fill_diagonal(kernel, 0)
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], (DRAWS, n))

    energy = kernel.sum() / (n * (n - 1))
    mean = np.linalg.norm(moves.mean(0))
    without = np.linalg.norm((moves.sum(0) - moves) / (n - 1), axis=1)  # the mean shift without each fact
    seen = {"mean_shift": mean, "energy": energy}
    nulls = {
        "mean_shift": np.linalg.norm(signs @ moves, axis=1) / n,
        "energy": ((signs @ kernel) * signs).sum(1) / (n * (n - 1)),
    }
    return Shift(
        {
            "displacement": np.linalg.norm(moves, axis=1),
            "mean_shift": n * mean - (n - 1) * without,
            "energy": (2 * kernel.sum(1) - n * energy) / (n - 2),
        },
        {name: float(np.quantile(null, 0.95)) for name, null in nulls.items()},
        {name: float((1 + (null >= seen[name] - 1e-12).sum()) / (1 + DRAWS)) for name, null in nulls.items()},
    )


def halves(before: np.ndarray, *, seed: int = 0) -> dict[str, float]:
    """95 % quantiles of mean shift and energy distance between two random disjoint halves of the same states.

    Raises:
        ValueError: see :func:`typical_distance`.
    """
    x = before / typical_distance(before)
    n, m = len(x), len(x) // 2
    order = np.random.default_rng(seed).permuted(np.tile(np.arange(n), (DRAWS, 1)), axis=1)
    first, second = ((order < m).astype(float), ((order >= m) & (order < 2 * m)).astype(float))  # (draws, n)
    distances = cdist(x, x)
    to_first, to_second = first @ distances, second @ distances
    cross = (to_first * second).sum(1) / m**2
    within = ((to_first * first).sum(1) + (to_second * second).sum(1)) / (m * (m - 1))
    shifts = np.linalg.norm((first - second) @ x, axis=1) / m
    return {"mean_shift": float(np.quantile(shifts, 0.95)), "energy": float(np.quantile(2 * cross - within, 0.95))}


def shift_frame(shifts: Mapping[str, Shift], known: Mapping[str, Sequence[bool]]) -> pd.DataFrame:
    """Measures per fact, and whether each is still recalled (in per cent): columns editor, measure, fact, value."""
    values = {name: {**found.values, "recalled": 100.0 * np.asarray(known[name])} for name, found in shifts.items()}
    return pd.DataFrame(
        [
            {"editor": editor, "measure": measure, "fact": fact, "value": float(value)}
            for editor, found in values.items()
            for measure, column in found.items()
            for fact, value in enumerate(column)
        ]
    )


def shift_table(values: pd.DataFrame, shifts: Mapping[str, Shift]) -> pd.DataFrame:
    """The means of :func:`shift_frame` with intervals; and ``swaps`` and ``p`` of the measures that have a null."""
    found = intervals_by(values, ["editor", "measure"], "value")
    keys = list(zip(found.editor, found.measure, strict=True))
    for column in ("swaps", "p"):
        nulls = [getattr(shifts[editor], column).get(measure) for editor, measure in keys]
        found[column] = pd.Series(nulls, dtype=object)
    return found


def project(
    before: np.ndarray, after: Mapping[str, np.ndarray], projection: str = "pca", *, seed: int = 0
) -> tuple[pd.DataFrame, list[str]]:
    """Project states onto a plane.

    ``pca``: the first two principal components of the states *before*. The states after are projected onto the same
    axes, so a point's place means the same in every picture. ``tsne``: fitted to all states together, as it cannot
    place further ones. Distances in it mean little, and it depends on the seed and on what else is in the picture.

    Args:
        before: ``(n, d)``.
        after: by editor, ``(n, d)``.
        projection: ``pca`` or ``tsne``.
        seed: of t-SNE.

    Returns:
        Columns ``state`` (``before``, or the editor), ``x``, ``y``; and the labels of the axes.

    Raises:
        ValueError: if the projection is unknown.
    """
    if projection not in PROJECTIONS:
        raise ValueError(f"projection must be one of {', '.join(PROJECTIONS)}, not {projection!r}")
    states = {"before": before, **after}
    if projection == "pca":
        components = PCA(2, svd_solver="full").fit(before)
        points = components.transform(np.concatenate(list(states.values())))
        shares = components.explained_variance_ratio_
        labels = [f"{name} component ({share:.0%})" for name, share in zip(("first", "second"), shares, strict=True)]
    else:
        every = np.concatenate(list(states.values()))
        points = TSNE(2, init="pca", perplexity=min(30, len(every) / 4), random_state=seed).fit_transform(every)
        labels = ["t-SNE 1", "t-SNE 2"]
    names = [name for name, rows in states.items() for _ in rows]
    return pd.DataFrame({"state": names, "x": points[:, 0], "y": points[:, 1]}), labels
