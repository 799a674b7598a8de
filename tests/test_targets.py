"""The batched target optimisation against a plain one, written from the formula: one request, the whole model."""

from __future__ import annotations

import pytest
import torch

from bluelib.models import Model
from bluelib.prompts import Request, encode_target, locate
from bluelib.targets import TargetError, TargetOptions, optimise_targets
from bluelib.tracing import trace

REQUESTS = [
    Request("The mother tongue of {} is", "Ilvane Quillbrook", "Swedish"),
    Request("{} plays the", "Zoë D'Astrelle", "bassoon"),
    Request("Which country is {} a citizen of?", "Torrin Vantorre", "East Timor"),
    Request("The birth of {}", "Maelis Ashby-Quorn", "Rio de Janeiro"),
]
PREFIXES = ("", "The main product of Badgerwick is tea. ", "In Paris, people laugh. ")
OPTIONS = TargetOptions(steps=6, learning_rate=0.3, kl_factor=0.5, clamp=0.9, early_stop=0.0)


def plain_target(model: Model, request: Request, layer: int, prefixes, options: TargetOptions):
    """z of one request: the whole model, one prompt at a time, all tokens, at every step."""
    target = encode_target(model.tokenizer, request.target)
    places = [locate(model.tokenizer, request.prompt, request.subject, prefix) for prefix in prefixes]
    essence = locate(model.tokenizer, "{} is a", request.subject)
    delta = torch.zeros(model.lm.config.hidden_size, requires_grad=True)
    adam = torch.optim.Adam([delta], lr=options.learning_rate)

    def run(ids, at, d):
        def add(key, hidden):
            return torch.cat([hidden[:, :at], hidden[:, at : at + 1] + d.to(hidden.dtype), hidden[:, at + 1 :]], 1)

        with trace(outputs={0: model.blocks[layer]}, edit=add):
            return model.lm(input_ids=torch.tensor([ids])).logits[0].float().log_softmax(-1)

    with torch.no_grad(), trace(outputs={0: model.blocks[layer]}) as seen:
        model.lm(input_ids=torch.tensor([places[0].ids]))
    hidden = seen[0][0, places[0].subject_last].float()
    original = run(essence.ids, essence.subject_last, torch.zeros_like(delta))[-1].detach()
    for step in range(options.steps):
        nll = 0.0
        for place in places:
            log_probs = run(place.ids + target[:-1], place.subject_last, delta)
            read = log_probs[len(place.ids) - 1 :]
            nll = nll - read.gather(1, torch.tensor(target)[:, None]).mean() / len(places)
        edited = run(essence.ids, essence.subject_last, delta)[-1]
        kl = (edited.exp() * (edited - original)).sum()
        norm = torch.linalg.vector_norm(delta)
        loss = nll + options.kl_factor * kl + options.weight_decay * norm / hidden.norm() ** 2
        if loss < options.early_stop or step == options.steps - 1:
            break
        adam.zero_grad()
        loss.backward()
        adam.step()
        with torch.no_grad():
            limit = options.clamp * hidden.norm()
            if delta.norm() > limit:
                delta.mul_(limit / delta.norm())
    return hidden + delta.detach(), step + 1, loss.item()


@pytest.mark.parametrize("layer", [0, 2, 3])
def test_batched_targets_equal_plain_ones(any_model, layer):
    found = optimise_targets(any_model, REQUESTS, layer, PREFIXES, OPTIONS)
    for i, request in enumerate(REQUESTS):
        target, steps, loss = plain_target(any_model, request, layer, PREFIXES, OPTIONS)
        torch.testing.assert_close(found.values[:, i], target, rtol=1e-4, atol=1e-4)
        assert found.steps[i] == steps
        assert found.loss[i].item() == pytest.approx(loss, rel=1e-4)


def test_early_stop_is_per_request_and_leaves_the_others_alone(any_model):
    """With a stop between the requests' losses some finish early; the rest are as without a stop."""
    free = optimise_targets(any_model, REQUESTS, 1, PREFIXES, OPTIONS)
    stop = free.loss.sort().values[1].item() + 1e-3
    options = TargetOptions(steps=6, learning_rate=0.3, kl_factor=0.5, clamp=0.9, early_stop=stop)
    found = optimise_targets(any_model, REQUESTS, 1, PREFIXES, options)
    for i, request in enumerate(REQUESTS):
        target, steps, _ = plain_target(any_model, request, 1, PREFIXES, options)
        assert found.steps[i] == steps
        torch.testing.assert_close(found.values[:, i], target, rtol=1e-4, atol=1e-4)
    assert (found.loss < stop).sum() >= 1


def test_micro_batches_do_not_change_the_result(any_model):
    whole = optimise_targets(any_model, REQUESTS, 1, PREFIXES, OPTIONS)
    parts = optimise_targets(any_model, REQUESTS, 1, PREFIXES, OPTIONS, token_budget=1)
    torch.testing.assert_close(whole.values, parts.values, rtol=1e-5, atol=1e-5)


def test_delta_stays_within_its_clamp(any_model):
    options = TargetOptions(steps=8, learning_rate=5.0, clamp=0.2)
    found = optimise_targets(any_model, REQUESTS, 1, PREFIXES, options)
    assert (found.deltas.norm(dim=0) <= 0.2 * found.hidden.norm(dim=0) * (1 + 1e-5)).all()


def test_a_loss_that_is_not_finite_names_the_request(any_model):
    weight = any_model.weight(3)
    original = weight.clone()
    weight.fill_(float("nan"))
    try:
        with pytest.raises(TargetError, match=r"'The mother tongue of Ilvane Quillbrook is' → 'Swedish' at layer 1"):
            optimise_targets(any_model, REQUESTS[:1], 1, PREFIXES, OPTIONS)
    finally:
        weight.copy_(original)
