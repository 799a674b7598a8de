"""Hyper-parameters by one small search, the same for every method, on records that no result is reported on.

A coordinate search: starting from the first candidate of each axis, the axes are walked in order and the best
candidate of each is kept while the others stay fixed; where the best of three or more numbers is the largest or the
smallest, the axis goes on in that direction, twice at most. A trial edits the first 60 records of the ``tune`` split in
20 batches of 3, and is scored by the harmonic mean of efficacy, generalization and specificity (ROME's ``Score``).
Every trial is recorded.
"""

from __future__ import annotations

from pathlib import Path
from statistics import harmonic_mean
from typing import Any

from ..data.datasets import load_dataset
from ..data.provenance import provenance
from ..editing.catalogue import EachAlone, Scaled, known, methods
from ..editing.named import get_editor
from ..editing.sequence import edited
from ..editing.settings import critical_layers, model_configs
from ..io.formats import write_json
from ..io.paths import project_path
from ..io.timing import progress_bar
from ..metrics import Scores, evaluate
from ..metrics.editing import TEACHER_FORCED
from ..models.model import Model

DATASET, EDITS, BATCH_SIZE = "pocket-counterfact", 60, 3


def axes(model: Model, editor: str) -> dict[str, tuple]:
    """The axes of an editor's row in the catalogue, each a tuple of candidates for this model.

    Adam's rate is in units of hidden states, whose size differs between models, so it is searched around the one of the
    model's configuration.

    Raises:
        ValueError: for an editor that has none, or a model without a configuration.
    """
    row = known(editor)
    if row.axes is None:
        there = [name for name, other in methods().items() if other.axes is not None]
        raise ValueError(f"there is no search for editor {editor!r}; known: {', '.join(there)}")
    layers = critical_layers(model.name)
    targets = model_configs()[model.name]["targets"]
    found = {}
    for axis, candidates in row.axes.items():
        if isinstance(candidates, EachAlone):
            candidates = tuple([layer] for layer in (layers[0], layers[len(layers) // 2], layers[-1]))
        elif isinstance(candidates, Scaled):
            candidates = tuple(targets[axis] * factor for factor in candidates.factors)
        found[axis] = candidates
    return found


def score(scores: Scores) -> float:
    """Harmonic mean of efficacy, generalization and specificity, in per cent (0 if one of them is)."""
    return harmonic_mean([scores.means[metric] for metric in TEACHER_FORCED])


def further(candidates: tuple, best: Any) -> Any | None:
    """The next number beyond ``best`` if it is at an end of three or more, in the same ratio; None otherwise."""
    numbers = sorted(c for c in candidates if isinstance(c, (int, float)))
    if len(numbers) < 3 or best not in (numbers[0], numbers[-1]):
        return None
    return best * best / (numbers[1] if best == numbers[0] else numbers[-2])


def tune(model: Model, editor: str, folder: Path | None = None) -> Path:
    """Search, and write all trials with the best one to ``results/tuning/<model>-<editor>.json``."""
    records = load_dataset(DATASET, split="tune", limit=EDITS)
    trials: list[dict[str, Any]] = []

    def attempt(choice: dict[str, Any]) -> float:
        for trial in trials:
            if trial["choice"] == choice:
                return trial["score"]
        try:
            method = get_editor(editor, model, **choice)
            with edited(model, records, method, batch_size=BATCH_SIZE):
                scores = evaluate(model, records, generate=False)
            trial = {
                "choice": choice,
                "score": round(score(scores), 3),
                **{metric: round(scores.means[metric], 2) for metric in TEACHER_FORCED},
            }
        except ArithmeticError as error:
            trial = {"choice": choice, "score": 0.0, "error": str(error)}
        trials.append(trial)
        bar.set_postfix(score=trial["score"])
        bar.update()
        return trial["score"]

    space = axes(model, editor)
    bar = progress_bar(total=sum(map(len, space.values())), desc=f"{model.name} {editor}", unit="trial")
    best = {axis: candidates[0] for axis, candidates in space.items()}
    for axis, candidates in space.items():
        best = max(({**best, axis: value} for value in candidates), key=attempt)
        for _ in range(2):
            value = further(candidates, best[axis])
            if value is None or attempt({**best, axis: value}) <= attempt(best):
                break
            best, candidates = {**best, axis: value}, (*candidates, value)
    bar.close()
    result = {
        "model": model.name,
        "editor": editor,
        "dataset": DATASET,
        "split": "tune",
        "edits": EDITS,
        "batch_size": BATCH_SIZE,
        "layers": get_editor(editor, model, **best).layers,
        "axes": space,
        "best": best,
        "trials": trials,
        "provenance": {k: v for k, v in provenance(model, records).items() if k != "case_ids"},
    }
    path = (folder or project_path("results", "tuning")) / f"{model.name}-{editor}.json"
    return write_json(path, result, indent=1)
