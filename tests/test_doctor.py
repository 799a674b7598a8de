"""What `blue doctor` reports, and that it notices a model for which the library's assumptions do not hold."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, Phi3Config

from bluelib import edit_sequence, get_editor, models
from bluelib.cli import main
from bluelib.configs import model_configs
from bluelib.doctor import examine, report, solver_bytes
from bluelib.models import Model
from bluelib.solvers import NullSpace, Ridge

from .checkpoints import ARCHITECTURES, LAYERS, write_checkpoint
from .conftest import RECORDS, random_model
from .tokenizers import make_tokenizer

ROOT = Path(__file__).parents[1]
SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "pad_token_id": None,
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_is_found_healthy_and_left_as_it_was(name, tmp_path, capsys):
    folder = write_checkpoint(tmp_path / name, name)
    assert main(["doctor", str(folder), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["healthy"] and len(found["checks"]) == 1 + 3 and not found["configured"]
    assert found["facts"]["blocks"].startswith(f"{LAYERS}, ")
    model = models.load_model(str(folder))
    revision = model.revision
    text = report(examine(model))
    assert models.weights_hash(model.lm) == revision
    assert "DOES NOT HOLD" not in text and found["facts"]["d_model, d_mlp"] in text


def test_a_pocket_model_is_configured(capsys):
    assert main(["doctor", "pocket-gpt2"]) == 0
    told = capsys.readouterr().out
    assert re.search(r"critical layers +0, 1, 2, 3, 4", told) and "(d_mlp, d_model)" in told
    assert "no settings for this model" not in told


def test_a_block_that_normalises_its_mlps_output_is_noticed(monkeypatch):
    """Why Gemma 2 is refused: with an adapter of its own all the same, the measurement fails."""
    monkeypatch.setitem(
        models.ADAPTERS, "gemma2", replace(models.ADAPTERS["gemma"], mlp_norm="pre_feedforward_layernorm")
    )
    monkeypatch.delitem(models.UNFIT, "gemma2")
    tokenizer = make_tokenizer("gemma")
    torch.manual_seed(0)
    lm = AutoModelForCausalLM.from_config(
        Gemma2Config(vocab_size=len(tokenizer), head_dim=16, num_key_value_heads=1, **SMALL)
    )
    findings = examine(Model.of("gemma-2", lm.eval().requires_grad_(False), tokenizer))
    failed = {check.name for check in findings.checks if not check.holds}
    assert {"block 0 adds ΔW k to the stream", "block 1 adds ΔW k to the stream"} <= failed
    assert not findings.healthy and "DOES NOT HOLD" in report(findings)


def test_the_configuration_to_begin_with_is_one(tmp_path, monkeypatch):
    model = random_model("pocket-llama")
    starter = examine(model).configuration
    (tmp_path / "mine.yaml").write_text(starter, encoding="utf-8")
    monkeypatch.setenv("BLUELIB_CONFIGS", str(tmp_path))
    assert model_configs()[model.name]["critical_layers"] == [0, 1, 2, 3]
    assert get_editor("memit_blue", model, corpus="pocket").layers == (0, 3)
    assert get_editor("rome", model, corpus="pocket").layers == (0,)
    assert examine(model).configured


def test_memory_of_solver_states_is_counted_as_it_is():
    moment = torch.eye(64) * torch.linspace(0.1, 2, 64)
    assert Ridge(10.0).prepare(moment).factor.nbytes == solver_bytes(64, 1)
    for threshold in (0.2, 1.0):
        state = NullSpace(threshold, 1.0).prepare(moment)
        assert state.basis.nbytes + state.inside.factor.nbytes <= solver_bytes(64, 1)
    findings = examine(random_model("pocket-gptj"))
    assert findings.memory["memit"]["host"] > findings.memory["memit_blue"]["host"] > findings.memory["ft"]["host"] == 0
    assert all(sizes["device, 1"] < sizes["device, 100"] for sizes in findings.memory.values())


def test_the_page_on_adapters_works(monkeypatch, small_world):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "adapters.md").read_text(encoding="utf-8"), re.S)
    assert len(code.strip().splitlines()) < 20
    monkeypatch.setattr(models, "ADAPTERS", dict(models.ADAPTERS))
    exec(code, {})
    tokenizer = make_tokenizer("llama3")
    torch.manual_seed(0)
    lm = AutoModelForCausalLM.from_config(Phi3Config(vocab_size=len(tokenizer), **SMALL)).eval().requires_grad_(False)
    model = Model.of("phi", lm, tokenizer)
    assert examine(model).healthy
    editor = get_editor(
        "alphaedit", model, layers=[0, 1], corpus="pocket", tokens=2000, nullspace_threshold=100.0, l2=1.0
    )
    run = edit_sequence(model, RECORDS[:2], editor, batch_size=2, progress=False)
    assert all(change > 0 for change in run.weight_change().values())


@pytest.mark.parametrize("model", ["/nowhere/at/all", "pocket-bert"])
def test_what_is_no_model_is_refused(model, capsys):
    assert main(["doctor", model]) == 2
    assert model in capsys.readouterr().err
