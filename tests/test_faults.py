"""What goes wrong outside the mathematics: disks that are full, files that are damaged, numbers that are none, and input
that was written to do harm."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest
import torch
from safetensors.torch import save_file

from bluelib import apply_delta, edit_sequence, load_dataset, load_model
from bluelib.checkpoints import Checkpoint
from bluelib.cli import main
from bluelib.configs import model_configs
from bluelib.contexts import FILE, context_prefixes, make_prefixes
from bluelib.data.download import FILES, cached, download, downloaded
from bluelib.files import (
    DamagedError,
    WriteError,
    atomic_file,
    file_hash,
    load_tensors,
    read_json,
    save_tensors,
    seal,
    write_json,
)
from bluelib.grid import Grid
from bluelib.mend import Mend, train
from bluelib.models import Model, weights_hash
from bluelib.pocket.pretrain import _keep, _resume
from bluelib.reports.plots import save as save_figure
from bluelib.reports.tables import _write as write_table
from bluelib.reproduce import run_notebook
from bluelib.residuals import DIRECT
from bluelib.sequence import preserved
from bluelib.shipped import ASSETS, check_shipped, shipped_hash, update_sums
from bluelib.solvers import Ridge
from bluelib.statistics import _Sums, null_space, second_moments

from .conftest import RECORDS, editor, random_model

ROOT = Path(__file__).parent.parent
HISTORY = Ridge(0.5, remembers=True)


@lru_cache
def made(dtype: str = "float64") -> Model:
    model = random_model("pocket-llama")
    return Model.of("random", model.lm.to(getattr(torch, dtype)), model.tokenizer)


@pytest.fixture
def model(small_world) -> Iterator[Model]:
    with preserved(made(), range(4)):
        yield made()


# --- disks ------------------------------------------------------------------------------------------------------------


@dataclass
class Disk:
    """A folder whose disk can be filled: ``full`` leaves ``room`` bytes of it, or lets no file be longer than that."""

    folder: Path
    full: Callable[[int], Any]


@pytest.fixture(params=["tmpfs", "file size limit"])
def disk(request, tmp_path) -> Iterator[Disk]:
    """A real file system of 16 MB; or, as a full disk can also be had without being root, the system's limit of a file's
    size."""
    if request.param == "tmpfs":
        with mounted(tmp_path / "disk") as folder:
            yield Disk(folder, lambda room: filled(folder, room))
    else:
        (tmp_path / "disk").mkdir()
        yield Disk(tmp_path / "disk", limited)


@contextmanager
def mounted(folder: Path) -> Iterator[Path]:
    folder.mkdir()
    if shutil.which("mount") is None or os.geteuid() != 0:
        pytest.skip("only root can mount a file system")
    command = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextmanager
def filled(folder: Path, room: int) -> Iterator[None]:
    filler = folder / "filler"
    found = os.statvfs(folder)
    with open(filler, "wb", buffering=0) as file:
        file.write(bytes(max(0, found.f_bavail * found.f_frsize - (room // 4096) * 4096)))
    try:
        yield
    finally:
        filler.unlink()


@contextmanager
def limited(room: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def contents(folder: Path) -> dict[str, str]:
    """All files of a folder, hidden ones too, by their hashes."""
    return {str(p.relative_to(folder)): file_hash(p) for p in folder.rglob("*") if p.is_file() and p.name != "filler"}


def figure(path: Path) -> None:
    drawn, axes = plt.subplots(figsize=(3, 3))
    axes.plot(range(100))
    try:
        save_figure(drawn, path.with_suffix(""))
    finally:
        plt.close(drawn)


def csv_table(path: Path) -> None:
    with atomic_file(path) as temporary, open(temporary, "w") as file:
        file.writelines("1,2,3\n" for _ in range(3000))


def mend_network(path: Path) -> None:
    train(made("float32"), RECORDS, (1, 2), path, steps=1, batch_size=2, progress=False)


def delta(path: Path) -> None:
    apply = edit_sequence(made(), RECORDS[:1], editor(), batch_size=1)
    try:
        apply.save_delta(path)
    finally:
        apply.revert()


#: What the library writes: a file's name, and who writes it.
WRITERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "results": ("cell.json", lambda path: write_json(path, {"scores": list(range(5000))}, sealed=True)),
    "statistics": ("s.safetensors", lambda path: _Sums({0: torch.ones(96, 96)}).write(path)),
    "delta": ("edit.safetensors", delta),
    "MEND's network": ("mend.safetensors", mend_network),
    "saved model": ("saved", lambda path: made().save(path)),
    "pretraining": ("pocket.pt", lambda path: _keep(path, {"lm": {"weight": torch.ones(50_000)}, "step": 3})),
    "Markdown table": ("main.md", lambda path: write_table(path, "| a |\n" * 5000)),
    "CSV table": ("main.csv", csv_table),
    "figure": ("trace.png", figure),
    "context prefixes": ("contexts.json", lambda path: make_prefixes(made(), path)),
}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("share", [0.0, 0.5], ids=["at once", "half way"])
def test_a_full_disk_is_named_and_leaves_what_was_there(model, disk, writer, share):
    """No file, or the one before it, under the final name; nothing under another; and it goes on when there is room."""
    name, write = WRITERS[writer]
    path = disk.folder / "out" / name
    write(path)
    good = contents(path.parent)
    size = max(file.stat().st_size for file in path.parent.rglob("*") if file.is_file())
    for before in (good, {}):
        if not before or path.is_dir():  # a saved model is never replaced
            shutil.rmtree(path.parent)
            path.parent.mkdir()
        before = contents(path.parent)
        with disk.full(int(share * size)), pytest.raises(WriteError) as error:
            write(path)
        assert str(error.value).startswith(f"{path} cannot be written: ") and "\n" not in str(error.value)
        assert "No space left on device" in str(error.value) or "File too large" in str(error.value)
        assert contents(path.parent) == before
    write(path)
    assert contents(path.parent).keys() == good.keys()


@pytest.mark.parametrize("writer", WRITERS)
def test_a_read_only_disk_is_named(model, tmp_path, writer):
    name, write = WRITERS[writer]
    with mounted(tmp_path / "disk") as folder:
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        for path in (folder / name, folder / "new" / name):
            with pytest.raises(WriteError, match=r"cannot be written: Read-only file system") as error:
                write(path)
            assert str(error.value).startswith(f"{path} ")


def test_second_moments_survive_a_full_disk(model, disk, monkeypatch):
    """What was measured before is read again, nothing half-written is, and what is missing is made when there is room."""
    monkeypatch.setenv("BLUELIB_CACHE", str(disk.folder))
    first = second_moments(model, (0,), tokens=2000)[0].matrix
    kept = contents(disk.folder)
    with disk.full(4096), pytest.raises(WriteError, match=r"layer1\.safetensors cannot be written: "):
        second_moments(model, (0, 1), tokens=2000)
    assert contents(disk.folder) == kept
    both = second_moments(model, (0, 1), tokens=2000)
    assert torch.equal(both[0].matrix, first) and len(contents(disk.folder)) == 2


@pytest.mark.parametrize("solver", [HISTORY, Ridge(50.0)], ids=["history", "ridge"])
def test_a_checkpoint_survives_a_full_disk(model, disk, solver):
    """The run ends at the batch that cannot be kept; the checkpoint before it is whole and continued from."""
    method = editor(solver, DIRECT)
    whole = edit_sequence(model, RECORDS, method, batch_size=2)
    wanted = weights_hash(model.lm)
    whole.revert()
    folder = disk.folder / "run"
    states = []
    for room in (0, 2000, 60_000):  # nothing fits; the keys; the first matrices
        with preserved(model, range(4)):
            full = []

            def fill(number, result, full=full, room=room):
                states.append((weights_hash(model.lm), contents(folder)))
                full.append(disk.full(room))
                full[-1].__enter__()

            try:
                with pytest.raises(WriteError) as error:
                    edit_sequence(model, RECORDS, method, batch_size=2, checkpoint_dir=folder, after_batch=fill)
                assert f"{folder}/" in str(error.value) and "cannot be written: " in str(error.value)
                assert weights_hash(model.lm) == states[-1][0], "the model is as its last checkpoint"
                assert contents(folder) == states[-1][1]
            finally:
                full[-1].__exit__(None, None, None)
        shutil.copytree(folder, copy := disk.folder / "copy")
        run = edit_sequence(model, RECORDS, method, batch_size=2, checkpoint_dir=copy)
        assert weights_hash(model.lm) == wanted
        run.revert()
        shutil.rmtree(copy)
        shutil.rmtree(folder)


def test_the_command_line_says_in_one_line_what_could_not_be_written(disk, capsys, monkeypatch):
    arguments = ["edit", "--model", "pocket-llama", "--dataset", "pocket-zsre", "--editor", "ft", "--edits", "2",
                 "--batch-size", "1", "--no-generate", "--json"]  # fmt: skip
    for option, name in (("--checkpoint", "c"), ("--save", "saved"), ("--save-delta", "edit.safetensors")):
        with disk.full(20_000):
            assert main([*arguments, option, str(disk.folder / name)]) == 2
        printed = capsys.readouterr().err.strip().splitlines()[-1]
        assert printed.startswith(f"blue: {disk.folder / name}") and "cannot be written: " in printed
        assert not contents(disk.folder)


def test_an_executed_notebook_is_not_left_half_written(disk, tmp_path, monkeypatch):
    """Jupyter's kernel is not needed for this: the copy that papermill writes before the first cell has no room."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notebooks").mkdir()
    cells = [{"cell_type": "markdown", "id": str(i), "metadata": {}, "source": "text " * 5000} for i in range(3)]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    content = {"cells": cells, "metadata": {"kernelspec": kernel, "language_info": {"name": "python"}}, "nbformat": 4,
               "nbformat_minor": 5}  # fmt: skip
    (tmp_path / "notebooks" / "long.ipynb").write_text(json.dumps(content))
    with disk.full(20_000), pytest.raises(WriteError, match=r"out\.ipynb cannot be written: "):
        run_notebook("long", {}, disk.folder / "out.ipynb")
    assert not contents(disk.folder)


# --- damaged files ----------------------------------------------------------------------------------------------------


def damages(path: Path, flips: int = 200, cuts: int = 40, seed: int = 0, first: int | None = None) -> Iterator[str]:
    """The file with one random bit changed, or cut off at a random length, one after the other; whole again at the end.

    With ``first``, bits of the first bytes only.
    """
    draw, whole = random.Random(seed), path.read_bytes()
    try:
        for _ in range(flips):
            at, bit = draw.randrange(first or len(whole)), draw.randrange(8)
            with open(path, "r+b") as file:
                file.seek(at)
                file.write(bytes([whole[at] ^ 1 << bit]))
            yield f"bit {bit} of byte {at}"
            with open(path, "r+b") as file:
                file.seek(at)
                file.write(whole[at : at + 1])
        for _ in range(cuts):
            path.write_bytes(whole[: draw.randrange(len(whole))])
            yield f"cut to {path.stat().st_size} bytes"
    finally:
        path.write_bytes(whole)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return a == b


def count_refused(path: Path, load: Callable[[], Any], named: str | None = None, **how: Any) -> tuple[int, int]:
    """Damage a file and load it: how often it was refused by name, and how often the same content was loaded all the
    same. Anything else fails."""
    expected, refused, harmless = load(), 0, 0
    for damage in damages(path, **how):
        try:
            found = load()
        except (ValueError, OSError) as error:
            assert (named or path.name) in str(error), (damage, error)
            refused += 1
        else:
            assert same(found, expected), damage
            harmless += 1
    assert same(load(), expected)
    return refused, harmless


def in_delta(model: Model, folder: Path):
    delta(path := folder / "edit.safetensors")

    def load():
        with preserved(model, range(4)):
            about = apply_delta(model, path)
            return about, {layer: model.weight(layer).clone() for layer in (0, 1, 2)}

    return path, load


def in_statistics(model: Model, folder: Path):
    matrix = second_moments(model, (0,), tokens=2000)[0].matrix
    (path,) = (folder / "statistics").iterdir()
    return path, lambda: (matrix.shape, second_moments(model, (0,), tokens=2000)[0].matrix)


def in_unfinished_statistics(model: Model, folder: Path):
    path = folder / "unfinished.safetensors"
    _Sums({0: torch.rand(96, 96, dtype=torch.float64)}, 3, 2000).write(path)

    def load():
        found = _Sums.of(model, (0,), path)
        return found.totals, found.sequences, found.tokens

    return path, load


def in_null_space(model: Model, folder: Path):
    c = torch.diag(torch.arange(20.0))
    null_space(c, 4.5)
    (path,) = (folder / "null-spaces").iterdir()
    return path, lambda: null_space(c, 4.5)


def in_contexts(model: Model, folder: Path):
    context_prefixes(model)
    (path,) = (folder / "contexts").iterdir()
    return path, lambda: context_prefixes(model)


def in_mend_network(model: Model, folder: Path):
    mend_network(path := folder / "mend.safetensors")
    return path, lambda: dict(Mend("mend", (1, 2), str(path)).prepare(made("float32")).state_dict())


def in_checkpoint(name: str):
    def make(model: Model, folder: Path):
        identity = {"model": "m", "records": "r"}
        kept = Checkpoint(folder / "c", identity)
        kept.load()
        for n in (1, 2):
            weights = {0: torch.rand(8, 8), 2: torch.rand(8, 8)}
            batches = [{"edits": 2, "loss": 0.5}] * n
            kept.save(weights, torch.get_rng_state()[:40], {0: torch.rand(8, 2)}, batches, {"targets": 1.5})

        def load():
            found = Checkpoint(folder / "c", identity).load()
            if found is None:
                raise ValueError(f"{name} is taken for none")
            return found.weights, found.random_state, found.keys, found.batches, found.seconds

        return folder / "c" / name, load

    return make


def in_pretraining(model: Model, folder: Path):
    lm = torch.nn.Linear(30, 20)
    adam = torch.optim.Adam(lm.parameters())
    lm(torch.ones(30)).sum().backward()
    adam.step()
    path = folder / "pocket.pt"
    _keep(path, {"identity": {"name": "x"}, "step": 3, "curve": [[0, 1.0, 2.0]], "lm": lm.state_dict(),
                 "optimizers": [adam.state_dict()], "seconds": 2.5})  # fmt: skip

    def load():
        found = _resume(path, {"name": "x"}, lm, [adam], "cpu")
        return found, dict(lm.state_dict())

    return path, load


def in_results(model: Model, folder: Path):
    cell = sorted((ROOT / "results" / "pocket").glob("*_memit_*.json"))[0]
    path = write_json(folder / "cell.json", read_json(cell), sealed=True)
    return path, lambda: read_json(path, sealed=True)


DAMAGED = {
    "delta": in_delta,
    "statistics": in_statistics,
    "unfinished statistics": in_unfinished_statistics,
    "null space": in_null_space,
    "context prefixes": in_contexts,
    "MEND's network": in_mend_network,
    "checkpoint's manifest": in_checkpoint("manifest.json"),
    "checkpoint's weights": in_checkpoint("weights-00002.safetensors"),
    "checkpoint's keys": in_checkpoint("keys-00001.safetensors"),
    "pretraining": in_pretraining,
    "results": in_results,
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_file_is_refused_by_name(small_world, tmp_path, monkeypatch, kind):
    """200 changed bits and 40 cuts, each of which is seen, or changes nothing that is read."""
    monkeypatch.setattr("bluelib.statistics.SMALL", 10)
    with preserved(made(), range(4)):
        path, load = DAMAGED[kind](made(), tmp_path)
        refused, harmless = count_refused(path, load)
    assert refused + harmless == 240 and refused >= 200, (refused, harmless)


def test_a_file_of_an_earlier_version_is_refused_until_it_is_trusted(tmp_path):
    path = tmp_path / "old.safetensors"
    save_file({"second_moment": torch.eye(3)}, path, {"counts": json.dumps({"tokens": 3})})
    with pytest.raises(DamagedError, match=r"old\.safetensors has no hash .* Delete it.*files\.seal\('.*old\.safetens"):
        load_tensors(path)
    seal(path)
    tensors, about = load_tensors(path)
    assert torch.equal(tensors["second_moment"], torch.eye(3)) and about == {"counts": {"tokens": 3}}


def test_the_same_tensors_give_the_same_file(tmp_path):
    for name in ("a", "b"):
        save_tensors(tmp_path / name, {"x": torch.eye(3), "y": torch.ones(2)}, {"one": 1, "two": [2]})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_what_ships_is_listed_with_its_hash():
    """The list is of the files that are there: `update_sums` would write it as it is."""
    listed = (ASSETS / "SHA256SUMS").read_text().splitlines()
    there = {p.relative_to(ASSETS).as_posix() for part in ("datasets", "mend", "models") for p in (ASSETS / part).rglob("*")
             if p.is_file() and p.suffix != ".md"}  # fmt: skip
    assert {line.split("  ")[1] for line in listed} == there
    for part in ("datasets", "mend", "models"):
        check_shipped(ASSETS / part)


@pytest.fixture
def assets(tmp_path, monkeypatch) -> Path:
    copy = shutil.copytree(ASSETS, tmp_path / "assets")
    for module in ("shipped", "models", "mend"):
        monkeypatch.setattr(f"bluelib.{module}.ASSETS", copy)
    return copy


def test_a_shipped_file_that_is_another_is_refused(assets, monkeypatch):
    from bluelib import data

    path = assets / "datasets" / "pocket-zsre.json"
    monkeypatch.setitem(data.DATASETS, "pocket-zsre", replace(data.DATASETS["pocket-zsre"], path=path))
    assert load_dataset("pocket-zsre", limit=1)
    lm = load_model("pocket-llama")
    network = Mend("mend", (1, 2), None)
    assert shipped_hash(network.path(lm))
    files = [*(assets / "models" / "pocket-llama").glob("*.*"), path, assets / "mend" / "pocket-llama.safetensors"]
    loaders = {"datasets": lambda: load_dataset("pocket-zsre", limit=1), "mend": lambda: network.prepare(lm)}
    for file in files:
        if file.suffix == ".md":
            continue
        load = loaders.get(file.parent.name, lambda: load_model("pocket-llama"))
        for damage in damages(file, flips=3, cuts=1):
            with pytest.raises(DamagedError, match=file.name):
                load()
            assert damage
    (assets / "models" / "pocket-llama" / FILE).write_text('{"prefixes": [""]}')
    with pytest.raises(DamagedError, match=FILE):
        context_prefixes(lm)
    update_sums()
    assert context_prefixes(lm) == ("",)


@pytest.mark.long
def test_every_changed_bit_of_shipped_weights_is_seen(assets):
    refused, harmless = count_refused(assets / "models" / "pocket-llama" / "model.safetensors",
                                      lambda: weights_hash(load_model("pocket-llama").lm))  # fmt: skip
    assert (refused, harmless) == (240, 0)


@pytest.fixture(scope="module")
def checkpoint_folder(tmp_path_factory) -> Path:
    return made("float32").save(tmp_path_factory.mktemp("saved") / "model")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"])
def test_a_damaged_checkpoint_of_a_users_own_is_refused_or_loads(checkpoint_folder, tmp_path, name):
    """Of such a checkpoint no hash is known, so that changed numbers are not seen; but nothing else goes wrong."""
    folder = shutil.copytree(checkpoint_folder, tmp_path / "broken")
    refused = 0
    for damage in damages(folder / name, flips=25, cuts=6, first=2000):
        try:
            load_model(str(folder))
        except (ValueError, OSError) as error:
            assert str(folder) in str(error), (damage, error)
            refused += 1
    assert refused >= 6


@pytest.mark.parametrize("name", ["counterfact", "zsre"])
def test_a_damaged_dataset_of_a_users_own_is_refused_or_loads(tmp_path, name):
    """Nobody knows its hash; results carry that of its records."""
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(json.loads((ASSETS / "datasets" / f"pocket-{name}.json").read_text())[:2]))
    for damage in damages(path, cuts=40):
        try:
            load_dataset(path)
        except ValueError as error:
            assert "mine.json" in str(error) or "record" in str(error), (damage, error)
            assert "\n" not in str(error)


@pytest.mark.parametrize("kind", ["grid", "configuration"])
def test_a_damaged_yaml_file_is_refused_or_read(tmp_path, monkeypatch, kind):
    if kind == "grid":
        path = Path(shutil.copy(ROOT / "workflow" / "grid-paper.yaml", tmp_path / "mine.yaml"))
    else:
        path = Path(shutil.copy(ROOT / "bluelib" / "configs" / "pocket-llama.yaml", tmp_path / "mine.yaml"))
        monkeypatch.setenv("BLUELIB_CONFIGS", str(tmp_path))
    for damage in damages(path):
        try:
            Grid.load(path) if kind == "grid" else model_configs()
        except ValueError as error:
            assert kind == "grid" or "mine.yaml" in str(error), (damage, error)


ENTRIES = [{"subject": f"Subject {i}", "attribute": "tuba", "prompt": f"Subject {i} plays the"} for i in range(50)]


@pytest.fixture
def fetched(tmp_path, monkeypatch) -> Path:
    """A benchmark of invented entries in the cache, as `blue download` leaves it."""
    monkeypatch.setenv("BLUELIB_CACHE", str(tmp_path))
    path = cached("known-facts")
    path.write_text(json.dumps(ENTRIES))
    file = replace(FILES["known-facts"], sha256=file_hash(path), entries=None)
    monkeypatch.setitem(FILES, "known-facts", file)
    return path


def test_a_damaged_download_is_refused_by_name(fetched):
    assert count_refused(fetched, lambda: downloaded("known-facts").read_bytes()) == (240, 0)


def test_a_damaged_note_of_a_users_hash_is_refused_by_name(fetched):
    download("known-facts", sha256=file_hash(fetched))
    note = fetched.with_name(fetched.name + ".sha256")
    refused, _ = count_refused(note, lambda: file_hash(downloaded("known-facts")))
    assert refused >= 100
