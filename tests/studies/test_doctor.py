"""What `blue doctor` reports, and that it notices a model for which the library's assumptions do not hold."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForCausalLM, CohereConfig, Gemma2Config, GraniteConfig, Olmo2Config, Phi3Config

from benchmarks.paper_scale import table
from bluelib import edit_sequence, get_editor, load_model
from bluelib.cli import main
from bluelib.editing import catalogue
from bluelib.editing.named import MEASURED
from bluelib.editing.settings import model_configs, settings_of, write_settings
from bluelib.editing.solvers import Equality, NullSpace, Ridge
from bluelib.models import adapters
from bluelib.models.adapters import ADAPTERS, Adapter
from bluelib.models.model import Model, weights_hash
from bluelib.studies.doctor import Findings, beginning, examine, memory, report
from tests.support.checkpoints import ARCHITECTURES, LAYERS, write_checkpoint
from tests.support.small import RECORDS, random_model
from tests.support.tokenizers import make_tokenizer
from tests.support.virtual_cards import Cards, spread

ROOT = Path(__file__).parents[2]
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
    assert found["healthy"] and len(found["checks"]) == 2 + 3 * 2 and not found["configured"]
    assert found["facts"]["blocks"].startswith(f"{LAYERS}, ")
    model = load_model(str(folder))
    revision = model.revision
    text = report(examine(model))
    assert weights_hash(model.hf_model) == revision
    assert "DOES NOT HOLD" not in text and found["facts"]["d_model, d_mlp"] in text
    assert len(text.splitlines()) < 80  # 40 of them without the settings to begin with


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["llama-3", "gpt-j", "gemma"])
def test_rounding_is_no_fault(name, dtype, tmp_path):
    model = load_model(str(write_checkpoint(tmp_path / name, name)), dtype=dtype)
    assert examine(model).healthy
    assert weights_hash(model.hf_model) == model.revision


def test_a_model_on_several_devices_is_measured_where_it_is():
    with Cards(), torch.no_grad():
        findings = examine(spread(random_model("pocket-llama")))
    assert findings.healthy and "on cuda:0, cuda:1" in findings.facts["weights"]


def test_a_pocket_model_is_configured(capsys):
    assert main(["doctor", "pocket-gpt2"]) == 0
    told = capsys.readouterr().out
    assert re.search(r"critical layers +0, 1, 2, 3, 4 \(settings: \S*/bluelib/configs/pocket-gpt2\.yaml\)", told)
    assert "(d_mlp, d_model)" in told
    assert "no settings for this model" not in told and len(told.splitlines()) < 60


def failed(findings: Findings) -> set[str]:
    return {check.name for check in findings.checks if not check.holds}


def small(config, tokenizer: str = "llama3", name: str = "small") -> Model:
    """A model of some architecture with random weights, of which no two norms are alike."""
    tokenizer = make_tokenizer(tokenizer)
    torch.manual_seed(0)
    lm = AutoModelForCausalLM.from_config(config(vocab_size=len(tokenizer), **SMALL)).eval().requires_grad_(False)
    for parameter in lm.parameters():
        parameter.mul_(4.0) if parameter.ndim > 1 else parameter.normal_(1.0, 0.5)
    return Model.of(name, lm, tokenizer)


@pytest.mark.parametrize(
    "config, norm",
    [
        (lambda **options: Gemma2Config(head_dim=16, num_key_value_heads=1, **options), "pre_feedforward_layernorm"),
        (Olmo2Config, None),
    ],
)
def test_a_block_that_normalises_its_mlps_output_is_noticed(config, norm, monkeypatch):
    """Why Gemma 2 and OLMo 2 cannot be edited: with adapters all the same, the measurement fails."""
    adapter = replace(ADAPTERS["llama"], mlp_norm=norm)
    monkeypatch.setattr(adapters, "ADAPTERS", {"gemma2": adapter, "olmo2": adapter})
    monkeypatch.setattr(adapters, "UNFIT", {})
    findings = examine(small(config))
    assert {"block 0 adds ΔW k to the stream", "block 1 adds ΔW k to the stream"} <= failed(findings)
    assert not findings.healthy and "DOES NOT HOLD" in report(findings)


@pytest.mark.parametrize(
    "config, options, wrong",
    [
        (
            GraniteConfig,
            {"residual_multiplier": 0.2},
            {
                f"block {layer} {what}"
                for layer in (0, 1)
                for what in ("adds ΔW k to the stream", "= stream + attention + MLP")
            },
        ),
        (
            CohereConfig,
            {"logit_scale": 0.5, "num_key_value_heads": 2},
            {"logits = head(base_model(text))", "logits = head(norm(last block))"},
        ),
    ],
)
def test_factors_on_the_way_are_noticed(config, options, wrong, monkeypatch):
    """A factor on what a block adds, and one on the logits, each in an architecture that is otherwise fit."""
    beside = ADAPTERS["llama"] if config is GraniteConfig else replace(ADAPTERS["llama"], mlp_norm=None)
    monkeypatch.setitem(ADAPTERS, config.model_type, beside)
    assert failed(examine(small(lambda **given: config(**given, **options)))) == wrong
    neutral = {key: 1.0 if isinstance(value, float) else value for key, value in options.items()}
    assert examine(small(lambda **given: config(**given, **neutral))).healthy


@pytest.mark.parametrize(
    "part, wrong",
    [
        ({"norm": "model.layers.0.input_layernorm"}, {"logits = head(norm(last block))"}),
        ({"mlp_norm": "input_layernorm"}, {f"block {layer} = stream + attention + MLP" for layer in (0, 2, 3)}),
        ({"attention": "self_attn.q_proj"}, {f"block {layer} = stream + attention + MLP" for layer in (0, 2, 3)}),
    ],
)
def test_a_wrong_name_in_an_adapter_is_noticed(part, wrong):
    model = random_model("pocket-llama")
    for parameter in model.hf_model.parameters():
        parameter.normal_(1.0, 0.5) if parameter.ndim == 1 else None
    assert examine(model).healthy
    assert failed(examine(replace(model, adapter=replace(model.adapter, **part)))) == wrong


def test_a_weight_stored_the_other_way_round_is_told():
    model = random_model("pocket-llama")
    with pytest.raises(ValueError, match="input_major must be False"):
        examine(replace(model, adapter=replace(model.adapter, input_major=True)))


def test_a_slow_tokenizer_is_refused(monkeypatch, capsys):
    monkeypatch.setattr("transformers.PreTrainedTokenizerFast.is_fast", False)
    assert main(["doctor", "pocket-llama"]) == 2
    assert "use a fast tokenizer" in capsys.readouterr().err


def test_a_failed_assumption_is_the_exit_status(monkeypatch, capsys):
    monkeypatch.setitem(ADAPTERS, "llama", replace(ADAPTERS["llama"], norm="model.layers.0.input_layernorm"))
    assert main(["doctor", "pocket-llama", "--json"]) == 1
    assert not json.loads(capsys.readouterr().out)["healthy"]


def test_the_configuration_to_begin_with_is_one(tmp_path, monkeypatch):
    model = random_model("pocket-llama")
    starter = examine(model).configuration
    (tmp_path / "mine.yaml").write_text(starter, encoding="utf-8")
    monkeypatch.setenv("BLUELIB_CONFIGS", str(tmp_path))
    assert model_configs()[model.name]["critical_layers"] == [0, 1, 2, 3]
    assert get_editor("memit_blue", model, corpus="pocket").layers == (0, 3)
    assert get_editor("rome", model, corpus="pocket").layers == (0,)
    found = examine(model)
    assert found.configured and str(tmp_path / "mine.yaml") in found.facts["critical layers"]
    assert yaml.safe_load(starter)["models"] == [model.name]


def test_settings_to_begin_with_are_those_that_ship(tmp_path, monkeypatch):
    """Not those of a user's file for the paper's model, which may have one editor only."""
    own = {**settings_of("gpt2-xl"), "models": ["gpt2-xl"], "editors": {"memit": {"mom2_update_weight": 1}}}
    write_settings(tmp_path / "mine.yaml", own)
    monkeypatch.setenv("BLUELIB_CONFIGS", str(tmp_path))
    assert settings_of("gpt2-xl")["editors"].keys() == {"memit"}
    assert {"memit_blue", "alphaedit"} <= beginning(random_model("pocket-gpt2"))["editors"].keys()


def moment(d_mlp: int) -> torch.Tensor:
    return torch.eye(d_mlp) * torch.linspace(0.1, 2, d_mlp)


def test_memory_of_solver_states_is_counted_as_it_is():
    assert Ridge(10.0).prepare(moment(64)).factor.nbytes == Ridge(10.0).state_bytes(64)
    assert Ridge(10.0, True).prepare(moment(64)).matrix.nbytes == Ridge(10.0, True).state_bytes(64)
    for threshold in (0.2, 1.0, 5.0):
        solver = NullSpace(threshold, 1.0)
        state = solver.prepare(moment(64))
        assert state.basis.nbytes + state.inside.matrix.nbytes <= solver.state_bytes(64)
        assert state.basis.nbytes <= solver.disk_bytes(64)
    assert state.basis.nbytes + state.inside.matrix.nbytes == solver.state_bytes(64)


def peak(function: Callable[[], Any]) -> tuple[Any, int]:
    """What a function returns, and the most bytes that torch had for it at one time."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        result = function()
    events = [event for event in found.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return result, most


@pytest.mark.parametrize("solver", [Ridge(10.0), Ridge(10.0, True), Equality(), NullSpace(5.0, 1.0)])
def test_memory_of_a_solver_at_work_is_what_it_takes(solver):
    """Measured on a CPU; what a GPU's solvers take themselves is not in it."""
    d_model, d_mlp, batch = 64, 256, 16
    torch.manual_seed(0)
    keys, residuals, c = torch.randn(d_mlp, batch), torch.randn(d_model, batch), moment(d_mlp)
    state, preparing = peak(lambda: solver.prepare(c))
    _, solving = peak(lambda: solver.solve(state, keys, residuals))
    _, remembering = peak(lambda: solver.remember(state, keys))
    there = solver.state_bytes(d_mlp)
    most = max(preparing + c.nbytes, there + solving, there + remembering)
    assert 0.8 * solver.work_bytes(d_mlp, batch) < most <= solver.work_bytes(d_mlp, batch)


def test_memory_follows_layers_types_and_batches(tmp_path):
    folder = write_checkpoint(tmp_path / "model", "llama-3")
    model, half = load_model(str(folder)), load_model(str(folder), dtype="bfloat16")
    found, unusable = memory(model)
    measured = {
        name for name in catalogue.names() if MEASURED.keys() & signature(catalogue.known(name).make()).parameters
    }
    assert measured == {"memit_cake", "alphaedit_cake", "alphaedit_nas"} and not unusable
    assert found.keys() == set(catalogue.names()) - measured, "every method whose settings need no measuring"
    assert found["memit"] == found["pmet"]
    assert found["memit"]["host"] == pytest.approx(4 / 2 * found["memit_blue"]["host"])
    assert found["alphaedit"]["host"] > found["memit"]["host"] > found["ft"]["host"] == 0
    assert found["rome"]["host"] == 0, "its settings for Llama3 need no second moments"
    assert found["memit"]["device, 1"] < found["memit"]["device, 100"]
    assert found["rome"]["device, 1"] == found["rome"]["device, 100"]  # one edit at a time, whatever the batch
    weights = (
        sum(tensor.nbytes for tensor in model.hf_model.state_dict().values()) / 1e9
    )  # heads and embeddings are not tied
    saved = found["memit"]["device, 1"] - memory(half)[0]["memit"]["device, 1"]
    # of the edited layers, all four, too: they are kept in float32, but those from before the run are not
    assert saved == pytest.approx(weights / 2, rel=1e-6)


@pytest.mark.slow
def test_the_page_on_adapters_works(monkeypatch, small_world):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "adapters.md").read_text(encoding="utf-8"), re.S)
    assert len(code.strip().splitlines()) < 20
    monkeypatch.setattr(adapters, "ADAPTERS", dict(ADAPTERS))
    exec(code, {})
    assert isinstance(adapters.ADAPTERS["phi3"], Adapter)
    model = small(Phi3Config)
    assert examine(model).healthy
    moments = {"layers": [0, 1], "corpus": "pocket", "tokens": 3000}
    for editor in (
        get_editor("memit_blue", model, mom2_update_weight=50.0, **moments),
        get_editor("alphaedit", model, nullspace_threshold=100.0, l2=1.0, **moments),
    ):
        run = edit_sequence(model, RECORDS[:2], editor, batch_size=2, progress=False)
        assert all(change > 0 for change in run.weight_change().values())
        run.revert()
    model.check_unedited("what is written here")


def test_an_architecture_that_cannot_be_edited_is_refused(tmp_path, capsys):
    Gemma2Config(**SMALL).save_pretrained(tmp_path)
    assert main(["doctor", str(tmp_path)]) == 2
    assert "'gemma2' cannot be edited: it normalises" in capsys.readouterr().err


@pytest.mark.parametrize("model", ["/nowhere/at/all", "pocket-bert"])
def test_what_is_no_model_is_refused(model, capsys):
    assert main(["doctor", model]) == 2
    assert model in capsys.readouterr().err


def test_the_page_on_the_paper_scale_has_what_the_model_of_cost_gives():
    page = (ROOT / "docs" / "paper-scale.md").read_text(encoding="utf-8")
    assert table() in page


@pytest.mark.parametrize(
    ("editors", "told"),
    [
        ("{memit: {}}", r"memit +.*mom2_update_weight"),
        ("{nobody: {}}", "nobody: no editor is called 'nobody'"),
        ("{rome: {}}", r"rome: rome edits one layer, not \[0, 1\]"),
        ("{ft: {}}", "ft: .*layers"),
        ("{}", "memory in GB"),
    ],
)
def test_settings_that_cannot_be_used_are_told_and_the_rest_is_examined(editors, told, tmp_path, monkeypatch):
    head = "models: [random]\ncritical_layers: [0, 1]\ntargets: {}\nstatistics: {corpus: pocket}\n"
    (tmp_path / "random.yaml").write_text(f"{head}editors: {editors}\n")
    monkeypatch.setenv("BLUELIB_CONFIGS", str(tmp_path))
    model = random_model("pocket-llama")
    text = report(examine(Model.of("random", model.hf_model, model.tokenizer)))
    assert re.search(told.replace(" +", ": "), text) and "logits = head(base_model(text))" in text
