"""What notebooks call: the numbers that they write, and the check of a reader's answer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ..data import Record
from ..data.provenance import provenance
from ..io.formats import write_json
from ..io.paths import numbers_name, raw_path
from ..models.model import Model


def write_numbers(
    name: str,
    model: Model,
    records: Sequence[Record],
    numbers: dict[str, Any],
    path: str | Path | None = None,
) -> dict[str, Any]:
    """Write a notebook's numbers with their provenance as JSON to ``path``, or into ``results/raw``; return them.

    Frames become lists of rows, and floats are rounded to five significant digits.

    Raises:
        ValueError: if a number is infinite.
    """
    content = {key: _tidy(value) for key, value in numbers.items()}
    content["provenance"] = provenance(model, records)
    write_json(path or raw_path(numbers_name(name, model.name)), content)
    return content


def _tidy(value: Any) -> Any:
    """Convert to plain JSON values; what is not defined, such as the interval of one value, becomes None."""
    if isinstance(value, pd.DataFrame):
        return [_tidy(row) for row in value.to_dict("records")]
    if isinstance(value, dict):
        return {key: _tidy(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_tidy(item) for item in value]
    value = value.item() if hasattr(value, "item") else value
    if not isinstance(value, float):
        return value
    return None if math.isnan(value) else float(f"{value:.5g}")


def check_answer(answer: Any, right: Any, within: float = 0.0) -> None:
    """Tell the reader of a notebook whether an answer to an exercise is right, without giving the right one away.

    Args:
        answer: the reader's answer; None until there is one.
        right: the right answer: a number, or anything that can be compared.
        within: how far a number may be off, as a share of the right one.

    Raises:
        TypeError: if the answer is of another kind than the right one.
    """
    if answer is None:
        print("No answer yet: put yours in place of None, and run the cell again.")
        return
    if isinstance(right, (int, float)) and not isinstance(right, bool):
        if not isinstance(answer, (int, float)) or isinstance(answer, bool):
            raise TypeError(f"the answer must be a number, not {answer!r}")
        good = math.isclose(answer, right, rel_tol=within)
    elif not isinstance(answer, type(right)):
        raise TypeError(f"the answer must be of type {type(right).__name__}, not {answer!r}")
    else:
        good = answer == right
    print("Right." if good else "Not yet.")
