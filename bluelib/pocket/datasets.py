"""The pocket benchmarks: edits of the pocket world in the schemas of CounterFact and zsRE, and what follows from them.

There is at most one record per subject, and each edited subject belongs to one split only: hyper-parameters are chosen
on ``tune``, whose records never edit a subject of ``report``. Locality probes are drawn for both splits from all facts
that no record edits. Some are about subjects that another record edits in another relation: 3.5 % of the probes of the
first 100 reported edits of ``pocket-counterfact``, and 36 % of those of all 800.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

from ..io.assets import update_sums
from ..io.writing import atomic_file
from .text import SEARCHED_RELATIONS, search_question
from .world import SEED, Fact, World, build_world, rng_for

TUNE, REPORT = 400, 800
NEIGHBOURS, ATTRIBUTES, REFERENCES = 10, 10, 8
#: At least this many subjects that share an object are never edited, so that every edit has neighbours.
MIN_NEIGHBOURS = 4


def build_counterfact(seed: int = SEED) -> list[dict[str, Any]]:
    """``pocket-counterfact``: 400 tune and 800 report records, shuffled, as JSON-ready dictionaries.

    The rewrite prompt is a wording the subject was seen in; the two paraphrases are the two it was never seen in,
    one of them after an unrelated sentence. Neighbours are facts that no record of either split edits, so that
    specificity never counts an edit made on purpose as damage.
    """
    world = build_world(seed)
    rng = rng_for("counterfact", seed)
    untouched = _untouched_by_object(world, seed)
    records = []
    for case_id, (split, fact) in enumerate(_edited_facts(world, seed)):
        new = _other_object(fact, world, rng)
        rewrite, *openings = rng.sample(fact.seen_statements, len(fact.seen_statements))
        direct, behind = rng.sample(fact.unseen_statements, 2)
        unrelated = _unrelated(fact, world, rng)
        records.append(
            {
                "case_id": case_id,
                "split": split,
                "requested_rewrite": {
                    "prompt": rewrite,
                    "relation_id": fact.relation.name,
                    "target_new": {"str": new, "id": _object_id(new)},
                    "target_true": {"str": fact.object, "id": _object_id(fact.object)},
                    "subject": fact.subject,
                },
                "paraphrase_prompts": [
                    f"{unrelated.sentence(rng.choice(unrelated.seen_statements))} {behind.format(fact.subject)}",
                    direct.format(fact.subject),
                ],
                "neighborhood_prompts": _prompts(untouched[fact.relation.name, fact.object], fact, NEIGHBOURS, rng),
                "attribute_prompts": _prompts(untouched[fact.relation.name, new], fact, ATTRIBUTES, rng),
                "generation_prompts": [opening.format(fact.subject) for opening in openings],
                "reference_texts": _references(untouched[fact.relation.name, new], fact, rng),
            }
        )
    return records


def build_zsre(seed: int = SEED) -> list[dict[str, Any]]:
    """``pocket-zsre``: 400 tune and 800 report records in MEND's zsRE schema.

    ``src`` is a question the subject was seen in, ``rephrase`` the one it never was; ``loc`` asks for a fact about
    another subject that no record edits, in the form of a web search.
    """
    world = build_world(seed)
    rng = rng_for("zsre", seed)
    edited = {fact for _, fact in _edited_facts(world, seed)}
    searched = [f for f in world.facts if f.relation.name in SEARCHED_RELATIONS and f not in edited]
    records = []
    for case_id, (split, fact) in enumerate(_edited_facts(world, seed)):
        new = _other_object(fact, world, rng)
        source = rng.choice(fact.seen_questions).format(fact.subject)
        probe = next(other for other in rng.sample(searched, 5) if other.subject != fact.subject)
        records.append(
            {
                "case_id": case_id,
                "split": split,
                "subject": fact.subject,
                "src": source,
                "pred": fact.object,
                "rephrase": fact.unseen_questions[0].format(fact.subject),
                "alt": new,
                "answers": [fact.object],
                "loc": search_question(probe.seen_questions[0].format(probe.subject)),
                "loc_ans": probe.object,
                "cond": f"{fact.object} >> {new} || {source}",
            }
        )
    return records


#: Descriptions of a country by a subject, for each relation whose object is a country.
_DESCRIBED = {
    "citizenship": "the country that {} is a citizen of",
    "company_country": "the country that {} comes from",
    "place_country": "the country that {} lies in",
}
#: What is asked about a country, by relation.
_ASKED = {
    "capital": "The capital of {} is",
    "continent": "The continent of {} is",
    "official_language": "The official language of {} is",
    "currency": "The currency of {} is the",
}
_OF_RECORDS = ("case_id", "split", "requested_rewrite", "paraphrase_prompts", "neighborhood_prompts")


def build_ripple(seed: int = SEED) -> list[dict[str, Any]]:
    """``pocket-ripple``: records of ``pocket-counterfact`` with what follows from their edits, in two of RippleEdits'
    groups (Cohen et al. 2024).

    ``Relation_Specificity``: the subject's other facts, which must stay. ``Compositionality_I``, for countries: a fact
    about the new country, which the prompt describes by the subject. It counts if the model completes the same prompt
    for the old country, and knows the fact itself. The training text has no such descriptions: tests of what the model
    never learned are not executed.
    """
    world = build_world(seed)
    by_subject, by_relation = world.by_subject(), world.by_relation()
    of_country = {name: {fact.subject: fact for fact in by_relation[name]} for name in _ASKED}
    records = []
    for record in build_counterfact(seed):
        rewrite = record["requested_rewrite"]
        subject, relation = rewrite["subject"], rewrite["relation_id"]
        others = [_asked_of(fact) for fact in by_subject[subject] if fact.relation.name != relation]
        composed = []
        for name, wording in _ASKED.items() if relation in _DESCRIBED else ():
            facts = of_country[name]
            old, new = (facts.get(rewrite[target]["str"]) for target in ("target_true", "target_new"))
            if old and new and old.object != new.object:
                prompt = wording.format(_DESCRIBED[relation].format(subject))
                conditions = [{"prompt": prompt, "answer": old.object}, _asked_of(new)]
                composed.append({"prompt": prompt, "answer": new.object, "conditions": conditions})
        groups = {
            "Relation_Specificity": [{**item, "conditions": [item]} for item in others],
            "Compositionality_I": composed,
        }
        portability = {name: items for name, items in groups.items() if items}
        if portability:
            records.append({**{name: record[name] for name in _OF_RECORDS}, "portability": portability})
    return records


def _asked_of(fact: Fact) -> dict[str, str]:
    return {"prompt": fact.seen_statements[0].format(fact.subject), "answer": fact.object}


def write_datasets(folder: Path, seed: int = SEED) -> list[Path]:
    """Write the benchmarks as JSON files into ``folder``; returns their paths."""
    paths = []
    builders = {"pocket-counterfact": build_counterfact, "pocket-zsre": build_zsre, "pocket-ripple": build_ripple}
    for name, build in builders.items():
        paths.append(folder / f"{name}.json")
        with atomic_file(paths[-1]) as temporary:
            text = json.dumps(build(seed), indent=1, ensure_ascii=False)
            temporary.write_text(text + "\n", encoding="utf-8")
    update_sums(folder)
    return paths


def edited_subjects(seed: int = SEED) -> frozenset[str]:
    """The subjects of both benchmarks, of either split."""
    return frozenset(fact.subject for _, fact in _edited_facts(build_world(seed), seed))


def _edited_facts(world: World, seed: int) -> list[tuple[str, Fact]]:
    """One editable fact per subject, shuffled, with its split: the same for both benchmarks."""
    rng = rng_for("splits", seed)
    left = Counter((fact.relation.name, fact.object) for fact in world.facts)
    chosen: list[Fact] = []
    for facts in rng.sample(list(world.by_subject().values()), len(world.by_subject())):
        editable = [fact for fact in facts if left[fact.relation.name, fact.object] > MIN_NEIGHBOURS]
        if editable and len(chosen) < TUNE + REPORT:
            fact = rng.choice(editable)
            left[fact.relation.name, fact.object] -= 1
            chosen.append(fact)
    return [("tune" if i < TUNE else "report", fact) for i, fact in enumerate(chosen)]


def _untouched_by_object(world: World, seed: int) -> dict[tuple[str, str], list[Fact]]:
    """The facts that no record edits, by relation and object."""
    edited = {fact for _, fact in _edited_facts(world, seed)}
    groups: dict[tuple[str, str], list[Fact]] = {}
    for fact in world.facts:
        if fact not in edited:
            groups.setdefault((fact.relation.name, fact.object), []).append(fact)
    return groups


def _other_object(fact: Fact, world: World, rng: random.Random) -> str:
    """An object of the same relation that other subjects have, different from the fact's own."""
    counts = Counter(other.object for other in world.by_relation()[fact.relation.name])
    frequent = sorted(value for value, count in counts.items() if count > MIN_NEIGHBOURS)
    return rng.choice([value for value in frequent if value != fact.object])


def _unrelated(fact: Fact, world: World, rng: random.Random) -> Fact:
    while True:
        other = rng.choice(world.facts)
        if other.subject != fact.subject and other.relation.name != fact.relation.name:
            return other


def _others(facts: list[Fact], fact: Fact) -> list[Fact]:
    return [other for other in facts if other.subject != fact.subject]


def _prompts(facts: list[Fact], fact: Fact, count: int, rng: random.Random) -> list[str]:
    """``count`` distinct prompts about other subjects, spread over as many of them as there are."""
    prompts: dict[str, None] = {}
    others = _others(facts, fact)
    while len(prompts) < count:
        for other in rng.sample(others, min(count - len(prompts), len(others))):
            prompts[rng.choice(other.seen_statements).format(other.subject)] = None
    return list(prompts)


def _references(facts: list[Fact], fact: Fact, rng: random.Random) -> list[str]:
    others = _others(facts, fact)
    chosen = rng.sample(others, min(REFERENCES, len(others)))
    return [" ".join(other.sentence(template) for template in other.seen_statements) for other in chosen]


def _object_id(value: str) -> str:
    return "pocket:" + value.replace(" ", "_")
