"""FT, MEND and the constraints inside a sequence, on random models of the three architectures."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from bluelib import edit_sequence, get_editor, load_model
from bluelib.data import Probe
from bluelib.editing.constraints import Damp, Sparsify
from bluelib.editing.finetuning import FineTuning
from bluelib.editing.mend import Mend, Network, gradient_pairs, train
from bluelib.editing.method import Size
from bluelib.editing.named import get_composition
from bluelib.editing.residuals import DIRECT
from bluelib.editing.solvers import Equality, Ridge
from bluelib.models.model import Model, weights_hash
from bluelib.models.scoring import request_nll, score_targets
from tests.support.small import QUICK_FIRST, RECORDS, editor, random_model

pytestmark = pytest.mark.usefixtures("small_world")

REQUESTS = [record.request for record in RECORDS]


def test_fine_tuning_lowers_the_loss_within_its_constraint(any_model):
    before = request_nll(any_model, REQUESTS).mean()
    old = any_model.weight(1).clone()
    run = edit_sequence(any_model, RECORDS, FineTuning("ft", (1,), 10, 0.01, 0.02), batch_size=5)
    after = request_nll(any_model, REQUESTS).mean()
    change = any_model.weight(1) - old
    assert after < before - 0.05
    assert 0.015 < change.abs().max() <= 0.02 + 1e-7
    assert run.batches[0]["loss"] == pytest.approx(after.item(), rel=1e-3)
    run.revert()
    assert torch.equal(any_model.weight(1), old)
    assert not any(p.requires_grad for p in any_model.hf_model.parameters())


def test_fine_tuning_that_diverges_says_so_and_leaves_no_gradients(any_model):
    any_model.weight(3).fill_(1e308)  # finite, as a model must be, and yet too large
    with pytest.raises(FloatingPointError, match=r"ft: the loss of .* is nan at step 1; lower the learning rate"):
        edit_sequence(any_model, RECORDS[:1], FineTuning("ft", (1,), 10, 0.01), batch_size=1)
    assert not any(p.requires_grad or p.grad is not None for p in any_model.hf_model.parameters())


def test_request_nll_is_the_models_own(any_model):
    scores = score_targets(any_model, [(r.text, r.target) for r in REQUESTS])
    expected = torch.tensor([-score.log_prob for score in scores])
    torch.testing.assert_close(request_nll(any_model, REQUESTS), expected, rtol=1e-4, atol=1e-5)


def test_gradient_pairs_add_up_to_the_gradient_of_the_weight(any_model):
    """What MEND transforms: Σ_t d_t k_tᵀ is the loss's gradient by W."""
    loss, pairs = gradient_pairs(any_model, REQUESTS, (1, 3))
    for layer in (1, 3):
        parameter = any_model.value_projection(layer).weight
        with torch.enable_grad():
            parameter.requires_grad_()
            nll = request_nll(any_model, REQUESTS)
            (expected,) = torch.autograd.grad(nll.sum(), parameter)
            parameter.requires_grad_(False)
        expected = expected.T if any_model.adapter.input_major else expected
        keys, gradients = pairs[layer]
        torch.testing.assert_close((gradients.T @ keys).double(), expected.double(), rtol=1e-3, atol=1e-5)
        assert loss == pytest.approx(nll.mean().item(), rel=1e-4)


def test_an_untrained_mend_network_makes_a_gradient_step():
    network = Network(6, 4, layers=2, rank=3)
    network.scale[1] = torch.tensor([2.0, 0.5])
    keys, gradients = torch.randn(5, 6), torch.randn(5, 4)
    expected = -(gradients / 0.5).T @ (keys / 2.0)
    torch.testing.assert_close(network.update(1, keys, gradients), expected)


@pytest.mark.parametrize("architecture", QUICK_FIRST)
def test_mend_is_trained_and_then_edits(architecture, tmp_path):
    """Training lowers its loss, and the trained network's update makes the new objects more probable."""
    records = [replace(r, paraphrases=(r.request.text,), locality=(Probe("Peru is in", "Asia"),)) for r in RECORDS]
    model = random_model(architecture)
    model = Model.of("random", model.hf_model.float(), model.tokenizer)
    path = tmp_path / "mend.safetensors"
    losses = train(model, records, (1, 2), path, steps=30, batch_size=5, progress=False)
    assert load_file(path)["up.0.weight"].abs().max() > 0, "the network itself learns, not only the step sizes"
    assert sum(losses[-5:]) < sum(losses[:5])
    before = request_nll(model, REQUESTS).mean()
    edit_sequence(model, records, Mend("mend", (1, 2), str(path)), batch_size=5)
    assert request_nll(model, REQUESTS).mean() < before - 0.05
    with pytest.raises(ValueError, match=r"trained for layers \[1, 2\]"):
        Mend("mend", (0, 1), str(path)).prepare(model)
    with pytest.raises(FileNotFoundError, match="blue train-mend"):
        Mend("mend", (0, 1)).check(model)  # before any long work


@pytest.mark.parametrize(
    "constraint", [Sparsify(0.25, order="in_turn"), Damp(twice=False), Damp(), Sparsify(0.25, at_end=True)]
)
def test_constraints_act_at_their_moment(any_model, constraint):
    """The final weights are what the constraint makes of the batches' updates."""
    originals = {layer: any_model.weight(layer).clone() for layer in (0, 1, 2)}
    sums = {layer: torch.zeros_like(weight) for layer, weight in originals.items()}
    sparse = []

    def collect(number, result):
        for layer, update in result.updates.items():
            sums[layer] += update
            sparse.append((update != 0).float().mean().item())

    method = replace(editor(Ridge(1e-3), layers=(0, 1, 2)), constraint=constraint)
    method = replace(method, targets=replace(method.targets, learning_rate=5.0, clamp=5.0))
    run = edit_sequence(any_model, RECORDS, method, batch_size=3, after_batch=collect)
    for layer, original in originals.items():
        expected = original + constraint.total(sums[layer], original)
        if constraint.once:
            assert (constraint.total(sums[2], originals[2]) - sums[2]).abs().max() > 0.01
        torch.testing.assert_close(any_model.weight(layer), expected, rtol=1e-4, atol=1e-5)
    assert max(sparse) < 0.26 if constraint == Sparsify(0.25, order="in_turn") else max(sparse) > 0.9
    run.revert()


def test_rome_edits_one_at_a_time(any_model):
    before = weights_hash(any_model.hf_model)
    method = replace(editor(Equality(), DIRECT, layers=(1,)), max_batch=1)
    sizes = []
    run = edit_sequence(
        any_model,
        RECORDS,
        method,
        batch_size=3,
        after_batch=lambda i, r: sizes.append(torch.linalg.matrix_rank(r.updates[1].double(), rtol=1e-4)),
    )
    assert [int(rank) for rank in sizes] == [1] * 5
    assert [batch["edits"] for batch in run.batches] == [1] * 5
    run.revert()
    assert weights_hash(any_model.hf_model) == before


def test_pmet_optimises_the_mlps_output_and_measures_it(any_model):
    method = editor(Ridge(1e-4), DIRECT, layers=(2,))
    method = replace(method, targets=replace(method.targets, component="mlp"))
    outputs = []
    hook = any_model.part(2, "mlp").register_forward_hook(lambda m, args, output: outputs.append(output))
    any_model.hf_model(**any_model.tokenizer(RECORDS[0].request.text, return_tensors="pt"))
    hook.remove()
    seen = []

    class Spy(Ridge):
        def solve(self, state, keys, residuals):
            seen.append(residuals)
            return super().solve(state, keys, residuals)

    result = []
    edit_sequence(
        any_model,
        RECORDS[:1],
        replace(method, solver=Spy(1e-4)),
        batch_size=1,
        after_batch=lambda i, r: result.append(r),
    )
    targets = result[0].targets[2]
    assert (outputs[0][0].float() - targets.hidden[:, 0]).abs().amax(1).min() < 1e-4
    torch.testing.assert_close(seen[0], targets.deltas, rtol=1e-4, atol=1e-5)  # nothing else has changed since


def test_what_needs_a_composition_refuses_what_is_none():
    model = load_model("pocket-gpt2")
    assert get_composition("memit_blue", model).solver == get_editor("memit_blue", model).solver
    with pytest.raises(ValueError, match="ft is not a composition"):
        get_composition("ft", model)


def test_rome_without_whitening_needs_no_text(any_model, monkeypatch):
    """As published for Llama3: no second moment is measured, and no corpus need be named."""
    monkeypatch.setattr("bluelib.editing.editor.second_moments", None)
    plain = replace(editor(Equality(whitened=False), DIRECT, (1,)), corpus=None, max_batch=1, name="rome")
    run = edit_sequence(any_model, RECORDS[:2], plain, batch_size=1)
    assert "corpus" not in run.inputs
    assert run.weight_change()[1] > 0
    run.revert()
    size = Size.of(any_model)
    whitened = replace(plain, solver=Equality())
    assert plain.memory(size, 1).disk == 0 < whitened.memory(size, 1).disk
    with pytest.raises(ValueError, match="rome names no corpus"):
        whitened.prepare(any_model)
