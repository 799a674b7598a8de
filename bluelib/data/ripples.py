"""Parsers of the benchmarks that ask what follows from an edit: RippleEdits and MQuAKE."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from .benchmarks import parse_counterfact
from .consequences import SPELT, query
from .records import Consequence, Query, Record, RecordError, checked, field, record_id

#: RippleEdits' groups of tests.
RIPPLE_GROUPS = (
    "Relation_Specificity",
    "Logical_Generalization",
    "Subject_Aliasing",
    "Compositionality_I",
    "Compositionality_II",
    "Forgetfulness",
)

#: How RippleEdits words its relations. Its records do not name the subject: it is the rest of a prompt.
RIPPLE_PROMPTS = {
    "ALMA_MATER": "The name of the alma mater of {} is",
    "ANTHEM": "The name of the anthem of {} is",
    "ARCHITECT": "The name of the architect of {} is",
    "AUNT": "The name of the aunt of {} is",
    "AUTHOR": "The name of the author of {} is",
    "AWARD_RECEIVED": "The name of the award {} won is",
    "BROTHER": "The name of the brother of {} is",
    "CAPITAL": "The name of the capital city of {} is",
    "CAPITAL_OF": "The name of the country which {} is the capital of is",
    "CAST_MEMBER": "The names of the cast members of {} are",
    "CHILD": "The name of the child of {} is",
    "COMPOSER": "The name of the composer of {} is",
    "CONTINENT": "The name of the continent which {} is part of is",
    "COUNTRY": "The name of the country which {} is associated with is",
    "COUNTRY_OF_CITIZENSHIP": "The name of the country of citizenship of {} is",
    "CURRENCY": "The name of the currency in {} is",
    "DATE_OF_BIRTH": "The date of birth of {} is",
    "DATE_OF_DEATH": "The date of death of {} is",
    "DIRECTOR": "The name of the director of {} is",
    "EDITOR": "The name of the editor of {} is",
    "EMPLOYER": "The name of the employer of {} is",
    "ETHNIC_GROUP": "The name of the ethnic group which {} is associated with is",
    "EYE_COLOR": "The eye color of {} is",
    "FATHER": "The name of the father of {} is",
    "FIELD_OF_WORK": "The name of the field of work of {} is",
    "FOLLOWED_BY": "{} is followed by",
    "FOLLOWS": "{} follows",
    "FOUNDER": "The name of the founder of {} is",
    "HEAD_OF_GOVERNMENT": "The name of the head of government of {} is",
    "HEAD_OF_STATE": "The name of the head of state of {} is",
    "IS_ALIVE": "Is {} still alive?",
    "LEAGUE": "The name of the league which {} plays in is",
    "LIKELY_ANTHEM": "The name of the anthem that is most likely to be performed in {} is",
    "MEMBER_OF_SPORTS_TEAM": "The name of the sports team which {} is a member of is",
    "MOTHER": "The name of the mother of {} is",
    "NATIVE_LANGUAGE": "The mother tongue of {} is",
    "NUMBER_OF_CHILDREN": "The number of children {} has is",
    "OCCUPATION": "The occupation of {} is",
    "OFFICIAL_LANGUAGE": "The official language of {} is",
    "PLACE_OF_BIRTH": "The place of birth of {} is",
    "PLACE_OF_BURIAL": "The place of burial of {} is",
    "PLACE_OF_DEATH": "The place of death of {} is",
    "POSITION_HELD": "The name of the position held by {} is",
    "RELIGION": "The name of the religion which {} is associated with is",
    "SCREENWRITER": "The name of the screenwriter of {} is",
    "SEXUAL_ORIENTATION": "The sexual orientation of {} is",
    "SEX_OR_GENDER": "The gender of {} is",
    "SIBLING": "The names of the siblings of {} are",
    "SISTER": "The name of the sister of {} is",
    "SPOUSE": "The name of the spouse of {} is",
    "STEPFATHER": "The name of the stepfather of {} is",
    "STEPMOTHER": "The name of the stepmother of {} is",
    "UNCLE": "The name of the uncle of {} is",
}


def parse_ripple_edits(entry: Mapping[str, Any], position: int) -> Record:
    """A record of RippleEdits (Cohen et al. 2024): an edit as a whole sentence, and six groups of tests.

    ``test_condition`` says whether any of a test's queries must be answered, or all of them. A test with a query that
    has no answers is not executed, because it shows nothing. The subject is what the sentence has besides the
    relation's wording. If several readings are possible, it is the one whose object the record's own queries name, or
    else the longest that the sentence of the original fact allows too.

    Raises:
        RecordError: if the relation is not known, or a sentence is not in its wording.
    """
    case_id = record_id(entry, position)
    relation = field(entry, "edit.relation", case_id)
    if relation not in RIPPLE_PROMPTS:
        raise RecordError(
            f"record {case_id}: field 'edit.relation' must be a relation of RippleEdits, not {relation!r}"
        )
    template = RIPPLE_PROMPTS[relation]
    readings = _readings(template, field(entry, "edit.prompt", case_id), "edit.prompt", case_id)
    original = field(entry, "edit.original_fact", case_id, (dict, type(None)), default=None)
    before: dict[str, str] = {}
    if original is not None:
        name = "edit.original_fact.prompt"
        before = _readings(template, field(entry, name, case_id), name, case_id)
        readings = {subject: target for subject, target in readings.items() if subject in before}
        if not readings:
            raise RecordError(f"record {case_id}: edit.prompt and edit.original_fact.prompt have no subject in common")
    groups = {}
    for group, tests in entry.items():
        if (name := SPELT.get(group, group)) in RIPPLE_GROUPS:
            listed = checked(tests, group, case_id, list)
            groups[name] = tuple(_ripple_test(test, f"{group}[{i}]", case_id) for i, test in enumerate(listed))
    queries = [query for tests in groups.values() for one in tests for query in one.queries]
    named = {name for query in queries for names in query.answers for name in names}
    subject = max(readings, key=lambda subject: (readings[subject] in named, len(subject)))
    return Record(
        case_id=case_id,
        kind="counterfact",
        prompt=template,
        subject=subject,
        target_new=readings[subject],
        target_true=before.get(subject),
        relation=relation,
        portability={group: listed for group, listed in groups.items() if listed},
    )


def _readings(template: str, sentence: str, where: str, case_id: object) -> dict[str, str]:
    """The objects that a sentence may have, by the subject that it then has."""
    before, after = template.split("{}")
    text = sentence.strip().removesuffix(".")
    starts = [match.start() for match in re.finditer(f"(?={re.escape(after + ' ')})", text)]
    found = {text[len(before) : at]: text[at + len(after) :].strip() for at in starts if text.startswith(before)}
    found = {subject: target for subject, target in found.items() if subject.strip() and target}
    if not found:
        raise RecordError(
            f"record {case_id}: field {where!r} must be {template!r} with a subject, followed by an object, not "
            f"{sentence!r}"
        )
    return found


def _ripple_test(test: Any, where: str, case_id: object) -> Consequence:
    item = checked(test, where, case_id, dict)
    how = field(item, "test_condition", f"{case_id}, {where}", default="OR")
    if how not in ("OR", "AND"):
        raise RecordError(f"record {case_id}: field '{where}.test_condition' must be OR or AND, not {how!r}")
    queries, conditions = (
        tuple(query(one, f"{where}.{name}[{i}]", case_id) for i, one in enumerate(listed))
        for name in ("test_queries", "condition_queries")
        for listed in [field(item, name, f"{case_id}, {where}", list)]
    )
    if not queries:
        raise RecordError(f"record {case_id}: field '{where}.test_queries' must not be empty")
    untold = tuple(query for query in queries if not query.answers)  # show nothing: not executed
    return Consequence(queries, every=how == "AND", conditions=(*conditions, *untold))


def parse_mquake(entry: Mapping[str, Any], position: int) -> list[Record]:
    """The edits of a case of MQuAKE (Zhong et al. 2023), each a record: one to four that belong together.

    What follows from all of them is in the last record, which names the others (``together``): ``Single_Hop``, each
    fact of the new chain; and ``Multi_Hop``, the question about the chain's end in three wordings, any of which counts.

    Raises:
        RecordError: if a field cannot be used; the message names the case and the field.
    """
    case_id = record_id(entry, position)
    edits = field(entry, "requested_rewrite", case_id, list)
    if not edits:
        raise RecordError(f"record {case_id}: field 'requested_rewrite' must contain at least one edit")
    records = []
    for number, edit in enumerate(edits, 1):
        name = case_id if len(edits) == 1 else f"{case_id}-{number}"
        records.append(parse_counterfact({"case_id": name, "requested_rewrite": edit}, position))
        question = field(edit, "question", name, default=None)
        if question is not None:
            records[-1] = replace(records[-1], questions=(question,))
    hops = [
        _question(hop, "question", "answer", f"{case_id}, new_single_hops[{i}]")
        for i, hop in enumerate(field(entry, "new_single_hops", case_id, list))
    ]
    wordings = [checked(text, "questions", case_id) for text in field(entry, "questions", case_id, list)]
    chain = tuple(_question({**entry, "question": text}, "question", "new_answer", case_id) for text in wordings)
    groups = {
        "Single_Hop": tuple(Consequence((hop,)) for hop in hops),
        "Multi_Hop": (Consequence(chain),) if chain else (),
    }
    records[-1] = replace(
        records[-1],
        portability={name: listed for name, listed in groups.items() if listed},
        together=tuple(record.case_id for record in records[:-1]),
    )
    return records


def _question(entry: Any, question: str, answer: str, case_id: object) -> Query:
    names = [field(entry, answer, case_id), *field(entry, f"{answer}_alias", case_id, list, [])]
    return query({"prompt": field(entry, question, case_id), "answer": names}, question, case_id)
