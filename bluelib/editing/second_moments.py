"""Second moments of keys over a text, C = E[k kᵀ]: ridge solvers protect them, and null spaces are found in them.

Computed once per (model as loaded, layer, corpus, number of tokens) and kept on disk.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from ..data.corpora import corpus_hash, count_tokens, token_sequences
from ..io.checks import check_whole
from ..io.locks import locked, make_once
from ..io.paths import cache_dir, plain
from ..io.tensors import load_tensors, save_tensors
from ..io.timing import progress_bar
from ..io.writing import remove_leftovers
from ..models.model import Model
from ..models.prompts import by_length, pad
from ..models.tracing import trace

log = logging.getLogger(__name__)

TOKENS = 100_000
#: How many tokens of a text C needs for each dimension of a key, by experience (``blue convergence``). With fewer
#: tokens than dimensions C is singular: MEMIT's solution is not unique, and is refused here.
TOKENS_A_DIMENSION = 10
#: Tokens in one part of a text. Each part is sorted by length and measured as a whole; a measurement continues between
#: parts.
SHARD = 1 << 20
#: Tokens in one run of the model, with padding: on a CPU, on a GPU.
TOKEN_BUDGET = (4096, 32_768)
#: Seconds between two writes of an unfinished measurement, which has one matrix per layer.
WRITE_EVERY = 300.0


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
    """Second moments of the keys of ``layers``: read from disk if they are known, otherwise measured in one pass.

    The pass goes through the text in its order, in parts of about a million tokens, and through the model up to the
    last of the layers; products are summed in float32 within a run of the model and in float64 over runs. Between
    parts it writes what it has, at most every few minutes: interrupted and called again, it continues after the last
    part written, and ends with the same bits; a text of one part begins again. If several processes ask for the same
    text at once, one measures and the others wait.

    Args:
        model: the model as loaded.
        layers: layers to measure.
        corpus: see :mod:`bluelib.data.corpora`.
        tokens: how many tokens to read.
        progress: show a progress bar (default: on a terminal).

    Returns:
        Layer to :class:`SecondMoment`.

    Raises:
        ValueError: if ``tokens`` is below 1; if the corpus has fewer tokens than asked for; if the model has been
            edited and something is to be measured, because statistics belong to the weights as loaded; if a file on
            disk is damaged, or has no hash of its content.
        ArithmeticError: if keys are not finite; then nothing is kept.
    """
    layers = model.check_layers(layers)
    check_whole("tokens", tokens, 1)
    path = _paths(model, corpus, tokens)
    paths = {layer: path(layer) for layer in layers}
    unfinished = path(f"s-{hashlib.sha256(str(layers).encode()).hexdigest()[:8]}-unfinished")  # all in one pass
    if not all(paths[layer].exists() for layer in layers) or unfinished.exists():
        with locked(path("s")):
            missing = [layer for layer in layers if not paths[layer].exists()]
            if missing:
                model.check_unedited("second moments")
                for layer, matrix in _measure(model, missing, corpus, tokens, unfinished, progress).items():
                    if not torch.isfinite(matrix).all():
                        raise ArithmeticError(
                            f"second moments of {model.name} at layer {layer}: keys of {str(corpus)!r} are not finite, "
                            "or overflow; check the model's weights, or load it in another dtype"
                        )
                    save_tensors(paths[layer], {"second_moment": matrix})
            unfinished.unlink(missing_ok=True)
            for written in (unfinished, *paths.values()):
                remove_leftovers(written)
    with ThreadPoolExecutor() as threads:  # most of the time of reading goes into hashing
        matrices = threads.map(lambda layer: load_tensors(paths[layer])[0]["second_moment"], layers)
        found = dict(zip(layers, matrices, strict=True))
    return {layer: SecondMoment(matrix, layer, str(corpus), tokens) for layer, matrix in found.items()}


def enough_tokens(d_mlp: int) -> int:
    """How many tokens to begin with, in whole thousands: ten for each dimension of a key, and at least 20,000."""
    return max(20_000, -(-TOKENS_A_DIMENSION * d_mlp // 1000) * 1000)


def check_text(model: Model, layers: Sequence[int], corpus: str | Path, tokens: int) -> None:
    """Check, before any long work, that a text is long enough for :func:`second_moments`. If all layers have been
    measured already, nothing is checked.

    Raises:
        ValueError: if it is not; the message says how many tokens it has, and whether they are enough.
    """
    check_whole("tokens", tokens, 1)
    path = _paths(model, corpus, tokens)
    if not all(path(layer).exists() for layer in model.check_layers(layers)):
        found = count_tokens(model, str(corpus), tokens)
        if found < tokens:
            raise ValueError(_too_short(corpus, found, tokens, model.weight(layers[0]).shape[1]))


def _too_short(corpus: str | Path, found: int, asked: int, d_mlp: int) -> str:
    wanted = TOKENS_A_DIMENSION * d_mlp
    each = f"{TOKENS_A_DIMENSION} for each of the {d_mlp} dimensions of a key"
    if found >= wanted:
        what = f"they are enough, at least {each}: --tokens {found}"
    elif found >= d_mlp:
        what = f"about {wanted} are needed, {each}: take a longer text"
    else:
        what = (
            f"MEMIT has no unique solution with less than one token for each dimension of a key; about {wanted} are "
            f"needed, {each}: take a longer text"
        )
    return f"corpus {str(corpus)!r} has {found} tokens; {asked} were asked for; {what}"


#: A matrix with fewer rows is decomposed again each time instead of being kept: that takes milliseconds.
SMALL = 1000
#: How far below 0 an eigenvalue of C may be, as a share of the largest one: C is kept in float32.
ROUNDING = 1e-4


def null_space(second_moment: Tensor, threshold: float) -> Tensor:
    """An orthonormal basis U of the null space of C, ``(d_mlp, r)`` float64: its eigenvectors with eigenvalues under
    ``threshold``. The projection P = U Uᵀ itself, d_mlp × d_mlp, is never formed.

    A large matrix is decomposed once, by a symmetric eigen-solver, and the basis is kept on disk under a hash of the
    matrix and the threshold.

    Raises:
        ArithmeticError: if the matrix is not a second moment: not finite, zero, or with a negative eigenvalue.
        ValueError: if the basis on disk is damaged.
    """
    if len(second_moment) < SMALL:
        return _null_space(second_moment, threshold)
    bytes_ = second_moment.detach().cpu().contiguous().view(torch.uint8).numpy().data
    digest = hashlib.sha256(bytes_).hexdigest()
    path = cache_dir("null-spaces") / f"{digest[:32]}-{second_moment.dtype}-{threshold!r}.safetensors"
    make_once(path, lambda: save_tensors(path, {"basis": _null_space(second_moment, threshold).cpu()}))
    return load_tensors(path)[0]["basis"].to(second_moment.device)


def _null_space(second_moment: Tensor, threshold: float) -> Tensor:
    if not torch.isfinite(second_moment).all():
        raise ArithmeticError("C is not finite: it has no null space")
    values, vectors = torch.linalg.eigh(second_moment.double())
    if values[-1] <= 0 or values[0] < -ROUNDING * values[-1]:
        raise ArithmeticError(
            f"C is not a second moment: its eigenvalues are from {values[0]:.3g} to {values[-1]:.3g}, and must have "
            "none below 0 and some above"
        )
    return vectors[:, values < threshold].contiguous()


def _paths(model: Model, corpus: str | Path, tokens: int) -> Callable[[int | str], Path]:
    """The path for a layer: one file per model as loaded, text and number of tokens. The text is read, because it
    counts by its content, not by its name."""
    text = f"{plain(Path(corpus).stem)[:60]}-{corpus_hash(str(corpus))[:12]}"
    return lambda layer: cache_dir("statistics") / f"{model.cache_key}-{text}-{tokens}-layer{layer}.safetensors"


@dataclass
class _Sums:
    """An unfinished measurement: Σ k kᵀ of each layer, (d_mlp, d_mlp) float64, over the first ``sequences`` sequences
    of the text, which have ``tokens`` tokens."""

    totals: dict[int, Tensor]
    sequences: int = 0
    tokens: int = 0

    def write(self, path: Path) -> None:
        counts = {"sequences": self.sequences, "tokens": self.tokens}
        save_tensors(path, {str(layer): total.cpu() for layer, total in self.totals.items()}, {"counts": counts})

    @classmethod
    def of(cls, model: Model, layers: Sequence[int], path: Path) -> _Sums:
        """The sums at ``path`` if they have these layers, otherwise new ones."""
        if path.exists():
            kept, about = load_tensors(path)
            counts = about["counts"]
            if set(map(str, layers)) <= set(kept):
                log.info("second moments: continuing after %d tokens", counts["tokens"])
                return cls({n: kept[str(n)].to(model.weight(n).device) for n in layers}, **counts)
        sizes = {layer: model.weight(layer) for layer in layers}
        return cls(
            {
                layer: torch.zeros(w.shape[1], w.shape[1], dtype=torch.float64, device=w.device)
                for layer, w in sizes.items()
            }
        )


@torch.no_grad()
def _measure(
    model: Model, layers: Sequence[int], corpus: str | Path, tokens: int, unfinished: Path, progress: bool | None
) -> dict[int, Tensor]:
    sums = _Sums.of(model, layers, unfinished)
    modules = {layer: model.value_projection(layer) for layer in layers}
    budget = TOKEN_BUDGET[model.device.type == "cuda"]
    text = islice(token_sequences(model, str(corpus)), sums.sequences, None)
    written = time.monotonic()
    with progress_bar(total=tokens, initial=sums.tokens, desc="second moments", unit="token", show=progress) as bar:
        while sums.tokens < tokens:
            if time.monotonic() - written > WRITE_EVERY:
                sums.write(unfinished)
                written = time.monotonic()
            sequences = _shard(text, tokens - sums.tokens)
            if not sequences:
                raise ValueError(_too_short(corpus, sums.tokens, tokens, len(next(iter(sums.totals.values())))))
            for batch in by_length([len(s) for s in sequences], budget):
                inputs = pad([sequences[i] for i in batch], model.tokenizer.pad_token_id, model.device)
                with trace(inputs=modules, stop=True) as keys:
                    model.hf_model.base_model(**inputs, use_cache=False)
                kept = inputs["attention_mask"].bool()
                for layer, total in sums.totals.items():
                    k = keys[layer][kept.to(keys[layer].device)].float()
                    total += k.T @ k
                bar.update(sum(len(sequences[i]) for i in batch))
            sums.sequences += len(sequences)
            sums.tokens += sum(map(len, sequences))
    return {layer: (total / sums.tokens).float().cpu() for layer, total in sums.totals.items()}


def _shard(text: Iterator[list[int]], left: int) -> list[list[int]]:
    """The next sequences of the text, :data:`SHARD` tokens or slightly more, but ``left`` at most: the last is cut."""
    chosen: list[list[int]] = []
    found = 0
    while found < min(SHARD, left) and (sequence := next(text, None)) is not None:
        chosen.append(sequence[: left - found])
        found += len(chosen[-1])
    return chosen
