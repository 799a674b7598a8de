"""What follows from an edit: the schemas of KnowEdit, RippleEdits and MQuAKE, on records made up for it."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path

import pytest

from bluelib import load_dataset
from bluelib.data import RecordError, facts_ripple
from bluelib.data.consequences import parse_consequences
from bluelib.data.datasets import DATASETS, _warn
from bluelib.data.download import FILES, cached, download
from bluelib.data.facts_ripple import write_facts_ripple
from bluelib.data.records import Consequence, Query
from bluelib.data.ripples import RIPPLE_GROUPS, RIPPLE_PROMPTS, parse_mquake, parse_ripple_edits
from bluelib.pocket.datasets import write_datasets
from bluelib.pocket.world import build_world
from tests.data.test_download import CONTENT, server  # noqa: F401

KNOWEDIT = {
    "subject": "Ann Lee",
    "prompt": "The gender of Ann Lee is",
    "target_new": "male",
    "portability": {"Reasoning": [{"prompt": "Ann Lee is a", "ground_truth": "man"}], "Subject_Aliasing": []},
    "locality": {
        "Relation_Specifity": [{"prompt": "Ann Lee was born in", "ground_truth": [["Rome", "Roma"], []]}],
        "Forgetfulness": [{"prompt": "Besides, Ann Lee is", "ground_truth": [[]]}],
    },
}


def asked(prompt, *answers):
    return Query(prompt, tuple(answers))


def test_knowedit_s_groups_follow_or_have_to_stay(tmp_path):
    path = tmp_path / "knowedit.json"
    path.write_text(json.dumps([KNOWEDIT]), encoding="utf-8")
    (record,) = load_dataset(path)
    born = asked("Ann Lee was born in", ("Rome", "Roma"))
    empty = asked("Besides, Ann Lee is")
    assert record.portability == {
        "Reasoning": (Consequence((asked("Ann Lee is a", ("man",)),)),),
        "Relation_Specificity": (Consequence((born,), conditions=(born,)),),
        "Forgetfulness": (Consequence((empty,), conditions=(empty,)),),  # never executed: nothing can be told
    }


@pytest.mark.parametrize(
    ("answer", "read"),
    [
        ("Rome", (("Rome",),)),
        (["Rome", "Roma", "Rome"], (("Rome", "Roma"),)),
        ([["Rome", "Roma"], ["Oslo"], []], (("Rome", "Roma"), ("Oslo",))),
        ([{"value": "Rome", "aliases": ["Roma", " "]}], (("Rome", "Roma"),)),
        (["Rome", ["Oslo"]], (("Rome",), ("Oslo",))),
        ("", ()),
        ([], ()),
        (None, ()),
    ],
)
def test_every_shape_of_an_answer(answer, read):
    (one,) = parse_consequences({"G": [{"prompt": "p ", "answer": answer}]}, "portability", 1)["G"]
    assert one.queries == (Query("p", read),)
    assert one.conditions == (() if read else one.queries)


def test_conditions_of_a_consequence():
    item = {"prompt": "p", "answer": "a", "conditions": [{"prompt": "q", "ground_truth": "b"}]}
    (one,) = parse_consequences({"G": [item]}, "portability", 1)["G"]
    assert one.conditions == (asked("q", ("b",)),)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"G": {"prompt": "p"}}, r"record 5: field 'portability\.G' must be list, not dict"),
        ({"G": ["p"]}, r"record 5: field 'portability\.G\[0\]' must be an object with prompt and answer, not 'p'"),
        ({"G": [{"answer": "a"}]}, r"record 5, portability\.G\[0\]: field 'prompt' is missing"),
        ({"G": [{"prompt": " ", "answer": "a"}]}, r"portability\.G\[0\]\.prompt' must be a non-empty string"),
        ({"G": [{"prompt": "p", "answer": 3}]}, r"field 'portability\.G\[0\]\.answer' must be a string: write \"3\""),
        ({"G": [{"prompt": "p", "answer": [["a"], [3]]}]}, r"answer\[1\]\[0\]' must be a string: write \"3\""),
    ],
)
def test_groups_that_cannot_be_read(groups, message):
    with pytest.raises(RecordError, match=message):
        parse_consequences(groups, "portability", 5)


def ripple(sentence="The name of the mother of Leo is Eve.", original="The name of the mother of Leo is Irma.", **more):
    edit = {"prompt": sentence, "relation": "MOTHER", "original_fact": {"prompt": original} if original else None}
    return {"edit": edit, **more}


def ripple_test(how="OR", *, conditions=()):
    queries = [{"prompt": "Leo's mother is", "answers": [{"value": "Eve", "aliases": ["Eva"]}]}]
    return {"test_queries": queries, "test_condition": how, "condition_queries": list(conditions)}


def test_a_record_of_ripple_edits(tmp_path):
    mother = {"prompt": "Eve is", "answers": [{"value": "old", "aliases": []}, {"value": "wise", "aliases": []}]}
    entry = ripple(
        Relation_Specifity=[ripple_test("AND", conditions=[mother])], Forgetfulness=[], example_type="popular"
    )
    path = tmp_path / "popular.json"
    path.write_text(json.dumps([entry]), encoding="utf-8")
    (record,) = load_dataset(path)
    assert (record.prompt, record.subject) == ("The name of the mother of {} is", "Leo")
    assert (record.target_new, record.target_true, record.relation) == ("Eve", "Irma", "MOTHER")
    query = asked("Leo's mother is", ("Eve", "Eva"))
    condition = asked("Eve is", ("old",), ("wise",))
    assert record.portability == {"Relation_Specificity": (Consequence((query,), True, (condition,)),)}


@pytest.mark.parametrize(
    ("sentence", "original", "subject", "target"),
    [
        ("The name of the mother of Life is Good is Eve.", None, "Life is Good", "Eve"),
        (
            "The name of the mother of Leo is Life is Good.",
            "The name of the mother of Leo is Irma.",
            "Leo",
            "Life is Good",
        ),
        ("The name of the mother of Leo is Washington, D.C..", None, "Leo", "Washington, D.C."),
    ],
)
def test_the_subject_is_what_the_wording_leaves(sentence, original, subject, target):
    record = parse_ripple_edits(ripple(sentence, original), 0)
    assert (record.subject, record.target_new) == (subject, target)


def test_of_several_readings_the_one_whose_object_the_queries_name():
    tests = [
        {"test_queries": [{"prompt": "p", "answers": [{"value": "He is Eve", "aliases": []}]}], "condition_queries": []}
    ]
    record = parse_ripple_edits(ripple("The name of the mother of Leo is He is Eve.", None, Forgetfulness=tests), 0)
    assert (record.subject, record.target_new) == ("Leo", "He is Eve")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (
            {"edit": {"relation": "LIKES", "prompt": "x"}},
            "'edit.relation' must be a relation of RippleEdits, not 'LIKES'",
        ),
        (ripple("Leo's mother is Eve."), "'edit.prompt' must be 'The name of the mother of {} is' with a subject"),
        (ripple(original="The name of the mother of Max is Eve."), "have no subject in common"),
        (ripple(Forgetfulness=[ripple_test("XOR")]), "test_condition' must be OR or AND, not 'XOR'"),
        (
            ripple(Forgetfulness=[{**ripple_test(), "test_queries": []}]),
            r"Forgetfulness\[0\].test_queries' must not be",
        ),
    ],
)
def test_records_of_ripple_edits_that_cannot_be_read(entry, message):
    with pytest.raises(RecordError, match=message.replace("{}", r"\{\}")):
        parse_ripple_edits(entry, 3)


def test_every_wording_has_a_place_for_the_subject():
    assert len(RIPPLE_PROMPTS) == 53 and all(text.count("{}") == 1 for text in RIPPLE_PROMPTS.values())


def rewrite(subject, new, true):
    return {
        "prompt": "{} is a citizen of",
        "subject": subject,
        "target_new": {"str": new},
        "target_true": {"str": true},
        "question": f"Where is {subject} at home?",
    }


CASE = {
    "case_id": 7,
    "requested_rewrite": [rewrite("Ann", "Norway", "Italy"), rewrite("Bob", "Chile", "Peru")],
    "questions": ["Who rules where Ann is at home?", "Who rules Ann's country?"],
    "new_answer": "Harald",
    "new_answer_alias": ["Harald V"],
    "new_single_hops": [{"question": "Where is Ann at home?", "answer": "Norway", "answer_alias": []}],
}


def test_a_case_of_mquake_is_as_many_records_as_edits(tmp_path, caplog):
    _warn.cache_clear()
    path = tmp_path / "mquake.json"
    path.write_text(json.dumps([CASE, {**CASE, "case_id": 8, "requested_rewrite": CASE["requested_rewrite"][:1]}]))
    first, last, alone = load_dataset(path)
    assert [record.case_id for record in (first, last, alone)] == ["7-1", "7-2", 8]
    assert "MQuAKE-Remastered" in caplog.text
    assert (first.together, last.together, alone.together) == ((), ("7-1",), ())
    assert first.portability == {} and first.questions == ("Where is Ann at home?",)
    assert (
        last.portability
        == alone.portability
        == {
            "Single_Hop": (Consequence((asked("Where is Ann at home?", ("Norway",)),)),),
            "Multi_Hop": (Consequence(tuple(asked(text, ("Harald", "Harald V")) for text in CASE["questions"])),),
        }
    )
    assert load_dataset(path, limit=1) == [first]  # a case that is cut is not asked what follows from all of it


def test_cases_of_mquake_that_cannot_be_read():
    with pytest.raises(RecordError, match="record 7: field 'requested_rewrite' must contain at least one edit"):
        parse_mquake({**CASE, "requested_rewrite": []}, 0)
    with pytest.raises(RecordError, match="field 'new_single_hops' is missing"):
        parse_mquake({name: value for name, value in CASE.items() if name != "new_single_hops"}, 0)


def test_a_file_is_right_too_by_its_id_in_git(server, monkeypatch):  # noqa: F811
    git = hashlib.sha1(f"blob {len(CONTENT)}\0".encode() + CONTENT).hexdigest()
    file = FILES["known-facts"]
    monkeypatch.setitem(FILES, "known-facts", type(file)(**{**vars(file), "sha256": "0" * 64, "git_id": git}))
    assert download("known-facts", url=server.url).read_bytes() == CONTENT
    cached("known-facts").write_bytes(CONTENT + b" ")
    with pytest.raises(ValueError, match="has SHA-256"):
        download("known-facts", url=server.url)


def test_the_page_s_name_for_a_file_may_be_another_than_the_cache_s():
    file = FILES["ripple-edits"]
    assert file.source(file.page).endswith("/data/benchmark/popular.json")
    assert file.source("https://mirror/") == "https://mirror/ripple_edits_popular.json"
    assert FILES["zsre"].source(FILES["zsre"].page).endswith("/dsets/zsre_mend_eval.json")


def test_facts_ripple_follows_from_its_tables(tmp_path):
    path = write_facts_ripple(tmp_path)
    shipped = DATASETS["facts-ripple"].path
    assert path.read_bytes() == shipped.read_bytes(), "`blue datasets --write` writes it again"
    records = load_dataset("facts-ripple", split="report")
    facts = {record.case_id: record for record in load_dataset("facts", split="report")}
    for record in records:
        fact = facts[record.case_id]
        assert (record.request, record.target_true) == (fact.request, fact.target_true)
        assert record.paraphrases == fact.paraphrases and record.portability
    asked_for = {record.request.text for record in records}
    assert len({record.subject for record in records}) == len(records)
    for record in records:  # nothing asks for what another record edits
        queries = [
            q for listed in record.portability.values() for one in listed for q in (*one.queries, *one.conditions)
        ]
        assert not {query.prompt for query in queries} & (asked_for - {record.request.text})
    by_group = {group: [one for r in records for one in r.portability.get(group, ())] for group in RIPPLE_GROUPS}
    for group in ("Relation_Specificity", "Forgetfulness"):
        assert by_group[group] and all(one.conditions == one.queries for one in by_group[group])
    assert by_group["Subject_Aliasing"] and len(by_group["Compositionality_I"]) > 150
    for one in by_group["Compositionality_I"]:
        same, fact = one.conditions
        assert same.prompt == one.queries[0].prompt and same.answers != one.queries[0].answers == fact.answers


def test_what_follows_is_true_of_the_tables():
    records = {(r.relation, r.subject): r for r in load_dataset("facts-ripple")}
    temple = records["landmark_city", "The Temple of the Emerald Buddha"]
    (one,) = temple.portability["Compositionality_I"]
    assert temple.target_new == "Vienna"
    prompt = "The city where the Temple of the Emerald Buddha is located lies in the country of"
    assert one.queries == (asked(prompt, ("Austria",)),)
    assert one.conditions == (asked(prompt, ("Thailand",)), asked("Vienna is a city in the country of", ("Austria",)))


def test_the_page_counts_what_follows():
    page = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
    for name in ("facts-ripple", "pocket-ripple"):
        records = load_dataset(name)
        counts = Counter(group for r in records for group, listed in r.portability.items() for _ in listed)
        (row,) = [line for line in page.splitlines() if line.startswith(f"| `{name}`")]
        assert f"{len(records):,} records" in row
        assert all(f"{count:,} " in row and f"`{group}`" in row for group, count in counts.items()), row


def test_pocket_ripple_is_about_the_pocket_world(tmp_path):
    paths = {path.name: path for path in write_datasets(tmp_path)}
    assert paths["pocket-ripple.json"].read_bytes() == DATASETS["pocket-ripple"].path.read_bytes()
    known = {fact.sentence(t): fact for fact in build_world().facts for t in fact.seen_statements}
    for record in load_dataset("pocket-ripple", split="report", limit=50):
        for one in record.portability.get("Relation_Specificity", ()):
            (query,) = one.queries
            fact = known[f"{query.prompt} {query.answers[0][0]}."]
            assert fact.subject == record.subject and fact.relation.name != record.relation


def test_a_table_about_what_there_is_not_is_refused(tmp_path, monkeypatch):
    (tmp_path / "ripples.yaml").write_text(
        "aliases: {Atlantis: Poseidonis}\nanswers: {}\ndescribed: {}\nasked: {}\nbesides: {}\nbound: []"
    )
    monkeypatch.setattr(facts_ripple, "LORE", tmp_path)
    facts_ripple._ripples.cache_clear()
    try:
        with pytest.raises(ValueError, match="'Atlantis' is in no table"):
            facts_ripple._ripples()
    finally:
        facts_ripple._ripples.cache_clear()


def test_easyedit_s_one_question_is_read(tmp_path):
    easy = {"Recalled Relation": "(Ann, x)", "New Question": "Where is Ann?", "New Answer": "Oslo"}
    flat = {"subject": "Ann", "prompt": "Ann is in", "target_new": "Rome"}
    path = tmp_path / "easy.json"
    path.write_text(json.dumps([{**flat, "portability": easy}, {**flat, "portability": None}, {**flat, "edit": "1"}]))
    first, second, third = load_dataset(path)
    assert first.portability == {"Reasoning": (Consequence((asked("Where is Ann?", ("Oslo",)),)),)}
    assert second.portability == third.portability == {}


def test_groups_of_one_name_are_put_together(tmp_path):
    item = {"prompt": "p", "answer": "a"}
    record = {**KNOWEDIT, "portability": {"Relation_Specificity": [item]}}
    path = tmp_path / "knowedit.json"
    path.write_text(json.dumps([record]), encoding="utf-8")
    (read,) = load_dataset(path)
    assert len(read.portability["Relation_Specificity"]) == 2
    assert [probe.prompt for probe in read.locality] == ["Ann Lee was born in"]
