"""One cell of a results table: evaluate, edit, evaluate, with everything that is needed to trust it later."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..data import Record
from ..data.provenance import peak_memory, provenance, records_hash
from ..editing.method import Method, describe
from ..editing.sequence import Run, check_sequence, edit_sequence
from ..io.formats import read_json, write_json
from ..io.locks import make_once
from ..io.timing import Timer
from ..io.writing import check_new_file
from ..metrics import Scores, evaluate
from ..metrics.before import COMPARING, Before
from ..metrics.editing import GROUPS, PUBLISHED, Measures, check_groups, per_record, readable
from ..metrics.generated import CONTEXTS
from ..models.model import Model

log = logging.getLogger(__name__)

SCHEMA = 2


@dataclass(frozen=True)
class Cell:
    """A model's scores before and after a sequence of edits; ``result`` is its JSON form."""

    run: Run
    before: Scores
    after: Scores
    result: dict[str, Any]

    def write(self, path: str | Path) -> Path:
        """Write the JSON form, whole or not at all."""
        return write_json(path, self.result)


def run_cell(
    model: Model,
    dataset: str,
    records: Sequence[Record],
    editor: Method,
    *,
    batch_size: int,
    seed: int,
    generate: bool = True,
    measures: Measures = PUBLISHED,
    chat: bool = False,
    metrics: Sequence[str] = ("editing",),
    contexts: Sequence[str] = ("bare",),
    before: str | Path | None = None,
    keep: Callable[[Run], object] | None = None,
    **how: Any,
) -> Cell:
    """Evaluate ``records``, edit them in sequence, evaluate them again. The model stays edited until ``run.revert()``.

    ``chat`` edits and evaluates behind the chat template. ``metrics`` and ``contexts`` are those of
    :func:`~bluelib.evaluate`; what they compare with is taken before editing. ``before`` is the file of the scores
    before editing, see :func:`evaluate_unedited`. ``keep`` is called with the run before its edits are evaluated, to
    save them. ``how`` goes to :func:`~bluelib.edit_sequence`: ``checkpoint_dir``, ``on_conflict``, ``start``,
    ``progress``.

    Raises:
        ValueError, OSError, ArithmeticError: as :func:`~bluelib.edit_sequence` and :func:`~bluelib.evaluate`; before
            any long work if an argument, or an input of the editor, is wrong or missing.
    """
    check_sequence(
        records,
        editor,
        batch_size=batch_size,
        **{name: how[name] for name in ("checkpoint_dir", "on_conflict") if name in how},
    )
    editor.check(model)
    measured: dict[str, Any] = {
        "seed": seed,
        "generate": generate,
        "measures": measures,
        "chat": chat,
        "metrics": metrics,
        "contexts": contexts,
    }
    timer = Timer()
    log.info("evaluating before editing: %d records", len(records))
    with timer("evaluate_before"):
        unedited = evaluate_unedited(model, dataset, records, path=before, **measured)
    run = edit_sequence(model, records, editor, batch_size=batch_size, chat=chat, **how)
    if keep:
        keep(run)
    log.info("evaluating after editing: %d records", len(records))
    with timer("evaluate_after"):
        after = evaluate(model, records, dataset=dataset, before=unedited.before, **measured)
    result = {
        "schema": SCHEMA,
        "model": model.name,
        "dataset": dataset,
        "editor": describe(editor),
        "edits": len(records),
        "batch_size": batch_size,
        "seed": seed,
        "measures": asdict(measures),
        "chat": chat,
        **_further(metrics, contexts),
        "before": summary(unedited.scores),
        "after": summary(after),
        "scores": per_record(after),
        "weight_change": {str(layer): round(change, 6) for layer, change in run.weight_change().items()},
        "batches": run.batches,
        "conflicts": len(run.conflicts),
        "skipped": run.skipped,
        "inputs": run.inputs,
        "seconds": {**timer.rounded(), **run.seconds},
        "peak_memory": peak_memory(model),
        "provenance": provenance(model, records),
    }
    return Cell(run, unedited.scores, after, result)


@dataclass(frozen=True)
class Unedited:
    """A model's scores before editing, and what metrics after editing compare with; None if none of them compares."""

    scores: Scores
    before: Before | None


def evaluate_unedited(
    model: Model,
    dataset: str,
    records: Sequence[Record],
    *,
    seed: int,
    generate: bool = True,
    measures: Measures = PUBLISHED,
    chat: bool = False,
    metrics: Sequence[str] = ("editing",),
    contexts: Sequence[str] = ("bare",),
    path: str | Path | None = None,
) -> Unedited:
    """The scores before editing, which all editors of a table share.

    They are read from ``path`` if it exists; otherwise they are measured and written there. What metrics compare with
    is in a file beside it, ``PATH.before.safetensors``.

    Raises:
        ValueError: if the model has been edited, or ``path`` holds scores of other weights, records or settings; the
            message names what differs.
        FileNotFoundError: if ``path`` exists, and the file beside it is needed and missing.
    """
    settings = {"dataset": dataset, "seed": seed, "generate": generate, "measures": asdict(measures), "chat": chat}
    identity = {
        **settings,
        **_further(metrics, contexts),
        "model": model.name,
        "model_revision": model.revision,
        "dtype": model.dtype_name,
        "records_hash": records_hash(records),
    }
    check_groups(metrics, contexts)
    compares = any(group in metrics for group in COMPARING)
    model.check_unedited("scores before editing")

    def measure() -> Unedited:
        before = Before.of(model, records, metrics, contexts=contexts, chat=chat) if compares else None
        scores = evaluate(
            model,
            records,
            generate=generate,
            seed=seed,
            dataset=dataset,
            measures=measures,
            chat=chat,
            metrics=metrics,
            contexts=contexts,
            before=before,
        )
        return Unedited(scores, before)

    if path is None:
        return measure()
    path = Path(path)
    compared = path.with_name(f"{path.name}.before.safetensors")
    if not path.exists():
        check_new_file(path)

    def make() -> None:
        found = measure()
        kept = {} if found.before is None else {"before": found.before.save(compared)}
        write_json(
            path,
            {
                **identity,
                **kept,
                "scores": summary(found.scores),
                "records": list(found.scores.records),
                "provenance": provenance(model, records),
            },
            sealed=True,
        )

    make_once(path, make)
    found = read_json(path, sealed=True)
    differing = [
        f"{key} is {found.get(key, 'the usual one')!r}, not {identity.get(key, 'the usual one')!r}"
        for key in dict.fromkeys([*identity, *(key for key in ("metrics", "contexts") if key in found)])
        if found.get(key) != identity.get(key)
    ]
    if differing:
        raise ValueError(f"{path} holds scores that do not fit this run: {'; '.join(differing)}; delete it")
    if compares and not compared.exists():
        raise FileNotFoundError(
            f"{compared}, which belongs to {path}, is missing; delete {path}, and run the command again"
        )
    return Unedited(Scores(tuple(found["records"])), Before.load(compared, found["before"]) if compares else None)


def _further(metrics: Sequence[str], contexts: Sequence[str]) -> dict[str, list[str]]:
    """The metrics asked for, unless they are the usual ones (older results do not name these), and the contexts, if any
    of the metrics generates answers."""
    groups = [group for group in GROUPS if group in metrics]
    asked = [context for context in CONTEXTS if context in contexts]
    if groups == ["editing"]:
        return {}
    return {"metrics": groups, **({"contexts": asked} if {"generated", "portability"} & {*groups} else {})}


def summary(scores: Scores) -> dict[str, dict[str, float | None]]:
    """Mean and standard error (None for one record) of each metric, rounded to what a reader can use."""
    errors = scores.standard_errors
    return {
        metric: {
            "mean": readable(mean, 4),
            "standard_error": None if math.isnan(errors[metric]) else readable(errors[metric], 4),
            "n": len(scores.values(metric)),
        }
        for metric, mean in scores.means.items()
    }
