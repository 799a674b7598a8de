"""Prompts as token batches: where the subject's last token is, which tokens a target has, padded batches.

Positions are found in the tokenisation of the whole text, from character offsets, so they do not depend on how the
pieces would tokenise alone. Batches are padded on the right by this module, whatever the tokenizer's own setting.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Request:
    """One edit to make: after ``prompt`` (with ``{}`` for the subject) the model shall say ``target``."""

    prompt: str
    subject: str
    target: str

    @property
    def text(self) -> str:
        return fill(self.prompt, self.subject)


def fill(template: str, subject: str) -> str:
    """Put the subject in place of the template's ``{}``; other braces are left as they are."""
    return template.replace("{}", subject, 1)


@dataclass(frozen=True)
class Located:
    """A tokenised prompt and the indices of its subject's first and last token."""

    ids: tuple[int, ...]
    subject_last: int
    subject_first: int


def locate(tokenizer: PreTrainedTokenizerBase, template: str, subject: str, prefix: str = "") -> Located:
    """Tokenise ``prefix + template`` with its subject filled in, and find the subject's last token.

    The special tokens that the tokenizer puts in front of a text (Llama's BOS) are part of the result.

    Raises:
        ValueError: if the template has no ``{}``, or the tokenizer gives no character offsets.
    """
    if "{}" not in template:
        raise ValueError(f"prompt {template!r} has no {{}} for the subject")
    if not tokenizer.is_fast:
        raise ValueError(f"{type(tokenizer).__name__} gives no character offsets; a fast tokenizer is needed")
    start = len(prefix) + template.index("{}")
    end = start + len(subject)
    encoding = tokenizer(prefix + fill(template, subject), return_offsets_mapping=True)
    inside = [i for i, (a, b) in enumerate(encoding["offset_mapping"]) if a < end and b > start and a < b]
    if not inside:
        raise ValueError(f"subject {subject!r} has no token in {prefix + fill(template, subject)!r}")
    return Located(tuple(encoding["input_ids"]), inside[-1], inside[0])


def encode_prompt(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, ...]:
    """Token ids of a prompt, with the special tokens that the tokenizer puts in front."""
    return tuple(tokenizer(text)["input_ids"])


def encode_target(tokenizer: PreTrainedTokenizerBase, target: str, special: bool = False) -> tuple[int, ...]:
    """Token ids of a target as it follows a prompt: after one space, without BOS or other special tokens.

    With ``special``, with those that the tokenizer adds.
    """
    return tuple(tokenizer(" " + target.strip(), add_special_tokens=special)["input_ids"])


def pad(
    sequences: Sequence[Sequence[int]], pad_id: int, device: torch.device | str, extra: int = 0
) -> dict[str, Tensor]:
    """Right-padded ``input_ids`` and ``attention_mask``, each ``(n, longest + extra)``."""
    longest = max(map(len, sequences)) + extra
    ids = torch.full((len(sequences), longest), pad_id, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = torch.tensor(sequence)
        mask[row, : len(sequence)] = 1
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}


def by_length(lengths: Sequence[int], token_budget: int) -> Iterator[list[int]]:
    """Group indices into batches of similar length, each of at most ``token_budget`` tokens with padding.

    A sequence longer than the budget is a batch of its own.
    """
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        if batch and lengths[index] * (len(batch) + 1) > token_budget:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
