"""JSON and YAML: written whole, read strictly, with a hash of the content where one is wanted."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from .writing import atomic_file


class DamagedError(ValueError):
    """A file whose content is not what was written; the message names it and says what to do."""


def write_json(path: str | Path, content: dict[str, Any], *, indent: int | None = None, sealed: bool = False) -> Path:
    """Write a JSON object, whole or not at all.

    Without ``indent``, each value, and each item of a list of objects, has a line of its own, so a table can be read in
    a diff. With ``sealed``, a last value ``sha256`` has the hash of the others, which :func:`read_json` checks.

    Raises:
        ValueError: if a value is NaN or infinite, which JSON does not have.
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
    """The content of a JSON file. If :func:`write_json` sealed it, the hash is checked and left out.

    With ``sealed``, a file without a hash is refused. Duplicate keys, NaN and infinity are always refused.

    Raises:
        DamagedError: if the file is not JSON, or its content is not what was written.
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
            f"{path} is damaged: its content does not match the SHA-256 that was written with it; "
            "delete it and make it again"
        )
    return content


def _json_hash(content: Any) -> str:
    plain = json.loads(json.dumps(content, allow_nan=False))  # with tuples and numeric keys as they will be read
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _twice(content: dict[str, Any], key: str) -> Exception:
    return ValueError(f"key {key!r} appears twice")


def decode_json(text: str, twice: Callable[[dict[str, Any], str], Exception] = _twice) -> Any:
    """Decode a JSON text strictly. Python's own reader accepts NaN and infinity, and keeps the last value of a key that
    appears twice.

    Args:
        text: the text.
        twice: makes the error to raise for a key that appears twice, from the object and the key.

    Raises:
        ValueError: if the text is not JSON, or is nested too deeply.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content = dict(pairs)
        if len(content) < len(pairs):
            names = [name for name, _ in pairs]
            raise twice(content, next(name for name in content if names.count(name) > 1))
        return content

    def no_number(name: str) -> None:
        raise ValueError(f"{name} is not a JSON number")

    try:
        return json.loads(text, object_pairs_hook=once, parse_constant=no_number)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def read_yaml(path: str | Path) -> Any:
    """The content of a YAML file that holds plain values only.

    Raises:
        ValueError: if the file is not YAML of that kind.
    """
    try:
        return deepcopy(_from_yaml(Path(path).read_text(encoding="utf-8")))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error


@lru_cache(maxsize=32)
def _from_yaml(text: str) -> Any:
    """The content of a text in YAML, kept: the same settings are read for each editor, at 5 ms a file. (libyaml would
    be faster, but deep nesting crashes it.)"""
    return yaml.safe_load(text)
