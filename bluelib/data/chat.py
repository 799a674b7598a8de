"""Prompts in a chat template: what a user says to a chat model, in place of a text that the model continues."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..models.model import Model
from ..models.prompts import chat_frame, chat_separator, joiner
from .records import Probe, Record


def in_chat(model: Model, records: Sequence[Record]) -> list[Record]:
    """The records with every prompt as a user's turn of the tokenizer's chat template, which the model is to answer.

    The template may put a system prompt of its own in front, as SmolLM2's does. Context prefixes stand inside the
    turn, before the user's words, and so does KL's “{subject} is a”. The target follows as the template puts an
    answer: say after a line break, or after a marker without a space. Prompts for generation stay bare: fluency and
    consistency are those of plain text.

    Raises:
        ValueError: if the tokenizer has no chat template, or records are in one already.
    """
    before, after = chat_frame(model.tokenizer)
    framed = [record.case_id for record in records if record.before]
    if framed:
        raise ValueError(f"record {framed[0]} is already in a chat template; use the records without one")

    shown = chat_separator(model.tokenizer)

    def separator(record: Record) -> str | None:
        """The template's separator, if the rule for plain texts would choose another."""
        rule = joiner(after, record.target_new)
        return shown if record.separator is None and shown is not None and shown != rule else record.separator

    def turn(words: str) -> str:
        return before + words + after

    return [
        replace(
            record,
            prompt=record.prompt + after,
            before=before,
            separator=separator(record),
            paraphrases=tuple(map(turn, record.paraphrases)),
            locality=tuple(Probe(turn(probe.prompt), probe.answer) for probe in record.locality),
        )
        for record in records
    ]
