"""``facts``: real facts as edits in CounterFact's schema, written by this project and shipped with it.

The facts are in ``lore/facts.yaml``; everything else follows from them and a seed. A record's new object is another
object of its relation. Its neighbours are other subjects of which the true object is true. A subject is in one split
alone, so that settings are chosen on other subjects than those reported on. Whether a model prefers the true object
before editing was measured (:func:`check_facts`) and stands in each record as ``known``.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from ..io.assets import ASSETS, update_sums
from ..io.formats import read_yaml
from ..io.writing import atomic_file
from ..models.model import Model
from ..models.scoring import score_targets
from .benchmarks import parse_counterfact
from .records import Record

PATH = ASSETS / "datasets" / "facts.json"
CARD = ASSETS / "datasets" / "README.md"
#: The model that ``known`` speaks of.
MODEL = "smollm2-135m"
SEED = 0
NEIGHBOURS, ATTRIBUTES = 10, 5
#: A relation of which the model knows a smaller share loses the records that it does not know.
LEAST_KNOWN = 0.8
#: What stands before the second paraphrase.
UNRELATED = (
    "The bus was ten minutes late this morning.",
    "She closed the window because of the rain.",
    "We have run out of coffee again.",
    "The old clock in the hall had stopped.",
    "Nobody knew who had left the umbrella there.",
    "The children were building a tower of bricks.",
    "It took him an hour to find his keys.",
    "The bread was still warm.",
    "Two of the chairs need to be repaired.",
    "They had painted the fence green.",
    "The meeting lasted longer than expected.",
    "A dog barked somewhere down the street.",
    "The letter arrived on a Tuesday.",
    "He put the book back on the shelf.",
    "The garden looks best in early summer.",
    "There was no more room in the suitcase.",
)


@dataclass(frozen=True)
class Relation:
    """What facts of one kind have in common: their wordings, and the subjects by object; see ``lore/facts.yaml``."""

    name: str
    prompt: str
    paraphrase: str
    behind: str
    questions: tuple[str, ...]
    openings: tuple[str, ...]
    objects: Mapping[str, tuple[str, ...]]
    more: str = ""
    left_out: frozenset[str] = frozenset()

    def facts(self) -> Iterator[tuple[str, str]]:
        """Pairs of a subject and its object."""
        for found, subjects in self.objects.items():
            yield from ((subject, found) for subject in subjects)


def relations() -> dict[str, Relation]:
    """The relations by name, in the file's order."""
    content = read_yaml(Path(str(files("bluelib"))) / "data" / "lore" / "facts.yaml")
    return {
        name: Relation(
            name,
            fields["prompt"],
            fields["paraphrase"],
            fields["behind"],
            tuple(fields["questions"]),
            tuple(fields["openings"]),
            {found: tuple(subjects) for found, subjects in fields["objects"].items()},
            fields.get("more", ""),
            frozenset(fields.get("left_out", ())),
        )
        for name, fields in content.items()
    }


def say(template: str, subject: str) -> str:
    """A wording with its subject, whose article is small inside the sentence and large at its beginning."""
    return template.replace("{}", named(template, subject), 1)


def named(template: str, subject: str) -> str:
    """The subject as it stands in a wording."""
    if template.startswith("{}"):
        return subject[:1].upper() + subject[1:]
    return subject[:1].lower() + subject[1:] if subject.startswith("The ") else subject


def tuning_subjects() -> frozenset[str]:
    """The subjects of the ``tune`` split, a third of them all, in small letters."""
    subjects = sorted({subject.lower() for relation in relations().values() for subject, _ in relation.facts()})
    random.Random(SEED).shuffle(subjects)
    return frozenset(subjects[: len(subjects) // 3])


def build_facts(*, whole: bool = False) -> list[dict[str, Any]]:
    """The records in CounterFact's schema, without ``known``, in an order in which relations alternate; the ``whole``
    set has those that the lore leaves out too."""
    found, tuned = relations(), tuning_subjects()
    entries = []
    for relation in found.values():
        draw = random.Random(f"{SEED} {relation.name}")
        for subject, true in relation.facts():
            objects = [other for other in relation.objects if other != true]
            entry = _entry(found, relation, subject, true, draw.choice(objects), draw)
            if whole or subject not in relation.left_out:
                entries.append(entry)
    random.Random(SEED).shuffle(entries)
    for case_id, entry in enumerate(entries):
        entry["case_id"] = case_id
        entry["split"] = "tune" if entry["requested_rewrite"]["subject"].lower() in tuned else "report"
    return entries


def _entry(
    found: Mapping[str, Relation], relation: Relation, subject: str, true: str, new: str, draw: random.Random
) -> dict[str, Any]:
    return {
        "case_id": 0,
        "split": "",
        "requested_rewrite": {
            "prompt": relation.prompt,
            "relation_id": relation.name,
            "subject": named(relation.prompt, subject),
            "target_new": {"str": new},
            "target_true": {"str": true},
        },
        "paraphrase_prompts": [
            say(relation.paraphrase, subject),
            f"{draw.choice(UNRELATED)} {say(relation.behind, subject)}",
        ],
        "neighborhood_prompts": _about(found, relation, true, subject, NEIGHBOURS, draw),
        "attribute_prompts": _about(found, relation, new, subject, ATTRIBUTES, draw),
        "generation_prompts": [say(opening, subject) for opening in relation.openings],
        "questions": [say(question, subject) for question in relation.questions],
    }


def _about(
    found: Mapping[str, Relation], relation: Relation, true: str, besides: str, most: int, draw: random.Random
) -> list[str]:
    """Prompts about other subjects that have an object: first each in the relation's own wording, then in another."""
    related = [relation, *([found[relation.more]] if relation.more else [])]
    subjects = [(r, other) for r in related for other in r.objects.get(true, ()) if other != besides]
    draw.shuffle(subjects)
    prompts = [say(r.prompt, other) for r, other in subjects] + [say(r.paraphrase, other) for r, other in subjects]
    return prompts[:most]


def check_facts(model: Model, entries: Sequence[Mapping[str, Any]]) -> list[dict[str, bool]]:
    """Whether a model prefers each record's true object to its new one (``known``), and would say it (``first_choice``:
    all its tokens are the model's first choices)."""
    records = [parse_counterfact(entry, position) for position, entry in enumerate(entries)]
    pairs = [(r.request.text, str(target)) for r in records for target in (r.target_true, r.target_new)]
    scores = score_targets(model, pairs)
    return [
        {"known": true.log_prob > new.log_prob, "first_choice": true.accuracy == 1}
        for true, new in zip(scores[::2], scores[1::2], strict=True)
    ]


def unknown_subjects(model: Model) -> dict[str, list[str]]:
    """By relation, the subjects to leave out: those of which a model prefers the wrong object, in relations of which it
    knows less than :data:`LEAST_KNOWN`."""
    entries = build_facts(whole=True)
    found: dict[str, list[tuple[str, bool]]] = {name: [] for name in relations()}
    for entry, checked in zip(entries, check_facts(model, entries), strict=True):
        rewrite = entry["requested_rewrite"]
        found[rewrite["relation_id"]].append((rewrite["subject"], checked["known"]))
    return {
        name: sorted(subject for subject, known in rows if not known)
        for name, rows in found.items()
        if sum(known for _, known in rows) < LEAST_KNOWN * len(rows)
    }


def write_facts(model: Model, path: Path = PATH, card: Path = CARD) -> list[Path]:
    """Build the records, measure what the model knows of them, and write them with their card."""
    entries = build_facts()
    found = check_facts(model, entries)
    lines = [
        json.dumps({**entry, "known": checked["known"]}, ensure_ascii=False)
        for entry, checked in zip(entries, found, strict=True)
    ]
    with atomic_file(path) as temporary:
        temporary.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")
    with atomic_file(card) as temporary:
        temporary.write_text(_card(entries, found), encoding="utf-8")
    update_sums(path)
    return [path, card]


def neighbours_edited(records: Sequence[Record]) -> float:
    """The share of neighbours' prompts that mention a subject which one of these records edits."""
    subjects = {record.subject.lower().removeprefix("the ") for record in records}
    prompts = [probe.prompt.lower() for record in records for probe in record.locality]
    return sum(any(subject in prompt for subject in subjects) for prompt in prompts) / max(1, len(prompts))


def _card(entries: Sequence[Mapping[str, Any]], found: Sequence[Mapping[str, bool]]) -> str:
    def share(name: str, rows: Sequence[int]) -> str:
        return f"{100 * sum(found[i][name] for i in rows) / len(rows):.1f} %"

    names = list(relations())
    by_name = {n: [i for i, e in enumerate(entries) if e["requested_rewrite"]["relation_id"] == n] for n in names}
    by_name["all"] = list(range(len(entries)))
    split = {s: [e for e in entries if e["split"] == s] for s in ("tune", "report")}
    least = min(len(entry["neighborhood_prompts"]) for entry in entries)
    ten = sum(len(entry["neighborhood_prompts"]) == NEIGHBOURS for entry in entries)
    report = [parse_counterfact(entry, 0) for entry in split["report"]]
    lines = [
        "# facts",
        "",
        f"{len(entries)} real facts of {len(names)} relations as edits in CounterFact's schema, written by this "
        f"project: {len(split['tune'])} in `tune`, {len(split['report'])} in `report`; no subject is in both. "
        "MIT licence.",
        "",
        f"Of each: two paraphrases, the second behind an unrelated sentence; {NEIGHBOURS} neighbours in {ten} records, "
        f"and at least {least} in the others, about other subjects of which the true object is true; questions; "
        "openings for generated text. Made by `bluelib/data/facts.py` from `bluelib/data/lore/facts.yaml`; `known` "
        f"says whether {MODEL} prefers the true object to the new one before editing.",
        "",
        f"Of {', '.join(name for name, relation in relations().items() if relation.left_out)} the model knows less "
        f"than {100 * LEAST_KNOWN:.0f} %: what it does not know of them is no record, and only a neighbour of others. "
        "Of the other relations every fact is a record, known or not.",
        "",
        f"If all of `report` is edited at once, {100 * neighbours_edited(report):.0f} % of its neighbours are about a "
        "subject that is edited as well. The measure is of the unedited model:",
        "",
        "| relation | records | P(true) > P(new) | the true object is the first choice | such as |",
        "|---|---|---|---|---|",
    ]
    for name, rows in by_name.items():
        shown = entries[rows[0]]["requested_rewrite"]
        example = f"{shown['prompt'].replace('{}', shown['subject'])} *{shown['target_true']['str']}*"
        lines.append(
            f"| {name} | {len(rows)} | {share('known', rows)} | {share('first_choice', rows)} | "
            f"{'' if name == 'all' else example} |"
        )
    return "\n".join([*lines, ""])
