"""How probable a model finds a target after a prompt, and which of its tokens it would predict."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..io.timing import progress_bar
from .model import Model
from .prompts import Request, by_length, encode_answer, encode_prompt, encode_target, joiner, pad

TOKEN_BUDGET = 8192
#: Rows of logits that are normalised at a time: with 50,000 tokens each, 1,000 rows at once would take 200 MB more.
ROWS = 128


@dataclass(frozen=True)
class TargetScore:
    """Teacher-forced score of one target.

    Attributes:
        log_prob: mean natural log-probability of the target's tokens.
        accuracy: share of the target's tokens that are the model's first choice, in [0, 1].
    """

    log_prob: float
    accuracy: float


@torch.no_grad()
def score_targets(
    model: Model,
    pairs: Sequence[tuple[str, str]],
    *,
    special: bool = False,
    separators: Sequence[str | None] | None = None,
) -> list[TargetScore]:
    """Score each (prompt, target) pair; with ``special``, the tokenizer's special tokens count as part of a target.

    ``separators`` has what stands between the two, for each pair; where it is None,
    :func:`~bluelib.models.prompts.joiner` decides.

    Pairs that feed the same tokens to the model (the same prompt with two one-token targets, say) share a run, and
    logits are computed at the targets' positions only.

    Raises:
        ValueError: if a prompt has no token, or a prompt and its target exceed the model's context together.
        FloatingPointError: if a log-probability is not finite; the message names the prompt.
    """
    prompts = {text: _prompt(model, text) for text in dict.fromkeys(prompt for prompt, _ in pairs)}
    given = [None] * len(pairs) if separators is None else separators
    joined = [joiner(*pair) if between is None else between for pair, between in zip(pairs, given, strict=True)]
    encoded = {
        (target, between): encode_target(model.tokenizer, target, special, between)
        for (_, target), between in zip(pairs, joined, strict=True)
    }
    targets = [encoded[target, between] for (_, target), between in zip(pairs, joined, strict=True)]
    runs: dict[tuple[int, ...], list[int]] = {}
    for index, (prompt, _) in enumerate(pairs):
        runs.setdefault(prompts[prompt] + targets[index][:-1], []).append(index)
    sequences = list(runs)
    longest = max(sequences, key=len, default=())
    if longest:
        model.check_length(len(longest), f"{pairs[runs[longest][0]][0][:80]!r} with its target")

    scores: dict[int, TargetScore] = {}
    batches = by_length([len(s) for s in sequences], TOKEN_BUDGET)
    for batch in progress_bar(list(batches), desc="scoring", unit="batch", leave=False):
        reads = [
            (row, index, len(prompts[pairs[index][0]]) - 1 + j, token)
            for row, i in enumerate(batch)
            for index in runs[sequences[i]]
            for j, token in enumerate(targets[index])
        ]
        rows, owners, columns, tokens = (list(column) for column in zip(*reads, strict=True))
        logits = _logits(model, [sequences[i] for i in batch], rows, columns)
        wanted = torch.tensor(tokens, device=logits.device)[:, None]
        parts = zip(logits.split(ROWS), wanted.split(ROWS), strict=True)
        log_probs = [p for own, of in parts for p in own.log_softmax(-1).gather(1, of)[:, 0].tolist()]
        hits = (logits.argmax(-1, keepdim=True) == wanted)[:, 0].tolist()
        by_pair: dict[int, list[tuple[float, bool]]] = {}
        for owner, log_prob, hit in zip(owners, log_probs, hits, strict=True):
            if not math.isfinite(log_prob):
                prompt, target = pairs[owner]
                raise FloatingPointError(
                    f"{model.name} gives {target!r} after {prompt[:80]!r} a log-probability of "
                    f"{log_prob}: it overflows, so its metrics cannot be measured"
                )
            by_pair.setdefault(owner, []).append((log_prob, hit))
        for owner, found in by_pair.items():
            scores[owner] = TargetScore(
                sum(log_prob for log_prob, _ in found) / len(found), sum(hit for _, hit in found) / len(found)
            )
    return [scores[index] for index in range(len(pairs))]


def request_nll(model: Model, requests: Sequence[Request]) -> Tensor:
    """Mean negative log-likelihood of each request's target tokens after its bare prompt, ``(u,)``, differentiable.

    Raises:
        ValueError: if a prompt has no token, or a prompt and its target exceed the model's context together.
    """
    prompts = [_prompt(model, request.text) for request in requests]
    targets = [encode_answer(model.tokenizer, r.text, r.target, r.separator) for r in requests]
    reads = [
        (row, len(prompt) - 1 + j, token)
        for row, (prompt, target) in enumerate(zip(prompts, targets, strict=True))
        for j, token in enumerate(target)
    ]
    rows, columns, tokens = (list(column) for column in zip(*reads, strict=True))
    logits = _logits(model, [p + t[:-1] for p, t in zip(prompts, targets, strict=True)], rows, columns)
    wanted = torch.tensor(tokens, device=logits.device)[:, None]
    log_probs = logits.log_softmax(-1).gather(1, wanted)[:, 0]
    owners = torch.tensor(rows, device=logits.device)
    lengths = torch.tensor([len(target) for target in targets], device=logits.device)
    return log_probs.new_zeros(len(requests)).index_add(0, owners, -log_probs / lengths[owners])


def next_token_log_probs(model: Model, prompts: Sequence[str]) -> Tensor:
    """Log-probabilities of the next token after each prompt, ``(n, vocabulary)``, differentiable.

    Raises:
        ValueError: if a prompt has no token, or more tokens than the model's context.
    """
    sequences = [_prompt(model, text) for text in prompts]
    return _logits(model, sequences, range(len(sequences)), [len(s) - 1 for s in sequences]).log_softmax(-1)


@torch.no_grad()
def final_states(model: Model, prompts: Sequence[str]) -> Tensor:
    """The last hidden state at the end of each prompt, ``(n, d_model)``, in the host's memory. The head reads it, so a
    next-token distribution depends on nothing else but the head.

    Raises:
        ValueError: if a prompt has no token, or more tokens than the model's context.
    """
    sequences = [_prompt(model, text) for text in prompts]
    model.check_length(max(map(len, sequences), default=0), "the longest of these prompts")
    states: dict[int, Tensor] = {}
    for batch in by_length([len(s) for s in sequences], TOKEN_BUDGET):
        inputs = pad([sequences[i] for i in batch], model.tokenizer.pad_token_id, model.device)
        hidden = model.hf_model.base_model(**inputs, use_cache=False).last_hidden_state
        for row, i in enumerate(batch):
            states[i] = hidden[row, len(sequences[i]) - 1].cpu()
    return torch.stack([states[i] for i in range(len(sequences))])


@torch.no_grad()
def log_probs_of(model: Model, states: Tensor) -> Tensor:
    """Next-token log-probabilities from the output of :func:`final_states`, ``(n, vocabulary)`` float32."""
    at = model.head.weight.device
    at = model.device if at.type == "meta" else at  # an offloaded head: accelerate runs it where the model begins
    return model.head(states.to(at)).float().log_softmax(-1)


@torch.no_grad()
def top_tokens(model: Model, prompt: str, k: int = 5) -> list[tuple[str, float]]:
    """The ``k`` most probable next tokens after a prompt, with their probabilities."""
    probabilities, tokens = next_token_log_probs(model, [prompt])[0].exp().topk(k)
    return [(model.tokenizer.decode([t]), p) for t, p in zip(tokens.tolist(), probabilities.tolist(), strict=True)]


def _prompt(model: Model, text: str) -> tuple[int, ...]:
    """A prompt's tokens. There must be at least one: what follows is predicted from the last."""
    ids = encode_prompt(model.tokenizer, text)
    if not ids:
        raise ValueError(
            f"prompt {text!r} has no token, and {model.name}'s tokenizer puts no BOS in front; it needs a token"
        )
    return ids


def _logits(model: Model, sequences: Sequence[Sequence[int]], rows: Sequence[int], columns: Sequence[int]) -> Tensor:
    """Logits at the given rows and columns only, ``(n, vocabulary)`` float32."""
    model.check_length(max(map(len, sequences)), "the longest of these prompts, with its target")
    inputs = pad(sequences, model.tokenizer.pad_token_id, model.device)
    hidden = model.hf_model.base_model(**inputs, use_cache=False).last_hidden_state
    return model.head(hidden[list(rows), list(columns)]).float()
