"""One cell of a results table: evaluate, edit, evaluate, with everything that is needed to trust it later."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from .data import Record
from .editors import EDITORS
from .files import project_path, write_json
from .methods import Method, describe
from .metrics import Scores, evaluate
from .models import Model, scale_of
from .provenance import provenance
from .sequence import Run, edit_sequence
from .timing import Timer

SCHEMA = 1


@dataclass(frozen=True)
class Cell:
    """A model's scores before and after a sequence of edits; :meth:`as_dict` is its JSON form."""

    run: Run
    before: Scores
    after: Scores
    result: dict[str, Any]

    def write(self, path: str | Path) -> Path:
        """Write the JSON form, whole or not at all."""
        return write_json(path, self.result, indent=1)


def run_cell(
    model: Model,
    dataset: str,
    records: Sequence[Record],
    editor: Method,
    *,
    batch_size: int,
    seed: int,
    generate: bool = True,
    score_bos: bool = False,
    **how: Any,
) -> Cell:
    """Evaluate ``records``, edit them in sequence, evaluate them again. The model stays edited; ``run.revert()``.

    ``how`` goes to :func:`~bluelib.edit_sequence`: ``checkpoint_dir``, ``on_conflict``, ``progress``.
    """
    timer = Timer()
    with timer("evaluate_before"):
        before = evaluate(model, records, generate=generate, seed=seed, score_bos=score_bos)
    run = edit_sequence(model, records, editor, batch_size=batch_size, seed=seed, **how)
    with timer("evaluate_after"):
        after = evaluate(model, records, generate=generate, seed=seed, score_bos=score_bos)
    result = {
        "schema": SCHEMA,
        "model": model.name,
        "dataset": dataset,
        "editor": describe(editor),
        "edits": len(records),
        "batch_size": batch_size,
        "seed": seed,
        "score_bos": score_bos,
        "before": summary(before),
        "after": summary(after),
        "weight_change": {str(layer): round(change, 6) for layer, change in run.weight_change().items()},
        "batches": run.batches,
        "conflicts": len(run.conflicts),
        "skipped": run.skipped,
        "seconds": {**timer.rounded(), **run.seconds},
        "provenance": provenance(model, records),
    }
    return Cell(run, before, after, result)


#: By analysis notebook, the parameters of the committed analysis where they are not the notebook's own.
ANALYSIS: dict[str, dict[str, Any]] = {
    "01_locate": {"edits": 40, "samples": 10},
    "02_weight_shift_theory": {"edits": 100},
    "03_residuals": {"edits": 100, "batch_size": 100, "generate": True},
    "04_error_growth": {"edits": 100, "batch_size": 10, "largest": 400},
    "07_hidden_state_shift": {"edits": 100, "batch_size": 10, "facts": 400},
    "08_long_form_and_batch": {"edits": 20, "batch_size": 5, "sizes": [50, 200]},
}


def write_numbers(
    name: str,
    model: Model,
    records: Sequence[Record],
    numbers: dict[str, Any],
    judge: Callable[[dict[str, Any]], Sequence[NamedTuple]] | None = None,
) -> dict[str, Any]:
    """Write a notebook's numbers with their provenance as JSON, see :func:`numbers_path`, and return them.

    Frames become lists of rows, and floats are rounded to five significant digits. ``judge`` makes the notebook's
    verdicts from what is written.

    Raises:
        ValueError: for an infinite number, or NaN other than as the end of an interval.
    """
    content = {key: _tidy(value) for key, value in numbers.items()}
    if judge:
        content["verdicts"] = [verdict._asdict() for verdict in judge(content)]
    content["provenance"] = provenance(model, records)
    write_json(numbers_path(name, model.name, content["parameters"]), content)
    return content


def numbers_path(name: str, model: str, parameters: dict[str, Any]) -> Path:
    """Where a notebook's numbers for a model belong: ``figures``, but ``results/raw`` for an analysis of another size
    than the committed one."""
    committed = parameters.items() >= ANALYSIS.get(name, {}).items()
    return project_path(*(("figures",) if committed else ("results", "raw")), f"{name}_{plain(model)}.json")


def _tidy(value: Any) -> Any:
    """As plain values that JSON has; the ends of an interval that there is not are None."""
    if isinstance(value, pd.DataFrame):
        return [_tidy(row) for row in value.to_dict("records")]
    if isinstance(value, dict):
        return {
            key: None if key in ("low", "high") and value[key] != value[key] else _tidy(value[key]) for key in value
        }
    if isinstance(value, (list, tuple)):
        return [_tidy(item) for item in value]
    value = value.item() if hasattr(value, "item") else value
    return float(f"{value:.5g}") if isinstance(value, float) else value


def cell_path(model: str, dataset: str, editor: str, edits: int, batch_size: int, seed: int) -> Path:
    """Where a cell's JSON belongs in the project: ``results/<scale>/…``."""

    name = f"{plain(model)}_{plain(Path(dataset).stem)}_{editor}_{edits}x{batch_size}_seed{seed}.json"
    return project_path("results", scale_of(model), name)


def plain(name: str) -> str:
    """A name as part of a file name."""
    return re.sub(r"[^\w.-]+", "-", name).strip("-.")


def summary(scores: Scores) -> dict[str, dict[str, float]]:
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


def check_parameters(given: dict[str, Any], known: dict[str, type | tuple[type, ...]]) -> None:
    """Check a notebook's parameters right after its ``parameters`` cell.

    papermill only warns about a name that a notebook does not have, adds it as a variable all the same, and turns
    ``007`` into 7. This looks at the notebook's variables (``globals()``): any public name of a simple type that is
    not known is refused, and so is a known one of another type.

    Raises:
        ValueError: listing the known parameters with their types.
    """
    listing = ", ".join(f"{name} ({_type_name(kind)})" for name, kind in known.items())
    simple = (str, int, float, bool, list, type(None))
    public = {k: v for k, v in given.items() if not k.startswith("_") and isinstance(v, simple) and k not in _IPYTHON}
    unknown = [name for name in public if name not in known]
    if unknown:
        raise ValueError(f"unknown parameter: {', '.join(unknown)}; known: {listing}")
    for name, kind in known.items():
        value = given.get(name)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise ValueError(f"parameter {name} must be {_type_name(kind)}, not {value!r}; known: {listing}")
    if "editor" in known and given["editor"] not in EDITORS:
        raise ValueError(f"no editor is called {given['editor']!r}; known: {', '.join(EDITORS)}")


_IPYTHON = frozenset({"In", "Out"})


def _type_name(kind: type | tuple[type, ...]) -> str:
    return " or ".join(k.__name__ for k in kind) if isinstance(kind, tuple) else kind.__name__
