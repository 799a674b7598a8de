"""What benchmarks have in common: where numbers come from, and a cache of their own."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from bluelib.data.provenance import provenance
from bluelib.models.model import Model


def machine(model: Model) -> dict[str, Any]:
    """What of a result's provenance says where it was measured."""
    return {k: v for k, v in provenance(model, []).items() if k in ("device", "threads", "versions", "git_commit")}


@contextmanager
def empty_cache() -> Iterator[None]:
    """Within it nothing is in the cache, and nothing is kept."""
    kept = os.environ.get("BLUELIB_CACHE")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["BLUELIB_CACHE"] = folder
        try:
            yield
        finally:
            os.environ.pop("BLUELIB_CACHE")
            if kept is not None:
                os.environ["BLUELIB_CACHE"] = kept
