"""Notebooks through papermill.

The kernel imports what a notebook needs; this process imports neither torch nor transformers, which takes seconds.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..io.formats import DamagedError, read_json
from ..io.paths import project_path
from ..io.writing import check_new_file, writing


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
                extra_arguments=["--log-level=ERROR"],  # the kernel warns of its local sockets, each time
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
