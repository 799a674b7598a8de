"""What a folder holds, and what killed processes left in it."""

from __future__ import annotations

import os
import time
from pathlib import Path

from bluelib.io.writing import LEFT_AFTER


def files(folder: Path) -> list[Path]:
    """All files of a folder and of its folders, hidden ones too, but for lock files, which stay."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")


def leftovers(folder: Path) -> list[Path]:
    """The temporary folders in a folder and in its folders."""
    return sorted(folder.rglob(".*.tmp"))


def age(*folders: Path) -> None:
    """Make temporary folders so old that they are taken for a dead process's."""
    long_ago = time.time() - LEFT_AFTER - 60
    for folder in folders:
        os.utime(folder, (long_ago, long_ago))
