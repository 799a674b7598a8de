"""Targets: for every request, the hidden state at a layer under which the model gives the new object.

For each request a vector δ is optimised, which is added to the output h of block l at the subject's last token. The
target is z = h + δ. All requests of a batch are optimised together, each with its own loss, clamp and early stop;
the result for one does not depend on the others.

Only what depends on δ is computed at each step, without approximation: the blocks after l, and in them the tokens
from the subject's last one on. What stands before it is run once; its keys and values in the later blocks are kept.
Logits are computed at the positions that the loss reads. Sequences are run in groups of about the same number of
tokens from the subject on, so that hardly any padding is run.

In a model that is spread over several devices δ and its optimiser live where block l does, what a later block needs
where that block runs, and the loss's terms are computed where the logits are; only their sums come back to δ.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from inspect import signature
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache

from ..io.checks import check_real, check_whole
from ..models.choices import check_choice, published
from ..models.model import Model
from ..models.prompts import Request, by_length, encode_answer, locate, pad
from ..models.tracing import trace

#: The prompt on which the model's view of the subject must not drift (ROME, Meng et al. 2022, Eq. 4).
ESSENCE = "{} is a"
#: What the NLL counts, and the weighted KL at which a request is finished, once the new object is the first choice.
RELAXED, RELAXED_KL = 0.1, 0.01


class TargetError(ArithmeticError):
    """An optimisation that diverged; the message names the request, the layer and the step."""


@dataclass(frozen=True)
class TargetOptions:
    """How δ is optimised, with Adam.

    loss = mean NLL of the new object's tokens, over its tokens and the context prefixes
         + ``kl_factor`` · KL(edited ‖ original) of the next token's distribution on "{subject} is a"
         + ``weight_decay`` · ‖δ‖ / ‖h‖²

    Attributes:
        component: what δ is added to, and h is the output of: the ``block``, or its ``mlp``. With the latter a second
            vector is optimised along with δ and added to attention's output, decayed and clamped in the same way with
            attention's own h (PMET, Li et al. 2024); only the MLP's is the target.
        steps: evaluations of the loss at most; there is one update less.
        learning_rate: Adam's.
        weight_decay, kl_factor: as above.
        clamp: ‖δ‖ is kept at or under ``clamp`` · ‖h‖.
        early_stop: a request whose loss is under this is finished.
        kl_at: where KL is read: at the ``subject``'s last token, as the public code does, or after the ``prompt``, as
            the text says (ROME, Eq. 4).
        relax: as PMET's public code: while the new object's tokens are the first choice behind all prefixes, the NLL
            counts :data:`RELAXED` in the next step, and a request whose weighted KL is at most :data:`RELAXED_KL` is
            finished.
        stop: what else finishes a request: ``loss``, nothing; ``first_choice``, once the new object's tokens are the
            first choice behind all prefixes (ENCORE, Gupta et al. 2025).
    """

    steps: int = 25
    learning_rate: float = 0.5
    weight_decay: float = 0.5
    kl_factor: float = 0.0625
    clamp: float = 0.75
    early_stop: float = 0.05
    component: str = "block"
    kl_at: str = published("kl_at")
    relax: bool = False
    stop: str = "loss"

    def __post_init__(self) -> None:
        if self.stop not in ("loss", "first_choice"):
            raise ValueError(f"stop must be loss or first_choice, not {self.stop!r}")
        check_choice("kl_at", self.kl_at)
        check_choice("relax", self.relax)
        if self.component not in ("block", "mlp"):
            raise ValueError(f"component must be block or mlp, not {self.component!r}")
        check_whole("steps", self.steps, 1)
        for name in ("learning_rate", "clamp"):
            check_real(name, getattr(self, name))
        for name in ("weight_decay", "kl_factor", "early_stop"):
            check_real(name, getattr(self, name), zero=True)


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
    token_budget: int | None = None,
) -> Targets:
    """Optimise the targets of all requests at ``layer``.

    Args:
        model: the model in its present state; it is not changed.
        requests: the edits.
        layer: the block whose output δ is added to.
        prefixes: context prefixes, the empty one first.
        options: see :class:`TargetOptions`.
        token_budget: tokens of one micro-batch, with padding; by default :func:`default_token_budget`. Results do not
            depend on it beyond rounding.

    Raises:
        ValueError: if the first prefix is not the empty one; for a token budget below 1; for a prompt that with a
            prefix and its target is longer than the model's context.
        TargetError: if a loss is not finite, or the length of a δ overflows.
    """
    if not prefixes or prefixes[0]:
        raise ValueError("the first context prefix must be the empty one: h is measured on the bare prompt")
    if token_budget is not None:
        check_whole("token_budget", token_budget, 1)
    prepared = [_Prepared.of(model, request, prefixes, options.kl_at) for request in requests]
    sizes = [len(p.rows) * max(len(row.ids) for row in p.rows) for p in prepared]
    parts: dict[int, Targets] = {}
    for batch in by_length(sizes, token_budget or default_token_budget(model)):
        found = _optimise(model, [prepared[i] for i in batch], layer, options)
        for position, i in enumerate(batch):
            parts[i] = Targets(
                found.values[:, position],
                found.hidden[:, position],
                found.steps[position],
                found.loss[position],
            )
    ordered = [parts[i] for i in range(len(requests))]
    return Targets(
        torch.stack([p.values for p in ordered], 1),
        torch.stack([p.hidden for p in ordered], 1),
        torch.stack([p.steps for p in ordered]),
        torch.stack([p.loss for p in ordered]),
    )


#: By class of device, the tokens of a micro-batch at most, more of which would not be faster; and the bytes of
#: activations that it may take on one device, unless a third of the device's memory is less.
BUDGETS = {"cpu": (8192, 6 * 10**9), "cuda": (131_072, 16 * 10**9)}


def default_token_budget(model: Model) -> int:
    """Tokens of a micro-batch, by the model's shape, and the class and size of its device: a power of two. It does not
    depend on what is free at the moment, so that a run comes out the same when it is repeated.

    Counted as if every token of every block kept, for the backward pass, some 16 vectors of d_model and 6 of d_mlp,
    and every eighth token two rows of float32 logits. Of several devices each has to hold this for its own blocks,
    and the head's for the logits; the one that has most of them decides.
    """
    d_model, d_mlp = model.weight(0).shape
    per_block = (16 * d_model + 6 * d_mlp) * model.hf_model.dtype.itemsize
    per_token = Counter({_home(model, model.head.weight): model.hf_model.config.vocab_size})
    for layer in range(model.n_layers):
        per_token[_home(model, model.weight(layer))] += per_block
    most, allowed = BUDGETS.get(model.device.type, BUDGETS["cpu"])
    room = min(min(allowed, _memory(device) // 3) // size for device, size in per_token.items())
    return 1 << max(1, min(most, room)).bit_length() - 1


def _home(model: Model, weight: Tensor) -> torch.device:
    """Where a weight is used; one that accelerate has offloaded is assumed to be brought to the embeddings' device."""
    return model.device if weight.is_meta else weight.device


def _memory(device: torch.device) -> int:
    """Bytes of a device's memory, used or not."""
    return torch.cuda.mem_get_info(device)[1] if device.type == "cuda" else psutil.virtual_memory().total


@dataclass(frozen=True)
class _Row:
    """One sequence to run, where δ enters it, and from where on which tokens are wanted of it.

    An essence prompt wants none: the whole distribution of the token behind ``read_from`` is read.
    """

    ids: tuple[int, ...]
    subject_last: int
    read_from: int
    wanted: tuple[int, ...] = ()
    weight: float = 0.0  # of each wanted token in its request's loss

    @property
    def suffix(self) -> int:
        """Tokens from the subject's last one on."""
        return len(self.ids) - self.subject_last


@dataclass(frozen=True)
class _Prepared:
    """A request's sequences: one per prefix, ending before the target's last token, then the essence prompt."""

    request: Request
    rows: tuple[_Row, ...]

    @classmethod
    def of(cls, model: Model, request: Request, prefixes: Sequence[str], kl_at: str) -> _Prepared:
        target = encode_answer(model.tokenizer, request.text, request.target, request.separator)
        rows = []
        for prefix in prefixes:
            place = locate(model.tokenizer, request.prompt, request.subject, prefix, request.before)
            weight = 1 / (len(prefixes) * len(target))
            rows.append(_Row(place.ids + target[:-1], place.subject_last, len(place.ids) - 1, target, weight))
        place = locate(model.tokenizer, ESSENCE, request.subject, before=request.before)  # in chat, a user says it
        # What stands behind the token that is read cannot reach it.
        read = place.subject_last if kl_at == "subject" else len(place.ids) - 1
        rows.append(_Row(place.ids[: read + 1], place.subject_last, read))
        model.check_length(
            max(len(row.ids) for row in rows), f"{request.text[:80]!r} with a context prefix and its target"
        )
        return cls(request, tuple(rows))


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
        return _PrefixCache({layer: (_take(k, rows), _take(v, rows)) for layer, (k, v) in self.layers.items()})


def _take(value: Tensor, rows: Tensor) -> Tensor:
    """Some of a tensor's rows, wherever it is."""
    return value[rows.to(value.device)]


@dataclass(frozen=True)
class _Entry:
    """Where δ ``(u, parts, d_model)`` enters the layer: what the output at the subject's last token becomes."""

    hidden: Tensor  # (n, d_model): the block's output there
    stream: Tensor | None  # (n, d_model): for component "mlp", what the MLP's norm reads there
    base: Tensor  # (n, parts, d_model): the outputs that the parts of δ are added to
    mlp: tuple[nn.Module, ...]  # norm and MLP, if the MLP reads what attention's part of δ changed

    @staticmethod
    def modules(model: Model, layer: int, component: str) -> tuple[dict[str, nn.Module], dict[str, nn.Module]]:
        """The modules whose inputs and those whose outputs have to be traced for :meth:`of`."""
        outputs = {"block": model.blocks[layer]}
        if component == "block":
            return {}, outputs
        outputs |= {part: model.part(layer, part) for part in ("attention", "mlp")}
        norm = model.adapter.mlp_norm
        return {"stream": model.part(layer, "mlp_norm")} if norm else {}, outputs

    @classmethod
    def of(cls, model: Model, layer: int, component: str, captured: dict[str, Tensor], at: Tensor) -> _Entry:
        here = {key: values[torch.arange(len(at), device=at.device), at] for key, values in captured.items()}
        if component == "block":
            return cls(here["block"], None, here["block"][:, None], ())
        after = (model.part(layer, "mlp_norm"), model.part(layer, "mlp")) if "stream" in here else ()
        return cls(here["block"], here.get("stream"), torch.stack([here["mlp"], here["attention"]], 1), after)

    def keep(self, rows: Tensor) -> _Entry:
        return _Entry(self.hidden[rows], None if self.stream is None else self.stream[rows], self.base[rows], self.mlp)

    def add(self, added: Tensor) -> Tensor:
        """The output with each row's δ, ``(n, parts, d_model)``, added."""
        added = added.to(self.hidden.dtype)
        if self.stream is None:
            return self.hidden + added.sum(1)
        stream = self.stream + added[:, 1]
        norm, mlp = self.mlp
        return stream + mlp(norm(stream)) + added[:, 0]


@dataclass(frozen=True)
class _Suffix:
    """The part of the computation that depends on δ: tokens from the subject's last one on, in the later blocks."""

    entry: _Entry  # at the subject's last token
    rest: Tensor  # (n, t - 1, d_model): outputs of block l behind it
    owner: Tensor  # (n,): the request that a row belongs to
    calls: tuple[tuple[tuple, dict], ...]  # per later block: its further arguments, where it runs
    reads: _Reads

    @classmethod
    @torch.no_grad()
    def of(cls, model: Model, rows: Sequence[_Row], owner: Sequence[int], layer: int, component: str) -> _Suffix:
        # One column of padding more than needed, so that transformers always builds an explicit attention mask.
        inputs = pad([row.ids for row in rows], model.tokenizer.pad_token_id, model.device, extra=1)
        calls: list[tuple[tuple, dict]] = []
        keys_and_values = DynamicCache()
        hooks = [
            block.register_forward_pre_hook(
                lambda module, args, kwargs: calls.append((args[1:], kwargs)), with_kwargs=True
            )
            for block in model.blocks[layer + 1 :]
        ]
        try:
            with trace(*_Entry.modules(model, layer, component)) as captured:
                model.hf_model.base_model(**inputs, use_cache=True, **{_cache_name(model): keys_and_values})
        finally:
            for hook in hooks:
                hook.remove()
        home = captured["block"].device
        first = torch.tensor([row.subject_last for row in rows], device=home)
        cut = _Cut(first, max(row.suffix for row in rows), width=inputs["input_ids"].shape[1])
        cache = keys_and_values.layers
        prefix = _PrefixCache(
            {
                i: (cache[i].keys[:, :, : cut.prefix], cache[i].values[:, :, : cut.prefix])
                for i in range(layer + 1, model.n_layers)
            }
        )
        cuts = {home: cut}  # a block's arguments are caught before they are moved to where it runs
        sliced = []
        for i, (args, kwargs) in enumerate(calls, layer + 1):
            device = cache[i].keys.device
            there = cuts[device] = cuts.get(device) or cut.to(device)
            sliced.append((tuple(there(v, prefix) for v in args), {k: there(v, prefix) for k, v in kwargs.items()}))
        return cls(
            _Entry.of(model, layer, component, captured, first),
            cut(captured["block"], prefix)[:, 1:],
            torch.tensor(owner, device=home),
            tuple(sliced),
            _Reads.of(rows, owner, _home(model, model.head.weight)),
        )

    def keep(self, rows: Tensor) -> _Suffix:
        """The same for some of the rows, given in ascending order."""
        n = len(self.owner)

        def take(value: Any) -> Any:
            if isinstance(value, _PrefixCache):
                return value.keep(rows)
            if isinstance(value, Tensor) and value.ndim and value.shape[0] == n:
                return _take(value, rows)
            return tuple(take(item) for item in value) if isinstance(value, tuple) else value

        calls = tuple((take(args), {k: take(v) for k, v in kwargs.items()}) for args, kwargs in self.calls)
        return _Suffix(self.entry.keep(rows), self.rest[rows], self.owner[rows], calls, self.reads.keep(rows))

    def run(self, blocks: Iterable[nn.Module], delta: Tensor) -> Tensor:
        """Outputs of the last block, ``(n, t, d_model)``, with δ ``(u, parts, d_model)`` in place."""
        hidden = torch.cat([self.entry.add(delta[self.owner])[:, None], self.rest], 1)
        for block, (args, kwargs) in zip(blocks, self.calls, strict=True):
            output = block(hidden, *args, **kwargs)
            hidden = output[0] if isinstance(output, tuple) else output
        return hidden


def _cache_name(model: Model) -> str:
    """What the model's code calls the argument for earlier tokens' keys and values: transformers renamed it in 5.24."""
    return "cache" if "cache" in signature(type(model.hf_model.base_model).forward).parameters else "past_key_values"


class _Cut:
    """Cuts what a block was called with, for whole rows, down to the tokens from each row's subject on."""

    def __init__(self, first: Tensor, length: int, width: int):
        self.first, self.length, self.n, self.width = first, length, len(first), width
        self.prefix = int(first.max())
        steps = torch.arange(length, device=first.device)
        self.columns = (first[:, None] + steps).clamp_max(width - 1)  # (n, length)
        before = torch.arange(self.prefix, device=first.device)
        self.own_prefix = before < first[:, None]  # (n, prefix)

    def to(self, device: torch.device) -> _Cut:
        """The same, for a block on another device."""
        return _Cut(self.first.to(device), self.length, self.width)

    def __call__(self, value: Any, prefix: _PrefixCache) -> Any:
        if isinstance(value, Cache):
            return prefix
        if isinstance(value, tuple):
            return tuple(self(item, prefix) for item in value)
        if not isinstance(value, Tensor):
            return value
        value = value.to(self.first.device)
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
    """Where the loss reads logits: (row, column) in the suffix, the token wanted there and its weight.

    All of it is on the device of the logits.
    """

    row: Tensor
    column: Tensor
    token: Tensor  # -1 at the essence prompts
    weight: Tensor
    owner: Tensor

    @classmethod
    def of(cls, rows: Sequence[_Row], owner: Sequence[int], device: torch.device) -> _Reads:
        entries = [
            (i, row.read_from - row.subject_last + j, token, row.weight, owner[i])
            for i, row in enumerate(rows)
            for j, token in enumerate(row.wanted or (-1,))
        ]
        row, column, token, weight, owners = (torch.tensor(c, device=device) for c in zip(*entries, strict=True))
        return cls(row, column, token, weight, owners)

    @cached_property
    def essence(self) -> Tensor:
        """The reads at essence prompts."""
        return (self.token < 0).nonzero()[:, 0]

    @cached_property
    def target(self) -> Tensor:
        """The reads of target tokens."""
        return (self.token >= 0).nonzero()[:, 0]

    def keep(self, rows: Tensor) -> _Reads:
        """The same for some of the rows, given in ascending order."""
        new_index = torch.full((int(self.row.max()) + 1,), -1, device=self.row.device)
        new_index[rows.to(self.row.device)] = torch.arange(len(rows), device=self.row.device)
        row = new_index[self.row]
        kept = row >= 0
        return _Reads(row[kept], self.column[kept], self.token[kept], self.weight[kept], self.owner[kept])


@torch.enable_grad()
def _optimise(model: Model, prepared: Sequence[_Prepared], layer: int, options: TargetOptions) -> Targets:
    blocks = model.blocks[layer + 1 :]
    owned = [(row, i) for i, p in enumerate(prepared) for row in p.rows]
    suffixes: list[_Suffix] = []
    bare: dict[int, Tensor] = {}  # by request, on the prompt without a prefix
    for group in _by_suffix([row.suffix for row, _ in owned], OVERHEAD[model.device.type == "cuda"]):
        rows, owner = zip(*(owned[i] for i in group), strict=True)
        suffixes.append(_Suffix.of(model, rows, owner, layer, options.component))
        for position, row in enumerate(rows):
            if row is prepared[owner[position]].rows[0]:
                bare[owner[position]] = suffixes[-1].entry.base[position]
    base = torch.stack([bare[i] for i in range(len(prepared))]).float()  # h, (u, parts, d_model)
    norms = base.norm(dim=-1)

    delta = torch.zeros_like(base, requires_grad=True)
    adam = torch.optim.Adam([delta], lr=options.learning_rate)
    active = torch.ones(len(prepared), dtype=torch.bool, device=base.device)
    steps, last_loss = torch.zeros_like(active, dtype=torch.long), torch.zeros_like(norms[:, 0])
    original: Tensor | None = None
    factor = torch.ones_like(last_loss)  # of each request's NLL
    for step in range(options.steps):
        nll = kl = missed = torch.zeros_like(last_loss, device=suffixes[0].reads.row.device)
        views = []
        for suffix in suffixes:
            reads = suffix.reads
            final = suffix.run(blocks, delta)
            final = final[reads.row.to(final.device), reads.column.to(final.device)]
            log_probs = model.head(model.norm(final)).float().log_softmax(-1)
            of_target = log_probs[reads.target].gather(1, reads.token[reads.target, None])[:, 0]
            nll = nll.index_add(0, reads.owner[reads.target], -of_target * reads.weight[reads.target])
            views.append((reads.owner[reads.essence], log_probs[reads.essence]))
            if options.relax or options.stop == "first_choice":
                wrong = log_probs[reads.target].argmax(-1) != reads.token[reads.target]
                missed = missed.index_add(0, reads.owner[reads.target], wrong.to(missed.dtype))
        if original is None:  # δ is zero: the model's own view of each subject
            original = torch.cat([view.detach() for _, view in views])[torch.cat([who for who, _ in views]).argsort()]
        for who, view in views:
            kl = kl.index_add(0, who, (view.exp() * (view - original[who])).sum(1))
        length = torch.linalg.vector_norm(delta, dim=-1)
        nll, kl = nll.to(base.device), kl.to(base.device)
        loss = factor * nll + options.kl_factor * kl + options.weight_decay * (length / norms**2).sum(1)

        _check_finite(loss, active, prepared, layer, step)
        steps[active] = step + 1
        last_loss[active] = loss.detach()[active]
        finished = active & (loss.detach() < options.early_stop)
        first_choice = missed.to(base.device) == 0
        if options.stop == "first_choice":
            finished |= active & first_choice
        if options.relax:
            finished |= active & first_choice & (options.kl_factor * kl.detach() <= RELAXED_KL)
            factor = torch.where(first_choice, RELAXED, 1.0)
        active = active & ~finished
        if step == options.steps - 1 or not active.any():
            break
        frozen = delta.detach().clone()
        adam.zero_grad()
        loss[active].sum().backward()
        adam.step()
        with torch.no_grad():
            length = delta.norm(dim=-1)
            _check_finite(length.sum(1), active, prepared, layer, step, "a δ of length")
            scale = (options.clamp * norms / length.clamp_min(1e-12)).clamp_max(1.0)
            delta.mul_(scale[..., None])
            delta[~active] = frozen[~active]
        if finished.any():
            left = [(suffix, active[suffix.owner].nonzero()[:, 0]) for suffix in suffixes]
            suffixes = [suffix.keep(rows) for suffix, rows in left if len(rows)]
    target = base + delta.detach()
    return Targets(target[:, 0].T, base[:, 0].T, steps.cpu(), last_loss.cpu())


#: What a group of its own costs more, in tokens run: on a CPU, on a GPU.
OVERHEAD = (64, 2048)


def _by_suffix(lengths: Sequence[int], overhead: int) -> list[list[int]]:
    """Group rows by length, longest first; a group takes in shorter rows while padding costs less than a group."""
    groups: list[list[int]] = []
    by_length = sorted(set(lengths), reverse=True)
    longest = 0
    for length in by_length:
        rows = [i for i, n in enumerate(lengths) if n == length]
        if groups and len(rows) * (longest - length) < overhead:
            groups[-1] += rows
        else:
            groups.append(rows)
            longest = length
    return groups


def _check_finite(
    values: Tensor, active: Tensor, prepared: Sequence[_Prepared], layer: int, step: int, what: str = "loss"
) -> None:
    wrong = (active & ~torch.isfinite(values.detach())).nonzero()[:, 0].tolist()
    if wrong:
        request = prepared[wrong[0]].request
        raise TargetError(
            f"the target of {request.text!r} → {request.target!r} at layer {layer} has {what} "
            f"{values[wrong[0]].item()} at step {step + 1}; lower the learning rate or the clamp"
        )
