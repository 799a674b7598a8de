"""Second moments of keys, C = E[k kᵀ], over a text: what a ridge solver protects and a null space is found in.

Computed once per (weights, layer, corpus, number of tokens) and kept on disk.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm.auto import tqdm

from .files import atomic_file, cache_dir, file_hash
from .models import Model
from .prompts import by_length, pad
from .tracing import trace

log = logging.getLogger(__name__)

TOKENS = 100_000
POCKET_CORPORA = ("pocket", "pocket-others")


@dataclass(frozen=True)
class SecondMoment:
    """C of one layer: ``matrix`` is (d_mlp, d_mlp) float32, the mean of k kᵀ over ``tokens`` tokens of ``corpus``."""

    matrix: Tensor
    layer: int
    corpus: str
    tokens: int


def second_moments(
    model: Model,
    layers: Sequence[int],
    *,
    corpus: str | Path = "pocket",
    tokens: int = TOKENS,
    progress: bool | None = None,
) -> dict[int, SecondMoment]:
    """Second moments of the keys of ``layers``, from disk where they are known, in one pass where they are not.

    Args:
        model: the model as loaded.
        layers: layers to measure.
        corpus: ``pocket``, the pocket training text; ``pocket-others``, the same without the sentences about
            subjects of the benchmarks; or a text file with one document per line.
        tokens: how many tokens to read.
        progress: show a progress bar (default: on a terminal).

    Returns:
        Layer to :class:`SecondMoment`.

    Raises:
        ValueError: if the corpus has fewer tokens than asked for, or if the model has been edited and something is
            to be measured: statistics belong to the weights as loaded.
    """
    layers = model.check_layers(layers)
    paths = {layer: _path(model, layer, corpus, tokens) for layer in layers}
    missing = [layer for layer in layers if not paths[layer].exists()]
    if missing:
        model.check_unedited("second moments")
        for layer, matrix in _measure(model, missing, corpus, tokens, progress).items():
            with atomic_file(paths[layer]) as temporary:
                save_file({"second_moment": matrix}, temporary)
    return {
        layer: SecondMoment(load_file(paths[layer])["second_moment"], layer, str(corpus), tokens) for layer in layers
    }


#: A matrix of fewer rows is decomposed again rather than kept: that takes milliseconds.
SMALL = 1000


def null_space(second_moment: Tensor, threshold: float) -> Tensor:
    """An orthonormal basis U of the null space of C, ``(d_mlp, r)`` float64: its eigenvectors with eigenvalues under
    ``threshold``. The projection P = U Uᵀ itself, d_mlp × d_mlp, is never formed.

    A large matrix is decomposed once, by a symmetric eigen-solver, and the basis kept on disk under a hash of the
    matrix and the threshold.
    """
    if len(second_moment) < SMALL:
        return _null_space(second_moment, threshold)
    bytes_ = second_moment.detach().cpu().contiguous().view(torch.uint8).numpy().data
    digest = hashlib.sha256(bytes_).hexdigest()
    path = cache_dir("null-spaces") / f"{digest[:32]}-{second_moment.dtype}-{threshold!r}.safetensors"
    if not path.exists():
        with atomic_file(path) as temporary:
            save_file({"basis": _null_space(second_moment, threshold).cpu()}, temporary)
    return load_file(path)["basis"].to(second_moment.device)


def _null_space(second_moment: Tensor, threshold: float) -> Tensor:
    values, vectors = torch.linalg.eigh(second_moment.double())
    return vectors[:, values < threshold].contiguous()


def _path(model: Model, layer: int, corpus: str | Path, tokens: int) -> Path:
    """One file per weights, type, text and number of tokens; the text counts by its content, not by its name."""
    revision = model.revision.removeprefix("sha256:")[:16]
    dtype = str(model.lm.dtype).removeprefix("torch.")
    text = f"{Path(corpus).stem}-{corpus_hash(str(corpus))[:12]}"
    return cache_dir("statistics") / f"{revision}-{dtype}-{text}-{tokens}-layer{layer}.safetensors"


def corpus_hash(corpus: str) -> str:
    """SHA-256 of a text, by its content: of the file, or of the pocket text's sentences."""
    if corpus not in POCKET_CORPORA:
        return file_hash(corpus)
    from .pocket.text import text_hash

    return text_hash(exclude=_excluded(corpus))


def _excluded(corpus: str) -> frozenset[str]:
    from .pocket.datasets import edited_subjects

    return edited_subjects() if corpus == "pocket-others" else frozenset()


@torch.no_grad()
def _measure(model: Model, layers: Sequence[int], corpus, tokens: int, progress: bool | None) -> dict[int, Tensor]:
    sequences = _sequences(model, corpus, tokens)
    totals = {layer: 0.0 for layer in layers}
    modules = {layer: model.value_projection(layer) for layer in layers}
    quiet = None if progress is None else not progress
    batches = list(by_length([len(s) for s in sequences], token_budget=4096))
    for batch in tqdm(batches, desc="second moments", disable=quiet):
        inputs = pad([sequences[i] for i in batch], model.tokenizer.pad_token_id, model.device)
        with trace(inputs=modules, stop=True) as keys:
            model.lm.base_model(**inputs, use_cache=False)
        kept = inputs["attention_mask"].bool()
        for layer in layers:
            k = keys[layer][kept.to(keys[layer].device)].float()
            totals[layer] = totals[layer] + (k.T @ k).double()
    count = sum(map(len, sequences))
    return {layer: (total / count).float().cpu() for layer, total in totals.items()}


def _sequences(model: Model, corpus: str | Path, tokens: int) -> list[list[int]]:
    """Token sequences of the corpus, ``tokens`` tokens in all."""
    chosen: list[list[int]] = []
    left = tokens
    for sequence in _documents(model, corpus):
        chosen.append(sequence[:left])
        left -= len(chosen[-1])
        if left <= 0:
            return chosen
    raise ValueError(f"corpus {str(corpus)!r} has {tokens - left} tokens; {tokens} were asked for")


def _documents(model: Model, corpus: str | Path) -> Iterator[list[int]]:
    if str(corpus) in POCKET_CORPORA:
        from .pocket.text import PackedText

        yield from PackedText(model.tokenizer, 128, exclude=_excluded(str(corpus))).epoch(0)[0].tolist()
        return
    longest = min(model.max_positions, 2048)
    with open(corpus, encoding="utf-8") as file:
        for line in file:
            ids = model.tokenizer(line.strip()).input_ids if line.strip() else []
            yield from (ids[i : i + longest] for i in range(0, len(ids), longest))
