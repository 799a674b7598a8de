"""Runs that are killed at any moment and begun again, and several at once that write the same files.

Processes are forked from one that has imported everything (a fork server), so that a run costs what it does and not
what its imports do. Each is ended by a real signal; the system, not Python, cleans up after it.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import logging
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch

from bluelib import edit_sequence, load_model
from bluelib.cli import main
from bluelib.editing import checkpoints
from bluelib.editing import editor as editors
from bluelib.editing import second_moments as statistics
from bluelib.editing.residuals import DIRECT, REPLAYED, Residual
from bluelib.editing.second_moments import null_space, second_moments
from bluelib.editing.solvers import NullSpace, Ridge
from bluelib.io.formats import write_json
from bluelib.io.locks import locked
from bluelib.io.writing import atomic_directory, atomic_file, remove_leftovers
from bluelib.models import contexts
from bluelib.models.model import weights_hash
from bluelib.pocket import card
from bluelib.pocket.pretrain import Recipe
from bluelib.runs import cell as experiment
from bluelib.runs.grid import Grid
from bluelib.studies.follow import follow
from bluelib.studies.tuning import tune
from tests.data.test_download import ENTRIES, server  # noqa: F401
from tests.editing.test_second_moments import TEXT
from tests.runs.test_workflow import TINY, blue, finished, project  # noqa: F401
from tests.support.folders import age, files, leftovers
from tests.support.small import PREFIXES, RECORDS, editor

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.support.forked"])
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


def ended(process, folder: Path) -> None:
    process.join(PATIENCE)
    process.kill()  # if it is not at its end yet
    process.join()
    assert process.exitcode == 0, Path(f"{folder}.log").read_text(encoding="utf-8")[-2000:]


def wait_for(condition: Callable[[], object], process=None) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline and (process is None or process.is_alive())
        time.sleep(0.002)


def state(folder: Path) -> dict[str, object]:
    """Everything in a folder but lock files, hidden files too: JSON without times and what else a process says of
    itself."""
    return {str(path.relative_to(folder)): _content(path) for path in files(folder)}


#: What a process says of itself, and the hash of a file that has it.
TOLD = ("seconds", "peak_memory", "provenance", "sha256")


def _content(path: Path) -> object:
    if path.suffix == ".json":
        content = json.loads(path.read_text(encoding="utf-8"))
        return {key: value for key, value in content.items() if key not in TOLD}
    return hashlib.sha256(path.read_bytes()).hexdigest()


def killed_at_moments(task: Callable, folder: Path, *arguments, moments: int, seed: int = 0) -> dict[str, int]:
    """Kill a task at random moments of an undisturbed run's time, and start it again each time as if a day later; one
    that ends before it is to be killed is begun afresh. Whenever it ends, it must have left what the undisturbed run
    left."""
    chance = random.Random(f"{task.__name__} {seed}")
    ended(start(task, folder / "first", *arguments), folder / "first")  # whatever is made once for all runs
    began = time.monotonic()
    ended(start(task, folder / "whole", *arguments), folder / "whole")
    duration = time.monotonic() - began
    wanted, tried = state(folder / "whole"), {"kills": 0, "ends": 0, "in a write": 0}
    assert state(folder / "first") == wanted, "the task is not reproducible: nothing can be learnt from it"

    def end(process) -> None:
        ended(process, folder / "killed")
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
            tried["in a write"] += bool(leftovers(folder / "killed"))
            age(*leftovers(folder / "killed"))
        else:
            end(process)
    end(start(task, folder / "killed", *arguments))
    print(f"{task.__name__} {arguments}: {tried}, {duration:.1f} s undisturbed")
    return tried


def killed_at_changes(task: Callable, folder: Path, *arguments) -> int:
    """Kill a task before its first change to the files, its second one when it is started again as if a day later, and
    so on, until it ends: it must have left what an undisturbed run leaves. Returns how often it was killed."""
    ended(start(task, folder / "whole", *arguments), folder / "whole")
    for change in range(1, 1000):
        process = start(task, folder / "killed", *arguments, change=change)
        process.join(PATIENCE)
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        age(*leftovers(folder / "killed"))
    assert state(folder / "killed") == state(folder / "whole")
    print(f"{task.__name__} {arguments}: killed before {change - 1} changes")
    return change - 1


# --- what is killed ------------------------------------------------------------------------------------------------


def edit(folder: Path, name: str, edits: int = 8) -> None:
    """``blue edit --checkpoint``; a delta that a killed one had saved is removed, as its message says."""
    (folder / "delta.safetensors").unlink(missing_ok=True)
    printed = io.StringIO()
    with redirect_stdout(printed):
        code = main(
            [
                *"edit --model pocket-llama --dataset pocket-zsre --editor".split(),
                name,
                "--edits",
                str(edits),
                *"--batch-size 2 --no-generate --json --checkpoint".split(),
                str(folder / "checkpoint"),
                "--save-delta",
                str(folder / "delta.safetensors"),
            ]
        )
    if code:
        sys.exit(code)
    write_json(folder / "result.json", json.loads(printed.getvalue()))


FEW = {"dataset": "pocket-counterfact", "batch_size": 2}
SOLVERS = {"history": Ridge(0.5, remembers=True), "null space": NullSpace(0.05, 1.0), "ridge": Ridge(50.0)}


def text(folder: Path) -> Path:
    """A text of 100 lines, with enough different keys for λC to have an inverse."""
    path, chance = folder.parent / "text.txt", random.Random(0)
    words = " ".join(TEXT).split()
    if not path.exists():
        with atomic_file(path) as temporary:
            lines = [" ".join(chance.choices(words, k=10)) for _ in range(100)]
            temporary.write_text("\n\n".join(lines) + "\n", encoding="utf-8")
    return path


def edit_small(folder: Path, solver: str, rule: Residual = DIRECT) -> None:
    """A sequence of edits of a small random model, one a batch."""
    from tests.support.forked import MODEL

    os.environ["BLUELIB_CACHE"] = str(folder / "cache")
    editors.context_prefixes = lambda *_: PREFIXES
    method = replace(editor(SOLVERS[solver], rule), corpus=str(text(folder)), tokens=600)
    run = edit_sequence(MODEL, RECORDS, method, batch_size=1, progress=False, checkpoint_dir=folder / "checkpoint")
    run.save_delta(folder / "delta.safetensors")
    write_json(folder / "result.json", {"weights": weights_hash(MODEL.hf_model), "batches": run.batches})


def along(folder: Path) -> None:
    """``blue follow`` of a method with a history, scored at two lengths of three."""
    os.chdir(folder)
    follow(load_model("pocket-llama"), "memit_history", **FEW, edits=6, at=(2,), others=2)


def search(folder: Path) -> None:
    """``blue tune`` of one axis."""
    os.chdir(folder)
    tune(load_model("pocket-llama"), "memit_blue", **FEW, edits=2, which="solver")


def measure(folder: Path) -> None:
    """Second moments, written after each part of about 15 tokens."""
    from tests.support.forked import MODEL

    os.environ["BLUELIB_CACHE"] = str(folder)
    statistics.SHARD, statistics.WRITE_EVERY = 15, -1.0
    second_moments(MODEL, [0, 2], corpus=text(folder), tokens=300, progress=False)


def train(folder: Path) -> None:
    """``blue pretrain`` of a few steps, but for measuring what the model knows, which takes a minute."""
    os.environ["BLUELIB_CACHE"] = str(folder / "cache")
    card.recall = lambda model: {"seen": 0.0}
    card._card = lambda *_: "a card says how long training took"
    recipe = Recipe(steps=6, rows_per_step=1, checkpoint_every=1)
    card.make_model("pocket-gpt2", folder / "model", recipe=recipe)


SMALL = [
    (edit_small, "history"),
    (edit_small, "null space"),
    (edit_small, "ridge"),
    (edit_small, "ridge", REPLAYED),
    (along,),
    (search,),
    (measure,),
    (train,),
]
NAMES = [
    " ".join([task.__name__, *(getattr(given, "name", given) for given in arguments)]) for task, *arguments in SMALL
]


@pytest.mark.parametrize(("task", "arguments"), [(edit_small, ["history"]), (measure, [])], ids=["edit", "measure"])
def test_a_run_survives_a_kill(tmp_path, task, arguments):
    """Killed twice, at random; that it is killed before each of its writes takes longer."""
    assert killed_at_moments(task, tmp_path, *arguments, moments=2)["kills"] == 2


@pytest.mark.long
@pytest.mark.parametrize(("task", "arguments"), [(task, arguments) for task, *arguments in SMALL], ids=NAMES)
def test_a_run_survives_twenty_kills(tmp_path, task, arguments):
    assert killed_at_moments(task, tmp_path, *arguments, moments=20)["kills"] == 20


@pytest.mark.long
@pytest.mark.parametrize(("task", "arguments"), [(task, arguments) for task, *arguments in SMALL], ids=NAMES)
def test_a_run_survives_kills_before_each_of_its_writes(tmp_path, task, arguments):
    assert killed_at_changes(task, tmp_path, *arguments) >= 10


@pytest.mark.long
@pytest.mark.parametrize("name", ["memit", "memit_history_blue", "alphaedit_blue"])
def test_blue_edit_survives_twenty_kills(tmp_path, name):
    """The command itself, on a pocket model."""
    assert killed_at_moments(edit, tmp_path, name, moments=20)["kills"] == 20


@pytest.mark.long
def test_a_workflow_survives_twenty_kills(project):  # noqa: F811
    """SIGKILL at random moments, by turns of Snakemake alone and of its whole process group."""
    found, chance, tried = Grid.of(TINY), random.Random(0), {"kills": 0, "in a write": 0}
    made = [found.results, found.figures, found.work]

    def remove() -> None:
        for folder in (*made, project / ".snakemake"):
            shutil.rmtree(folder, ignore_errors=True)

    def results() -> dict[str, object]:
        return {str(path): _content(path) for path in sorted(found.results.rglob("*.json"))}

    finished(blue(project, TINY))
    remove()
    began = time.monotonic()
    finished(blue(project, TINY))
    duration, wanted = time.monotonic() - began, results()
    assert len(wanted) == 3
    remove()
    while tried["kills"] < 20:
        process = blue(project, TINY, start_new_session=True)
        try:
            process.communicate(timeout=chance.uniform(0, duration))
        except subprocess.TimeoutExpired:
            children = psutil.Process(process.pid).children(recursive=True)
            process.kill() if tried["kills"] % 2 else os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            tried["kills"] += 1
            tried["in a write"] += any(map(leftovers, made))
            age(*(left for folder in made for left in leftovers(folder)))
            assert not psutil.wait_procs(children, timeout=30)[1], "nothing goes on behind the next run's back"
        else:
            assert process.returncode == 0 and results() == wanted
            remove()
    finished(blue(project, TINY))
    assert results() == wanted
    assert not any(map(leftovers, made)) and not list((found.work / "checkpoints").iterdir())
    print(f"workflow: {tried}, {duration:.1f} s undisturbed")


# --- several at once -----------------------------------------------------------------------------------------------


def once(module, name: str, folder: Path, others: int, hang_at: int = 0) -> None:
    """Note each call of a function in ``folder``/calls. The first waits until ``others`` wait for this process; or, if
    ``hang_at`` is given, the call of that number never ends."""
    function, calls = getattr(module, name), 0

    def noted(*arguments, **options):
        nonlocal calls
        calls += 1
        with open(folder / "calls", "a", encoding="utf-8") as file:
            file.write(f"{os.getpid()}\n")
        if calls == hang_at:
            time.sleep(PATIENCE)
        wait_for(lambda: hang_at or waiting(folder) >= others)
        return function(*arguments, **options)

    setattr(module, name, noted)


def waiting(folder: Path) -> int:
    log = Path(f"{folder}.log")
    return log.read_text(encoding="utf-8").count(" waiting for ") if log.exists() else 0


def callers(folder: Path) -> list[str]:
    path = folder / "calls"
    return path.read_text(encoding="utf-8").split() if path.exists() else []


def measure_once(folder: Path, others: int, hang_at: int = 0) -> None:
    once(statistics, "_shard", folder, others, hang_at)
    measure(folder)


def decompose_once(folder: Path, others: int, hang_at: int = 0) -> None:
    os.environ["BLUELIB_CACHE"] = str(folder)
    once(statistics, "_null_space", folder, others, hang_at)
    statistics.SMALL = 1
    null_space(torch.diag(torch.arange(50.0)), 20.0)


def generate_once(folder: Path, others: int, hang_at: int = 0) -> None:
    from tests.support.forked import MODEL

    os.environ["BLUELIB_CACHE"] = str(folder)
    once(contexts, "make_prefixes", folder, others, hang_at)
    contexts.context_prefixes(MODEL)


def evaluate_once(folder: Path, others: int, hang_at: int = 0) -> None:
    from tests.support.forked import MODEL

    once(experiment, "evaluate", folder, others, hang_at)
    experiment.evaluate_unedited(MODEL, "test", RECORDS, seed=0, generate=False, path=folder / "scores.json")


ONCE = [measure_once, decompose_once, generate_once, evaluate_once]


#: How many others there are: three, in `make test`.
OTHERS = pytest.mark.parametrize("others", [pytest.param(1, marks=pytest.mark.slow), 3])


@OTHERS
@pytest.mark.parametrize("task", ONCE)
def test_of_several_processes_one_makes_a_file_and_the_others_wait(tmp_path, task, others):
    folder = tmp_path / "shared"
    processes = [start(task, folder, others) for _ in range(others + 1)]
    for process in processes:
        ended(process, folder)
    assert len(set(callers(folder))) == 1 and waiting(folder) == others
    ended(start(task, tmp_path / "alone", 0), tmp_path / "alone")
    for kept in (folder, tmp_path / "alone"):
        (kept / "calls").unlink()
    assert state(folder) == state(tmp_path / "alone")


@OTHERS
@pytest.mark.parametrize("task", ONCE)
def test_if_the_one_that_makes_a_file_is_killed_another_goes_on(tmp_path, task, others):
    folder = tmp_path / "shared"
    hang_at = 5 if task is measure_once else 1
    first = start(task, folder, 0, hang_at)
    wait_for(lambda: len(callers(folder)) == hang_at, first)
    processes = [start(task, folder, others - 1) for _ in range(others)]
    wait_for(lambda: waiting(folder) >= others)
    first.kill()
    for process in processes:
        ended(process, folder)
    assert len(set(callers(folder))) == 2
    log = Path(f"{folder}.log").read_text(encoding="utf-8")
    assert log.count("continuing after") == (task is measure_once), "what the first one wrote is not measured again"
    ended(start(task, tmp_path / "alone", 0), tmp_path / "alone")
    for kept in (folder, tmp_path / "alone"):
        (kept / "calls").unlink()
    assert state(folder) == state(tmp_path / "alone")


def count(folder: Path, times: int) -> None:
    """Add to a number in a file: two that did so at once would count one."""
    for _ in range(times):
        with locked(folder / "number"):
            found = int((folder / "number").read_text()) if (folder / "number").exists() else 0
            time.sleep(0.001)
            (folder / "number").write_text(str(found + 1))


def test_a_lock_is_held_by_one_process_at_a_time(tmp_path):
    processes = [start(count, tmp_path / "f", 50) for _ in range(3)]
    for process in processes:
        ended(process, tmp_path / "f")
    assert (tmp_path / "f" / "number").read_text() == "150"


def test_a_file_system_without_locks_stops_nobody(tmp_path, monkeypatch, caplog):
    def none(*args: object) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr("fcntl.flock", none)
    with locked(tmp_path / "number"):
        (tmp_path / "number").write_text("1")
    assert "number is on a file system without locks: nothing keeps another run from writing it too" in caplog.text


def hold(folder: Path, seconds: float) -> None:
    with locked(folder / "held"):
        (folder / "here").touch()
        time.sleep(seconds)


def test_a_lock_ends_with_its_holder(tmp_path):
    folder = tmp_path / "f"
    holder = start(hold, folder, PATIENCE)
    wait_for((folder / "here").exists, holder)
    with pytest.raises(BlockingIOError, match="held is in use by another process"):
        locked(folder / "held", wait=False).__enter__()
    other = start(hold, folder, 0)
    wait_for(lambda: waiting(folder), other)
    assert other.is_alive()
    holder.kill()
    ended(other, folder)
    with locked(folder / "held", wait=False):
        assert [path.name for path in files(folder)] == ["here"], "nothing is made but the lock file"


def test_a_lock_ends_with_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), locked(tmp_path / "held"):
        raise ZeroDivisionError
    with locked(tmp_path / "held", wait=False):
        pass


def edit_and_hang(folder: Path) -> None:
    """A sequence of edits that stops after its second batch, without ending."""
    once(checkpoints.Checkpoint, "save", folder, 0, 3)
    edit_small(folder, "history")


def train_and_hang(folder: Path) -> None:
    once(torch, "save", folder, 0, 3)
    train(folder)


@pytest.mark.parametrize(
    ("hangs", "task", "arguments"),
    [
        pytest.param(edit_and_hang, edit_small, ("history",), id="edit"),
        pytest.param(train_and_hang, train, (), id="pretrain", marks=pytest.mark.slow),
    ],
)
def test_a_second_run_in_the_same_folder_is_refused_until_the_first_is_dead(tmp_path, hangs, task, arguments):
    folder = tmp_path / "shared"
    first = start(hangs, folder)
    wait_for(lambda: len(callers(folder)) == 3, first)
    before = state(folder)
    for _ in range(2):
        second = start(task, folder, *arguments)
        second.join(PATIENCE)
        assert second.exitcode == 1
        assert " is in use by another process: " in Path(f"{folder}.log").read_text(encoding="utf-8")
    assert state(folder) == before, "the second changes nothing"
    first.kill()
    first.join()
    ended(start(task, folder, *arguments), folder)
    (folder / "calls").unlink()
    ended(start(task, tmp_path / "alone", *arguments), tmp_path / "alone")
    assert state(folder) == state(tmp_path / "alone")


def fetch(folder: Path, url: str, sha256: str) -> None:
    os.environ |= {"BLUELIB_CACHE": str(folder), "no_proxy": "127.0.0.1"}
    if main(["download", "known-facts", "--url", url, "--sha256", sha256]):
        sys.exit(1)


@OTHERS
@pytest.mark.parametrize("killed", [False, True])
def test_several_downloads_of_a_file_are_one(server, tmp_path, others, killed):  # noqa: F811
    server.content = json.dumps(ENTRIES[:1209]).encode()  # as many as the real file has
    folder, server.pause = tmp_path / "shared", 0.1
    arguments = (server.url, hashlib.sha256(server.content).hexdigest())
    part = folder / "datasets" / "known_1000.json.part"
    first = start(fetch, folder, *arguments)
    wait_for(lambda: part.exists() and part.stat().st_size, first)
    processes = [start(fetch, folder, *arguments) for _ in range(others)]
    server.pause = 0.3
    wait_for(lambda: waiting(folder) >= others)
    if killed:
        first.kill()
    server.pause = 0
    for process in processes:
        ended(process, folder)
    first.join(PATIENCE)
    assert server.requests[0][1] is None and len(server.requests) == 1 + killed
    assert not killed or server.requests[1][1].startswith("bytes=")
    assert [path.name for path in files(folder)] == ["known_1000.json", "known_1000.json.sha256"]
    assert (folder / "datasets" / "known_1000.json").read_bytes() == server.content


# --- files and folders ---------------------------------------------------------------------------------------------


def write(folder: Path, content: str) -> None:
    with atomic_file(folder / "file.txt") as temporary:
        temporary.write_text(content, encoding="utf-8")


def write_folder(folder: Path, content: str) -> None:
    with atomic_directory(folder / "site") as temporary:
        for name in ("a", "b"):
            (temporary / name).write_text(content, encoding="utf-8")


@pytest.mark.parametrize(("task", "names"), [(write, ["file.txt"]), (write_folder, ["site/a", "site/b"])])
def test_what_is_written_is_old_or_new_whenever_its_writer_is_killed(tmp_path, task, names):
    """Killed before each of its changes in turn; what the dead one left is gone once another has written a day later."""
    gone = kept = 0
    for change in range(1, 100):
        folder = tmp_path / str(change)
        ended(start(task, folder, "old"), folder)
        process = start(task, folder, "new", change=change)
        process.join(PATIENCE)
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        if not (folder / names[0]).exists():  # between the two renames of a folder
            gone += 1
            remove_leftovers(folder / names[0].split("/")[0])
            assert not (folder / names[0]).exists(), "its writer may be alive"
            age(*leftovers(folder))
            remove_leftovers(folder / names[0].split("/")[0])
            assert {(folder / name).read_text() for name in names} == {"new"}
        else:
            assert {(folder / name).read_text() for name in names} in ({"old"}, {"new"})
        left = leftovers(folder)
        kept += bool(left)
        ended(start(task, folder, "newer"), folder)
        assert leftovers(folder) == left, "their writers may be alive"
        age(*left)
        ended(start(task, folder, "newer"), folder)
        assert {(folder / name).read_text() for name in names} == {"newer"}
        assert sorted(state(folder)) == names and len(list(folder.iterdir())) == 1
    assert change > 4 and kept > 1 and gone == (task is write_folder)


def write_slowly(folder: Path) -> None:
    with atomic_file(folder / "file.txt") as temporary:
        temporary.write_text("slow", encoding="utf-8")
        wait_for((folder / "go").exists)


def test_what_a_living_process_writes_is_left_alone(tmp_path):
    folder = tmp_path / "f"
    dead = start(write_slowly, folder)
    wait_for(lambda: list(folder.glob(".file.txt.*.tmp/file.txt")), dead)
    dead.kill()
    dead.join()
    (left,) = leftovers(folder)
    living = start(write_slowly, folder)
    wait_for(lambda: len(list(folder.glob(".file.txt.*.tmp/file.txt"))) == 2, living)
    age(left)
    write(folder, "quick")
    assert (folder / "file.txt").read_text() == "quick"
    (still,) = leftovers(folder)
    assert still != left, "the dead one's is gone, the living one's is not"
    (folder / "go").touch()
    ended(living, folder)
    assert (folder / "file.txt").read_text() == "slow" and not leftovers(tmp_path)


def test_leftovers_of_a_name_that_begins_alike_are_left_alone(tmp_path):
    """Killed between its two renames, the writer of `model.v2` leaves both versions in one folder."""
    between = tmp_path / ".model.v2.abcd1234.tmp"
    for name in ("model.v2", ".replaced"):
        (between / name).mkdir(parents=True)
    age(between)
    remove_leftovers(tmp_path / "model")
    assert between.exists()
    remove_leftovers(tmp_path / "model.v2")
    assert not between.exists() and (tmp_path / "model.v2").is_dir()


def test_a_failed_folder_leaves_the_old_one(tmp_path, monkeypatch):
    write_folder(tmp_path, "old")
    rename = os.rename

    def fails(source, target):
        if Path(target) == tmp_path / "site" and Path(source).name == "site" and not (tmp_path / "site").exists():
            monkeypatch.setattr(os, "rename", rename)
            raise OSError("no space")
        rename(source, target)

    monkeypatch.setattr(os, "rename", fails)
    with pytest.raises(OSError, match="no space"):
        write_folder(tmp_path, "new")
    assert (tmp_path / "site" / "a").read_text() == "old" and not leftovers(tmp_path)


# --- interrupted, not killed ---------------------------------------------------------------------------------------


def interrupt(folder: Path, number: int, moments: int) -> None:
    """Real signals at random moments of sequences of edits, in a process that goes on; SIGTERM as a service handles it."""
    from tests.support.forked import MODEL

    os.environ["BLUELIB_CACHE"] = str(folder)
    editors.context_prefixes = lambda *_: PREFIXES
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which is ignored in what a shell starts behind itself
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), number))
    method = replace(editor(SOLVERS["history"], DIRECT), corpus=str(text(folder)), tokens=600)
    whole = [weights_hash(MODEL.hf_model)]  # at the end of each batch

    def run(**options) -> None:
        edit_sequence(MODEL, RECORDS, method, batch_size=1, progress=False, **options)

    with MODEL.preserved(method.layers):
        run(after_batch=lambda *_: whole.append(weights_hash(MODEL.hf_model)))
    began = time.monotonic()
    with MODEL.preserved(method.layers):
        run()
    duration, chance, found = time.monotonic() - began, random.Random(number), []
    hooks, drawn = _hooks(MODEL), torch.get_rng_state()
    while len(found) < moments:
        with MODEL.preserved(method.layers):
            try:
                signal.setitimer(signal.ITIMER_REAL, chance.uniform(0.001, duration))
                run()
            except (KeyboardInterrupt, SystemExit):
                found.append(weights_hash(MODEL.hf_model))
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            assert _hooks(MODEL) == hooks and torch.equal(torch.get_rng_state(), drawn) and torch.is_grad_enabled()
    write_json(folder / "result.json", {"whole": whole, "found": found})


def _hooks(model) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.hf_model.modules())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moments", [3, pytest.param(40, marks=pytest.mark.long)])
def test_an_interrupted_batch_leaves_the_model_as_it_was_before(tmp_path, number, moments):
    folder = tmp_path / "run"
    ended(start(interrupt, folder, number, moments), folder)
    result = json.loads((folder / "result.json").read_text())
    assert len(result["found"]) == moments and set(result["found"]) <= set(result["whole"])
    assert moments < 10 or len(set(result["found"])) > 3, "they are spread over the batches"
