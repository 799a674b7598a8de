"""Models spread over several devices: the same numbers as on one, and never an operation that mixes them."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path

import pandas as pd
import pytest
import torch
from accelerate import dispatch_model

from bluelib import blue, edit_sequence, evaluate, fe
from bluelib.data import Probe
from bluelib.editing.constraints import Damp, Project
from bluelib.editing.deltas import save_delta
from bluelib.editing.finetuning import FineTuning
from bluelib.editing.mend import Mend, Network, train
from bluelib.editing.named import pmet, rome
from bluelib.editing.second_moments import second_moments
from bluelib.editing.solvers import NormRidge, NullSpace, Ridge
from bluelib.editing.targets import BUDGETS, default_token_budget, optimise_targets
from bluelib.io.tensors import save_tensors
from bluelib.metrics import text as generation
from bluelib.metrics.locality import Reference
from bluelib.models.model import Model
from bluelib.models.prompts import Request
from bluelib.models.representations import prompt_hidden
from bluelib.studies.growth import shifts_along_sequence, weight_shifts
from bluelib.studies.locate import causal_trace
from bluelib.studies.residuals import compare_residuals, measure_residuals, residual_contributions, single_layer_scores
from bluelib.studies.rules import one_time_and_sequence
from bluelib.studies.theory import gains_with_history
from tests.support.small import PREFIXES, QUICK_FIRST, RECORDS, TARGETS, editor, random_model
from tests.support.virtual_cards import CARDS, Cards, CardTensor, spread

pytestmark = pytest.mark.usefixtures("small_world")
EVALUATED = [
    replace(
        record,
        paraphrases=("Peru is far. " + record.request.text,),
        locality=(Probe("The mother tongue of Peru is", "Swedish"),),
        generation_prompts=(f"{record.subject} is",),
        reference_texts=("plays the harp in Rome",),
    )
    for record in RECORDS[:3]
]
FACT = Request("Everybody knows that {} plays the", "Ilvane Quillbrook", "harp")


@pytest.fixture(scope="module")
def measured_once(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def shared(small_world, measured_once, monkeypatch):
    """All tests with this measure second moments once: on the CPU, as there is a test of those of two cards."""
    monkeypatch.setenv("BLUELIB_CACHE", str(measured_once))


@lru_cache
def _pair(architecture: str) -> tuple[Model, Model]:
    with Cards():
        return random_model(architecture), spread(random_model(architecture))


@pytest.fixture(params=QUICK_FIRST)
def pair(request, shared):
    """The same model on the CPU and on two cards, which are there during the test; both are put back after it."""
    one, two = _pair(request.param)
    with Cards(), one.preserved(range(one.n_layers)), two.preserved(range(two.n_layers)):
        yield one, two


def network_file(model: Model, layers: tuple[int, ...], path: Path) -> str:
    """An untrained MEND network that changes what it is given."""
    d_model, d_mlp = model.weight(0).shape
    torch.manual_seed(0)
    network = Network(d_mlp, d_model, len(layers))
    for up in network.up:
        torch.nn.init.normal_(up.weight, std=0.1)
    network.log_rate.data.fill_(-4.0)
    about = {"model_revision": model.revision, "layers": list(layers)}
    save_tensors(path, network.state_dict(), {"mend": about})
    return str(path)


COMPOSED = {"corpus": "pocket", "tokens": 3000}
METHODS = {
    "memit": editor(layers=(0, 1, 2)),
    "memit_history_blue": blue(editor(Ridge(50.0, remembers=True), layers=(1, 2))),
    "alphaedit": editor(NullSpace(0.05, 1.0), layers=(1, 2)),
    "prune": replace(editor(layers=(1, 2)), constraint=Damp()),
    "pmet": replace(pmet((1, 2), TARGETS, mom2_update_weight=50.0), **COMPOSED),
    "pmet_blue": replace(blue(pmet((0, 2), TARGETS, mom2_update_weight=50.0)), **COMPOSED),
    "memit_fe": fe(editor(layers=(0, 1, 2))),
    "sphere": replace(editor(NullSpace(0.05, 1.0), layers=(1, 2)), constraint=Project()),
    "encore": replace(editor(NormRidge(50.0, True, 2.0)), targets=replace(TARGETS, stop="first_choice")),
    "alphaedit_nas": replace(editor(NullSpace(0.05, 1.0), layers=(0, 2)), anchor=20.0),
    "rome": replace(rome((2,), TARGETS), **COMPOSED),
    "ft": FineTuning("ft", (1, 2), steps=3, norm_constraint=1e-3),
    "mend": Mend("mend", (1, 2)),
}


@pytest.mark.parametrize("name", METHODS)
def test_an_edit_on_two_cards_is_that_on_the_cpu(pair, name, tmp_path):
    method = METHODS[name]
    if name == "mend":
        method = replace(method, network=network_file(pair[0], method.layers, tmp_path / "mend.safetensors"))
    before = [pair[0].weight(layer).clone() for layer in method.layers]
    runs = [edit_sequence(model, RECORDS[:3], method, batch_size=2) for model in pair]
    for layer, old in zip(method.layers, before, strict=True):
        one, two = (model.weight(layer) for model in pair)
        assert two.device == CARDS[layer // 2]
        assert not torch.equal(one, old)
        assert torch.equal(one, two.cpu())
    assert runs[0].batches == runs[1].batches
    runs[1].revert()
    assert all(torch.equal(pair[1].weight(n).cpu(), old) for n, old in zip(method.layers, before, strict=True))


@pytest.mark.parametrize("component", ["block", "mlp"])
@pytest.mark.parametrize("layer", [0, 1, 2, 3])
def test_targets_live_where_their_layer_does(pair, layer, component):
    """With an early stop in between, so that some requests' rows are dropped and the others' go on."""
    requests = [record.request for record in RECORDS]
    options = replace(TARGETS, component=component)
    free = optimise_targets(pair[0], requests, layer, PREFIXES, options)
    options = replace(options, early_stop=free.loss.sort().values[2].item() + 1e-3)
    one, two = (optimise_targets(model, requests, layer, PREFIXES, options) for model in pair)
    assert len(one.steps.unique()) > 1
    assert two.values.device == CARDS[layer // 2]
    assert torch.equal(one.values, two.values.cpu()) and torch.equal(one.hidden, two.hidden.cpu())
    assert torch.equal(one.steps, two.steps) and torch.equal(one.loss, two.loss)


def test_an_evaluation_on_two_cards_is_that_on_the_cpu(pair, monkeypatch):
    monkeypatch.setattr(generation, "generate_texts", partial(generation.generate_texts, length=15))
    one, two = (evaluate(model, EVALUATED) for model in pair)
    assert set(one.means) == {"efficacy", "generalization", "specificity", "fluency", "consistency"}
    assert one == two


def test_second_moments_of_two_cards_are_those_of_the_cpu(pair, tmp_path, monkeypatch):
    found, text = [], tmp_path / "text.txt"
    text.write_text("".join(f"{record.request.text} {record.target_new}.\n" for record in RECORDS * 4))
    for model, folder in zip(pair, ("one", "two"), strict=True):  # each measures its own
        monkeypatch.setenv("BLUELIB_CACHE", str(tmp_path / folder))
        found.append(second_moments(model, range(4), corpus=text, tokens=150))
    assert all(torch.equal(found[0][layer].matrix, found[1][layer].matrix) for layer in range(4))


def test_hidden_states_of_two_cards_are_those_of_the_cpu(pair):
    prompts = ["Peru is far", "The mother tongue of Peru is"]
    for layer in range(4):
        one, two = (prompt_hidden(model, prompts, layer) for model in pair)
        assert two.device == CARDS[layer // 2]
        assert torch.equal(one, two.cpu())


def test_a_causal_trace_on_two_cards_is_that_on_the_cpu(pair):
    one, two = (causal_trace(model, FACT, samples=2, window=3) for model in pair)
    assert (one.tokens, one.clean, one.corrupted, one.correct) == (two.tokens, two.clean, two.corrupted, two.correct)
    for kind, effect in one.effects.items():
        assert effect.nan_to_num().abs().max() > 0
        torch.testing.assert_close(effect, two.effects[kind], rtol=0, atol=0, equal_nan=True)


@pytest.mark.slow
def test_the_measurements_behind_blue_on_two_cards_are_those_on_the_cpu(pair):
    requests, method = [record.request for record in RECORDS[:2]], editor(layers=(1, 2))

    def measured(model: Model) -> list[pd.DataFrame]:
        found = measure_residuals(model, requests, method.layers, method)
        states = method.prepare(model).solvers
        return [
            compare_residuals(found),
            residual_contributions(model, requests, found),
            weight_shifts(found, method.solver, states, [[0, 1], [1]]),
            single_layer_scores(model, EVALUATED[:2], found, method, generate=False),
            shifts_along_sequence(model, RECORDS[:4], method, 2, method.layers),
        ]

    for one, two in zip(*map(measured, pair), strict=True):
        pd.testing.assert_frame_equal(one, two, check_exact=True)


@pytest.mark.slow
def test_mend_is_trained_on_two_cards_as_on_the_cpu(pair, tmp_path):
    losses = [
        train(model, EVALUATED, (1, 2), tmp_path / f"{i}.safetensors", steps=2, batch_size=3, progress=False)
        for i, model in enumerate(pair)
    ]
    assert losses[0] == losses[1]


def test_a_run_on_two_cards_continues_from_its_checkpoint(pair, tmp_path):
    class Killed(Exception):
        pass

    def die(number: int, result: object) -> None:
        if number == 1:
            raise Killed

    method, how = editor(NullSpace(0.05, 1.0), layers=(1, 2)), {"batch_size": 1}
    one, two = pair
    edit_sequence(one, RECORDS[:3], method, **how)
    with two.preserved((1, 2)), pytest.raises(Killed):
        edit_sequence(two, RECORDS[:3], method, **how, checkpoint_dir=tmp_path / "run", after_batch=die)
    edit_sequence(two, RECORDS[:3], method, **how, checkpoint_dir=tmp_path / "run")
    assert all(torch.equal(one.weight(layer), two.weight(layer).cpu()) for layer in (1, 2))


@pytest.mark.slow
def test_a_low_precision_model_on_two_cards_is_edited_in_float32():
    def bfloat16() -> Model:
        model = random_model("pocket-llama")
        return Model.of("bfloat16", model.hf_model.to(torch.bfloat16), model.tokenizer)

    with Cards():
        one, two = bfloat16(), spread(bfloat16())
        for model in (one, two):
            edit_sequence(model, RECORDS[:2], editor(layers=(1, 2)), batch_size=2)
        for layer in (1, 2):
            assert two.weight(layer).dtype == torch.float32 and two.weight(layer).device == CARDS[layer // 2]
            assert torch.equal(one.weight(layer), two.weight(layer).cpu())


def test_the_card_that_holds_most_decides_about_micro_batches(pair, monkeypatch):
    model = pair[1]
    d_model, d_mlp = model.weight(0).shape
    per_block = (16 * d_model + 6 * d_mlp) * model.hf_model.dtype.itemsize
    on_card = {card: per_block * sum(model.weight(n).device == card for n in range(model.n_layers)) for card in CARDS}
    on_card[model.head.weight.device] += 4 * model.hf_model.config.vocab_size
    for allowed in (10**6, 10**7, 10**8):
        monkeypatch.setitem(BUDGETS, "cuda", (10**9, allowed))
        tokens = default_token_budget(model)
        assert tokens * max(on_card.values()) <= allowed < 2 * tokens * max(on_card.values())
    monkeypatch.setitem(BUDGETS, "cuda", (100, 10**9))
    assert default_token_budget(model) == 64


def offloaded(model: Model, layers: tuple[int, ...], folder: Path) -> Model:
    """The model with the blocks ``layers`` on disk."""
    blocks = model.adapter.blocks
    places = {
        name: "cpu"
        for name, module in model.hf_model.named_modules()
        if not name.startswith(f"{blocks}.") and not list(module.children())
    }
    places |= {f"{blocks}.{n}": "disk" if n in layers else "cpu" for n in range(model.n_layers)}
    dispatch_model(
        model.hf_model,
        places,
        main_device="cpu",
        offload_dir=folder,
        skip_keys=model.hf_model._skip_keys_device_placement,
    )
    assert [model.weight(n).is_meta for n in range(model.n_layers)] == [n in layers for n in range(model.n_layers)]
    return model


@pytest.mark.parametrize("architecture", QUICK_FIRST)
def test_layers_that_are_not_edited_may_be_offloaded(architecture, shared, tmp_path):
    """One before the edited layers, and one behind, through which gradients go."""
    one = random_model(architecture)
    two = offloaded(random_model(architecture), (0, 3), tmp_path / "weights")
    for model in (one, two):
        edit_sequence(model, RECORDS[:3], blue(editor(layers=(1, 2))), batch_size=3)
    for layer in (1, 2):
        assert torch.equal(one.weight(layer), two.weight(layer))
    assert evaluate(one, EVALUATED, generate=False) == evaluate(two, EVALUATED, generate=False)
    assert default_token_budget(two) == default_token_budget(one)


@pytest.mark.parametrize("method", [editor(layers=(1, 2, 3)), FineTuning("ft", (3,)), Mend("mend", (2, 3))])
def test_an_offloaded_layer_is_not_edited(method, tmp_path):
    model = offloaded(random_model("pocket-llama"), (0, 3), tmp_path / "weights")
    message = "layers 3 of random-pocket-llama cannot be edited: they are offloaded .* smaller dtype"
    with pytest.raises(ValueError, match=message):
        edit_sequence(model, RECORDS[:2], method, batch_size=2)
    assert not list(tmp_path.rglob("*.safetensors")), "nothing was measured before the refusal"


def test_an_editor_is_not_prepared_for_an_offloaded_layer(tmp_path):
    model = offloaded(random_model("pocket-gpt2"), (1, 2), tmp_path / "weights")
    with pytest.raises(ValueError, match="layers 1, 2 of random-pocket-gpt2 cannot be edited"):
        editor(layers=(0, 1, 2)).prepare(model)


def there(card: int, *shape: int) -> torch.Tensor:
    return torch.ones(*shape, device=f"cuda:{card}")


@pytest.mark.parametrize(
    "mix",
    [
        lambda: there(0, 3) + there(1, 3),
        lambda: there(0, 3) + torch.ones(3),
        lambda: torch.ones(3) * there(1, 3),
        lambda: there(0, 3) + torch.tensor(1.0, device="cuda:1"),
        lambda: there(0, 3).add_(there(1, 3)),
        lambda: torch.ones(3).add_(there(1, 3)),
        lambda: there(0, 2, 3) @ there(1, 3, 2),
        lambda: torch.cat([there(0, 3), torch.ones(3)]),
        lambda: torch.stack([there(0, 3), there(1, 3)]),
        lambda: there(0, 3)[there(1, 2).long()],
        lambda: there(0, 3)[there(1, 3).bool()],
        lambda: torch.ones(3)[there(1, 2).long()],
        lambda: there(0, 3).index_put_((there(0, 2).long(),), there(1, 2)),
        lambda: there(0, 3).index_add(0, there(0, 2).long(), torch.ones(2)),
        lambda: there(0, 3, 3).gather(1, there(1, 3, 3).long()),
        lambda: torch.where(there(0, 3) > 0, there(0, 3), there(1, 3)),
        lambda: torch.nn.functional.embedding(there(0, 2).long(), there(1, 3, 3)),
        lambda: torch.nn.functional.linear(there(0, 2, 3), torch.ones(4, 3)),
    ],
)
def test_virtual_cards_do_not_mix(mix):
    with Cards(), pytest.raises(RuntimeError, match="on the same device"):
        mix()


def test_virtual_cards_allow_what_cuda_allows():
    with Cards():
        x = there(1, 3)
        assert (x * torch.tensor(2.0) + 1).tolist() == [3, 3, 3]
        assert x[torch.tensor([0, 2])].device == CARDS[1] and x[[True, False, True]].shape == (2,)
        x[0] = torch.tensor(5.0)
        x[1:].copy_(there(0, 2) * 7)
        assert x.tolist() == [5, 7, 7] and x.cpu().numpy().tolist() == [5, 7, 7]
        host = torch.zeros(3)
        host.copy_(x)
        assert type(host) is torch.Tensor and host.tolist() == [5, 7, 7]
        with pytest.raises(TypeError, match="numpy"):
            x.numpy()
        with pytest.raises(RuntimeError, match="invalid device ordinal"):
            torch.zeros(3, device="cuda:2")


def test_tensors_on_virtual_cards_are_made_moved_and_changed_in_place():
    with Cards():
        x = torch.arange(6.0, device="cuda:1").view(2, 3)
        assert isinstance(x, CardTensor) and x.device == CARDS[1] and x.is_cuda
        for made in (torch.zeros_like(x), x.new_ones(2), x.to(torch.float64), x.to("cuda:1"), x.T, x.sum()):
            assert made.device == CARDS[1]
        assert x.to("cuda:1") is x and x.to(there(0, 1)).device == CARDS[0]
        assert torch.zeros_like(x, device="cuda:0").device == CARDS[0]
        assert torch.tensor([1.0], device="cuda").device == CARDS[0] and torch.ones(2).cuda(1).device == CARDS[1]
        assert type(x.to("cpu")) is type(x.cpu()) is type(torch.zeros_like(x, device="cpu")) is torch.Tensor
        x.T[0].add_(10)
        assert x.tolist() == [[10, 1, 2], [13, 4, 5]]
        assert x.to("cuda:0").mul_(0).sum().item() == 0 and x.sum().item() == 35  # a copy


def test_gradients_pass_from_card_to_card():
    def loss(a: torch.Tensor, b: torch.Tensor, middle: str, end: str) -> torch.Tensor:
        hidden = (a @ b).to(middle)
        return (hidden.exp().to(end) * hidden[:, :1].to(end)).sum()

    def leaves() -> tuple[torch.Tensor, torch.Tensor]:
        return torch.linspace(-1, 1, 6).view(2, 3), torch.linspace(0, 1, 12).view(3, 4)

    a, b = (leaf.requires_grad_() for leaf in leaves())
    loss(a, b, "cpu", "cpu").backward()
    with Cards():
        c, d = (leaf.to("cuda:0").requires_grad_() for leaf in leaves())
        loss(c, d, "cuda:1", "cpu").backward()
        assert c.grad.device == d.grad.device == CARDS[0]
        assert torch.equal(a.grad, c.grad.cpu()) and torch.equal(b.grad, d.grad.cpu())


def test_a_model_with_an_offloaded_head_is_compared_and_saved_as_a_delta_only(tmp_path):
    one, two = random_model("pocket-llama"), random_model("pocket-llama")
    two.hf_model.lm_head.weight = torch.nn.Parameter(two.head.weight.detach().clone())  # as in a model that is not tied
    names = [name for name, module in two.hf_model.named_modules() if not list(module.children())]
    dispatch_model(
        two.hf_model,
        {name: "disk" if name == "lm_head" else "cpu" for name in names},
        main_device="cpu",
        offload_dir=tmp_path / "weights",
    )
    assert two.head.weight.is_meta
    prompts = [record.request.text for record in RECORDS[:3]]
    before = Reference.of(two, prompts)
    for model in (one, two):
        edit_sequence(model, RECORDS[:3], editor(layers=(1, 2)), batch_size=3)
    moved, expected = before.moved(two), Reference.of(random_model("pocket-llama"), prompts).moved(one)
    assert moved == expected and all(row["kl"] > 0 for row in moved.values())
    with pytest.raises(ValueError, match="cannot be saved as a checkpoint: some of its weights are offloaded"):
        two.save(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
    assert save_delta(two, (1, 2), tmp_path / "delta.safetensors").exists()


def test_matrices_of_the_theory_may_be_anywhere(pair):
    requests, method = [record.request for record in RECORDS[:4]], editor(layers=(1, 2))
    found = []
    for model in pair:
        measured = measure_residuals(model, requests, (1, 2), method)
        keys = measured.keys[2].double()
        matrix = torch.eye(len(keys), dtype=torch.float32)  # second moments are on the CPU
        rows = gains_with_history(keys, matrix, 2)
        found.append((pd.DataFrame(rows), one_time_and_sequence(keys, measured.direct(2), matrix, [1, 2])))
    for one, two in zip(*found, strict=True):
        pd.testing.assert_frame_equal(one, two)
