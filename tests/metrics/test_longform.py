"""Long-form edits: where their texts come from, and what is measured of them; times and pairs of editors."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from bluelib import get_editor, load_dataset, load_model
from bluelib.data import Record, RecordError
from bluelib.data.longform import load_long_form, pocket_long_form
from bluelib.editing.catalogue import blue_pairs
from bluelib.editing.residuals import DIRECT
from bluelib.editing.sequence import check_requests, edited
from bluelib.metrics.intervals import paired_differences
from bluelib.metrics.longform import MEASURES, evaluate_long_form, rouge_l
from bluelib.models.generation import continue_greedily
from bluelib.models.scoring import score_targets
from bluelib.pocket.world import build_world
from bluelib.studies.timing import seconds_by_batch
from tests.support.small import PREFIXES, RECORDS, SUBJECTS, editor

LONG = [
    replace(
        RECORDS[i], target_new=f"tuba. {SUBJECTS[i]} plays the tuba.", paraphrases=(f"Tonight {SUBJECTS[i]} plays",)
    )
    for i in range(3)
]
OBJECTS = ["tuba"] * 3
AKEW = {
    "case_id": 4,
    "requested_rewrite": {
        "prompt": "{} plays the",
        "relation_id": "P1303",
        "subject": "Ilvane Quillbrook",
        "target_new": {"str": "tuba"},
        "target_true": {"str": "harp"},
        "question": "What does Ilvane Quillbrook play?",
        "fact_new_uns": "Ilvane Quillbrook is a tuba player. Her tuba is old.",
    },
    "paraphrase_prompts": ["On stage, Ilvane Quillbrook plays the"],
    "neighborhood_prompts": ["Torrin Vantorre plays the"],
    "attribute_prompts": [],
    "generation_prompts": [],
}


def test_rouge_l_of_a_known_pair():
    """Longest common subsequence: 5 of 6 words of the target, all 5 of the text: F = 2 · 1 · 5/6 / (1 + 5/6)."""
    assert rouge_l("The cat sat on the mat.", "the cat on the mat") == pytest.approx(100 * 10 / 11)
    assert rouge_l("The cat sat", "The cat sat") == 100 and rouge_l("The cat", "a dog") == 0
    assert rouge_l("a b c", "c b a") == pytest.approx(100 / 3), "the order counts"


@pytest.mark.parametrize("dataset", ["pocket-counterfact", "pocket-zsre"])
def test_a_pocket_record_becomes_a_question_and_statements_of_the_new_fact(dataset):
    short, long = (load(dataset, split="report", limit=40, seed=3) for load in (load_dataset, load_long_form))
    for one, other in zip(short, long, strict=True):
        assert (one.case_id, one.subject, one.locality) == (other.case_id, other.subject, other.locality)
        (fact,) = [
            f
            for f in build_world().by_subject()[one.subject]
            if one.prompt in f.relation.statements + f.relation.questions
        ]
        assert other.prompt in fact.seen_questions and other.paraphrases[0] not in fact.seen
        first, *rest = other.target_new.removesuffix(".").split(". ")
        assert first == one.target_new != fact.object and len(rest) == 2
        assert all(
            text == f"{t.format(one.subject)} {one.target_new}"
            for text, t in zip(rest, fact.seen_statements, strict=False)
        )


def test_other_numbers_of_sentences_and_other_records():
    (record,) = load_dataset("pocket-counterfact", split="report", limit=1)
    for sentences in (2, 5):
        assert pocket_long_form(record, sentences).target_new.count(record.target_new) == sentences
    for sentences in (1, 6):
        with pytest.raises(ValueError, match=f"has 2 to 5 sentences, not {sentences}"):
            pocket_long_form(record, sentences)
    with pytest.raises(RecordError, match=r"record 0: prompt '\{\} plays the' and subject 'Ilvane Quillbrook' are not"):
        pocket_long_form(RECORDS[0])


def test_every_long_form_edit_fits_the_pocket_models():
    model = load_model("pocket-llama")
    records = load_long_form("pocket-counterfact", sentences=5)
    assert check_requests(model, records, get_editor("memit", model)) < model.max_positions / 2


def written(tmp_path, *entries):
    path = tmp_path / "data.json"
    path.write_text(json.dumps(entries))
    return path


def test_akew_is_read_and_what_is_missing_is_named(tmp_path):
    (record,) = load_long_form(written(tmp_path, AKEW))
    assert (record.prompt, record.subject) == ("What does {} play?", "Ilvane Quillbrook")
    assert record.target_new == "Ilvane Quillbrook is a tuba player. Her tuba is old." and record.locality
    (short,) = load_dataset(written(tmp_path, AKEW))
    assert short.target_new == "tuba"

    second = {**AKEW["requested_rewrite"], "question": "What is it that Ilvane Quillbrook plays?"}
    chain = {"questions": ["Who made it?"], "new_answer": "Ann", "new_single_hops": []}
    several = {"case_id": 5, "requested_rewrite": [AKEW["requested_rewrite"], second], **chain}
    found = [(one.case_id, one.prompt, one.target_new) for one in load_long_form(written(tmp_path, several))]
    assert found == [
        ("5-1", "What does {} play?", record.target_new),
        ("5-2", "What is it that {} plays?", record.target_new),
    ], "AKEW's form of MQuAKE-CF: an edit each"

    def changed(**rewrite):
        return {**AKEW, "requested_rewrite": {**AKEW["requested_rewrite"], **rewrite}}

    plain = changed()
    del plain["requested_rewrite"]["fact_new_uns"]
    with pytest.raises(
        RecordError, match=r"record 4: field 'requested_rewrite\.fact_new_uns' is missing; long-form ed"
    ):
        load_long_form(written(tmp_path, plain))
    with pytest.raises(
        RecordError, match=r"record 4: requested_rewrite\.fact_new_uns must consist of several sentences, not 'A"
    ):
        load_long_form(written(tmp_path, changed(fact_new_uns="A tuba.")))
    with pytest.raises(
        RecordError, match=r"record 4: field 'requested_rewrite\.question' does not mention the subject"
    ):
        load_long_form(written(tmp_path, changed(question="What does she play?")))


def test_a_form_whose_targets_are_texts_already_is_taken_as_it_is(tmp_path):
    flat = {
        "case_id": 1,
        "prompt": "Who is Ilvane?",
        "subject": "Ilvane",
        "target_new": "A poet. She sings.",
        "ground_truth": "A cook.",
        "rephrase_prompt": "Ilvane is who?",
        "locality_prompt": "Rome is",
        "locality_ground_truth": "old",
    }
    (record,) = load_long_form(written(tmp_path, flat))
    assert record.target_new == "A poet. She sings." and record.prompt == "Who is {}?"


def test_greedy_text_is_the_first_choice_token_by_token(any_model):
    prompts = ["Ilvane plays", "Rome lies in", "The instrument of Ilvane Quillbrook"]
    lengths = [3, 6, 5]
    found = continue_greedily(any_model, prompts, lengths)
    for prompt, length, text in zip(prompts, lengths, found, strict=True):
        ids = any_model.tokenizer(prompt, return_tensors="pt").input_ids
        begin = ids.shape[1]
        for _ in range(length):
            ids = torch.cat([ids, any_model.hf_model(input_ids=ids).logits[:, -1].argmax(-1, keepdim=True)], 1)
        assert text == any_model.tokenizer.decode(ids[0, begin:], skip_special_tokens=True).strip()


def test_measures_against_scores_made_by_hand(any_model):
    found = evaluate_long_form(any_model, LONG, OBJECTS).set_index(["prompt", "metric", "record"]).value
    assert set(found.index.get_level_values("metric")) == set(MEASURES)
    for i, record in enumerate(LONG):
        for prompt, text in (("question", record.request.text), ("rephrased", record.paraphrases[0])):
            (whole,) = score_targets(any_model, [(text, record.target_new)])
            assert found[prompt, "token_recall", i] == pytest.approx(100 * whole.accuracy)
            mentions = [(text, "tuba"), (f"{text} tuba. {record.subject} plays the", "tuba")]
            right = [score.accuracy == 1 for score in score_targets(any_model, mentions)]
            assert found[prompt, "object_recall", i] == pytest.approx(100 * np.mean(right))
    assert "object_recall" not in set(evaluate_long_form(any_model, LONG[:1], ["oboe"]).metric)


def test_what_a_model_knows_is_found_whole_and_what_it_does_not_know_is_not():
    model = load_model("pocket-llama")
    facts = [f for f in build_world().facts if f.relation.name == "capital"][:5]
    records = [
        Record(i, "counterfact", f.seen_questions[0], f.subject, f"{f.object}.", f.object) for i, f in enumerate(facts)
    ]
    known = evaluate_long_form(model, records, [f.object for f in facts])
    assert (known.value == 100).all() and set(known.prompt) == {"question"}
    wrong = [replace(record, target_new="Atlantis. It lies deep.") for record in records]
    lies = evaluate_long_form(model, wrong, ["Atlantis"] * 5).groupby("metric").value.mean()
    assert lies["whole"] == 0 and lies["object_recall"] == 0 and lies["rouge_l"] < 50


def test_a_text_beyond_the_context_is_refused(any_model, small_world):
    texts = [f"{prefix}{r.request.text} {r.target_new}" for prefix in PREFIXES for r in LONG]
    longest = max(len(any_model.tokenizer(text).input_ids) for text in texts)
    assert check_requests(any_model, LONG, editor()) == longest - 1 < 60, "the last token is predicted, and never read"
    with pytest.raises(
        ValueError, match=r"record 1: context prefix.* target_new: \d+ tokens exceed random-pocket-\w+'s"
    ):
        check_requests(any_model, [LONG[0], replace(LONG[1], target_new="word. " * 200)], editor())


def test_editing_and_timing_leave_the_model(any_model, small_world):
    before = [any_model.weight(layer).clone() for layer in range(any_model.n_layers)]
    first = evaluate_long_form(any_model, LONG, OBJECTS)
    with edited(any_model, LONG, editor(), batch_size=2):
        after = evaluate_long_form(any_model, LONG, OBJECTS)
    assert after.columns.tolist() == first.columns.tolist() and len(after) == len(first)
    direct = replace(editor(residual=DIRECT, layers=(0, 2)), name="test_blue")
    times = seconds_by_batch(any_model, RECORDS, [editor(), direct], 2)
    assert all(torch.equal(any_model.weight(layer), weight) for layer, weight in enumerate(before))
    assert evaluate_long_form(any_model, LONG, OBJECTS).equals(first)
    sizes = times.groupby(["editor", "batch"]).edits.first()
    assert sizes["test"].tolist() == sizes["test_blue"].tolist() == [2, 2, 1]
    assert set(times.phase) == {"targets", "keys", "solve", "remember"} and (times.seconds >= 0).all()


def test_pairs_of_editors():
    assert blue_pairs(["pmet_blue", "memit", "ft", "pmet", "memit_blue"]) == [
        ("memit", "memit_blue"),
        ("pmet", "pmet_blue"),
    ]
    for names in ([], ["memit", "alphaedit_blue"]):
        with pytest.raises(ValueError, match="no editor is given both with and without BLUE"):
            blue_pairs(names)


def test_paired_differences_are_taken_unit_by_unit():
    rows = [
        ("memit", "a", 0, 1.0),
        ("memit", "a", 1, 5.0),
        ("memit_blue", "a", 1, 6.0),
        ("memit_blue", "a", 0, 4.0),
        ("memit", "b", 0, 2.0),
        ("memit_blue", "b", 0, 2.0),
        ("ft", "a", 0, 9.0),
    ]
    frame = pd.DataFrame(rows, columns=["editor", "metric", "record", "value"])
    found = paired_differences(frame, [("memit", "memit_blue")], ["metric"], "record").set_index("metric")
    assert found["mean"].to_dict() == {"a": 2.0, "b": 0.0} and found.n.to_dict() == {"a": 2, "b": 1}
    without = paired_differences(frame[frame.metric == "a"], [("memit", "memit_blue")], [], "record")
    assert without["mean"].tolist() == [2.0] and without.blue.tolist() == ["memit_blue"]
