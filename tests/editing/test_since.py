"""The methods since: each against the dense formula of its paper, in float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bluelib import edit_sequence, load_dataset, load_model
from bluelib.editing.constraints import Project
from bluelib.editing.editor import Editor, blue, fe
from bluelib.editing.named import get_editor
from bluelib.editing.residuals import DIRECT, DISTRIBUTED, DISTRIBUTED_SQRT, REPLAYED, Weighted
from bluelib.editing.second_moments import second_moments
from bluelib.editing.solvers import Equality, LeakyNullSpace, NormRidge, NullSpace, Ridge, SolverError
from bluelib.editing.targets import TargetOptions, optimise_targets
from bluelib.models.prompts import locate
from bluelib.models.representations import replayed_hidden, subject_hidden, subject_keys
from bluelib.studies.theory import weight_shift

D_MODEL, D_MLP, U = 5, 12, 4
OPTIONS = TargetOptions(steps=4, learning_rate=4.0, clamp=1.0)


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def moment(seed: int, rank: int = D_MLP) -> torch.Tensor:
    old = draw(seed, D_MLP, 40)
    old[rank:] = 0.0
    old = torch.linalg.qr(draw(seed + 1, D_MLP, D_MLP)).Q @ old
    return old @ old.T / old.shape[1]


def editor(**parts) -> Editor:
    given = {"layers": (0, 1, 3), "residual": DISTRIBUTED, "solver": Ridge(50.0), "targets": OPTIONS}
    return Editor(**{**given, "corpus": "pocket", "tokens": 3000, **parts})


# solvers


@pytest.mark.parametrize("norm_weight", [0.0, 0.3, 1e3])
def test_encore_solves_its_published_form_over_a_sequence(norm_weight):
    """Δ = R Kᵀ (λC + λ_n I + K_pK_pᵀ + KKᵀ)⁻¹ (arXiv:2502.01636)."""
    c, solver = moment(1), NormRidge(2.0, remembers=True, norm_weight=norm_weight)
    state, earlier = solver.prepare(c), torch.zeros(D_MLP, D_MLP, dtype=torch.float64)
    for seed in range(3):
        k, r = draw(seed + 10, D_MLP, U), draw(seed + 20, D_MODEL, U)
        dense = 2.0 * c + norm_weight * torch.eye(D_MLP, dtype=torch.float64) + earlier + k @ k.T
        torch.testing.assert_close(solver.solve(state, k, r), r @ k.T @ torch.linalg.inv(dense), rtol=1e-9, atol=1e-11)
        state, earlier = solver.remember(state, k), earlier + k @ k.T
    if norm_weight == 0.0:
        plain = Ridge(2.0, remembers=True)
        assert torch.equal(solver.solve(solver.prepare(c), k, r), plain.solve(plain.prepare(c), k, r))


@pytest.mark.parametrize("leak", [0.0, 0.5, 20.0])
def test_betaedit_solves_its_published_form_over_a_sequence(leak):
    """Δ = R KᵀP [(K_pK_pᵀ + KKᵀ + λ₁C) P + λ₂I]⁻¹ (arXiv:2605.09285), with the dense projector."""
    c = moment(2)
    threshold = torch.linalg.eigvalsh(c)[6].item() + 1e-9
    solver = LeakyNullSpace(threshold, l2=0.7, leak=leak)
    state, earlier = solver.prepare(c), torch.zeros(D_MLP, D_MLP, dtype=torch.float64)
    values, vectors = torch.linalg.eigh(c)
    p = vectors[:, values < threshold] @ vectors[:, values < threshold].T
    assert round(p.trace().item()) == 7
    for seed in range(3):
        k, r = draw(seed + 10, D_MLP, U), draw(seed + 20, D_MODEL, U)
        dense = (earlier + k @ k.T + leak * c) @ p + 0.7 * torch.eye(D_MLP, dtype=torch.float64)
        torch.testing.assert_close(
            solver.solve(state, k, r), r @ k.T @ p @ torch.linalg.inv(dense), rtol=1e-8, atol=1e-10
        )
        state, earlier = solver.remember(state, k), earlier + k @ k.T
    if leak == 0.0:
        plain = NullSpace(threshold, 0.7)
        torch.testing.assert_close(
            solver.solve(solver.prepare(c), k, r), plain.solve(plain.prepare(c), k, r), rtol=1e-12, atol=1e-14
        )


def test_emmet_reaches_every_residual_of_a_batch():
    c, k, r = moment(3), draw(4, D_MLP, U), draw(5, D_MODEL, U)
    solver = Equality()
    delta = solver.solve(solver.prepare(c), k, r)
    inverse = torch.linalg.inv(c)
    torch.testing.assert_close(delta, r @ torch.linalg.inv(k.T @ inverse @ k) @ k.T @ inverse, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(delta @ k, r, rtol=1e-9, atol=1e-10)


@given(seed=st.integers(0, 10**6), sizes=st.lists(st.integers(1, 6), min_size=2, max_size=4))
@settings(max_examples=40, deadline=None)
def test_batches_of_memit_with_history_equal_one_batch_if_keys_stay(seed, sizes):
    """arXiv:2605.26670: with λC + K_pK_pᵀ + KKᵀ and R measured against W as it stands, a sequence is one batch. Plain
    MEMIT's, which forgets earlier keys, is not."""
    c, weight = moment(seed), draw(seed + 2, D_MODEL, D_MLP)
    keys, values = draw(seed + 3, D_MLP, sum(sizes)), draw(seed + 4, D_MODEL, sum(sizes))
    keys += 3 * draw(seed + 5, D_MLP, 1)  # with much in common: where keys are unrelated, there is nothing to forget
    ends = {}
    for remembers in (True, False):
        solver = Ridge(1.5, remembers=remembers)
        state, now = solver.prepare(c), weight.clone()
        for k, v in zip(keys.split(sizes, 1), values.split(sizes, 1), strict=True):
            now = now + solver.solve(state, k, v - now @ k)
            state = solver.remember(state, k)
        whole = weight + solver.solve(solver.prepare(c), keys, values - weight @ keys)
        ends[remembers] = ((now - whole).norm() / (whole - weight).norm()).item()
    assert ends[True] < 1e-10 < 1e-3 < ends[False]


# constraint


@pytest.mark.parametrize(("share", "strength"), [(0.5, 0.5), (0.01, 1.0), (1.0, 0.3)])
def test_sphere_projects_out_the_principal_directions_of_the_weights(share, strength):
    weight, delta = draw(1, D_MODEL, D_MLP) * draw(2, D_MODEL, 1).exp(), draw(3, D_MODEL, D_MLP)
    rows = weight / weight.norm(dim=1, keepdim=True)
    values, vectors = torch.linalg.eigh(rows.T @ rows / D_MODEL)
    values, vectors = values.flip(0), vectors.flip(1)
    # The fewest directions that hold more than the share; all of them, where there are none.
    taken = next((n for n in range(1, D_MODEL) if values[:n].sum() > share * values.sum()), D_MODEL)
    u = vectors[:, :taken]
    dense = delta @ (torch.eye(D_MLP, dtype=torch.float64) - strength * u @ u.T)
    found = Project(share, strength).batch(delta, weight)
    torch.testing.assert_close(found, dense, rtol=1e-9, atol=1e-10)
    if strength == 1.0:
        assert (found @ u).abs().max() < 1e-10


@pytest.mark.parametrize(
    ("settings_of_it", "message"),
    [
        ({"share": 0}, "share must be"),
        ({"share": 1.5}, r"share must be in \(0, 1\], not 1.5"),
        ({"strength": 2}, r"strength must be in \(0, 1\], not 2"),
        ({"order": "last"}, "order must be in_turn or restored, not 'last'"),
    ],
)
def test_sphere_refuses_what_is_out_of_range(settings_of_it, message):
    with pytest.raises(ValueError, match=message):
        Project(**settings_of_it)


def test_sphere_s_order_decides_which_layers_are_solved_for(any_model):
    records = load_dataset("pocket-counterfact", split="tune", limit=2)
    ends = {}
    for order in ("in_turn", "restored"):
        run = edit_sequence(
            any_model, records, editor(constraint=Project(strength=1.0, order=order)), batch_size=2, progress=False
        )
        ends[order] = {layer: any_model.weight(layer).clone() for layer in (0, 3)}
        run.revert()
    torch.testing.assert_close(ends["in_turn"][0], ends["restored"][0], rtol=1e-4, atol=1e-6)
    assert not torch.allclose(ends["in_turn"][3], ends["restored"][3], rtol=1e-3, atol=1e-6)


def test_a_restored_sphere_projects_on_the_weights_before_the_batch(any_model):
    records = load_dataset("pocket-counterfact", split="tune", limit=2)
    requests = [record.request for record in records]
    whole = editor()
    before = {layer: any_model.weight(layer).clone() for layer in whole.layers}
    with any_model.preserved(whole.layers):
        state = whole.prepare(any_model)
        updates = {}
        for step in whole.steps(any_model, requests, state):
            updates[step.layer] = step.update.clone()
        # Walking the layers has applied each whole update in turn.
    run = edit_sequence(
        any_model, records, editor(constraint=Project(0.5, 0.7, "restored")), batch_size=2, progress=False
    )
    for layer, weight in before.items():
        expected = weight + Project(0.5, 0.7).batch(updates[layer], weight)
        torch.testing.assert_close(any_model.weight(layer), expected, rtol=1e-5, atol=1e-7)
    run.revert()


# residuals


@pytest.mark.parametrize("layers", [(0, 1, 3), (0, 1, 2, 3), (2,)])
def test_equal_weights_of_cake_are_memit_to_the_bit(any_model, layers):
    records = load_dataset("pocket-counterfact", split="tune", limit=2)
    ends = []
    for residual in (DISTRIBUTED, Weighted.of([0.37] * len(layers), 0.1)):
        run = edit_sequence(any_model, records, editor(residual=residual, layers=layers), batch_size=2, progress=False)
        ends.append([any_model.weight(layer).clone() for layer in layers])
        run.revert()
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_cake_s_shares_are_those_of_its_formula():
    scores = [0.11, 0.2, 0.31, 0.4, 0.52]
    w = torch.tensor(scores, dtype=torch.float64).div(0.1).exp()
    residual = Weighted.of(scores, 0.1)
    for position in range(5):
        share = (w[position] / w[position:].sum()).item()
        assert 1 / residual.divisor(5 - position) == pytest.approx(share, rel=1e-12)
    assert residual.divisor(1) == 1.0


def test_cake_refuses_weights_that_do_not_fit():
    with pytest.raises(
        ValueError, match=r"weighted residuals need a weight \(layer_scores\) for each of 3 layers, .* not 2"
    ):
        editor(residual=Weighted.of([0.1, 0.2], 0.1))
    with pytest.raises(ValueError, match="temperature"):
        Weighted.of([0.1, 0.2], 0.0)
    with pytest.raises(ValueError, match="a layer's score must be a finite number, not nan"):
        Weighted.of([0.1, float("nan")], 0.1)
    with pytest.raises(ValueError, match=r"scores \[0, 100\] are too far apart for a temperature of 0\.1"):
        Weighted.of([0, 100], 0.1)
    with pytest.raises(ValueError, match=r"layer_scores must be a list of numbers, one per layer, not 0\.3"):
        Weighted.of(0.3, 0.1)


def test_replayed_states_are_those_of_a_forward_pass_with_the_target_in_place(any_model):
    """One request at a time, the whole bare prompt, a hook of this test's own."""
    records = load_dataset("pocket-counterfact", split="tune", limit=3)
    requests = [record.request for record in records]
    values = subject_hidden(any_model, requests, 1) + 3.0 * draw(0, any_model.weight(0).shape[0], 3).float()
    found = replayed_hidden(any_model, requests, 1, values, [2, 3])
    for column, request in enumerate(requests):
        place = locate(any_model.tokenizer, request.prompt, request.subject)
        last, caught = place.subject_last, {}

        def put(module, args, output, last=last, column=column):
            hidden = (output[0] if isinstance(output, tuple) else output).clone()
            hidden[0, last] = values[:, column]
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        def read(layer, caught=caught, last=last):
            def hook(module, args, output):
                caught[layer] = (output[0] if isinstance(output, tuple) else output)[0, last]

            return hook

        handles = [any_model.blocks[1].register_forward_hook(put)]
        handles += [any_model.blocks[layer].register_forward_hook(read(layer)) for layer in (2, 3)]
        with torch.no_grad():
            any_model.hf_model(torch.tensor([place.ids]))
        for handle in handles:
            handle.remove()
        for layer in (2, 3):
            torch.testing.assert_close(found[layer][:, column], caught[layer].float(), rtol=1e-4, atol=1e-4)


def test_fe_measures_each_layer_anew_and_divides_by_nothing(any_model):
    """Steps against the same, written out: z_f at the first layer, replayed before any update, R^l = z_l − h_l now."""
    requests = [record.request for record in load_dataset("pocket-counterfact", split="tune", limit=2)]
    method = fe(editor())
    assert (method.name, method.layers, method.residual) == ("custom_fe", (0, 1, 3), REPLAYED)
    state = method.prepare(any_model)
    first = optimise_targets(any_model, requests, 0, state.prefixes, OPTIONS)
    goals = {0: first.values, **replayed_hidden(any_model, requests, 0, first.values, [1, 3])}
    with any_model.preserved([0, 1, 3]):
        sites = []
        for step in method.steps(any_model, requests, state):
            torch.testing.assert_close(
                step.missing, goals[step.layer] - subject_hidden(any_model, requests, step.layer)
            )
            assert step.divisor == 1
            sites.append(step.at)
            expected = method.solver.solve(state.solvers[step.layer], step.keys, step.missing)
            torch.testing.assert_close(step.update.double(), expected, rtol=1e-5, atol=1e-8)
        assert sites == [0, 0, 0]


def test_fe_of_one_layer_is_blue_s_direct_residual(any_model):
    records = load_dataset("pocket-counterfact", split="tune", limit=2)
    ends = []
    for method in (fe(editor(layers=(2,))), replace(blue(editor(layers=(2, 3))), layers=(2,))):
        run = edit_sequence(any_model, records, method, batch_size=2, progress=False)
        ends.append(any_model.weight(2).clone())
        run.revert()
    assert torch.equal(*ends)


def test_fe_has_no_targets_of_an_mlp():
    with pytest.raises(ValueError, match="targets of its mlp cannot be replayed"):
        fe(editor(targets=replace(OPTIONS, component="mlp")))


# EMMET


def test_emmet_names_what_it_cannot_reach(any_model):
    """Two edits of one subject have one key."""
    (record,) = load_dataset("pocket-counterfact", split="tune", limit=1)
    twice = [
        replace(record, prompt="{} plays the"),
        replace(record, case_id="b", prompt="{} was born in", relation="b"),
    ]
    with pytest.raises(SolverError, match="if two have the same key, as edits of one subject do"):
        edit_sequence(any_model, twice, editor(layers=(2,), solver=Equality()), batch_size=2, progress=False)
    edit_sequence(any_model, twice, editor(layers=(2,), solver=Equality()), batch_size=1, progress=False).revert()


# targets


def test_a_target_is_said_behind_every_prefix_before_it_stops():
    model = load_model("pocket-llama")
    prefixes = ("", "Peru is far. ", "The weather is bad today. ")
    requests = [record.request for record in load_dataset("pocket-counterfact", split="tune", limit=6)]
    long = TargetOptions(steps=25, learning_rate=8.0, clamp=1.5, early_stop=0.0, stop="first_choice")
    found = optimise_targets(model, requests, 2, prefixes, long)
    bare = optimise_targets(model, requests, 2, ("",), long)
    ended = [i for i in range(6) if found.steps[i] < 25]
    assert ended and (found.steps > bare.steps).any()
    for i in ended:
        for prefix in prefixes:
            assert first_choice(model, requests[i], found.values[:, i], prefix)


def test_encore_s_targets_end_when_the_new_object_is_the_first_choice():
    model = load_model("pocket-llama")
    requests = [record.request for record in load_dataset("pocket-counterfact", split="tune", limit=4)]
    long = TargetOptions(steps=25, learning_rate=8.0, clamp=1.5, early_stop=0.0)
    plain = optimise_targets(model, requests, 2, ("",), long)
    stopped = optimise_targets(model, requests, 2, ("",), replace(long, stop="first_choice"))
    assert plain.steps.tolist() == [25] * 4 and (stopped.steps < 25).any()
    for i, request in enumerate(requests):  # the step before was not enough
        steps = int(stopped.steps[i])
        if steps == 25:
            continue
        alone = optimise_targets(model, [request], 2, ("",), replace(long, steps=steps, stop="first_choice"))
        torch.testing.assert_close(alone.values[:, 0], stopped.values[:, i], rtol=1e-3, atol=1e-3)
        assert first_choice(model, request, alone.values[:, 0])
        if steps > 1:
            before = optimise_targets(model, [request], 2, ("",), replace(long, steps=steps - 1))
            assert not first_choice(model, request, before.values[:, 0])
    with pytest.raises(ValueError, match="stop must be loss or first_choice, not 'soon'"):
        TargetOptions(stop="soon")


def first_choice(model, request, value, prefix="") -> bool:
    """Whether the target's tokens are each the most probable one with h's move to ``value`` made behind a prefix."""
    from bluelib.models.prompts import encode_answer

    place = locate(model.tokenizer, request.prompt, request.subject, prefix)
    target = encode_answer(model.tokenizer, request.text, request.target, request.separator)
    delta = value - subject_hidden(model, [request], 2)[:, 0]

    def put(module, args, output):
        hidden = (output[0] if isinstance(output, tuple) else output).clone()
        hidden[0, place.subject_last] += delta
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    handle = model.blocks[2].register_forward_hook(put)
    with torch.no_grad():
        logits = model.hf_model(torch.tensor([place.ids + target[:-1]])).logits[0]
    handle.remove()
    return logits[len(place.ids) - 1 :].argmax(-1).tolist() == list(target)


def test_named_methods_are_the_compositions_they_say(any_model):
    own = {"nullspace_threshold": 0.5, "l2": 1.0, "layers": [0, 1, 2, 3]}
    assert get_editor("sphere", any_model, **own).constraint == Project(0.5, 0.5, "in_turn")
    assert get_editor("betaedit", any_model, **own, leak=2.0).solver == LeakyNullSpace(0.5, 1.0, 2.0)
    encore = get_editor("encore", any_model, mom2_update_weight=3.0, norm_weight=2.0, layers=[1, 2])
    assert encore.solver == NormRidge(3.0, True, 2.0) and encore.targets.stop == "first_choice"
    assert get_editor("emmet", any_model, layers=[1]).solver == Equality()
    cake = get_editor("memit_cake", any_model, mom2_update_weight=3.0, layer_scores=[0.1, 0.3], layers=[1, 2])
    assert cake.residual == Weighted.of([0.1, 0.3], 0.1)


# theory


SCORES = [0.1, 0.3, 0.2]
RULES = {
    "memit": DISTRIBUTED,
    "pmet": DISTRIBUTED_SQRT,
    "cake": Weighted.of(SCORES, 0.1),
    "blue": DIRECT,
    "fe": REPLAYED,
}


def share(kind: str, position: int) -> float:
    """η of the layer at a position of three, from each paper's formula."""
    remaining = 3 - position
    w = torch.tensor(SCORES, dtype=torch.float64).div(0.1).exp()
    return {"memit": 1 / remaining, "pmet": remaining**-0.5, "cake": (w[position] / w[position:].sum()).item()}.get(
        kind, 1.0
    )


@pytest.mark.parametrize("kind", RULES)
def test_an_update_is_the_direct_one_less_the_error_of_its_shares(any_model, kind):
    """E = (R* − η R) Q is what the direct edit of a layer and the rule's differ by. Q is dense, η the paper's, R measured
    here: at the last layer, or, for FE, at the layer itself with its target replayed before any update."""
    requests = [record.request for record in load_dataset("pocket-counterfact", split="tune", limit=3)]
    method = editor(residual=RULES[kind])
    first, *_, last = method.layers
    state = method.prepare(any_model)
    moments = second_moments(any_model, method.layers, corpus="pocket", tokens=3000)
    at = first if kind == "fe" else last
    target = optimise_targets(any_model, requests, at, state.prefixes, OPTIONS).values
    replayed = {first: target, **replayed_hidden(any_model, requests, first, target, method.layers[1:])}
    with any_model.preserved(method.layers):
        for position, step in enumerate(method.steps(any_model, requests, state)):
            alone = editor(layers=(step.layer,), residual=DIRECT)
            direct = next(alone.steps(any_model, requests, alone.prepare(any_model)))
            keys = subject_keys(any_model, requests, step.layer, state.prefixes, method.key_mean).double()
            q = keys.T @ torch.linalg.inv(50.0 * moments[step.layer].matrix.double() + keys @ keys.T)
            own = optimise_targets(any_model, requests, step.layer, state.prefixes, OPTIONS).values
            r_star = own - subject_hidden(any_model, requests, step.layer)
            goal, where = (replayed[step.layer], step.layer) if kind == "fe" else (target, last)
            r = r_star if kind == "blue" else goal - subject_hidden(any_model, requests, where)
            error = (r_star - share(kind, position) * r).double() @ q
            torch.testing.assert_close(weight_shift(r_star, r, 1 / share(kind, position), q), error)
            difference = (direct.update - step.update).double()
            assert (difference - error).norm() < 1e-4 * direct.update.norm()
            if kind == "blue" or (kind == "fe" and step.layer == first):
                assert error.norm() < 1e-4 * direct.update.norm()
            else:
                assert error.norm() > 1e-2 * direct.update.norm()
