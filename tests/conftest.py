from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from functools import lru_cache

# Before torch is imported, and for every process that tests start: one thread, so that sums are rounded as in the kept
# outputs of notebooks, and so that as many tests run at a time as there are cores.
os.environ["OMP_NUM_THREADS"] = "1"
# Nobody's own settings files; a test that writes one names a folder of its own.
os.environ["BLUELIB_CONFIG_HOME"] = os.path.join(os.path.dirname(__file__), "no-settings")
os.environ.pop("BLUELIB_CONFIGS", None)
os.environ["TQDM_DISABLE"] = "1"  # for the notebooks that tests run: their outputs would keep the bars

import pytest

from bluelib import load_model
from bluelib.models.model import Model
from tests.support.small import ARCHITECTURES, PREFIXES, random_model


@lru_cache
def _made(name: str) -> Model:
    return random_model(name)


@pytest.fixture(params=ARCHITECTURES)
def any_model(request) -> Iterator[Model]:
    """Each architecture in turn; value projections are put back after each test."""
    model = _made(request.param)
    with model.preserved(range(model.n_layers)):
        yield model


@pytest.fixture(scope="session")
def _smollm2() -> Model:
    try:
        return load_model("smollm2-135m")
    except OSError as error:
        pytest.skip(f"smollm2-135m is not to be had: {error}")


@pytest.fixture
def smollm2(_smollm2) -> Iterator[Model]:
    """A real model, from the user's cache or fetched; value projections are put back after each test."""
    with _smollm2.preserved(range(_smollm2.n_layers)):
        yield _smollm2


@pytest.fixture
def small_world(tmp_path, monkeypatch):
    """Statistics and contexts of the random models go to a folder of the test's own."""
    monkeypatch.setenv("BLUELIB_CACHE", str(tmp_path))
    monkeypatch.setattr("bluelib.editing.editor.context_prefixes", lambda *_: PREFIXES)


@pytest.fixture(scope="session")
def browser():
    """Debian's or any other Chromium, driven by Playwright."""
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("there is no Chromium")
    arguments = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
        "--disable-component-update --disable-sync"
    ).split()
    with playwright.sync_playwright() as started:
        running = started.chromium.launch(executable_path=chromium, args=arguments)
        yield running
        running.close()
