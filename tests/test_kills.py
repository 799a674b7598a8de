"""Runs that are killed at any moment and begun again, and several at once that write the same files.

Processes are forked from one that has imported everything (a fork server), so that a run costs what it does and not
what its imports do. Each is ended by a real signal; the system, not Python, cleans up after it.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import psutil
import pytest
import torch

from bluelib import contexts, edit_sequence, files, load_model, statistics
from bluelib.cli import main
from bluelib.data import download
from bluelib.experiment import evaluate_unedited
from bluelib.files import atomic_directory, atomic_file, write_json
from bluelib.models import weights_hash
from bluelib.pocket import card
from bluelib.pocket.pretrain import Recipe
from bluelib.residuals import DIRECT
from bluelib.solvers import NullSpace, Ridge
from bluelib.statistics import null_space, second_moments

from .conftest import PREFIXES, RECORDS, editor, random_model
from .test_download import server  # noqa: F401
from .test_workflow import TINY, blue, finished, project  # noqa: F401

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.test_kills"])
PATIENCE = 300  # seconds until something that must happen is given up


# --- processes to kill ---------------------------------------------------------------------------------------------


def start(task: Callable, folder: Path, *arguments, change: int | None = None):
    """``task(folder, *arguments)`` in a process of its own; what it logs goes to ``folder``.log. With ``change`` it is
    killed before the change of that number that it makes to the files in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    process = FORKS.Process(target=_run, args=(task, folder, arguments, change))
    process.start()
    return process


def _run(task: Callable, folder: Path, arguments: tuple, change: int | None) -> None:
    log = os.open(f"{folder}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(log, stream)
    logging.basicConfig(level=logging.INFO, format="%(process)d %(message)s", force=True)
    if change is not None:
        _kill_before(change, str(folder))
    task(folder, *arguments)


def _kill_before(change: int, folder: str) -> None:
    """Kill this process before the change of that number. What it would have renamed then is half written."""
    left = change

    def watch(event: str, arguments: tuple) -> None:
        nonlocal left
        if event == "open":
            changes = isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        else:
            changes = event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir")
        if not changes or not (str(arguments[0]).startswith(folder + "/") or arguments[-1] not in (-1, None)):
            return
        left -= 1
        if left == 0:
            if event == "os.rename" and os.path.isfile(arguments[0]):
                left = -1
                os.truncate(arguments[0], os.path.getsize(arguments[0]) // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)


def ended(process, *, killed: bool = False) -> None:
    process.join(PATIENCE)
    assert process.exitcode == (-signal.SIGKILL if killed else 0)


def wait_for(condition: Callable[[], object], process=None) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline and (process is None or process.is_alive())
        time.sleep(0.002)


def state(folder: Path) -> dict[str, object]:
    """Everything in a folder, hidden files too: JSON without times and what else a process says of itself."""
    return {
        str(path.relative_to(folder)): _content(path) for path in sorted(folder.rglob("*")) if path.is_file()
    }  # fmt: skip


def _content(path: Path) -> object:
    if path.suffix == ".json":
        content = json.loads(path.read_text(encoding="utf-8"))
        return {key: value for key, value in content.items() if key not in ("seconds", "peak_memory", "provenance")}
    return hashlib.sha256(path.read_bytes()).hexdigest()


def being_written(folder: Path) -> bool:
    return any(folder.rglob(".*.tmp"))


def killed_at_moments(task: Callable, folder: Path, *arguments, moments: int, seed: int = 0) -> dict[str, int]:
    """Kill a task at random moments of an undisturbed run's time, and start it again each time; one that ends before it
    is to be killed is begun afresh. Whenever it ends, it must have left what the undisturbed run left."""
    chance = random.Random(f"{task.__name__} {seed}")
    ended(start(task, folder / "first", *arguments))  # whatever is made once for all runs
    began = time.monotonic()
    ended(start(task, folder / "whole", *arguments))
    duration = time.monotonic() - began
    wanted, tried = state(folder / "whole"), {"kills": 0, "ends": 0, "in a write": 0}
    assert state(folder / "first") == wanted, "the task is not reproducible: nothing can be learnt from it"

    def end(process) -> None:
        ended(process)
        tried["ends"] += 1
        assert state(folder / "killed") == wanted
        shutil.rmtree(folder / "killed")

    while tried["kills"] < moments:
        process = start(task, folder / "killed", *arguments)
        process.join(chance.uniform(0, duration))
        if process.is_alive():
            process.kill()
            process.join()
        if process.exitcode == -signal.SIGKILL:
            tried["kills"] += 1
            tried["in a write"] += being_written(folder / "killed")
        else:
            end(process)
    end(start(task, folder / "killed", *arguments))
    print(f"{task.__name__} {arguments}: {tried}, {duration:.1f} s undisturbed")
    return tried


def killed_at_changes(task: Callable, folder: Path, *arguments) -> int:
    """Kill a task before its first change to the files, its second one when it is started again, and so on, until it
    ends: it must have left what an undisturbed run leaves. Returns how often it was killed."""
    ended(start(task, folder / "whole", *arguments))
    for change in range(1, 1000):
        process = start(task, folder / "killed", *arguments, change=change)
        process.join(PATIENCE)
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
    assert state(folder / "killed") == state(folder / "whole")
    print(f"{task.__name__} {arguments}: killed before {change - 1} changes")
    return change - 1


# --- what is killed ------------------------------------------------------------------------------------------------


def edit(folder: Path, name: str, edits: int = 8) -> None:
    """``blue edit --checkpoint``."""
    printed = io.StringIO()
    with redirect_stdout(printed):
        code = main(["edit", "--model", "pocket-llama", "--dataset", "pocket-zsre", "--editor", name, "--edits",
                     str(edits), "--batch-size", "2", "--no-generate", "--json", "--checkpoint",
                     str(folder / "checkpoint"), "--save-delta", str(folder / "delta.safetensors")])  # fmt: skip
    if code:
        sys.exit(code)
    write_json(folder / "result.json", json.loads(printed.getvalue()))


SOLVERS = {"history": Ridge(0.5, remembers=True), "null space": NullSpace(0.05, 1.0), "ridge": Ridge(50.0)}


def edit_small(folder: Path, solver: str) -> None:
    """A sequence of edits of a small random model, one a batch."""
    os.environ["BLUELIB_CACHE"] = str(folder / "cache")
    from unittest.mock import patch

    with patch("bluelib.editors.context_prefixes", lambda model: PREFIXES):
        model = random_model("pocket-llama")
        run = edit_sequence(model, RECORDS, editor(SOLVERS[solver], DIRECT), batch_size=1, progress=False,
                            checkpoint_dir=folder / "checkpoint")  # fmt: skip
    run.save_delta(folder / "delta.safetensors")
    write_json(folder / "result.json", {"weights": weights_hash(model.lm), "batches": run.batches})


def measure(folder: Path, tokens: int = 3000, layers: tuple[int, ...] = (0, 2), dtype: str = "small") -> None:
    """Second moments, written after each part of about 200 tokens."""
    os.environ["BLUELIB_CACHE"] = str(folder)
    statistics.SHARD, statistics.WRITE_EVERY = (200, -1.0) if dtype == "small" else (2000, -1.0)
    model = random_model("pocket-llama") if dtype == "small" else load_model("pocket-llama")
    second_moments(model, layers, tokens=tokens, progress=False)


def train(folder: Path) -> None:
    """``blue pretrain`` of a few steps; what the model knows is not measured, which takes a minute."""
    os.environ["BLUELIB_CACHE"] = str(folder / "cache")
    card.recall = lambda model: {"seen": 0.0}
    recipe = Recipe(steps=8, rows_per_step=2, checkpoint_every=1)
    card.make_model("pocket-gpt2", folder / "model", recipe=recipe)
    text = (folder / "model" / "README.md").read_text(encoding="utf-8")
    assert "minutes on" in text
    (folder / "model" / "README.md").unlink()  # it says how long it took


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_sequence_of_edits_survives_a_few_kills(tmp_path, solver):
    assert killed_at_moments(edit_small, tmp_path, solver, moments=2)["kills"] == 2
