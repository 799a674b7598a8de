"""Text that a model writes: sampled or greedy, batched by length."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from ..io.checks import check_whole
from ..io.timing import progress_bar
from .model import Model
from .prompts import encode_prompt, pad

LENGTH = 100


#: In place of a checkpoint's own generation settings, see :func:`plain_settings`.
SAMPLING = {"do_sample": True, "top_k": 5, "top_p": 1.0, "temperature": 1.0, "repetition_penalty": 1.0}


GREEDY = {"do_sample": False, "top_k": None, "top_p": None, "temperature": None, "repetition_penalty": 1.0}


BATCH = 128
#: Tokens of an answer after which new batches are made of those that have not ended; then twice as many each time.
FIRST_STAGE = 12


def encode_openings(model: Model, prompts: Sequence[str], length: int = LENGTH) -> list[tuple[int, ...]]:
    """Token ids of prompts that are to be continued until a text has ``length`` tokens.

    Raises:
        ValueError: if a prompt has that many tokens already, or ``length`` exceeds the model's context.
    """
    check_whole("length", length, 1, model.max_positions, f"{model.name}'s context")
    encoded = [encode_prompt(model.tokenizer, prompt) for prompt in prompts]
    for prompt, ids in zip(prompts, encoded, strict=True):
        if len(ids) >= length:
            raise ValueError(
                f"{prompt[:80]!r}: {len(ids)} tokens leave nothing to generate of a text of {length} tokens"
            )
    return encoded


@torch.no_grad()
def generate_texts(model: Model, prompts: Sequence[str], *, length: int = LENGTH, seed: int = 0) -> list[str]:
    """Continue each prompt until it has ``length`` tokens, prompt included, by top-k sampling (k = 5).

    An end-of-text token does not end a text. Prompts of equal length are run together, so nothing is padded.

    Raises:
        ValueError: if a prompt has that many tokens already, or ``length`` exceeds the model's context.
    """
    encoded = encode_openings(model, prompts, length)
    texts = [""] * len(prompts)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for batch in progress_bar(list(_same_length(encoded)), desc="generating", unit="batch", leave=False):
            ids = _continue(model, [encoded[i] for i in batch], length - len(encoded[batch[0]]), SAMPLING)
            for i, text in zip(batch, model.tokenizer.batch_decode(ids, skip_special_tokens=True), strict=True):
                texts[i] = text
    return texts


@torch.no_grad()
def continue_greedily(
    model: Model, prompts: Sequence[str], lengths: Sequence[int], *, until_end: bool = False
) -> list[str]:
    """What follows each prompt, always the most probable token, by the number of tokens that ``lengths`` has for it.

    An end-of-text token does not end a text; with ``until_end``, any of :func:`end_tokens` does.

    Raises:
        ValueError: if a prompt and what follows it exceed the model's context together.
    """
    encoded = [encode_prompt(model.tokenizer, prompt) for prompt in prompts]
    for prompt, tokens, length in zip(prompts, encoded, lengths, strict=True):
        model.check_length(len(tokens) + length, f"{prompt[:80]!r} and {length} tokens to generate")
    texts, ends = [""] * len(prompts), end_tokens(model) if until_end else []
    for batch in _same_length(encoded):
        ids = _continue(model, [encoded[i] for i in batch], max(lengths[i] for i in batch), GREEDY, ends)
        for i, row in zip(batch, ids.tolist(), strict=True):
            begin = len(encoded[i])
            said = takewhile(lambda token: token not in ends, row[begin : begin + lengths[i]])
            texts[i] = model.tokenizer.decode(list(said), skip_special_tokens=True).strip()
    return texts


@torch.no_grad()
def answer(model: Model, prompts: Sequence[str], *, tokens: int = 50, stops: str = ".\n") -> list[str]:
    """What a model says after each prompt, greedily, up to the first of the characters ``stops`` or the text's end.

    An answer begins with its first character that is not blank: a stop before that ends nothing. The text before the
    stop is returned, without spaces around it. Prompts of all lengths are run together, padded on the left. If two
    tokens are equally probable up to rounding, the padding may decide between them. Answers that have ended leave the
    batch from time to time, so a few long ones do not hold up the others.

    Args:
        model: the model in its present state.
        prompts: texts, as the model reads them.
        tokens: the most tokens of an answer.
        stops: the characters that end an answer; it contains none of them.

    Raises:
        ValueError: if a prompt and its answer exceed the model's context together.
    """
    check_whole("tokens", tokens, 1)
    encoded = [encode_prompt(model.tokenizer, prompt) for prompt in prompts]
    for prompt, own in zip(prompts, encoded, strict=True):
        model.check_length(len(own) + tokens, f"{prompt[:80]!r} and {tokens} tokens of an answer")
    kinds = _kinds(model, stops)
    said: list[list[int]] = [[] for _ in prompts]
    begun = torch.zeros(len(prompts), dtype=torch.bool)
    going, stage, left = list(range(len(prompts))), FIRST_STAGE, tokens
    while going and left:
        stage = min(stage, left)
        going.sort(key=lambda i: len(encoded[i]) + len(said[i]))  # of similar length, they need little padding
        batches, going = [going[first : first + BATCH] for first in range(0, len(going), BATCH)], []
        for batch in progress_bar(batches, desc="answering", unit="batch", leave=False):
            so_far = [[*encoded[i], *said[i]] for i in batch]
            ids, mask = pad(so_far, model.tokenizer.pad_token_id, model.device, left=True).values()
            stopping = _Stopping(kinds, begun[batch])
            found = _generate(model, ids, mask, stage, GREEDY, kinds.ends, [stopping])
            for i, row in zip(batch, found[:, ids.shape[1] :].tolist(), strict=True):
                said[i] += row
            begun[batch] = stopping.begun
            going += [i for i, ended in zip(batch, stopping.ended.tolist(), strict=True) if not ended]
        left, stage = left - stage, 2 * stage
    texts = []
    for generated in said:
        kept = list(takewhile(lambda token: token not in kinds.ends, generated))
        text = model.tokenizer.decode(kept, skip_special_tokens=True).lstrip()
        texts.append(re.split(f"[{re.escape(stops)}]", text)[0].strip())
    return texts


@dataclass(frozen=True)
class _Kinds:
    """The tokens that end a text; and, by token of the vocabulary, whether it has a stop and whether it is blank."""

    ends: list[int]
    stop: Tensor
    blank: Tensor


def _kinds(model: Model, stops: str) -> _Kinds:
    of_tokenizer = _KINDS.setdefault(model.tokenizer, {})
    if stops not in of_tokenizer:
        size = model.head.weight.shape[0]
        texts = model.tokenizer.batch_decode([[token] for token in range(len(model.tokenizer))])[:size]
        texts += [" "] * (size - len(texts))
        stop = torch.tensor([any(character in text for character in stops) for text in texts])
        blank = torch.tensor([not text.strip() for text in texts])
        of_tokenizer[stops] = stop, blank
    return _Kinds(end_tokens(model), *of_tokenizer[stops])


#: ``stop`` and ``blank`` of :class:`_Kinds`, by tokenizer and stops: each is found once.
_KINDS: WeakKeyDictionary[Any, dict[str, tuple[Tensor, Tensor]]] = WeakKeyDictionary()


class _Stopping(StoppingCriteria):
    """Ends a row at the text's end, or at a token with a stop, unless the whole answer so far is blank."""

    def __init__(self, kinds: _Kinds, begun: Tensor):
        self.kinds = kinds
        self.begun = begun  # (n,): whether the answer has begun
        self.ended = torch.zeros_like(begun)

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        last = input_ids[:, -1].cpu()
        self.begun = self.begun | ~self.kinds.blank[last]
        self.ended = self.ended | (self.kinds.stop[last] & self.begun) | torch.isin(last, torch.tensor(self.kinds.ends))
        return self.ended.to(input_ids.device)


def end_tokens(model: Model) -> list[int]:
    """The tokens that end a text: the tokenizer's end-of-text token, its BOS, which begins the next text, and those of
    the model's generation settings. For a chat model, the latter include the end of a turn."""
    config = getattr(model.hf_model, "generation_config", None)
    found = getattr(config, "eos_token_id", None)
    listed = found if isinstance(found, list) else [found]
    return sorted(
        {token for token in (model.tokenizer.eos_token_id, model.tokenizer.bos_token_id, *listed) if token is not None}
    )


def _same_length(encoded: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Batches of indices of sequences of equal length, the shortest first, at most :data:`BATCH` in each."""
    for size in sorted({len(ids) for ids in encoded}):
        same = [i for i, ids in enumerate(encoded) if len(ids) == size]
        yield from (same[first : first + BATCH] for first in range(0, len(same), BATCH))


def _continue(
    model: Model, sequences: Sequence[Sequence[int]], tokens: int, how: Mapping[str, Any], ends: Sequence[int] = ()
) -> Tensor:
    """Sequences of equal length with ``tokens`` tokens more, ``(n, length)``; fewer if each has had one of ``ends``."""
    ids = torch.tensor(sequences, device=model.device)
    return ids if tokens < 1 else _generate(model, ids, torch.ones_like(ids), tokens, how, ends)


@contextmanager
def plain_settings(model: Model) -> Iterator[None]:
    """Without the checkpoint's generation settings: transformers takes from them whatever a call does not set."""
    kept = model.hf_model.generation_config
    model.hf_model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.hf_model.generation_config = kept


def _generate(
    model: Model,
    ids: Tensor,
    mask: Tensor,
    tokens: int,
    how: Mapping[str, Any],
    ends: Sequence[int],
    stopping: Sequence[StoppingCriteria] = (),
) -> Tensor:
    with plain_settings(model):
        return model.hf_model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=tokens,
            stopping_criteria=StoppingCriteriaList(stopping),
            **how,
            eos_token_id=list(ends) or None,
            pad_token_id=model.tokenizer.pad_token_id or 0,
        )
