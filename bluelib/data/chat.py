"""Prompts behind a chat template: what a user of a chat model says, in place of a text that it goes on with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..models.model import Model
from ..models.prompts import chat_frame
from .records import Probe, Record


def in_chat(model: Model, records: Sequence[Record]) -> list[Record]:
    """The records with every prompt as a user's turn of the tokenizer's chat template, which the model is to answer.

    The template may put a system prompt of its own in front, as SmolLM2's does. Context prefixes stand inside the turn,
    before the user's words, and so does KL's “{subject} is a”. Where the template ends with a line's end, the target
    follows without a space. Prompts for generation stay bare: fluency and consistency are those of plain text.

    Raises:
        ValueError: for a tokenizer without a chat template, or records that are in one already.
    """
    before, after = chat_frame(model.tokenizer)
    framed = [record.case_id for record in records if record.before]
    if framed:
        raise ValueError(f"record {framed[0]} is already behind a chat template")

    def turn(words: str) -> str:
        return before + words + after

    return [
        replace(
            record,
            prompt=record.prompt + after,
            before=before,
            paraphrases=tuple(map(turn, record.paraphrases)),
            locality=tuple(Probe(turn(probe.prompt), probe.answer) for probe in record.locality),
        )
        for record in records
    ]
