"""Your own facts: files that are written by hand or exported, and the flat form of a record.

A file is a JSON list, JSON Lines (``.jsonl``, ``.ndjson``) or CSV with a header row (``.csv``, ``.tsv``), or one JSON
object of columns, as EasyEdit's editor takes them; all in UTF-8, with or without a byte order mark. A record needs
``subject``, ``prompt`` and ``target_new``; what else it may have is in :func:`parse_flat`.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..io.formats import decode_json
from .consequences import SPELT, parse_consequences, portability_of
from .records import Consequence, Probe, Record, RecordError, checked, field, put_subject_in, record_id

#: The suffixes of files that are not one JSON text: of JSON Lines, and of tables.
LINES = (".jsonl", ".ndjson")
TABLES = (".csv", ".tsv")

#: The separator between the texts of one cell of a table.
BETWEEN = " | "

#: KnowEdit's kind of locality that asks what an edit must leave alone; and all its kinds, in all spellings.
_KNOWEDIT = "Relation_Specificity"
_KEPT = (_KNOWEDIT, *SPELT, "Forgetfulness")
#: Fields of the flat form that have other names too, with those names.
_NAMES = {
    "target_true": ("ground_truth",),
    "paraphrases": ("rephrase_prompt", "rephrase"),
    "neighbours": ("neighbors",),
}
_LISTS = (
    "paraphrases",
    "rephrase_prompt",
    "rephrase",
    "neighbours",
    "neighbors",
    "locality_prompt",
    "locality_ground_truth",
)

#: EasyEdit's names of columns that differ from those of the flat form.
_COLUMNS = {"prompts": "prompt", "rephrase_prompts": "paraphrases"}

#: The fields of the flat form; others are ignored.
FIELDS = frozenset(
    {
        "case_id",
        "split",
        "separator",
        "subject",
        "prompt",
        "target_new",
        "locality",
        "portability",
        *_LISTS,
        *_NAMES,
        *sum(_NAMES.values(), ()),
    }
    | {f"locality.{kind}" for kind in _KEPT}
)


def read_entries(path: Path) -> list[Any]:
    """The raw records of a file: a JSON list, JSON Lines or a table, by its suffix; or a JSON object of columns.

    A table's empty cells count as absent. Cells of :data:`_LISTS` hold several texts with `` | `` between them. A line
    of JSON Lines that cannot be read gives a :class:`RecordError` in its place, to be raised if that record is used.

    Raises:
        ValueError: if the file cannot be read, or an object or a header has a field twice, of which only one could be
            used. The message names the file and, if there is one, the line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be in UTF-8: {error}") from error
    if path.suffix.lower() in TABLES:
        entries: Any = list(_rows(text, path))
    elif path.suffix.lower() in LINES:
        lines = enumerate(text.split("\n"), 1)
        entries = [_line(line, f"{path}, line {number}") for number, line in lines if line.strip()]
    else:
        entries = _decoded(text, str(path))
        if isinstance(entries, Mapping) and any(isinstance(entries.get(name), list) for name in ("prompts", "prompt")):
            entries = _from_columns(entries, path)
    if not isinstance(entries, list) or not entries:
        raise ValueError(
            f"{path} must hold a JSON list of records, or be JSON Lines (.jsonl) or a table (.csv) of them"
        )
    return entries


def _decoded(text: str, where: str) -> Any:
    def twice(found: dict[str, Any], name: str) -> RecordError:
        return RecordError(f"record {found.get('case_id', 'without an id')}: field {name!r} appears twice")

    try:
        return decode_json(text, twice)
    except RecordError as error:
        raise RecordError(f"{where}, {error}") from error
    except ValueError as error:
        several = "; JSON Lines are read from a file that ends in .jsonl" if str(error).startswith("Extra data") else ""
        raise ValueError(f"{where} is not JSON: {error}{several}") from error


def _line(text: str, where: str) -> Any:
    try:
        return _decoded(text, where)
    except ValueError as error:
        return RecordError(str(error))


def _from_columns(columns: Mapping[str, Any], path: Path) -> list[dict[str, Any]]:
    """Records from lists of equal length. EasyEdit's ``locality_inputs`` are objects of such lists, one for each kind;
    only ``neighborhood`` is read."""
    inside = columns.get("locality_inputs")
    near = inside.get("neighborhood") if isinstance(inside, Mapping) else None
    named = {f"locality_{name}": column for name, column in near.items()} if isinstance(near, Mapping) else {}
    named |= {_COLUMNS.get(name, name): column for name, column in columns.items() if name != "locality_inputs"}
    given = {name: column for name, column in named.items() if column is not None}
    length = len(given["prompt"])
    for name, column in given.items():
        if not isinstance(column, list) or len(column) != length:
            found = f"{len(column)} items" if isinstance(column, list) else type(column).__name__
            raise ValueError(f"{path}: column {name!r} must be a list of {length} like the prompts, not {found}")
    return [{name: column[i] for name, column in given.items() if column[i] is not None} for i in range(length)]


def _rows(text: str, path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a table as objects. The header shows what separates the cells: comma, semicolon or tab."""
    header = text.partition("\n")[0]
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=max(",;\t", key=header.count), skipinitialspace=True, strict=True
    )
    try:
        names = [_column(name) for name in next(reader, [])]
        if doubled := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"{path}: column {doubled[0]!r} appears twice in the header")
        if "separator" in names:
            raise ValueError(
                f"{path}: a table cannot have a column 'separator', because cells are read without spaces; "
                "use JSON for it"
            )
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) > len(names):
                raise ValueError(
                    f"{path}, line {reader.line_num}: {len(cells)} cells, but {len(names)} columns in the header; put "
                    "a text with a comma into double quotes"
                )
            yield {
                name: [part.strip() for part in cell.split(BETWEEN)] if name in _LISTS else cell
                for name, cell in zip(names, cells, strict=False)
                if cell.strip()
            }
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: is not valid CSV: {error}") from error


def _column(header: str) -> str:
    """The field that a column's header names, in capitals or not, with spaces or underscores."""
    name = header.strip()
    plain = "_".join(name.lower().split())
    return plain if plain in FIELDS else name


def parse_flat(entry: Mapping[str, Any], position: int) -> Record:
    """A record in the flat form: an edit, and what else is known about it.

    =========================  ======================================================================================
    field                      content
    =========================  ======================================================================================
    ``subject``                as it stands in the prompt, letter for letter
    ``prompt``                 a text that the object shall follow, with the subject in it, or ``{}`` in its place
    ``target_new``             the new object
    ``case_id``                a number or a string; by default the position in the file
    ``target_true``            the old object, a string, or a list whose first is taken; also ``ground_truth``
    ``paraphrases``            other texts that the object shall follow, a string or a list; also ``rephrase_prompt``
    ``neighbours``             what must stay: a list of prompts, or of ``{"prompt": …, "answer": …}``
    ``separator``              what stands between a prompt and its object, a space or ``""``, where the rule errs
    ``locality_prompt``        the same as strings, or lists of one length, with ``locality_ground_truth``
    ``locality``               the same as in KnowEdit (Zhang et al. 2024): ``{"Relation_Specificity": [{"prompt": …,
                               "ground_truth": …}]}``; these, and ``Forgetfulness``, are portability too: what must
                               stay of the same subject
    ``portability``            what follows from the edit, as in KnowEdit: ``{"Reasoning": [{"prompt": …,
                               "ground_truth": …}], …}``, see :func:`.consequences.parse_consequences`
    =========================  ======================================================================================

    ``null`` is the same as an absent field, except for ``case_id``. What needs an absent field is not measured.

    Raises:
        RecordError: if a field cannot be used; the message names the record and the field and says what would be right.
    """
    case_id = record_id(entry, position)
    missing = [name for name in ("subject", "prompt", "target_new") if name not in entry]
    if len(missing) > 1:
        raise RecordError(f"record {case_id}: fields {' and '.join(map(repr, missing))} are missing")
    subject, prompt = (field(entry, name, case_id) for name in ("subject", "prompt"))
    target = field(entry, "target_new.str" if isinstance(entry.get("target_new"), Mapping) else "target_new", case_id)
    true, paraphrases = _name(entry, "target_true", case_id), _texts(entry, "paraphrases", case_id)
    return Record(
        case_id=case_id,
        kind="counterfact",
        prompt=put_subject_in(prompt, subject, case_id, "prompt"),
        subject=subject,
        target_new=target,
        target_true=_first(entry.get(true), true, case_id),
        paraphrases=tuple(text.replace("{}", subject) for text in paraphrases),
        separator=_separator(entry, case_id),
        portability=_portability(entry, case_id),
        locality=(*_neighbours(entry, case_id), *_flat_probes(entry, case_id), *_knowedit_probes(entry, case_id)),
    )


def _portability(entry: Mapping[str, Any], case_id: object) -> dict[str, tuple[Consequence, ...]]:
    """KnowEdit's groups: what follows from the edit, and what must stay, which counts only if it was there before."""
    kinds = {} if entry.get("locality") is None else field(entry, "locality", case_id, dict)
    kept = {kind: items for kind, items in kinds.items() if kind in _KEPT}
    follows, stays = portability_of(entry, case_id), parse_consequences(kept, "locality", case_id, kept=True)
    return {group: (*follows.get(group, ()), *stays.get(group, ())) for group in dict.fromkeys([*follows, *stays])}


def _separator(entry: Mapping[str, Any], case_id: object) -> str | None:
    return None if entry.get("separator") is None else field(entry, "separator", case_id)


def unread(entries: Sequence[Any]) -> list[str]:
    """The fields of records in the flat form that nothing reads, in the order of their first record."""
    found: dict[str, None] = {}
    for entry in entries:
        if isinstance(entry, Mapping):
            locality = entry.get("locality")
            kinds = [f"locality.{kind}" for kind in locality] if isinstance(locality, Mapping) else []
            found.update(dict.fromkeys([*map(str, entry), *kinds]))
    return [name for name in found if name not in FIELDS]


def _name(entry: Mapping[str, Any], name: str, case_id: object) -> str:
    """The name under which a record has a field; null is the same as absent."""
    there = [known for known in (name, *_NAMES.get(name, ())) if entry.get(known) is not None]
    if len(there) > 1:
        raise RecordError(
            f"record {case_id}: fields {there[0]!r} and {there[1]!r} have the same meaning; give only one of them"
        )
    return there[0] if there else name


def _texts(entry: Mapping[str, Any], name: str, case_id: object) -> tuple[str, ...]:
    """A field that is a string or a list of them."""
    name = _name(entry, name, case_id)
    if entry.get(name) is None:
        return ()
    found = field(entry, name, case_id, (str, list))
    texts = [found] if isinstance(found, str) else found
    return tuple(checked(text, f"{name}[{number}]", case_id) for number, text in enumerate(texts))


def _first(value: Any, name: str, case_id: object) -> str | None:
    """An answer: a string, CounterFact's ``{"str": …}``, or the first of a list, which may be nested, as in KnowEdit;
    None if there is no answer."""
    while isinstance(value, list) or (isinstance(value, Mapping) and "str" in value):
        value = value["str"] if isinstance(value, Mapping) else value[0] if value else None
    return None if value is None else checked(value, name, case_id)


def _neighbours(entry: Mapping[str, Any], case_id: object) -> Iterator[Probe]:
    name = _name(entry, "neighbours", case_id)
    found = [] if entry.get(name) is None else field(entry, name, case_id, (str, list))
    for number, item in enumerate([found] if isinstance(found, str) else found):
        probe = Probe(item) if isinstance(item, str) else _probe(item, f"{name}[{number}]", case_id)
        if "{}" in probe.prompt:
            raise RecordError(
                f"record {case_id}: field '{name}[{number}]' has {{}}, the subject's place, but a neighbour is "
                f"about another subject: write it out, not {probe.prompt!r}"
            )
        yield probe


def _probe(item: Any, where: str, case_id: object) -> Probe:
    if not isinstance(item, Mapping) or "prompt" not in item:
        raise RecordError(
            f"record {case_id}: field '{where}' must be a prompt, or an object with prompt and answer, not {item!r}"
        )
    answer = "ground_truth" if "ground_truth" in item else "answer"
    return Probe(
        checked(item["prompt"], f"{where}.prompt", case_id),
        _first(item.get(answer), f"{where}.{answer}", case_id),
    )


def _flat_probes(entry: Mapping[str, Any], case_id: object) -> tuple[Probe, ...]:
    prompts, answers = (_texts(entry, name, case_id) for name in ("locality_prompt", "locality_ground_truth"))
    if answers and len(answers) != len(prompts):
        raise RecordError(
            f"record {case_id}: field 'locality_ground_truth' must have one answer for each 'locality_prompt': "
            f"{len(prompts)}, not {len(answers)}"
        )
    return tuple(map(Probe, prompts, answers)) if answers else tuple(map(Probe, prompts))


def _knowedit_probes(entry: Mapping[str, Any], case_id: object) -> Iterator[Probe]:
    kinds = {} if entry.get("locality") is None else field(entry, "locality", case_id, dict)
    for kind, items in kinds.items():
        if SPELT.get(kind, kind) == _KNOWEDIT and items is not None:
            where = f"locality.{kind}"
            for number, item in enumerate(checked(items, where, case_id, list)):
                yield _probe(item, f"{where}[{number}]", case_id)
