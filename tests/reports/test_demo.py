"""The interactive page, without a browser (test_browser.py has it in one)."""

from __future__ import annotations

import io

import pytest
import torch
from PIL import Image

from bluelib import edit_sequence, get_editor, load_dataset, load_model
from bluelib.models.scoring import score_targets
from bluelib.reports.demo import (
    MAX_EDITS,
    EditPage,
    compare,
    find_record,
    methods,
    plot_comparison,
    requested,
    scaled,
    summary,
)

RECORDS = load_dataset("pocket-counterfact")


@pytest.fixture(scope="module")
def model():
    return load_model("pocket-llama")


@pytest.fixture(scope="module")
def tower():
    record = find_record(RECORDS, "Eiffel Tower")
    return requested(record, record.request.text, "Rome")


@pytest.fixture(scope="module")
def comparison(model, tower):
    return compare(model, [RECORDS[0], tower])


def test_it_shows_what_the_library_computes(model, tower, comparison):
    """Both methods on the same edits, one after another, from the unedited model, which is left unedited."""
    before = model.weight(0).clone()
    for state, name in zip(comparison.states[1:], ("memit", "memit_blue"), strict=True):
        run = edit_sequence(model, [RECORDS[0], tower], get_editor(name, model), batch_size=1)
        assert {layer: change for layer, change in state.weight_change.items() if change} == run.weight_change()
        new, true = score_targets(model, [(tower.paraphrases[0], "Rome"), (tower.paraphrases[0], "Paris")])
        shown = comparison.table().query("kind == 'paraphrase'")[state.name].iloc[0]
        assert shown == pytest.approx(new.log_prob - true.log_prob, abs=1e-4)  # rounded otherwise in another batch
        run.revert()
    assert torch.equal(model.weight(0), before)
    kinds = comparison.table().kind.tolist()
    assert kinds == ["rewrite", *["paraphrase"] * 2, *["neighbour"] * len(tower.locality), "earlier edit"]
    assert comparison.table()["before"].max() < 0, "the unedited model prefers every true object"


def test_the_factor_multiplies_the_configured_weight(model):
    for name in methods().values():
        editor = get_editor(name, model)
        solver = scaled(editor, 0.5).solver
        for field in ("weight", "l2"):
            if hasattr(editor.solver, field):
                assert getattr(solver, field) == getattr(editor.solver, field) / 2


def test_the_sentence_counts_what_the_picture_shows(model, comparison):
    table = comparison.table()
    moved = int((table[table.kind == "neighbour"]["MEMIT"] > 0).sum())
    assert f"{moved} of 10 neighbours moved along" in summary(comparison)
    figure = plot_comparison(model, comparison)
    texts = [text.get_text() for sub in figure.subfigs for axis in sub.axes for text in axis.get_yticklabels()]
    assert "rewrite: Eiffel Tower is one of the sights of" in texts and "MEMIT_BLUE" in texts


@pytest.mark.parametrize(
    ("prompt", "target_new", "message"),
    [
        ("Eiffel Tower is in", "  ", "The new object is empty"),
        ("Eiffel Tower is in", "Paris", "is what the model says already"),
        ("The tower is in", "Rome", "does not mention the subject “Eiffel Tower”"),
    ],
)
def test_requests_that_cannot_be_made_are_explained(prompt, target_new, message, tower):
    with pytest.raises(ValueError, match=message):
        requested(tower, prompt, target_new)


def test_unknown_subjects_are_explained():
    with pytest.raises(ValueError, match="Did you mean Eiffel Tower"):
        find_record(RECORDS, "eifel tower")
    with pytest.raises(ValueError, match="The list of the field"):
        find_record(RECORDS, "🦀🦀🦀")
    with pytest.raises(ValueError, match="empty"):
        find_record(RECORDS, "  ")


def test_a_page_edits_explains_and_undoes(model):
    page = EditPage(model, RECORDS, subject="Eiffel Tower", target_new="Rome")
    assert "Paris" in page.message.value and page.undo.disabled
    page.edit.click()
    assert "<b>MEMIT_BLUE</b>: the edit holds" in page.message.value
    first = page.picture.value
    assert Image.open(io.BytesIO(first)).size[0] > 900

    page.factor.value = 0.1  # the same subject again replaces its edit
    page.edit.click()
    assert page.edits.value.count("<li>") == 1 and page.picture.value != first

    page.subject.value = "<script>alert(1)</script>"
    assert 'role="alert"' in page.message.value and "<script>" not in page.message.value
    page.edit.click()
    assert 'role="alert"' in page.message.value and not page.edit.disabled

    page.subject.value = RECORDS[0].subject
    page.edit.click()
    assert page.edits.value.count("<li>") == 2 and "1 of 1 earlier edits still hold" in page.message.value
    page.undo.click()
    page.undo.click()
    assert page.picture.value == first
    page.reset.click()
    assert page.undo.disabled and page.edits.value == "" and page.picture.layout.display == "none"


def test_edits_that_fail_leave_the_page_and_the_model_as_they_were(model, monkeypatch):
    before = model.weight(0).clone()
    page = EditPage(model, RECORDS, subject="Eiffel Tower", target_new="Rome")

    def diverge(*args, **kwargs):
        raise ArithmeticError("the target of record 7 diverged")

    monkeypatch.setattr("bluelib.reports.demo.plot_comparison", diverge)
    page.edit.click()
    assert "the target of record 7 diverged" in page.message.value
    assert page.edits.value == "" and page.undo.disabled and not page.edit.disabled
    assert torch.equal(model.weight(0), before)


def test_there_is_an_end_to_a_list_of_edits(model, monkeypatch):
    page = EditPage(model, RECORDS, subject=RECORDS[MAX_EDITS].subject)
    page._presses.append((tuple(RECORDS[:MAX_EDITS]), "", b""))
    page.edit.click()
    assert f"makes {MAX_EDITS} edits at most" in page.message.value


def test_records_without_a_true_object_are_refused(model):
    with pytest.raises(ValueError, match="has no true object"):
        EditPage(model, [next(r for r in load_dataset("pocket-zsre")).__class__(7, "zsre", "{} is", "A", "B", None)])
