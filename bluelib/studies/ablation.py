"""Which layers have to be updated? Compares every pair, every single layer and all of them, with direct residuals.

The paper compares MEMIT's five distributed layers with BLUE's two boundary layers. It leaves open whether the boundary
matters, the number of layers, or the direct residual. Here every choice edits the same records in the same batches, for
several λ (MEMIT's ``mom2_update_weight``). A choice that disturbs less may simply edit less, so choices are compared at
the same specificity.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations, product
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pandas as pd

from ..data import Record
from ..data.datasets import load_dataset
from ..data.provenance import provenance, repeated_subjects
from ..editing.editor import Editor
from ..editing.method import describe
from ..editing.named import get_composition
from ..editing.residuals import DISTRIBUTED
from ..editing.sequence import edited
from ..editing.solvers import Ridge
from ..io.checks import check_whole
from ..io.formats import read_json, write_json
from ..io.paths import plain, project_path
from ..io.timing import progress_bar
from ..metrics import evaluate
from ..metrics.editing import TEACHER_FORCED, editing_scores
from ..metrics.intervals import RESAMPLES, Interval, interval, limits
from ..models.known import scale_of
from ..models.model import Model

log = logging.getLogger(__name__)

EDITS, BATCH_SIZE, WEIGHTS = 60, 10, (10, 100, 1000)
DATASET = "pocket-counterfact"
BLUE = "BLUE"
PAIR, SINGLE, SHARED = "another pair, direct", "one layer, direct", "distributed, BLUE's settings"


def choices(model: Model, **text: Any) -> dict[str, tuple[str, Editor]]:
    """Each choice of layers and residual by name: its family and its editor.

    MEMIT has its own settings. The others have those of MEMIT_BLUE, except for the layers and, where the name says so,
    the residual. ``text``: the ``corpus`` and the ``tokens`` for second moments, by default the settings'.
    """
    memit, blue = (get_composition(name, model, **text) for name in ("memit", "memit_blue"))
    critical = memit.layers
    found = {"MEMIT": ("MEMIT", memit), BLUE: ("BLUE: first and last layer", blue)}
    for pair in combinations(critical, 2):
        if pair != blue.layers:
            found[f"layers {pair[0]} and {pair[1]}"] = (PAIR, replace(blue, layers=pair))
    for layer in critical:
        found[f"layer {layer}"] = (SINGLE, replace(blue, layers=(layer,)))
    found["all layers"] = ("all layers, direct", replace(blue, layers=critical))
    for name, layers in (("all layers", critical), ("first and last", blue.layers)):
        shared = replace(blue, layers=layers, residual=DISTRIBUTED)
        found[f"{name}, distributed"] = (SHARED, shared)
    return found


def run_ablation(
    model: Model,
    *,
    dataset: str | Path = DATASET,
    split: str = "report",
    edits: int | None = None,
    batch_size: int | None = None,
    weights: Sequence[float] | None = None,
    corpus: str | None = None,
    tokens: int | None = None,
) -> Path:
    """Run every choice at every λ and write ``results/ablation/<model>.json``; runs that exist are kept.

    If the model's weights, the records or the batches have changed, the file starts over. A run whose settings have
    changed is made again.

    Args:
        model: left as it was.
        dataset, split: the records.
        edits: how many records; by default :data:`EDITS`, or all if there are fewer.
        batch_size: edits per batch; by default :data:`BATCH_SIZE`, or all if there are fewer.
        weights: values of λ; by default :data:`WEIGHTS` for a pocket model, and 0.1, 1 and 10 times the λ of
            MEMIT_BLUE's settings for any other.
        corpus, tokens: for second moments; by default the settings'.

    Raises:
        ValueError: as :func:`~bluelib.get_editor` and :func:`~bluelib.load_dataset`; if the text is too short; if a
            record has no paraphrases, no locality probe with an answer, or no true object to compare with.
    """
    text = {"corpus": corpus, "tokens": tokens}
    tried = choices(model, **{name: value for name, value in text.items() if value is not None})
    records = load_dataset(dataset, split=split, limit=edits, up_to=None if edits else EDITS)
    for record in records:
        lacks = {
            "target_true": record.kind != "zsre" and record.target_true is None,
            "paraphrases": not record.paraphrases,
            "locality probe with an answer": all(probe.answer is None for probe in record.locality),
        }
        if missing := [what for what, lacking in lacks.items() if lacking]:
            raise ValueError(
                f"record {record.case_id} has no {missing[0]}: choices of layers are compared by efficacy, "
                "generalization and specificity, so every record needs all three"
            )
    batch_size = min(BATCH_SIZE, len(records)) if batch_size is None else batch_size
    check_whole("batch_size", batch_size, 1, len(records), "the number of records")
    if weights is None:
        own = tried[BLUE][1].solver
        assert isinstance(own, Ridge)
        weights = WEIGHTS if scale_of(model.name) == "pocket" else [own.weight * factor for factor in (0.1, 1, 10)]
    tried["MEMIT"][1].check(model)
    origin = provenance(model, records)
    identity = {
        "model": model.name,
        "dataset": str(dataset),
        **({} if split == "report" else {"split": split}),
        **({} if origin["dtype"] == "float32" else {"dtype": origin["dtype"]}),
        "edits": len(records),
        "batch_size": batch_size,
        **{key: origin[key] for key in ("model_revision", "records_hash")},
    }
    path = _path(model)
    runs: list[dict[str, Any]] = []
    if path.exists():
        content = read_json(path)
        kept = content["runs"] if content["identity"] == identity else []
        runs = [run for run in kept if _is_current(run, tried)]
        if len(runs) < len(kept):
            log.warning("%s: %d runs were made with other settings, and are dropped", path, len(kept) - len(runs))
    wanted = list(product(weights, tried.items()))
    for weight, (name, (family, editor)) in progress_bar(wanted, desc=model.name, unit="run"):
        method = replace(editor, solver=Ridge(weight))
        place = {"choice": name, "family": family, "mom2_update_weight": weight, "settings": describe(method)}
        if not any(place.items() <= run.items() for run in runs):
            runs.append({**place, **_run(model, records, method, batch_size)})
            content = {"identity": identity, "provenance": origin, **repeated_subjects(records), "runs": runs}
            write_json(path, content, sealed=True)
    return path


def _is_current(run: Mapping[str, Any], tried: Mapping[str, tuple[str, Editor]]) -> bool:
    """Whether a run is of a choice that is still tried, with its present settings, λ apart."""
    if run["choice"] not in tried:
        return False
    family, editor = tried[run["choice"]]
    method = replace(editor, solver=Ridge(run["mom2_update_weight"]))
    return bool((family, describe(method)) == (run["family"], run["settings"]))


def rerun(model: Model, choice: str, weight: float) -> dict[str, float]:
    """Repeat one of the runs in ``results/ablation``, with the settings' text, and return the means of its metrics.

    Raises:
        KeyError: if the choice is unknown.
        FileNotFoundError: if the model has no ablation yet.
    """
    _, origin = load_ablation(model)
    identity = origin["identity"]
    records = load_dataset(identity["dataset"], split=identity.get("split", "report"), limit=identity["edits"])
    method = replace(choices(model)[choice][1], solver=Ridge(weight))
    run = _run(model, records, method, identity["batch_size"])
    return {metric: fmean(run[metric]) for metric in TEACHER_FORCED}


def _path(model: Model | str) -> Path:
    stem = plain(model) if isinstance(model, str) else model.stem
    return project_path("results", "ablation", f"{stem}.json")


def _run(model: Model, records: Sequence[Record], method: Editor, batch_size: int) -> dict[str, Any]:
    with edited(model, records, method, batch_size=batch_size) as run:
        scores = evaluate(model, records, generate=False)
    seconds = sum(value for phase, value in run.seconds.items() if phase != "prepare")
    return {
        "seconds_per_edit": round(seconds / len(records), 4),
        **{metric: [round(value, 2) for value in scores.values(metric)] for metric in TEACHER_FORCED},
    }


def load_ablation(model: Model | str) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The runs of a model, given itself or by name, one row each; and where they come from (``identity``: model,
    records and batches; ``subjects``: the number of each record's subject, if some share one).

    The rows have what is in the file, each metric's mean over records, ``success`` (per record the mean of efficacy and
    generalization) and its mean ``mean_success``.

    Raises:
        FileNotFoundError: if the model has no ablation yet; the message says how to make it.
    """
    path = _path(model)
    if not path.exists():
        name = model if isinstance(model, str) else model.name
        raise FileNotFoundError(f"{path} does not exist; make it with: blue ablation --model {name}")
    content = read_json(path)
    frame = pd.DataFrame(content["runs"])
    frame["success"] = [editing_scores(row) for _, row in frame.iterrows()]
    for metric in (*TEACHER_FORCED, "success"):
        frame[f"mean_{metric}"] = [fmean(values) for values in frame[metric]]
    subjects = {key: content[key] for key in ("subjects",) if key in content}
    return frame, {"identity": content["identity"], **subjects, **content["provenance"]}


def ablation_numbers(model: Model | str) -> dict[str, Any]:
    """What notebook 05 shows of a model's ablation: ``ablation`` (each run's means), ``ablation_best``,
    ``ablation_differences`` and ``ablation_goal`` (see :func:`at_equal_specificity`), ``ablation_single`` (see
    :func:`best_single_layer`) and ``ablation_provenance``. Empty if the model has no ablation yet."""
    if not _path(model).exists():
        return {}
    runs, origin = load_ablation(model)
    best, differences, goal = at_equal_specificity(runs, origin.get("subjects"))
    means = {metric: runs[f"mean_{metric}"] for metric in TEACHER_FORCED}
    return {
        "ablation": runs[["choice", "family", "mom2_update_weight"]].assign(**means),
        "ablation_best": best,
        "ablation_differences": differences,
        "ablation_goal": goal,
        "ablation_single": best_single_layer(runs, origin.get("subjects"))._asdict(),
        "ablation_provenance": origin,
    }


def at_equal_specificity(
    runs: pd.DataFrame, subjects: Sequence[int] | None = None
) -> tuple[pd.DataFrame, pd.DataFrame, float]:
    """Each choice at the λ of its largest success among those that reach BLUE's specificity, and its distance to BLUE.

    BLUE's λ is that of its own largest success; the goal is its specificity there, less half a point. A choice that
    never reaches the goal is taken at its largest specificity, and ``reached`` is false.
    ``subjects``: the number of each record's subject, if some share one; the bootstrap then draws subjects.

    Returns:
        A table with one row per choice: means, λ, and the least of its seconds per edit. ``edge`` marks a λ that is the
        smallest or largest tried, beyond which another might do better. A table with each choice's paired difference
        in success from BLUE over records, in points, with its 95 % bootstrap interval. And the goal.
    """
    blue = runs[runs.choice == BLUE]
    blue = blue.loc[blue.mean_success.idxmax()]
    goal = blue.mean_specificity - 0.5
    best, differences = [], []
    for name, group in runs.groupby("choice", sort=False):
        reaching = group[group.mean_specificity >= goal]
        chosen = (
            reaching.loc[reaching.mean_success.idxmax()]
            if len(reaching)
            else group.loc[group.mean_specificity.idxmax()]
        )
        row = {"family": chosen.family, "mom2_update_weight": chosen.mom2_update_weight}
        row["seconds_per_edit"] = group.seconds_per_edit.min()
        row |= {metric: chosen[f"mean_{metric}"] for metric in (*TEACHER_FORCED, "success")}
        grid = (group.mom2_update_weight.min(), group.mom2_update_weight.max())
        edge = bool(chosen.mom2_update_weight in grid and len(group) > 1)
        best.append({"choice": name, **row, "reached": bool(len(reaching)), "edge": edge})
        gaps = [a - b for a, b in zip(chosen.success, blue.success, strict=True)]
        differences.append({"choice": name, **interval(gaps, clusters=subjects)._asdict()})
    return pd.DataFrame(best), pd.DataFrame(differences), float(goal)


def best_single_layer(runs: pd.DataFrame, subjects: Sequence[int] | None = None) -> Interval:
    """The best single layer with a direct residual that reaches BLUE's specificity, less half a point: its success less
    BLUE's, in points, with a 95 % interval.

    Each bootstrap draw chooses BLUE's λ, the goal, and the layer and its λ anew: what is best on these records by luck
    is not so on others. A draw takes records or, if some share one, ``subjects``. All ends are NaN if no layer reaches
    the goal.
    """
    success, specificity = (np.array(runs[metric].tolist()) for metric in ("success", "specificity"))
    is_blue = (runs.choice == BLUE).to_numpy()
    is_single = (runs.family == SINGLE).to_numpy()

    def gap(counts: np.ndarray) -> float:
        gained, kept = success @ counts / counts.sum(), specificity @ counts / counts.sum()
        blue = np.flatnonzero(is_blue)[gained[is_blue].argmax()]
        reaching = is_single & (kept >= kept[blue] - 0.5)
        return gained[reaching].max() - gained[blue] if reaching.any() else np.nan

    _, codes = np.unique(range(success.shape[1]) if subjects is None else subjects, return_inverse=True)
    n, rng = codes.max() + 1, np.random.default_rng(0)
    mean = gap(np.ones(len(codes)))
    if np.isnan(mean):
        return Interval(np.nan, np.nan, np.nan)
    draws = [gap(np.bincount(rng.integers(n, size=n), minlength=n)[codes]) for _ in range(RESAMPLES)]
    return Interval(float(mean), *limits(draws))
