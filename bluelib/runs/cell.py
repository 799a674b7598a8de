"""One cell of a results table: evaluate, edit, evaluate, with everything that is needed to trust it later."""

from __future__ import annotations

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
from ..metrics.editing import PUBLISHED, Measures
from ..models.model import Model

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
    before: str | Path | None = None,
    keep: Callable[[Run], object] | None = None,
    **how: Any,
) -> Cell:
    """Evaluate ``records``, edit them in sequence, evaluate them again. The model stays edited; ``run.revert()``.

    ``chat`` edits and evaluates behind the chat template; ``before`` is the file of the scores before editing, see
    :func:`evaluate_unedited`; ``keep`` is called with the run before its edits are evaluated, to save them; ``how``
    goes to :func:`~bluelib.edit_sequence`: ``checkpoint_dir``, ``on_conflict``, ``progress``.
    """
    check_sequence(
        records,
        editor,
        batch_size=batch_size,
        **{name: how[name] for name in ("checkpoint_dir", "on_conflict") if name in how},
    )
    editor.check(model)
    timer = Timer()
    with timer("evaluate_before"):
        unedited = evaluate_unedited(
            model, dataset, records, seed=seed, generate=generate, measures=measures, chat=chat, path=before
        )
    run = edit_sequence(model, records, editor, batch_size=batch_size, chat=chat, **how)
    if keep:
        keep(run)
    with timer("evaluate_after"):
        after = evaluate(model, records, generate=generate, seed=seed, dataset=dataset, measures=measures, chat=chat)
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
        "before": summary(unedited),
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
    return Cell(run, unedited, after, result)


def evaluate_unedited(
    model: Model,
    dataset: str,
    records: Sequence[Record],
    *,
    seed: int,
    generate: bool = True,
    measures: Measures = PUBLISHED,
    chat: bool = False,
    path: str | Path | None = None,
) -> Scores:
    """The scores before editing, which all editors of a table have in common: read from ``path`` where it exists,
    else measured, and written there.

    Raises:
        ValueError: if the model has been edited; if ``path`` holds scores of other weights, records or settings: the
            message names what differs.
    """
    settings = {"dataset": dataset, "seed": seed, "generate": generate, "measures": asdict(measures), "chat": chat}
    identity = {
        **settings,
        "model": model.name,
        "model_revision": model.revision,
        "dtype": str(model.hf_model.dtype).removeprefix("torch."),
        "records_hash": records_hash(records),
    }

    model.check_unedited("scores before editing")

    def measure() -> Scores:
        return evaluate(model, records, generate=generate, seed=seed, dataset=dataset, measures=measures, chat=chat)

    if path is None:
        return measure()
    path = Path(path)
    if not path.exists():
        check_new_file(path)

    def make() -> None:
        scores = measure()
        write_json(
            path,
            {
                **identity,
                "scores": summary(scores),
                "records": list(scores.records),
                "provenance": provenance(model, records),
            },
            sealed=True,
        )

    make_once(path, make)
    found = read_json(path, sealed=True)
    differing = [
        f"{key} is {found.get(key)!r}, not {value!r}" for key, value in identity.items() if found.get(key) != value
    ]
    if differing:
        raise ValueError(f"{path} holds scores of something else: {'; '.join(differing)}; delete it")
    return Scores(tuple(found["records"]))


def summary(scores: Scores) -> dict[str, dict[str, float | None]]:
    """Mean and standard error (None for one record) of each metric, rounded to what a reader can use."""
    errors = scores.standard_errors
    return {
        metric: {
            "mean": round(mean, 4),
            "standard_error": None if math.isnan(errors[metric]) else round(errors[metric], 4),
            "n": len(scores.values(metric)),
        }
        for metric, mean in scores.means.items()
    }


def per_record(scores: Scores) -> dict[str, list[float | None]]:
    """Each metric's values in the order of the records, for paired comparisons; None where a record has none."""
    return {
        metric: [None if metric not in record else round(float(record[metric]), 3) for record in scores.records]
        for metric in scores.means
    }
