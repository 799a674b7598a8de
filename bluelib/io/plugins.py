"""Installed packages that add editors, architectures or datasets.

A package names a module of its own in the entry point group :data:`GROUP`. The module is imported once, before anything
is looked up by name. It calls :func:`bluelib.register`, or adds to ``bluelib.models.adapters.ADAPTERS`` or
``bluelib.data.datasets.DATASETS``.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import EntryPoint, entry_points

log = logging.getLogger(__name__)

GROUP = "bluelib.editors"
_begun = False
_factories: list[EntryPoint] = []


def load_plugins() -> None:
    """Import the modules of installed packages, once."""
    global _begun
    if _begun:
        return
    _begun = True  # set first: a module may look something up while it is imported
    for point in entry_points(group=GROUP):
        if point.attr:
            _factories.append(point)
            continue
        with failures_logged(point):
            point.load()


def new_factories() -> list[EntryPoint]:
    """The entry points that name the factory of an editor, and not a module: each is returned once."""
    load_plugins()
    found = _factories.copy()
    _factories.clear()
    return found


@contextmanager
def failures_logged(point: EntryPoint) -> Iterator[None]:
    """Log that an entry point fails, and go on without it."""
    try:
        yield
    except Exception as error:  # another package's module may raise anything
        log.warning("entry point %s in group %s failed, so what it adds is missing: %s", point.name, GROUP, error)
