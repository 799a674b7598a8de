"""Targets: for every request, the hidden state at a layer under which the model gives the new object.

For each request a vector δ is optimised, which is added to the output h of block l at the subject's last token. The
target is z = h + δ. All requests of a batch are optimised together, each with its own loss, clamp and early stop;
the result for one does not depend on the others.

Only what depends on δ is computed at each step, without approximation: the blocks after l, and in them the tokens
from the subject's last one on. What stands before it is run once; its keys and values in the later blocks are kept.
Logits are computed at the positions that the loss reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from .models import Model
from .prompts import Request, by_length, encode_target, locate, pad
from .tracing import trace

#: The prompt on which the model's view of the subject must not drift (ROME, Meng et al. 2022, Eq. 4).
ESSENCE = "{} is a"


class TargetError(ArithmeticError):
    """An optimisation that diverged; the message names the request, the layer and the step."""


@dataclass(frozen=True)
class TargetOptions:
    """How δ is optimised, with Adam.

    loss = mean NLL of the new object's tokens, over its tokens and the context prefixes
         + ``kl_factor`` · KL(edited ‖ original) of the next token after "{subject} is a"
         + ``weight_decay`` · ‖δ‖ / ‖h‖²

    Attributes:
        steps: evaluations of the loss at most; there is one update less.
        learning_rate: Adam's.
        weight_decay, kl_factor: as above.
        clamp: ‖δ‖ is kept at or under ``clamp`` · ‖h‖.
        early_stop: a request whose loss is under this is finished.
    """

    steps: int = 25
    learning_rate: float = 0.5
    weight_decay: float = 0.5
    kl_factor: float = 0.0625
    clamp: float = 0.75
    early_stop: float = 0.05

    def __post_init__(self) -> None:
        if self.steps < 1 or self.learning_rate <= 0 or self.clamp <= 0:
            raise ValueError(f"steps, learning_rate and clamp must be positive: {self}")


@dataclass(frozen=True)
class Targets:
    """The outcome for u requests.

    Attributes:
        values: z = h + δ, ``(d_model, u)`` float32.
        hidden: h, ``(d_model, u)`` float32.
        steps: loss evaluations made, ``(u,)``.
        loss: the last loss, ``(u,)``.
    """

    values: Tensor
    hidden: Tensor
    steps: Tensor
    loss: Tensor

    @property
    def deltas(self) -> Tensor:
        return self.values - self.hidden


def optimise_targets(
    model: Model,
    requests: Sequence[Request],
    layer: int,
    prefixes: Sequence[str],
    options: TargetOptions,
    *,
    token_budget: int = 8192,
) -> Targets:
    """Optimise the targets of all requests at ``layer``.

    Args:
        model: the model in its present state; it is not changed.
        requests: the edits.
        layer: the block whose output δ is added to.
        prefixes: context prefixes, the empty one first.
        options: see :class:`TargetOptions`.
        token_budget: tokens of one micro-batch, with padding. Results do not depend on it beyond rounding.

    Raises:
        ValueError: if the first prefix is not the empty one.
        TargetError: if a loss is not finite.
    """
    if not prefixes or prefixes[0]:
        raise ValueError("the first context prefix must be the empty one: h is measured on the bare prompt")
    prepared = [_Prepared.of(model, request, prefixes) for request in requests]
    sizes = [len(p.rows) * max(len(row.ids) for row in p.rows) for p in prepared]
    parts: list[Targets | None] = [None] * len(requests)
    for batch in by_length(sizes, token_budget):
        found = _optimise(model, [prepared[i] for i in batch], layer, options)
        for position, i in enumerate(batch):
            parts[i] = Targets(
                found.values[:, position],
                found.hidden[:, position],
                found.steps[position],
                found.loss[position],
            )
    return Targets(
        torch.stack([p.values for p in parts], 1),
        torch.stack([p.hidden for p in parts], 1),
        torch.stack([p.steps for p in parts]),
        torch.stack([p.loss for p in parts]),
    )


@dataclass(frozen=True)
class _Row:
    """One sequence to run, where δ enters it, and from where on its logits are read."""

    ids: tuple[int, ...]
    subject_last: int
    read_from: int


@dataclass(frozen=True)
class _Prepared:
    """A request's sequences: one per prefix, ending before the target's last token, then the essence prompt."""

    request: Request
    rows: tuple[_Row, ...]
    target: tuple[int, ...]

    @classmethod
    def of(cls, model: Model, request: Request, prefixes: Sequence[str]) -> _Prepared:
        target = encode_target(model.tokenizer, request.target)
        rows = []
        for prefix in prefixes:
            place = locate(model.tokenizer, request.prompt, request.subject, prefix)
            rows.append(_Row(place.ids + target[:-1], place.subject_last, len(place.ids) - 1))
        place = locate(model.tokenizer, ESSENCE, request.subject)
        rows.append(_Row(place.ids, place.subject_last, len(place.ids) - 1))
        return cls(request, tuple(rows), target)


class _PrefixCache:
    """Keys and values of the tokens before the subject's last one, by layer: what attention calls a cache.

    Unlike transformers' own, it is not changed by a forward pass, so that every step starts from the same prefix.
    """

    def __init__(self, layers: dict[int, tuple[Tensor, Tensor]]):
        self.layers = layers  # (n, heads, prefix length, head size) each

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        before_keys, before_values = self.layers[layer]
        return torch.cat([before_keys, keys], 2), torch.cat([before_values, values], 2)

    def keep(self, rows: Tensor) -> _PrefixCache:
        return _PrefixCache({layer: (k[rows], v[rows]) for layer, (k, v) in self.layers.items()})


@dataclass(frozen=True)
class _Suffix:
    """The part of the computation that depends on δ: tokens from the subject's last one on, in the later blocks."""

    hidden: Tensor  # (n, t, d_model): outputs of block l; column 0 is the subject's last token
    owner: Tensor  # (n,): the request that a row belongs to
    calls: tuple[tuple[tuple, dict], ...]  # per later block: its further arguments

    @classmethod
    @torch.no_grad()
    def of(cls, model: Model, prepared: Sequence[_Prepared], layer: int) -> _Suffix:
        rows = [row for p in prepared for row in p.rows]
        owner = [i for i, p in enumerate(prepared) for _ in p.rows]
        # One column of padding more than needed, so that transformers always builds an explicit attention mask.
        inputs = pad([row.ids for row in rows], model.tokenizer.pad_token_id, model.device, extra=1)
        calls: list[tuple[tuple, dict]] = []
        hooks = [
            block.register_forward_pre_hook(
                lambda module, args, kwargs: calls.append((args[1:], kwargs)), with_kwargs=True
            )
            for block in model.blocks[layer + 1 :]
        ]
        try:
            with trace(outputs={layer: model.blocks[layer]}) as captured:
                cache = model.lm.base_model(**inputs, use_cache=True).past_key_values
        finally:
            for hook in hooks:
                hook.remove()
        first = torch.tensor([row.subject_last for row in rows], device=model.device)
        length = max(len(row.ids) - row.subject_last for row in rows)
        cut = _Cut(first, length, width=inputs["input_ids"].shape[1])
        prefix = _PrefixCache(
            {
                i: (cache.layers[i].keys[:, :, : cut.prefix], cache.layers[i].values[:, :, : cut.prefix])
                for i in range(layer + 1, model.n_layers)
            }
        )
        sliced = tuple(
            (tuple(cut(v, prefix) for v in args), {k: cut(v, prefix) for k, v in kwargs.items()})
            for args, kwargs in calls
        )
        return cls(cut(captured[layer], prefix), torch.tensor(owner, device=model.device), sliced)

    def keep(self, rows: Tensor) -> _Suffix:
        """The same for some of the rows."""
        n = len(self.owner)

        def take(value: Any) -> Any:
            if isinstance(value, _PrefixCache):
                return value.keep(rows)
            if isinstance(value, Tensor) and value.ndim and value.shape[0] == n:
                return value[rows]
            return tuple(take(item) for item in value) if isinstance(value, tuple) else value

        calls = tuple((take(args), {k: take(v) for k, v in kwargs.items()}) for args, kwargs in self.calls)
        return _Suffix(self.hidden[rows], self.owner[rows], calls)

    def run(self, blocks: Sequence[nn.Module], delta: Tensor) -> Tensor:
        """Outputs of the last block, ``(n, t, d_model)``, with δ ``(u, d_model)`` added at the subject's last token."""
        added = delta[self.owner].to(self.hidden.dtype)
        hidden = torch.cat([self.hidden[:, :1] + added[:, None], self.hidden[:, 1:]], 1)
        for block, (args, kwargs) in zip(blocks, self.calls, strict=True):
            output = block(hidden, *args, **kwargs)
            hidden = output[0] if isinstance(output, tuple) else output
        return hidden


class _Cut:
    """Cuts what a block was called with, for whole rows, down to the tokens from each row's subject on."""

    def __init__(self, first: Tensor, length: int, width: int):
        self.n, self.width = len(first), width
        self.prefix = int(first.max())
        steps = torch.arange(length, device=first.device)
        self.columns = (first[:, None] + steps).clamp_max(width - 1)  # (n, length)
        before = torch.arange(self.prefix, device=first.device)
        self.own_prefix = before < first[:, None]  # (n, prefix)

    def __call__(self, value: Any, prefix: _PrefixCache) -> Any:
        if isinstance(value, Cache):
            return prefix
        if isinstance(value, tuple):
            return tuple(self(item, prefix) for item in value)
        if not isinstance(value, Tensor):
            return value
        if value.ndim == 4 and value.shape[-2:] == (self.width, self.width):
            return self._mask(value)
        if value.ndim >= 2 and value.shape[1] == self.width:
            value = value.expand(self.n, *value.shape[1:])
            return value[torch.arange(self.n, device=value.device)[:, None], self.columns]
        return value

    def _mask(self, mask: Tensor) -> Tensor:
        """Rows of the suffix's queries; columns of the prefix, then of the suffix. Other rows' prefixes are hidden."""
        mask = mask[:, 0].expand(self.n, -1, -1)
        queries = mask.gather(1, self.columns[:, :, None].expand(-1, -1, self.width))
        hidden = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
        before = queries[:, :, : self.prefix].masked_fill(~self.own_prefix[:, None], hidden)
        after = queries.gather(2, self.columns[:, None].expand(-1, self.columns.shape[1], -1))
        inside = torch.arange(self.columns.shape[1], device=mask.device)
        after = after.masked_fill(inside[None, :, None] < inside[None, None, :], hidden)
        return torch.cat([before, after], 2)[:, None]


@dataclass(frozen=True)
class _Reads:
    """Where the loss reads logits: (row, column) in the suffix, the token wanted there and its weight."""

    row: Tensor
    column: Tensor
    token: Tensor  # -1 at the essence prompts
    weight: Tensor
    owner: Tensor

    @classmethod
    def of(cls, prepared: Sequence[_Prepared], device: torch.device) -> _Reads:
        entries, first = [], 0
        for i, p in enumerate(prepared):
            *prompts, essence = p.rows
            weight = 1.0 / (len(prompts) * len(p.target))
            for offset, row in enumerate(prompts):
                at = row.read_from - row.subject_last
                entries += [(first + offset, at + j, t, weight, i) for j, t in enumerate(p.target)]
            entries.append((first + len(prompts), essence.read_from - essence.subject_last, -1, 0.0, i))
            first += len(p.rows)
        row, column, token, weight, owner = (torch.tensor(c, device=device) for c in zip(*entries, strict=True))
        return cls(row, column, token, weight, owner)

    def keep(self, rows: Tensor) -> _Reads:
        """The same for some of the rows, given in ascending order."""
        new_index = torch.full((int(self.row.max()) + 1,), -1, device=rows.device)
        new_index[rows] = torch.arange(len(rows), device=rows.device)
        row = new_index[self.row]
        kept = row >= 0
        return _Reads(row[kept], self.column[kept], self.token[kept], self.weight[kept], self.owner[kept])


def _optimise(model: Model, prepared: Sequence[_Prepared], layer: int, options: TargetOptions) -> Targets:
    blocks = model.blocks[layer + 1 :]
    suffix = _Suffix.of(model, prepared, layer)
    reads = _Reads.of(prepared, model.device)
    u = len(prepared)
    bare = torch.tensor([0, *[len(p.rows) for p in prepared[:-1]]], device=model.device).cumsum(0)
    hidden = suffix.hidden[bare, 0].float()  # (u, d_model)
    norms = hidden.norm(dim=1)

    delta = torch.zeros_like(hidden, requires_grad=True)
    adam = torch.optim.Adam([delta], lr=options.learning_rate)
    active = torch.ones(u, dtype=torch.bool, device=model.device)
    steps, last_loss = torch.zeros(u, dtype=torch.long), torch.zeros(u)
    original: Tensor | None = None
    for step in range(options.steps):
        final = suffix.run(blocks, delta)
        logits = model.head(model.norm(final[reads.row, reads.column])).float()
        essence = reads.token < 0
        log_probs = logits.log_softmax(-1)
        if original is None:
            original = log_probs[essence].detach()  # δ is zero: the model's own view of each subject
        of_target = log_probs[~essence].gather(1, reads.token[~essence, None])[:, 0]
        nll = torch.zeros_like(norms).index_add(0, reads.owner[~essence], -of_target * reads.weight[~essence])
        edited, owner = log_probs[essence], reads.owner[essence]
        kl = torch.zeros_like(norms).index_add(0, owner, (edited.exp() * (edited - original[owner])).sum(1))
        length = torch.linalg.vector_norm(delta, dim=1)
        loss = nll + options.kl_factor * kl + options.weight_decay * length / norms**2

        _check_finite(loss, active, prepared, layer, step)
        steps[active.cpu()] = step + 1
        last_loss[active.cpu()] = loss.detach().cpu()[active.cpu()]
        finished = active & (loss.detach() < options.early_stop)
        active = active & ~finished
        if step == options.steps - 1 or not active.any():
            break
        frozen = delta.detach().clone()
        adam.zero_grad()
        loss[active].sum().backward()
        adam.step()
        with torch.no_grad():
            scale = (options.clamp * norms / delta.norm(dim=1).clamp_min(1e-12)).clamp_max(1.0)
            delta.mul_(scale[:, None])
            delta[~active] = frozen[~active]
        if finished.any():
            rows = active[suffix.owner].nonzero()[:, 0]
            suffix, reads = suffix.keep(rows), reads.keep(rows)
    return Targets((hidden + delta.detach()).T, hidden.T, steps, last_loss)


def _check_finite(loss: Tensor, active: Tensor, prepared: Sequence[_Prepared], layer: int, step: int) -> None:
    wrong = (active & ~torch.isfinite(loss.detach())).nonzero()[:, 0].tolist()
    if wrong:
        request = prepared[wrong[0]].request
        raise TargetError(
            f"the target of {request.text!r} → {request.target!r} at layer {layer} has loss {loss[wrong[0]].item()} "
            f"at step {step + 1}; lower the learning rate or the clamp"
        )
