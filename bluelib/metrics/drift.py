"""How far edits move a model on texts that have nothing to do with them."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from ..data import Record
from ..models.model import Model
from .locality import Reference

#: Openings about many things: general knowledge, and plain text of several kinds.
PROMPTS = (
    "The chemical formula of water is",
    "The first month of the year is",
    "The opposite of hot is",
    "A triangle has three sides, and a square has",
    "The largest planet of the solar system is",
    "Bees collect nectar from flowers and make",
    "The human heart pumps",
    "Two plus two equals",
    "The colours of the rainbow are red, orange,",
    "In winter, the days are shorter and the nights are",
    "Once upon a time, there was a little girl who lived in",
    "Dear Sir or Madam, I am writing to",
    "Preheat the oven to 180 degrees and mix the flour with",
    "The train was late again, so we decided to",
    "To install the program, download the file and",
    "The patient was given antibiotics because of",
    "Last night the home team won the match by",
    "She opened the window, looked at the garden and",
    "The meeting has been moved from Monday to",
    "def add(a, b):\n    return",
)


def unrelated(records: Sequence[Record]) -> list[str]:
    """Those of :data:`PROMPTS` that mention no edited subject, in capitals or not."""
    subjects = {record.subject.strip().casefold() for record in records}
    return [prompt for prompt in PROMPTS if not any(subject in prompt.casefold() for subject in subjects)]


def drift(model: Model, before: Reference | None) -> dict[str, Any]:
    """How far next-token distributions moved, as plain values: mean and largest D_KL(before ‖ after) in nats, and the
    prompt where it is largest; None for each if there was nothing to refer to."""
    if before is None:
        return {"prompts": 0, "mean_nats": None, "max_nats": None, "most_after": None}
    moved = {prompt: found["kl"] for prompt, found in before.moved(model).items()}
    return {
        "prompts": len(moved),
        "mean_nats": round(fmean(moved.values()), 6),
        "max_nats": round(max(moved.values()), 6),
        "most_after": max(moved, key=moved.__getitem__),
    }
