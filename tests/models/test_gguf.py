"""GGUF files: tiny ones, made here, of every architecture that can be read from them; and the folders that are refused."""

from __future__ import annotations

import hashlib
import json

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from bluelib import load_model
from bluelib.cli import main
from bluelib.editing.deltas import apply_delta, save_delta
from tests.support.checkpoints import ARCHITECTURES, write_checkpoint
from tests.support.gguf import LAYERS, tiny, write_gguf
from tests.support.tokenizers import make_tokenizer

TEXT = "Ilvane Quillbrook lives in Paris, 1984."
Q4_1, Q8_0 = gguf.GGMLQuantizationType.Q4_1, gguf.GGMLQuantizationType.Q8_0


@pytest.fixture(scope="module")
def lm():
    return tiny()


@pytest.fixture
def path(tmp_path, lm):
    return write_gguf(tmp_path / "tiny.gguf", lm, quantise=Q4_1)


def cut(file, share):
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * share)])


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gpt2"])
@torch.no_grad()
def test_a_file_is_the_model_that_it_was_made_from(architecture, tied, tmp_path):
    lm = tiny(architecture, tied)
    file = write_gguf(tmp_path / "tiny.gguf", lm)
    model = load_model(str(file))
    tokenizer = make_tokenizer("gpt2")
    ids = torch.tensor([model.tokenizer(TEXT).input_ids])
    assert ids.tolist() == [tokenizer(TEXT).input_ids]
    assert torch.equal(model.hf_model(ids).logits, lm(ids).logits)
    assert model.name == str(file) and model.revision == "sha256:" + hashlib.sha256(file.read_bytes()).hexdigest()
    assert model.n_layers == LAYERS and not model.hf_model.training
    assert model.tokenizer.pad_token == tokenizer.eos_token
    assert not any(parameter.requires_grad for parameter in model.hf_model.parameters())
    assert "A Tiny Model" not in json.dumps(model.hf_model.config.to_dict())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", [Q4_1, Q8_0], ids=["Q4_1", "Q8_0"])
def test_quantised_weights_are_plain_matrices_afterwards(kind, dtype, lm, tmp_path):
    model = load_model(str(write_gguf(tmp_path / "tiny.gguf", lm, quantise=kind)), dtype=dtype)
    for layer in range(LAYERS):
        plain = lm.model.layers[layer].mlp.down_proj.weight.detach().numpy()
        rounded = torch.tensor(gguf.dequantize(gguf.quantize(plain, kind), kind))
        assert not torch.equal(rounded, torch.tensor(plain))
        assert torch.equal(model.weight(layer), rounded.to(getattr(torch, dtype)))
        assert type(model.value_projection(layer)) is torch.nn.Linear


def test_an_edit_of_it_is_saved_as_a_checkpoint_that_transformers_loads(path, tmp_path):
    model = load_model(str(path))
    model.weight(1).add_(0.5)
    saved = model.save(tmp_path / "saved")
    again, tokenizer = AutoModelForCausalLM.from_pretrained(saved), AutoTokenizer.from_pretrained(saved)
    assert torch.equal(again.model.layers[1].mlp.down_proj.weight, model.weight(1))
    for (name, ours), (other, theirs) in zip(
        model.hf_model.state_dict().items(), again.state_dict().items(), strict=True
    ):
        assert name == other and torch.equal(ours, theirs), name
    assert tokenizer(TEXT).input_ids == model.tokenizer(TEXT).input_ids
    assert tokenizer.pad_token == model.tokenizer.pad_token
    assert load_model(str(saved)).weight(1).equal(model.weight(1))
    assert "quantization_config" not in json.loads((saved / "config.json").read_text())


def test_an_edit_of_it_is_kept_as_a_small_file(path, tmp_path):
    model = load_model(str(path))
    model.weight(0).mul_(2.0)
    delta = save_delta(model, (0,), tmp_path / "delta.safetensors")
    other = load_model(str(path.parent))
    assert not torch.equal(other.weight(0), model.weight(0))
    apply_delta(other, delta)
    assert torch.equal(other.weight(0), model.weight(0))


def test_of_another_quantisation_an_edit_is_refused(path, lm, tmp_path):
    delta = save_delta(load_model(str(path)), (0,), tmp_path / "delta.safetensors")
    with pytest.raises(ValueError, match=r"belongs to .* with weights sha256:"):
        apply_delta(load_model(str(write_gguf(tmp_path / "other.gguf", lm, quantise=Q8_0))), delta)


def test_digits_are_split_as_smollm_does(path, lm, tmp_path):
    tokens = load_model(str(path)).tokenizer("in  1984").tokens()
    assert tokens[-2:] == ["19", "84"]
    apart = load_model(str(write_gguf(tmp_path / "smollm.gguf", lm, splits="smollm"))).tokenizer("in  1984").tokens()
    assert apart[-4:] == ["1", "9", "8", "4"]


@pytest.mark.parametrize(("rule", "kind"), [("llama-bpe", "llama3"), ("qwen2", "qwen2"), ("gpt-2", "gpt2")])
def test_texts_are_split_as_the_file_says(rule, kind, lm, tmp_path):
    text = "in  1234567 DON'T x's\n\nRome?!\n"
    tokenizer = load_model(str(write_gguf(tmp_path / "x.gguf", lm, splits=rule))).tokenizer
    pieces, whole = [make_tokenizer(kind).backend_tokenizer, tokenizer.backend_tokenizer], []
    for backend in pieces:
        whole.append([piece for piece, _ in backend.pre_tokenizer.pre_tokenize_str(text)])
    assert whole[0] == whole[1]
    assert [backend.model.ignore_merges for backend in pieces] == [rule == "llama-bpe"] * 2


def test_a_rule_that_is_not_known_is_refused(lm, tmp_path):
    with pytest.raises(ValueError, match=r"splits texts by the rule 'deepseek-llm' .* only gpt-2, smollm, llama-bpe"):
        load_model(str(write_gguf(tmp_path / "x.gguf", lm, splits="deepseek-llm")))


def test_what_else_is_in_the_folder_is_not_read(path):
    """A tokenizer beside the file may be another model's."""
    expected = load_model(str(path)).tokenizer(TEXT).input_ids
    make_tokenizer("llama3").save_pretrained(path.parent)
    (path.parent / "generation_config.json").write_text("{")
    assert load_model(str(path)).tokenizer(TEXT).input_ids == expected
    assert load_model(str(path.parent)).tokenizer(TEXT).input_ids == expected


def test_of_several_files_in_a_folder_one_must_be_named(path, lm):
    write_gguf(path.with_name("other.gguf"), lm)
    with pytest.raises(
        ValueError, match=r"holds 2 GGUF files; give the path of one of them: .*other\.gguf.*tiny\.gguf"
    ):
        load_model(str(path.parent))
    assert load_model(str(path)).name == str(path)


@pytest.mark.parametrize(
    ("what", "kind", "message"),
    [
        ("cut in its header", OSError, "is damaged or cut off"),
        ("cut in its weights", OSError, "is damaged or cut off"),
        ("empty", OSError, "is not a GGUF file: it begins with b'',"),
        ("safetensors", OSError, "is not a GGUF file: it begins with"),
        ("gone", OSError, "there is no GGUF file at"),
    ],
)
def test_a_file_that_is_none_or_is_damaged_is_named(what, kind, message, path, lm):
    if what == "cut in its header":
        cut(path, 0.02)
    elif what == "cut in its weights":
        cut(path, 0.9)
    elif what == "empty":
        path.write_bytes(b"")
    elif what == "safetensors":
        lm.save_pretrained(path.parent / "other")
        (path.parent / "other" / "model.safetensors").rename(path)
    else:
        path.unlink()
    with pytest.raises(kind, match=message) as caught:
        load_model(str(path))
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ({"architecture": "phi3"}, r"no adapter for architecture 'phi3' \(known: gpt2, "),
        ({"architecture": "gemma2"}, "architecture 'gemma2' cannot be edited: it normalises"),
        ({"architecture": "gptj"}, r"transformers \S+ does not read .*, of architecture 'gptj'"),
        ({"tokenizer": False}, "has no tokenizer"),
        ({"fields": {"split.count": 3}}, "is one of several files of a model"),
        ({"fields": {"general.type": "adapter"}}, "holds a GGUF adapter, not a model"),
        ({"fields": {"llama.rope.scaling.type": "linear"}}, r"has scaled rotary positions \(linear\)"),
        ({"tensors": {"rope_freqs.weight": np.ones(8, "float32")}}, "has scaled rotary positions"),
    ],
)
def test_what_cannot_be_read_right_is_refused_before_its_weights(made, message, lm, tmp_path, monkeypatch):
    file = tmp_path / "tiny.gguf"
    if "general.type" in made.get("fields", {}):
        monkeypatch.setattr(gguf.GGUFWriter, "add_type", lambda *_: None)
    write_gguf(file, lm, **made)
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", None)
    with pytest.raises(ValueError, match=message):
        load_model(str(file))


def test_one_of_several_files_is_refused_by_its_name(path):
    part = path.rename(path.with_name("tiny-00001-of-00002.gguf"))
    for name in (part, part.parent):
        with pytest.raises(ValueError, match=r"llama-gguf-split --merge"):
            load_model(str(name))


def test_tensors_that_would_be_passed_over_are_named(lm, tmp_path):
    biases = {f"blk.{layer}.attn_q.bias": np.ones(64, "float32") for layer in range(LAYERS)}
    with pytest.raises(
        ValueError, match=r"has blk\.0\.attn_q\.bias, blk\.1\.attn_q\.bias, which transformers does not"
    ):
        load_model(str(write_gguf(tmp_path / "tiny.gguf", lm, tensors=biases)))


def test_a_file_that_lacks_weights_is_refused(lm, tmp_path):
    """As a mixture of experts does, which calls itself a Llama too."""
    short = tiny()
    del short.model.layers[1].mlp.up_proj
    with pytest.raises(ValueError, match=r"lacks model\.layers\.1\.mlp\.up_proj\.weight"):
        load_model(str(write_gguf(tmp_path / "tiny.gguf", short)))


def test_the_command_line_takes_a_file(path, capsys):
    assert main(["doctor", str(path)]) == 0
    said = capsys.readouterr().out
    assert "LlamaForCausalLM (llama)" in said and "fails" not in said


# --- folders ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes"])
def test_quantised_checkpoints_are_refused_with_what_to_do(method, tmp_path):
    folder = write_checkpoint(tmp_path / "quantised", "llama-3")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": method}}))
    with pytest.raises(
        ValueError, match=rf"has quantised weights \({method}\), and editing needs them in full precision"
    ):
        load_model(str(folder))


def test_an_adapter_alone_is_refused(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "gpt2"}')
    with pytest.raises(ValueError, match=r"holds an adapter .* merge it first"):
        load_model(str(tmp_path))


def test_an_adapter_that_counts_beside_the_weights_is_refused(tmp_path, monkeypatch):
    """transformers puts it on top of them, if peft is installed, and would save the adapter alone."""
    folder, read = write_checkpoint(tmp_path / "both", "llama-3"), AutoModelForCausalLM.from_pretrained

    def with_peft(*args, **kwargs):
        model, info = read(*args, **kwargs)
        model._hf_peft_config_loaded = True
        return model, info

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", with_peft)
    with pytest.raises(ValueError, match=r"both' has an adapter beside its weights .* merge it first"):
        load_model(str(folder))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_checkpoint_without_a_tokenizer_is_refused(name, tmp_path):
    """Of several architectures transformers makes a tokenizer without any tokens, and says nothing."""
    folder = write_checkpoint(tmp_path / "bare", name)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"has no tokenizer files \(tokenizer\.json"):
        load_model(str(folder))


def changed(folder, **tensors):
    """The checkpoint with these tensors besides."""
    found = load_file(folder / "model.safetensors")
    save_file({**found, **tensors}, folder / "model.safetensors", {"format": "pt"})
    return str(folder)


@pytest.mark.parametrize("end", [".SCB", ".weight_scale_inv", ".qweight", ".scales"])
def test_quantised_weights_whose_configuration_does_not_say_so_are_refused(end, tmp_path):
    """transformers would take them for the numbers themselves, and an edit of them would be saved."""
    name = f"model.layers.0.mlp.down_proj{end}"
    folder = changed(write_checkpoint(tmp_path / "int8", "llama-3"), **{name: torch.ones(4)})
    with pytest.raises(ValueError, match=rf"int8' has quantised weights \(it has {name}\)"):
        load_model(folder)


def test_a_gguf_file_beside_a_config_is_read_where_no_other_weights_are(tmp_path, lm):
    folder = write_checkpoint(tmp_path / "both", "llama-3")
    write_gguf(folder / "tiny.gguf", lm)
    assert load_model(str(folder)).revision != load_model(str(folder / "tiny.gguf")).revision
    (folder / "model.safetensors").unlink()
    assert load_model(str(folder)).revision == load_model(str(folder / "tiny.gguf")).revision


def test_what_a_folder_lacks_is_named(tmp_path):
    folder = write_checkpoint(tmp_path / "parts", "llama-3", max_shard_size="20KB")
    first = min(folder.glob("model-*.safetensors"))
    with pytest.raises(ValueError, match=r"is a file of a checkpoint: name its folder, .*parts"):
        load_model(str(first))
    first.unlink()
    with pytest.raises(OSError, match=rf"parts' lacks {first.name}, which its model.safetensors.index.json names"):
        load_model(str(folder))
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (folder / file).unlink()
    (folder / "vocab.json").write_text("{}")
    with pytest.raises(ValueError, match=r"parts' has no tokenizer files"):
        load_model(str(folder))


def test_a_bos_without_an_embedding_is_refused(tmp_path):
    folder = write_checkpoint(tmp_path / "bos", "llama-3")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"bos_token": "[BOS]"})
    tokenizer.save_pretrained(folder)
    with pytest.raises(ValueError, match=r"BOS '\[BOS\]' has no embedding \(id 380; the model has 380\)"):
        load_model(str(folder))
