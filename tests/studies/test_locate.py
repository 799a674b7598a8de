"""Causal tracing against states put back by hand, and what must hold whatever the model."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest
import torch

from bluelib.models.prompts import Request, encode_target, locate
from bluelib.studies.locate import KINDS, causal_trace, effects_frame, known_facts, layers_by_tracing, noise_scale
from tests.support.small import RECORDS

FACT = Request("Everybody knows that {} plays the", "Ilvane Quillbrook", "harp")
HOW = {"samples": 3, "seed": 1}


@torch.no_grad()
def by_hand(model, fact, samples, seed, noise=3.0, restore=None, hold=()):
    """P(answer) with noise on the subject and, at ``restore`` = (modules, token), clean outputs; the modules ``hold``
    keep there what they give under noise alone. Plain hooks."""
    place = locate(model.tokenizer, fact.prompt, fact.subject)
    ids = torch.tensor([place.ids])
    answer = encode_target(model.tokenizer, fact.target)[0]
    start = fact.prompt.index("{}")
    offsets = model.tokenizer(fact.text, return_offsets_mapping=True)["offset_mapping"]
    inside = [i for i, (a, b) in enumerate(offsets) if b > start and a < start + len(fact.subject) and b > a]
    width = model.hf_model.get_input_embeddings().weight.shape[1]
    drawn = torch.randn((samples, len(inside), width), generator=torch.Generator().manual_seed(seed))
    drawn = drawn.double() * noise * noise_scale(model)
    modules, token = restore or ([], None)
    kept = []

    def keep(module, args, output):
        kept.append((output[0] if isinstance(output, tuple) else output)[0, token])

    hooks = [module.register_forward_hook(keep) for module in modules]
    model.hf_model(ids)
    [hook.remove() for hook in hooks]

    def disturb(module, args, output):
        output = output.clone()
        output[:, inside] += drawn
        return output

    def put(value):
        def hook(module, args, output):
            hidden = (output[0] if isinstance(output, tuple) else output).clone()
            hidden[:, token] = value
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        return hook

    noisy = []
    hooks = [model.hf_model.get_input_embeddings().register_forward_hook(disturb)]
    hooks += [
        module.register_forward_hook(
            lambda module, args, output: noisy.append((output[0] if isinstance(output, tuple) else output)[:, token])
        )
        for module in hold
    ]
    model.hf_model(ids.expand(samples, -1))
    [hook.remove() for hook in hooks]

    hooks = [model.hf_model.get_input_embeddings().register_forward_hook(disturb)]
    hooks += [module.register_forward_hook(put(value)) for module, value in zip(hold, noisy, strict=True)]
    hooks += [module.register_forward_hook(put(value)) for module, value in zip(modules, kept, strict=True)]
    probabilities = model.hf_model(ids.expand(samples, -1)).logits[:, -1].softmax(-1)[:, answer]
    [hook.remove() for hook in hooks]
    return probabilities.mean().item()


def test_effects_are_those_of_states_put_back_by_hand(any_model):
    found = causal_trace(any_model, FACT, window=2, **HOW)
    token = locate(any_model.tokenizer, FACT.prompt, FACT.subject).subject_last
    base = by_hand(any_model, FACT, **HOW)
    assert found.corrupted == pytest.approx(base, rel=1e-5)
    for kind, layer, modules in (
        ("hidden", 1, [any_model.blocks[1]]),
        ("mlp", 2, [any_model.part(1, "mlp"), any_model.part(2, "mlp")]),
        ("attention", 0, [any_model.part(0, "attention")]),
    ):
        expected = by_hand(any_model, FACT, **HOW, restore=(modules, token)) - base
        assert found.effects[kind][token, layer].item() == pytest.approx(expected, rel=1e-4, abs=1e-9), kind


@pytest.mark.parametrize(
    ("kind", "part"), [("hidden, MLPs severed", "mlp"), ("hidden, attention severed", "attention")]
)
def test_severed_paths_are_those_severed_by_hand(any_model, kind, part, monkeypatch):
    monkeypatch.setattr("bluelib.studies.locate.TOKEN_BUDGET", 1)  # one state at a time: nothing depends on it
    found = causal_trace(any_model, FACT, kinds=(kind,), **HOW)
    token = locate(any_model.tokenizer, FACT.prompt, FACT.subject).subject_last
    later = [any_model.part(layer, part) for layer in (2, 3)]
    expected = by_hand(any_model, FACT, **HOW, restore=([any_model.blocks[1]], token), hold=later) - found.corrupted
    assert found.effects[kind][token, 1].item() == pytest.approx(expected, rel=1e-4, abs=1e-9)


def hooks(model):
    """How many hooks there are; transformers leaves some of its own once a model has given its hidden states."""
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.hf_model.modules())


def test_what_must_hold(any_model):
    before = hooks(any_model)
    found = causal_trace(any_model, FACT, **HOW)
    t, n = len(found.tokens), any_model.n_layers
    place = locate(any_model.tokenizer, FACT.prompt, FACT.subject)
    assert [effect.shape for effect in found.effects.values()] == [(t, n)] * len(KINDS)
    whole = found.clean - found.corrupted
    # the last token's last state is all that the answer is read from
    assert found.effects["hidden"][-1, -1].item() == pytest.approx(whole, rel=1e-5)
    # noise changes nothing before the subject, and nothing is severed after the last layer
    first = found.roles.index("first subject")
    assert (found.effects["hidden"][:first] == 0).all() and first > 3
    severed = found.effects["hidden, MLPs severed"]
    assert severed[place.subject_last, -1] == found.effects["hidden"][place.subject_last, -1]
    assert severed[place.subject_last, 0] != found.effects["hidden"][place.subject_last, 0]
    assert severed.isnan().sum() == (t - 1) * n
    assert found.roles[place.subject_last] == "last subject" and found.roles[-1] == "last"
    assert "".join(found.tokens).endswith(FACT.text)
    assert hooks(any_model) == before


def test_without_noise_there_is_nothing_to_bring_back(any_model):
    found = causal_trace(any_model, FACT, noise=0.0, kinds=("hidden", "mlp"), **HOW)
    assert found.corrupted == pytest.approx(found.clean)
    assert found.effects["hidden"].abs().max() < 1e-9 and set(found.effects) == {"hidden", "mlp"}


def test_wrong_kinds_are_refused(any_model):
    with pytest.raises(ValueError, match="kinds must be from"):
        causal_trace(any_model, FACT, kinds=("hiden",))
    with pytest.raises(ValueError, match="samples must be at least 1, not 0"):
        causal_trace(any_model, FACT, samples=0)
    with pytest.raises(ValueError, match="window must be a whole number, not '3'"):
        causal_trace(any_model, FACT, window="3")


def test_a_frame_has_one_row_per_kind_role_layer_and_prompt(any_model):
    frame = effects_frame([causal_trace(any_model, FACT, **HOW)] * 2)
    assert not frame.duplicated(["kind", "role", "layer", "prompt"]).any()
    assert frame.effect.notna().all() and set(frame.prompt) == {0, 1} and "before" not in set(frame.role)


def test_layers_by_tracing_takes_the_best_window():
    frame = pd.DataFrame({"kind": "hidden", "role": "last subject", "layer": range(5), "effect": [0, 1, 3, 2, 0]})
    assert layers_by_tracing(frame, width=2) == [2, 3]
    assert layers_by_tracing(frame, width=3) == [1, 2, 3]


def test_a_model_that_knows_no_fact_is_told_before_any_tracing(any_model):
    records = [replace(record, target_true="zither") for record in RECORDS[:2]]
    with pytest.raises(
        ValueError, match=r"knows 0 of these 2 facts, .* after 'Ilvane .* its first choice is .*not 'zither'"
    ):
        known_facts(any_model, records)
    with pytest.raises(ValueError, match=r"knows 0 of these 0 facts, and at least 1 are needed\. Use facts"):
        known_facts(any_model, [])
    assert known_facts(any_model, records, least=0) == []
