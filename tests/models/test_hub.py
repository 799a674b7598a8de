"""Models and texts from the hub, which is a server on this machine here: they are asked for over HTTP, by a process of
its own, as anywhere else."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bluelib import load_model
from bluelib.data.corpora import WIKIPEDIA
from bluelib.editing import second_moments as statistics
from bluelib.editing.second_moments import second_moments
from tests.support.checkpoints import add_code, pickle_weights, write_checkpoint
from tests.support.hub import COMMIT, OUTSIDER, TOKEN, Hub, serving

LOAD = """
import json, sys
from bluelib import load_model
for name in sys.argv[1:]:
    try:
        model = load_model(name)
        print(json.dumps([name, model.revision, model.n_layers, model.has_bos]))
    except (OSError, ValueError) as error:
        print(json.dumps([name, type(error).__name__, str(error)]))
"""
MEASURE = """
import logging, sys
from bluelib import load_model
from bluelib.editing import second_moments as statistics
logging.basicConfig(level=logging.INFO)
statistics.SHARD, statistics.WRITE_EVERY = 1000, -1.0
statistics.second_moments(load_model("pocket-llama"), [0, 2], corpus="wikipedia", tokens=int(sys.argv[1]))
"""


def run(script, *arguments, address, home, **environment) -> subprocess.CompletedProcess[str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    told = {
        "HF_HOME": str(home),
        "HF_ENDPOINT": address,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        # whatever goes elsewhere ends here
        "HTTPS_PROXY": "http://127.0.0.1:9",
        "NO_PROXY": "127.0.0.1",
    }
    return subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**kept, **told, **environment},
        timeout=120,
    )


def load(*names, **where) -> dict[str, list]:
    """What became of each name: revision, layers and BOS; or the error and what it says."""
    done = run(LOAD, *names, **where)
    assert done.returncode == 0, done.stderr
    assert TOKEN not in done.stdout + done.stderr
    return {name: found for name, *found in map(json.loads, done.stdout.splitlines())}


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("hub")


@pytest.fixture(scope="module")
def repos(home) -> dict[str, Path]:
    return {
        "someone/tiny-llama": write_checkpoint(home / "llama", "llama-3", max_shard_size="150KB"),
        "someone/gated": write_checkpoint(home / "gated", "mistral"),
        "someone/pickled": pickle_weights(write_checkpoint(home / "pickled", "llama-3"), home / "executed"),
        "someone/coded": add_code(write_checkpoint(home / "coded", "llama-3"), home / "executed", "strange"),
    }


@pytest.fixture(scope="module")
def first(home, repos) -> tuple[dict[str, list], Hub]:
    """Everything asked for once, by somebody who is not logged in."""
    with serving(repos, gated=frozenset({"someone/gated"})) as hub:
        return load(*repos, "someone/else", address=hub.address, home=home / "first"), hub


def test_a_model_is_loaded_with_its_commit_and_afterwards_without_a_connection(home, repos, first):
    found, hub = first
    assert found["someone/tiny-llama"] == [COMMIT, 4, True]
    shards = [path.name for path in repos["someone/tiny-llama"].glob("*.safetensors")]
    assert len(shards) > 2
    for name in shards:
        assert hub.asked.count(f"GET someone/tiny-llama/resolve/{COMMIT}/{name}") == 1
    again = load("someone/tiny-llama", "someone/gated", address=hub.address, home=home / "first", HF_HUB_OFFLINE="1")
    assert again["someone/tiny-llama"] == found["someone/tiny-llama"]
    assert again["someone/gated"][0] == "OSError"
    assert "Without a connection, only models in the hub's cache can be loaded" in again["someone/gated"][1]


@pytest.mark.slow
def test_a_gated_model_wants_a_licence_and_a_token(home, repos, first):
    found, hub = first
    assert set(hub.bearers) == {None}
    with serving(repos, gated=frozenset({"someone/gated"})) as hub:
        outsider = load("someone/gated", address=hub.address, home=home / "outsider", HF_TOKEN=OUTSIDER)
        assert set(hub.bearers) == {f"Bearer {OUTSIDER}"}
        member = load("someone/gated", address=hub.address, home=home / "member", HF_TOKEN=TOKEN)
        assert set(hub.bearers) == {f"Bearer {OUTSIDER}", f"Bearer {TOKEN}"}
    for kind, message in (found["someone/gated"], outsider["someone/gated"]):
        assert kind == "OSError"
        assert "gives 'someone/gated' only to users who have accepted its licence" in message
        assert "https://huggingface.co/someone/gated" in message and "hf auth login" in message
    assert member["someone/gated"] == [COMMIT, 4, True]


def test_a_repository_that_is_not_there_is_told_from_other_errors(first):
    kind, message = first[0]["someone/else"]
    assert kind == "OSError" and "'someone/else' cannot be loaded" in message
    assert "a local checkpoint folder, or a hub id" in message and "licence" not in message


def test_pickles_and_code_are_neither_fetched_nor_run_nor_converted_elsewhere(home, first):
    """Asked for a branch, transformers would look for a proposed conversion, and ask another service to make one."""
    found, hub = first
    assert found["someone/pickled"][0] == "OSError"
    assert "'someone/pickled' has no safetensors files" in found["someone/pickled"][1]
    assert found["someone/coded"][0] == "ValueError"
    assert "no adapter for architecture 'strange'" in found["someone/coded"][1]
    assert f"HEAD someone/pickled/resolve/{COMMIT}/model.safetensors" in hub.asked
    for part in ("pytorch_model", ".py", "commits", "discussions", "refs"):
        assert not [line for line in hub.asked if part in line]
    assert not (home / "executed").exists()


@pytest.mark.slow
def test_wikipedia_is_streamed_and_a_broken_measurement_continued(home, monkeypatch, tmp_path):
    """Two files of the pinned snapshot, of which the second is not to be had at first."""
    datasets = pytest.importorskip("datasets", reason="datasets is not installed: pip install datasets")
    name, config, commit = WIKIPEDIA
    folder = home / "wikipedia"
    (folder / config).mkdir(parents=True)
    articles = [f"Article {i} is about {'tea and kites ' * (i % 5)}in Peru." for i in range(600)]
    names = [f"{config}/train-0000{n}-of-00002.parquet" for n in range(2)]
    for n, path in enumerate(names):
        rows = articles[n * 300 : n * 300 + 300]
        datasets.Dataset.from_dict({"id": list(map(str, range(300))), "text": rows}).to_parquet(folder / path)
    splits = "".join(
        f"- config_name: {c}\n  data_files:\n  - split: train\n    path: {c}/train-*\n" for c in (config, "20231101.fr")
    )
    (folder / "README.md").write_text(f"---\nconfigs:\n{splits}---\n# Wikipedia\n", encoding="utf-8")

    model, tokens = load_model("pocket-llama"), 7500
    monkeypatch.setattr(statistics, "SHARD", 1000)
    (tmp_path / "text.txt").write_text("\n".join(articles), encoding="utf-8")
    monkeypatch.setenv("BLUELIB_CACHE", str(tmp_path / "local"))
    local = second_moments(model, [0, 2], corpus=tmp_path / "text.txt", tokens=tokens)

    there = {"home": tmp_path / "hub", "BLUELIB_CACHE": str(tmp_path / "streamed")}
    with serving({f"datasets/{name}": folder}, commit=commit, refuse=lambda path, _: 403 * (path == names[1])) as hub:
        broken = run(MEASURE, tokens, address=hub.address, **there)
        assert broken.returncode and "403" in broken.stderr and "continuing" not in broken.stderr
    with serving({f"datasets/{name}": folder}, commit=commit) as hub:
        done = run(MEASURE, tokens, address=hub.address, **there)
        assert done.returncode == 0, done.stderr
        kept = int(re.search(r"continuing after (\d+) tokens", done.stderr)[1])
        assert 1000 < kept < sum(len(ids) for ids in model.tokenizer(articles[:300]).input_ids) < tokens
        for path in names:
            assert f"GET datasets/{name}/resolve/{commit}/{path}" in hub.asked
        assert not [line for line in hub.asked if "20231101.fr/" in line], "no more is fetched than the configuration"
        assert not [line for line in hub.asked if "main" in line.split("/")], "the snapshot is pinned"
    monkeypatch.setenv("BLUELIB_CACHE", str(tmp_path / "streamed"))
    monkeypatch.setattr(statistics, "_measure", None)
    streamed = second_moments(model, [0, 2], corpus="wikipedia", tokens=tokens)
    for layer in (0, 2):
        assert torch.equal(streamed[layer].matrix, local[layer].matrix)
