"""Files that ship with the project, and the check that they are unchanged: ``assets/SHA256SUMS`` has the hash of each,
in the format of ``sha256sum``."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from .formats import DamagedError
from .tensors import file_hash
from .writing import atomic_file

ASSETS = Path(str(files("bluelib"))) / "assets"


def check_shipped(path: Path) -> None:
    """Make sure that a shipped file, or each listed file of a shipped folder, is unchanged.

    Raises:
        DamagedError: if a file is missing or has changed; the message names it.
    """
    sums = _sums()
    for name, digest in sums.items():
        file = ASSETS / name
        if path in (file, *file.parents) and (not file.is_file() or file_hash(file) != digest):
            raise DamagedError(
                f"{file} is missing or has changed: its SHA-256 is not the one listed in "
                f"{ASSETS / 'SHA256SUMS'}; install bluelib again, or restore the file"
            )


def shipped_hash(path: Path) -> str | None:
    """The hash of a shipped file; None for any other."""
    return _sums().get(path.relative_to(ASSETS).as_posix()) if path.is_relative_to(ASSETS) else None


def update_sums(made: Path) -> None:
    """Bring the list up to date if ``made``, a file or a folder, is one that ships; other entries stay as they are.

    The list has no model cards, and no hidden files, which are still being written."""
    made = made.absolute()
    if not made.is_relative_to(ASSETS):
        return
    sums = {name: digest for name, digest in _sums().items() if made not in (ASSETS / name, *(ASSETS / name).parents)}
    for path in (made, *made.rglob("*")):
        name = path.relative_to(ASSETS)
        if path.is_file() and path.suffix != ".md" and not any(part.startswith(".") for part in name.parts):
            sums[name.as_posix()] = file_hash(path)
    lines = [f"{digest}  {name}\n" for name, digest in sorted(sums.items(), key=lambda item: Path(item[0]))]
    with atomic_file(ASSETS / "SHA256SUMS") as temporary:
        temporary.write_text("".join(lines), encoding="ascii")


def _sums() -> dict[str, str]:
    text = (ASSETS / "SHA256SUMS").read_text(encoding="ascii")
    return {name: digest for digest, name in (line.split("  ", 1) for line in text.splitlines())}
