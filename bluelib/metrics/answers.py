"""What a model says about the facts that are edited: its own words, before and after.

The editing metrics compare probabilities, and can be perfect although the model says something else. Here it is asked.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..data import Record
from ..models.generation import continue_greedily
from ..models.model import Model
from ..models.prompts import encode_prompt
from ..models.scoring import score_targets

#: How many tokens of an answer are looked at.
TOKENS = 12

#: The end of a line, or of a sentence: not a full stop after one or two letters, as in "St. Petersburg" and "J. Verne".
_END = re.compile(r"\n|(?:(?<!\b\w)(?<!\b\w\w)\.|[!?])(?=\s|$)|[。！？]")


@dataclass(frozen=True)
class Said:
    """What a model says about one record.

    Attributes:
        case_id: the record's.
        prompt: its rewrite prompt, with the subject.
        target_new: the object that it should say.
        text: what it says after the prompt, greedily, up to the end of the sentence.
        first_choice: whether every token of the new object is its first choice after the prompt.
        paraphrases: the same after each paraphrase.
        neighbours: what it says after each neighbour's prompt, as ``text``, if it was asked about them.
    """

    case_id: int | str
    prompt: str
    target_new: str
    text: str
    first_choice: bool
    paraphrases: tuple[bool, ...]
    neighbours: tuple[tuple[str, str], ...] = ()


def ask_about(model: Model, records: Sequence[Record], *, tokens: int = TOKENS, neighbours: bool = False) -> list[Said]:
    """Ask a model about each record, after the rewrite prompt and its paraphrases.

    Args:
        model: the model in its present state.
        records: what to ask about.
        tokens: how many of an answer to look at; fewer where the model's context ends.
        neighbours: whether to ask about each record's neighbours too.

    Raises:
        ValueError: if a prompt fills the model's context; the message names the record.
    """
    near = [[probe.prompt for probe in record.locality] if neighbours else [] for record in records]
    prompts, lengths = [], []
    for record, others in zip(records, near, strict=True):
        for prompt in (record.request.text, *others):
            read = len(encode_prompt(model.tokenizer, prompt))
            try:
                model.check_length(read + 1, f"{prompt[:80]!r} and an answer")
            except ValueError as error:
                raise ValueError(f"record {record.case_id}: {error}") from error
            prompts.append(prompt)
            lengths.append(min(tokens, model.max_positions - read))
    texts = map(first_sentence, continue_greedily(model, prompts, lengths, until_end=True))
    asked = [(record.request.text, *record.paraphrases) for record in records]
    pairs = [(prompt, record.target_new) for prompts, record in zip(asked, records, strict=True) for prompt in prompts]
    separators = [record.separator for prompts, record in zip(asked, records, strict=True) for _ in prompts]
    scores = iter(score_targets(model, pairs, separators=separators))
    chosen = [[next(scores).accuracy == 1 for _ in prompts] for prompts in asked]
    return [
        Said(
            record.case_id,
            record.request.text,
            record.target_new,
            next(texts),
            first,
            tuple(others),
            tuple((prompt, next(texts)) for prompt in about),
        )
        for record, about, (first, *others) in zip(records, near, chosen, strict=True)
    ]


def first_sentence(text: str) -> str:
    """A text up to the end of its first sentence or line."""
    text = text.strip()
    end = _END.search(text)
    return text[: end.end()].strip() if end else text


def compare(before: Sequence[Said], after: Sequence[Said]) -> list[dict[str, Any]]:
    """What a model said about the same records before and after editing, as plain values, one dictionary per record.

    ``paraphrases`` is how many there are; ``first_choice_paraphrases`` after how many of them the new object is the
    first choice. ``neighbours`` is there if they were asked about.
    """
    return [
        {
            "case_id": old.case_id,
            "prompt": old.prompt,
            "target_new": old.target_new,
            "paraphrases": len(old.paraphrases),
            **{
                state: {
                    "says": said.text,
                    "first_choice": said.first_choice,
                    "first_choice_paraphrases": sum(said.paraphrases),
                }
                for state, said in (("before", old), ("after", new))
            },
            **(
                {
                    "neighbours": [
                        {"prompt": prompt, "before": text, "after": now}
                        for (prompt, text), (_, now) in zip(old.neighbours, new.neighbours, strict=True)
                    ]
                }
                if old.neighbours
                else {}
            ),
        }
        for old, new in zip(before, after, strict=True)
    ]
