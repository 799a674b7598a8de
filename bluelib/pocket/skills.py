"""Six small skills, pocket counterparts of the paper's general-capability tasks.

=================  ===================  ==========================================================
skill              counterpart          item
=================  ===================  ==========================================================
sentiment          SST-2                a review; is the feeling good or bad?
paraphrase         MRPC                 two sentences; the same meaning?
acceptability      CoLA                 a sentence; is its grammar correct?
entailment         RTE                  a premise and a claim; does it follow?
nli                NLI                  a premise and a claim; yes, no or maybe?
multiple_choice    MMLU                 a question about the world with four choices
=================  ===================  ==========================================================

An item is a prompt with a list of choices; a model answers with the choice it finds most probable after the
prompt. Items of the training text and held-out items are disjoint; held-out multiple-choice items ask about
(subject, relation) pairs that the training text never asks in that form.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from .world import SEED, World, build_world, rng_for

TRAIN_ITEMS, TEST_ITEMS = 800, 200

PEOPLE = (
    "baker",
    "sailor",
    "doctor",
    "singer",
    "farmer",
    "painter",
    "teacher",
    "driver",
    "neighbour",
    "visitor",
    "clerk",
    "dancer",
)
VERBS = ("sings", "sleeps", "waits", "laughs", "walks", "cooks", "reads", "swims", "smiles", "works")
THINGS = (
    "lamp",
    "kite",
    "chair",
    "table",
    "boat",
    "hat",
    "coat",
    "basket",
    "bottle",
    "mirror",
    "drum",
    "ladder",
)
COLOURS = ("red", "blue", "green", "yellow", "black", "white", "brown", "grey")
#: (adjective, synonym, opposite)
ADJECTIVES = (
    ("big", "large", "small"),
    ("fast", "quick", "slow"),
    ("cheap", "inexpensive", "costly"),
    ("old", "ancient", "new"),
    ("loud", "noisy", "quiet"),
    ("clean", "spotless", "dirty"),
    ("wet", "soaked", "dry"),
    ("heavy", "weighty", "light"),
    ("strong", "sturdy", "weak"),
    ("pretty", "beautiful", "ugly"),
)
GOOD = (
    "wonderful",
    "delicious",
    "charming",
    "brilliant",
    "delightful",
    "superb",
    "splendid",
    "lovely",
    "excellent",
    "marvellous",
)
BAD = (
    "dreadful",
    "awful",
    "boring",
    "terrible",
    "tasteless",
    "horrible",
    "clumsy",
    "dull",
    "miserable",
    "disappointing",
)
REVIEWED = ("soup", "film", "hotel", "concert", "novel", "play", "garden", "museum", "meal", "song", "train", "party")
#: (verb, a verb of the same meaning, a verb of another meaning)
ACTS = (
    ("hid", "concealed", "showed"),
    ("repaired", "mended", "broke"),
    ("bought", "purchased", "sold"),
    ("began", "started", "finished"),
    ("lifted", "raised", "dropped"),
    ("praised", "lauded", "mocked"),
    ("built", "constructed", "destroyed"),
    ("kept", "retained", "lost"),
    ("loved", "adored", "hated"),
    ("shut", "closed", "opened"),
)
WORKS = ("story", "bridge", "shop", "letter", "meeting", "house", "box", "gate", "lesson", "statue")
#: (verb, a verb that follows from it, a verb that does not)
DEEDS = (
    ("bought", "owned", "lacked"),
    ("stole", "took", "returned"),
    ("smashed", "damaged", "spared"),
    ("found", "saw", "overlooked"),
    ("carried", "moved", "left"),
    ("caught", "held", "missed"),
    ("inherited", "received", "declined"),
    ("burned", "ruined", "rescued"),
    ("borrowed", "used", "ignored"),
    ("sketched", "drew", "erased"),
)


@dataclass(frozen=True)
class Item:
    """One test item: ``prompt`` is followed by a space and one of ``choices``; ``answer`` indexes the right one."""

    prompt: str
    choices: tuple[str, ...]
    answer: int

    @property
    def text(self) -> str:
        return f"{self.prompt} {self.choices[self.answer]}."


YES_NO = ("yes", "no")


def _sentiment(rng: random.Random) -> Item:
    answer = rng.randrange(2)
    first, second = rng.sample((GOOD, BAD)[answer], 2)
    shape = rng.choice(
        (
            "The {n} was {a} and {b}.",
            "What a {n}, so {a}, so {b}!",
            "I found the {n} {a}, even {b}.",
            "A {n} that was {a} and also {b}.",
        )
    )
    review = shape.format(n=rng.choice(REVIEWED), a=first, b=second)
    return Item(f"Review: {review} Feeling:", ("good", "bad"), answer)


def _acceptability(rng: random.Random) -> Item:
    """Right sentences against ones with a word in the wrong place or a word too many."""
    answer = rng.randrange(2)
    words = ["the", rng.choice(ADJECTIVES)[0], rng.choice(PEOPLE), "often", rng.choice(VERBS)]
    if answer:
        at = rng.randrange(3)
        if rng.random() < 0.5:
            words[at], words[at + 1] = words[at + 1], words[at]
        else:
            words.insert(at + 1, words[at])
    sentence = " ".join(words)
    return Item(f"Sentence: {sentence[0].upper()}{sentence[1:]}. Correct:", YES_NO, answer)


def _paraphrase(rng: random.Random) -> Item:
    answer = rng.randrange(2)
    who, work = rng.choice(PEOPLE), rng.choice(WORKS)
    act, same, other = rng.choice(ACTS)
    second = f"The {work} was what the {who} {(same, other)[answer]}."
    return Item(f"One: The {who} {act} the {work}. Two: {second} Same:", YES_NO, answer)


def _entailment(rng: random.Random) -> Item:
    answer = rng.randrange(2)
    who, thing = rng.choice(PEOPLE), rng.choice(THINGS)
    deed, follows, other = rng.choice(DEEDS)
    claim = f"The {who} {(follows, other)[answer]} the {thing}."
    return Item(f"Premise: The {who} {deed} the {thing}. Claim: {claim} Follows:", YES_NO, answer)


def _nli(rng: random.Random) -> Item:
    answer = rng.randrange(3)
    thing = rng.choice(THINGS)
    adjective, synonym, opposite = rng.choice(ADJECTIVES)
    claim = (synonym, opposite, rng.choice(COLOURS))[answer]
    place = rng.choice(REVIEWED)
    return Item(
        f"Given: The {thing} near the {place} is {adjective}. Claim: The {thing} is {claim}. Verdict:",
        ("yes", "no", "maybe"),
        answer,
    )


def _multiple_choice(world: World, held_out: bool, seed: int) -> Callable[[random.Random], Item]:
    """Questions on the world, in a wording the subject was seen in; half of the facts are kept for the test."""
    facts = [fact for fact in world.facts if fact.relation.name != "capital"]
    rng_for("multiple_choice split", seed).shuffle(facts)
    half = len(facts) // 2
    pool = facts[half:] if held_out else facts[:half]
    objects = {name: sorted({fact.object for fact in group}) for name, group in world.by_relation().items()}

    def draw(rng: random.Random) -> Item:
        fact = rng.choice(pool)
        others = rng.sample([o for o in objects[fact.relation.name] if o != fact.object], 3)
        choices = [fact.object, *others]
        rng.shuffle(choices)
        question = rng.choice(fact.seen_questions).format(fact.subject)
        prompt = f"Choices: {', '.join(choices)}. {question} Answer:"
        return Item(prompt, tuple(choices), choices.index(fact.object))

    return draw


SKILLS = ("sentiment", "paraphrase", "acceptability", "entailment", "nli", "multiple_choice")


def build_skills(seed: int = SEED) -> dict[str, tuple[tuple[Item, ...], tuple[Item, ...]]]:
    """The items of each skill: ``{skill: (training items, held-out items)}``, without an item in both."""
    world = build_world(seed)
    makers = {
        "sentiment": _sentiment,
        "paraphrase": _paraphrase,
        "acceptability": _acceptability,
        "entailment": _entailment,
        "nli": _nli,
    }
    skills = {}
    for skill in SKILLS:
        train_maker = makers.get(skill) or _multiple_choice(world, held_out=False, seed=seed)
        test_maker = makers.get(skill) or _multiple_choice(world, held_out=True, seed=seed)
        test = _distinct(test_maker, TEST_ITEMS, rng_for(f"skill {skill} test", seed), avoid=frozenset())
        held_out = frozenset(item.prompt for item in test)
        train = _distinct(train_maker, TRAIN_ITEMS, rng_for(f"skill {skill} train", seed), avoid=held_out)
        skills[skill] = (train, test)
    return skills


def _distinct(
    maker: Callable[[random.Random], Item], count: int, rng: random.Random, avoid: frozenset[str]
) -> tuple[Item, ...]:
    items: dict[str, Item] = {}
    for _ in range(50 * count):
        item = maker(rng)
        if item.prompt not in avoid:
            items.setdefault(item.prompt, item)
        if len(items) == count:
            return tuple(items.values())
    raise ValueError(f"only {len(items)} of {count} distinct items could be drawn; the skill needs more words")
