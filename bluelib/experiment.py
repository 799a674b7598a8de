"""One cell of a results table: evaluate, edit, evaluate, with everything that is needed to trust it later."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from .data import Record
from .data.corpora import check_corpus
from .data.longform import check_sentences, load_long_form
from .data.provenance import peak_memory, provenance, records_hash
from .editing.editor import EDITORS
from .editing.method import Method, describe
from .editing.sequence import Run, check_sequence, edit_sequence
from .io.checks import check_real, check_seed, check_whole
from .io.formats import read_json, write_json
from .io.locks import make_once
from .io.paths import numbers_name, raw_path
from .io.timing import Timer
from .io.writing import check_new_file
from .metrics import Scores, evaluate
from .models.model import Model
from .studies.shift import PROJECTIONS

SCHEMA = 2


@dataclass(frozen=True)
class Cell:
    """A model's scores before and after a sequence of edits; :meth:`as_dict` is its JSON form."""

    run: Run
    before: Scores
    after: Scores
    result: dict[str, Any]

    def write(self, path: str | Path) -> Path:
        """Write the JSON form, whole or not at all."""
        return write_json(path, self.result, sealed=True)


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
    before: str | Path | None = None,
    keep: Callable[[Run], object] | None = None,
    **how: Any,
) -> Cell:
    """Evaluate ``records``, edit them in sequence, evaluate them again. The model stays edited; ``run.revert()``.

    ``before`` is the file of the scores before editing, see :func:`evaluate_unedited`; ``keep`` is called with the run
    before its edits are evaluated, to save them; ``how`` goes to :func:`~bluelib.edit_sequence`: ``checkpoint_dir``,
    ``on_conflict``, ``progress``.
    """
    check_sequence(
        records,
        editor,
        batch_size=batch_size,
        **{name: how[name] for name in ("checkpoint_dir", "on_conflict") if name in how},
    )
    timer = Timer()
    with timer("evaluate_before"):
        unedited = evaluate_unedited(
            model, dataset, records, seed=seed, generate=generate, score_bos=score_bos, path=before
        )
    run = edit_sequence(model, records, editor, batch_size=batch_size, seed=seed, **how)
    if keep:
        keep(run)
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
        "before": summary(unedited),
        "after": summary(after),
        "scores": per_record(after),
        "weight_change": {str(layer): round(change, 6) for layer, change in run.weight_change().items()},
        "batches": run.batches,
        "conflicts": len(run.conflicts),
        "skipped": run.skipped,
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
    score_bos: bool = False,
    path: str | Path | None = None,
) -> Scores:
    """The scores before editing, which all editors of a table have in common: read from ``path`` where it exists,
    else measured, and written there.

    Raises:
        ValueError: if the model has been edited; if ``path`` holds scores of other weights, records or settings: the
            message names what differs.
    """
    settings = {"dataset": dataset, "seed": seed, "generate": generate, "score_bos": score_bos}
    identity = {
        **settings,
        "model": model.name,
        "model_revision": model.revision,
        "dtype": str(model.lm.dtype).removeprefix("torch."),
        "records_hash": records_hash(records),
    }

    model.check_unedited("scores before editing")

    def measure() -> Scores:
        return evaluate(model, records, generate=generate, seed=seed, score_bos=score_bos)

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


def write_numbers(
    name: str,
    model: Model,
    records: Sequence[Record],
    numbers: dict[str, Any],
    judge: Callable[[dict[str, Any]], Sequence[NamedTuple]] | None = None,
    path: str | Path | None = None,
) -> dict[str, Any]:
    """Write a notebook's numbers with their provenance as JSON to ``path``, or into ``results/raw``; return them.

    Frames become lists of rows, and floats are rounded to five significant digits. ``judge`` makes the notebook's
    verdicts from what is written.

    Raises:
        ValueError: for an infinite number, or NaN other than as the end of an interval.
    """
    content = {key: _tidy(value) for key, value in numbers.items()}
    if judge:
        content["verdicts"] = [verdict._asdict() for verdict in judge(content)]
    content["provenance"] = provenance(model, records)
    write_json(path or raw_path(numbers_name(name, model.name)), content, sealed=True)
    return content


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


def check_parameters(given: dict[str, Any], known: dict[str, type | tuple[type, ...]]) -> None:
    """Check a notebook's parameters right after its ``parameters`` cell.

    papermill only warns about a name that a notebook does not have, adds it as a variable all the same, and turns
    ``007`` into 7. This looks at the notebook's variables (``globals()``): any public name of a simple type that is
    not known is refused, and so is a known one of another type, or with a value that nothing could be made of.

    Raises:
        ValueError: listing the known parameters with their types; for a value out of its range, what is allowed.
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
    for name in known.keys() & _RANGES.keys():
        _RANGES[name](name, given[name])
    if {"edits", "batch_size"} <= known.keys():
        check_whole("batch_size", given["batch_size"], 1, given["edits"], "the number of edits")
    if "long_dataset" in known and given["long_dataset"]:
        load_long_form(given["long_dataset"], limit=given["edits"], seed=given["seed"])


def _check_one_of(name: str, value: Any, allowed: Collection[str], called: str = "") -> None:
    if value not in [*allowed]:
        wrong = f"no {called} is called {value!r}; known:" if called else f"{name} must be one of"
        raise ValueError(f"{wrong} {', '.join(allowed)}" + ("" if called else f", not {value!r}"))


def _check_texts(name: str, values: list[Any]) -> None:
    if not all(isinstance(value, str) for value in values):
        raise ValueError(f"parameter {name} must be a list of str, not {values!r}")


def _each(check: Callable[[str, Any], None]) -> Callable[[str, list[Any]], None]:
    def check_all(name: str, values: list[Any]) -> None:
        for value in values:
            check(f"each of the {name}", value)

    return check_all


_editor = partial(_check_one_of, allowed=EDITORS, called="editor")
#: By the name of a parameter, the check of its value, which is of the right type by then.
_RANGES: dict[str, Callable[[str, Any], None]] = {
    **dict.fromkeys(("edits", "samples", "window", "sequences", "every", "limit"), partial(check_whole, least=1)),
    "largest": partial(check_whole, least=5),
    "facts": partial(check_whole, least=4),
    "sizes": _each(partial(check_whole, least=1)),
    "seed": lambda name, value: check_seed(value),
    "noise": check_real,
    "editor": _editor,
    "editors": _each(_editor),
    "batch_editors": _each(_editor),
    "models": _check_texts,
    "tasks": _check_texts,
    "projection": partial(_check_one_of, allowed=PROJECTIONS),
    "corpus": lambda name, value: check_corpus(value) if value else None,
    "sentences": lambda name, value: check_sentences(value),
}
_IPYTHON = frozenset({"In", "Out"})


def _type_name(kind: type | tuple[type, ...]) -> str:
    return " or ".join(k.__name__ for k in kind) if isinstance(kind, tuple) else kind.__name__
