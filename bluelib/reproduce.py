"""Notebooks through papermill, and the workflow that runs a grid of them."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from .grid import Grid
from .io.formats import DamagedError, read_json
from .io.locks import locked
from .io.paths import project_path
from .io.writing import check_new_file, writing

#: In a job's environment, the process of the workflow that started it.
WORKFLOW = "BLUELIB_WORKFLOW_PID"


def run_notebook(name: str, parameters: Mapping[str, Any], executed: Path) -> None:
    """Run ``notebooks/<name>.ipynb`` with papermill; the executed copy goes to ``executed``, as far as it came.

    Raises:
        FileNotFoundError: outside a checkout of the project.
        ValueError: for a notebook that there isn't, or a parameter that it hasn't.
        WriteError: if the copy cannot be written; half a copy is removed.
        RuntimeError: from a cell; the message says which, and what it raised.
    """
    import papermill

    if Path(name).name != name:
        raise ValueError(f"a notebook is named as in notebooks/, without a folder, not {name!r}")
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
                f"{name}, cell [{error.exec_count}]: {error.ename}: {error.evalue}\nall of it is in {executed}"
            ) from error
        except OSError:
            if executed.exists():
                _remove_half(executed)
            raise


@contextmanager
def _without_bars() -> Iterator[None]:
    """No progress bars in the outputs of a notebook that nobody watches: a kernel inherits this."""
    shown = os.environ.get("TQDM_DISABLE")
    os.environ["TQDM_DISABLE"] = "1"
    try:
        yield
    finally:
        os.environ.pop("TQDM_DISABLE")
        if shown is not None:
            os.environ["TQDM_DISABLE"] = shown


def _literal(path: Path) -> str:
    """A path for papermill, which fills in what stands in braces, and takes what begins like an address for one."""
    return str(path.absolute()).replace("{", "{{").replace("}", "}}")


def _remove_half(executed: Path) -> None:
    try:
        read_json(executed)
    except DamagedError:
        executed.unlink()


def run_grid(path: Path, *, profile: str = "local", arguments: Sequence[str] = ()) -> int:
    """Run the workflow for a grid file with Snakemake; only what is missing is made.

    Args:
        path: the grid file.
        profile: a folder of ``workflow/profiles``: ``local``, ``slurm`` or ``kubernetes``.
        arguments: more arguments for Snakemake, ``-n`` say.

    Returns:
        Snakemake's exit status.

    Raises:
        ValueError: for a grid file that cannot be used, or an unknown profile.
        FileNotFoundError: outside a checkout of the project.
        RuntimeError: if Snakemake is not installed, or another run is under way in this checkout.
    """
    snakefile, profiles = project_path("workflow", "Snakefile"), project_path("workflow", "profiles")
    if not snakefile.exists():
        raise FileNotFoundError(f"{snakefile} does not exist: run this in a checkout of the project")
    known = sorted(folder.name for folder in profiles.iterdir())
    if profile not in known:
        raise ValueError(f"no profile is called {profile!r}; known: {', '.join(known)}")
    grid = Grid.load(path)
    told = grid.results / "grid.json"
    # A result that came with the checkout has no history by which Snakemake could see that the grid has changed.
    changed = ["--forcerun", "grid"] if told.exists() and read_json(told) != grid.as_dict() else []
    try:
        from snakemake.cli import main
    except ImportError as error:
        raise RuntimeError("Snakemake is not installed: pip install 'bluelib[workflow]'") from error
    path = path.resolve()
    os.chdir(project_path())
    # Jobs call plain `python`: that of this environment.
    os.environ["PATH"] = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    logging.getLogger().handlers.clear()  # Snakemake has a handler of its own
    # The system lets go of this lock when the process dies; Snakemake's own would have to be removed by hand.
    try:
        with locked(project_path("snakemake"), wait=False):
            # `changed` in front: what follows it must be an option, or it would be taken for another rule to force.
            main(
                [
                    *changed,
                    "--snakefile",
                    str(snakefile),
                    "--configfile",
                    str(path),
                    "--nolock",
                    "--workflow-profile",
                    str(profiles / profile),
                    *arguments,
                ]
            )
    except BlockingIOError as error:
        raise RuntimeError(f"another run is under way in {project_path()}") from error
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def end_with_workflow() -> None:
    """End this process, and those it started, when the workflow that started it is gone: a job that went on alone would
    write beside the same job of the next run. Nothing happens outside a workflow."""
    if WORKFLOW not in os.environ:
        return
    try:
        workflow = psutil.Process(int(os.environ[WORKFLOW]))
    except psutil.NoSuchProcess as error:
        raise RuntimeError(f"the workflow that started this job, process {os.environ[WORKFLOW]}, is gone") from error

    def watch() -> None:
        while _alive(workflow):
            time.sleep(0.5)
        for child in psutil.Process().children(recursive=True):
            child.kill()
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def _alive(process: psutil.Process) -> bool:
    """Whether a process runs: not another one with its number, nor one that is dead and not yet fetched."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def draw_analysis(notebook: str, numbers: Mapping[str, Path], folder: Path) -> list[Path]:
    """Draw a notebook's figures into ``folder`` from the files of its numbers by model, the models side by side."""
    import matplotlib.pyplot as plt

    from .reports.figures import FIGURES
    from .reports.plots import save

    contents = {model: read_json(path) for model, path in numbers.items()}
    drawn = []
    for name, draw in FIGURES[notebook].items():
        stem = folder / name
        figure = draw(contents)
        save(figure, stem)
        plt.close(figure)
        drawn += [stem.with_suffix(extension) for extension in (".png", ".svg")]
    return drawn


def describe_statistics(
    model: Any, editors: Sequence[str], *, corpus: str | None, tokens: int | None = None, null_spaces: bool
) -> dict[str, Any]:
    """Measure what the editors of a grid need of a model's second moments, or of their null spaces, and say what it is:
    by layer, the number of tokens and the mean energy E‖k‖² of a key, or the null spaces' dimensions.

    Methods that use none are passed over.
    """
    from .editing.editor import Editor, get_editor
    from .editing.second_moments import null_space
    from .editing.solvers import NullSpace

    found: dict[str, Any] = {}
    for name in editors:
        method = get_editor(name, model, corpus=corpus)
        if not isinstance(method, Editor):
            continue
        threshold = method.solver.threshold if isinstance(method.solver, NullSpace) else None
        if null_spaces and threshold is None:
            continue
        count = method.tokens if tokens is None else tokens
        for layer, moment in method.second_moments(model, method.layers, count).items():
            entry = found.setdefault(f"{method.corpus}, {count} tokens", {}).setdefault(str(layer), {})
            entry["d_mlp"], entry["energy"] = len(moment.matrix), round(moment.matrix.trace().item(), 6)
            if null_spaces and threshold is not None:
                basis = null_space(moment.matrix, threshold)
                entry.setdefault("null_space", {})[f"{threshold:g}"] = basis.shape[1]
    return {"model": model.name, "model_revision": model.revision, "editors": list(editors), "layers": found}
