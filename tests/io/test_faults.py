"""What goes wrong outside the mathematics: disks that are full, files that are damaged, numbers that are none, and input
that was written to do harm."""

from __future__ import annotations

import json
import math
import os
import pickle
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import gguf
import matplotlib.pyplot as plt
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from bluelib import apply_delta, edit_sequence, load_dataset, load_model
from bluelib.cli import main
from bluelib.data.corpora import token_sequences
from bluelib.data.datasets import DATASETS
from bluelib.data.download import FILES, cached, download, downloaded, stream_entries
from bluelib.editing import catalogue
from bluelib.editing.checkpoints import Checkpoint
from bluelib.editing.mend import Mend, train
from bluelib.editing.residuals import DIRECT, DISTRIBUTED
from bluelib.editing.second_moments import SecondMoment, _Sums, null_space, second_moments
from bluelib.editing.settings import model_configs
from bluelib.editing.solvers import Equality, NullSpace, Ridge
from bluelib.editing.targets import TargetOptions
from bluelib.io.assets import ASSETS, check_shipped, shipped_hash, update_sums
from bluelib.io.formats import DamagedError, read_json, write_json
from bluelib.io.tensors import file_hash, load_tensors, save_tensors
from bluelib.io.writing import WriteError, atomic_directory, atomic_file
from bluelib.models.contexts import FILE, context_prefixes, make_prefixes
from bluelib.models.model import Model, weights_hash
from bluelib.pocket import card
from bluelib.pocket.pretrain import _keep, _resume
from bluelib.pocket.world import build_world
from bluelib.reports.plots import save as save_figure
from bluelib.reports.tables import _write as write_table
from bluelib.runs.cell import evaluate_unedited
from bluelib.runs.execute import run_notebook
from bluelib.runs.grid import Grid
from tests.support.folders import files
from tests.support.gguf import tiny, write_gguf
from tests.support.small import METHODS, PREFIXES, RECORDS, TARGETS, editor, own_settings, random_model

ROOT = Path(__file__).parents[2]
CORPUS = ""
HISTORY = Ridge(0.5, remembers=True)


@lru_cache
def made(dtype: str = "float64") -> Model:
    model = random_model("pocket-llama")
    return Model.of("random", model.hf_model.to(getattr(torch, dtype)), model.tokenizer)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> str:
    """A text of about 2,000 tokens, which is read in no time."""
    path, draw = tmp_path_factory.mktemp("text") / "text.txt", random.Random(0)
    words = [fact.object for fact in build_world(0).facts]
    path.write_text("\n".join(" ".join(draw.sample(words, 20)) for _ in range(60)))
    return str(path)


@pytest.fixture
def model(small_world, corpus, monkeypatch) -> Iterator[Model]:
    monkeypatch.setattr(f"{__name__}.CORPUS", corpus)
    with made().preserved(range(4)):
        yield made()


def method(solver=None, residual=DISTRIBUTED):
    return replace(editor(solver, residual), corpus=CORPUS, tokens=1500)


def moments(model: Model, layers: tuple[int, ...]) -> dict[int, SecondMoment]:
    return second_moments(model, layers, corpus=CORPUS, tokens=1500)


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
    """All files of a folder by their hashes."""
    return {str(path.relative_to(folder)): file_hash(path) for path in files(folder) if path.name != "filler"}


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


def mend_network(path: Path, dtype: str = "float32") -> None:
    train(made(dtype), RECORDS[:2], (1, 2), path, steps=1, batch_size=2, progress=False)


def delta(path: Path) -> None:
    run = edit_sequence(made(), RECORDS[:1], method(), batch_size=1)
    try:
        run.save_delta(path)
    finally:
        run.revert()


#: What the library writes: a file's name, and who writes it.
WRITERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "results": ("cell.json", lambda path: write_json(path, {"scores": list(range(5000))})),
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
@pytest.mark.parametrize("share", [pytest.param(0.0, marks=pytest.mark.slow), 0.5], ids=["at once", "half way"])
def test_a_full_disk_is_named_and_leaves_what_was_there(model, disk, writer, share):
    """No file, or the one before it, under the final name; nothing under another; and it goes on when there is room."""
    name, write = WRITERS[writer]
    path = disk.folder / "out" / name
    write(path)
    good = contents(path.parent)
    size = max(file.stat().st_size for file in files(path.parent))
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
    first = moments(model, (0,))[0].matrix
    kept = contents(disk.folder)
    with disk.full(4096), pytest.raises(WriteError, match=r"layer1\.safetensors cannot be written: "):
        moments(model, (0, 1))
    assert contents(disk.folder) == kept
    both = moments(model, (0, 1))
    assert torch.equal(both[0].matrix, first) and len(contents(disk.folder)) == 2


@pytest.mark.parametrize("solver", [HISTORY, Ridge(50.0)], ids=["history", "ridge"])
def test_a_checkpoint_survives_a_full_disk(model, disk, solver):
    """The run ends at the batch that cannot be kept; the checkpoint before it is whole and continued from."""
    how = method(solver, DIRECT)
    whole = edit_sequence(model, RECORDS, how, batch_size=2)
    wanted = weights_hash(model.hf_model)
    whole.revert()
    folder = disk.folder / "run"
    states = []
    for room in (0, 2000, 60_000):  # nothing fits; the keys; the first matrices
        with model.preserved(range(4)):
            full = []

            def fill(number, result, full=full, room=room):
                states.append((weights_hash(model.hf_model), contents(folder)))
                full.append(disk.full(room))
                full[-1].__enter__()

            try:
                with pytest.raises(WriteError) as error:
                    edit_sequence(model, RECORDS, how, batch_size=2, checkpoint_dir=folder, after_batch=fill)
                assert f"{folder}/" in str(error.value) and "cannot be written: " in str(error.value)
                assert weights_hash(model.hf_model) == states[-1][0], "the model is as its last checkpoint"
                assert contents(folder) == states[-1][1]
            finally:
                full[-1].__exit__(None, None, None)
        shutil.copytree(folder, copy := disk.folder / "copy")
        run = edit_sequence(model, RECORDS, how, batch_size=2, checkpoint_dir=copy)
        assert weights_hash(model.hf_model) == wanted
        run.revert()
        shutil.rmtree(copy)
        shutil.rmtree(folder)


def test_the_command_line_says_in_one_line_what_could_not_be_written(disk, capsys, monkeypatch):
    arguments = "edit --model pocket-llama --dataset pocket-zsre --editor ft --edits 2 --batch-size 1 --no-generate --json".split()
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
    content = {
        "cells": cells,
        "metadata": {"kernelspec": kernel, "language_info": {"name": "python"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
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
            at, bit = draw.randrange(min(first or len(whole), len(whole))), draw.randrange(8)
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
        with model.preserved(range(4)):
            about = apply_delta(model, path)
            return about, {layer: model.weight(layer).clone() for layer in (0, 1, 2)}

    return path, load


def in_statistics(model: Model, folder: Path):
    moments(model, (0,))
    (path,) = files(folder / "statistics")
    return path, lambda: moments(model, (0,))[0].matrix


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
    (path,) = files(folder / "null-spaces")
    return path, lambda: null_space(c, 4.5)


def in_contexts(model: Model, folder: Path):
    context_prefixes(model)
    (path,) = files(folder / "contexts")
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
            kept.save(weights, {0: torch.rand(8, 2)}, batches, {"targets": 1.5})

        def load():
            found = Checkpoint(folder / "c", identity).load()
            if found is None:
                raise ValueError(f"{name} is taken for none")
            return found.weights, found.keys, found.batches, found.seconds

        return folder / "c" / name, load

    return make


def in_pretraining(model: Model, folder: Path):
    lm = torch.nn.Linear(30, 20)
    adam = torch.optim.Adam(lm.parameters())
    lm(torch.ones(30)).sum().backward()
    adam.step()
    path = folder / "pocket.pt"
    _keep(
        path,
        {
            "identity": {"name": "x"},
            "step": 3,
            "curve": [[0, 1.0, 2.0]],
            "lm": lm.state_dict(),
            "optimizers": [adam.state_dict()],
            "seconds": 2.5,
        },
    )

    def load():
        found = _resume(path, {"name": "x"}, lm, [adam], "cpu")
        return found, dict(lm.state_dict())

    return path, load


def in_scores(model: Model, folder: Path):
    path = folder / "before.json"

    def load():
        return evaluate_unedited(model, "made", RECORDS[:3], seed=0, generate=False, path=path)

    load()
    return path, load


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
    "scores before editing": in_scores,
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_file_is_refused_by_name(model, tmp_path, monkeypatch, kind):
    """200 changed bits and 40 cuts, each of which is seen, or changes nothing that is read."""
    monkeypatch.setattr("bluelib.editing.second_moments.SMALL", 10)
    path, load = DAMAGED[kind](model, tmp_path)
    refused, harmless = count_refused(path, load)
    assert refused + harmless == 240 and refused >= 200, (refused, harmless)


def test_committed_results_are_what_was_written():
    """Those that have a hash of their content; others have that of the commit alone."""
    folders = [ROOT / "results" / name for name in ("pocket", "pocket/analysis", "ablation", "tuning")]
    found = [path for folder in folders for path in sorted(folder.glob("*.json")) if path.name != "grid.json"]
    assert len(found) > 200
    for path in found:
        read_json(path)


def test_a_file_without_a_hash_is_refused(tmp_path):
    path = tmp_path / "old.safetensors"
    save_file({"second_moment": torch.eye(3)}, path, {"counts": json.dumps({"tokens": 3})})
    with pytest.raises(DamagedError, match=r"old\.safetensors has no hash .* Delete it"):
        load_tensors(path)


def test_the_same_tensors_give_the_same_file(tmp_path):
    for name in ("a", "b"):
        save_tensors(tmp_path / name, {"x": torch.eye(3), "y": torch.ones(2)}, {"one": 1, "two": [2]})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_what_ships_is_listed_with_its_hash():
    """The list is of the files that are there: `update_sums` would write it as it is."""
    listed = (ASSETS / "SHA256SUMS").read_text().splitlines()
    there = {
        p.relative_to(ASSETS).as_posix()
        for part in ("datasets", "mend", "models", "texts")
        for p in (ASSETS / part).rglob("*")
        if p.is_file() and p.suffix != ".md"
    }
    assert {line.split("  ")[1] for line in listed} == there
    for part in ("datasets", "mend", "models", "texts"):
        check_shipped(ASSETS / part)


@pytest.fixture
def assets(tmp_path, monkeypatch) -> Path:
    copy = shutil.copytree(ASSETS, tmp_path / "assets")
    for module in ("io.assets", "models.known", "editing.mend"):
        monkeypatch.setattr(f"bluelib.{module}.ASSETS", copy)
    return copy


def test_a_shipped_file_that_is_another_is_refused(assets, monkeypatch):
    path = assets / "datasets" / "pocket-zsre.json"
    monkeypatch.setitem(DATASETS, "pocket-zsre", replace(DATASETS["pocket-zsre"], path=path))
    assert load_dataset("pocket-zsre", limit=1)
    lm = load_model("pocket-llama")
    network = Mend("mend", (1, 2), None)
    assert shipped_hash(network.path(lm))
    shipped = [*(assets / "models" / "pocket-llama").glob("*.*"), path, assets / "mend" / "pocket-llama.safetensors"]
    loaders = {"datasets": lambda: load_dataset("pocket-zsre", limit=1), "mend": lambda: network.prepare(lm)}
    for file in shipped:
        if file.suffix == ".md":
            continue
        load = loaders.get(file.parent.name, lambda: load_model("pocket-llama"))
        for _ in damages(file, flips=3, cuts=1):
            with pytest.raises(DamagedError, match=file.name):
                load()
    (assets / "models" / "pocket-llama" / FILE).write_text('{"kind": "ten_in_all", "prefixes": [""]}')
    with pytest.raises(DamagedError, match=FILE):
        context_prefixes(lm)
    update_sums(assets / "models" / "pocket-llama")
    assert context_prefixes(lm) == ("",)


def test_a_model_that_is_made_again_is_listed_with_its_new_hashes(assets, monkeypatch):
    """Also what is written beside its weights before the folder has its name; and nothing of the folder's name before."""
    monkeypatch.setattr(card, "ASSETS", assets)
    monkeypatch.setattr(card, "document", lambda folder: {"seen": (folder / "recall.json").write_text("{}")})

    def pretrain(name, output, *, complete, **_):
        with atomic_directory(output) as folder:
            (folder / "model.safetensors").write_bytes(b"other weights")
            complete(folder)

    monkeypatch.setattr(card, "pretrain", pretrain)
    card.make_model("pocket-llama")
    check_shipped(assets / "models" / "pocket-llama")
    listed = [line.split("  ")[1] for line in (assets / "SHA256SUMS").read_text().splitlines()]
    ours = [name for name in listed if "pocket-llama" in name and name.startswith("models")]
    assert ours == ["models/pocket-llama/model.safetensors", "models/pocket-llama/recall.json"]


def test_what_is_made_again_does_not_make_damage_elsewhere_good(assets):
    damaged = assets / "models" / "pocket-gpt2" / "model.safetensors"
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    (assets / "mend" / "pocket-llama.safetensors").write_bytes(b"another network")
    update_sums(assets / "mend" / "pocket-llama.safetensors")
    check_shipped(assets / "mend")
    with pytest.raises(DamagedError, match="pocket-gpt2"):
        check_shipped(assets / "models")


def test_a_mend_network_whose_training_fails_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr("bluelib.editing.mend._training_loss", lambda *_: torch.tensor(math.nan, requires_grad=True))
    with pytest.raises(FloatingPointError, match=r"training loss of records .* is nan at step 0"):
        mend_network(tmp_path / "mend.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.long
def test_every_changed_bit_of_shipped_weights_is_seen(assets):
    refused, harmless = count_refused(
        assets / "models" / "pocket-llama" / "model.safetensors",
        lambda: weights_hash(load_model("pocket-llama").hf_model),
    )
    assert (refused, harmless) == (240, 0)


@pytest.fixture(scope="module")
def checkpoint_folder(tmp_path_factory) -> Path:
    return made("float32").save(tmp_path_factory.mktemp("saved") / "model")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"])
def test_a_damaged_checkpoint_of_a_users_own_is_refused_or_loads(checkpoint_folder, tmp_path, name):
    """Of such a checkpoint no hash is known, so that changed numbers are not seen; but nothing else goes wrong."""
    folder = shutil.copytree(checkpoint_folder, tmp_path / "broken")
    assert refusals(folder / name, folder, flips=25, first=2000) >= 6


def test_a_damaged_gguf_file_is_refused_or_loads(tmp_path):
    """Of its first bytes, which say what is in it; of weights in 4 bits nearly any bits are a number."""
    path = write_gguf(tmp_path / "tiny.gguf", tiny(), quantise=gguf.GGMLQuantizationType.Q4_1)
    assert refusals(path, path, flips=60, first=6000) >= 6


def refusals(damaged: Path, loaded: Path, **how: Any) -> int:
    """How often a model is refused by name as one of its files is damaged; otherwise it loads."""
    refused = 0
    for damage in damages(damaged, cuts=6, **how):
        try:
            load_model(str(loaded))
        except (ValueError, OSError) as error:
            assert str(loaded) in str(error) or "architecture" in str(error), (damage, error)
            refused += 1
    return refused


@pytest.mark.parametrize("name", ["counterfact", "zsre"])
def test_a_damaged_dataset_of_a_users_own_is_refused_or_loads(tmp_path, name):
    """Nobody knows its hash; results carry that of its records."""
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(json.loads((ASSETS / "datasets" / f"pocket-{name}.json").read_text())[:2]))
    refused = 0
    for damage in damages(path, cuts=40):
        try:
            load_dataset(path)
        except ValueError as error:
            assert "mine.json" in str(error) or "record" in str(error), (damage, error)
            assert "\n" not in str(error)
            refused += 1
    assert refused >= 40, "at least all cuts"


@pytest.mark.parametrize("kind", ["grid", "configuration"])
def test_a_damaged_yaml_file_is_refused_or_read(tmp_path, monkeypatch, kind):
    if kind == "grid":
        path = Path(shutil.copy(ROOT / "workflow" / "grid-paper.yaml", tmp_path / "mine.yaml"))
    else:
        path = Path(shutil.copy(ROOT / "bluelib" / "configs" / "pocket-llama.yaml", tmp_path / "mine.yaml"))
        monkeypatch.setenv("BLUELIB_CONFIGS", str(tmp_path))
    refused = 0
    for damage in damages(path):
        try:
            Grid.load(path) if kind == "grid" else model_configs()
        except ValueError as error:
            assert kind == "grid" or "mine.yaml" in str(error), (damage, error)
            refused += 1
    assert refused > 20


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


# --- numbers ----------------------------------------------------------------------------------------------------------


#: What the named editors need that is not a target's.
@lru_cache
def mend_file(dtype: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        mend_network(path := Path(folder) / "mend.safetensors", dtype)
        return path.read_bytes()


def named_editor(name: str, folder: Path, dtype: str = "float32", learning_rate: float | None = None):
    """One of the catalogue's for the small model; ``mend`` with a network that takes a step of that size."""
    layers, own = (1,) if name in ("rome", "ft") else (0, 1, 2), own_settings(name)
    if name == "ft":
        return catalogue.known(name).make()(
            layers, **{**own, **({"learning_rate": learning_rate} if learning_rate else {})}
        )
    if name == "mend":
        path = folder / "mend.safetensors"
        path.write_bytes(mend_file(dtype))
        if learning_rate:
            tensors, about = load_tensors(path)
            save_tensors(path, {**tensors, "log_rate": torch.full((2,), learning_rate).log()}, about)
        return catalogue.known(name).make()((1, 2), network=str(path))
    targets = replace(TARGETS, learning_rate=learning_rate or TARGETS.learning_rate)
    return replace(catalogue.known(name).make()(layers, targets, **own), corpus=CORPUS, tokens=1500)


@pytest.fixture
def low(request, model) -> Iterator[Model]:
    """The small model in another dtype, put back whole after each test."""
    found = made(request.param)
    before = {name: tensor.clone() for name, tensor in found.hf_model.state_dict().items()}
    yield found
    found.hf_model.load_state_dict(before)


#: A model's type and a method. In bfloat16 `make test` has one method of each kind.
CASES = pytest.mark.parametrize(
    ("low", "name"),
    [
        *(pytest.param("float32", *case.values, marks=case.marks) for case in METHODS),
        *(
            pytest.param("bfloat16", name, marks=[] if name in ("ft", "mend", "memit_blue") else pytest.mark.slow)
            for name in catalogue.names()
        ),
    ],
    indirect=["low"],
)


def dtype_of(model: Model) -> str:
    return str(model.hf_model.dtype).removeprefix("torch.")


def refused(model: Model, method, *, batch_size: int = 2, records=RECORDS[:2]) -> str:
    """The message with which an edit is refused; the model is as before, bit for bit."""
    before = {layer: model.weight(layer).clone() for layer in range(4)}
    with pytest.raises((ArithmeticError, ValueError)) as error:
        edit_sequence(model, records, method, batch_size=batch_size)
    for layer, weight in before.items():
        assert torch.equal(model.weight(layer).to(weight), weight) or weight.isnan().any()
    assert not any(p.requires_grad for p in model.hf_model.parameters()) and "\n" not in str(error.value)
    return str(error.value)


@CASES
def test_weights_that_are_no_numbers_are_refused_before_anything_is_edited(low, tmp_path, name):
    method = named_editor(name, tmp_path, dtype_of(low))
    embedding = low.hf_model.get_input_embeddings().weight.data
    for place, value, said in (
        (low.weight(1), float("nan"), "layers.1.mlp.down_proj"),
        (embedding, float("inf"), "embed"),
    ):
        old = place[3, 5].clone()
        place[3, 5] = value
        message = refused(low, method)
        assert "has NaN or infinity in " in message and said in message
        place[3, 5] = old
    edit_sequence(low, RECORDS[:2], method, batch_size=2).revert()


@CASES
def test_a_step_that_is_too_large_is_refused_with_layer_and_record(low, tmp_path, name):
    message = refused(low, named_editor(name, tmp_path, dtype_of(low), 1e30))
    assert message.startswith(("records 0, 1: ", "record 0: ")), message
    if name not in ("ft", "mend"):
        assert "at layer" in message and "a δ of length inf at step 1" in message and RECORDS[0].subject in message
    elif name == "mend":
        assert "the update of layer 1 overflows" in message
    else:
        assert "the update of layer 1 overflows" in message or "the loss of" in message


WRONG_C = {
    "negative eigenvalue": lambda c: (
        c - 2 * torch.linalg.eigvalsh(c)[-1] * torch.eye(len(c))[:, :1] @ torch.eye(len(c))[:1]
    ),
    "zeros": torch.zeros_like,
    "NaN": lambda c: c * float("nan"),
    "infinity": lambda c: c * float("inf"),
}


@pytest.mark.parametrize("name", [case for case in METHODS if case.values[0] not in ("ft", "mend")])
def test_second_moments_that_are_none_are_refused_with_the_layer(model, tmp_path, monkeypatch, name):
    method = named_editor(name, tmp_path)
    found = second_moments(model, method.layers, corpus=CORPUS, tokens=1500)
    last = method.layers[-1]
    for wrong in WRONG_C.values():
        broken = {**found, last: replace(found[last], matrix=wrong(found[last].matrix))}
        monkeypatch.setattr("bluelib.editing.editor.second_moments", lambda *args, broken=broken, **how: broken)
        message = refused(model, method)
        assert message.startswith(f"{name}, factoring C of layer {last}, from ") and "C" in message


@CASES
def test_a_model_that_breaks_between_two_batches_is_left_as_before_the_batch(low, tmp_path, name):
    """The last block's norm becomes NaN after the first batch: the second has no loss that is a number."""
    method, norm = (
        named_editor(name, tmp_path, dtype_of(low)),
        low.hf_model.get_submodule("model.layers.3.input_layernorm").weight,
    )
    after = {}

    def poison(number, result):
        after.update({layer: low.weight(layer).clone() for layer in range(4)})
        norm.data.fill_(float("nan"))

    records = RECORDS[:2]
    with pytest.raises(ArithmeticError) as error:
        edit_sequence(low, records, method, batch_size=1, after_batch=poison)
    assert str(error.value).startswith("record 1: ") and RECORDS[1].subject in str(error.value)
    assert name in ("ft", "mend") or "at layer" in str(error.value)
    assert all(torch.equal(low.weight(layer), weight) for layer, weight in after.items())


def test_settings_that_are_no_numbers_are_refused():
    for value in (0.0, -1.0, float("nan"), float("inf")):
        for make in (Ridge, lambda v: NullSpace(v, 1.0), lambda v: NullSpace(1.0, v)):
            with pytest.raises(ValueError, match=r"must be (positive|finite), not"):
                make(value)
    for value in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="must be positive"):
            TargetOptions(learning_rate=value)
        with pytest.raises(ValueError, match="must be positive"):
            TargetOptions(clamp=value)


def test_fewer_keys_than_dimensions_and_nothing_that_protects():
    """λ = 0 is refused where it is set; C of few keys is singular, and alike keys cannot be told apart."""
    torch.manual_seed(0)
    k = torch.randn(8, 3, dtype=torch.float64)
    with pytest.raises(ArithmeticError, match=r"λC \(8 × 8\) is not positive definite"):
        Ridge(1.0).prepare(k @ k.T)
    with pytest.raises(ArithmeticError, match=r"C \(8 × 8\) is not positive definite"):
        Equality().prepare(k @ k.T)
    state = Equality().prepare(torch.eye(8))
    with pytest.raises(ArithmeticError, match="if two have the same key"):
        Equality().solve(state, torch.cat([k, k], 1), torch.randn(4, 6))


def test_keys_that_overflow_are_not_kept(model, tmp_path, monkeypatch):
    """Finite weights whose products are not: nothing is written that a later run would read."""
    big = random_model("pocket-llama")
    big = Model.of("big", big.hf_model.float(), big.tokenizer)
    big.hf_model.get_submodule("model.layers.0.mlp.up_proj").weight.mul_(1e37)
    with pytest.raises(
        ArithmeticError, match=r"second moments of big at layer 0: keys of .* are not finite, or overflow"
    ):
        second_moments(big, (0,), corpus=CORPUS, tokens=1500)
    assert not list((tmp_path / "statistics").glob("*.safetensors"))


def test_a_checkpoint_with_nan_is_not_loaded(checkpoint_folder, tmp_path):
    folder = shutil.copytree(checkpoint_folder, tmp_path / "broken")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.2.mlp.down_proj.weight"][1, 1] = float("nan")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"broken' has NaN or infinity in model.layers.2.mlp.down_proj.weight: "):
        load_model(str(folder))


# --- input that was written to do harm --------------------------------------------------------------------------------

#: Names that a shell, a format string or a file system would take for something else. Each would leave a file `pwned`.
NAMES = [
    "$(touch pwned)",
    "`touch pwned`",
    "x; touch pwned",
    "x' ; touch pwned '",
    'x" ; touch pwned "',
    "a b",
    "a\nb",
    "--output=pwned",
    "-rf",
    "{0.__class__}",
    "{wildcards}",
    "{model}",
    "%s%n",
    "&& touch pwned",
    "| tee pwned",
    "*",
]


class Payload:
    """A pickle that writes a file when it is read."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.write_text, (self.path, "pwned"))


def code_that_writes(path: Path) -> str:
    return f"from pathlib import Path\nPath({str(path)!r}).write_text('pwned')\n"


@pytest.fixture
def mark(tmp_path) -> Path:
    """What must not be there after the test."""
    return tmp_path / "pwned"


def test_the_payloads_work(mark):
    """Otherwise nothing below could fail."""
    pickle.loads(pickle.dumps(Payload(mark)))
    assert mark.read_text() == "pwned"
    mark.unlink()
    exec(code_that_writes(mark))
    assert mark.exists()


@pytest.mark.parametrize("kind", ["pickle", "pickle in an index", "code of its own", "another tokenizer's code"])
def test_nothing_that_comes_with_a_checkpoint_is_run(checkpoint_folder, tmp_path, mark, kind):
    folder = shutil.copytree(checkpoint_folder, tmp_path / "evil")
    (folder / "evil.py").write_text(code_that_writes(mark))
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(mark)))
    config = json.loads((folder / "config.json").read_text())
    if kind.startswith("pickle"):
        tensors = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
    if kind == "pickle in an index":
        index = {"metadata": {}, "weight_map": dict.fromkeys(tensors, "pytorch_model.bin")}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    if kind == "code of its own":
        config["auto_map"] = {name: "evil.Evil" for name in ("AutoConfig", "AutoModelForCausalLM")}
        (folder / "config.json").write_text(json.dumps(config))
        settings = {"do_sample": True, "custom_generate": "evil.py", "trust_remote_code": True}
        (folder / "generation_config.json").write_text(json.dumps(settings))
    if kind == "another tokenizer's code":
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        settings["auto_map"] = {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}
        settings["chat_template"] = "{{ ''.__class__.__mro__[1].__subclasses__() }}{% include '/etc/passwd' %}"
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    try:
        loaded = load_model(str(folder))
        assert loaded.tokenizer("Peru is").input_ids == made().tokenizer("Peru is").input_ids
        assert not kind.startswith("pickle")
    except OSError as error:
        assert str(folder) in str(error)
    assert not mark.exists()


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_nothing_but_a_name(checkpoint_folder, corpus, tmp_path, monkeypatch, name):
    """As the name of a model, a dataset, a text, a checkpoint, a delta and results: through the library."""
    inside = tmp_path / "inside"
    inside.mkdir()
    monkeypatch.chdir(inside)
    monkeypatch.setenv("BLUELIB_CACHE", str(tmp_path / "cache"))
    shutil.copytree(checkpoint_folder, inside / name)
    (inside / f"{name}.json").write_text(
        json.dumps(
            [{"prompt": "{} plays the", "subject": name, "target_new": "tuba", "ground_truth": "harp", "case_id": 0}]
        )
    )
    (inside / f"{name}.txt").write_text(Path(corpus).read_text())
    model = load_model(str(inside / name))
    model = replace(model, name=name)
    method = replace(editor(), corpus=f"{name}.txt", tokens=1500)
    monkeypatch.setattr("bluelib.editing.editor.context_prefixes", lambda *_: PREFIXES)
    run = edit_sequence(model, RECORDS[:1], method, batch_size=1, checkpoint_dir=f"{name}.run")
    run.save_delta(f"{name}.delta")
    write_json(f"{name}.out", {"name": name}, sealed=True)
    run.revert()
    apply_delta(model, f"{name}.delta")
    assert read_json(f"{name}.out") == {"name": name}
    assert {path.name for path in inside.iterdir()} == {
        name,
        *(f"{name}.{e}" for e in ("json", "txt", "run", "delta", "out")),
    }
    assert {path.name for path in tmp_path.iterdir()} == {"inside", "cache"}
    assert not [path for path in tmp_path.rglob("*") if "pwned" in path.name and path.name.split(".")[0] == "pwned"]


def test_paths_that_climb_are_refused_where_a_name_is_wanted(tmp_path, monkeypatch, capsys):
    (tmp_path / "inside" / "notebooks").mkdir(parents=True)
    (tmp_path / "evil.ipynb").write_text("{}")
    monkeypatch.chdir(tmp_path / "inside")
    for name in ("../../evil", "/etc/evil", "a/b"):
        assert main(["notebook", name, "out.ipynb"]) == 2
        assert "give the name of a notebook in notebooks/, without a folder" in capsys.readouterr().err
    for name in ("../x", "a/b", "..", "", ".", "$(touch pwned)", "a\nb", "raw"):
        with pytest.raises(ValueError, match="name of the grid becomes a folder"):
            Grid.of({**GRID, "name": name})


GRID = {
    "name": "evil",
    "models": ["pocket-llama"],
    "datasets": ["pocket-zsre"],
    "editors": ["memit", "memit_blue"],
    "seeds": [0],
    "edits": 2,
    "batch_size": 1,
}


def test_a_parameters_name_is_no_code(tmp_path, monkeypatch, mark, capsys):
    """papermill writes names into the notebook as they are; values are quoted."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notebooks").mkdir()
    shutil.copy(ROOT / "notebooks" / "00_quickstart.ipynb", "notebooks")
    for name in (f"open({str(mark)!r}, 'w');x", "a b", "class", ""):
        with pytest.raises(ValueError, match="00_quickstart has no parameter "):
            run_notebook("00_quickstart", {name: 1}, tmp_path / "out.ipynb")
    assert main(["notebook", "00_quickstart", "out.ipynb", "-p", f"open({str(mark)!r}, 'w');x=1"]) == 2
    assert "00_quickstart has no parameter " in capsys.readouterr().err
    assert not mark.exists() and not (tmp_path / "out.ipynb").exists()


@pytest.mark.slow
def test_a_notebooks_values_and_file_name_are_no_code(tmp_path, monkeypatch, mark):
    """A real notebook with hostile values, written to a file whose name papermill would fill in."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notebooks").mkdir()
    cells = [
        {
            "cell_type": "code",
            "id": "a",
            "metadata": {"tags": ["parameters"]},
            "source": "text = ''",
            "outputs": [],
            "execution_count": None,
        },
        {
            "cell_type": "code",
            "id": "b",
            "metadata": {},
            "source": "print(ascii(text))",
            "outputs": [],
            "execution_count": None,
        },
    ]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    content = {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    (tmp_path / "notebooks" / "echo.ipynb").write_text(json.dumps(content))
    value = "".join(NAMES) + "\"\"\"\n'''\\" + f"\"); open({str(mark)!r}, 'w') #"
    out = tmp_path / "{text} $(touch pwned).ipynb"
    run_notebook("echo", {"text": value}, out)
    printed = json.loads(out.read_text())["cells"][-1]["outputs"][0]["text"]
    assert "".join(printed).strip() == ascii(value)
    assert not mark.exists()


@pytest.mark.slow
def test_the_workflow_quotes_what_a_grid_names(tmp_path, monkeypatch, mark):
    """Snakemake hands every job to a shell; a stand-in for Python writes down with which arguments it was called."""
    for part in ("notebooks", "workflow"):
        shutil.copytree(ROOT / part, tmp_path / part)
    monkeypatch.chdir(tmp_path)
    tools = tmp_path / "bin"
    tools.mkdir()
    recorder = tools / "record.py"
    recorder.write_text(
        f"import json, sys\nopen({str(tmp_path / 'calls')!r}, 'a').write(json.dumps(sys.argv) + '\\n')\n"
        "open(sys.argv[sys.argv.index('--output') + 1], 'w').write('{}')\n"
    )
    snakefile = tmp_path / "workflow" / "Snakefile"
    text = snakefile.read_text()
    assert text.count('BLUE = "python -m bluelib.cli.job"') == 1
    snakefile.write_text(text.replace('"python -m bluelib.cli.job"', f'"{sys.executable} {recorder}"'))
    hostile = "-x$(touch pwned)`touch pwned`' ; touch pwned \" {model}\n{0.__class__} *"
    models, datasets = [NAMES[0], hostile], [f"{hostile}.json"]
    grid = {
        **GRID,
        "models": models,
        "datasets": datasets,
        "corpus": "".join(NAMES),
        "device": "{wildcards} $(touch pwned)",
    }
    (tmp_path / "evil.yaml").write_text(yaml.safe_dump(grid))
    command = [
        sys.executable,
        *"-m bluelib.cli reproduce --grid evil.yaml -- --keep-going --quiet --until statistics before".split(),
    ]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    calls = [json.loads(line) for line in (tmp_path / "calls").read_text().splitlines()]
    statistics = [call for call in calls if call[1] == "statistics"]
    assert {call[2].removeprefix("--model=") for call in statistics} == set(grid["models"])
    for call in statistics:
        assert f"--corpus={grid['corpus']}" in call and f"--device={grid['device']}" in call
    evaluations = [call for call in calls if call[1] == "evaluate"]
    assert {call[3].removeprefix("--dataset=") for call in evaluations} == set(datasets)
    assert not list(tmp_path.rglob("pwned*")) and not list(tmp_path.parent.glob("pwned*"))


class Redirecting(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked += 1
        self.send_response(302)
        self.send_header("Location", self.server.location or self.path + "x")
        self.end_headers()

    def log_message(self, *args):
        pass


@pytest.mark.parametrize(
    "location",
    [
        "/known_1000.json",
        "",
        "file:///etc/passwd",
        "http://169.254.1.1/",
        "//evil.example/x",
        "http://localhost@evil.example/x",
        "javascript:alert(1)",
        "data:,x",
    ],
)
def test_a_redirect_leads_nowhere_else_and_not_for_ever(fetched, location):
    """To itself, ever further on, to a file, to another machine by plain http: refused, and nothing is kept."""
    fetched.unlink()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Redirecting)
    server.location, server.asked = location, 0
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with pytest.raises((ValueError, OSError), match=r"is refused|not fetched|could not be fetched") as error:
            download("known-facts", url=f"http://127.0.0.1:{server.server_port}")
    finally:
        server.shutdown()
    assert server.asked <= 11 and "\n" not in str(error.value)
    assert not [path for path in fetched.parent.iterdir() if path.name.startswith("known")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 200_000, "it is nested too deeply"),
        ('[{"a": ' * 100_000, "it is nested too deeply"),
        ('[{"prompt": "{} is", "prompt": "{} was"}]', "field 'prompt' appears twice"),
        ('[{"prompt": NaN}]', "NaN is not a JSON number"),
        (f'[{{"case_id": {"9" * 5000}}}]', "is not JSON: Exceeds the limit"),
        ('"\\ud800"', "must hold a JSON list"),
        ("", "is not JSON: "),
    ],
    ids=["lists", "objects", "twice", "NaN", "a long number", "half a character", "nothing"],
)
def test_json_that_is_made_to_break_its_reader(tmp_path, text, message):
    path = tmp_path / "mine.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        load_dataset(path)
    assert "mine.json" in str(error.value) and "\n" not in str(error.value)
    if text[:1] == "[" and "twice" not in message and "NaN" not in message:
        with pytest.raises(ValueError, match=r"mine\.json is not JSON"):
            list(stream_entries(path))


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.system ['touch pwned']",
        "a: " + "[" * 20_000,
        "a: 2001-99-99",
        "\x00",
        "a: &a [*a]",
        "? {a: b}\n: c",
    ],
)
def test_yaml_that_is_made_to_break_its_reader(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(text)
    monkeypatch.setenv("BLUELIB_CONFIGS", str(tmp_path))
    with pytest.raises(ValueError, match=r"mine\.yaml"):
        model_configs()
    with pytest.raises(ValueError):
        Grid.load(tmp_path / "mine.yaml")
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    "subject", ["{0.__class__}", "{}", "{{}}", "%s %(x)s", "{0.__init__.__globals__}", "\\1 \\g<0>"]
)
def test_a_subject_is_no_format_string(model, subject):
    record = replace(RECORDS[0], subject=subject)
    assert record.request.text == f"{subject} plays the"
    run = edit_sequence(model, [record], method(), batch_size=1)
    run.revert()


def test_a_dataset_of_a_corpus_runs_no_code(tmp_path, mark, model):
    """A folder with a loading script beside its data, and a file whose suffix promises another kind."""
    pytest.importorskip("datasets")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "set.py").write_text(code_that_writes(mark))
    (tmp_path / "text.parquet").write_bytes(pickle.dumps(Payload(mark)))
    for corpus in ("set", "text.parquet"):
        with pytest.raises(Exception):  # noqa: B017 - of any kind: nothing but that it is not run is asked here
            list(token_sequences(model, str(tmp_path / corpus)))
    assert not mark.exists()
