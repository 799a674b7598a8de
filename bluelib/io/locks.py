"""Locks between processes: while one process writes a file, no other can."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

log = logging.getLogger(__name__)

#: The errors with which a file system says that it has no locks.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold ``path`` for this process alone, by the lock file ``.NAME.lock`` beside it, which is not removed.

    The system releases the lock when the process ends, however it ends.

    Args:
        path: the file or folder to be written; it need not exist.
        wait: whether to wait for another process that holds it.

    Raises:
        BlockingIOError: without ``wait``, if another process holds it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        if not wait:
            raise BlockingIOError(
                f"{path} is in use by another process: wait until that process ends, or choose another name"
            ) from error
        log.info("waiting for another process that is writing %s", path)
        lock.acquire()
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        log.warning("%s is on a file system without locks: nothing keeps another run from writing it too", path)
        yield
        return
    try:
        yield
    finally:
        lock.release()


def make_once(path: Path, make: Callable[[], Any]) -> None:
    """Call ``make``, which writes ``path``, unless ``path`` exists. If several processes ask at once, one makes it and
    the others wait; if that one dies, another takes over."""
    if not path.exists():
        with locked(path):
            if not path.exists():
                make()
