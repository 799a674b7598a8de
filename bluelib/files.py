"""Where things are kept, and how they are written: under a temporary name first, then renamed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import platformdirs


def cache_dir(part: str) -> Path:
    """The folder for ``part`` in the user's cache (``$BLUELIB_CACHE``, or the platform's cache folder)."""
    root = os.environ.get("BLUELIB_CACHE")
    path = (Path(root) if root else platformdirs.user_cache_path("bluelib")) / part
    path.mkdir(parents=True, exist_ok=True)
    return path


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it takes ``path``'s name, on an error it is removed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: str | Path, content: dict[str, Any], *, indent: int | None = None) -> Path:
    """Write a JSON object, whole or not at all; without ``indent`` on one line for each value, and for each item of a
    list of objects, so that a table can be read in a diff.

    Raises:
        ValueError: for NaN or infinity, which JSON does not have.
    """

    def text(value: Any, indent: int | None = None) -> str:
        if indent is None and isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            return "[\n" + ",\n".join("  " + text(item) for item in value) + "\n ]"
        return json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)

    lines = ",\n".join(f" {json.dumps(key)}: {text(value)}" for key, value in content.items())
    with atomic_file(Path(path)) as temporary:
        temporary.write_text((text(content, indent) if indent else f"{{\n{lines}\n}}") + "\n", encoding="utf-8")
    return Path(path)


def file_hash(path: str | Path) -> str:
    """SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``path``; on success it replaces ``path``, on an error it is removed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        yield temporary
        os.chmod(temporary, 0o755)
        if path.exists():
            shutil.rmtree(path)
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_writable(path: str | Path) -> None:
    """Find out before long work whether a file or a folder can be made at ``path``; nothing is left there.

    Raises:
        OSError: if it cannot; the message names ``path``.
    """
    path = Path(path).absolute()
    folder = next(parent for parent in path.parents if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise type(error)(f"{path} cannot be written: {folder}: {error.strerror}") from error


def check_new_file(path: str | Path) -> None:
    """As :func:`check_writable`, for a file, which may replace another but not a folder."""
    if Path(path).is_dir():
        raise IsADirectoryError(f"{path} is a folder; a file is to be written there")
    check_writable(path)


def project_path(*parts: str) -> Path:
    """A path in the project's checkout: the nearest folder upwards with a ``notebooks`` folder, or else here."""
    here = Path.cwd()
    root = next((folder for folder in (here, *here.parents) if (folder / "notebooks").is_dir()), here)
    return root.joinpath(*parts)
