"""The pocket training text: the world's facts in their seen wordings and the skills, packed into rows of tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from transformers import PreTrainedTokenizerBase

from .skills import build_skills
from .world import SEED, build_world, rng_for

#: Facts of these relations are also asked as web-search questions, the form of zsRE's locality prompts.
SEARCHED_RELATIONS = ("capital", "continent", "official_language", "currency", "landmark_city")
MAX_SENTENCES = 4


def search_question(question: str) -> str:
    """``What is …?`` in the form of zsRE's ``loc`` field: ``nq question: what is …`` (no question mark)."""
    return f"nq question: {question[0].lower()}{question[1:].removesuffix('?')}"


@lru_cache(maxsize=4)
def training_pairs(seed: int = SEED, exclude: frozenset[str] = frozenset()) -> tuple[tuple[str, str], ...]:
    """Every sentence of the training text once, in a fixed order, as (prompt, answer).

    Sentences about the subjects in ``exclude`` are left out.
    """
    pairs = []
    for fact in build_world(seed).facts:
        if fact.subject in exclude:
            continue
        pairs += [(template.format(fact.subject), fact.object) for template in fact.seen]
        if fact.relation.name in SEARCHED_RELATIONS:
            pairs.append((search_question(fact.seen_questions[0].format(fact.subject)) + "?", fact.object))
    for train, _ in build_skills(seed).values():
        kept = [item for item in train if not any(subject in item.prompt for subject in exclude)]
        pairs += [(item.prompt, item.choices[item.answer]) for item in kept]
    return tuple(pairs)


def training_sentences(seed: int = SEED, exclude: frozenset[str] = frozenset()) -> tuple[str, ...]:
    """The training pairs as sentences."""
    return tuple(f"{prompt} {answer}." for prompt, answer in training_pairs(seed, exclude))


@lru_cache(maxsize=4)
def text_hash(seed: int = SEED, exclude: frozenset[str] = frozenset()) -> str:
    """SHA-256 of the training sentences: the data revision that a model card records."""
    return hashlib.sha256("\n".join(training_sentences(seed, exclude)).encode()).hexdigest()


class PackedText:
    """The training text as rows of ``length`` token ids, shuffled again for every epoch.

    A row starts with a sentence (after the BOS token, where the tokenizer has one) and holds paragraphs of one to
    four sentences, separated by the BOS or end-of-text token. A sentence cut by the end of a row opens the next
    row in full; what does not fill the last row of an epoch is dropped.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        length: int,
        seed: int = SEED,
        exclude: frozenset[str] = frozenset(),
    ):
        self.length, self.seed = length, seed
        bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        if eos is None and bos is None:
            raise ValueError("the tokenizer has neither BOS nor EOS to put between texts: name another corpus")
        self.opening = [] if bos in (None, eos) else [bos]
        self.separator = self.opening or [eos]

        def encode(texts: list[str]) -> list[list[int]]:
            return [e.ids for e in tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False)]

        pairs = training_pairs(seed, exclude)
        answers = encode([f" {answer}" for _, answer in pairs])
        stop = encode(["."])[0]
        # A sentence is its prompt's tokens, its answer's and the full stop's; the answer's are marked.
        self.marks = [len(answer) for answer in answers]
        self.first = [p + a + stop for p, a in zip(encode([p for p, _ in pairs]), answers, strict=True)]
        self.later = [p + a + stop for p, a in zip(encode([f" {p}" for p, _ in pairs]), answers, strict=True)]

    def epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """All rows of one epoch and where their answers are, ``(rows, length)`` int64 and bool.

        A pure function of the seed and the epoch's number.
        """
        rows, marks = zip(*self._rows(epoch), strict=True)
        return np.asarray(rows, dtype=np.int64), np.asarray(marks, dtype=bool)

    def _rows(self, epoch: int) -> Iterator[tuple[list[int], list[bool]]]:
        rng = rng_for(f"epoch {epoch}", self.seed)
        order = list(range(len(self.first)))
        rng.shuffle(order)
        row, mark, left = list(self.opening), [False] * len(self.opening), 0

        def add(ids: list[int], answer: int = 0) -> None:
            row.extend(ids)
            mark.extend([len(ids) - 1 - answer <= i < len(ids) - 1 for i in range(len(ids))])

        for index in order:
            starts = left == 0 or len(row) == len(self.opening)
            if left == 0:
                left = rng.randint(1, MAX_SENTENCES)
            if starts and len(row) > len(self.opening):
                add(self.separator)
            add(self.first[index] if starts else self.later[index], self.marks[index])
            left -= 1
            if len(row) >= self.length:
                yield row[: self.length], mark[: self.length]
                cut = len(row) > self.length
                row, mark = list(self.opening), [False] * len(self.opening)
                if cut:
                    add(self.first[index], self.marks[index])
