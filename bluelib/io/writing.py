"""Files and folders written whole or not at all: under a temporary name first, then renamed.

What is being written is in a folder ``.NAME.….tmp`` beside NAME. A process that is killed leaves it behind; the next
one that writes NAME removes those that are older than a day.
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

#: Seconds after which a temporary folder is taken for what a dead process left behind: no write takes so long.
LEFT_AFTER = 24 * 3600
#: In a temporary folder, the folder that is being replaced.
_ASIDE = ".replaced"


class WriteError(OSError):
    """A file that cannot be written; the message names it and the reason."""

    def __str__(self) -> str:
        return f"{self.filename} cannot be written: {self.strerror}"


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path; on success the file there takes ``path``'s place, and is on the disk when this returns,
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
    """Say which file could not be written and why, whoever wrote it: Python's errors do not name the file that ran out
    of space, and those of libraries written in Rust are no :class:`OSError` at all.

    Raises:
        WriteError: in place of the system's error about ``path``, or a temporary file beside or below it.
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

    No system call exchanges two folders everywhere: an old one is moved aside first. If the process is killed between
    the two moves, :func:`remove_leftovers` makes the second.

    Raises:
        FileExistsError: without ``replace``, if there is a folder with something in it at ``path``.
    """
    path = Path(path)
    with writing(path), _temporary(path) as folder:
        temporary = folder / path.name
        temporary.mkdir()
        yield temporary
        for part in (*temporary.rglob("*"), temporary):
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
    """Whether a folder could take the name ``path``: if it is nobody's, or an empty folder's."""
    try:
        os.rename(new, path)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return False
    return True


@contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """A folder beside ``path`` to write it in: also what other libraries write under names of their own stays inside.
    It is removed in the end; leftovers of the same path are removed now."""
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
    ours = re.compile(rf"\.{re.escape(path.name)}\.[a-z0-9_]{{8}}\.tmp")  # as `tempfile` makes them up
    for folder in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        if not ours.fullmatch(folder.name):  # another file's, whose name begins like this one
            continue
        with suppress(FileNotFoundError):  # another process removes it at this moment
            if time.time() - folder.stat().st_mtime > LEFT_AFTER:
                whole = folder / path.name
                if whole.exists() and (folder / _ASIDE).exists() and not path.exists():
                    os.rename(whole, path)
                shutil.rmtree(folder)


def _sync(path: Path) -> None:
    """Have the system write a file, or a folder's names, to the disk: without it, a loss of power can leave a new name
    and not what it names."""
    if path.is_dir() and os.name == "nt":  # Windows opens no folder
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
    """Find out before long work whether a file or a folder can be made at ``path``; nothing is left there.

    Raises:
        WriteError: if it cannot.
    """
    path = Path(path).absolute()
    folder = next(parent for parent in path.parents if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise WriteError(error.errno, error.strerror, str(path)) from error


def check_new_file(path: str | Path) -> None:
    """As :func:`check_writable`, for a file, which may replace another but not a folder."""
    if Path(path).is_dir():
        raise IsADirectoryError(f"{path} is a folder; a file is to be written there")
    check_writable(path)
