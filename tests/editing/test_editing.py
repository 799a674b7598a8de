"""Editors, sequences and residuals on random models of the three architectures."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from bluelib import blue, edit_sequence, get_editor
from bluelib.editing import catalogue
from bluelib.editing.method import describe
from bluelib.editing.residuals import DIRECT, DISTRIBUTED, DISTRIBUTED_SQRT
from bluelib.editing.second_moments import second_moments
from bluelib.editing.solvers import NullSpace, Ridge
from bluelib.io.timing import Timer
from bluelib.models.model import weights_hash
from bluelib.models.representations import subject_hidden, subject_keys
from tests.support.folders import files
from tests.support.small import LLAMA_FIRST, PREFIXES, RECORDS, editor, own_settings

pytestmark = pytest.mark.usefixtures("small_world")


@pytest.mark.parametrize("solver", [Ridge(50.0), NullSpace(0.05, 1.0)], ids=["ridge", "null space"])
@pytest.mark.parametrize("residual", [DISTRIBUTED, DIRECT])
def test_revert_restores_bit_for_bit(any_model, solver, residual):
    before = weights_hash(any_model.hf_model)
    run = edit_sequence(any_model, RECORDS, editor(solver, residual), batch_size=2)
    assert weights_hash(any_model.hf_model) != before
    assert [batch["edits"] for batch in run.batches] == [2, 2, 1]
    assert set(run.weight_change()) == {0, 1, 2}
    run.revert()
    assert weights_hash(any_model.hf_model) == before
    run.revert()
    assert weights_hash(any_model.hf_model) == before


def test_editing_is_deterministic(any_model):
    hashes = []
    for _ in range(2):
        run = edit_sequence(any_model, RECORDS[:3], editor(), batch_size=3)
        hashes.append(weights_hash(any_model.hf_model))
        run.revert()
    assert hashes[0] == hashes[1]


@pytest.mark.parametrize(
    ("residual", "divisors"),
    [(DISTRIBUTED, (3, 2, 1)), (DISTRIBUTED_SQRT, (3**0.5, 2**0.5, 1)), (DIRECT, (1, 1, 1))],
)
def test_each_layer_gets_its_share_of_what_is_missing(any_model, monkeypatch, residual, divisors):
    """The residuals that reach the solver are (z − h now) / divisor, at the last layer or at the layer itself."""
    seen = []

    class Spy(Ridge):
        def solve(self, state, keys, residuals):
            seen.append((keys, residuals))
            return super().solve(state, keys, residuals)

    hidden = []
    real = subject_hidden

    def spy_hidden(model, requests, layer, component):
        hidden.append((layer, real(model, requests, layer, component)))
        return hidden[-1][1]

    monkeypatch.setattr("bluelib.editing.editor.subject_hidden", spy_hidden)
    method = editor(Spy(50.0), residual)
    state = method.prepare(any_model)
    result = method.edit(any_model, [r.request for r in RECORDS], state, Timer())
    assert [layer for layer, _ in hidden] == ([0, 1, 2] if residual is DIRECT else [2, 2, 2])
    for (layer, h), (_, r), divisor in zip(hidden, seen, divisors, strict=True):
        torch.testing.assert_close(r, (result.targets[layer].values - h) / divisor)
    if residual is DIRECT:  # measured right after the optimisation, so that R is δ itself
        for layer, (_, r) in zip(method.layers, seen, strict=True):
            torch.testing.assert_close(r, result.targets[layer].deltas, rtol=1e-4, atol=1e-5)


def test_an_update_moves_the_mlp_output_by_delta_k(any_model):
    """W + Δ maps a key to W k + Δ k: after editing one layer with little else to protect, h moves by about R."""
    method = editor(Ridge(1e-4), DIRECT, layers=(1,))
    state = method.prepare(any_model)
    requests = [r.request for r in RECORDS]
    weight = any_model.weight(1).clone()
    keys = subject_keys(any_model, requests, 1, ("",))
    state.prefixes = ("",)
    before = subject_hidden(any_model, requests, 1)
    result = method.edit(any_model, requests, state, Timer())
    after = subject_hidden(any_model, requests, 1)
    any_model.weight(1).copy_(weight)
    torch.testing.assert_close(after - before, result.updates[1] @ keys, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(after - before, result.targets[1].deltas, rtol=0.05, atol=0.02)


def test_keys_are_the_projections_input_averaged_over_prefixes(any_model):
    from bluelib.models.prompts import locate

    request = RECORDS[0].request
    expected = 0
    for prefix in PREFIXES:
        place = locate(any_model.tokenizer, request.prompt, request.subject, prefix)
        captured = []
        hook = any_model.value_projection(2).register_forward_pre_hook(lambda m, args: captured.append(args[0]))  # noqa: B023
        any_model.hf_model(input_ids=torch.tensor([place.ids]))
        hook.remove()
        expected = expected + captured[0][0, place.subject_last].float() / len(PREFIXES)
    found = subject_keys(any_model, [RECORDS[1].request, request], 2, PREFIXES)
    torch.testing.assert_close(found[:, 1], expected, rtol=1e-5, atol=1e-6)


def test_second_moments_equal_a_direct_sum_and_are_kept(any_model, tmp_path):
    from bluelib.pocket.text import PackedText

    found = second_moments(any_model, [1, 3], tokens=256)
    rows = torch.from_numpy(PackedText(any_model.tokenizer, 128).epoch(0)[0][:2])
    captured = []
    hook = any_model.value_projection(3).register_forward_pre_hook(lambda m, args: captured.append(args[0]))
    any_model.hf_model(input_ids=rows)
    hook.remove()
    keys = captured[0].flatten(0, 1)
    torch.testing.assert_close(found[3].matrix.double(), keys.T @ keys / 256, rtol=1e-5, atol=1e-7)
    kept = files(tmp_path / "statistics")
    assert len(kept) == 2
    stamps = [file.stat().st_mtime_ns for file in kept]
    again = second_moments(any_model, [1, 3], tokens=256)
    assert torch.equal(again[1].matrix, found[1].matrix)
    assert [file.stat().st_mtime_ns for file in kept] == stamps
    text = tmp_path / "short.txt"
    text.write_text("Peru is far. The harp is in Rome.\n" * 20)
    with pytest.raises(ValueError, match="tokens; 999999999 were asked for"):
        second_moments(any_model, [1], corpus=str(text), tokens=999_999_999)


def test_an_error_leaves_the_model_as_before_the_batch(any_model):
    class Failing(Ridge):
        def solve(self, state, keys, residuals):
            if keys.shape[1] == 1:  # the last batch
                if len(calls) == 1:
                    raise ArithmeticError("on purpose")
                calls.append(1)
            return super().solve(state, keys, residuals)

    calls = []
    hashes = []
    with pytest.raises(ArithmeticError, match="on purpose"):
        edit_sequence(
            any_model,
            RECORDS,
            editor(Failing(50.0)),
            batch_size=2,
            after_batch=lambda i, result: hashes.append(weights_hash(any_model.hf_model)),
        )
    assert calls, "the failing batch had updated a layer already"
    assert weights_hash(any_model.hf_model) == hashes[-1]


def test_blue_keeps_the_boundary_layers_and_takes_direct_residuals():
    plain = editor(layers=(2, 3, 4, 5, 6))
    changed = blue(plain)
    assert (changed.layers, changed.residual, changed.name) == ((2, 6), DIRECT, "test_blue")
    assert changed.solver == plain.solver and changed.targets == plain.targets
    with pytest.raises(ValueError, match="a first and a last one"):
        blue(editor(layers=(2,)))


RESIDUALS = {
    "pmet": "distributed_sqrt",
    "rome": "direct",
    "memit_cake": "weighted",
    "alphaedit_cake": "weighted",
    "blue": "direct",
    "fe": "replayed",
}


def numbers(settings):
    """All values in settings that are not mappings, as text."""
    if isinstance(settings, dict):
        return {text for value in settings.values() for text in numbers(value)}
    return {str(settings)}


@LLAMA_FIRST
@pytest.mark.parametrize("name", catalogue.names())
def test_named_editors_resolve_their_configuration(any_model, name):
    composed = name not in ("ft", "mend")
    extra = {"clamp": 0.5, "corpus": "pocket"} if composed else {}
    if composed:
        with pytest.raises(ValueError, match=r"no settings for editor '.*': model 'random-pocket-.*pass layers"):
            get_editor(name, any_model, **own_settings(name))
    layers = [1] if name == "rome" else [1, 2, 3]
    method = get_editor(name, any_model, layers=layers, **own_settings(name), **extra)
    settings = describe(method)
    assert (method.name, settings["name"]) == (name, name)
    assert method.layers == ((1, 3) if name.endswith("blue") else tuple(layers))
    given = {str(value) for key, value in own_settings(name).items() if key != "layer_scores"}
    assert given <= numbers(settings)
    if composed:
        assert method.targets.clamp == 0.5 and method.corpus == "pocket"
        assert method.residual.name == RESIDUALS.get(catalogue.known(name).variant or name, "distributed")
    assert catalogue.known(name).make().__doc__


def test_what_cannot_be_edited_is_refused(any_model):
    with pytest.raises(ValueError, match="known: ft, mend, rome, memit, memit_blue, memit_fe, memit_history"):
        get_editor("nonsense", any_model)
    with pytest.raises(
        ValueError, match=r"editor 'memit' has no hyper-parameter typo; it has clamp, contexts, corpus, early_stop"
    ):
        get_editor("memit", any_model, layers=[1], mom2_update_weight=1, typo=3)
    with pytest.raises(ValueError, match=r"editor 'memit': .*mom2_update_weight"):
        get_editor("memit", any_model, layers=[1])
    with pytest.raises(ValueError, match=r"rome edits one layer, not \[1, 2\]"):
        get_editor("rome", any_model, layers=[1, 2])
    with pytest.raises(ValueError, match=r"editor 'ft' has no hyper-parameter clamp"):
        get_editor("ft", any_model, layers=[1], steps=2, learning_rate=1e-3, clamp=1)
    with pytest.raises(ValueError, match=r"layers \[1, 9\] are not distinct layers .* 0 to 3"):
        get_editor("memit", any_model, layers=[9, 1], mom2_update_weight=1)
    with pytest.raises(ValueError, match="between 1 and the number of records, 5; it is 0"):
        edit_sequence(any_model, RECORDS, editor(), batch_size=0)
    with pytest.raises(ValueError, match="it is 6"):
        edit_sequence(any_model, RECORDS, editor(), batch_size=6)
    with pytest.raises(ValueError, match="no records"):
        edit_sequence(any_model, [], editor(), batch_size=1)


def test_contributions_of_single_layers_leave_the_model_as_it_was(any_model):
    from bluelib.studies.layers import layer_contributions, layers_by_editing

    before = weights_hash(any_model.hf_model)
    frame = layer_contributions(
        any_model, [replace(r, paraphrases=(r.request.text,)) for r in RECORDS[:2]], editor(Ridge(1e-3)), [0, 2]
    )
    assert weights_hash(any_model.hf_model) == before
    assert list(frame.layer) == [0, 2] and (frame.rewrite > 0).all()
    frame = frame.iloc[[0] * 6].assign(layer=range(6), paraphrase=[0.1, 0.9, 0.5, 0.2, 0.9, 0.9])
    assert layers_by_editing(frame, width=2) == [4, 5] and layers_by_editing(frame, width=3) == [3, 4, 5]
