"""Sequences that survive: checkpoints, killed processes, deltas, saved models; and edits that conflict."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from bluelib import apply_delta, edit_sequence, fe, get_editor, load_dataset, load_model
from bluelib.editing.checkpoints import CheckpointError
from bluelib.editing.conflicts import Conflict, find_conflicts
from bluelib.editing.constraints import Damp, Project
from bluelib.editing.residuals import DIRECT, Weighted
from bluelib.editing.second_moments import second_moments
from bluelib.editing.sequence import check_requests, edited, longest_prefix
from bluelib.editing.solvers import LeakyNullSpace, NormRidge, NullSpace, Ridge
from bluelib.editing.targets import BUDGETS, default_token_budget
from bluelib.io.locks import locked
from bluelib.io.tensors import load_tensors, save_tensors
from bluelib.models.model import Model, weights_hash
from bluelib.models.prompts import encode_prompt
from tests.support.small import LLAMA_FIRST, QUICK_FIRST, RECORDS, TARGETS, editor, random_model

pytestmark = pytest.mark.usefixtures("small_world")

HISTORY = Ridge(0.5, remembers=True)


class Stop(Exception):
    """Raised on purpose between two batches."""


def stop_after(batches):
    def check(number, result):
        if number + 1 == batches:
            raise Stop

    return check


def test_an_edit_that_fits_after_no_prefix_is_refused_before_any_is_made(small_world, monkeypatch):
    """The longest prefix in characters is not the one with the most tokens."""
    model = random_model("pocket-llama")
    many, long = "a b c d e f g h. ", "Ilvane Quillbrook Maribeth Okonmere. "
    monkeypatch.setattr("bluelib.editing.editor.context_prefixes", lambda *_: ("", long, many))
    tokens = {text: len(encode_prompt(model.tokenizer, text + "It")) for text in (many, long)}
    assert len(long) > len(many) and tokens[long] < tokens[many]
    assert longest_prefix(model, editor()) == many
    needed = check_requests(model, RECORDS, editor())
    monkeypatch.setattr(Model, "max_positions", needed - 1)
    with pytest.raises(ValueError, match=rf"record \d: .* {needed} tokens exceed"):
        edit_sequence(model, RECORDS, editor(), batch_size=1)
    model.check_unedited("an edit that was refused")


@LLAMA_FIRST
@pytest.mark.parametrize("solver", [HISTORY, NullSpace(0.05, 1.0), Ridge(50.0)], ids=["history", "null space", "ridge"])
@pytest.mark.parametrize("stops", [[1], [1, 2]])
def test_a_continued_run_ends_with_the_same_bits(any_model, tmp_path, solver, stops):
    method = editor(solver, DIRECT)
    (tmp_path / "c").mkdir()
    mine = [tmp_path / "c" / f"{name}.safetensors" for name in ("mine", "weights-final", "keys-mine", "weights-1")]
    for path in mine:
        path.write_text("not a file of the checkpoint")
    unedited = weights_hash(any_model.hf_model)
    run = edit_sequence(any_model, RECORDS, method, batch_size=2, checkpoint_dir=tmp_path / "undisturbed")
    wanted = weights_hash(any_model.hf_model)
    run.revert()
    for stop in stops:
        with any_model.preserved((0, 1, 2)), pytest.raises(Stop):
            edit_sequence(
                any_model, RECORDS, method, batch_size=2, checkpoint_dir=tmp_path / "c", after_batch=stop_after(stop)
            )
    made, resumed = [], []
    run = edit_sequence(
        any_model,
        RECORDS,
        method,
        batch_size=2,
        checkpoint_dir=tmp_path / "c",
        after_batch=lambda number, result: made.append(number),
        on_resume=lambda number: resumed.append((number, weights_hash(any_model.hf_model))),
    )
    assert weights_hash(any_model.hf_model) == wanted
    assert made == list(range(stops[-1], 3)) and len(run.batches) == 3
    ((number, then),) = resumed
    assert number == stops[-1] - 1 and then not in (unedited, wanted)
    assert all(path.read_text() == "not a file of the checkpoint" for path in mine)
    ours = [path.name for path in (tmp_path / "c").iterdir() if path not in mine]
    assert sum(name.startswith("keys-") for name in ours) == (3 if solver.remembers else 0)
    assert sum(name.startswith("weights-") for name in ours) == 1
    run.revert()
    again = edit_sequence(any_model, RECORDS, method, batch_size=2, checkpoint_dir=tmp_path / "c")
    assert weights_hash(any_model.hf_model) == wanted, "a finished run is not made again"
    again.revert()
    for save in (again.save, again.save_delta):
        with pytest.raises(ValueError, match=r"this run was reverted.*save before revert"):
            save(tmp_path / "nothing")
    with edited(any_model, RECORDS, method, batch_size=2) as inside:
        inside.save_delta(tmp_path / "inside.safetensors")
    with pytest.raises(ValueError, match="this run was reverted"):
        inside.save(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists() and "Run: 5 edits of" in repr(again), "and no list of all it holds"


SINCE = {
    "fe": fe(editor(HISTORY)),
    "encore": replace(editor(NormRidge(0.5, True, 2.0)), targets=replace(TARGETS, stop="first_choice")),
    "betaedit": editor(LeakyNullSpace(0.05, 1.0, 3.0)),
    "sphere": replace(editor(NullSpace(0.05, 1.0)), constraint=Project(order="restored")),
    "cake": editor(residual=Weighted.of([0.1, 0.3, 0.2], 0.1)),
    "anchor": replace(editor(), anchor=20.0),
}


@LLAMA_FIRST
@pytest.mark.parametrize("name", SINCE)
def test_a_continued_run_of_later_methods_ends_with_the_same_bits(any_model, tmp_path, name):
    method = SINCE[name]
    run = edit_sequence(any_model, RECORDS, method, batch_size=2)
    wanted = weights_hash(any_model.hf_model)
    run.revert()
    with any_model.preserved((0, 1, 2)), pytest.raises(Stop):
        edit_sequence(any_model, RECORDS, method, batch_size=2, checkpoint_dir=tmp_path, after_batch=stop_after(1))
    run = edit_sequence(any_model, RECORDS, method, batch_size=2, checkpoint_dir=tmp_path)
    assert weights_hash(any_model.hf_model) == wanted and len(run.batches) == 3
    run.revert()
    other = replace(method, targets=replace(method.targets, clamp=0.1))
    with pytest.raises(ValueError, match="clamp"):
        edit_sequence(any_model, RECORDS, other, batch_size=2, checkpoint_dir=tmp_path)


def test_micro_batches_are_recorded_and_a_run_is_not_continued_with_others(any_model, tmp_path, monkeypatch):
    """They decide how sums are rounded."""
    method = editor(HISTORY, DIRECT)
    with any_model.preserved((0, 1, 2)):
        run = edit_sequence(any_model, RECORDS[:2], method, batch_size=2)
        assert run.inputs["token_budget"] == default_token_budget(any_model) == 8192
        run.revert()
        with pytest.raises(Stop):
            edit_sequence(any_model, RECORDS, method, batch_size=2, checkpoint_dir=tmp_path, after_batch=stop_after(1))
    monkeypatch.setitem(BUDGETS, "cpu", (4096, 10**9))
    with pytest.raises(CheckpointError, match=r"its inputs\.token_budget is 8192, this run's is 4096"):
        edit_sequence(any_model, RECORDS, method, batch_size=2, checkpoint_dir=tmp_path)


def test_history_matters_for_the_continued_run(any_model):
    """Without the keys of earlier batches the next batch comes out differently: the test above can fail."""
    hashes = []
    for solver in (HISTORY, Ridge(0.5)):
        run = edit_sequence(any_model, RECORDS, editor(solver, DIRECT), batch_size=1)
        hashes.append(weights_hash(any_model.hf_model))
        run.revert()
    assert hashes[0] != hashes[1]


@LLAMA_FIRST
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"records": RECORDS[:4]}, "its records_hash is sha256:.*, this run's is sha256:"),
        ({"batch_size": 3}, "its batch_size is 2, this run's is 3"),
        ({"editor": editor(Ridge(51.0))}, "its editor.solver.weight is 50.0, this run's is 51.0"),
        ({"editor": editor(Ridge(50.0), layers=(0, 1))}, r"its editor.layers is \[0, 1, 2\], this run's is \[0, 1\]"),
        ({"on_conflict": "keep"}, "its on_conflict is last, this run's is keep"),
    ],
)
def test_another_runs_checkpoint_is_refused(any_model, tmp_path, change, message):
    arguments = {"records": RECORDS, "editor": editor(Ridge(50.0)), "batch_size": 2}
    before = weights_hash(any_model.hf_model)
    with any_model.preserved((0, 1, 2)):
        with pytest.raises(Stop):
            edit_sequence(any_model, **arguments, checkpoint_dir=tmp_path / "c", after_batch=stop_after(1))
        with pytest.raises(ValueError, match="has been edited: checkpoints belong to the weights as loaded"):
            edit_sequence(any_model, **arguments, checkpoint_dir=tmp_path / "c")
    with pytest.raises(CheckpointError, match=message):
        edit_sequence(any_model, **{**arguments, **change}, checkpoint_dir=tmp_path / "c")
    assert weights_hash(any_model.hf_model) == before


def test_a_damaged_checkpoint_is_refused(any_model, tmp_path):
    folder = tmp_path / "c"
    run = edit_sequence(any_model, RECORDS, editor(HISTORY), batch_size=2, checkpoint_dir=folder)
    run.revert()

    def again(copy):
        return edit_sequence(any_model, RECORDS, editor(HISTORY), batch_size=2, checkpoint_dir=copy)

    for name in ("keys-00002.safetensors", "weights-00003.safetensors"):
        copy = shutil.copytree(folder, tmp_path / name)
        data = bytearray((copy / name).read_bytes())
        data[-3] ^= 1
        (copy / name).write_bytes(data)
        with pytest.raises(CheckpointError, match=f"{name} is damaged"):
            again(copy)
        (copy / name).unlink()
        with pytest.raises(CheckpointError, match=f"{name} is missing"):
            again(copy)
    copy = shutil.copytree(folder, tmp_path / "m")
    (copy / "manifest.json").write_text((copy / "manifest.json").read_text()[:-40])
    with pytest.raises(CheckpointError, match=r"manifest\.json is damaged"):
        again(copy)


def test_a_delta_makes_the_same_model_and_no_other(any_model, tmp_path):
    run = edit_sequence(any_model, RECORDS, editor(Ridge(1e-2)), batch_size=5)
    edited = weights_hash(any_model.hf_model)
    path = run.save_delta(tmp_path / "edit.safetensors")
    with pytest.raises(ValueError, match="has been edited"):
        apply_delta(any_model, path)
    run.revert()
    about = apply_delta(any_model, path)
    assert weights_hash(any_model.hf_model) == edited
    assert about["edits"] == 5 and about["editor"]["solver"]["weight"] == 1e-2
    run.revert()
    tensors, about = load_tensors(path)
    save_tensors(tmp_path / "single", {name: w.float() for name, w in tensors.items()}, about)
    with pytest.raises(ValueError, match=r"layer 0 as torch.float32 .* was loaded with torch.float64"):
        apply_delta(any_model, tmp_path / "single")
    other = replace(any_model, revision="sha256:other")
    with pytest.raises(ValueError, match=r"belongs to random-pocket-.* with weights sha256:.*has sha256:other"):
        apply_delta(other, path)
    (tmp_path / "text").write_text("no tensors")
    with pytest.raises(ValueError, match="not a safetensors file, or is damaged"):
        apply_delta(any_model, tmp_path / "text")
    assert path.stat().st_size < 3 * any_model.weight(0).numel() * 8 + 5000


def test_a_delta_has_the_edits_of_earlier_runs_too(any_model, tmp_path):
    second_moments(any_model, range(3), corpus="pocket", tokens=3000)  # of the model as loaded
    first = edit_sequence(any_model, RECORDS[:2], editor(Ridge(1e-2), layers=(0, 1)), batch_size=2)
    last = edit_sequence(any_model, RECORDS[2:4], editor(Ridge(1e-2), layers=(2,)), batch_size=2)
    edited = weights_hash(any_model.hf_model)
    path = last.save_delta(tmp_path / "edit.safetensors")
    assert sorted(load_tensors(path)[0]) == ["0", "1", "2"]
    last.revert()
    first.revert()
    apply_delta(any_model, path)
    assert weights_hash(any_model.hf_model) == edited


@LLAMA_FIRST
@pytest.mark.parametrize("solver", [HISTORY, NullSpace(0.05, 1.0), Ridge(50.0)], ids=["history", "null space", "ridge"])
@pytest.mark.parametrize("stop", [None, 1], ids=["whole", "killed"])
def test_a_run_goes_on_from_a_delta_as_if_it_were_one(any_model, tmp_path, solver, stop):
    """Edit today, more tomorrow; and tomorrow's run may be killed, too."""
    method = editor(solver, DIRECT)
    whole = edit_sequence(any_model, RECORDS, method, batch_size=1)
    wanted = weights_hash(any_model.hf_model)
    whole.revert()
    unedited = weights_hash(any_model.hf_model)
    first = edit_sequence(any_model, RECORDS[:1], method, batch_size=1)
    today = first.save_delta(tmp_path / "today.safetensors")
    first.revert()
    how = {"batch_size": 1, "start": today, "checkpoint_dir": tmp_path / "c"}
    if stop:
        with any_model.preserved((0, 1, 2)), pytest.raises(Stop):
            edit_sequence(any_model, RECORDS[1:], method, **how, after_batch=stop_after(stop))
    second = edit_sequence(any_model, RECORDS[1:], method, **how)
    assert weights_hash(any_model.hf_model) == wanted
    tomorrow = second.save_delta(tmp_path / "tomorrow.safetensors")
    second.revert()
    assert weights_hash(any_model.hf_model) == unedited, "both are taken back"
    tensors, _ = load_tensors(tomorrow)
    assert {name: t.shape[1] for name, t in tensors.items() if name.startswith("keys.")} == (
        dict.fromkeys(("keys.0", "keys.1", "keys.2"), len(RECORDS)) if method.remembers else {}
    )
    apply_delta(any_model, tomorrow)
    assert weights_hash(any_model.hf_model) == wanted


def test_an_editor_of_fewer_layers_goes_on_with_the_keys_of_its_own(any_model, tmp_path):
    """AlphaEdit_BLUE after AlphaEdit; and what remembers nothing passes no keys on, as it would lack those of its own."""
    first = edit_sequence(any_model, RECORDS[:1], editor(HISTORY), batch_size=1)
    five = first.save_delta(tmp_path / "five.safetensors")
    first.revert()

    def keys_after(method):
        run = edit_sequence(any_model, RECORDS[1:], method, batch_size=1, start=five)
        path = run.save_delta(tmp_path / f"{method.remembers}.safetensors")
        run.revert()
        return {name: t.shape[1] for name, t in load_tensors(path)[0].items() if name.startswith("keys.")}

    assert keys_after(editor(HISTORY, DIRECT, layers=(0, 2))) == {"keys.0": len(RECORDS), "keys.2": len(RECORDS)}
    assert keys_after(editor(Ridge(50.0))) == {}
    with pytest.raises(ValueError, match=r"test remembers earlier keys, and .*False.safetensors has none of layers"):
        edit_sequence(any_model, RECORDS[1:], editor(HISTORY), batch_size=1, start=tmp_path / "False.safetensors")


def test_what_cannot_go_on_from_a_delta_is_refused(any_model, tmp_path):
    second_moments(any_model, range(3), corpus="pocket", tokens=3000)  # of the model as loaded
    run = edit_sequence(any_model, RECORDS[:1], editor(Ridge(1e-2)), batch_size=1)
    plain = run.save_delta(tmp_path / "plain.safetensors")
    on_top = edit_sequence(any_model, RECORDS[1:2], editor(HISTORY), batch_size=1)
    partial = on_top.save_delta(tmp_path / "partial.safetensors")
    with pytest.raises(ValueError, match="has been edited"):
        edit_sequence(any_model, RECORDS[1:], editor(), batch_size=1, start=plain)
    on_top.revert()
    run.revert()
    before = weights_hash(any_model.hf_model)
    for start in (plain, partial):
        with pytest.raises(ValueError, match=r"test remembers earlier keys, and .* has none of layers \[0, 1, 2\]"):
            edit_sequence(any_model, RECORDS[1:], editor(HISTORY), batch_size=1, start=start)
    once = replace(editor(), constraint=Damp())
    with pytest.raises(ValueError, match="test acts once, on all edits together, and cannot go on"):
        edit_sequence(any_model, RECORDS[1:], once, batch_size=1, start=plain)
    assert weights_hash(any_model.hf_model) == before


def hooks(model):
    """The numbers of hooks on its value projections."""
    modules = [model.value_projection(layer) for layer in range(model.n_layers)]
    return [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in modules]


@pytest.mark.slow
def test_a_model_of_low_precision_has_its_types_back_whatever_happened(tmp_path):
    """After runs that are reverted in turn, a block that is left, and a run that fails before its first batch."""
    model = random_model("pocket-gpt2")
    model = Model.of("low", model.hf_model.bfloat16(), model.tokenizer)
    revision = weights_hash(model.hf_model)
    editor().prepare(model)  # second moments belong to the weights as loaded
    first = edit_sequence(model, RECORDS[:2], editor(layers=(0, 1)), batch_size=2)
    second = edit_sequence(model, RECORDS[2:4], editor(layers=(1, 2)), batch_size=2)
    second.revert()
    assert [model.weight(layer).dtype for layer in range(3)] == [torch.float32, torch.float32, torch.bfloat16]
    assert hooks(model)[:3] == [2, 2, 0]
    first.revert()
    assert weights_hash(model.hf_model) == revision and not any(hooks(model))
    with edited(model, RECORDS[:2], editor(), batch_size=2):
        assert model.weight(0).dtype == torch.float32
        with_edits = model.snapshot((0, 1, 2))
    assert weights_hash(model.hf_model) == revision and not any(hooks(model))
    with model.preserved((0, 1, 2)):
        model.restore(with_edits)
        assert all(torch.equal(model.weight(layer), with_edits.weights[layer]) for layer in range(3))
        assert model.weight(0).dtype == torch.float32
    assert weights_hash(model.hf_model) == revision and not any(hooks(model))
    with pytest.raises(ValueError, match="names no corpus"):
        edit_sequence(model, RECORDS[:2], replace(editor(), corpus=None), batch_size=2)
    assert weights_hash(model.hf_model) == revision and not any(hooks(model))
    edit_sequence(model, RECORDS[:2], editor(), batch_size=2, checkpoint_dir=tmp_path).revert()
    with pytest.raises(CheckpointError, match="another run"):
        edit_sequence(model, RECORDS[2:4], editor(), batch_size=2, checkpoint_dir=tmp_path)
    assert weights_hash(model.hf_model) == revision and not any(hooks(model))
    with locked(tmp_path / "manifest.json"), pytest.raises(BlockingIOError, match="is in use by another process"):
        edit_sequence(model, RECORDS[:2], editor(), batch_size=2, checkpoint_dir=tmp_path)
    assert weights_hash(model.hf_model) == revision and not any(hooks(model))


def test_a_layer_that_is_not_there_is_refused(any_model):
    with (
        pytest.raises(ValueError, match="not distinct layers"),
        edited(any_model, RECORDS, editor(layers=(9,)), batch_size=2),
    ):
        pass


@pytest.mark.parametrize("architecture", QUICK_FIRST)
def test_small_updates_survive_in_a_model_of_low_precision(architecture, tmp_path):
    """In bfloat16 the edited matrices are kept in float32: their change is the sum of the updates."""
    model = random_model(architecture)
    model = Model.of("low", model.hf_model.bfloat16(), model.tokenizer)
    before = {layer: model.weight(layer).float().clone() for layer in (0, 1, 2)}
    revision, text = weights_hash(model.hf_model), model.tokenizer("Peru is", return_tensors="pt")
    logits = model.hf_model(**text).logits
    sums = {layer: torch.zeros_like(weight) for layer, weight in before.items()}

    def collect(number, result):
        for layer, update in result.updates.items():
            sums[layer] += update

    run = edit_sequence(model, RECORDS, editor(Ridge(1e5)), batch_size=2, after_batch=collect)
    for layer, old in before.items():
        change = model.weight(layer) - old
        assert 0 < change.norm() < 0.01 * old.norm(), "an update that bfloat16 would mostly lose"
        torch.testing.assert_close(change, sums[layer], rtol=1e-3, atol=1e-6)
    assert model.hf_model(**text).logits.dtype == torch.bfloat16
    delta = run.save_delta(tmp_path / "edit.safetensors")
    edited = {layer: model.weight(layer).clone() for layer in before}
    saved = run.save(tmp_path / "saved")
    assert {t.dtype for t in load_file(saved / "model.safetensors").values()} == {torch.bfloat16}
    run.revert()
    assert torch.equal(model.hf_model(**text).logits, logits)
    assert weights_hash(model.hf_model) == revision, "in their own type again"
    assert not any(hooks(model))
    again = random_model(architecture)
    again = Model.of("low", again.hf_model.bfloat16(), again.tokenizer)
    apply_delta(again, delta)
    assert all(torch.equal(again.weight(layer), weight) for layer, weight in edited.items())


def test_a_saved_model_is_what_transformers_loads(tmp_path):
    model = load_model("pocket-llama")
    records = load_dataset("pocket-counterfact", split="report", limit=2)
    run = edit_sequence(model, records, get_editor("ft", model, steps=2), batch_size=2)
    folder = run.save(tmp_path / "edited")
    again = load_model(str(folder))
    for (name, a), (_, b) in zip(model.hf_model.state_dict().items(), again.hf_model.state_dict().items(), strict=True):
        assert torch.equal(a, b), name
    assert again.tokenizer("Peru is").input_ids == model.tokenizer("Peru is").input_ids
    with pytest.raises(FileExistsError, match="exists already"):
        run.save(folder)


@pytest.mark.parametrize(("spoil", "found"), [("change", "has a different"), ("rename", "lacks")])
def test_nothing_is_called_saved_that_is_not(spoil, found, tmp_path, monkeypatch):
    """Whatever transformers writes, such as an adapter alone."""
    model, write = load_model("pocket-llama"), PreTrainedModel.save_pretrained
    name = "model.layers.2.mlp.down_proj.weight"

    def spoilt(self, folder, state_dict):
        write(self, folder, state_dict=state_dict)
        tensors = load_file(folder / "model.safetensors")
        if spoil == "change":
            tensors[name][3, 5] += 1e-6
        else:
            tensors[f"base_model.{name}"] = tensors.pop(name)
        save_file(tensors, folder / "model.safetensors")

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", spoilt)
    with pytest.raises(OSError, match=rf"nothing was saved at .*saved: .* {found} {name}"):
        model.save(tmp_path / "saved")
    assert not any(tmp_path.iterdir())


def test_conflicts_are_found():
    a = RECORDS[0]
    records = [
        a,
        RECORDS[1],
        replace(a, case_id=7, target_new="lute"),
        replace(a, case_id=8, prompt="{} is by", relation="x"),
        RECORDS[2],
        replace(RECORDS[1], case_id=9),
    ]
    assert find_conflicts(records, 4) == [
        Conflict("fact", True, 0, 2),
        Conflict("subject", True, 2, 3),
        Conflict("fact", False, 1, 5),
    ]
    assert find_conflicts(records, 1) == [Conflict("fact", False, 0, 2), Conflict("fact", False, 1, 5)]
    assert find_conflicts(RECORDS, 5) == []
    other = replace(a, case_id=10, prompt="{} lives in", relation="y")
    assert find_conflicts([a, RECORDS[1], other, replace(a, case_id=11)], 2) == [
        Conflict("fact", False, 0, 3),
        Conflict("subject", True, 2, 3),
    ]


def test_an_edit_with_two_conflicts_is_counted_once(any_model, caplog):
    other = replace(RECORDS[0], case_id=7, prompt="{} lives in", relation=None)
    thrice = [RECORDS[0], other, replace(RECORDS[0], case_id=8, target_new="lute")]
    assert [conflict.second for conflict in find_conflicts(thrice, 3)] == [1, 2, 2]
    edit_sequence(any_model, thrice, editor(), batch_size=3, on_conflict="keep").revert()
    assert "2 of 3 edits conflict with an earlier one; 0 are skipped" in caplog.text


def test_what_happens_to_conflicts(any_model):
    twice = [RECORDS[0], RECORDS[1], replace(RECORDS[0], case_id=7, target_new="lute")]

    def final(records, policy="last"):
        run = edit_sequence(any_model, records, editor(), batch_size=len(records), on_conflict=policy)
        found = weights_hash(any_model.hf_model)
        run.revert()
        return found, run

    last, run = final(twice)
    assert run.skipped == [0] and run.batches[0]["edits"] == 2
    assert last == final([RECORDS[1], twice[2]])[0]
    kept, run = final(twice, "keep")
    assert run.skipped == [] and len(run.conflicts) == 1 and kept != last
    with pytest.raises(ValueError, match="records 0 and 7 state the same fact"):
        final(twice, "refuse")
    with pytest.raises(ValueError, match="one of last, keep, refuse"):
        final(twice, "first")


def test_a_delta_of_another_dtype_is_refused(tmp_path):
    """Its matrices are float32 in both, but the weights around them, and so the keys, are not."""
    one, two = random_model("pocket-llama"), random_model("pocket-llama")
    one.hf_model.float()
    one = Model.of(one.name, one.hf_model, one.tokenizer)
    two.hf_model.bfloat16()
    two = Model.of(two.name, two.hf_model, two.tokenizer, one.revision)  # as with a hub id, one revision for all dtypes
    run = edit_sequence(two, RECORDS[:2], editor(layers=(1,)), batch_size=2)
    path = run.save_delta(tmp_path / "delta.safetensors")
    run.revert()
    apply_delta(two, path)
    with pytest.raises(ValueError, match=r"was made in bfloat16, and .* was loaded in float32"):
        apply_delta(one, path)
    one.check_unedited("nothing was put in")
