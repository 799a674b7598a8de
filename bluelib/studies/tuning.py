"""Hyper-parameters by one small search, the same for every method, on records that no result is reported on.

This is a coordinate search. It starts from the first candidate of each axis, and goes through the axes in order: it
keeps the best candidate of each while the others stay fixed. Where the best of three or more numbers is the largest or
the smallest, the axis continues in that direction, twice at most. A trial edits records in batches, and is scored by
the harmonic mean of efficacy, generalization and specificity (ROME's ``Score``). Every trial is written when it is
made, so an interrupted search continues after its last trial.

The candidates in the catalogue are those of the pocket models. For another model, the candidates lie around its own
settings, in the same ratios, and by default only the solver's parameters are searched.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from inspect import signature
from pathlib import Path
from statistics import harmonic_mean
from typing import Any

from ..data import Record
from ..data.datasets import default_dataset, records_to_choose_on
from ..data.provenance import provenance
from ..editing.anchors import norm_anchor
from ..editing.catalogue import EachAlone, Scaled, known, methods
from ..editing.editor import Editor
from ..editing.method import describe
from ..editing.named import check_names, composes, get_editor
from ..editing.sequence import edited
from ..editing.settings import (
    critical_layers,
    editor_settings,
    is_shipped,
    no_settings,
    set_editor,
    settings_file,
    settings_of,
    user_folder,
)
from ..io.checks import check_whole
from ..io.formats import read_json, write_json
from ..io.paths import project_path
from ..io.timing import progress_bar
from ..metrics import Scores, evaluate
from ..metrics.editing import TEACHER_FORCED
from ..models.known import scale_of
from ..models.model import Model

log = logging.getLogger(__name__)

#: Edits per trial and per batch: for a pocket model, and for any other (a search takes minutes on a laptop).
POCKET_SIZE, SIZE = (60, 3), (20, 10)
#: The largest number of records that a norm anchor is measured on.
ANCHORS = 100
#: Which axes are searched: those of the solver alone, or all of them.
AXES = ("solver", "all")


def default_size(model: str) -> tuple[int, int]:
    """How many records a trial edits, and how many per batch, unless given."""
    return POCKET_SIZE if scale_of(model) == "pocket" else SIZE


#: What is searched: one of :data:`AXES`, or the candidates themselves, by hyper-parameter.
Which = str | Mapping[str, Sequence[Any]] | None


def axes(model: Model, editor: str, which: Which = None) -> dict[str, tuple]:
    """The axes of an editor's row in the catalogue, each a tuple of candidates for this model.

    For a pocket model they are those of the row. For any other, the row's numbers are taken relative to the first one,
    which stands for the model's own setting: Adam's rate is in units of hidden states, λ in units of the energy of
    keys, and both differ between models.

    Args:
        model: a model with settings.
        editor: of the catalogue.
        which: of :data:`AXES`; ``solver`` leaves the optimisation of targets as it is configured. By default ``all``
            for a pocket model, and ``solver`` for another. Or lists of candidates by hyper-parameter, in place of the
            row's axes.

    Raises:
        ValueError: if the editor has no axes, the model has no settings, or its settings lack a value that an axis
            starts from; if ``which`` is unknown; if an axis of yours is no hyper-parameter of the editor, or not a list
            of distinct values.
    """
    if isinstance(which, Mapping):
        for axis, values in which.items():
            if not isinstance(values, (list, tuple)) or not values or len({*map(str, values)}) < len(values):
                raise ValueError(f"candidates of {axis} must be a list of distinct values, as [1, 10], not {values!r}")
        check_names(editor, which)
        return {axis: tuple(values) for axis, values in which.items()}
    if which is not None and which not in AXES:
        raise ValueError(f"axes must be one of {', '.join(AXES)}, not {which!r}")
    row = known(editor)
    if row.axes is None:
        there = [name for name, other in methods().items() if other.axes is not None]
        raise ValueError(f"there is no search for editor {editor!r}; known: {', '.join(there)}")
    layers = critical_layers(model)
    pocket = scale_of(model.name) == "pocket"
    targets: dict[str, Any] = (settings_of(model) or {})["targets"]
    defaults = {name: p.default for name, p in signature(row.make()).parameters.items() if p.default is not p.empty}
    own = {**defaults, **editor_settings(model, editor, shared=composes(row.make()))}
    of_targets = targets.keys() if composes(row.make()) and (which or "solver") == "solver" and not pocket else ()
    found = {}
    for axis, candidates in row.axes.items():
        if axis in of_targets:
            continue
        if isinstance(candidates, EachAlone):
            candidates = tuple([layer] for layer in (layers[0], layers[len(layers) // 2], layers[-1]))
        elif isinstance(candidates, Scaled) or (
            not pocket and all(isinstance(value, (int, float)) for value in candidates)
        ):
            around = targets if pocket else own
            if axis not in around:
                raise ValueError(
                    f"the settings of {editor} for {model.name} lack {axis}, from which its search starts; add a value"
                )
            if isinstance(candidates, Scaled):
                candidates = tuple(around[axis] * factor for factor in candidates.factors)
            else:
                candidates = tuple(_rounded(around[axis] * value / candidates[0]) for value in candidates)
        found[axis] = candidates
    return found


def _rounded(value: float) -> int | float:
    """A number in six significant digits, as an int if it is whole."""
    value = float(f"{value:.6g}")
    return int(value) if value.is_integer() else value


def score(scores: Scores) -> float:
    """Harmonic mean of efficacy, generalization and specificity, in per cent (0 if one of them is)."""
    return harmonic_mean([scores.means[metric] for metric in TEACHER_FORCED])


def further(candidates: tuple, best: Any) -> Any | None:
    """If ``best`` is the smallest or largest of three or more numbers, the next in the same ratio; else None."""
    numbers = sorted(c for c in candidates if isinstance(c, (int, float)))
    if len(numbers) < 3 or best not in (numbers[0], numbers[-1]):
        return None
    return _rounded(best * best / (numbers[1] if best == numbers[0] else numbers[-2]))


def check_scored(records: Sequence[Record]) -> None:
    """Make sure that the records have what choices are scored by.

    Raises:
        ValueError: if no record has one of these; the message names it.
    """
    wanted = {
        "target_true, which efficacy compares with": any(r.target_true for r in records),
        "paraphrases, which generalization is measured on": any(r.paraphrases for r in records),
        "neighbours with answers, which specificity is measured on": any(p.answer for r in records for p in r.locality),
    }
    if records[0].kind == "zsre":  # its metrics need no true object
        del wanted["target_true, which efficacy compares with"]
    if missing := [what for what, there in wanted.items() if not there]:
        raise ValueError(
            f"no record has {missing[0]}; settings are chosen by efficacy, generalization and specificity, so use "
            "records with all that these need"
        )


def tune(
    model: Model,
    editor: str,
    folder: Path | None = None,
    *,
    dataset: str | Path | None = None,
    split: str | None = None,
    edits: int | None = None,
    batch_size: int | None = None,
    which: Which = None,
    corpus: str | None = None,
    tokens: int | None = None,
) -> Path:
    """Search, and write all trials with the best one to ``results/tuning/<model>-<editor>.json``.

    If the file already holds the same search (with the same weights, records, batches, axes and settings), it continues
    if it is unfinished, and is kept if it is finished. A different search in the file is replaced, with a warning.

    Args:
        model: left as it was.
        editor: the editor whose settings are searched.
        folder: in place of ``results/tuning``.
        dataset: by default :func:`.default_dataset`.
        split: by default ``tune``, where the dataset has that.
        edits: how many records; by default :func:`default_size`'s, or all if there are fewer.
        batch_size: edits per batch; by default :func:`default_size`'s, or all if there are fewer.
        which: see :func:`axes`.
        corpus, tokens: for second moments; by default the settings'.

    Raises:
        ValueError: as :func:`axes`; if the records lack what settings are chosen by; if the text is too short.
    """
    space = axes(model, editor, which)
    dataset = dataset or default_dataset(model.name)
    usual, usual_batch = default_size(model.name)
    records, about = records_to_choose_on(dataset, split=split, edits=edits, up_to=usual)
    check_scored(records)
    make = partial(get_editor, editor, model, corpus=corpus, tokens=tokens)
    best = {axis: candidates[0] for axis, candidates in space.items()}
    anchored = "anchor" in signature(known(editor).make()).parameters and "anchor" not in space

    anchors: dict[Any, float] = {}  # by all that they depend on: how targets are optimised, and where

    def derived(choice: dict[str, Any]) -> dict[str, Any]:
        """What is measured for a choice, rather than searched: the norm anchor."""
        if not anchored:
            return {}
        editor = make(**choice, anchor=1.0)
        assert isinstance(editor, Editor)
        way = editor.targets, editor.layers
        if way not in anchors:
            anchors[way] = _anchor(editor, model, records)
        return {"anchor": anchors[way]}

    def possible(choice: dict[str, Any]) -> bool:
        """Whether every value of a choice is in its range."""
        try:
            return bool(make(**{**choice, **({"anchor": 1.0} if anchored else {})}))
        except ValueError:
            return False

    first = make(**best, **derived(best))
    first.check(model)
    if batch_size is None:
        batch_size = min(usual_batch, len(records))
    check_whole("batch_size", batch_size, 1, len(records), "the number of records")
    origin = {k: v for k, v in provenance(model, records).items() if k != "case_ids"}
    result: dict[str, Any] = {
        "model": model.name,
        "editor": editor,
        "dataset": Path(dataset).name,  # without its folder: a hash identifies the content
        **about,
        "edits": len(records),
        "batch_size": batch_size,
        "layers": first.layers,
        "axes": space,
        "best": None,
        "trials": [],
        "settings": describe(first),
        "provenance": origin,
    }
    path = (folder or project_path("results", "tuning")) / f"{model.stem}-{editor}.json"
    kept = _kept(path, result)
    if kept and kept["best"] is not None:
        return path
    trials: list[dict[str, Any]] = kept["trials"] if kept else []

    def attempt(choice: dict[str, Any]) -> float:
        for trial in trials:
            if trial["choice"] == choice:
                return trial["score"]
        try:
            method = make(**choice, **derived(choice))
            with edited(model, records, method, batch_size=batch_size):
                scores = evaluate(model, records, generate=False)
            trial = {
                "choice": choice,
                "score": round(score(scores), 3),
                **{metric: round(scores.means[metric], 2) for metric in TEACHER_FORCED},
            }
        except ArithmeticError as error:
            trial = {"choice": choice, "score": 0.0, "error": str(error)}
        trials.append(trial)
        write_json(path, {**result, "trials": trials}, indent=1)
        bar.set_postfix(score=trial["score"])
        bar.update()
        return trial["score"]

    bar = progress_bar(
        total=sum(map(len, space.values())), initial=len(trials), desc=f"{model.name} {editor}", unit="trial"
    )
    if not space:  # nothing to choose, but its score is still wanted
        attempt(best)
    for axis, candidates in space.items():
        candidates = tuple(value for value in candidates if possible({**best, axis: value}))
        best = max(({**best, axis: value} for value in candidates), key=attempt)
        for _ in range(2):
            value = further(candidates, best[axis])
            if value is None or not possible({**best, axis: value}) or attempt({**best, axis: value}) <= attempt(best):
                break
            best, candidates = {**best, axis: value}, (*candidates, value)
    bar.close()
    best = {**best, **derived(best)}  # the anchor is in no trial's choice
    layers = make(**best).layers
    return write_json(path, {**result, "layers": layers, "best": best, "trials": trials}, indent=1)


def _anchor(editor: Editor, model: Model, records: Sequence[Record]) -> float:
    """The norm anchor of an unedited model, on the first hundred records, rounded as it is stored."""
    requests = [record.request for record in records[:ANCHORS]]
    at = editor.residual.site(editor.layers[0], editor.layers)
    return _rounded(norm_anchor(model, requests, at, editor.prefixes(model), editor.targets))


def keep_best(model: Model, searches: Iterable[Path]) -> Path:
    """Write what searches found into the model's settings file, and return its path.

    Call this after all searches. A search starts from the settings: once they change, it cannot continue if it was
    interrupted.

    Raises:
        ValueError: if the model has no settings, its file ships with the project, or a search is not finished.
    """
    file = own_file(model)
    for path in searches:
        found = read_json(path)
        if found["best"] is None:
            raise ValueError(f"the search in {path} is not finished; run it again to continue it")
        set_editor(file, found["editor"], found["best"])
    return file


def own_file(model: Model) -> Path:
    """The model's settings file, which must be the user's own to be written.

    Raises:
        ValueError: if the model has no settings, or its file ships with the project.
    """
    file = settings_file(model)
    if file is None:
        raise ValueError(no_settings(model.name))
    if is_shipped(file):
        raise ValueError(
            f"{file} ships with the project, and is not overwritten; copy it into {user_folder()} to change it"
        )
    return file


def _kept(path: Path, result: dict[str, Any]) -> dict[str, Any] | None:
    """What ``path`` already holds, if it is of the same search; otherwise None."""
    if not path.exists():
        return None
    found = read_json(path)

    def identity(content: dict[str, Any]) -> Any:
        chosen = {
            key: content.get(key) for key in ("editor", "dataset", "split", "edits", "batch_size", "axes", "settings")
        }
        origin = content.get("provenance", {})
        return json.loads(json.dumps([chosen, [origin.get(k) for k in ("model_revision", "dtype", "records_hash")]]))

    if identity(found) != identity(result):
        log.warning("%s holds another search; this one starts over, and replaces it", path)
        return None
    finished = found["best"] is not None
    trials = len(found["trials"])
    what = "finished: delete it to search again" if finished else f"unfinished: continuing after {trials} trials"
    log.warning("%s holds this search, %s", path, what)
    return found
