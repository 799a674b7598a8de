"""RippleEdits' metric on a model that says what it is told to."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bluelib.data import Record
from bluelib.data.records import Consequence, Query
from bluelib.metrics import portability as module
from bluelib.metrics.portability import answered, conditions, portability


def query(prompt, *answers):
    return Query(prompt, tuple((name,) if isinstance(name, str) else tuple(name) for name in answers))


MOTHER, PAST, CURRENCY, WRONG = (
    query("mother", "Irmelin"),
    query("past", "Rome"),
    query("cur", "pound"),
    query("w", "x1"),
)
RECORD = Record(
    7,
    "counterfact",
    "The country of {} is",
    "Leo",
    "Syria",
    "USA",
    portability={
        "Relation_Specificity": (
            Consequence((MOTHER,), conditions=(MOTHER,)),
            Consequence((WRONG,), conditions=(WRONG,)),
        ),
        "Compositionality_I": (
            Consequence((CURRENCY, WRONG), conditions=(PAST,)),
            Consequence((CURRENCY, WRONG), every=True, conditions=(PAST,)),
        ),
    },
)


@pytest.fixture
def says(monkeypatch):
    """What the model says by prompt; anything else is silence."""
    texts: dict[str, str] = {}
    monkeypatch.setattr(module, "answer", lambda model, prompts, tokens, stops: [texts.get(p, "") for p in prompts])
    return texts


@pytest.mark.parametrize(
    ("text", "answers", "right"),
    [
        ("It is the Syrian pound.", [["SYP", "Syrian pound"]], True),
        ("Syrian pounds", [["Syrian pound"]], False),
        ("Ann and Bob", [["Bob"], ["Ann", "Anna"]], True),
        ("Bob", [["Bob"], ["Ann"]], False),
        ("a b c", [["b"]], False),
        ("He has 3 children", [["3"]], True),
        ("It is in the city", [["India", "IN"]], False),
        ("in the US", [["America", "the US", "U.S."]], True),
        ("it told us", [["America", "the US"]], False),
        ("plan b", [["B+"]], False),
        ("It is norway", [["Norway"]], True),
        ("ann is", [["Ann"]], False),
        ("the unicef", [["UNICEF"]], False),
        ("首都は東京です", [["東京"]], True),
        ("首都は大阪です", [["東京"]], False),
        ("", [["The"], ["..."]], False),
        ("anything", [], False),
        ("anything", [[]], False),
    ],
)
def test_an_answer_names_everything_by_a_name_that_tells(text, answers, right):
    assert answered(text, answers) == right


def test_conditions_come_first_and_the_edit_itself_counts(says):
    says |= {"mother": "Irmelin", "past": "in Rome"}
    held = conditions(None, [RECORD])
    assert held == {MOTHER: True, WRONG: False, PAST: True}
    says |= {"The country of Leo is": "Syria, a country", "cur": "the pound"}
    assert portability(None, [RECORD], held) == [
        {
            "case_id": 7,
            "edited": 100,
            "executed": 75,
            "executed_Relation_Specificity": 50,
            "all_Relation_Specificity": 100,
            "Relation_Specificity": 100,
            "executed_Compositionality_I": 100,
            "all_Compositionality_I": 50,  # any of two, and all of two
            "Compositionality_I": 50,
        }
    ]
    says["The country of Leo is"] = "the USA"
    (row,) = portability(None, [RECORD], held)
    assert row["edited"] == 0 and "Compositionality_I" not in row and row["all_Compositionality_I"] == 50


def test_the_edit_succeeds_by_any_name_that_the_record_has_for_its_new_object(says):
    follows = Consequence((query("lives", ("Syria", "Syrian Arab Republic"), ("USA", "America")),))
    record = Record(1, "counterfact", "{} comes from", "Leo", "Syria", "USA", portability={"G": (follows,)})
    for text, edited in (("Syrian Arab Republic", 100), ("America", 0)):
        says["Leo comes from"] = text
        assert portability(None, [record], {})[0]["edited"] == edited


def test_what_was_not_executed_is_not_in_the_mean(says):
    (row,) = portability(None, [RECORD], {MOTHER: False, WRONG: False, PAST: False})
    none = {"executed": 0, "executed_Relation_Specificity": 0, "executed_Compositionality_I": 0}
    assert row == {"case_id": 7, "edited": 0, **none}
    bare = Record(8, "counterfact", "The country of {} is", "Leo", "Syria", "USA")
    assert portability(None, [bare], {}) == [{"case_id": 8}]
    with pytest.raises(ValueError, match="record 7: whether 'mother' was answered before editing is not known"):
        portability(None, [RECORD], {})


def test_what_another_edit_changes_is_left_out(says):
    said = query("The mother of Leo is", "Irmelin")
    kept = Consequence((said,), conditions=(said,))
    record = Record(1, "counterfact", "{} comes from", "Leo", "Syria", "USA", portability={"G": (kept,)})
    other = Record(2, "counterfact", "The mother of {} is", "Leo", "Eve", "Irmelin")
    held = {said: True}
    says |= {"Leo comes from": "Syria", "The mother of Leo is": "Eve"}
    assert portability(None, [record, other], held) == [{"case_id": 1}, {"case_id": 2}]
    (row,) = portability(None, [record], held)
    assert (row["executed"], row["G"]) == (100, 0)


def test_a_case_of_several_edits_succeeds_with_all_of_them(says):
    follows = Consequence((query("capital", "Oslo"),))
    first = Record("7-1", "counterfact", "{} lives in", "Ann", "Norway", "Italy")
    last = Record(
        "7-2", "counterfact", "{} lives in", "Bob", "Chile", "Peru", portability={"G": (follows,)}, together=("7-1",)
    )
    says |= {"Bob lives in": "Chile", "Ann lives in": "Italy", "capital": "Oslo"}
    assert portability(None, [first, last], {})[1]["edited"] == 0
    says["Ann lives in"] = "Norway"
    assert portability(None, [first, last], {})[1]["G"] == 100
    assert portability(None, [last], {})[0]["edited"] == 0  # the other was not made


def test_records_of_one_id_are_told_apart(says):
    records = [replace(RECORD, target_new=new) for new in ("Syria", "Chile")]
    says["The country of Leo is"] = "Chile"
    held = dict.fromkeys((MOTHER, PAST, WRONG), True)
    rows = portability(None, [records[0]], held) + portability(None, [records[1]], held)
    assert [row["edited"] for row in rows] == [0, 100]
    assert hash(records[0]) != hash(records[1])
