"""The parameters of notebooks, checked before anything runs."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from typing import Any

from ..data.corpora import check_corpus
from ..data.longform import check_sentences, load_long_form
from ..editing.catalogue import known
from ..io.checks import check_real, check_seed, check_whole
from ..metrics.editing import check_groups
from ..studies.shift import PROJECTIONS


def check_parameters(given: dict[str, Any], known: dict[str, type | tuple[type, ...]]) -> None:
    """Check a notebook's parameters right after its ``parameters`` cell.

    papermill only warns about a name that a notebook does not have, adds it as a variable all the same, and turns
    ``007`` into 7. This function looks at the notebook's variables (``globals()``). It refuses any public name of a
    simple type that is not known, and a known one whose type is wrong or whose value cannot be used.

    Raises:
        ValueError: if a parameter is unknown or of the wrong type (the message lists the known ones with their types),
            or its value is out of range (the message shows what is allowed).
    """
    listing = ", ".join(f"{name} ({_type_name(kind)})" for name, kind in known.items())
    simple = (str, int, float, bool, list, type(None))
    public = {k: v for k, v in given.items() if not k.startswith("_") and isinstance(v, simple) and k not in _IPYTHON}
    unknown = [name for name in public if name not in known]
    if unknown:
        raise ValueError(f"unknown parameter: {', '.join(unknown)}; known: {listing}")
    for name, kind in known.items():
        value = given.get(name)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            text = kind is list and isinstance(value, str)
            how = f" (papermill's -p gives text; -y '{name}: [a, b]' and `blue notebook … -p {name}=[…]` give a list)"
            raise ValueError(
                f"parameter {name} must be {_type_name(kind)}, not {value!r}{how if text else ''}; known: {listing}"
            )
    for name in known.keys() & _RANGES.keys():
        _RANGES[name](name, given[name])
    if {"edits", "batch_size"} <= known.keys():
        check_whole("batch_size", given["batch_size"], 1, given["edits"], "the number of edits")
    if "long_dataset" in known and given["long_dataset"]:
        load_long_form(given["long_dataset"], limit=given["edits"], seed=given["seed"])


def _check_one_of(name: str, value: Any, allowed: Collection[str]) -> None:
    if value not in [*allowed]:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, not {value!r}")


def _check_texts(name: str, values: list[Any]) -> None:
    if not all(isinstance(value, str) for value in values):
        raise ValueError(f"parameter {name} must be a list of str, not {values!r}")


def _each(check: Callable[[str, Any], None]) -> Callable[[str, list[Any]], None]:
    def check_all(name: str, values: list[Any]) -> None:
        for value in values:
            check(f"each of the {name}", value)

    return check_all


def _editor(name: str, value: Any) -> None:
    known(value)


#: The check of a parameter's value, by the parameter's name; its type has been checked before.
_RANGES: dict[str, Callable[[str, Any], None]] = {
    **dict.fromkeys(("edits", "samples", "window", "every", "limit", "live_edits"), partial(check_whole, least=1)),
    "sequences": partial(check_whole, least=2),  # for an interval
    "largest": partial(check_whole, least=10),  # five groups of at least two sizes
    "facts": partial(check_whole, least=4),
    "sizes": _each(partial(check_whole, least=1)),
    "seed": lambda name, value: check_seed(value),
    "noise": check_real,
    "editor": _editor,
    "editors": _each(_editor),
    "batch_editors": _each(_editor),
    "models": _check_texts,
    "tasks": _check_texts,
    "metrics": lambda name, value: check_groups(value),
    "contexts": lambda name, value: check_groups(("editing",), value),
    "projection": partial(_check_one_of, allowed=PROJECTIONS),
    "corpus": lambda name, value: check_corpus(value) if value else None,
    "sentences": lambda name, value: check_sentences(value),
}


_IPYTHON = frozenset({"In", "Out"})


def _type_name(kind: type | tuple[type, ...]) -> str:
    return " or ".join(k.__name__ for k in kind) if isinstance(kind, tuple) else kind.__name__
