"""Where text and public code of the family differ, both values are what their formulas say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cosine_similarity

from benchmarks import golden
from benchmarks.plain import plain_keys, plain_rect, plain_target
from bluelib.editing.constraints import Sparsify
from bluelib.editing.editor import Editor
from bluelib.editing.named import get_editor
from bluelib.editing.residuals import DISTRIBUTED
from bluelib.editing.second_moments import second_moments
from bluelib.editing.sequence import edit_sequence
from bluelib.editing.solvers import Ridge
from bluelib.editing.targets import TargetOptions, optimise_targets
from bluelib.io.tensors import load_tensors
from bluelib.io.timing import Timer
from bluelib.metrics.editing import PUBLISHED, TEXT
from bluelib.models.choices import CHOICES
from bluelib.models.contexts import context_prefixes
from bluelib.models.load import load_model
from bluelib.models.prompts import encode_prompt
from bluelib.models.representations import subject_keys
from tests.support.small import LLAMA_FIRST, PREFIXES, RECORDS, editor

REQUESTS = [record.request for record in RECORDS[:3]]
OPTIONS = TargetOptions(steps=8, learning_rate=0.5, kl_factor=0.5, clamp=0.9)


@pytest.fixture(scope="module")
def kept():
    tensors, about = load_tensors(Path(__file__).with_name("golden.safetensors"))
    model = load_model(golden.MODEL)
    assert about == {"model": golden.MODEL, "revision": model.revision}
    return model, tensors


@pytest.mark.parametrize("case", golden.CASES)
@pytest.mark.parametrize("layer", golden.LAYERS)
def test_targets_are_those_of_the_golden_file(kept, case, layer):
    model, tensors = kept
    found = optimise_targets(model, golden.REQUESTS, layer, golden.PREFIXES, golden.options(case))
    for i in range(len(golden.REQUESTS)):
        delta = tensors[f"{case}.layer{layer}.{i}"] - found.hidden[:, i]
        assert cosine_similarity(found.deltas[:, i].double(), delta.double(), dim=0) > 0.99999
        torch.testing.assert_close(found.deltas[:, i], delta, rtol=1e-2, atol=1e-2 * delta.abs().max().item())


@pytest.mark.parametrize("mean", ["bare_half", "equal"])
@pytest.mark.parametrize("layer", golden.LAYERS)
def test_keys_are_those_of_the_golden_file(kept, mean, layer):
    model, tensors = kept
    found = subject_keys(model, golden.REQUESTS, layer, golden.PREFIXES, mean)
    same, other = (
        tensors[f"{name}.layer{layer}"] for name in (mean, {"equal": "bare_half", "bare_half": "equal"}[mean])
    )
    assert (found - same).norm() < 1e-5 * same.norm()
    assert (found - other).norm() > 1e-2 * other.norm()


def test_the_golden_file_tells_the_options_apart(kept):
    _, tensors = kept
    for first, second in (("subject", "prompt"), ("mlp", "relaxed")):
        for layer in golden.LAYERS:
            one, other = (
                torch.stack([tensors[f"{case}.layer{layer}.{i}"] for i in range(len(golden.REQUESTS))])
                for case in (first, second)
            )
            assert (one - other).norm() > 1e-3 * one.norm()


@pytest.mark.parametrize("kl_at", ["subject", "prompt"])
def test_kl_is_read_where_the_option_says(any_model, kl_at):
    options = replace(OPTIONS, kl_at=kl_at)
    found = optimise_targets(any_model, REQUESTS, 1, PREFIXES, options)
    for i, request in enumerate(REQUESTS):
        target, steps, _ = plain_target(any_model, request, 1, PREFIXES, options)
        torch.testing.assert_close(found.values[:, i], target, rtol=1e-4, atol=1e-4)
        assert found.steps[i] == steps
    other = optimise_targets(
        any_model, REQUESTS, 1, PREFIXES, replace(options, kl_at={"subject": "prompt", "prompt": "subject"}[kl_at])
    )
    assert not torch.allclose(found.values, other.values, rtol=1e-3, atol=1e-3)


def test_keys_weigh_prefixes_as_the_option_says(any_model):
    prefixes = (*PREFIXES, "In Paris, people laugh. ")
    for mean in ("bare_half", "equal"):
        found = subject_keys(any_model, REQUESTS, 1, prefixes, mean)
        torch.testing.assert_close(found, plain_keys(any_model, REQUESTS, 1, prefixes, mean), rtol=1e-5, atol=1e-5)
    bare = subject_keys(any_model, REQUESTS, 1, ("",))
    torch.testing.assert_close(bare, subject_keys(any_model, REQUESTS, 1, ("",), "equal"))
    with pytest.raises(ValueError, match="the first context prefix must be the empty one"):
        subject_keys(any_model, REQUESTS, 1, ("Peru is far. ", ""))


def test_prefixes_are_as_long_as_the_option_says(any_model, tmp_path, monkeypatch):
    monkeypatch.setenv("BLUELIB_CACHE", str(tmp_path))
    asked = []
    generate = any_model.hf_model.generate
    monkeypatch.setattr(any_model.hf_model, "generate", lambda **how: asked.append(how) or generate(**how))
    for kind, own in (("ten_in_all", False), ("ten_more", True)):
        asked.clear()
        prefixes = context_prefixes(any_model, kind)
        assert prefixes[0] == "" and len(prefixes) == len(asked) + 1 == 6
        for how in asked:
            opened = how["input_ids"].shape[1]
            assert how["max_new_tokens"] == (10 if own else 10 - opened)
            assert how["top_k"] == 5
    assert context_prefixes(any_model, "ten_in_all") != context_prefixes(any_model, "ten_more")
    assert len(asked) == 5, "both are kept"


def test_a_shipped_models_prefixes_have_ten_tokens_in_all():
    model = load_model("pocket-llama")
    for prefix in context_prefixes(model)[1:]:
        assert len(encode_prompt(model.tokenizer, prefix)) <= 12  # and the full stop and the space behind them


@pytest.mark.parametrize("order", ["restored", "in_turn"])
def test_rect_drops_entries_in_the_order_of_the_option(any_model, small_world, order):
    method = Editor(
        (0, 2), DISTRIBUTED, Ridge(50.0), Sparsify(0.25, order=order), OPTIONS, corpus="pocket", tokens=3000
    )
    state = method.prepare(any_model)
    before = {layer: any_model.weight(layer).clone() for layer in (0, 2)}
    moments = {layer: m.matrix for layer, m in second_moments(any_model, (0, 2), tokens=3000).items()}
    with any_model.preserved((0, 2)):
        result = method.edit(any_model, REQUESTS, state, Timer())
        ours = {layer: any_model.weight(layer).clone() for layer in (0, 2)}
    with any_model.preserved((0, 2)):
        plain_rect(any_model, REQUESTS, (0, 2), PREFIXES, OPTIONS, 50.0, moments, 0.25, order)
        plain = {layer: any_model.weight(layer).clone() for layer in (0, 2)}
    for layer in (0, 2):
        change = ours[layer] - before[layer]
        torch.testing.assert_close(change.float(), result.updates[layer], rtol=1e-4, atol=1e-6)
        assert ((change != 0).double().mean() - 0.25).abs() < 0.01
        # where two entries are about as large, rounding decides which is kept
        differing = (ours[layer] - plain[layer]).abs() > 1e-4 * plain[layer].abs().max()
        assert differing.double().mean() < 0.005
    steps = list(method.steps(any_model, REQUESTS, state))
    assert ((steps[0].update != 0).double().mean() > 0.9) == (order == "restored")
    for layer in (0, 2):
        any_model.weight(layer).copy_(before[layer])


def test_the_orders_of_rect_end_with_different_weights(any_model, small_world):
    method = replace(editor(Ridge(1e-3), layers=(0, 1, 2)), constraint=Sparsify(0.25))
    ends = []
    for order in ("restored", "in_turn"):
        run = edit_sequence(any_model, RECORDS, replace(method, constraint=Sparsify(0.25, order=order)), batch_size=5)
        ends.append(any_model.weight(2).clone())
        run.revert()
    assert not torch.allclose(*ends)


@LLAMA_FIRST
def test_pmets_loss_is_relaxed_once_the_object_is_the_first_choice(any_model):
    """Against the plain reference, in steps too; and the option makes a difference."""
    options = TargetOptions(steps=20, learning_rate=1.0, clamp=1e3, component="mlp", early_stop=0.0, relax=True)
    found = optimise_targets(any_model, REQUESTS, 0, PREFIXES, options)
    for i, request in enumerate(REQUESTS):
        target, steps, loss = plain_target(any_model, request, 0, PREFIXES, options)
        assert found.steps[i] == steps
        assert found.loss[i].item() == pytest.approx(loss, rel=1e-2, abs=1e-4)
        torch.testing.assert_close(found.values[:, i], target, rtol=1e-3, atol=1e-3 * target.abs().max().item())
    free = optimise_targets(any_model, REQUESTS, 0, PREFIXES, replace(options, relax=False))
    assert (found.values - free.values).norm() > 1e-3 * free.values.norm()
    options = replace(options, kl_factor=0.0)  # whoever gets there is finished
    stopped = optimise_targets(any_model, REQUESTS, 0, PREFIXES, options)
    assert stopped.steps.min() < options.steps
    for i, request in enumerate(REQUESTS):
        assert stopped.steps[i] == plain_target(any_model, request, 0, PREFIXES, options)[1]


def test_the_defaults_are_the_public_codes_and_text_takes_the_texts():
    model = load_model("pocket-llama")
    for name, field in (
        ("memit", "targets.kl_at"),
        ("rect", "constraint.order"),
        ("prune", "constraint.twice"),
        ("pmet", "targets.relax"),
    ):
        part, _, option = field.partition(".")
        for text in (False, True):
            method = get_editor(name, model, text=text)
            wanted = {key: choice.text if text else choice.published for key, choice in CHOICES.items()}
            assert getattr(getattr(method, part), option) == wanted[option]
            assert (method.key_mean, method.contexts) == (wanted["key_mean"], wanted["contexts"])
    assert get_editor("rect_blue", model, text=True, order="restored").constraint.order == "restored"
    assert get_editor("ft", model, text=True) == get_editor("ft", model)
    for measures, value in ((PUBLISHED, "published"), (TEXT, "text")):
        assert all(getattr(measures, name) == getattr(CHOICES[name], value) for name in ("idf", "words", "score_bos"))


def test_another_value_is_refused_with_what_both_mean():
    with pytest.raises(
        ValueError, match=r"kl_at must be 'subject' or 'prompt', not 'end'; public code \('subject'\): the next"
    ):
        TargetOptions(kl_at="end")
    with pytest.raises(ValueError, match="order must be 'restored' or 'in_turn', not 'first'"):
        Sparsify(order="first")
    with pytest.raises(ValueError, match="order must be 'restored' or 'in_turn', not 5;"):
        get_editor("rect", load_model("pocket-llama"), order=5)
    with pytest.raises(ValueError, match="twice must be True or False, not 1;"):
        get_editor("prune", load_model("pocket-llama"), twice=1)
