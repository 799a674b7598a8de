"""What only a CUDA device can tell. Skipped, and said, where there is none."""

from __future__ import annotations

import pytest
import torch

from bluelib import edit_sequence, evaluate, get_editor, load_model
from bluelib.editing.second_moments import second_moments
from bluelib.editing.targets import default_token_budget
from bluelib.io.formats import read_json
from tests.support.gpu import CELLS, EDITS, EXPECTED, outcome

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device here"),
]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BLUELIB_CACHE", str(tmp_path))


@pytest.fixture(scope="module")
def measured_once(tmp_path_factory):
    """A cache for all cells, so that second moments and prefixes are measured once a model."""
    return str(tmp_path_factory.mktemp("cells"))


@pytest.mark.parametrize("cell", CELLS, ids="-".join)
def test_a_gpu_edits_as_the_cpu_did(cell, measured_once, monkeypatch):
    monkeypatch.setenv("BLUELIB_CACHE", measured_once)
    expected = read_json(EXPECTED)["cells"]["-".join(cell)]
    found = outcome(*cell, device="cuda")
    assert found["scores"] == pytest.approx(expected["scores"], abs=10)  # two of twenty records
    assert found["weight_change"] == pytest.approx(expected["weight_change"], rel=0.1)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_edits_in_lower_precision_hold(dtype):
    model = load_model("pocket-llama", device="cuda", dtype=dtype)
    run = edit_sequence(model, EDITS, get_editor("memit_blue", model), batch_size=10, progress=False)
    assert model.weight(0).dtype == torch.float32
    assert evaluate(model, EDITS, generate=False).means["efficacy"] > 80
    run.revert()


def test_second_moments_are_those_of_the_cpu():
    found = {}
    for device in ("cpu", "cuda"):
        model = load_model("pocket-gptj", device=device)
        found[device] = second_moments(model, [0, 4], corpus="pocket", tokens=20_000)
        for moment in found[device].values():
            assert moment.matrix.device.type == "cpu"
        for path in (model_cache() / "statistics").iterdir():
            path.unlink()
    for layer in (0, 4):
        torch.testing.assert_close(found["cuda"][layer].matrix, found["cpu"][layer].matrix, rtol=1e-3, atol=1e-4)


def model_cache():
    from bluelib.io.paths import cache_dir

    return cache_dir("statistics").parent


def test_a_checkpoint_continues_on_the_device(tmp_path):
    whole = load_model("pocket-llama", device="cuda")
    editor = get_editor("alphaedit", whole)
    edit_sequence(whole, EDITS, editor, batch_size=5, progress=False)
    model = load_model("pocket-llama", device="cuda")
    calls = []

    def interrupt(number, result):
        calls.append(number)
        if len(calls) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        edit_sequence(
            model, EDITS, editor, batch_size=5, checkpoint_dir=tmp_path / "run", after_batch=interrupt, progress=False
        )
    model = load_model("pocket-llama", device="cuda")
    edit_sequence(model, EDITS, editor, batch_size=5, checkpoint_dir=tmp_path / "run", progress=False)
    for layer in editor.layers:
        torch.testing.assert_close(model.weight(layer), whole.weight(layer), rtol=1e-4, atol=1e-5)


def test_solver_states_wait_on_the_host():
    model = load_model("pocket-llama", device="cuda")
    state = get_editor("memit", model).prepare(model)
    assert {solver.factor.device.type for solver in state.solvers.values()} == {"cpu"}
    assert 1 <= default_token_budget(model) <= 131_072


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two CUDA devices here")
def test_a_model_on_two_cards_edits_as_on_one():
    from accelerate import dispatch_model

    one, two = load_model("pocket-llama", device="cuda"), load_model("pocket-llama", device="cuda")
    places = {"model.embed_tokens": 0, "model.rotary_emb": 0, "model.norm": 1, "lm_head": 0}
    places |= {f"model.layers.{i}": int(i >= 3) for i in range(two.n_layers)}
    dispatch_model(two.hf_model, places)
    for model in (one, two):
        edit_sequence(model, EDITS, get_editor("memit", model), batch_size=10, progress=False)
    for layer in range(5):
        torch.testing.assert_close(two.weight(layer).cpu(), one.weight(layer).cpu(), rtol=1e-2, atol=1e-3)
