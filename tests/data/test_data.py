"""Loaders of the benchmarks' schemas, and what they refuse."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import pytest

from bluelib import load_dataset
from bluelib.data import Record, RecordError
from bluelib.data.benchmarks import parse_zsre
from bluelib.data.datasets import BENCHMARKS, DATASETS, _warn, _warn_without_references
from bluelib.data.download import FILES, cached
from bluelib.data.provenance import repeated_subjects
from bluelib.io.tensors import file_hash
from bluelib.metrics import evaluate
from bluelib.metrics.editing import _say_unmeasured
from bluelib.pocket.datasets import write_datasets
from bluelib.pocket.world import build_world
from tests.support.small import random_model

COUNTERFACT = {
    "case_id": 12,
    "pararel_idx": 1,
    "requested_rewrite": {
        "prompt": "The mother tongue of {} is",
        "relation_id": "P103",
        "subject": "Ilvane Quillbrook",
        "target_new": {"str": "Dutch", "id": "Q1"},
        "target_true": {"str": "Polish", "id": "Q2"},
    },
    "paraphrase_prompts": ["It rains. Ilvane Quillbrook is a native speaker of"],
    "neighborhood_prompts": ["The mother tongue of Torrin Vantorre is"],
    "attribute_prompts": ["The mother tongue of Oskel Ashgrave is"],
    "generation_prompts": ["Ilvane Quillbrook lives where people speak"],
}
ZSRE = {
    "subject": "Ottermill Works",
    "src": "What does Ottermill Works make?",
    "pred": "tea",
    "rephrase": "What is made by Ottermill Works?",
    "alt": "kites",
    "answers": ["paper"],
    "loc": "nq question: who wrote the book",
    "loc_ans": "Nobody",
    "cond": "",
}
FLAT = {
    "case_id": 3,
    "prompt": "Ilvane Quillbrook plays the",
    "subject": "Ilvane Quillbrook",
    "target_new": "tuba",
    "ground_truth": "harp",
    "rephrase_prompt": "On stage, Ilvane Quillbrook performs on the",
    "locality_prompt": "Torrin Vantorre plays the",
    "locality_ground_truth": "harp",
}


POCKET = ("pocket-counterfact", "pocket-zsre")


@pytest.fixture
def write(tmp_path):
    def write(content):
        path = tmp_path / "records.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return path

    return write


def test_counterfact(write):
    (record,) = load_dataset(write([COUNTERFACT]))
    assert (record.case_id, record.kind, record.relation) == (12, "counterfact", "P103")
    assert record.request.text == "The mother tongue of Ilvane Quillbrook is"
    assert (record.target_new, record.target_true) == ("Dutch", "Polish")
    assert record.locality[0].answer == "Polish"
    assert record.questions == ()
    (asked,) = load_dataset(write([{**COUNTERFACT, "questions": ["What does Ilvane Quillbrook speak?"]}]))
    assert asked == replace(record, questions=("What does Ilvane Quillbrook speak?",))


#: What a record of CounterFact must have.
EDIT = {
    "case_id": 12,
    "requested_rewrite": {
        "prompt": "The mother tongue of {} is",
        "subject": "Ilvane Quillbrook",
        "target_new": {"str": "Dutch"},
        "target_true": {"str": "Polish"},
    },
}


def test_an_edit_is_all_that_a_record_of_counterfact_needs(write):
    (record,) = load_dataset(write([EDIT]))
    assert record == Record(12, "counterfact", "The mother tongue of {} is", "Ilvane Quillbrook", "Dutch", "Polish")


@pytest.mark.parametrize(
    ("fields", "left_out"),
    [
        (["generation_prompts"], ["fluency", "consistency"]),
        (["attribute_prompts"], []),
        (["paraphrase_prompts"], ["generalization"]),
        (["neighborhood_prompts"], ["specificity"]),
        (
            ["paraphrase_prompts", "neighborhood_prompts", "attribute_prompts", "generation_prompts"],
            ["generalization", "specificity", "fluency", "consistency"],
        ),
    ],
)
def test_what_missing_prompts_would_measure_is_left_out(write, fields, left_out):
    model, entry = random_model("pocket-gpt2"), {**COUNTERFACT, "reference_texts": ["Dutch is spoken there."]}
    whole = evaluate(model, load_dataset(write([entry])))
    assert list(whole.means) == ["efficacy", "generalization", "specificity", "fluency", "consistency"]
    fewer = load_dataset(write([{name: value for name, value in entry.items() if name not in fields}]))
    found = evaluate(model, fewer)
    assert found.means == {name: value for name, value in whole.means.items() if name not in left_out}


@pytest.mark.parametrize(("entry", "times"), [(EDIT, 1), (FLAT, 1), (COUNTERFACT, 0), (ZSRE, 0)])
def test_that_nothing_is_generated_is_said_once(write, caplog, entry, times):
    model = random_model("pocket-gpt2")
    _say_unmeasured.cache_clear()
    records = load_dataset(write([entry]))
    evaluate(model, records, generate=False)
    said = "no record has generation_prompts: fluency and consistency cannot be measured"
    assert said not in caplog.text, "nobody asked"
    for _ in range(2):
        evaluate(model, records)
    assert caplog.text.count(said) == times


def test_one_record_with_generation_prompts_is_enough(write, caplog):
    _warn.cache_clear()
    load_dataset(write([EDIT, {**COUNTERFACT, "case_id": 13}]))
    assert not caplog.text


def test_zsre_edits_to_the_answer_by_default(write):
    (record,) = load_dataset(write([ZSRE]))
    assert (record.kind, record.prompt, record.target_new) == ("zsre", "What does {} make?", "paper")
    assert record.locality[0].prompt == "nq question: who wrote the book?"


def test_of_a_zsre_record_no_field_is_dropped_without_a_word(write, caplog):
    """A question that follows from MEND's alternative answer is read where that is installed, and otherwise named."""
    entry = {**ZSRE, "separator": "", "portability": {"New Question": "Who reads it?", "New Answer": "Ann"}}
    (record,) = load_dataset(write([entry]))
    assert record.separator == "" and not record.portability
    assert "portability is not read: it follows from `alt`" in caplog.text
    alternative = parse_zsre(entry, 0, target="alt")
    assert alternative.portability["Reasoning"][0].queries[0].prompt == "Who reads it?"


def test_no_split_is_the_split_to_report_on(write):
    assert load_dataset(write([{**FLAT, "split": None}])) == load_dataset(write([FLAT]))


def test_flat_counterfact(write):
    (record,) = load_dataset(write([FLAT]))
    assert (record.prompt, record.target_new, record.locality[0].answer) == ("{} plays the", "tuba", "harp")


def test_pocket_datasets_have_disjoint_splits_of_distinct_subjects():
    for name in POCKET:
        tune, report = (load_dataset(name, split=split) for split in ("tune", "report"))
        subjects = [record.subject for record in tune + report]
        assert len(tune) == 400 and len(report) == 800
        assert len(set(subjects)) == len(subjects)
    both = [{r.subject for r in load_dataset(name, split="tune")} for name in POCKET]
    assert both[0] == both[1]


def test_pocket_counterfact_is_a_full_counterfact():
    relations = build_world().relations
    records = load_dataset("pocket-counterfact")
    edited = {(record.subject, record.relation) for record in records}
    for record in records:
        assert len(record.paraphrases) == 2
        assert sum(p.count(".") > 0 and not p.startswith(record.subject) for p in record.paraphrases) >= 1
        assert len({probe.prompt for probe in record.locality}) == 10
        asked = relations[record.relation].statements
        touched = {t.format(s) for s, r in edited if r == record.relation for t in asked}
        assert not touched & {probe.prompt for probe in record.locality}
        own = {template.format(record.subject) for template in relations[record.relation].statements}
        assert not own & {probe.prompt for probe in record.locality}
        assert set(record.paraphrases[1:]) | {record.request.text} <= own
        assert record.target_new != record.target_true
        assert record.reference_texts and all(record.target_new in text for text in record.reference_texts)
        assert all(record.subject in prompt for prompt in (*record.paraphrases, *record.generation_prompts))


def test_shipped_datasets_are_what_their_generator_makes(tmp_path):
    for path in write_datasets(tmp_path):
        assert path.read_bytes() == DATASETS[path.stem].path.read_bytes()


def test_seed_zero_keeps_the_order_and_others_shuffle():
    own = load_dataset("pocket-zsre", split="report", limit=20)
    assert own == load_dataset("pocket-zsre", split="report", limit=20, seed=0)
    other = load_dataset("pocket-zsre", split="report", limit=20, seed=1)
    assert other == load_dataset("pocket-zsre", split="report", limit=20, seed=1)
    assert {r.subject for r in other} != {r.subject for r in own}


def broken(record, path, value=None):
    record = copy.deepcopy(record)
    *parents, last = path.split(".")
    place = record
    for key in parents:
        place = place[key]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return record


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (broken(COUNTERFACT | {"case_id": None}, "paraphrase_prompts"), "field 'case_id' must be int or str"),
        (
            broken(COUNTERFACT, "requested_rewrite", 5),
            "record 12: field 'requested_rewrite.prompt' is missing",
        ),
        (
            broken(COUNTERFACT, "requested_rewrite.relation_id", 7),
            "record 12: field 'requested_rewrite.relation_id' must be a string: write \"7\" with quotes",
        ),
        (
            broken(COUNTERFACT, "attribute_prompts", {}),
            "record 12: field 'attribute_prompts' must be list, not dict",
        ),
        (
            broken(COUNTERFACT, "generation_prompts", "text"),
            "record 12: field 'generation_prompts' must be list, not str",
        ),
        (
            broken(COUNTERFACT, "neighborhood_prompts", 5),
            "record 12: field 'neighborhood_prompts' must be list, not int",
        ),
        (
            broken(COUNTERFACT, "requested_rewrite.target_new"),
            "record 12: field 'requested_rewrite.target_new.str' is missing",
        ),
        (broken(COUNTERFACT, "requested_rewrite.prompt", "no subject"), r"record 12: prompt must contain \{\}"),
        (broken(COUNTERFACT, "requested_rewrite.subject", " "), "record 12: subject must be a non-empty string"),
        (broken(COUNTERFACT, "requested_rewrite.target_new", {"str": ""}), "record 12: target_new must be a non-empty"),
        (broken(COUNTERFACT, "requested_rewrite.target_new", {"str": 5}), 'must be a string: write "5" with quotes'),
        (broken(COUNTERFACT, "neighborhood_prompts", [1]), "record 12: locality holds 1"),
        (
            broken(COUNTERFACT, "paraphrase_prompts", "text"),
            "record 12: field 'paraphrase_prompts' must be list, not str",
        ),
        (broken(ZSRE, "src", "What is made?"), "record 0: field 'src' does not mention the subject 'Ottermill Works'"),
        (broken(ZSRE, "answers", [3]), "record 0: field 'answers' must start with a string"),
        (broken(ZSRE, "loc_ans"), "record 0: field 'loc_ans' is missing"),
        (broken(FLAT, "subject", ""), "record 3: subject must be a non-empty string"),
        (broken(FLAT, "target_new"), "record 3: field 'target_new' is missing"),
    ],
)
def test_a_broken_record_is_refused_with_its_id_and_field(write, record, message):
    with pytest.raises(RecordError, match=message):
        load_dataset(write([record]))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{not json", "is not JSON"),
        ([], "JSON list of records"),
        ({"a": 1}, "JSON list"),
        ([{"x": 1}], "in no known form"),
        ([COUNTERFACT, 5], "record at position 1: must be an object"),
        ([5, "x"], "record at position 0 must be an object, not int"),
    ],
)
def test_a_broken_file_is_refused(write, content, message):
    with pytest.raises(ValueError, match=message):
        load_dataset(write(content))


def test_unknown_names_and_limits_are_refused():
    with pytest.raises(ValueError, match="known: pocket-counterfact, pocket-zsre"):
        load_dataset("nonsense")
    with pytest.raises(ValueError, match="not one of tune, report"):
        load_dataset("pocket-zsre", split="test")
    with pytest.raises(ValueError, match="at least 1, not 0"):
        load_dataset("pocket-zsre", limit=0)
    with pytest.raises(FileNotFoundError):
        load_dataset("missing.json")


@pytest.fixture
def put(tmp_path, monkeypatch):
    """Puts a file into a cache of the test's own, as if it had been downloaded."""
    monkeypatch.setenv("BLUELIB_CACHE", str(tmp_path))
    _warn_without_references.cache_clear()

    def put(name, content):
        cached(name).write_text(json.dumps(content), encoding="utf-8")
        monkeypatch.setitem(FILES, name, replace(FILES[name], sha256=file_hash(cached(name))))

    return put


def counterfact(case_id, new):
    record = broken(COUNTERFACT, "requested_rewrite.target_new", {"str": new, "id": f"Q-{new}"})
    return {**record, "case_id": case_id}


SNIPPETS = [
    {
        "relation_id": "P103",
        "target_id": "Q-Dutch",
        "samples": [{"name": "a", "text": "Dutch it is."}, {"name": "b", "text": " "}],
    },
    {"relation_id": "P103", "target_id": "Q-Greek", "samples": [{"name": "c", "text": "Nobody edits to Greek."}]},
    {"relation_id": "P37", "target_id": "Q-Dutch", "samples": [{"name": "d", "text": "Another relation."}]},
    {"relation_id": "P103", "target_id": "Q-Dutch", "samples": [{"name": "e", "text": "Dutch once more."}]},
]


@pytest.mark.parametrize("name", ["counterfact", "multi-counterfact"])
def test_counterfact_by_name_has_its_reference_texts(put, name):
    put(name, [counterfact(i, new) for i, new in enumerate(["Dutch", "Welsh", "Dutch"])])
    put("attribute-snippets", SNIPPETS)
    records = load_dataset(name, split="report")
    assert [record.case_id for record in records] == [0, 1, 2]
    dutch = ("Dutch it is.", "Dutch once more.")
    assert [record.reference_texts for record in records] == [dutch, (), dutch]
    assert load_dataset(name, limit=2) == records[:2]
    shuffled = load_dataset(name, seed=3)
    assert shuffled != records and sorted(shuffled, key=lambda record: record.case_id) == records
    assert load_dataset(cached(name))[0] == replace(records[0], reference_texts=()), "a path is read as it stands"


def test_without_snippets_counterfact_has_no_reference_texts_and_says_so_once(put, caplog):
    put("counterfact", [counterfact(0, "Dutch")])
    for _ in range(2):
        assert load_dataset("counterfact")[0].reference_texts == ()
    assert caplog.text.count("`blue download attribute-snippets` fetches it") == 1


def test_broken_snippets_are_refused(put):
    put("counterfact", [counterfact(0, "Dutch")])
    put("attribute-snippets", [broken(SNIPPETS[0], "target_id")])
    with pytest.raises(RecordError, match="at position 0 of the snippets: field 'target_id' is missing"):
        load_dataset("counterfact")
    put("attribute-snippets", [{**SNIPPETS[0], "samples": [{"name": "a"}]}])
    with pytest.raises(RecordError, match="at position 0 of the snippets: field 'text' is missing"):
        load_dataset("counterfact")


@pytest.mark.parametrize("field", ["target_new.id", "relation_id"])
def test_a_record_that_names_no_relation_or_no_object_has_no_reference_texts(put, field):
    put("attribute-snippets", SNIPPETS)
    whole = counterfact(0, "Dutch")
    put("counterfact", [whole, {**broken(whole, f"requested_rewrite.{field}"), "case_id": 1}])
    found = load_dataset("counterfact")
    assert [len(record.reference_texts) for record in found] == [2, 0]
    assert found[1].relation == (None if field == "relation_id" else "P103")
    put("counterfact", [broken(whole, f"requested_rewrite.{field}", 5)])
    with pytest.raises(
        RecordError, match=f"record 0: field 'requested_rewrite.{field}' must be a string: write \"5\" with"
    ):
        load_dataset("counterfact")


def test_zsre_by_name_installs_the_right_answer(put):
    put("zsre", [ZSRE])
    (record,) = load_dataset("zsre", split="report")
    assert (record.target_new, record.target_true, record.reference_texts) == ("paper", None, ())
    with pytest.raises(ValueError, match=r"has no records in split 'tune'"):
        load_dataset("zsre", split="tune")


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_that_is_not_here_is_asked_for(put, name):
    with pytest.raises(
        FileNotFoundError, match=f"{name} is not in the cache: run `blue download {name}`, or put https://.*by hand"
    ):
        load_dataset(name)
    cached(name).write_text("[]", encoding="utf-8")
    with pytest.raises(ValueError, match=f"has SHA-256 .* should have {FILES[name].sha256}"):
        load_dataset(name)


def test_subjects_are_numbered_where_they_repeat():
    records = load_dataset("pocket-counterfact", split="report", limit=4)
    assert repeated_subjects(records) == {}, "all differ"
    again = [*records[:2], replace(records[3], subject=f" {records[0].subject.upper()}"), records[3]]
    assert repeated_subjects(again) == {"subjects": [0, 1, 0, 2]}
