"""How far edits move a model on texts that have nothing to do with them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..data import Record
from ..models.model import Model
from ..models.scoring import next_token_log_probs

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


@torch.no_grad()
def next_tokens(model: Model, prompts: Sequence[str]) -> Tensor:
    """Log-probabilities of the next token after each prompt, ``(n, vocabulary)`` float32, in the host's memory."""
    return next_token_log_probs(model, prompts).float().cpu()


def divergences(before: Tensor, after: Tensor) -> Tensor:
    """D_KL(before ‖ after) of each pair of rows of log-probabilities, in nats, ``(n,)`` float64."""
    before, after = before.double(), after.double()
    terms = torch.where(before.isneginf(), 0.0, before.exp() * (before - after))
    return terms.sum(-1).clamp_min(0.0)


def drift(prompts: Sequence[str], before: Tensor, after: Tensor) -> dict[str, Any]:
    """How far next-token distributions moved, as plain values: mean and largest D_KL(before ‖ after) in nats, and the
    prompt where it is largest; for no prompts, None for each."""
    if not prompts:
        return {"prompts": 0, "mean_nats": None, "max_nats": None, "most_after": None}
    moved = divergences(before, after)
    return {
        "prompts": len(prompts),
        "mean_nats": round(moved.mean().item(), 6),
        "max_nats": round(moved.max().item(), 6),
        "most_after": prompts[int(moved.argmax())],
    }
