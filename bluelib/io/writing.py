"""Files and folders written whole or not at all: under a temporary name first, then renamed.

What is being written is in a folder ``.NAME.….tmp`` beside NAME. A process that is killed leaves this folder behind.
The next process that writes NAME removes such folders if they are older than a day.
"""

from __future__ import annotations

import errno
import glob
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

#: Seconds after which a temporary folder counts as left behind by a dead process: no write takes that long.
LEFT_AFTER = 24 * 3600
#: The name, in a temporary folder, of the old folder that is being replaced.
_ASIDE = ".replaced"


class WriteError(OSError):
    """A file that cannot be written; the message names it and the reason."""

    def __str__(self) -> str:
        return f"{self.filename} cannot be written: {self.strerror}"


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path. On success the file there takes ``path``'s place and is on the disk when the block ends;
    on an error it is removed."""
    path = Path(path)
    with writing(path), _temporary(path) as folder:
        temporary = folder / path.name
        yield temporary
        os.chmod(temporary, 0o644)
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say which file could not be written and why, whichever library wrote it. Python's errors do not name the file
    that ran out of space, and those of libraries written in Rust are not even an :class:`OSError`.

    Raises:
        WriteError: if ``path``, or a temporary file beside or below it, cannot be written; replaces the system's error.
    """
    try:
        yield
    except WriteError:
        raise
    except Exception as error:
        number = error.errno if isinstance(error, OSError) else None
        if said := re.search(r"\(os error (\d+)\)", str(error)):
            number = int(said[1])
        about, here = Path(getattr(error, "filename", None) or path).absolute(), path.absolute()
        temporary = any(part.startswith(f".{path.name}.") for part in about.parts)
        if number is None or not (temporary or about in (here, *here.parents)):
            raise
        raise WriteError(number, os.strerror(number), str(path)) from error


@contextmanager
def atomic_directory(path: Path, *, replace: bool = True) -> Iterator[Path]:
    """Yield a temporary folder; on success it takes ``path``'s place, on an error it is removed.

    No system call that swaps two folders works everywhere, so an old one is moved aside first. If the process is killed
    between the two moves, :func:`remove_leftovers` makes the second one later.

    Raises:
        FileExistsError: without ``replace``, if there is a folder at ``path`` that is not empty.
    """
    path = Path(path)
    with writing(path), _temporary(path) as folder:
        temporary = folder / path.name
        temporary.mkdir()
        yield temporary
        for part in (*temporary.rglob("*"), temporary):
            os.chmod(part, 0o755 if part.is_dir() else 0o644)  # some libraries write files for their owner only
            _sync(part)
        aside = folder / _ASIDE
        try:
            while not _moved(temporary, path):
                if not replace:
                    raise FileExistsError(f"{path} exists already")
                shutil.rmtree(aside, ignore_errors=True)
                with suppress(FileNotFoundError):  # another process has moved it aside
                    os.rename(path, aside)
        except BaseException:
            if aside.exists() and not path.exists():
                os.rename(aside, path)
            raise
        _sync(path.parent)


def _moved(new: Path, path: Path) -> bool:
    """Rename the folder ``new`` to ``path`` if nothing, or an empty folder, is there; returns whether that worked."""
    try:
        os.rename(new, path)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return False
    return True


@contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """A folder beside ``path`` in which to write it, so files that other libraries write under names of their own stay
    inside too. It is removed at the end; leftovers of the same path are removed first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path)
    folder = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_leftovers(path: Path) -> None:
    """Remove what killed processes left behind when they wrote ``path``: temporary folders older than
    :data:`LEFT_AFTER`. If one was killed after it had moved the old folder aside, and nobody has written ``path``
    since, the new folder takes its place instead."""
    ours = re.compile(rf"\.{re.escape(path.name)}\.[a-z0-9_]{{8}}\.tmp")  # the names that `tempfile` makes
    for folder in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        if not ours.fullmatch(folder.name):  # belongs to another file, whose name begins with this one
            continue
        with suppress(FileNotFoundError):  # another process removes it at this moment
            if time.time() - folder.stat().st_mtime > LEFT_AFTER:
                whole = folder / path.name
                if whole.exists() and (folder / _ASIDE).exists() and not path.exists():
                    os.rename(whole, path)
                shutil.rmtree(folder)


def _sync(path: Path) -> None:
    """Have the system write a file, or a folder's list of names, to the disk. Otherwise a power failure can leave a new
    name without its content."""
    if path.is_dir() and os.name == "nt":  # Windows cannot open a folder
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:  # some file systems cannot do this for a folder
        if not path.is_dir():
            raise
    finally:
        os.close(handle)


def check_writable(path: str | Path) -> None:
    """Check, before long work, that a file or a folder can be made at ``path``; nothing is left there.

    Raises:
        WriteError: if none can be made.
    """
    path = Path(path).absolute()
    folder = next(parent for parent in path.parents if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise WriteError(error.errno, error.strerror, str(path)) from error


def check_new_file(path: str | Path) -> None:
    """Like :func:`check_writable`, for a file, which may replace another file but not a folder."""
    if Path(path).is_dir():
        raise IsADirectoryError(f"{path} is a folder; a file is to be written there")
    check_writable(path)
