"""``facts-ripple``: records of ``facts`` with what follows from their edits, in the groups of RippleEdits (Cohen et al.
2024), written for this project.

=======================  ==========================================  =========================================
group                    what is asked                               what has to be right before editing
=======================  ==========================================  =========================================
``Relation_Specificity`` another fact about the subject               the same
``Subject_Aliasing``     the edit, under another name of its subject  the old object, under that name
``Compositionality_I``   a fact about the new object, which is        the same about the old object; and the fact
                         described by the subject                     itself, about the new object
``Forgetfulness``        an object that the subject has besides       the same
=======================  ==========================================  =========================================

Everything here is a pure function of the tables in ``lore/``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from ..io.assets import update_sums
from ..io.writing import atomic_file
from .facts import LORE, build_facts, read_lore, subject_key

#: The fields of a record of ``facts`` that are kept.
FIELDS = ("case_id", "split", "requested_rewrite", "paraphrase_prompts", "neighborhood_prompts", "questions", "known")


def build_facts_ripple() -> list[dict[str, Any]]:
    """The records of ``facts`` from whose edits something follows, as JSON-ready dictionaries.

    There is one record per subject, so the subject's other facts stay as they are. No item asks for what another record
    edits.
    """
    of_subject: dict[str, dict[str, Any]] = {}
    for record in build_facts():
        groups = _groups(record["requested_rewrite"])
        subject = subject_key(record["requested_rewrite"]["subject"])
        # Of a subject's records, the one from which most follows; if several, the first.
        if groups and sum(map(len, groups.values())) > len(_items(of_subject.get(subject))):
            of_subject[subject] = {**{name: record[name] for name in FIELDS}, "portability": groups}
    edited = {record["case_id"]: _prompt(record["requested_rewrite"]) for record in of_subject.values()}
    for record in of_subject.values():
        others = {prompt for case_id, prompt in edited.items() if case_id != record["case_id"]}
        left = {
            group: [item for item in items if not others & {one["prompt"] for one in (item, *item["conditions"])}]
            for group, items in record["portability"].items()
        }
        record["portability"] = {group: items for group, items in left.items() if items}
    return sorted((r for r in of_subject.values() if r["portability"]), key=lambda record: record["case_id"])


def _items(record: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    return [item for items in record["portability"].values() for item in items] if record else []


def _prompt(rewrite: Mapping[str, Any]) -> str:
    return rewrite["prompt"].format(rewrite["subject"])


def write_facts_ripple(folder: Path) -> Path:
    """Write ``facts-ripple.json`` into ``folder``; returns its path."""
    path = folder / "facts-ripple.json"
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(build_facts_ripple(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    update_sums(folder)
    return path


@cache
def _ripples() -> Mapping[str, Any]:
    """The tables of ``ripples.yaml``.

    Raises:
        ValueError: if a table gives another name to something that is in no table, or names an unknown relation.
    """
    tables = yaml.safe_load((LORE / "ripples.yaml").read_text(encoding="utf-8"))
    lore = read_lore()
    subjects, objects = ({subject_key(getattr(fact, part)) for fact in lore.facts} for part in ("subject", "object"))
    relations = {*tables["described"], *tables["besides"], *(name for pair in tables["bound"] for name in pair)}
    relations |= {name for asked in tables["asked"].values() for name in asked}
    strangers = [name for name in tables["aliases"] if subject_key(name) not in subjects]
    strangers += [name for name in tables["answers"] if subject_key(name) not in subjects | objects]
    strangers += sorted(relations - lore.relations.keys())
    if strangers:
        raise ValueError(f"ripples.yaml: {strangers[0]!r} is in no table")
    return tables


def _groups(rewrite: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    relation, subject = rewrite["relation_id"], rewrite["subject"]
    new, old = rewrite["target_new"]["str"], rewrite["target_true"]["str"]
    groups = {
        "Relation_Specificity": [*_others(relation, subject)],
        "Subject_Aliasing": [*_aliased(rewrite["prompt"], subject, old, new)],
        "Compositionality_I": [*_composed(relation, subject, old, new)],
        "Forgetfulness": [*_besides(relation, subject, old, new)],
    }
    return {name: items for name, items in groups.items() if items}


@cache
def _facts() -> dict[str, dict[str, tuple[str, str]]]:
    """By relation and subject: the subject as its table has it, and the object."""
    found: dict[str, dict[str, tuple[str, str]]] = {}
    for fact in read_lore().facts:
        found.setdefault(fact.relation, {})[subject_key(fact.subject)] = (fact.subject, fact.object)
    return found


def _item(prompt: str, answers: Sequence[str], *conditions: Mapping[str, Any]) -> dict[str, Any]:
    names = list(dict.fromkeys(name for answer in answers for name in _names(answer)))
    asked: dict[str, Any] = {"prompt": prompt[0].upper() + prompt[1:], "answer": names}
    return {**asked, "conditions": [*conditions]} if conditions else asked


def _names(value: str) -> list[str]:
    """An object and the other names that are as good an answer."""
    return [value, *_ripples()["answers"].get(value, ())]


def _kept(prompt: str, answers: Sequence[str]) -> dict[str, Any]:
    """An item for what must stay, with the condition that it was there before."""
    return _item(prompt, answers, _item(prompt, answers))


def _stated(relation: str, subject: str, value: str) -> dict[str, Any]:
    """An item for a fact, in the wording of its table."""
    return _item(read_lore().relations[relation].statements[0].format(subject), [value])


def _others(relation: str, subject: str) -> Iterator[dict[str, Any]]:
    for other, facts in _facts().items():
        bound = any({relation, other} <= set(pair) for pair in _ripples()["bound"])
        if other != relation and not bound and subject_key(subject) in facts:
            own, value = facts[subject_key(subject)]
            item = _stated(other, own, value)
            yield {**item, "conditions": [item]}


def _aliased(prompt: str, subject: str, old: str, new: str) -> Iterator[dict[str, Any]]:
    alias = _ripples()["aliases"].get(subject)
    if alias:
        yield _item(prompt.format(alias), [new], _item(prompt.format(alias), [old]))


def _composed(relation: str, subject: str, old: str, new: str) -> Iterator[dict[str, Any]]:
    tables = _ripples()
    if relation not in tables["described"]:
        return
    # A subject's article has no capital inside a sentence.
    described = tables["described"][relation].format(re.sub("^The ", "the ", subject))
    for second, wording in tables["asked"].get(read_lore().relations[relation].kind, {}).items():
        facts = _second(second)
        before, after = facts.get(subject_key(old)), facts.get(subject_key(new))
        if before and after and not {*_names(before[1])} & {*_names(after[1])}:
            prompt = wording.format(described)
            yield _item(prompt, [after[1]], _item(prompt, [before[1]]), _stated(second, *after))


@cache
def _second(relation: str) -> dict[str, tuple[str, str]]:
    """What a relation says about the objects of another, by object: the object's name, and what the relation says of
    it. A capital lies in its country."""
    found = dict(_facts()[relation])
    if relation == "city_country":
        for country, city in _facts()["capital"].values():
            found.setdefault(subject_key(city), (city, country))
    return found


def _besides(relation: str, subject: str, old: str, new: str) -> Iterator[dict[str, Any]]:
    also = read_lore().relations[relation].also.get(subject, ())
    wording = _ripples()["besides"].get(relation)
    if wording and also:
        yield _kept(wording.format(subject, new), [old, *also])
