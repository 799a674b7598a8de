"""Edits whose target is a text of several sentences, as in UnKE (Deng et al. 2024) and AKEW (Wu et al. 2024)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..pocket.world import SEEN_STATEMENTS, build_world
from . import Record, RecordError
from .benchmarks import parse_counterfact
from .datasets import load_dataset, of_pocket_world
from .records import field, put_subject_out
from .ripples import parse_mquake

SENTENCES = 3


def load_long_form(
    name: str | Path, *, sentences: int = SENTENCES, split: str | None = None, limit: int | None = None, seed: int = 0
) -> list[Record]:
    """Long-form edits: the prompt is a question about the subject, ``target_new`` a text of several sentences.

    Args:
        name: a pocket dataset, whose records are rewritten (:func:`pocket_long_form`); or the path of a JSON file in
            AKEW's form of CounterFact or of MQuAKE-CF, or of one in any form of :func:`~bluelib.load_dataset` whose
            targets are texts already (UnKE's in the flat form, say).
        sentences: the number of sentences of a target made from a pocket record.
        split, limit, seed: as for :func:`~bluelib.load_dataset`, so that the same records are chosen.

    Raises:
        RecordError: if a target is not a text of several sentences; the message says which fields are needed.
        ValueError: as :func:`~bluelib.load_dataset`; also if the pocket world does not have that many sentences.
    """
    chosen: dict[str, Any] = {"split": split, "limit": limit, "seed": seed}
    if of_pocket_world(name):
        return [pocket_long_form(record, sentences) for record in load_dataset(name, **chosen)]
    records = load_dataset(name, **chosen)
    if all(_several_sentences(record.target_new) for record in records):
        return records
    return load_dataset(name, **chosen, parse=parse_akew)


def pocket_long_form(record: Record, sentences: int = SENTENCES) -> Record:
    """A pocket record with a question as its prompt; its target is the answer and further statements of it.

    For three sentences: ``Which instrument does Ilvane play?`` – ``lute. On stage, Ilvane performs on the lute. Ilvane
    plays the lute.`` First comes the new object alone, as the training text answers questions. Then come wordings in
    which the training text states this fact, with the new object in place of the old. The question is one that the
    training text asks; the paraphrase is the one that it never asks.

    Raises:
        ValueError: for fewer than 2 sentences, or more than the training text has wordings for.
        RecordError: for a record that is not about a fact of the pocket world.
    """
    check_sentences(sentences)
    facts = build_world().by_subject().get(record.subject, [])
    found = [fact for fact in facts if record.prompt in fact.relation.statements + fact.relation.questions]
    if not found:
        raise RecordError(
            f"record {record.case_id}: prompt {record.prompt!r} and subject {record.subject!r} are not "
            "those of a fact of the pocket world"
        )
    fact = replace(found[0], object=record.target_new)
    return replace(
        record,
        prompt=fact.seen_questions[0],
        target_new=" ".join([f"{fact.object}.", *map(fact.sentence, fact.seen_statements[: sentences - 1])]),
        paraphrases=tuple(question.format(fact.subject) for question in fact.unseen_questions),
    )


def check_sentences(sentences: int) -> None:
    """Make sure that the pocket world has this many sentences for a target.

    Raises:
        ValueError: if not.
    """
    if sentences not in range(2, SEEN_STATEMENTS + 2):
        raise ValueError(f"a long-form target has 2 to {SEEN_STATEMENTS + 1} sentences, not {sentences}")


def parse_akew(entry: Mapping[str, Any], position: int) -> list[Record]:
    """The edits of a record of AKEW, in its form of CounterFact (one) or of MQuAKE-CF (one or more).

    ``fact_new_uns``, a text that states the new fact, is the target, and ``question`` the prompt. Both stand beside the
    fields that the benchmark itself has in ``requested_rewrite``.

    Raises:
        RecordError: if one of them is missing, or the text does not have several sentences.
    """
    rewrites = entry.get("requested_rewrite")
    if isinstance(rewrites, list):
        edits = zip(parse_mquake(entry, position), rewrites, strict=True)
    else:
        edits = zip([parse_counterfact(entry, position)], [rewrites], strict=True)
    return [_unstructured(record, rewrite) for record, rewrite in edits]


def _unstructured(record: Record, rewrite: Any) -> Record:
    entry, case_id = {"requested_rewrite": rewrite}, record.case_id  # a message names the field with its parent
    try:
        text = field(entry, "requested_rewrite.fact_new_uns", case_id)
        question = field(entry, "requested_rewrite.question", case_id)
    except RecordError as error:
        raise RecordError(
            f"{error}; long-form editing needs a target of several sentences: AKEW's fields "
            "requested_rewrite.question and .fact_new_uns, or another form whose target is such a text already"
        ) from error
    if not _several_sentences(text):
        raise RecordError(
            f"record {case_id}: requested_rewrite.fact_new_uns must consist of several sentences, not {text!r}"
        )
    prompt = put_subject_out(question, record.subject, case_id, "requested_rewrite.question")
    return replace(record, prompt=prompt, target_new=text)


def _several_sentences(text: str) -> bool:
    return len(re.findall(r"[.!?](?=\s|$)", text.strip())) >= 2
