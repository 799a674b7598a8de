"""Fixtures of the studies' tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from bluelib import load_model
from bluelib.models.model import Model


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """The working folder: a checkout with nothing in it, where results are written."""
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def llama() -> Model:
    return load_model("pocket-llama")
