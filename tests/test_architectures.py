"""Every architecture from a checkpoint on disk to an edited checkpoint that plain transformers loads."""

from __future__ import annotations

import json
import pickle
import random
import string

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer, BloomConfig, Gemma2Config

from benchmarks.plain import plain_target
from bluelib import edit_sequence, evaluate, get_editor, load_model
from bluelib.configs import model_configs
from bluelib.editors import EDITORS
from bluelib.mend import train
from bluelib.models import ADAPTERS
from bluelib.targets import TargetOptions, optimise_targets

from .checkpoints import ARCHITECTURES, write_checkpoint
from .conftest import PREFIXES, RECORDS

EDITS = RECORDS[:3]
SETTINGS = {
    "memit": {"mom2_update_weight": 50}, "memit_history": {"mom2_update_weight": 50}, "rect": {"mom2_update_weight": 50},
    "prune": {"mom2_update_weight": 50}, "pmet": {"mom2_update_weight": 50},
    "alphaedit": {"nullspace_threshold": 1000, "l2": 1},
}  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Checkpoints, a configuration of the user's own for all of them, a text, and a cache."""
    home = tmp_path_factory.mktemp("paper-scale")
    (home / "configs").mkdir()
    settings = {**SETTINGS, **{f"{name}_blue": own for name, own in SETTINGS.items()}}
    config = {
        "models": [str(home / name) for name in ARCHITECTURES],
        "critical_layers": [1, 2],  # layer 0 of GPT-J reads nothing but the token, so that its C is singular
        "statistics": {"corpus": str(home / "text.txt"), "tokens": 3000},
        "targets": {"steps": 4, "learning_rate": 0.3, "weight_decay": 0.1, "kl_factor": 0.1, "clamp": 1.5, "early_stop": 0.0},
        "editors": {
            "ft": {"layers": [1], "steps": 3, "learning_rate": 0.01},
            "mend": {"layers": [1, 2]},
            "rome": {"layers": [1]},
            **settings,
        },
    }  # fmt: skip
    (home / "configs" / "mine.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    draw, words = random.Random(0), sorted({word for r in RECORDS for word in r.request.text.split()})
    lines = [
        f"{''.join(draw.choices(string.ascii_letters, k=4))} {' '.join(draw.sample(words, 6))}." for _ in range(300)
    ]
    (home / "text.txt").write_text("\n".join(lines), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BLUELIB_CONFIGS", str(home / "configs"))
        patch.setenv("BLUELIB_CACHE", str(home / "cache"))
        yield home


@pytest.fixture(scope="module", params=ARCHITECTURES)
def model(request, home):
    return load_model(str(write_checkpoint(home / request.param, request.param)))


def logits(lm, tokenizer):
    with torch.no_grad():
        return [lm(torch.tensor([tokenizer(r.request.text).input_ids])).logits for r in RECORDS]


def test_the_model_is_what_plain_transformers_loads(model):
    lm, tokenizer = AutoModelForCausalLM.from_pretrained(model.name), AutoTokenizer.from_pretrained(model.name)
    for ours, theirs in zip(logits(model.lm, model.tokenizer), logits(lm, tokenizer), strict=True):
        assert torch.equal(ours, theirs)
    assert model.revision.startswith("sha256:") and model.name in model_configs()


@pytest.mark.parametrize("component", ["block", "mlp"])
def test_batched_targets_equal_plain_ones(model, component):
    """Kept prefixes, cut masks and shared runs change nothing: rotary parts, grouped queries, windows and all."""
    options = TargetOptions(steps=4, learning_rate=0.3, kl_factor=0.5, clamp=0.9, early_stop=0.0, component=component)
    requests = [record.request for record in RECORDS]
    found = optimise_targets(model, requests, 1, PREFIXES, options)
    for i, request in enumerate(requests):
        target, _, loss = plain_target(model, request, 1, PREFIXES, options)
        assert found.loss[i].item() == pytest.approx(loss, rel=1e-3)
        torch.testing.assert_close(found.values[:, i], target, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("name", EDITORS)
def test_every_editor_from_disk_to_disk(model, name, tmp_path):
    overrides = {}
    if name == "mend":
        overrides["network"] = str(tmp_path / "mend.safetensors")
        train(model, EDITS, [1, 2], tmp_path / "mend.safetensors", steps=2, batch_size=2, progress=False)
    before = logits(model.lm, model.tokenizer)
    run = edit_sequence(model, EDITS, get_editor(name, model, **overrides), batch_size=2, progress=False)
    try:
        after = logits(model.lm, model.tokenizer)
        assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
        assert evaluate(model, EDITS, generate=False).means.keys() >= {"efficacy"}
        lm = AutoModelForCausalLM.from_pretrained(run.save(tmp_path / "edited"))
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / "edited")
        for ours, theirs in zip(after, logits(lm, tokenizer), strict=True):
            assert torch.equal(ours, theirs)
    finally:
        run.revert()
    for ours, first in zip(logits(model.lm, model.tokenizer), before, strict=True):
        assert torch.equal(ours, first)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["llama-3", "gemma"])
def test_models_of_lower_precision(home, name, dtype, tmp_path):
    folder = home / name
    if not folder.exists():
        write_checkpoint(folder, name)
    model = load_model(str(folder), dtype=dtype)
    run = edit_sequence(model, EDITS, get_editor("memit_blue", model), batch_size=3, progress=False)
    assert model.weight(1).dtype == model.weight(2).dtype == torch.float32 and model.weight(0).dtype == model.lm.dtype
    lm = AutoModelForCausalLM.from_pretrained(run.save(tmp_path / "edited"), dtype="auto")
    assert str(lm.dtype) == f"torch.{dtype}"
    for ours, theirs in zip(logits(model.lm, model.tokenizer), logits(lm, model.tokenizer), strict=True):
        assert (ours - theirs).norm() < 0.05 * ours.norm()


def test_every_adapter_is_tested():
    assert {config.model_type for _, config, _ in ARCHITECTURES.values()} == set(ADAPTERS)


@pytest.mark.parametrize(
    "config, message",
    [(BloomConfig(hidden_size=16, n_layer=1, n_head=2), "no adapter for architecture 'bloom' .* docs/adapters.md"),
     (Gemma2Config(), "architecture 'gemma2' cannot be edited: it normalises")],
)  # fmt: skip
def test_an_architecture_that_cannot_be_edited_is_refused_before_its_weights_are_read(config, message, tmp_path):
    config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        load_model(str(tmp_path))


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_pickled_weights_are_not_read(tmp_path):
    folder = write_checkpoint(tmp_path / "model", "llama-3")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Malicious(tmp_path / "executed")))
    with pytest.raises(OSError, match="no weights in safetensors files"):
        load_model(str(folder))
    assert not (tmp_path / "executed").exists()


def test_code_that_comes_with_a_checkpoint_is_not_run(tmp_path):
    folder = write_checkpoint(tmp_path / "model", "llama-3")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config |= {"model_type": "strange", "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')\n", encoding="utf-8")
    with pytest.raises(ValueError):
        load_model(str(folder))
    assert not (tmp_path / "executed").exists()


def test_damaged_weights_are_refused(tmp_path):
    folder = write_checkpoint(tmp_path / "model", "llama-3")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(Exception, match=r"(?i)safetensor|incomplete|invalid|deserializ"):
        load_model(str(folder))


@pytest.mark.parametrize("key", ["models", "critical_layers", "targets", "editors"])
def test_a_configuration_of_ones_own_is_checked(tmp_path, monkeypatch, key):
    config = {"models": ["x"], "critical_layers": [0], "targets": {}, "editors": {}}
    config[key] = 5
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    monkeypatch.setenv("BLUELIB_CONFIGS", str(tmp_path))
    with pytest.raises(ValueError, match=rf"mine\.yaml: {key} must be a"):
        model_configs()


def test_a_folder_of_configurations_that_is_not_there_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("BLUELIB_CONFIGS", str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="BLUELIB_CONFIGS must name a folder"):
        model_configs()
