"""Where things are kept, and how they are written: under a temporary name first, then renamed.

What is being written is in a folder ``.NAME.….tmp`` beside NAME, with a file in it that the writing process holds
locked. The system lets go of a lock when its process dies, so that everybody can tell the leftovers of a dead process
from what a living one is about to finish; who writes NAME next removes them.
"""

from __future__ import annotations

import errno
import fcntl
import glob
import hashlib
import json
import logging
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, TextIO

import platformdirs

log = logging.getLogger(__name__)


def cache_dir(part: str) -> Path:
    """The folder for ``part`` in the user's cache (``$BLUELIB_CACHE``, or the platform's cache folder)."""
    root = os.environ.get("BLUELIB_CACHE")
    path = (Path(root) if root else platformdirs.user_cache_path("bluelib")) / part
    path.mkdir(parents=True, exist_ok=True)
    return path


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path; on success the file there takes ``path``'s place, and is on the disk when this returns,
    on an error it is removed."""
    path = Path(path)
    with _temporary(path) as folder:
        temporary = folder / path.name
        yield temporary
        os.chmod(temporary, 0o644)
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)


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
def atomic_directory(path: Path, *, replace: bool = True) -> Iterator[Path]:
    """Yield a temporary folder; on success it takes ``path``'s place, on an error it is removed.

    No system call exchanges two folders everywhere: an old one is moved aside first. If the process is killed between
    the two moves, the next one that writes ``path`` makes the second.

    Raises:
        FileExistsError: without ``replace``, if there is a folder with something in it at ``path``.
    """
    path = Path(path)
    with _temporary(path) as folder:
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


#: How a file system says that it has no locks.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
#: In a temporary folder: what its owner holds locked while it lives, and the folder that is being replaced.
_LOCK, _ASIDE = ".lock", ".replaced"


@contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """A folder beside ``path`` to write it in: also what other libraries write under names of their own stays inside.
    It is removed in the end; those of dead processes that wrote the same path are removed now."""
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path)
    lock = None
    while lock is None:
        folder = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"))
        try:
            lock = _take(folder / _LOCK, wait=False)
        except (FileNotFoundError, BlockingIOError):
            continue  # another process took it for a leftover before it was locked
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            lock = nullcontext()  # and so nobody will take it for a leftover
    with lock:
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def remove_leftovers(path: Path) -> None:
    """Remove what processes that are dead left behind when they wrote ``path``; nothing of a living one."""
    for folder in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        with suppress(OSError):  # not empty; or a living process has the lock, or another one removes it at this moment
            os.rmdir(folder)
            continue
        with suppress(OSError), _take(folder / _LOCK, wait=False):
            whole = folder / path.name
            if whole.exists() and (folder / _ASIDE).exists() and not path.exists():
                os.rename(whole, path)
            shutil.rmtree(folder)


def lock_file(path: Path) -> Path:
    """The file that :func:`locked` locks for ``path``: it is there while that lasts, or after a kill."""
    return path.with_name(f".{path.name}.lock")


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold ``path`` for this process alone, by the lock file ``.NAME.lock`` beside it. The system lets go of it when
    the process dies, however it dies.

    Args:
        path: what is to be written; it need not exist.
        wait: whether to wait for another process that holds it.

    Raises:
        BlockingIOError: without ``wait``, if another process holds it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    name, holder = lock_file(path), ""
    try:
        try:
            lock = _take(name, wait=False)
        except BlockingIOError as error:
            with suppress(FileNotFoundError):
                holder = name.read_text(encoding="utf-8")
            if not wait:
                raise BlockingIOError(
                    f"{path} is in use{holder}: wait until that ends, or choose another name"
                ) from error
            log.info("waiting for %s%s", path, holder)
            lock = _take(name, wait=True)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        log.warning("%s is on a file system without locks: nothing keeps another run from writing it too", path)
        yield
        return
    with lock:
        try:
            lock.truncate(0)
            lock.write(f" by process {os.getpid()} on {platform.node()}")
            lock.flush()
            yield
        finally:
            name.unlink(missing_ok=True)


def _take(path: Path, *, wait: bool) -> TextIO:
    """The file at ``path``, made if need be, open and locked until it is closed. It still has that name once the lock
    is held: a lock's last holder removes its file."""
    while True:
        file = open(path, "a", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                    return file
        except BaseException:
            file.close()
            raise
        file.close()


def make_once(path: Path, make: Callable[[], Any]) -> None:
    """Call ``make``, which writes ``path``, if it is not there. Of several processes that ask at once, one makes it,
    and the others wait; if that one dies, another one does."""
    if not path.exists():
        with locked(path):
            if not path.exists():
                make()


def _sync(path: Path) -> None:
    """Have the system write a file, or a folder's names, to the disk: without it, a loss of power can leave a new name
    and not what it names."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:  # some file systems cannot do this for a folder
        if not path.is_dir():
            raise
    finally:
        os.close(handle)


def project_path(*parts: str) -> Path:
    """A path in the project's checkout: the nearest folder upwards with a ``notebooks`` folder, or else here."""
    here = Path.cwd()
    root = next((folder for folder in (here, *here.parents) if (folder / "notebooks").is_dir()), here)
    return root.joinpath(*parts)
