"""``facts``: edits of real facts, in CounterFact's schema, written for this project.

The tables in ``lore/`` say what is true. There is one file per relation, with its wordings and the subjects of each
object. Everything here but :func:`check_facts` is a pure function of them.

Some of the facts about each object are kept back: no record edits them, and the neighbours of records come from them. A
subject that is kept back in one relation is kept back in all, so no neighbour is about a subject that any record edits.
A subject that is edited in several relations is in the same split in all of them.
"""

from __future__ import annotations

import json
import math
import random
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from ..io.assets import update_sums
from ..io.formats import read_json, write_json
from ..io.writing import atomic_file
from ..models.model import Model
from ..models.scoring import TargetScore, score_targets

LORE = Path(__file__).parent / "lore"
CHECKED = LORE / "checked.json"
#: The share of the subjects that goes to ``tune``.
TUNE_SHARE = 1 / 3
#: The share of the subjects with one object that is kept back, and the least number of them.
KEPT_SHARE, MIN_KEPT = 0.3, 3
NEIGHBOURS = 10


@dataclass(frozen=True)
class Relation:
    """A relation with its wordings; in each, ``{}`` is the subject.

    Attributes:
        name: the name of its file, and the ``relation_id`` of its records.
        kind: the kind of its objects. In all relations of one kind, an object is the same thing.
        statements: the rewrite prompt, then three rewordings; the object follows.
        questions, openings: full questions, and openings of a text about the subject.
        also: by subject, the objects that are true of it besides the one in the table.
    """

    name: str
    kind: str
    statements: tuple[str, ...]
    questions: tuple[str, ...]
    openings: tuple[str, ...]
    also: Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Fact:
    """A (subject, relation, object) triple of the tables."""

    subject: str
    relation: str
    object: str


@dataclass(frozen=True)
class Lore:
    """All tables, and the sentences that stand before paraphrases."""

    relations: Mapping[str, Relation]
    facts: tuple[Fact, ...]
    unrelated: tuple[str, ...]


@dataclass(frozen=True)
class Checked:
    """What an unedited model knows about a record.

    Attributes:
        new: the record's new object at that time.
        known: whether the model finds the true object more probable than the new one after the rewrite prompt.
        first: whether each token of the true object is the model's first choice there.
    """

    new: str
    known: bool
    first: bool


@cache
def read_lore() -> Lore:
    """Read the tables.

    Raises:
        ValueError: if a wording does not have exactly one ``{}``, there are too few wordings, a subject appears twice,
            or an ``also`` is not about the table's subjects and objects. The message names the file.
    """
    relations, facts = {}, []
    for path in sorted(LORE.glob("*.yaml")):
        if path.stem in ("unrelated", "ripples"):
            continue
        entry = yaml.safe_load(path.read_text(encoding="utf-8"))
        own = [Fact(subject, path.stem, value) for value, subjects in entry["facts"].items() for subject in subjects]
        relations[path.stem] = Relation(
            name=path.stem,
            kind=entry["object"],
            statements=(entry["prompt"], *entry["rewordings"]),
            questions=tuple(entry["questions"]),
            openings=tuple(entry["openings"]),
            also=entry.get("also", {}),
        )
        _check_relation(relations[path.stem], own)
        facts += own
    unrelated = yaml.safe_load((LORE / "unrelated.yaml").read_text(encoding="utf-8"))
    return Lore(relations, tuple(facts), tuple(unrelated))


def _check_relation(relation: Relation, facts: Sequence[Fact]) -> None:
    where = f"{relation.name}.yaml"
    wordings = (relation.statements, relation.questions, relation.openings)
    for template in (template for templates in wordings for template in templates):
        if template.count("{}") != 1 or template != template.strip():
            raise ValueError(
                f"{where}: {template!r} must contain {{}} for the subject exactly once, and neither start nor end "
                "with a blank"
            )
    if len(set(relation.statements)) != 4 or not relation.questions or len(relation.openings) < 2:
        raise ValueError(f"{where} must have a prompt, 3 other rewordings, at least 1 question and at least 2 openings")
    times = Counter(subject_key(fact.subject) for fact in facts)
    if twice := [subject for subject, count in times.items() if count > 1]:
        raise ValueError(f"{where}: {twice[0]!r} appears twice; other objects that are true of it belong under 'also'")
    subjects, objects = {fact.subject for fact in facts}, {fact.object for fact in facts}
    for subject, others in relation.also.items():
        if subject not in subjects or not set(others) <= objects:
            raise ValueError(f"{where}: 'also' of {subject!r} must be about a subject and objects of the table")


def subject_key(subject: str) -> str:
    """A subject without its article and without capitals: two subjects with the same key are the same."""
    return subject.casefold().removeprefix("the ")


def build_facts() -> list[dict[str, Any]]:
    """Build all records, ``tune`` first, as JSON-ready dictionaries.

    The paraphrases are two of the three rewordings, one of them after an unrelated sentence. Neighbours are wordings
    of facts that are kept back and whose object is the record's true one: of the same relation first, then of others.

    Raises:
        ValueError: if a record was not checked with its new object; see :func:`write_checked`.
    """
    _, checked = read_checked()
    records = _unchecked()
    for record in records:
        rewrite = record["requested_rewrite"]
        found = checked.get((rewrite["relation_id"], rewrite["subject"]))
        if found is None or found.new != rewrite["target_new"]["str"]:
            raise ValueError(
                f"{CHECKED.name} has no entry for {rewrite['subject']!r} in {rewrite['relation_id']} with "
                f"{rewrite['target_new']['str']!r}; `blue datasets --check MODEL` writes it again"
            )
        record["known"] = found.known
    return records


def _unchecked() -> list[dict[str, Any]]:
    """The records without ``known``."""
    lore = read_lore()
    kept = _kept_back(lore)
    untouched: dict[tuple[str, str], list[Fact]] = {}
    for fact in lore.facts:
        if subject_key(fact.subject) in kept:
            untouched.setdefault((lore.relations[fact.relation].kind, fact.object), []).append(fact)
    edited = [fact for fact in lore.facts if subject_key(fact.subject) not in kept]
    edited.sort(key=lambda fact: (_split(fact.subject) != "tune", _chance("order", fact.relation, fact.subject)))
    return [_record(case_id, fact, lore, untouched) for case_id, fact in enumerate(edited)]


def _record(
    case_id: int, fact: Fact, lore: Lore, untouched: Mapping[tuple[str, str], Sequence[Fact]]
) -> dict[str, Any]:
    relation = lore.relations[fact.relation]
    rng = random.Random(f"bluelib-facts:{fact.relation}:{fact.subject}")
    others = {other.object for other in lore.facts if other.relation == fact.relation}
    others -= {fact.object, *relation.also.get(fact.subject, ())}
    new = rng.choice(sorted(others))
    behind, plain = rng.sample(relation.statements[1:], 2)

    def prompts(value: str) -> list[str]:
        facts = untouched.get((relation.kind, value), [])
        own = [other for other in facts if other.relation == fact.relation]
        rest = [other for other in facts if other.relation != fact.relation]
        return [*_prompts(own, lore, rng), *_prompts(rest, lore, rng)][:NEIGHBOURS]

    return {
        "case_id": case_id,
        "split": _split(fact.subject),
        "requested_rewrite": {
            "prompt": relation.statements[0],
            "relation_id": fact.relation,
            "target_new": {"str": new, "id": _object_id(relation, new)},
            "target_true": {"str": fact.object, "id": _object_id(relation, fact.object)},
            "subject": fact.subject,
        },
        "paraphrase_prompts": [
            f"{rng.choice(lore.unrelated)} {behind.format(fact.subject)}",
            plain.format(fact.subject),
        ],
        "neighborhood_prompts": prompts(fact.object),
        "attribute_prompts": prompts(new),
        "generation_prompts": [opening.format(fact.subject) for opening in relation.openings],
        "questions": [question.format(fact.subject) for question in relation.questions],
    }


def _prompts(facts: Sequence[Fact], lore: Lore, rng: random.Random) -> list[str]:
    """Each fact in each wording, in rounds: every fact has its turn before any fact has its next."""
    shuffled = rng.sample(facts, len(facts))
    wordings = [rng.sample(lore.relations[fact.relation].statements, 4) for fact in shuffled]
    return [
        templates[turn].format(fact.subject)
        for turn in range(4)
        for fact, templates in zip(shuffled, wordings, strict=True)
    ]


def _kept_back(lore: Lore) -> set[str]:
    """The subjects that no record edits: some of each object, first those kept back already, then those with fewest
    facts."""
    uses = Counter(subject_key(fact.subject) for fact in lore.facts)
    groups: dict[tuple[str, str], set[str]] = {}
    for fact in lore.facts:
        groups.setdefault((lore.relations[fact.relation].kind, fact.object), set()).add(subject_key(fact.subject))
    kept: set[str] = set()
    for _, subjects in sorted(groups.items()):
        ranked = sorted(subjects, key=lambda subject: (subject not in kept, uses[subject], _chance("kept", subject)))
        kept.update(ranked[: max(MIN_KEPT, math.ceil(KEPT_SHARE * len(ranked)))])
    return kept


def _split(subject: str) -> str:
    return "tune" if _chance("split", subject_key(subject)) < TUNE_SHARE else "report"


def _chance(*about: str) -> float:
    """A number in [0, 1) that is the same whenever it is asked for, and does not change when facts are added."""
    return random.Random("bluelib-facts:" + ":".join(about)).random()


def _object_id(relation: Relation, value: str) -> str:
    return f"facts:{relation.kind}:{value}".replace(" ", "_")


def check_facts(model: Model) -> dict[tuple[str, str], Checked]:
    """Score the true and the new object of every record after its rewrite prompt, on an unedited model.

    Returns:
        What was found, by relation and subject.

    Raises:
        ValueError: if the model has been edited.
    """
    model.check_unedited("facts")
    rewrites = [record["requested_rewrite"] for record in _unchecked()]
    pairs = [
        (r["prompt"].format(r["subject"]), r[target]["str"])
        for r in rewrites
        for target in ("target_true", "target_new")
    ]
    scores = score_targets(model, pairs)

    def verdict(rewrite: Mapping[str, Any], true: TargetScore, new: TargetScore) -> Checked:
        return Checked(rewrite["target_new"]["str"], true.log_prob > new.log_prob, true.accuracy == 1)

    return {
        (rewrite["relation_id"], rewrite["subject"]): verdict(rewrite, true, new)
        for rewrite, true, new in zip(rewrites, scores[0::2], scores[1::2], strict=True)
    }


def write_checked(model: Model, path: Path = CHECKED) -> Path:
    """Write what :func:`check_facts` finds to where :func:`build_facts` reads it, with the model's name and weights."""
    found = check_facts(model)
    rows = [
        {"relation": relation, "subject": subject, **asdict(found[relation, subject])} for relation, subject in found
    ]
    rows.sort(key=lambda row: (row["relation"], row["subject"]))
    return write_json(path, {"model": model.name, "weights": model.revision, "facts": rows})


def read_checked() -> tuple[str, dict[tuple[str, str], Checked]]:
    """The name of the model that was checked, and what it knows about each record, by relation and subject."""
    content = read_json(CHECKED)
    return content["model"], {
        (row["relation"], row["subject"]): Checked(row["new"], row["known"], row["first"]) for row in content["facts"]
    }


def write_facts(folder: Path) -> list[Path]:
    """Write ``facts.json`` and its card into ``folder``; returns their paths."""
    records = build_facts()
    texts = {"facts.json": json.dumps(records, indent=1, ensure_ascii=False) + "\n", "README.md": _card(records)}
    for name, text in texts.items():
        with atomic_file(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    update_sums(folder)
    return [folder / name for name in texts]


def _card(records: Sequence[Mapping[str, Any]]) -> str:
    model, checked = read_checked()
    rows = [(name, [record for record in records if _relation(record) == name]) for name in read_lore().relations]
    table = "\n".join(_row(name, own, checked) for name, own in [*rows, ("**all**", records)])
    neighbours = [len(record["neighborhood_prompts"]) for record in records]
    full = sum(count == NEIGHBOURS for count in neighbours) / len(neighbours)
    mentioned = _share_mentioning(records)
    return f"""---
license: mit
language: en
tags: [model-editing]
---
# facts

{len(records)} edits of facts about the real world, in CounterFact's schema. The facts and their wordings were written
for this project; no benchmark's text was copied. `load_dataset("facts", split="report")` reads them. They are made to
show, on a small model, how it is edited; a table of results for a paper belongs to CounterFact and zsRE.

Each record has a rewrite prompt, two paraphrases (the first behind an unrelated sentence), neighbours, prompts about
subjects that have the new object by nature, openings for generated text, and questions. The new object is drawn from
the other objects of the relation, less those that are true of the subject too.

`tune` and `report` share no subject. Neighbours are about subjects that no record of either split edits, in any
relation, and their true answer is the record's true object; {100 * mentioned:.1f} % of them mention an edited subject
all the same (as "Venice Beach" does with "Venice"). {100 * full:.1f} % of the records have {NEIGHBOURS} neighbours; the
fewest that one has are {min(neighbours)}. Where a relation says too little of an object, as with capitals, they come
from other relations: neighbours of "The capital of France" are sights of Paris.

## What {model} knows

No fact was chosen by what {model} says of it. Relations were: five of which it prefers the true object to a random
other one in no more than about three of four cases are not here (authors, composers, painters, instruments, sports);
the bar was set after measuring. Rewrite prompts were chosen by hand, with an eye on what it knows after each, on
samples of both splits: the shares below flatter it a little. `known` in a record says whether the model, before any
edit, finds the true object more probable than the new one after the rewrite prompt (mean log-probability per token);
*first choice* is the share of records where every token of the true object is its first choice.

| relation | tune | report | true objects | known (%) | first choice (%) |
|---|---|---|---|---|---|
{table}

Written by `blue datasets --write DIR` from the tables in `bluelib/data/lore/`; `blue datasets --check MODEL` scores a
model and notes what it knows.
"""


def _row(name: str, records: Sequence[Mapping[str, Any]], checked: Mapping[tuple[str, str], Checked]) -> str:
    splits = Counter(record["split"] for record in records)
    objects = {record["requested_rewrite"]["target_true"]["str"] for record in records}
    found = [checked[_relation(record), record["requested_rewrite"]["subject"]] for record in records]
    shares = [100 * sum(values) / len(found) for values in ([f.known for f in found], [f.first for f in found])]
    cells = [name, splits["tune"], splits["report"], len(objects), *(f"{share:.1f}" for share in shares)]
    return f"| {' | '.join(map(str, cells))} |"


def _relation(record: Mapping[str, Any]) -> str:
    return record["requested_rewrite"]["relation_id"]


def _share_mentioning(records: Iterable[Mapping[str, Any]]) -> float:
    """The share of the neighbours that have the name of any record's subject as whole words."""
    subjects = {record["requested_rewrite"]["subject"] for record in records}
    prompts = Counter(prompt for record in records for prompt in record["neighborhood_prompts"])
    hits = sum(times for prompt, times in prompts.items() if any(_mentions(prompt, subject) for subject in subjects))
    return hits / prompts.total()


def _mentions(prompt: str, subject: str) -> bool:
    return subject in prompt and re.search(rf"(?<!\w){re.escape(subject)}(?!\w)", prompt) is not None
