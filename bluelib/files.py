"""Where things are kept, and how they are written: under a temporary name first, then renamed; and read: a file that
carries a hash of its content (:func:`save_tensors`, :func:`write_json` with ``sealed``) is checked against it.

What is being written is in a folder ``.NAME.….tmp`` beside NAME, with a file in it that the writing process holds
locked. The system lets go of a lock when its process dies, so that everybody can tell the leftovers of a dead process
from what a living one is about to finish; who writes NAME next removes them.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import logging
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import platformdirs
import yaml

try:
    import fcntl
except ImportError:  # Windows: as on a file system without locks
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from torch import Tensor

#: Of a safetensors file's metadata, the entry that has the hash of its content.
SEAL = "bluelib"


class WriteError(OSError):
    """A file that cannot be written; the message names it and the reason."""

    def __str__(self) -> str:
        return f"{self.filename} cannot be written: {self.strerror}"


class DamagedError(ValueError):
    """A file whose content is not what was written; the message names it and says what to do."""


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


def write_json(path: str | Path, content: dict[str, Any], *, indent: int | None = None, sealed: bool = False) -> Path:
    """Write a JSON object, whole or not at all; without ``indent`` on one line for each value, and for each item of a
    list of objects, so that a table can be read in a diff. With ``sealed``, a last value ``sha256`` has the hash of the
    others, which :func:`read_json` checks.

    Raises:
        ValueError: for NaN or infinity, which JSON does not have.
    """

    def text(value: Any, indent: int | None = None) -> str:
        if indent is None and isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            return "[\n" + ",\n".join("  " + text(item) for item in value) + "\n ]"
        return json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)

    if sealed:
        content = {**content, "sha256": _json_hash(content)}
    lines = ",\n".join(f" {json.dumps(key)}: {text(value)}" for key, value in content.items())
    with atomic_file(Path(path)) as temporary:
        temporary.write_text((text(content, indent) if indent else f"{{\n{lines}\n}}") + "\n", encoding="utf-8")
    return Path(path)


def read_json(path: str | Path, *, sealed: bool = False) -> Any:
    """The content of a JSON file; of one that :func:`write_json` sealed, without the hash, which is checked.

    With ``sealed``, a file without a hash is refused. Keys that are written twice, NaN and infinity always are.

    Raises:
        DamagedError: for a file that is no JSON, or has another content than was written.
    """
    try:
        content = decode_json(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise DamagedError(f"{path} is not JSON, or is damaged: {error}") from error
    found = content.pop("sha256", None) if isinstance(content, dict) else None
    if found is None and not sealed:
        return content
    if found != _json_hash(content):
        raise DamagedError(
            f"{path} is damaged: its content has not the SHA-256 that was written with it; delete it, "
            "and have it made again"
        )
    return content


def _json_hash(content: Any) -> str:
    plain = json.loads(json.dumps(content, allow_nan=False))  # tuples and numbers as keys, as they will be read
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _twice(content: dict[str, Any], key: str) -> Exception:
    return ValueError(f"key {key!r} is there twice")


def decode_json(text: str, twice: Callable[[dict[str, Any], str], Exception] = _twice) -> Any:
    """What a JSON text says. Python's reader alone takes the last of two values of a key, NaN and infinity.

    Args:
        text: the text.
        twice: what to raise for an object in which a key is there twice, from the object and the key.

    Raises:
        ValueError: for a text that is no JSON, or is nested too deeply.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content = dict(pairs)
        if len(content) < len(pairs):
            names = [name for name, _ in pairs]
            raise twice(content, next(name for name in content if names.count(name) > 1))
        return content

    def no_number(name: str) -> None:
        raise ValueError(f"{name} is no number of JSON")

    try:
        return json.loads(text, object_pairs_hook=once, parse_constant=no_number)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def read_yaml(path: str | Path) -> Any:
    """The content of a YAML file, of plain values only.

    Raises:
        ValueError: for a file that is none.
    """
    try:
        return yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no YAML: {' '.join(str(error).split())}") from error


def save_tensors(path: str | Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any] | None = None) -> str:
    """Write tensors as a safetensors file, whole or not at all, with what is known ``about`` them (plain values), and
    with a hash of both, which is returned: safetensors itself has no checksum."""
    from safetensors.torch import save_file

    tensors, about = dict(tensors), dict(about or {})
    # One entry: safetensors writes several in any order, and the same content shall give the same bytes.
    digest = tensors_hash(tensors, about)
    with atomic_file(Path(path)) as temporary:
        save_file(tensors, temporary, {SEAL: json.dumps({"sha256": digest, "about": about})})
    return digest


def load_tensors(path: str | Path, *, sha256: str | None = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What :func:`save_tensors` wrote: the tensors, and what is known about them.

    Args:
        path: the file.
        sha256: for a file without a hash of its own, that of its bytes.

    Raises:
        DamagedError: for a file that is not what was written, or has no hash.
    """
    if sha256 is not None and file_hash(path) != sha256:
        raise DamagedError(f"{path} is damaged: it has not the SHA-256 {sha256}; delete it, and have it made again")
    tensors, metadata = _read_tensors(path)
    if sha256 is not None and SEAL not in metadata:
        return tensors, _decoded(metadata)
    if SEAL not in metadata:
        raise DamagedError(
            f"{path} has no hash of its content, so that nobody can tell whether it is whole: an earlier version wrote "
            f"it. Delete it, and have it made again; or, if you trust it, call bluelib.files.seal({str(path)!r})"
        )
    try:
        seal = json.loads(metadata[SEAL])
        right = seal["sha256"] == tensors_hash(tensors, seal["about"])
    except (ValueError, KeyError, TypeError):
        right = False
    if not right:
        raise DamagedError(
            f"{path} is damaged: its content has not the SHA-256 that was written with it; delete it, "
            "and have it made again"
        )
    return tensors, seal["about"]


def seal(path: str | Path) -> Path:
    """Give a safetensors file that an earlier version wrote the hash of its content as it is."""
    tensors, metadata = _read_tensors(path)
    save_tensors(path, tensors, _decoded(metadata))
    return Path(path)


def _read_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}
    except (SafetensorError, ValueError, RuntimeError) as error:  # torch's too, for shapes that cannot be
        raise DamagedError(f"{path} is not a safetensors file, or is damaged: {error}") from error


def _decoded(metadata: Mapping[str, str]) -> dict[str, Any]:
    return {key: json.loads(value) for key, value in metadata.items()}


def tensors_hash(tensors: Mapping[str, Tensor], about: Mapping[str, Any] | None = None) -> str:
    """SHA-256 over the names, shapes, types and bytes of tensors, and over what is known ``about`` them."""
    import torch

    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode() if about else b"")
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}:{tuple(tensor.shape)}:{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


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
    lock: AbstractContextManager[Any] | None = None
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
    ours = re.compile(rf"\.{re.escape(path.name)}\.[a-z0-9_]{{8}}\.tmp")  # as `tempfile` makes them up
    for folder in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        if not ours.fullmatch(folder.name):  # but of another file, whose name begins like this one
            continue
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
    if fcntl is None:
        raise OSError(errno.ENOSYS, "this system has no such locks", str(path))
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


def project_path(*parts: str) -> Path:
    """A path in the project's checkout: the nearest folder upwards with a ``notebooks`` folder, or else here."""
    here = Path.cwd()
    root = next((folder for folder in (here, *here.parents) if (folder / "notebooks").is_dir()), here)
    return root.joinpath(*parts)
