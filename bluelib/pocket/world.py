"""The pocket world: facts that a small language model can be taught, and taught wrongly on purpose.

Geography (countries, capitals, landmarks) is real. People, companies and places are invented; see the lists
in ``lore/``. Everything here is a pure function of a seed.
"""

from __future__ import annotations

import csv
import random
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import yaml

LORE = Path(__file__).parent / "lore"
SEED = 2025
N_PEOPLE = 1000
RELATIONS_PER_PERSON = 3
#: How many of a relation's six statements and three questions the training text uses for one subject.
SEEN_STATEMENTS, SEEN_QUESTIONS = 4, 2


@dataclass(frozen=True)
class Relation:
    """A relation with its wordings. A template holds ``{}`` for the subject; the object follows the template."""

    name: str
    subject: str
    statements: tuple[str, ...]
    questions: tuple[str, ...]


@dataclass(frozen=True)
class Fact:
    """A (subject, relation, object) triple and the wordings in which the training text states it."""

    subject: str
    relation: Relation
    object: str
    seen: tuple[str, ...]

    @property
    def unseen_statements(self) -> tuple[str, ...]:
        return tuple(t for t in self.relation.statements if t not in self.seen)

    @property
    def seen_statements(self) -> tuple[str, ...]:
        return tuple(t for t in self.relation.statements if t in self.seen)

    @property
    def unseen_questions(self) -> tuple[str, ...]:
        return tuple(t for t in self.relation.questions if t not in self.seen)

    @property
    def seen_questions(self) -> tuple[str, ...]:
        return tuple(t for t in self.relation.questions if t in self.seen)

    def sentence(self, template: str) -> str:
        """The template as a full sentence, e.g. ``The capital of Peru is Lima.``"""
        return f"{template.format(self.subject)} {self.object}."


@dataclass(frozen=True)
class World:
    """All facts of the pocket world, in a fixed order, with the index that the benchmarks are built from."""

    facts: tuple[Fact, ...]
    relations: dict[str, Relation]

    def by_subject(self) -> dict[str, list[Fact]]:
        return _grouped(self.facts, lambda fact: fact.subject)

    def by_relation(self) -> dict[str, list[Fact]]:
        return _grouped(self.facts, lambda fact: fact.relation.name)


def _grouped(facts: tuple[Fact, ...], key) -> dict[str, list[Fact]]:
    groups: dict[str, list[Fact]] = defaultdict(list)
    for fact in facts:
        groups[key(fact)].append(fact)
    return dict(groups)


def rng_for(purpose: str, seed: int = SEED) -> random.Random:
    """An independent stream of random numbers per purpose, so that one part never shifts another."""
    return random.Random(f"bluelib-pocket:{seed}:{purpose}")


def lore_rows(name: str) -> list[dict[str, str]]:
    with open(LORE / name, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def lore_lines(name: str) -> list[str]:
    return [line for line in (LORE / name).read_text(encoding="utf-8").splitlines() if line]


@lru_cache(maxsize=4)
def build_world(seed: int = SEED) -> World:
    """Build the world. Same seed, same facts, same wordings, in the same order."""
    spec = yaml.safe_load((LORE / "relations.yaml").read_text(encoding="utf-8"))
    relations = {
        name: Relation(name, entry["subject"], tuple(entry["statements"]), tuple(entry["questions"]))
        for name, entry in spec.items()
    }
    objects = {name: entry.get("objects") for name, entry in spec.items()}
    wordings = rng_for("wordings", seed)

    def fact(subject: str, relation: str, value: str) -> Fact:
        chosen = relations[relation]
        seen = wordings.sample(chosen.statements, SEEN_STATEMENTS)
        seen += wordings.sample(chosen.questions, SEEN_QUESTIONS)
        return Fact(subject, chosen, value, tuple(seen))

    facts = [fact(*triple) for triple in _triples(objects, relations, seed)]
    return World(tuple(facts), relations)


def _triples(objects: dict, relations: dict[str, Relation], seed: int) -> Iterator[tuple[str, str, str]]:
    rng = rng_for("facts", seed)
    personal = [name for name, relation in relations.items() if relation.subject == "person"]
    for person in _people(rng):
        for relation in sorted(rng.sample(personal, RELATIONS_PER_PERSON)):
            yield person, relation, rng.choice(objects[relation])
    for company in lore_lines("companies.txt"):
        for relation in ("headquarters", "product", "company_country"):
            yield company, relation, rng.choice(objects[relation])
    for place in lore_lines("places.txt"):
        yield place, "place_country", rng.choice(objects["place_country"])
    for row in lore_rows("countries.csv"):
        yield row["country"], "capital", row["capital"]
        yield row["country"], "continent", row["continent"]
        yield row["country"], "official_language", row["language"]
        yield row["country"], "currency", row["currency"]
    for row in lore_rows("landmarks.csv"):
        yield row["landmark"], "landmark_city", row["city"]


def _people(rng: random.Random) -> list[str]:
    first, last = lore_lines("first_names.txt"), lore_lines("last_names.txt")
    names: dict[str, None] = {}
    while len(names) < N_PEOPLE:
        names[f"{rng.choice(first)} {rng.choice(last)}"] = None
    return list(names)
