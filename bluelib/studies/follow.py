"""One editor along one sequence of edits: its scores, and how far it moves the model elsewhere, as edits add up.

Such runs answer two of the paper's questions. *Where does a method collapse?* A long sequence, scored at
several lengths. *Is it the method, or its λ?* Short sequences of one editor with several values of an option, scored at
the end: a frontier of editing against preservation.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..data import Record
from ..data.datasets import load_dataset
from ..data.provenance import provenance, repeated_subjects
from ..editing.checkpoints import held
from ..editing.method import Method, describe
from ..editing.named import check_names, get_editor
from ..editing.sequence import check_together, edit_sequence
from ..io.checks import check_whole
from ..io.formats import read_json, write_json
from ..io.paths import project_path, raw_path, sequence_path
from ..io.timing import Timer
from ..io.writing import check_new_file
from ..metrics import evaluate
from ..metrics.editing import TEACHER_FORCED, per_record
from ..metrics.locality import Reference
from ..models.model import Model

log = logging.getLogger(__name__)

EDITS, BATCH_SIZE = 100, 20
#: The largest number of edits that are scored at each length.
SCORED = 200
#: Records after the sequence, never edited, whose rewrite prompts show how far a model has moved elsewhere.
OTHERS = 100
#: What differs from another run is told in full up to this many characters, and else named.
LONG = 200


def follow(
    model: Model,
    editor: str,
    *,
    dataset: str | Path,
    split: str = "report",
    edits: int = EDITS,
    batch_size: int = BATCH_SIZE,
    at: Sequence[int] = (),
    scored: int = SCORED,
    others: int = OTHERS,
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
    corpus: str | None = None,
    tokens: int | None = None,
    output: Path | None = None,
) -> Path:
    """Edit a sequence, score it as it grows, and write ``results/follow/….json``; a run that exists is kept.

    A run that was interrupted continues after its last whole batch: until it ends, ``results/raw/follow`` has its
    checkpoint and its scores so far.

    Args:
        model: left as it was.
        editor: of the catalogue.
        dataset, split, seed: the records; those edited are the first ``edits``.
        edits, batch_size: of the sequence.
        at: after how many edits to score; the end of the sequence is always scored.
        scored: the largest number of edits scored at each length. If there are more so far, this many are drawn at
            random, the same ones for every editor.
        others: how many records after the edited ones show how far the model has moved: by the mean of D_KL(before ‖
            after) of the next token after their rewrite prompts.
        options: options of the editor, in place of its settings.
        corpus, tokens: for second moments; by default the settings'.
        output: the file to write, in place of the usual one.

    Raises:
        ValueError: as :func:`~bluelib.get_editor` and :func:`~bluelib.load_dataset`; if a length in
            ``at`` is not the end of a batch, the editor cannot make such batches, or there are fewer records than
            ``edits``; if the file holds another run.
    """
    options = dict(options or {})
    check_whole("edits", edits, 1)
    check_whole("batch_size", batch_size, 1, edits, "the number of edits")
    check_whole("scored", scored, 1)
    check_whole("others", others, 0)
    ends = sorted({*at, edits})
    between = [end for end in ends if (end % batch_size and end != edits) or not 0 < end <= edits]
    if between:
        raise ValueError(f"at must be ends of batches of {batch_size} among {edits} edits; {between[0]} is not one")
    check_names(editor, options)
    method = get_editor(editor, model, **{"corpus": corpus, "tokens": tokens, **options})
    check_together(method, batch_size)
    found = load_dataset(dataset, split=split, up_to=edits + others, seed=seed)
    check_whole("edits", edits, 1, len(found), f"the number of records of {dataset}")
    records, more = found[:edits], found[edits:]
    method.check(model)
    origin = provenance(model, records)
    given = {"dataset": Path(dataset).name, "split": split, "editor": editor, "options": options, "edits": edits}
    asked = {"at": ends, "scored": scored, "others": [record.case_id for record in more]}
    identity = identity_of(method, origin, **given, seed=seed, batch_size=batch_size, **asked)
    path = output or sequence_path("follow", model.stem, str(dataset), editor, edits, batch_size, seed, options)
    if is_there(path, identity):
        return path
    check_new_file(path)
    elsewhere = [record.request.text for record in more]
    before = Reference.of(model, elsewhere) if elsewhere else None
    unfinished = raw_path("follow", path.stem)
    points, seconds = so_far(unfinished, identity)
    timer = Timer()
    timer.seconds.update(seconds)

    def score(number: int, result: object = None) -> None:
        done = min((number + 1) * batch_size, edits)
        if done not in ends or any(point["edits"] == done for point in points):
            return
        chosen = some_of(records[:done], scored)
        with timer("evaluate"):
            found = evaluate(model, chosen, generate=False, metrics=("editing", "argmax"))
            moved = None if before is None else before.moved(model)
        points.append(
            {
                "edits": done,
                "case_ids": [record.case_id for record in chosen],
                **repeated_subjects(chosen),
                "scores": per_record(found),
                "elsewhere": moved and [round(moved[prompt]["kl"], 5) for prompt in elsewhere],
                "weight_change": {str(layer): round(now, 6) for layer, now in model.weight_change(originals).items()},
            }
        )
        write_so_far(unfinished, identity, points, timer.rounded())

    with model.preserved(method.layers):
        originals = {layer: model.weight(layer).float().clone() for layer in method.layers}
        run = edit_sequence(
            model,
            records,
            method,
            batch_size=batch_size,
            checkpoint_dir=unfinished,
            after_batch=score,
            on_resume=score,
        )
    seconds = {**run.seconds, **timer.rounded()}
    content = {"identity": identity, "points": points, "seconds": seconds, "provenance": origin}
    write_json(path, content, sealed=True)
    shutil.rmtree(unfinished)
    return path


def identity_of(method: Method, origin: Mapping[str, Any], **given: Any) -> dict[str, Any]:
    """What a finished or interrupted run has in common with one that may take its place, as a file has it: what was
    ``given``, the editor's settings, and the model and records of ``origin``, see :func:`.provenance`."""
    of_origin = {key: origin[key] for key in ("model", "model_revision", "dtype", "records_hash")}
    return json.loads(json.dumps({**given, "settings": describe(method), **of_origin}))


def is_there(path: Path, identity: dict[str, Any]) -> bool:
    """Whether this run's file is there.

    Raises:
        ValueError: if the file holds another run; the message says what differs.
    """
    if not path.exists():
        return False
    found = read_json(path).get("identity", {})
    differing = [key for key in {**found, **identity} if found.get(key) != identity.get(key)]
    if differing:
        pairs = {key: f"{key} is {found.get(key)!r}, not {identity.get(key)!r}" for key in differing}
        told = "; ".join(text if len(text) < LONG else f"{key} differs" for key, text in pairs.items())
        raise ValueError(f"{path} holds another run: {told}; move it away, or name another file with --output")
    return True


#: The scores so far of a run that is not finished.
POINTS = "points.json"


def so_far(folder: Path, identity: dict[str, Any]) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """The scores of an interrupted run, and the seconds that they took; what is left of another one is removed.

    Raises:
        BlockingIOError: if another process is at work in ``folder``.
    """
    path = folder / POINTS
    if path.exists():
        found = read_json(path, sealed=True)
        if found["identity"] == identity:
            return found["points"], found["seconds"]
        log.warning("%s holds an interrupted run with other settings: it is removed", folder)
    with held(folder):  # refused while another process is at work there
        pass
    shutil.rmtree(folder, ignore_errors=True)
    write_so_far(folder, identity, [], {})
    return [], {}


def write_so_far(
    folder: Path, identity: dict[str, Any], points: list[dict[str, Any]], seconds: dict[str, float]
) -> None:
    """Keep the scores so far of a run, and the seconds that they took, for :func:`so_far`."""
    write_json(folder / POINTS, {"identity": identity, "points": points, "seconds": seconds}, sealed=True)


def some_of(records: Sequence[Record], most: int) -> list[Record]:
    """All records, or ``most`` of them drawn at random, in their order; which ones depends on their number alone."""
    if len(records) <= most:
        return list(records)
    drawn = np.random.default_rng(len(records)).choice(len(records), most, replace=False)
    return [records[i] for i in sorted(drawn)]


#: What runs that are compared with each other have in common.
SEQUENCE = ["model", "dataset", "edits", "batch_size"]


def followed(folder: Path | None = None, seed: int = 0) -> pd.DataFrame:
    """All runs in ``folder``, by default ``results/follow``, along the order of records that ``seed`` gives: one row
    per run and length.

    Columns: those of :data:`SEQUENCE`, ``editor``, ``options`` (a tuple of pairs); ``length``, ``n``, ``case_ids`` and
    ``subjects`` (the edits scored there, and the numbers of their subjects), ``elsewhere`` (mean D_KL in nats),
    ``weight_change`` (the largest over layers), and for each metric of :data:`~bluelib.metrics.editing.TEACHER_FORCED`
    and any other its values over the edits scored, a list with None where a record has none.
    """
    rows = []
    for path in sorted((folder or project_path("results", "follow")).glob("*.json")):
        content = read_json(path)
        about = content["identity"]
        if about["seed"] != seed:
            continue
        for point in content["points"]:
            rows.append(
                {
                    **{key: about[key] for key in (*SEQUENCE, "editor")},
                    "options": tuple(sorted(about["options"].items())),
                    "length": point["edits"],
                    "n": len(point["case_ids"]),
                    "case_ids": point["case_ids"],
                    "subjects": point.get("subjects", list(range(len(point["case_ids"])))),
                    "elsewhere": None if point["elsewhere"] is None else float(np.mean(point["elsewhere"])),
                    "weight_change": max(point["weight_change"].values()),
                    **{metric: [None] * len(point["case_ids"]) for metric in TEACHER_FORCED},
                    **point["scores"],
                }
            )
    return pd.DataFrame(rows)
