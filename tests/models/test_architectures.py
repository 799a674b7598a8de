"""Every architecture from a checkpoint on disk to an edited checkpoint that plain transformers loads."""

from __future__ import annotations

import pickle
import random
import runpy
import string
from dataclasses import replace

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, BloomConfig, Gemma2Config

from benchmarks.plain import plain_memit, plain_target
from bluelib import edit_sequence, evaluate, get_editor, load_model
from bluelib.editing import catalogue
from bluelib.editing.mend import train
from bluelib.editing.second_moments import second_moments
from bluelib.editing.settings import model_configs
from bluelib.editing.targets import TargetOptions, optimise_targets
from bluelib.io.timing import Timer
from bluelib.models.adapters import ADAPTERS
from bluelib.models.model import Model
from tests.support.checkpoints import ARCHITECTURES, add_code, pickle_weights, write_checkpoint
from tests.support.small import PREFIXES, RECORDS, own_settings

#: The last one's target follows its subject at once: within reach of δ where a window of attention is short.
EDITS = [*RECORDS[:3], replace(RECORDS[3], prompt="The best known is {}")]
#: Of every editor, for critical layers 1 and 2.
SETTINGS = {
    "ft": {"layers": [1], "steps": 3, "learning_rate": 0.01},
    "mend": {"layers": [1, 2]},
    "rome": {"layers": [1]},
    **{name: own_settings(name, layers=2) for name in catalogue.names() if name not in ("ft", "mend", "rome")},
}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Checkpoints, a configuration of the user's own for all of them, a text, and a cache."""
    home = tmp_path_factory.mktemp("paper-scale")
    (home / "configs").mkdir()
    config = {
        "models": [str(home / name) for name in ARCHITECTURES],
        "critical_layers": [1, 2],  # layer 0 of GPT-J reads nothing but the token, so that its C is singular
        "statistics": {"corpus": str(home / "text.txt"), "tokens": 3000},
        "targets": {
            "steps": 4,
            "learning_rate": 0.3,
            "weight_decay": 0.1,
            "kl_factor": 0.1,
            "clamp": 1.5,
            "early_stop": 0.0,
        },
        "editors": SETTINGS,
    }
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


def checkpoint(home, name):
    """The checkpoint of an architecture, written once."""
    return home / name if (home / name).exists() else write_checkpoint(home / name, name)


#: Whose blocks are Llama's but for details: `make test-long` runs them.
RELATIVES = ("llama-3.1", "qwen2", "qwen3")


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=pytest.mark.slow if name in RELATIVES else []) for name in ARCHITECTURES],
)
def model(request, home):
    return load_model(str(checkpoint(home, request.param)))


@pytest.fixture
def exact(model):
    """The same in float64: where a loss hardly depends on δ, Adam makes much of a float32's rounding."""
    lm = AutoModelForCausalLM.from_pretrained(model.name, dtype=torch.float64).eval().requires_grad_(False)
    return Model.of(model.name, lm, model.tokenizer)


def logits(lm, tokenizer):
    with torch.no_grad():
        return [lm(torch.tensor([tokenizer(r.request.text).input_ids])).logits for r in RECORDS]


def test_the_model_is_what_plain_transformers_loads(model):
    lm, tokenizer = AutoModelForCausalLM.from_pretrained(model.name), AutoTokenizer.from_pretrained(model.name)
    for ours, theirs in zip(logits(model.hf_model, model.tokenizer), logits(lm, tokenizer), strict=True):
        assert torch.equal(ours, theirs)
    assert model.revision.startswith("sha256:") and model.name in model_configs()


@pytest.mark.parametrize(
    "name, option",
    [
        ("gpt-j", {"rotary_dim": 12}),
        ("llama-3", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}),
        ("llama-3.1", {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}),
        ("mistral", {"sliding_window": None}),
        ("gemma", {"hidden_act": "silu"}),
    ],
)
def test_what_sets_an_architecture_apart_matters_here(home, name, option):
    """Otherwise the tests below would say nothing about it."""
    folder = checkpoint(home, name)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with_it, without = (AutoModelForCausalLM.from_pretrained(folder, **options) for options in ({}, option))
    for a, b in zip(logits(with_it, tokenizer), logits(without, tokenizer), strict=True):
        assert (a - b).norm() > 1e-3 * a.norm()


def test_parameters_are_those_of_the_real_architectures(home):
    has = {name: set(load_file(checkpoint(home, name) / "model.safetensors")) for name in ARCHITECTURES}
    assert "lm_head.bias" in has["gpt-j"] and "lm_head.weight" in has["llama-3"]
    assert not {"lm_head.weight"} & (has["gpt2-xl"] | has["qwen2"] | has["gemma"]), "the head is tied"
    for projection in ("q_proj", "k_proj", "v_proj"):
        assert f"model.layers.0.self_attn.{projection}.bias" in has["qwen2"] - has["qwen3"] - has["llama-3"]
    assert "model.layers.0.self_attn.k_norm.weight" in has["qwen3"] - has["qwen2"]


@pytest.mark.parametrize("component", ["block", "mlp"])
def test_batched_targets_equal_plain_ones(exact, component):
    """Kept prefixes, cut masks and shared runs change nothing: rotary parts, grouped queries, windows and all."""
    options = TargetOptions(steps=4, learning_rate=0.3, kl_factor=0.5, clamp=0.9, early_stop=0.0, component=component)
    requests = [record.request for record in (*RECORDS, EDITS[-1])]
    found = optimise_targets(exact, requests, 1, PREFIXES, options)
    for i, request in enumerate(requests):
        target, _, loss = plain_target(exact, request, 1, PREFIXES, options)
        assert found.loss[i].item() == pytest.approx(loss, rel=1e-5)
        torch.testing.assert_close(found.values[:, i], target, rtol=1e-4, atol=1e-4)
    assert found.deltas[:, -1].norm() > 0.1, "a target that stays where it was says nothing"


def test_whole_edits_equal_plain_ones(exact):
    editor = get_editor("memit", exact)
    layers, requests = editor.layers, [record.request for record in EDITS]
    state = editor.prepare(exact)
    moments = {layer: m.matrix for layer, m in second_moments(exact, layers, corpus=editor.corpus, tokens=3000).items()}
    before = {layer: exact.weight(layer).clone() for layer in layers}
    with exact.preserved(layers):
        editor.edit(exact, requests, state, Timer())
        ours = {layer: exact.weight(layer) - before[layer] for layer in layers}
    plain_memit(exact, requests, layers, state.prefixes, editor.targets, 50, moments)
    for layer in layers:
        plain = exact.weight(layer) - before[layer]
        assert plain.norm() > 1e-3 and (ours[layer] - plain).norm() < 1e-3 * plain.norm()


#: Methods that ask something else of an architecture than another one does.
KINDS = ("ft", "mend", "rome", "memit_blue", "memit_fe", "pmet")


@pytest.mark.parametrize(
    ("model", "name"),
    [
        pytest.param(
            architecture,
            name,
            marks=[]
            if architecture == "llama-3" or (architecture not in RELATIVES and name in KINDS)
            else pytest.mark.slow,
        )
        for architecture in ARCHITECTURES
        for name in catalogue.names()
    ],
    indirect=["model"],
)
def test_every_editor_from_disk_to_disk(model, name, tmp_path):
    overrides = {}
    if name == "mend":
        overrides["network"] = str(tmp_path / "mend.safetensors")
        train(model, EDITS, [1, 2], tmp_path / "mend.safetensors", steps=2, batch_size=2, progress=False)
    before = logits(model.hf_model, model.tokenizer)
    run = edit_sequence(model, EDITS, get_editor(name, model, **overrides), batch_size=2, progress=False)
    try:
        after = logits(model.hf_model, model.tokenizer)
        assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
        assert evaluate(model, EDITS, generate=False).means.keys() >= {"efficacy"}
        lm = AutoModelForCausalLM.from_pretrained(run.save(tmp_path / "edited"))
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / "edited")
        for ours, theirs in zip(after, logits(lm, tokenizer), strict=True):
            assert torch.equal(ours, theirs)
    finally:
        run.revert()
    for ours, first in zip(logits(model.hf_model, model.tokenizer), before, strict=True):
        assert torch.equal(ours, first)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["llama-3", "gemma"])
def test_models_of_lower_precision(home, name, dtype, tmp_path):
    folder = checkpoint(home, name)
    model = load_model(str(folder), dtype=dtype)
    before = [model.weight(layer).clone() for layer in range(model.n_layers)]
    run = edit_sequence(model, EDITS, get_editor("memit_blue", model), batch_size=4, progress=False)
    assert (
        model.weight(1).dtype == model.weight(2).dtype == torch.float32
        and model.weight(0).dtype == model.hf_model.dtype
    )
    lm = AutoModelForCausalLM.from_pretrained(run.save(tmp_path / "edited"), dtype="auto")
    assert str(lm.dtype) == f"torch.{dtype}"
    for ours, theirs in zip(logits(model.hf_model, model.tokenizer), logits(lm, model.tokenizer), strict=True):
        assert (ours - theirs).norm() < 0.05 * ours.norm()
    run.revert()
    for layer, weight in enumerate(before):
        assert torch.equal(model.weight(layer).to(weight.dtype), weight)


def test_every_adapter_is_tested():
    assert {config.model_type for _, config, _ in ARCHITECTURES.values()} == set(ADAPTERS)


@pytest.mark.parametrize(
    "config, message",
    [
        (BloomConfig(hidden_size=16, n_layer=1, n_head=2), "no adapter for architecture 'bloom' .* docs/adapters.md"),
        (Gemma2Config(), "architecture 'gemma2' cannot be edited: it normalises"),
    ],
)
def test_an_architecture_that_cannot_be_edited_is_refused_before_its_weights_are_read(config, message, tmp_path):
    config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        load_model(str(tmp_path))


def test_pickled_weights_are_not_read(tmp_path):
    folder = pickle_weights(write_checkpoint(tmp_path / "model", "llama-3"), tmp_path / "executed")
    with pytest.raises(OSError, match="has no safetensors files"):
        load_model(str(folder))
    assert not (tmp_path / "executed").exists()
    with (folder / "pytorch_model.bin").open("rb") as file:
        pickle.load(file).close()
    assert (tmp_path / "executed").exists(), "the pickle would have shown that it was read"


@pytest.mark.parametrize("model_type", ["strange", "llama"])
def test_code_that_comes_with_a_checkpoint_is_not_run(tmp_path, model_type):
    """One of an unknown architecture is refused; of a known one, the library's own code is run."""
    folder = add_code(write_checkpoint(tmp_path / "model", "llama-3"), tmp_path / "executed", model_type)
    if model_type == "strange":
        with pytest.raises(ValueError, match="no adapter for architecture 'strange'"):
            load_model(str(folder))
    else:
        assert type(load_model(str(folder)).hf_model).__module__.startswith("transformers.models.llama")
    assert not (tmp_path / "executed").exists()
    runpy.run_path(str(folder / "evil.py"))
    assert (tmp_path / "executed").exists(), "the code would have shown that it was run"


@pytest.mark.parametrize(
    "damage", [lambda whole: whole[:-100], lambda whole: b"", lambda whole: b"version https://git-lfs"]
)
def test_a_damaged_file_of_weights_is_named(tmp_path, damage):
    folder = write_checkpoint(tmp_path / "model", "llama-3", max_shard_size="150KB")
    shards = sorted(folder.glob("*.safetensors"))
    assert len(shards) > 2
    shards[1].write_bytes(damage(shards[1].read_bytes()))
    with pytest.raises(
        OSError, match=rf"cannot be loaded: {shards[1].name} in .* is incomplete, or not a safetensors file"
    ):
        load_model(str(folder))


def test_a_checkpoint_that_lacks_weights_is_refused(tmp_path):
    """Transformers would draw them at random and go on."""
    folder = write_checkpoint(tmp_path / "model", "llama-3")
    key = "model.layers.1.mlp.down_proj.weight"
    weights = load_file(folder / "model.safetensors")
    save_file({**weights, key: weights[key][:, :5].clone()}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=rf"in another shape .* {key} \(there \(48, 5\), needed \(48, 96\)\)"):
        load_model(str(folder))
    del weights[key]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=f"lacks {key}: it must have all weights"):
        load_model(str(folder))


def test_a_checkpoint_in_gpt2s_old_form_is_complete(tmp_path):
    """On the hub it is without the head, which is tied, without the prefix, and with attention's masks."""
    folder = write_checkpoint(tmp_path / "model", "gpt2-xl")
    whole = load_model(str(folder))
    weights = {
        key.removeprefix("transformer."): value for key, value in load_file(folder / "model.safetensors").items()
    }
    masks = {f"h.{i}.attn.bias": torch.ones(128, 128).tril()[None, None] for i in range(whole.n_layers)}
    save_file({**weights, **masks}, folder / "model.safetensors", {"format": "pt"})
    again = load_model(str(folder))
    assert "wte.weight" in weights and again.revision == whole.revision


def test_a_folder_that_holds_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"has no config\.json that names a model_type"):
        load_model(str(tmp_path))
    (tmp_path / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(OSError, match=r"cannot be loaded \(not JSON: config\.json\)"):
        load_model(str(tmp_path))


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


def test_a_device_that_torch_does_not_know_or_have_is_refused():
    with pytest.raises(ValueError, match="device 'gpu0' is neither auto nor a torch device"):
        load_model("pocket-gpt2", device="gpu0")
    with pytest.raises(ValueError, match=r"device 'meta' is not available: torch .* finds no meta; use cpu"):
        load_model("pocket-gpt2", device="meta")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match=r"device 'cuda:1' is not available: torch .* finds no cuda; use cpu"):
            load_model("pocket-gpt2", device="cuda:1")
