"""The interactive page, without a browser (test_browser.py has it in one)."""

from __future__ import annotations

import io
from dataclasses import replace
from html import unescape

import pytest
import torch
from PIL import Image

from bluelib import edit_sequence, get_editor, load_dataset, load_model
from bluelib.models.generation import answer
from bluelib.reports.demo import (
    MAX_EDITS,
    NEIGHBOURS,
    TOKENS,
    EditPage,
    answers_table,
    compare,
    find_record,
    plot_comparison,
    scaled,
    summary,
    variants,
)

RECORDS = load_dataset("pocket-counterfact")


@pytest.fixture(scope="module")
def model():
    return load_model("pocket-llama")


@pytest.fixture(scope="module")
def tower():
    return replace(find_record(RECORDS, "Eiffel Tower"), target_new="Rome")


@pytest.fixture(scope="module")
def comparison(model, tower):
    return compare(model, [RECORDS[0], tower])


@pytest.fixture
def page(model):
    return EditPage(model, RECORDS, subject="Eiffel Tower", target_new="Rome")


def says(model, prompts):
    return answer(model, prompts, tokens=TOKENS, stops="\n")


@pytest.mark.parametrize(
    "variant",
    [
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("memit_blue", "memit_fe", "prune_blue")),
        "alphaedit_blue",
    ],
)
def test_it_shows_what_the_library_computes(model, tower, variant):
    """Both methods on the same edits, one after another, from the unedited model, which is left unedited; also where
    the second edit goes on from the first, with what the solver remembers and the constraint finishes."""
    before = model.snapshot(range(model.n_layers))
    kept: dict = {}
    compare(model, [RECORDS[0]], variant, kept=kept)
    told: list = []
    comparison = compare(model, [RECORDS[0], tower], variant, kept=kept, tell=lambda *what: told.append(what))
    for name in (variant.split("_")[0], variant):
        editor = get_editor(name, model)
        run = edit_sequence(model, [RECORDS[0], tower], editor, batch_size=1, progress=False)
        label = next(label for label in comparison.changes if label.lower() == name)
        assert comparison.changes[label] == run.weight_change()
        assert comparison.answers[label].tolist() == says(model, [prompt for _, prompt in comparison.answers.index])
        run.revert()
    for layer, weight in before.weights.items():
        assert torch.equal(model.weight(layer), weight)
    assert [share for _, share in told] == [0, 0.2, 0.4, 0.6, 0.8]
    assert ["edit 2 of 2" in message for message, _ in told] == [False, True, False, True, False]


def test_what_is_asked(model, tower, comparison):
    assert comparison.kinds.tolist() == [
        "prompt",
        "paraphrase",
        "paraphrase",
        *["neighbour"] * NEIGHBOURS,
        "earlier edit",
    ]
    assert comparison.answers.index[0] == ("prompt", tower.request.text)
    assert not comparison.holds()["before"].any() and comparison.answers["before"].iloc[0].startswith("Paris")


def test_the_factor_multiplies_the_configured_weight(model):
    for row in (row for rows in variants().values() for row in rows):
        editor = get_editor(row.name, model)
        solver = scaled(editor, 0.5).solver
        for field in ("weight", "l2"):
            if hasattr(editor.solver, field):
                assert getattr(solver, field) == getattr(editor.solver, field) / 2


def test_the_table_marks_what_the_sentence_counts(model, comparison):
    changed = comparison.changed()
    text, html = summary(comparison), answers_table(comparison)
    assert not changed[comparison.kinds != "neighbour"].any(axis=None) and not changed["before"].any()
    assert f"{changed['MEMIT'].sum()} of {NEIGHBOURS} neighbours changed" in text
    assert "<b>MEMIT</b>: the edit holds" in text and "1 of 1 earlier edits still hold" in text
    assert html.count("<mark>≠ ") == changed.sum(axis=None)
    assert html.count("<b>Rome</b>") >= comparison.holds().iloc[:3].sum(axis=None) > 0
    plain = unescape(html.replace("<b>", "").replace("</b>", ""))
    assert all(said in plain for state in comparison.answers for said in comparison.answers[state]), "whole, not cut"


def test_the_picture_has_both_methods(model, comparison):
    figure = plot_comparison(model, comparison)
    axes = [axis for part in figure.subfigs for axis in part.axes]
    assert [axis.get_title().split(",")[0] for axis in axes[:3]] == ["before", "MEMIT", "MEMIT_BLUE"]
    assert [text.get_text() for text in axes[3].get_yticklabels()] == ["MEMIT", "MEMIT_BLUE"]
    assert "Rome" in [text.get_text() for text in axes[0].get_yticklabels()]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": "  "}, "The new object is empty"),
        ({"target": "Paris"}, "is what pocket-llama already says"),
        ({"prompt": "The tower is in"}, "does not mention the subject “Eiffel Tower”"),
        ({"prompt": "Eiffel Tower is {} in"}, "besides the subject"),
        ({"subject": " "}, "The subject is empty"),
        ({"neighbours": "word " * 2000}, "tokens exceed"),
    ],
)
def test_edits_that_cannot_be_made_are_explained(page, change, message):
    for name, value in change.items():
        getattr(page, name).value = value
    page.edit.click()
    assert 'role="alert"' in page.message.value and message in page.message.value
    assert page.edits.value == "" and not page.edit.disabled and page.undo.disabled


def test_wrong_arguments_are_refused(model, tower):
    with pytest.raises(ValueError, match="nothing to edit"):
        compare(model, [])
    with pytest.raises(ValueError, match="λ must be above 0"):
        compare(model, [tower], factor=0)
    with pytest.raises(ValueError, match="'memit' is not a variant of a method; known variants: memit_blue, memit_fe"):
        EditPage(model, RECORDS, editor="memit")
    with pytest.raises(ValueError, match="'memit' is not a variant of a method; known variants: memit_blue, memit_fe"):
        compare(model, [tower], "memit")


def test_unknown_subjects_are_explained():
    with pytest.raises(ValueError, match="Did you mean Eiffel Tower"):
        find_record(RECORDS, "eifel tower")
    with pytest.raises(ValueError, match=r"No record is about “🦀🦀🦀”\.$"):
        find_record(RECORDS, "🦀🦀🦀")


def test_a_page_edits_and_undoes(page):
    assert "Paris" in page.message.value and page.undo.disabled
    page.edit.click()
    assert "<b>MEMIT_BLUE</b>: the edit holds" in page.message.value
    first = page.picture.value, page.answers.value
    assert Image.open(io.BytesIO(first[0])).size[0] > 900 and "<b>Rome</b>" in first[1]

    page.factor.value = 0.1  # the same prompt again replaces its edit
    page.edit.click()
    assert page.edits.value.count("<li>") == 1 and page.picture.value != first[0]

    page.subject.value = RECORDS[0].subject
    page.edit.click()
    assert page.edits.value.count("<li>") == 2 and "1 of 1 earlier edits still hold" in page.message.value
    page.undo.click()
    page.undo.click()
    assert (page.picture.value, page.answers.value) == first
    page.reset.click()
    assert page.undo.disabled and page.edits.value == page.answers.value == ""
    assert page.picture.layout.display == "none"


def test_a_subject_that_no_record_knows_can_be_edited(page):
    page.subject.value = "<script>alert(1)</script>"
    assert "No record is about" in page.message.value and "<script>" not in page.message.value
    assert page.paraphrases.value == page.questions.value == page.neighbours.value == ""
    page.prompt.value = "The city of <script>alert(1)</script> is"
    page.target.value = "Rome"
    page.neighbours.value = "The city of Moulin Rouge is\n\n"
    page.edit.click()
    assert "<script>" not in page.answers.value + page.edits.value + page.message.value
    assert "of 1 neighbours changed" in page.message.value and "paraphrases" not in page.message.value
    assert page.request().target_true is None


def test_a_method_offers_its_variants(page):
    assert page.variant.options == (("MEMIT_BLUE", "memit_blue"), ("MEMIT_FE", "memit_fe"))
    page.method.value = "PMET"
    assert page.variant.options == (("PMET_BLUE", "pmet_blue"),) and page.variant.value == "pmet_blue"


def test_edits_that_fail_leave_the_page_and_the_model_as_they_were(page, model, monkeypatch):
    before = model.weight(0).clone()

    def diverge(*args, **kwargs):
        raise ArithmeticError("the target of record 7 diverged")

    monkeypatch.setattr("bluelib.reports.demo.plot_comparison", diverge)
    page.edit.click()
    assert "the target of record 7 diverged" in page.message.value
    assert page.edits.value == "" and page.undo.disabled and not page.edit.disabled
    assert torch.equal(model.weight(0), before)


def test_there_is_an_end_to_a_list_of_edits(page):
    page._presses.append((tuple(RECORDS[:MAX_EDITS]), "", "", b""))
    page.subject.value = RECORDS[MAX_EDITS].subject
    page.edit.click()
    assert f"makes {MAX_EDITS} edits at most" in page.message.value


@pytest.mark.slow
def test_a_real_model_is_asked_in_chat_too(smollm2):
    page = EditPage(smollm2, load_dataset("facts", split="report"), subject="Nicaragua", target_new="Polish")
    assert page.questions.value.startswith("Which language do most people in Nicaragua speak?")
    page.edit.click()
    assert page.message.value.count("the edit holds, 2 of 2 paraphrases follow, 2 of 2 answers in chat follow") == 2
    assert not smollm2.changed_layers()
