"""Models from the hub, which is a server on this machine here: the library asks it over HTTP like any other."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from .checkpoints import write_checkpoint
from .hub import COMMIT, TOKEN, hub

LOAD = """
import sys
from bluelib import load_model
model = load_model(sys.argv[1])
print(model.revision, model.n_layers, model.has_bos)
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("hub") / "llama", "llama-3")


def load(name, home, address, **environment):
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    told = {"HF_HOME": str(home), "HF_ENDPOINT": address, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    return subprocess.run(
        [sys.executable, "-c", LOAD, name],
        capture_output=True,
        text=True,
        env={**kept, **told, **environment},
        timeout=120,
    )


def test_a_model_is_loaded_with_its_commit_and_afterwards_without_a_connection(checkpoint, tmp_path):
    with hub({"someone/tiny-llama": checkpoint}) as (address, asked):
        first = load("someone/tiny-llama", tmp_path, address)
        assert first.returncode == 0, first.stderr
        assert first.stdout.split() == [COMMIT, "4", "True"]
        assert any("model.safetensors" in line for line in asked)
        assert not any(".bin" in line or ".py" in line for line in asked), "neither pickles nor code are asked for"
    again = load("someone/tiny-llama", tmp_path, address, HF_HUB_OFFLINE="1")
    assert again.returncode == 0 and again.stdout == first.stdout, again.stderr


def test_a_gated_model_wants_a_licence_and_a_token(checkpoint, tmp_path):
    with hub({"someone/gated": checkpoint}, gated={"someone/gated"}) as (address, _):
        without = load("someone/gated", tmp_path / "without", address)
        assert without.returncode
        assert "hands 'someone/gated' out only to those who have accepted its licence" in without.stderr
        assert "https://huggingface.co/someone/gated" in without.stderr and "hf auth login" in without.stderr
        withit = load("someone/gated", tmp_path / "with", address, HF_TOKEN=TOKEN)
        assert withit.returncode == 0, withit.stderr
        assert TOKEN not in withit.stdout + withit.stderr + without.stderr


def test_a_repository_that_is_not_there_is_told_from_other_errors(checkpoint, tmp_path):
    with hub({"someone/tiny-llama": checkpoint}) as (address, _):
        found = load("someone/else", tmp_path, address)
        assert found.returncode
        assert (
            "'someone/else' cannot be loaded" in found.stderr
            and "a local checkpoint folder, or a hub id" in found.stderr
        )


def test_without_a_connection_the_message_says_what_can_be_loaded(tmp_path):
    found = load("someone/tiny-llama", tmp_path, "http://127.0.0.1:9", HF_HUB_OFFLINE="1")
    assert found.returncode and "without a connection, what the hub's cache holds" in found.stderr
