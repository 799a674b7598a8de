"""Notebooks through papermill, and the numbers that they write."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

from ..data import Record
from ..data.provenance import provenance
from ..io.formats import DamagedError, read_json, write_json
from ..io.paths import numbers_name, project_path, raw_path
from ..io.writing import check_new_file, writing
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


def run_notebook(name: str, parameters: Mapping[str, Any], executed: Path) -> None:
    """Run ``notebooks/<name>.ipynb`` with papermill; the executed copy, as far as it got, goes to ``executed``.

    Raises:
        FileNotFoundError: outside a checkout of the project.
        ValueError: if there is no such notebook, or it has no such parameter.
        WriteError: if the copy cannot be written; half a copy is removed.
        RuntimeError: if a cell fails; the message says which one, and what it raised.
    """
    import papermill

    if Path(name).name != name:
        raise ValueError(f"give the name of a notebook in notebooks/, without a folder, not {name!r}")
    notebook = project_path("notebooks", f"{name}.ipynb")
    if not notebook.parent.is_dir():
        raise FileNotFoundError(f"{notebook.parent} does not exist: run this in a checkout of the project")
    if not notebook.exists():
        known = sorted(path.stem for path in notebook.parent.glob("*.ipynb"))
        raise ValueError(f"no notebook is called {name!r}; known: {', '.join(known)}")
    known = papermill.inspect_notebook(_literal(notebook))
    unknown = sorted(set(parameters) - set(known))
    if unknown:
        raise ValueError(f"{name} has no parameter {', '.join(unknown)}; known: {', '.join(known) or 'none'}")
    check_new_file(executed)
    with writing(executed), _without_bars():
        executed.parent.mkdir(parents=True, exist_ok=True)
        try:
            papermill.execute_notebook(
                _literal(notebook),
                _literal(executed),
                dict(parameters),
                cwd=str(project_path()),
                kernel_name="python3",
                progress_bar=False,
            )
        except papermill.PapermillExecutionError as error:
            raise RuntimeError(
                f"{name}, cell [{error.exec_count}]: {error.ename}: {error.evalue}\nthe whole notebook is in {executed}"
            ) from error
        except OSError:
            if executed.exists():
                _remove_half(executed)
            raise


@contextmanager
def _without_bars() -> Iterator[None]:
    """Keep progress bars out of a notebook that nobody watches; its kernel inherits this variable."""
    shown = os.environ.get("TQDM_DISABLE")
    os.environ["TQDM_DISABLE"] = "1"
    try:
        yield
    finally:
        os.environ.pop("TQDM_DISABLE")
        if shown is not None:
            os.environ["TQDM_DISABLE"] = shown


def _literal(path: Path) -> str:
    """A path that papermill takes literally: it would fill in what stands in braces, and read a path that begins like a
    URL as one."""
    return str(path.absolute()).replace("{", "{{").replace("}", "}}")


def _remove_half(executed: Path) -> None:
    try:
        read_json(executed)
    except DamagedError:
        executed.unlink()
