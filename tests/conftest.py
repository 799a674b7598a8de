from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from functools import lru_cache

# Before torch is imported, and for every process that tests start: one thread, so that sums are rounded as in the kept
# outputs of notebooks, and so that as many tests run at a time as there are cores.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TQDM_DISABLE"] = "1"  # for the notebooks that tests run: their outputs would keep the bars

import pytest
import torch
from transformers import AutoModelForCausalLM

from bluelib.data import Record
from bluelib.editing.editor import Editor
from bluelib.editing.residuals import DISTRIBUTED
from bluelib.editing.sequence import preserved
from bluelib.editing.solvers import Ridge
from bluelib.editing.targets import TargetOptions
from bluelib.models.model import Model
from bluelib.pocket.pretrain import pocket_config
from bluelib.pocket.tokenizer import build_tokenizer

ARCHITECTURES = ("pocket-gpt2", "pocket-gptj", "pocket-llama")
SUBJECTS = ["Ilvane Quillbrook", "Torrin Vantorre", "Zoë D'Astrelle", "Oskel Ashgrave", "Maribeth Okonmere"]
RECORDS = [
    Record(i, "counterfact", prompt, subject, new, "harp")
    for i, (subject, new, prompt) in enumerate(
        zip(
            SUBJECTS,
            ["tuba", "Swedish", "Rome", "kites", "East Timor"],
            ["{} plays the", "The mother tongue of {} is", "{} was born in", "The product of {} is", "{} votes in"],
            strict=True,
        )
    )
]
PREFIXES = ("", "Peru is far. ")
TARGETS = TargetOptions(steps=4, learning_rate=0.2)


def random_model(name: str, seed: int = 0) -> Model:
    """A small model of one of the three architectures with random weights, in float64 for exact comparisons."""
    tokenizer = build_tokenizer(bos=name == "pocket-llama")
    config = pocket_config(name, tokenizer)
    for key, value in {"n_layer": 4, "num_hidden_layers": 4, "n_inner": 96, "intermediate_size": 96}.items():
        if hasattr(config, key):
            setattr(config, key, value)
    torch.manual_seed(seed)
    lm = AutoModelForCausalLM.from_config(config, dtype=torch.float64).eval().requires_grad_(False)
    for parameter in lm.parameters():  # larger than at initialisation, so that the blocks matter
        parameter.mul_(4.0) if parameter.ndim > 1 else None
    return Model.of(f"random-{name}", lm, tokenizer)


@lru_cache
def _made(name: str) -> Model:
    return random_model(name)


@pytest.fixture(params=ARCHITECTURES)
def any_model(request) -> Iterator[Model]:
    """Each architecture in turn; value projections are put back after each test."""
    model = _made(request.param)
    with preserved(model, range(model.n_layers)):
        yield model


@pytest.fixture
def small_world(tmp_path, monkeypatch):
    """Statistics and contexts of the random models go to a folder of the test's own."""
    monkeypatch.setenv("BLUELIB_CACHE", str(tmp_path))
    monkeypatch.setattr("bluelib.editing.editor.context_prefixes", lambda model: PREFIXES)


def editor(solver=None, residual=DISTRIBUTED, layers=(0, 1, 2)):
    return Editor(layers, residual, solver or Ridge(50.0), targets=TARGETS, corpus="pocket", tokens=3000, name="test")


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


def complaints(page, *kinds: str) -> list[str]:
    """What goes wrong in a page of a browser, gathered from now on: messages of these kinds on its console, errors,
    and requests that fail."""
    found: list[str] = []
    page.on("console", lambda message: found.append(message.text) if message.type in kinds else None)
    page.on("pageerror", lambda error: found.append(str(error)))
    page.on("requestfailed", lambda request: found.append(f"failed: {request.url}"))
    page.on("response", lambda answer: found.append(f"{answer.status}: {answer.url}") if answer.status >= 400 else None)
    return found
