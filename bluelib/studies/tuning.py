"""Hyper-parameters by one small search, the same for every method, on records that no result is reported on.

A coordinate search: starting from the first candidate of each axis, the axes are walked in order and the best
candidate of each is kept while the others stay fixed; where the best of three or more numbers is the largest or the
smallest, the axis goes on in that direction, twice at most. A trial edits records in batches, and is scored by the
harmonic mean of efficacy, generalization and specificity (ROME's ``Score``). Every trial is recorded, and written when
it is made: a search that was interrupted goes on after its last trial.

The candidates in the catalogue are those of the pocket models. Another model's stand around its own settings, in the
same ratios, and by default only the solver's parameters are searched.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from functools import partial
from inspect import signature
from pathlib import Path
from statistics import harmonic_mean
from typing import Any

from ..data import Record
from ..data.datasets import records_to_choose_on
from ..data.provenance import provenance
from ..editing.anchors import norm_anchor
from ..editing.catalogue import EachAlone, Scaled, known, methods
from ..editing.editor import Editor
from ..editing.method import describe
from ..editing.named import composes, get_editor
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

#: Edits of a trial, and edits per batch: of a pocket model, and of any other, whose search takes minutes on a laptop.
POCKET_SIZE, SIZE = (60, 3), (20, 10)
#: A norm anchor is measured on so many records.
ANCHORS = 100
#: Which axes are searched: those of the solver alone, or all of them.
AXES = ("solver", "all")


def default_dataset(model: str) -> str:
    """The dataset that choices about a model are made on, unless another is named."""
    return "pocket-counterfact" if scale_of(model) == "pocket" else "facts"


def default_size(model: str) -> tuple[int, int]:
    """How many records a trial edits, and how many per batch, unless told."""
    return POCKET_SIZE if scale_of(model) == "pocket" else SIZE


def axes(model: Model, editor: str, which: str | None = None) -> dict[str, tuple]:
    """The axes of an editor's row in the catalogue, each a tuple of candidates for this model.

    Of a pocket model they are those of the row. Of any other the numbers are taken relative to the first one, which
    stands for the model's own setting: Adam's rate is in units of hidden states, λ in units of the energy of keys, and
    both differ between models.

    Args:
        model: it needs settings.
        editor: of the catalogue.
        which: of :data:`AXES`; ``solver`` leaves the optimisation of targets as it is configured. By default ``all``
            for a pocket model, and ``solver`` for another.

    Raises:
        ValueError: for an editor that has none, a model without settings, or one whose settings lack what an axis
            stands around.
    """
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
        elif isinstance(candidates, Scaled):
            candidates = tuple((targets if pocket else own)[axis] * factor for factor in candidates.factors)
        elif not pocket and all(isinstance(value, (int, float)) for value in candidates):
            if axis not in own:
                raise ValueError(
                    f"the settings of {editor} for {model.name} lack {axis}, which its search stands around"
                )
            candidates = tuple(_rounded(own[axis] * value / candidates[0]) for value in candidates)
        found[axis] = candidates
    return found


def _rounded(value: float) -> int | float:
    """A number in the six digits that a reader can use, whole where it is whole."""
    value = float(f"{value:.6g}")
    return int(value) if value.is_integer() else value


def score(scores: Scores) -> float:
    """Harmonic mean of efficacy, generalization and specificity, in per cent (0 if one of them is)."""
    return harmonic_mean([scores.means[metric] for metric in TEACHER_FORCED])


def further(candidates: tuple, best: Any) -> Any | None:
    """The next number beyond ``best`` if it is at an end of three or more, in the same ratio; None otherwise."""
    numbers = sorted(c for c in candidates if isinstance(c, (int, float)))
    if len(numbers) < 3 or best not in (numbers[0], numbers[-1]):
        return None
    return _rounded(best * best / (numbers[1] if best == numbers[0] else numbers[-2]))


def check_scored(records: Sequence[Record]) -> None:
    """Make sure that the records have what choices are scored by.

    Raises:
        ValueError: naming what none of them has.
    """
    wanted = {
        "target_true, which efficacy compares with": any(r.target_true for r in records),
        "paraphrases, which generalization is measured on": any(r.paraphrases for r in records),
        "neighbours with answers, which specificity is measured on": any(p.answer for r in records for p in r.locality),
    }
    if records[0].kind == "zsre":  # whose metrics read no true object
        del wanted["target_true, which efficacy compares with"]
    if missing := [what for what, there in wanted.items() if not there]:
        raise ValueError(
            f"no record has {missing[0]}; settings are chosen by all three, so take records that have them"
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
    which: str | None = None,
    corpus: str | None = None,
    tokens: int | None = None,
) -> Path:
    """Search, and write all trials with the best one to ``results/tuning/<model>-<editor>.json``.

    An unfinished search that is there goes on, and a finished one is kept, if it is the same: of the same weights,
    records, batches, axes and settings. Any other is begun anew, which is said.

    Args:
        model: left as it was.
        editor: what to search for.
        folder: in place of ``results/tuning``.
        dataset: by default :func:`default_dataset`.
        split: by default ``tune``, where the dataset has that.
        edits: how many records; by default :func:`default_size`'s, or as many as there are.
        batch_size: edits per batch; by default :func:`default_size`'s, or all where there are fewer.
        which: see :func:`axes`.
        corpus, tokens: of second moments, if not the settings'.

    Raises:
        ValueError: as :func:`axes`; for records that lack what settings are chosen by; for a text that is too short.
    """
    space = axes(model, editor, which)
    dataset = dataset or default_dataset(model.name)
    usual, usual_batch = default_size(model.name)
    records, about = records_to_choose_on(dataset, split=split, edits=edits, up_to=usual)
    check_scored(records)
    make = partial(get_editor, editor, model, corpus=corpus, tokens=tokens)
    best = {axis: candidates[0] for axis, candidates in space.items()}
    anchored = "anchor" in signature(known(editor).make()).parameters

    anchors: dict[Any, float] = {}  # by all that they depend on: how targets are optimised, and where

    def derived(choice: dict[str, Any]) -> dict[str, Any]:
        """What follows from a choice, and is measured: the norm anchor."""
        if not anchored:
            return {}
        editor = make(**choice, anchor=1.0)
        assert isinstance(editor, Editor)
        way = editor.targets, editor.layers
        if way not in anchors:
            anchors[way] = _anchor(editor, model, records)
        return {"anchor": anchors[way]}

    def possible(choice: dict[str, Any]) -> bool:
        """Whether all of it is in its range."""
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
        "dataset": Path(dataset).name,  # not where a file lies: what is in it has a hash
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
    if not space:  # nothing to choose: its score is told all the same
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
    best = {**best, **derived(best)}  # which is no trial's choice
    layers = make(**best).layers
    return write_json(path, {**result, "layers": layers, "best": best, "trials": trials}, indent=1)


def _anchor(editor: Editor, model: Model, records: Sequence[Record]) -> float:
    """The norm anchor of an unedited model, on the first hundred of the records, in the digits that are kept of it."""
    requests = [record.request for record in records[:ANCHORS]]
    at = editor.residual.site(editor.layers[0], editor.layers)
    return _rounded(norm_anchor(model, requests, at, editor.prefixes(model), editor.targets))


def keep_best(model: Model, searches: Iterable[Path]) -> Path:
    """Put what searches found into the model's settings file, and return that. Write it when all searches are made:
    the settings are what they stand around, so that a search which is interrupted would not go on after it.

    Raises:
        ValueError: for a model without settings, a file that ships with the project, or an unfinished search.
    """
    file = own_file(model)
    for path in searches:
        found = read_json(path)
        if found["best"] is None:
            raise ValueError(f"the search in {path} is not finished")
        set_editor(file, found["editor"], found["best"])
    return file


def own_file(model: Model) -> Path:
    """The model's settings file, which must be the user's own to be written.

    Raises:
        ValueError: for a model without settings, or a file that ships with the project.
    """
    file = settings_file(model)
    if file is None:
        raise ValueError(no_settings(model.name))
    if is_shipped(file):
        raise ValueError(f"{file} ships with the project, and is not written; copy it into {user_folder()}")
    return file


def _kept(path: Path, result: dict[str, Any]) -> dict[str, Any] | None:
    """What is at ``path`` already, if it is of the same search."""
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
        log.warning("%s is of another search, and is begun anew", path)
        return None
    finished = found["best"] is not None
    what = "was finished: delete it to search again" if finished else f"goes on after {len(found['trials'])} trials"
    log.warning("%s %s", path, what)
    return found
