"""The library without what only some systems have."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from types import SimpleNamespace

import psutil
import pytest

from bluelib.data import provenance
from tests.support.small import RECORDS, random_model

MODULES = (
    "bluelib",
    "bluelib.cli",
    "bluelib.data.provenance",
    "bluelib.editing.sequence",
    "bluelib.io.locks",
    "bluelib.io.writing",
    "bluelib.reports.site",
    "bluelib.runs.cell",
    "bluelib.runs.workflow",
)


@pytest.mark.slow
def test_the_library_is_imported_where_unix_modules_and_signals_are_missing():
    """As on Windows: only what the library itself imports is without them, as other packages know what they run on."""
    code = """
import os, signal, sys
import bluelib.models.load, filelock, psutil, sklearn.feature_extraction.text  # others' imports
for name in [name for name in sys.modules if name.partition(".")[0] in ("bluelib", "filelock")]:
    del sys.modules[name]
for name in ("resource", "fcntl", "pwd", "grp", "termios"):
    sys.modules[name] = None
for module, name in ((signal, "SIGKILL"), (signal, "SIGALRM"), (os, "killpg"), (os, "fork"), (os, "geteuid")):
    delattr(module, name)
for name in sys.argv[1:]:
    __import__(name)
"""
    done = subprocess.run([sys.executable, "-c", code, *MODULES], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("told", "expected"), [({"rss": 5, "peak_wset": 2_345_600_000}, {"host_gb": 2.346}), ({"rss": 5}, {})]
)
def test_peak_memory_is_what_the_system_tells(monkeypatch, told, expected):
    monkeypatch.setattr(provenance, "resource", None)
    monkeypatch.setattr(psutil.Process, "memory_info", lambda self: SimpleNamespace(**told))
    assert provenance.peak_memory(random_model("pocket-llama")) == expected


def test_a_library_that_is_not_installed_says_so_in_its_results(monkeypatch):
    """PYTHONPATH may name its source; an edit must not be lost for want of a version."""

    def version(package: str) -> str:
        if package == "bluelib":
            raise PackageNotFoundError(package)
        return "1.2"

    monkeypatch.setattr(provenance, "version", version)
    told = provenance.provenance(random_model("pocket-llama"), RECORDS)["versions"]
    assert told["bluelib"] == "not installed" and told["torch"] == "1.2"
