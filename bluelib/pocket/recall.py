"""What a pocket model knows: recall of the world's facts, and its skills on held-out items."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from ..models.model import Model
from ..models.scoring import score_targets
from .skills import Item, build_skills
from .world import Fact, build_world, rng_for

#: The least that a shipped model must reach, in per cent.
BARS = {"seen": 98.0, "unseen": 90.0, "behind_prefix": 95.0, "skill": 85.0}


def recall(model: Model) -> dict[str, float]:
    """Recall of all facts and accuracy of all skills, in per cent.

    ``seen`` and ``unseen``: share of (fact, wording) pairs whose object is the model's first choice, token by token,
    for the statements and questions that the training text has for that subject, and for those that it does not have.
    ``behind_prefix``: the same for one seen wording of each fact after a sentence about something else. ``skill_…``:
    share of held-out items whose right choice is the most probable one.
    """
    facts = build_world().facts
    rng = rng_for("recall")
    prefixed = []
    for fact in facts:
        other = rng.choice(facts)
        prefix = other.sentence(rng.choice(other.seen_statements))
        prefixed.append((f"{prefix} {rng.choice(fact.seen_statements).format(fact.subject)}", fact.object))
    found = {
        "seen": _hits(model, [(t.format(f.subject), f.object) for f in facts for t in f.seen]),
        "unseen": _hits(model, [(t.format(f.subject), f.object) for f in facts for t in _unseen(f)]),
        "behind_prefix": _hits(model, prefixed),
    }
    for skill, (_, held_out) in build_skills().items():
        found[f"skill_{skill}"] = skill_accuracy(model, held_out)
    return {name: round(value, 2) for name, value in found.items()}


def bar(name: str) -> float:
    """The bar of an entry of :func:`recall`."""
    return BARS["skill" if name.startswith("skill") else name]


def short_of_bar(found: dict[str, float]) -> list[str]:
    """The entries of :func:`recall` that are below :data:`BARS`."""
    return [name for name, value in found.items() if value < bar(name)]


def skill_accuracy(model: Model, items: Sequence[Item]) -> float:
    """Share of items whose right choice has the highest mean log-probability, in per cent."""
    scores = iter(score_targets(model, [(item.prompt, choice) for item in items for choice in item.choices]))
    right = 0
    for item in items:
        log_probs = [next(scores).log_prob for _ in item.choices]
        right += log_probs.index(max(log_probs)) == item.answer
    return 100 * right / len(items)


def _unseen(fact: Fact) -> tuple[str, ...]:
    return fact.unseen_statements + fact.unseen_questions


def _hits(model: Model, pairs: Sequence[tuple[str, str]]) -> float:
    return 100 * fmean(score.accuracy == 1.0 for score in score_targets(model, pairs))
