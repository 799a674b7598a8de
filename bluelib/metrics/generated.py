"""What a model answers, in its own words: no teacher forcing, no object to compare with.

A prompt is continued greedily by at most 50 tokens, up to a full stop, the end of the line or the end of the text ("The
Mirage of Model Editing", Yang et al., ACL 2025). If the object itself has full stops, as many are passed over. There
are two measures. ``exact``: the answer is the object, after SQuAD's normalisation (Rajpurkar et al. 2016: lower case,
without punctuation and articles). ``contains``: the object's words are in the answer. The prompts are the rewrite
prompt (efficacy), paraphrases (generalization), and, for the old answer, the first :data:`PROBES` prompts about other
subjects (specificity), in one of three contexts:

===============  ==========================================================================
context          what the model reads
===============  ==========================================================================
``bare``         the prompt
``instruction``  :data:`INSTRUCTION`, then the prompt
``chat``         the prompt as a user's turn of the tokenizer's chat template
===============  ==========================================================================
"""

from __future__ import annotations

import json
import re
import string
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from ..data import Record
from ..io.writing import atomic_file
from ..models.generation import answer
from ..models.model import Model
from ..models.prompts import chat_frame, has_unspaced

TOKENS = 50
#: How many of a record's locality probes are asked, the first: CounterFact has ten, and an answer costs as much as
#: dozens of scores.
PROBES = 2
CONTEXTS = ("bare", "instruction", "chat")
INSTRUCTION = "Give the answer only, without an explanation.\n\n"
MEASURES = ("exact", "contains")
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True)
class Answer:
    """What a model said to one prompt.

    Attributes:
        case_id: of the record.
        number: the record's position among those that were asked.
        metric: what it counts for: ``efficacy``, ``generalization`` or ``specificity``.
        context: of :data:`CONTEXTS`.
        prompt: as the record has it.
        expected: what is right: the new object, or the probe's own answer.
        text: what the model said.
    """

    case_id: int | str
    number: int
    metric: str
    context: str
    prompt: str
    expected: str
    text: str

    @property
    def exact(self) -> bool:
        """Whether the answer is the expected one; letter for letter, if normalising leaves nothing of the latter."""
        if has_unspaced(self.expected):
            return _without_marks(self.text) == _without_marks(self.expected)
        expected = normalise(self.expected)
        return normalise(self.text) == expected if expected else self.text.strip() == self.expected.strip()

    @property
    def contains(self) -> bool:
        """Whether the expected words are in the answer, one after another, as whole words; for a script that is written
        without spaces, whether the expected text is."""
        if has_unspaced(self.expected):
            return _without_marks(self.expected) in _without_marks(self.text)
        expected = normalise(self.expected)
        return f" {expected} " in f" {normalise(self.text)} " if expected else self.exact


def _without_marks(text: str) -> str:
    """A text in lower case without punctuation of any script, and without spaces."""
    kept = (c for c in text.lower() if not (c.isspace() or unicodedata.category(c)[0] == "P"))
    return "".join(kept)


def normalise(text: str) -> str:
    """SQuAD's normalisation: lower case, no punctuation, no articles, single spaces."""
    bare = text.lower().translate(_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", bare).split())


def ask_all(
    model: Model,
    records: Sequence[Record],
    *,
    context: str = "bare",
    tokens: int = TOKENS,
    probes: int | None = PROBES,
) -> list[Answer]:
    """Ask a model all prompts of records.

    Args:
        model: the model in its present state.
        records: records that are not in a chat template yet.
        context: of :data:`CONTEXTS`.
        tokens: the largest number of tokens in an answer.
        probes: how many locality probes of a record; None for all.

    Raises:
        ValueError: if the context is unknown or needs a chat template that the tokenizer does not have, or if a prompt
            with its answer is longer than the model's context.
    """
    before, after = frame(model, context)
    asked = [(number, *rest) for number, record in enumerate(records) for rest in _asked(record, probes)]
    texts = [""] * len(asked)
    # Generation must not stop at a full stop that the object itself has: those answers are cut here.
    for stops in (".。\n", "\n"):
        own = [i for i, (*_, expected) in enumerate(asked) if ("." in expected) == (stops == "\n")]
        said = answer(model, [before + asked[i][2] + after for i in own], tokens=tokens, stops=stops)
        for i, text in zip(own, said, strict=True):
            texts[i] = ".".join(text.split(".")[: asked[i][3].rstrip(".").count(".") + 1])
    return [
        Answer(records[number].case_id, number, metric, context, prompt, expected, text)
        for (number, metric, prompt, expected), text in zip(asked, texts, strict=True)
    ]


def frame(model: Model, context: str) -> tuple[str, str]:
    """The texts before and after a prompt in a context.

    Raises:
        ValueError: if the context is not in :data:`CONTEXTS`, or the tokenizer does not have the chat template that it
            needs.
    """
    if context not in CONTEXTS:
        raise ValueError(f"context must be one of {', '.join(CONTEXTS)}, not {context!r}")
    return {"bare": ("", ""), "instruction": (INSTRUCTION, "")}.get(context) or chat_frame(model.tokenizer)


def named(context: str, name: str) -> str:
    """A metric's name in a context: with the context in front, unless it is the bare prompt."""
    return name if context == "bare" else f"{context}_{name}"


def _asked(record: Record, probes: int | None) -> list[tuple[str, str, str]]:
    """The metric, prompt and expected answer of each of a record's prompts that has an answer."""
    edited = [("efficacy", record.request.text), *(("generalization", prompt) for prompt in record.paraphrases)]
    answered = [(probe.prompt, probe.answer) for probe in record.locality if probe.answer is not None]
    return [(metric, prompt, record.target_new) for metric, prompt in edited] + [
        ("specificity", prompt, answer) for prompt, answer in answered[:probes]
    ]


def measured(answers: Iterable[Answer]) -> list[dict[str, float | int | str]]:
    """Per record, in order, ``case_id`` and each measure of each metric that was asked for, in per cent:
    ``exact_efficacy`` and so on, with the context in front, unless it is the bare prompt."""
    found: dict[int, dict[str, list[bool]]] = {}
    ids: dict[int, int | str] = {}
    for one in answers:
        ids[one.number] = one.case_id
        for measure in MEASURES:
            name = named(one.context, f"{measure}_{one.metric}")
            found.setdefault(one.number, {}).setdefault(name, []).append(getattr(one, measure))
    return [
        {"case_id": ids[number], **{name: 100 * fmean(hits) for name, hits in of_record.items()}}
        for number, of_record in found.items()
    ]


def write_answers(path: Path, answers: Iterable[Answer]) -> None:
    """Write answers as JSON Lines, whole or not at all: ``case_id``, ``metric``, ``context``, ``question``, ``answer``,
    which is the right one, and ``generation``, which is what the model said."""
    with atomic_file(path) as temporary, open(temporary, "w", encoding="utf-8") as lines:
        for one in answers:
            entry = {
                "case_id": one.case_id,
                "metric": one.metric,
                "context": one.context,
                "question": one.prompt,
                "answer": one.expected,
                "generation": one.text,
            }
            lines.write(json.dumps(entry, ensure_ascii=False) + "\n")
