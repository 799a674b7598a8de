"""What follows from an edit, as stored in records: named groups of prompts with answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from .records import Consequence, Query, RecordError, bare_end, checked, field

#: How some copies spell a group's name.
SPELT = {"Relation_Specifity": "Relation_Specificity"}


def parse_consequences(
    groups: Mapping[str, Any], where: str, case_id: object, *, kept: bool = False
) -> dict[str, tuple[Consequence, ...]]:
    """Named groups of prompts with answers: KnowEdit's ``portability`` and ``locality``, and this project's own.

    An item is ``{"prompt": …, "ground_truth": …}``, where ``ground_truth`` may also be called ``answer``. It may have
    ``conditions``, a list of further items that must be answered right before editing. An answer is a text; a list of
    texts, which are names of one thing; or a list of such lists, one for each thing that must be named.

    Args:
        groups: the groups, from a record.
        where: the field's name, for messages.
        case_id: the record's id.
        kept: whether the items say what must stay: each is then its own condition. An item without any answer always
            is, because it cannot be tested.

    Raises:
        RecordError: if an item cannot be used; the message names the record and the field.
    """
    found: dict[str, tuple[Consequence, ...]] = {}
    for group, items in groups.items():
        name, own = f"{where}.{group}", SPELT.get(group, group)
        entries = [] if items is None else checked(items, name, case_id, list)
        parsed = (_consequence(item, f"{name}[{i}]", case_id, kept) for i, item in enumerate(entries))
        found[own] = (*found.get(own, ()), *parsed)
    return {group: listed for group, listed in found.items() if listed}


#: EasyEdit's fields of one question about an edit.
_QUESTION, _ANSWER = "New Question", "New Answer"


def portability_of(entry: Mapping[str, Any], case_id: object) -> dict[str, tuple[Consequence, ...]]:
    """A record's field ``portability``, see :func:`parse_consequences`; empty if it is absent or null. EasyEdit's one
    question (``New Question``, ``New Answer``) becomes the group ``Reasoning``.

    Raises:
        RecordError: if the field cannot be used; the message names the record and the field.
    """
    if entry.get("portability") is None:
        return {}
    groups = field(entry, "portability", case_id, dict)
    if _QUESTION in groups:
        groups = {"Reasoning": [{"prompt": groups[_QUESTION], "answer": groups.get(_ANSWER)}]}
    return parse_consequences(groups, "portability", case_id)


def _consequence(item: Any, where: str, case_id: object, kept: bool) -> Consequence:
    asked = query(item, where, case_id)
    further = checked(item.get("conditions", []), f"{where}.conditions", case_id, list)
    conditions = [query(one, f"{where}.conditions[{i}]", case_id) for i, one in enumerate(further)]
    if (kept or not asked.answers) and asked not in conditions:
        conditions.append(asked)
    return Consequence((asked,), conditions=tuple(conditions))


def query(item: Any, where: str, case_id: object) -> Query:
    """A prompt with its answer, see :func:`parse_consequences`.

    Raises:
        RecordError: if the item cannot be used; the message names the record and the field.
    """
    if not isinstance(item, Mapping):
        raise RecordError(f"record {case_id}: field {where!r} must be an object with prompt and answer, not {item!r}")
    answer = next((name for name in ("ground_truth", "answer", "answers") if name in item), "answer")
    prompt = field(item, "prompt", f"{case_id}, {where}")
    return Query(_prompt(prompt, f"{where}.prompt", case_id), _answers(item.get(answer), f"{where}.{answer}", case_id))


def _prompt(text: str, where: str, case_id: object) -> str:
    if not text.strip():
        raise RecordError(f"record {case_id}: field {where!r} must be a non-empty string, not {text!r}")
    return bare_end(text)


def _answers(value: Any, where: str, case_id: object) -> tuple[tuple[str, ...], ...]:
    """The things that must be named, each with its names; none for an empty answer."""
    if value is None:
        return ()
    if isinstance(value, str) or not isinstance(value, list):
        text = checked(value, where, case_id)
        return ((text,),) if text.strip() else ()
    listed = checked(value, where, case_id, list)
    if all(isinstance(name, str) for name in listed):
        return (names_of(listed),) if names_of(listed) else ()
    found = []
    for i, one in enumerate(listed):
        at = f"{where}[{i}]"
        if isinstance(one, Mapping):  # RippleEdits'
            one = [field(one, "value", f"{case_id}, {at}"), *field(one, "aliases", f"{case_id}, {at}", list, [])]
        names = [one] if isinstance(one, str) else checked(one, at, case_id, (str, list))
        found.append(names_of([checked(name, f"{at}[{j}]", case_id) for j, name in enumerate(names)]))
    return tuple(names for names in found if names)


def names_of(texts: Iterable[str]) -> tuple[str, ...]:
    """The names of one thing, each once, without blank ones."""
    return tuple(dict.fromkeys(text for text in texts if text.strip()))
