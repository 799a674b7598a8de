"""Causal tracing: where in the model, and at which token, a fact is recalled (ROME, Meng et al. 2022, Section 2).

A fact's prompt is run clean, then with noise on the embeddings of its subject, so that the model forgets the answer;
then again with one clean state put back. The *indirect effect* of that state is the probability of the answer that it
brings back: P(restored) − P(corrupted). The *total effect* is P(clean) − P(corrupted).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import pandas as pd
import torch
from torch import Tensor

from ..data import Record
from ..io.checks import check_whole
from ..models.model import Model
from ..models.prompts import Request, encode_answer, locate
from ..models.scoring import next_token_log_probs
from ..models.tracing import trace
from .layers import best_window

#: By name: what is restored (a block's output, or the output of its MLP or its attention in a window of layers), and
#: which part of the later blocks keeps its corrupted output at that token. This severs the path through that part
#: (MEMIT, Meng et al. 2023, Section 4.1).
KINDS: dict[str, tuple[str, str | None]] = {
    "hidden": ("hidden", None),
    "mlp": ("mlp", None),
    "attention": ("attention", None),
    "hidden, MLPs severed": ("hidden", "mlp"),
    "hidden, attention severed": ("hidden", "attention"),
}
#: Where a token stands, in ROME's terms.
ROLES = ("first subject", "middle subject", "last subject", "first after", "further after", "last")

TOKEN_BUDGET = 8192


@dataclass(frozen=True)
class CausalTrace:
    """The traces of one prompt of t tokens, in a model of n layers.

    Attributes:
        tokens: the prompt's tokens as text.
        roles: each token's place, one of :data:`ROLES`, or ``before`` for those that come before the subject.
        clean, corrupted: probability of the answer's first token; the latter is the mean over the noise samples.
        correct: whether that token is the clean model's first choice.
        effects: by kind, ``(t, n)``: the indirect effect, mean over the samples. Before the subject, where noise
            changes nothing, it is 0; severed paths are measured at the subject's last token only, and NaN elsewhere.
    """

    tokens: tuple[str, ...]
    roles: tuple[str, ...]
    clean: float
    corrupted: float
    correct: bool
    effects: dict[str, Tensor]


def noise_scale(model: Model) -> float:
    """The standard deviation of the model's embedding matrix, over all entries: the unit of the noise.

    ROME's noise is three times the standard deviation of embeddings. ROME's public code takes the deviation over the
    embeddings of the traced subjects' tokens; this function takes it over the whole vocabulary.
    """
    return model.hf_model.get_input_embeddings().weight.float().std().item()


@torch.no_grad()
def known_facts(model: Model, records: Sequence[Record], *, least: int = 1) -> list[Request]:
    """The records' true facts that the model knows: the true object's first token is its first choice after the prompt.

    Raises:
        ValueError: if it knows fewer than ``least``; the message shows what it says after the first prompt.
    """
    facts = [replace(record.request, target=record.target_true) for record in records if record.target_true]
    known, said = [], []
    for at in range(0, len(facts), 50):
        part = facts[at : at + 50]
        said += next_token_log_probs(model, [fact.text for fact in part]).argmax(-1).tolist()
    for fact, token in zip(facts, said, strict=True):
        if encode_answer(model.tokenizer, fact.text, fact.target, fact.separator)[0] == token:
            known.append(fact)
    if len(known) < least:
        example = ""
        if facts:
            first = model.tokenizer.decode([said[0]])
            example = f": after {facts[0].text!r} its first choice is {first!r}, not {facts[0].target!r}"
        raise ValueError(
            f"{model.name} knows {len(known)} of these {len(facts)} facts, and at least {least} are needed{example}. "
            "Use facts that it knows"
        )
    return known


@torch.no_grad()
def causal_trace(
    model: Model,
    request: Request,
    *,
    noise: float | None = None,
    samples: int = 10,
    window: int = 1,
    seed: int = 0,
    kinds: Sequence[str] = tuple(KINDS),
    at_subject: bool = False,
) -> CausalTrace:
    """Trace one fact.

    Args:
        model: any model with an adapter; it is left as it was.
        request: the fact: its ``target`` is the *true* object here.
        noise: standard deviation of the noise; by default three times :func:`noise_scale`, ROME's.
        samples: number of noise samples; the same ones are used for every state that is restored.
        window: for ``mlp`` and ``attention``, how many layers around the given one are restored together.
        seed: of the noise.
        kinds: what to restore, from :data:`KINDS`.
        at_subject: trace the subject's last token only, in a fraction of the time; effects elsewhere are NaN.

    Raises:
        ValueError: if a kind is unknown, or ``samples`` or ``window`` is below 1.
    """
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        raise ValueError(f"kinds must be from {tuple(KINDS)}, not {kinds}")
    check_whole("samples", samples, 1)
    check_whole("window", window, 1)
    place = locate(model.tokenizer, request.prompt, request.subject, before=request.before)
    first = place.subject_first
    answer = encode_answer(model.tokenizer, request.text, request.target, request.separator)[0]
    t, n = len(place.ids), model.n_layers
    parts = {("hidden", layer): model.blocks[layer] for layer in range(n)}
    parts |= {(part, layer): model.part(layer, part) for part in ("mlp", "attention") for layer in range(n)}
    embedding = model.hf_model.get_input_embeddings()
    generator = torch.Generator().manual_seed(seed)
    subject = slice(first, place.subject_last + 1)
    shape = (samples, place.subject_last + 1 - first, embedding.weight.shape[1])
    drawn = torch.randn(shape, generator=generator) * (3 * noise_scale(model) if noise is None else noise)
    drawn = drawn.to(model.device, embedding.weight.dtype)
    ids = torch.tensor([place.ids], device=model.device)

    def probabilities(rows: int, edit=None, keys: Sequence = ()) -> Tensor:
        modules = {"embedding": embedding, **{key: parts[key] for key in keys}} if edit else {}
        with trace(outputs=modules, edit=edit):
            hidden = model.hf_model.base_model(ids.expand(rows, -1), use_cache=False).last_hidden_state
        return model.head(hidden[:, -1]).float().softmax(-1)

    with trace(outputs=parts) as clean:
        distribution = probabilities(1)[0]

    def corrupt(key, hidden: Tensor) -> Tensor:
        hidden = hidden.clone()
        hidden[:, subject] += drawn.repeat(len(hidden) // samples, 1, 1)
        return hidden

    with trace(outputs=parts) as corrupted:
        base = probabilities(samples, corrupt)[:, answer].mean().item()

    states: list[tuple[str, int, int]] = []  # kind, token, layer
    effects = {kind: torch.full((t, n), math.nan) for kind in kinds}
    for kind in kinds:
        tokens: Sequence[int] = range(first, t)
        if at_subject or KINDS[kind][1]:
            tokens = [place.subject_last]
        else:
            effects[kind][:first] = 0.0
        states += [(kind, token, layer) for token in tokens for layer in range(n)]
    chunk = max(1, TOKEN_BUDGET // (t * samples))
    for at in range(0, len(states), chunk):
        group = states[at : at + chunk]
        changes: dict[tuple[str, int], list[tuple[int, int, Tensor]]] = {}
        for row, (kind, token, layer) in enumerate(group):
            for key, value in _replaced(kind, layer, n, window, clean, corrupted):
                changes.setdefault(key, []).append((row * samples, token, value[:, token]))

        def put(key, hidden: Tensor, changes=changes) -> Tensor:
            if key == "embedding":
                return corrupt(key, hidden)
            hidden = hidden.clone()
            for row, token, value in changes[key]:
                hidden[row : row + samples, token] = value
            return hidden

        found = probabilities(len(group) * samples, put, list(changes))[:, answer].view(len(group), samples).mean(1)
        for (kind, token, layer), value in zip(group, found.tolist(), strict=True):
            effects[kind][token, layer] = value - base
    text = tuple(model.tokenizer.decode([token]) for token in place.ids)
    return CausalTrace(
        text,
        tuple(_role(i, first, place.subject_last, t) for i in range(t)),
        distribution[answer].item(),
        base,
        int(distribution.argmax()) == answer,
        effects,
    )


def _replaced(
    kind: str, layer: int, n: int, window: int, clean: Mapping, corrupted: Mapping
) -> Iterator[tuple[tuple[str, int], Tensor]]:
    """Which outputs are replaced to restore a state, and by what: clean ones, and corrupted ones where severed."""
    restored, severed = KINDS[kind]
    start = layer - window // 2  # as in ROME, where ten layers around l are l - 5 to l + 4
    layers = [layer] if restored == "hidden" else range(max(0, start), min(n, start + window))
    yield from (((restored, i), clean[restored, i]) for i in layers)
    if severed:
        yield from (((severed, i), corrupted[severed, i]) for i in range(layer + 1, n))


def _role(index: int, first: int, last: int, length: int) -> str:
    """A token's place. Where two apply, those in the subject take precedence, then the prompt's last."""
    if index < first:
        return "before"
    if index <= last:
        return "last subject" if index == last else "first subject" if index == first else "middle subject"
    if index == length - 1:
        return "last"
    return "first after" if index == last + 1 else "further after"


def effects_frame(traces: Sequence[CausalTrace]) -> pd.DataFrame:
    """Indirect effects, one row per (kind, role, layer, prompt): the mean over the prompt's tokens of that role."""
    rows = [
        {"kind": kind, "role": role, "layer": layer, "prompt": i, "effect": effect[token, layer].item()}
        for i, found in enumerate(traces)
        for kind, effect in found.effects.items()
        for token, role in enumerate(found.roles)
        if role in ROLES
        for layer in range(effect.shape[1])
    ]
    frame = pd.DataFrame(rows).dropna()
    return frame.groupby(["kind", "role", "layer", "prompt"], sort=False, as_index=False).effect.mean()


def layers_by_tracing(effects: pd.DataFrame, width: int = 5) -> list[int]:
    """The ``width`` consecutive layers whose hidden states have the largest mean effect at the subject's last token."""
    chosen = effects[(effects.kind == "hidden") & (effects.role == "last subject")]
    return best_window(chosen.groupby("layer").effect.mean(), width)
