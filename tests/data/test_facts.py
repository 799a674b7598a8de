"""The shipped facts keep every promise that their card makes."""

from __future__ import annotations

import json
import re
from collections import Counter

import pytest

from bluelib import evaluate, load_dataset
from bluelib.data import facts
from bluelib.data.provenance import records_hash

ENTRIES = json.loads(facts.PATH.read_text(encoding="utf-8"))
REWRITES = [entry["requested_rewrite"] for entry in ENTRIES]


def test_the_shipped_file_is_what_the_code_makes():
    shipped = [{key: value for key, value in entry.items() if key != "known"} for entry in ENTRIES]
    assert shipped == facts.build_facts()
    known = [{"known": entry["known"], "first_choice": False} for entry in ENTRIES]
    lines = facts.CARD.read_text(encoding="utf-8").splitlines()
    assert [line for line in facts._card(ENTRIES, known).splitlines() if "|" not in line] == [
        line for line in lines if "|" not in line
    ]


def test_there_are_enough_facts_of_enough_kinds_and_most_are_known():
    assert len(ENTRIES) >= 600
    assert len({rewrite["relation_id"] for rewrite in REWRITES}) >= 12
    assert sum(entry["known"] for entry in ENTRIES) >= 0.9 * len(ENTRIES)
    assert [entry["case_id"] for entry in ENTRIES] == list(range(len(ENTRIES)))
    pairs = Counter((rewrite["relation_id"], rewrite["subject"].lower()) for rewrite in REWRITES)
    assert set(pairs.values()) == {1}


def test_no_subject_is_in_both_splits():
    tune, report = (load_dataset("facts", split=split) for split in ("tune", "report"))
    assert len(tune) + len(report) == len(ENTRIES) and 0.25 < len(tune) / len(ENTRIES) < 0.4
    assert not {r.subject.lower() for r in tune} & {r.subject.lower() for r in report}


def test_a_new_object_is_another_one_of_the_relation_and_no_object_is_in_its_subject():
    relations = facts.relations()
    for rewrite in REWRITES:
        objects = relations[rewrite["relation_id"]].objects
        new, true = rewrite["target_new"]["str"], rewrite["target_true"]["str"]
        assert new != true and {new, true} <= objects.keys()
        named = [subject.lower() for subject in objects[true]]
        assert rewrite["subject"].lower() in named
        assert rewrite["subject"].lower() not in [subject.lower() for subject in objects[new]]
        assert not re.search(rf"\b{re.escape(true.lower())}\b", rewrite["subject"].lower()), rewrite
    for relation in relations.values():
        subjects = Counter(subject.lower() for subject, _ in relation.facts())
        assert set(subjects.values()) == {1}, f"{relation.name}: a subject has one object"
        assert relation.left_out <= {subject for subject, _ in relation.facts()}


def test_neighbours_are_other_subjects_of_which_the_true_object_is_true():
    relations = facts.relations()
    told = {}  # each prompt that can be made, with its subject and object
    for relation in relations.values():
        for subject, true in relation.facts():
            for template in (relation.prompt, relation.paraphrase):
                told[facts.say(template, subject)] = (subject.lower(), true)
    for entry, rewrite in zip(ENTRIES, REWRITES, strict=True):
        neighbours = entry["neighborhood_prompts"]
        assert 5 <= len(neighbours) == len(set(neighbours)) <= 10
        for prompt in neighbours:
            subject, true = told[prompt]
            assert true == rewrite["target_true"]["str"] and subject != rewrite["subject"].lower()
        for prompt in entry["attribute_prompts"]:
            assert told[prompt][1] == rewrite["target_new"]["str"]
    assert sum(len(entry["neighborhood_prompts"]) == 10 for entry in ENTRIES) > 0.9 * len(ENTRIES)


def test_every_text_is_clean_and_names_its_subject():
    for entry, rewrite in zip(ENTRIES, REWRITES, strict=True):
        subject = rewrite["subject"].lower()
        plain, behind = entry["paraphrase_prompts"]
        sentence = next(s for s in facts.UNRELATED if behind.startswith(s + " "))
        own = [rewrite["prompt"].replace("{}", rewrite["subject"]), plain, behind, *entry["questions"]]
        assert len({plain, behind.removeprefix(sentence).strip(), own[0]}) == 3
        assert len(entry["questions"]) == 2 and all(question.endswith("?") for question in entry["questions"])
        assert len(entry["generation_prompts"]) == 2
        for text in (*own, *entry["generation_prompts"]):
            assert subject in text.lower()
        for text in (*own, *entry["generation_prompts"], *entry["neighborhood_prompts"], *entry["attribute_prompts"]):
            assert text == text.strip() and "{" not in text and "  " not in text
            assert not re.search(r"\b(the|a|an) (the|a|an)\b", text.lower()), text
            assert text[0].isupper() or not text[0].isalpha()


def test_records_have_questions_and_the_hash_of_records_without_is_what_it_was():
    record, pocket = load_dataset("facts", limit=1)[0], load_dataset("pocket-counterfact", limit=1)
    assert record.questions == tuple(ENTRIES[0]["questions"])
    assert pocket[0].questions == ()
    assert records_hash(pocket) == "sha256:b4da3d1d0822b84ebfdd987a9a90aba2fd609a6e963e22fd3c39555b07a90d66"


@pytest.mark.slow
def test_what_is_known_is_what_the_model_says(smollm2, tmp_path):
    """Which facts are marked, which are left out, and the card, all made again."""
    written, card = facts.write_facts(smollm2, tmp_path / "facts.json", tmp_path / "README.md")
    assert written.read_bytes() == facts.PATH.read_bytes()
    assert card.read_text(encoding="utf-8") == facts.CARD.read_text(encoding="utf-8")
    left_out = {name: {s.lower() for s in r.left_out} for name, r in facts.relations().items() if r.left_out}
    again = facts.unknown_subjects(smollm2)
    assert {name: {subject.lower() for subject in subjects} for name, subjects in again.items()} == left_out
    scores = evaluate(smollm2, load_dataset("facts", split="report", limit=40), generate=False).means
    assert scores["efficacy"] < 15 and scores["specificity"] > 80
