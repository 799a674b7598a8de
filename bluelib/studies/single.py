"""One edit at a time, and the same edits in sequence: what each protocol makes of one set of facts.

Benchmarks of what follows from an edit (RippleEdits, KnowEdit) edit one fact, ask, and undo it; the paper edits a
sequence and asks at its end. Both are run here with one edit per batch and asked the same, so that only what stays
between edits differs.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from ..data import Record
from ..data.datasets import load_dataset
from ..data.provenance import provenance, repeated_subjects
from ..editing.checkpoints import held
from ..editing.method import Method
from ..editing.named import check_names, get_editor
from ..editing.sequence import check_sequence, edit_sequence
from ..io.checks import check_whole
from ..io.formats import read_json, write_json
from ..io.paths import raw_path, sequence_path
from ..io.timing import Timer, progress_bar
from ..io.writing import check_new_file
from ..metrics import Scores, evaluate
from ..metrics.before import Before
from ..metrics.editing import check_groups, per_record
from ..metrics.portability import kept_apart
from ..models.model import Model
from .follow import identity_of, is_there, so_far, write_so_far

EDITS = 100
METRICS = ("editing", "argmax", "portability")
PROTOCOLS = {"single": "one at a time", "sequential": "in sequence"}


def single(
    model: Model,
    editor: str,
    *,
    dataset: str | Path,
    split: str = "report",
    edits: int = EDITS,
    seed: int = 0,
    metrics: Sequence[str] = METRICS,
    contexts: Sequence[str] = ("bare",),
    options: Mapping[str, Any] | None = None,
    corpus: str | None = None,
    tokens: int | None = None,
    output: Path | None = None,
) -> Path:
    """Edit each case alone in the unedited model and evaluate it; then edit all of them in sequence, one a batch, and
    evaluate them at the end. Writes ``results/single/….json``; a run that exists is kept.

    A case is a record, or the records that MQuAKE puts together, which are edited one after the other and evaluated
    together. A consequence that asks for what another case edits is left out of both protocols. A run that was
    interrupted continues after its last case, and makes the sequence anew; until it ends, its scores so far are in
    ``results/raw/single``.

    Args:
        model: left as it was.
        editor: of the catalogue.
        dataset, split, seed: the records; those edited are the first ``edits``.
        edits: how many records.
        metrics, contexts: as for :func:`~bluelib.evaluate`.
        options: options of the editor, in place of its settings.
        corpus, tokens: for second moments; by default the settings'.
        output: the file to write, in place of the usual one.

    Raises:
        ValueError: as :func:`~bluelib.get_editor`, :func:`~bluelib.load_dataset` and :func:`~bluelib.evaluate`; if the
            file holds another run.
        BlockingIOError: if another process is at work on the same run.
    """
    options = dict(options or {})
    check_whole("edits", edits, 1)
    check_groups(metrics, contexts)
    check_names(editor, options)
    method = get_editor(editor, model, **{"corpus": corpus, "tokens": tokens, **options})
    records = load_dataset(dataset, split=split, limit=edits, seed=seed)
    check_sequence(records, method, batch_size=1)
    method.check(model)
    origin = provenance(model, records)
    given = {"dataset": Path(dataset).name, "split": split, "editor": editor, "options": options, "edits": edits}
    identity = identity_of(method, origin, **given, seed=seed, metrics=metrics, contexts=contexts)
    path = output or sequence_path("single", model.stem, str(dataset), editor, edits, 1, seed, options)
    if is_there(path, identity):
        return path
    check_new_file(path)
    records = [replace(r, portability=groups) for r, groups in zip(records, kept_apart(records), strict=True)]
    before = Before.of(model, records, metrics, contexts=contexts)
    how: dict[str, Any] = {"metrics": metrics, "contexts": contexts, "before": before, "generate": False}
    state = method.prepare(model)
    unfinished = raw_path("single", path.stem)
    rows, seconds = so_far(unfinished, identity)
    timer = Timer()
    timer.seconds.update(seconds)
    bar = progress_bar(total=len(records), initial=len(rows), desc=f"{editor}, one at a time", unit="edit")
    with held(unfinished), bar:
        for case in _cases(records[len(rows) :]):
            with timer("single"):
                rows += _alone(model, method, case, state, how)
            write_so_far(unfinished, identity, rows, timer.rounded())
            bar.update(len(case))
    with timer("sequential"):
        run = edit_sequence(model, records, method, batch_size=1, prepared=state)
        try:
            in_sequence = evaluate(model, records, **how)
            change = {str(layer): round(now, 6) for layer, now in run.weight_change().items()}
        finally:
            run.revert()
    content = {
        "identity": identity,
        "case_ids": [record.case_id for record in records],
        **repeated_subjects(records),
        "single": per_record(Scores(tuple(rows))),
        "sequential": per_record(in_sequence),
        "weight_change": change,
        "seconds": timer.rounded(),
        "provenance": origin,
    }
    write_json(path, content, sealed=True)
    shutil.rmtree(unfinished, ignore_errors=True)
    return path


def _alone(
    model: Model, method: Method, case: Sequence[Record], state: Any, how: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """The scores of one case, edited alone; the model is left as it was, and so is ``state``, as the method's
    ``prepare`` gave it."""
    given = state if len(case) == 1 else None  # after one batch, a method with a history has advanced nothing
    run = edit_sequence(model, case, method, batch_size=1, prepared=given, progress=False)
    try:
        return list(evaluate(model, case, **how).records)
    finally:
        run.revert()


def _cases(records: Sequence[Record]) -> list[list[Record]]:
    """The records in their order, those that form one case together; the last one of a case names the others."""
    cases: list[list[Record]] = []
    for record in records:
        case = [record]
        while cases and cases[-1][0].case_id in record.together:
            case = cases.pop() + case
        cases.append(case)
    return cases


def singles(paths: Iterable[Path]) -> pd.DataFrame:
    """What :func:`single` wrote: one row per run and protocol.

    Columns: ``model``, ``dataset``, ``editor``, ``edits``, ``seed``, ``options`` (a tuple of pairs), ``protocol`` (of
    :data:`PROTOCOLS`), ``subjects`` (the number of each record's subject), and ``scores``: for each metric its values
    over the records, with None where a record has none.
    """
    rows = []
    for path in paths:
        content = read_json(path)
        about = content["identity"]
        for protocol in PROTOCOLS:
            rows.append(
                {
                    **{key: about[key] for key in ("model", "dataset", "editor", "edits", "seed")},
                    "options": tuple(sorted(about["options"].items())),
                    "protocol": protocol,
                    "subjects": content.get("subjects", list(range(len(content["case_ids"])))),
                    "scores": content[protocol],
                }
            )
    return pd.DataFrame(rows)
