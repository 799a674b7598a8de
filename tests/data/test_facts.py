"""The dataset of real facts: what its card promises holds for the file that ships."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest

from bluelib import load_dataset
from bluelib.cli import main
from bluelib.data import facts as module
from bluelib.data.datasets import DATASETS, choosing_split, of_pocket_world
from bluelib.data.facts import (
    Checked,
    build_facts,
    check_facts,
    read_checked,
    read_lore,
    subject_key,
    write_checked,
    write_facts,
)
from bluelib.io.assets import ASSETS
from bluelib.io.formats import read_json
from bluelib.metrics import evaluate
from bluelib.studies.shift import known_facts
from tests.support.small import random_model

SHIPPED = ASSETS / "datasets"
ENTRIES = json.loads((SHIPPED / "facts.json").read_text(encoding="utf-8"))
TRUE = {(fact.relation, fact.subject): fact.object for fact in read_lore().facts}


def about(prompt: str) -> set[tuple[str, str]]:
    """The facts of the tables of which a prompt is a wording."""
    found = set()
    for relation in read_lore().relations.values():
        for template in relation.statements:
            before, after = template.split("{}")
            if prompt.startswith(before) and prompt.endswith(after):
                subject = prompt[len(before) : len(prompt) - len(after)]
                if (relation.name, subject) in TRUE:
                    found.add((relation.name, subject))
    return found


def edit(entry) -> tuple[str, str]:
    return entry["requested_rewrite"]["relation_id"], entry["requested_rewrite"]["subject"]


def texts(entry) -> list[str]:
    lists = ("paraphrase_prompts", "neighborhood_prompts", "attribute_prompts", "generation_prompts", "questions")
    return [text for name in lists for text in entry[name]]


def test_the_shipped_files_are_what_the_tables_make(tmp_path):
    paths = write_facts(tmp_path)
    assert [path.name for path in paths] == ["facts.json", "README.md"]
    for path in paths:
        assert path.read_bytes() == (SHIPPED / path.name).read_bytes()


def test_it_has_so_many_records_and_relations():
    assert len(ENTRIES) >= 600
    counts = Counter(relation for relation, _ in map(edit, ENTRIES))
    assert len(counts) >= 12 and min(counts.values()) >= 10
    assert [entry["case_id"] for entry in ENTRIES] == list(range(len(ENTRIES)))
    assert len(set(map(edit, ENTRIES))) == len(ENTRIES)
    assert len({(relation, subject_key(subject)) for relation, subject in map(edit, ENTRIES)}) == len(ENTRIES)


def test_splits_share_no_subject():
    subjects = {
        split: {subject_key(edit(entry)[1]) for entry in ENTRIES if entry["split"] == split}
        for split in ("tune", "report")
    }
    assert not subjects["tune"] & subjects["report"]
    assert 0.28 < len(load_dataset("facts", split="tune")) / len(ENTRIES) < 0.39
    assert len(load_dataset("facts", split="report")) + len(load_dataset("facts", split="tune")) == len(ENTRIES)


def test_an_edit_is_of_a_true_object_into_one_that_is_false():
    for entry in ENTRIES:
        rewrite = entry["requested_rewrite"]
        relation = read_lore().relations[rewrite["relation_id"]]
        true, new = rewrite["target_true"]["str"], rewrite["target_new"]["str"]
        assert TRUE[edit(entry)] == true
        assert new in {value for (name, _), value in TRUE.items() if name == relation.name} - {true}
        assert new not in relation.also.get(rewrite["subject"], ())
        assert true.casefold() not in new.casefold() and new.casefold() not in true.casefold()
        assert true.casefold() not in rewrite["subject"].casefold().split()
        assert rewrite["prompt"] == relation.statements[0]


def test_no_true_answer_is_called_false_in_another_relation():
    """A subject that two relations with the same kind of object are about has one object of it, or several that are true."""
    kinds = {name: relation.kind for name, relation in read_lore().relations.items()}
    known: dict[tuple[str, str], set[str]] = {}
    for (relation, subject), value in TRUE.items():
        known.setdefault((kinds[relation], subject_key(subject)), set()).add(value)
    assert {pair: values for pair, values in known.items() if len(values) > 1} == {}


def test_paraphrases_and_questions_are_about_the_subject():
    sentences = read_lore().unrelated
    for entry in ENTRIES:
        relation, subject = edit(entry)
        statements = {template.format(subject) for template in read_lore().relations[relation].statements[1:]}
        behind, plain = entry["paraphrase_prompts"]
        (sentence,) = [sentence for sentence in sentences if behind.startswith(sentence + " ")]
        assert {plain, behind.removeprefix(sentence + " ")} <= statements
        assert plain != behind.removeprefix(sentence + " ")
        assert all(subject in text for text in (plain, behind, *entry["generation_prompts"], *entry["questions"]))
        assert all(question.endswith("?") for question in entry["questions"])
        assert 1 <= len(entry["questions"]) <= 2 <= len(entry["generation_prompts"]) <= 3


def test_neighbours_have_the_true_object_and_are_about_nothing_that_is_edited():
    edited = {subject_key(subject) for _, subject in map(edit, ENTRIES)}
    kinds = {name: relation.kind for name, relation in read_lore().relations.items()}
    for entry in ENTRIES:
        relation, subject = edit(entry)
        for field, target in (("neighborhood_prompts", "target_true"), ("attribute_prompts", "target_new")):
            prompts = entry[field]
            assert 5 <= len(prompts) <= 10 and len(set(prompts)) == len(prompts)
            for prompt in prompts:
                facts = about(prompt)
                assert facts
                for other, name in facts:
                    assert TRUE[other, name] == entry["requested_rewrite"][target]["str"]
                    assert kinds[other] == kinds[relation]
                    assert subject_key(name) not in edited
                assert not re.search(rf"(?<!\w){re.escape(subject)}(?!\w)", prompt)
    full = sum(len(entry["neighborhood_prompts"]) == 10 for entry in ENTRIES)
    assert full >= 0.95 * len(ENTRIES)


def test_prompts_are_clean():
    for entry in ENTRIES:
        for text in (*texts(entry), entry["requested_rewrite"]["prompt"].format(edit(entry)[1])):
            assert text == text.strip() and "  " not in text and "{" not in text
            words = text.casefold().split()
            assert not any(first == second for first, second in pairwise(words)), text
            assert not re.search(r"\b(the|a|an) (the|a|an)\b", text.casefold()), text
            assert text[0].isupper(), text


def test_nine_of_ten_records_are_known_to_the_small_model():
    name, checked = read_checked()
    assert set(checked) == set(map(edit, ENTRIES))
    assert all(entry["known"] is checked[edit(entry)].known for entry in ENTRIES)
    assert sum(entry["known"] for entry in ENTRIES) >= 0.9 * len(ENTRIES)
    assert f"## What {name} knows" in (SHIPPED / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_check_is_of_two_probabilities(tmp_path, monkeypatch):
    """It says of a model what `evaluate` says: a record is known where the edit has no efficacy yet."""
    model = random_model("pocket-gpt2")
    found = check_facts(model)
    records = load_dataset("facts")
    assert set(found) == {(record.relation, record.subject) for record in records}
    assert {checked.known for checked in found.values()} == {True, False}
    few = [replace(record, paraphrases=(), locality=()) for record in records[::40]]
    for record, scores in zip(few, evaluate(model, few, generate=False).records, strict=True):
        assert found[record.relation, record.subject].known == (scores["efficacy"] == 0)
        assert found[record.relation, record.subject].new == record.target_new

    monkeypatch.setattr(module, "CHECKED", write_checked(model, tmp_path / "checked.json"))
    assert read_checked() == (model.name, found)
    assert [entry["known"] for entry in build_facts()] == [found[edit(entry)].known for entry in ENTRIES]


def test_a_record_that_was_not_checked_is_refused(monkeypatch):
    name, checked = read_checked()
    pair = next(iter(checked))
    checked[pair] = Checked("another", True, True)
    monkeypatch.setattr(module, "read_checked", lambda: (name, checked))
    with pytest.raises(ValueError, match=f"has no entry for '{re.escape(pair[1])}' in {pair[0]}"):
        build_facts()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": "The capital is"}, "must contain {} for the subject exactly once"),
        ({"prompt": "The capital of {} is "}, "neither start nor end with a blank"),
        ({"rewordings": ["In {}, it is"]}, "3 other rewordings"),
        ({"facts": {"Paris": ["France"], "Lyon": ["the France", "France"]}}, "appears twice"),
        ({"also": {"Spain": ["Paris"]}}, "'also' of 'Spain' must be about a subject"),
        ({"also": {"France": ["Madrid"]}}, "'also' of 'France' must be about a subject and objects"),
    ],
)
def test_tables_that_cannot_be_right_are_refused(tmp_path, monkeypatch, change, message):
    relation = {
        "object": "city",
        "prompt": "The capital of {} is",
        "rewordings": ["{} is governed from", "The seat of {} is", "In {}, the capital is"],
        "questions": ["What is the capital of {}?"],
        "openings": ["{} is", "In {}"],
        "facts": {"Paris": ["France"]},
    }
    monkeypatch.setattr(module, "LORE", tmp_path)
    (tmp_path / "unrelated.yaml").write_text('["It rained."]', encoding="utf-8")
    (tmp_path / "capital.yaml").write_text(json.dumps(relation), encoding="utf-8")
    assert [fact.object for fact in read_lore.__wrapped__().facts] == ["Paris"]
    (tmp_path / "capital.yaml").write_text(json.dumps({**relation, **change}), encoding="utf-8")
    with pytest.raises(ValueError, match=f"^capital.yaml.*{re.escape(message)}"):
        read_lore.__wrapped__()


def test_it_is_loaded_by_its_name():
    record = load_dataset("facts", split="report", limit=1)[0]
    entry = next(entry for entry in ENTRIES if entry["split"] == "report")
    assert record.questions == tuple(entry["questions"])
    assert (record.relation, record.subject) == edit(entry)
    assert {probe.answer for probe in record.locality} == {record.target_true}
    assert choosing_split("facts") == "tune"
    assert [name for name in DATASETS if not of_pocket_world(name)] == ["facts", "facts-ripple"]


def test_known_facts_of_it_are_its_neighbours(monkeypatch):
    """Not those of the pocket world."""
    records = load_dataset("facts", split="report", limit=20)
    probes = {probe for record in records for probe in record.locality}
    monkeypatch.setattr("bluelib.studies.shift.recalled", lambda model, facts: [True] * len(facts))
    monkeypatch.setattr("bluelib.studies.shift.cached", lambda name: ASSETS / "nothing")
    found = known_facts(random_model("pocket-gpt2"), "facts", records, 12)
    assert len(found) == 12 and set(found) <= probes


def test_the_command_writes_it(tmp_path, capsys):
    assert main(["datasets", "--write", str(tmp_path), "--json"]) == 0
    names = [path.rpartition("/")[2] for path in json.loads(capsys.readouterr().out)["written"]]
    assert names == [
        "pocket-counterfact.json",
        "pocket-zsre.json",
        "pocket-ripple.json",
        "facts.json",
        "README.md",
        "facts-ripple.json",
    ]
    assert (tmp_path / "facts.json").read_bytes() == (SHIPPED / "facts.json").read_bytes()


@pytest.mark.slow
def test_what_is_marked_as_known_is_what_the_model_says(smollm2):
    """The kept verdicts, of the weights they name, made again."""
    model, checked = read_checked()
    assert model == smollm2.name and read_json(module.CHECKED)["weights"] == smollm2.revision
    again = check_facts(smollm2)
    differing = [place for place, verdict in again.items() if verdict != checked[place]]
    assert again.keys() == checked.keys() and not differing
