"""A plain reference for target optimisation and MEMIT, written from the formulas: what the library must agree with.

One request at a time; at every step all of its prompts run through the whole model, every token, with logits
everywhere, and twice, as the family's public code has them: KL is of the model's own, the NLL of those of the last
block's output. Keys and hidden states come from full forward passes; the update is solved from the normal equations.
It shares with the library only what is not under test: finding the subject's last token, padding, and the hooks.
Where the papers' text and the family's public code differ, it has both (``bluelib.models.choices``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from bluelib.editing.targets import TargetOptions
from bluelib.models.model import Model
from bluelib.models.prompts import Request, encode_answer, locate, pad
from bluelib.models.tracing import trace


def plain_target(
    model: Model, request: Request, layer: int, prefixes: Sequence[str], options: TargetOptions
) -> tuple[Tensor, int, float]:
    """z ``(d_model,)`` of one request, the loss evaluations made and the last loss."""
    target = encode_answer(model.tokenizer, request.text, request.target, request.separator)
    places = [locate(model.tokenizer, request.prompt, request.subject, prefix, request.before) for prefix in prefixes]
    essence = locate(model.tokenizer, "{} is a", request.subject, before=request.before)
    inputs = pad([p.ids + target[:-1] for p in places] + [essence.ids], model.tokenizer.pad_token_id, model.device)
    at = torch.tensor([p.subject_last for p in [*places, essence]], device=model.device)
    rows = torch.arange(len(at), device=model.device)
    wanted = torch.tensor(target, device=model.device)

    if options.component == "block":
        modules = {"block": model.blocks[layer]}
    else:
        modules = {"mlp": model.part(layer, "mlp"), "attention": model.part(layer, "attention")}
    with torch.no_grad(), trace(outputs=modules) as seen:
        model.hf_model(**inputs)
    base = {name: seen[name][0, at[0]].float() for name in modules}
    deltas = {name: torch.zeros_like(h, requires_grad=True) for name, h in base.items()}
    adam = torch.optim.Adam(deltas.values(), lr=options.learning_rate)

    def add(name, hidden):
        return hidden.index_put((rows, at), deltas[name].to(hidden.dtype).expand(len(at), -1), accumulate=True)

    kl_token = essence.subject_last if options.kl_at == "subject" else len(essence.ids) - 1
    original, factor = None, 1.0
    for step in range(options.steps):
        with trace(outputs=modules, edit=add), trace(outputs={"last": model.blocks[-1]}) as seen:
            own_log_probs = model.hf_model(**inputs).logits.float().log_softmax(-1)
        log_probs = model.head(model.norm(seen["last"])).float().log_softmax(-1)
        nll, all_first = 0.0, True
        for row, place in enumerate(places):
            first = len(place.ids) - 1
            read = log_probs[row, first : first + len(target)]
            nll = nll - read.gather(1, wanted[:, None]).mean() / len(places)
            all_first = all_first and torch.equal(read.argmax(1), wanted)
        edited = own_log_probs[-1, kl_token]
        original = edited.detach() if original is None else original
        kl = (edited.exp() * (edited - original)).sum()
        decay = sum(torch.linalg.vector_norm(d) / base[name].norm() ** 2 for name, d in deltas.items())
        loss = factor * nll + options.kl_factor * kl + options.weight_decay * decay
        if loss < options.early_stop or step == options.steps - 1:
            break
        if options.relax:
            if all_first and options.kl_factor * kl <= 0.01:
                break
            factor = 0.1 if all_first else 1.0
        adam.zero_grad()
        loss.backward()
        adam.step()
        with torch.no_grad():
            for name, d in deltas.items():
                limit = options.clamp * base[name].norm()
                if d.norm() > limit:
                    d.mul_(limit / d.norm())
    first = next(iter(modules))
    return base[first] + deltas[first].detach(), step + 1, loss.item()


@torch.no_grad()
def plain_keys(
    model: Model, requests: Sequence[Request], layer: int, prefixes: Sequence[str], mean: str = "bare_half"
) -> Tensor:
    """K ``(d_mlp, u)``: one full forward pass per request; the mean over the prefixes, or of the first one's key and
    the mean of the others'."""
    keys = []
    for request in requests:
        places = [
            locate(model.tokenizer, request.prompt, request.subject, prefix, request.before) for prefix in prefixes
        ]
        inputs = pad([p.ids for p in places], model.tokenizer.pad_token_id, model.device)
        with trace(inputs={0: model.value_projection(layer)}) as seen:
            model.hf_model(**inputs)
        each = torch.stack([seen[0][i, p.subject_last].float() for i, p in enumerate(places)])
        halves = mean == "bare_half" and len(each) > 1
        keys.append((each[0] + each[1:].mean(0)) / 2 if halves else each.mean(0))
    return torch.stack(keys, 1)


@torch.no_grad()
def plain_hidden(model: Model, requests: Sequence[Request], layer: int) -> Tensor:
    """h ``(d_model, u)``: one full forward pass per request."""
    hidden = []
    for request in requests:
        place = locate(model.tokenizer, request.prompt, request.subject, before=request.before)
        with trace(outputs={0: model.blocks[layer]}) as seen:
            model.hf_model(**pad([place.ids], model.tokenizer.pad_token_id, model.device))
        hidden.append(seen[0][0, place.subject_last].float())
    return torch.stack(hidden, 1)


def plain_rect(
    model: Model,
    requests: Sequence[Request],
    layers: Sequence[int],
    prefixes: Sequence[str],
    options: TargetOptions,
    weight: float,
    moments: dict[int, Tensor],
    keep: float,
    order: str,
) -> None:
    """One batch of RECT, in place: of each layer's Δ the share ``keep`` with the largest |Δ / W|; the other entries go
    before the next layer is solved (``in_turn``), or when all are done (``restored``)."""
    before = {layer: model.weight(layer).clone() for layer in layers}

    def cut(layer: int) -> None:
        delta = (model.weight(layer) - before[layer]).flatten()
        largest = (delta / before[layer].flatten()).abs().topk(round(keep * delta.numel())).indices
        kept = torch.zeros_like(delta).index_copy(0, largest, delta[largest])
        model.weight(layer).copy_(before[layer] + kept.view_as(before[layer]))

    plain_memit(
        model, requests, layers, prefixes, options, weight, moments, after_layer=cut if order == "in_turn" else None
    )
    for layer in layers if order == "restored" else ():
        cut(layer)


def plain_memit(
    model: Model,
    requests: Sequence[Request],
    layers: Sequence[int],
    prefixes: Sequence[str],
    options: TargetOptions,
    weight: float,
    moments: dict[int, Tensor],
    after_layer: Callable[[int], None] | None = None,
) -> None:
    """One batch of MEMIT, in place: Δ = R Kᵀ (λC + KKᵀ)⁻¹ in float64, layer by layer."""
    targets = torch.stack([plain_target(model, r, layers[-1], prefixes, options)[0] for r in requests], 1)
    for position, layer in enumerate(layers):
        keys = plain_keys(model, requests, layer, prefixes).double()
        residuals = (targets - plain_hidden(model, requests, layers[-1])).double() / (len(layers) - position)
        matrix = weight * moments[layer].double() + keys @ keys.T
        delta = torch.linalg.solve(matrix, keys @ residuals.T).T
        model.weight(layer).add_(delta.to(model.weight(layer).dtype))
        if after_layer:
            after_layer(layer)
