"""Targets: for every request, the hidden state at a layer with which the model gives the new object.

For each request a vector δ is optimised, which is added to the output h of block l at the subject's last token. The
target is z = h + δ. All requests of a batch are optimised together, each with its own loss, clamp and early stop;
the result for one does not depend on the others.

Only what depends on δ is computed at each step, without approximation: the blocks after l, and in them the tokens
from the subject's last one on. The tokens before it are run once; their keys and values in the later blocks are kept.
Logits are computed at the positions that the loss reads. Sequences are packed into lines of equal length
(:mod:`.packing`), so that hardly any padding is run.

In a model that is spread over several devices, δ and its optimiser are on the device of block l, and what a later block
needs is on that block's device. The terms of the loss are computed where the logits are; only their sums come back to
δ.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from inspect import signature
from itertools import takewhile
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache

from ..io.checks import check_real, check_whole
from ..models.choices import check_choice, published
from ..models.model import Model
from ..models.prompts import Request, encode_answer, locate, pad
from ..models.tracing import trace
from .matmuls import MATMULS, matmuls
from .packing import Kept, Layout, Recorder

#: The prompt on which the model's view of the subject must not drift (ROME, Meng et al. 2022, Eq. 4).
ESSENCE = "{} is a"
#: The weight of the NLL, and the weighted KL at which a request is finished, once the new object is the first choice.
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
        component: the module whose output is h, and to which δ is added: the ``block``, or its ``mlp``. With the
            latter, a second vector is optimised along with δ and added to attention's output, decayed and clamped in
            the same way with attention's own h (PMET, Li et al. 2024). Only the MLP's is the target.
        steps: the largest number of evaluations of the loss; there is one update fewer.
        learning_rate: Adam's.
        weight_decay, kl_factor: as above.
        clamp: ‖δ‖ is kept at or under ``clamp`` · ‖h‖.
        early_stop: a request whose loss is below this is finished.
        kl_at: where KL is read: at the ``subject``'s last token, as in the public code, or after the ``prompt``, as in
            the paper's text (ROME, Eq. 4).
        relax: as in PMET's public code: while the new object's tokens are the first choice after all prefixes, the NLL
            has the weight :data:`RELAXED` in the next step, and a request whose weighted KL is at most
            :data:`RELAXED_KL` is finished.
        stop: what finishes a request: its ``loss`` only; or also ``first_choice``, when the new object's tokens are the
            first choice after all prefixes (ENCORE, Gupta et al. 2025).
        matmuls: how linear layers multiply what depends on δ: in the precision of the ``model``, or in ``bfloat16``
            with float32 sums, which is faster and less exact (:mod:`.matmuls`). h is the same either way.
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
    matmuls: str = "model"

    def __post_init__(self) -> None:
        if self.stop not in ("loss", "first_choice"):
            raise ValueError(f"stop must be loss or first_choice, not {self.stop!r}")
        if self.matmuls not in MATMULS:
            raise ValueError(f"matmuls must be {' or '.join(MATMULS)}, not {self.matmuls!r}")
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
        token_budget: tokens that one micro-batch runs in a step; by default :func:`default_token_budget`. Results do
            not depend on it beyond rounding.

    Raises:
        ValueError: if there are no requests; if the first prefix is not the empty one; if the token budget is below 1;
            if a prompt with a prefix and its target is longer than the model's context.
        TargetError: if a loss is not finite, or the length of a δ overflows.
    """
    if not requests:
        raise ValueError("there are no requests to optimise targets of")
    if not prefixes or prefixes[0]:
        raise ValueError("the first context prefix must be the empty one: h is measured on the bare prompt")
    if token_budget is not None:
        check_whole("token_budget", token_budget, 1)
    prepared = [_Prepared.of(model, request, prefixes, options.kl_at) for request in requests]
    parts = [
        _optimise(model, [prepared[i] for i in batch], layer, options)
        for batch in _micro_batches([p.size for p in prepared], token_budget or default_token_budget(model))
    ]
    return Targets(
        torch.cat([p.values for p in parts], 1),
        torch.cat([p.hidden for p in parts], 1),
        torch.cat([p.steps for p in parts]),
        torch.cat([p.loss for p in parts]),
    )


def _micro_batches(sizes: Sequence[float], budget: int) -> Iterator[range]:
    """Consecutive requests in as few parts as possible, of about the same size and of at most ``budget``; a request
    larger than the budget is a part by itself."""
    share = sum(sizes) / math.ceil(sum(sizes) / budget)
    begin, size = 0, 0.0
    for i, more in enumerate(sizes):
        if i > begin and (size + more > budget or size >= share):
            yield range(begin, i)
            begin, size = i, 0.0
        size += more
    yield range(begin, len(sizes))


#: By type of device: the largest number of tokens in a micro-batch, above which it gets no faster; and the bytes of
#: activations that it may take on one device, unless a third of the device's memory is less.
BUDGETS = {"cpu": (8192, 6 * 10**9), "cuda": (131_072, 16 * 10**9)}
#: The cost of a token whose keys and values are kept, as a share of the cost of one that is run.
KEPT_SHARE = 1 / 20


def default_token_budget(model: Model) -> int:
    """Tokens in a micro-batch, from the model's shape and the type and memory of its device: a power of two. It does
    not depend on what is free at the moment, so a repeated run gives the same result.

    The estimate assumes that, for the backward pass, every block keeps 16 vectors of d_model and 6 of d_mlp for every
    token, and that the head keeps three rows of float32 logits for every third token. Each of several devices has to
    hold this for its own blocks, and the head's device for the logits; the one with room for the fewest tokens decides.
    """
    d_model, d_mlp = model.weight(0).shape
    per_block = (16 * d_model + 6 * d_mlp) * model.hf_model.dtype.itemsize
    per_token = Counter({_home(model, model.head.weight): 4 * model.hf_model.config.vocab_size})
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
    """One sequence to run, where δ enters it, which tokens are wanted from it, and from which position on.

    In an essence prompt, no tokens are wanted: the whole distribution of the token after ``read_from`` is read.
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

    @property
    def size(self) -> float:
        """Tokens that a step runs, and those that are kept, each counted as :data:`KEPT_SHARE`."""
        return sum(row.suffix + KEPT_SHARE * row.subject_last for row in self.rows)

    @classmethod
    def of(cls, model: Model, request: Request, prefixes: Sequence[str], kl_at: str) -> _Prepared:
        target = encode_answer(model.tokenizer, request.text, request.target, request.separator)
        rows = []
        for prefix in prefixes:
            place = locate(model.tokenizer, request.prompt, request.subject, prefix, request.before)
            weight = 1 / (len(prefixes) * len(target))
            rows.append(_Row(place.ids + target[:-1], place.subject_last, len(place.ids) - 1, target, weight))
        place = locate(model.tokenizer, ESSENCE, request.subject, before=request.before)  # in chat, a user says it
        # Tokens after the one that is read cannot affect it.
        read = place.subject_last if kl_at == "subject" else len(place.ids) - 1
        rows.append(_Row(place.ids[: read + 1], place.subject_last, read))
        model.check_length(
            max(len(row.ids) for row in rows), f"{request.text[:80]!r} with a context prefix and its target"
        )
        return cls(request, tuple(rows))


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
    def of(
        cls, model: Model, layer: int, component: str, captured: dict[str, Tensor], at: tuple[Tensor, ...]
    ) -> _Entry:
        here = {key: values[at] for key, values in captured.items()}
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
class _Rows:
    """All rows of a micro-batch as a model would run them, one per line, and what they have in common."""

    owner: Tensor  # (n,): the request that a row belongs to
    subject: Tensor  # (n,): its subject's last token
    length: Tensor  # (n,)
    like: Tensor  # (n,): the row whose first tokens are the same
    shared: Tensor  # (n,): how many
    embedded: Tensor  # (n, longest + 1, d_model): what the first block reads
    calls: tuple[tuple[tuple, dict], ...]  # of each block: its further arguments
    homes: tuple[torch.device, ...]  # of each block: where it runs

    @classmethod
    def of(cls, model: Model, prepared: Sequence[_Prepared]) -> _Rows:
        rows = [row for p in prepared for row in p.rows]
        owner = [i for i, p in enumerate(prepared) for _ in p.rows]
        like, shared = list(range(len(rows))), [0] * len(rows)
        # The rows of one context prefix begin alike: with its tokens and, in chat, with those before it.
        a_request = len(prepared[0].rows)
        for members in (range(j, len(rows), a_request) for j in range(a_request)):
            before = (rows[i].ids[: rows[i].subject_last] for i in members)
            common = sum(1 for _ in takewhile(lambda tokens: len(set(tokens)) == 1, zip(*before, strict=False)))
            for i in members:
                like[i], shared[i] = members[0], common
        embedded, calls = _block_calls(model, [row.ids for row in rows])
        return cls(
            torch.tensor(owner),
            torch.tensor([row.subject_last for row in rows]),
            torch.tensor([len(row.ids) for row in rows]),
            torch.tensor(like),
            torch.tensor(shared),
            embedded,
            tuple(calls),
            tuple(_home(model, model.weight(i)) for i in range(model.n_layers)),
        )

    def subjects(self, layout: Layout, device: torch.device) -> tuple[Tensor, Tensor]:
        """The lines and slots of the subjects' last tokens of a layout's rows."""
        return layout.at(layout.rows.to(device), self.subject[layout.rows].to(device))

    def arranged(self, layout: Layout, layers: Sequence[int], kept: Kept) -> tuple[tuple[tuple, dict], ...]:
        """The arguments of the blocks of these layers in a layout, other than hidden states."""
        shape = self.embedded.shape[0], self.embedded.shape[1]
        return tuple(layout.call(self.calls[i], shape, kept, self.homes[i]) for i in layers)


@dataclass(frozen=True)
class _Suffix:
    """The part of the computation that depends on δ: tokens from the subject's last one on, in the later blocks."""

    rows: _Rows
    layers: range  # the later blocks
    layout: Layout  # of the rows that are still run
    entry: _Entry  # of these, at the subject's last token
    tokens: Tensor  # (lines, width, d_model): outputs of block l, as they are without δ
    kept: Kept
    reads: _Reads

    @classmethod
    @torch.no_grad()
    def of(
        cls,
        model: Model,
        prepared: Sequence[_Prepared],
        layer: int,
        component: str,
        later_matmuls: AbstractContextManager,
    ) -> _Suffix:
        """Run everything that does not depend on δ: the tokens that rows have in common, once; those before the
        subject's last token, through all blocks; the rest, up to block l."""
        rows = _Rows.of(model, prepared)
        earlier, later = range(layer + 1), range(layer + 1, model.n_layers)
        nothing = torch.zeros_like(rows.shared)

        def run(layout: Layout, hidden: Tensor, layers: Sequence[int], old: Layout, seen: dict) -> tuple[Tensor, dict]:
            kept = Recorder({i: layout.keys(seen[i], old) for i in layers} if layout.kept else {})
            for i, (args, kwargs) in zip(layers, rows.arranged(layout, layers, kept), strict=True):
                with later_matmuls if i in later else nullcontext():
                    hidden = _hidden(model.blocks[i](hidden, *args, **kwargs))
            return hidden, kept.seen

        whole = common = Layout.whole(rows.length)
        seen: dict[int, tuple[Tensor, Tensor]] = {}
        if rows.shared.any():
            first = (rows.like == torch.arange(len(rows.like))).nonzero()[:, 0]
            first = first[rows.shared[first] > 0]
            layout = Layout.packed(nothing, rows.shared, first)
            _, seen = run(layout, layout.tokens(rows.embedded, whole), range(model.n_layers), whole, {})
            common = layout.sharing(rows.like)
        entire = Layout.packed(rows.shared, rows.length)
        with trace(*_Entry.modules(model, layer, component)) as captured:
            run(entire, entire.tokens(rows.embedded, whole), earlier, common, seen)
        before, tokens = common, captured["block"]
        if (rows.shared < rows.subject).any():
            before = Layout.packed(rows.shared, rows.subject)
            _, seen = run(before, before.tokens(tokens, entire), later, common, seen)
        suffix = cls(
            rows,
            later,
            entire,
            _Entry.of(model, layer, component, captured, rows.subjects(entire, tokens.device)),
            tokens,
            Kept({i: seen[i] for i in later} if seen else {}),
            _Reads.of(prepared, _home(model, model.head.weight)),
        )
        return suffix._moved(Layout.packed(rows.subject, rows.length), before)

    def keep(self, active: Tensor) -> _Suffix:
        """The same for the requests that are ``active``, ``(u,)``."""
        stay = active[self.owner]
        part = replace(self, entry=self.entry.keep(stay), reads=self.reads.keep(active))
        rows = self.layout.rows[stay.cpu()]
        return part._moved(Layout.packed(self.rows.subject, self.rows.length, rows), self.layout)

    def _moved(self, layout: Layout, old: Layout) -> _Suffix:
        """The same in another layout; the kept keys are moved from where they lie in ``old``."""
        kept = Kept({i: layout.keys(pair, old) for i, pair in self.kept.layers.items()} if layout.kept else {})
        return replace(self, layout=layout, tokens=layout.tokens(self.tokens, self.layout), kept=kept)

    @cached_property
    def owner(self) -> Tensor:
        """The requests that the rows belong to, on the device of δ."""
        return self.rows.owner[self.layout.rows].to(self.tokens.device)

    @cached_property
    def calls(self) -> tuple[tuple[tuple, dict], ...]:
        """The arguments of the later blocks, other than hidden states."""
        return self.rows.arranged(self.layout, self.layers, self.kept)

    @cached_property
    def subjects(self) -> tuple[Tensor, Tensor]:
        """Where the subjects' last tokens lie."""
        return self.rows.subjects(self.layout, self.tokens.device)

    def run(self, blocks: Sequence[nn.Module], delta: Tensor) -> Tensor:
        """Outputs of the last block, ``(lines, width, d_model)``, with δ ``(u, parts, d_model)`` in place."""
        hidden = self.tokens.index_put(self.subjects, self.entry.add(delta[self.owner]))
        for block, (args, kwargs) in zip(blocks, self.calls, strict=True):
            hidden = _hidden(block(hidden, *args, **kwargs))
        return hidden

    def read(self, final: Tensor) -> Tensor:
        """The last block's outputs at the tokens that the loss reads, ``(reads, d_model)``."""
        return final[self.layout.at(self.reads.row.to(final.device), self.reads.at.to(final.device))]


def _hidden(output: Any) -> Tensor:
    """The hidden states in a block's output, which is a tuple in some architectures and versions of transformers."""
    return output[0] if isinstance(output, tuple) else output


@torch.no_grad()
def _block_calls(model: Model, sequences: Sequence[Sequence[int]]) -> tuple[Tensor, list[tuple[tuple, dict]]]:
    """The arguments of the blocks when these sequences are run: the first block's hidden states, ``(n, width,
    d_model)``, and the further arguments of each block. No block is run, except the first one on a single token."""
    kinds: list[type] = []
    hook = model.blocks[0].register_forward_hook(lambda module, args, output: kinds.append(type(output)))
    try:
        with trace(outputs={0: model.blocks[0]}, stop=True):
            model.hf_model.base_model(torch.tensor([sequences[0][:1]], device=model.device), use_cache=False)
    finally:
        hook.remove()
    calls: list[tuple[Tensor, tuple, dict]] = []

    def passing(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        calls.append((hidden, args, kwargs))
        return (hidden,) if issubclass(kinds[0], tuple) else hidden

    # One column of padding more than needed, so that transformers always builds an explicit attention mask.
    inputs = pad(sequences, model.tokenizer.pad_token_id, model.device, extra=1)
    own = [vars(block).get("forward") for block in model.blocks]  # accelerate sets its own
    try:
        for block in model.blocks:
            block.forward = passing
        model.hf_model.base_model(**inputs, use_cache=True, **{_cache_name(model): DynamicCache()})
    finally:
        for block, forward in zip(model.blocks, own, strict=True):
            del block.forward
            if forward is not None:
                block.forward = forward
    return calls[0][0], [(args, kwargs) for _, args, kwargs in calls]


def _cache_name(model: Model) -> str:
    """What the model's code calls the argument for earlier tokens' keys and values: transformers renamed it in 5.24."""
    return "cache" if "cache" in signature(type(model.hf_model.base_model).forward).parameters else "past_key_values"


@dataclass(frozen=True)
class _Reads:
    """Where the loss reads logits: the row, the position in it, the token that is wanted next, its weight and the
    request.

    All of it is on the device of the logits.
    """

    row: Tensor
    at: Tensor
    token: Tensor  # -1 at the essence prompts
    weight: Tensor
    owner: Tensor

    @classmethod
    def of(cls, prepared: Sequence[_Prepared], device: torch.device) -> _Reads:
        rows = [(row, owner) for owner, p in enumerate(prepared) for row in p.rows]
        entries = [
            (i, row.read_from + j, token, row.weight, owner)
            for i, (row, owner) in enumerate(rows)
            for j, token in enumerate(row.wanted or (-1,))
        ]
        return cls(*(torch.tensor(column, device=device) for column in zip(*entries, strict=True)))

    @cached_property
    def essence(self) -> Tensor:
        """The reads at essence prompts."""
        return (self.token < 0).nonzero()[:, 0]

    @cached_property
    def target(self) -> Tensor:
        """The reads of target tokens."""
        return (self.token >= 0).nonzero()[:, 0]

    def keep(self, active: Tensor) -> _Reads:
        """The same for the requests that are ``active``."""
        kept = active.to(self.owner.device)[self.owner]
        return _Reads(self.row[kept], self.at[kept], self.token[kept], self.weight[kept], self.owner[kept])


@torch.enable_grad()
def _optimise(model: Model, prepared: Sequence[_Prepared], layer: int, options: TargetOptions) -> Targets:
    blocks = list(model.blocks[layer + 1 :])
    multiplying = matmuls(options.matmuls)
    suffix = _Suffix.of(model, prepared, layer, options.component, multiplying)
    # h, (u, parts, d_model), of each request's first row, which has no prefix
    base = suffix.entry.base[:: len(prepared[0].rows)].float()
    norms = base.norm(dim=-1)

    delta = torch.zeros_like(base, requires_grad=True)
    adam = torch.optim.Adam([delta], lr=options.learning_rate)
    active = torch.ones(len(prepared), dtype=torch.bool, device=base.device)
    steps, last_loss = torch.zeros_like(active, dtype=torch.long), torch.zeros_like(norms[:, 0])
    original: Tensor | None = None
    factor = torch.ones_like(last_loss)  # of each request's NLL
    for step in range(options.steps):
        reads = suffix.reads
        nothing = torch.zeros_like(last_loss, device=reads.row.device)
        with multiplying:
            log_probs = model.head(model.norm(suffix.read(suffix.run(blocks, delta)))).float().log_softmax(-1)
        of_target = log_probs[reads.target, reads.token[reads.target]]
        nll = nothing.index_add(0, reads.owner[reads.target], -of_target * reads.weight[reads.target])
        who, view = reads.owner[reads.essence], log_probs[reads.essence]
        if original is None:  # δ is zero: the model's own view of each subject
            original = view.detach()[who.argsort()]
        kl = nothing.index_add(0, who, (view.exp() * (view - original[who])).sum(1))
        length = torch.linalg.vector_norm(delta, dim=-1)
        nll, kl = nll.to(base.device), kl.to(base.device)
        loss = factor * nll + options.kl_factor * kl + options.weight_decay * (length / norms**2).sum(1)

        _check_finite(loss, active, prepared, layer, step)
        steps[active] = step + 1
        last_loss[active] = loss.detach()[active]
        finished = active & (loss.detach() < options.early_stop)
        if options.relax or options.stop == "first_choice":
            wrong = log_probs.detach().argmax(-1)[reads.target] != reads.token[reads.target]
            missed = nothing.index_add(0, reads.owner[reads.target], wrong.to(nothing.dtype))
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
            suffix = suffix.keep(active)
    target = base + delta.detach()
    return Targets(target[:, 0].T, base[:, 0].T, steps.cpu(), last_loss.cpu())


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
