"""RippleEdits' metric on a model that says what it is told to."""

from __future__ import annotations

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
            "all_Relation_Specificity": 100,
            "Relation_Specificity": 100,
            "all_Compositionality_I": 50,  # any of two, and all of two
            "Compositionality_I": 50,
        }
    ]
    says["The country of Leo is"] = "the USA"
    (row,) = portability(None, [RECORD], held)
    assert row["edited"] == 0 and "Compositionality_I" not in row and row["all_Compositionality_I"] == 50


def test_what_was_not_executed_is_not_in_the_mean(says):
    (row,) = portability(None, [RECORD], {MOTHER: False, WRONG: False, PAST: False})
    assert row == {"case_id": 7, "edited": 0, "executed": 0}
    bare = Record(8, "counterfact", "The country of {} is", "Leo", "Syria", "USA")
    assert portability(None, [bare], {}) == [{"case_id": 8}]
    with pytest.raises(ValueError, match="record 7: whether 'mother' was answered before editing is not known"):
        portability(None, [RECORD], {})
