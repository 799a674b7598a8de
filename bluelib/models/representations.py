"""What a model holds at the last token of a subject or a prompt: keys of an MLP, and hidden states after a block."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .choices import check_choice, published
from .model import Model
from .prompts import Request, by_length, encode_prompt, locate, pad
from .tracing import trace

TOKEN_BUDGET = 8192


def subject_keys(
    model: Model,
    requests: Sequence[Request],
    layer: int,
    prefixes: Sequence[str],
    mean: str = published("key_mean"),
) -> Tensor:
    """Keys K of a layer, ``(d_mlp, u)`` float32: the MLP's inner activation at the subject's last token.

    Each key is a mean over the context prefixes. With ``equal`` all have the same weight (MEMIT, Meng et al. 2023,
    Eq. 19). With ``bare_half`` the first, which is the empty one, has one half and the others share the other half, as
    in the public code.

    Raises:
        ValueError: for another mean, or if the first prefix is not the empty one.
    """
    check_choice("key_mean", mean)
    if not prefixes or prefixes[0]:
        raise ValueError(f"the first context prefix must be the empty one, not {list(prefixes[:1])}")
    n = len(prefixes)
    weights = torch.full((n,), 1 / n) if mean == "equal" or n == 1 else torch.tensor([0.5, *[0.5 / (n - 1)] * (n - 1)])
    located = [(r, prefix) for r in requests for prefix in prefixes]
    module = model.value_projection(layer)
    vectors = _at_subject(model, located, {"inputs": {layer: module}}, layer)
    # contiguous: the layout in memory decides how sums are rounded, and a checkpoint stores keys in this layout
    grouped = vectors.view(len(requests), n, -1)
    return (grouped * weights.to(grouped)[None, :, None]).sum(1).T.contiguous()


def subject_hidden(model: Model, requests: Sequence[Request], layer: int, component: str = "block") -> Tensor:
    """Outputs of a block, or of its MLP (``component="mlp"``), at the subject's last token of the bare prompt.

    ``(d_model, u)`` float32.
    """
    module: nn.Module = model.part(layer, "mlp") if component == "mlp" else model.blocks[layer]
    return _at_subject(model, [(r, "") for r in requests], {"outputs": {layer: module}}, layer).T


def replayed_hidden(
    model: Model, requests: Sequence[Request], layer: int, values: Tensor, later: Sequence[int]
) -> dict[int, Tensor]:
    """Outputs of later blocks at the subject's last token of the bare prompt, with ``values`` put in as the output of
    block ``layer`` there.

    Args:
        model: the model in its present state.
        requests: u requests.
        layer: where ``values`` are put in.
        values: ``(d_model, u)``.
        later: the later blocks to read.

    Returns:
        ``(d_model, u)`` float32 by layer.
    """
    if not later:
        return {}
    ids = [_up_to_subject(model, request) for request in requests]
    modules = {at: model.blocks[at] for at in (layer, *later)}
    columns: dict[int, list[Tensor | None]] = {at: [None] * len(ids) for at in later}
    for batch in by_length([len(s) for s in ids], TOKEN_BUDGET):
        last = torch.tensor([len(ids[i]) - 1 for i in batch])
        put = values[:, batch].T

        def place(at: int, hidden: Tensor, last: Tensor = last, put: Tensor = put) -> Tensor:
            if at != layer:
                return hidden
            changed = hidden.clone()
            rows = torch.arange(len(last), device=hidden.device)
            changed[rows, last.to(hidden.device)] = put.to(hidden)
            return changed

        found = _run(model, [ids[i] for i in batch], {"outputs": modules, "edit": place})
        for at in later:
            for i, vector in zip(batch, found[at], strict=True):
                columns[at][i] = vector
    return {at: torch.stack(columns[at], 1) for at in later}  # type: ignore[arg-type]


def prompt_hidden(model: Model, prompts: Sequence[str], layer: int) -> Tensor:
    """Outputs of a block at the last token of each prompt, ``(d_model, n)`` float32."""
    sequences = [encode_prompt(model.tokenizer, prompt) for prompt in prompts]
    return _at_last(model, sequences, {"outputs": {layer: model.blocks[layer]}}, layer).T


def _up_to_subject(model: Model, request: Request, prefix: str = "") -> Sequence[int]:
    """A prompt's tokens up to the subject's last one. Later tokens have no effect on it, so they are not run."""
    place = locate(model.tokenizer, request.prompt, request.subject, prefix, request.before)
    return place.ids[: place.subject_last + 1]


def _at_subject(model: Model, texts: Sequence[tuple[Request, str]], modules: dict, layer: int) -> Tensor:
    return _at_last(model, [_up_to_subject(model, request, prefix) for request, prefix in texts], modules, layer)


def _at_last(model: Model, sequences: Sequence[Sequence[int]], modules: dict, layer: int) -> Tensor:
    """One vector per sequence, at its last token, ``(n, d)``; the forward pass stops at the module that is read."""
    model.check_length(max(map(len, sequences), default=0), "the longest of these prompts")
    vectors: dict[int, Tensor] = {}
    for batch in by_length([len(s) for s in sequences], TOKEN_BUDGET):
        found = _run(model, [sequences[i] for i in batch], modules)[layer]
        vectors.update(zip(batch, found, strict=True))
    return torch.stack([vectors[i] for i in range(len(sequences))])


@torch.no_grad()
def _run(model: Model, sequences: Sequence[Sequence[int]], modules: dict) -> dict[int, Tensor]:
    """What ``modules`` say to capture, at each sequence's last token, ``(n, d)`` float32 each."""
    inputs = pad(sequences, model.tokenizer.pad_token_id, model.device)
    with trace(**modules, stop=True) as captured:
        model.hf_model.base_model(**inputs, use_cache=False)
    rows, last = torch.arange(len(sequences)), torch.tensor([len(ids) - 1 for ids in sequences])
    return {at: found[rows.to(found.device), last.to(found.device)].float() for at, found in captured.items()}
