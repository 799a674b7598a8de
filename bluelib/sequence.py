"""Sequential batch editing: a list of edits, applied batch after batch to the same model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor
from tqdm.auto import tqdm

from .data import Record
from .editors import BatchResult, Editor
from .models import Model
from .timing import Timer


@dataclass
class Run:
    """A sequence of edits that has been made.

    Attributes:
        model: the edited model.
        editor: what edited it.
        records: the edits, in the order they were made.
        batch_size: edits per batch; the last batch may be smaller.
        seconds: wall-clock time by phase.
        batches: per batch, the number of edits, the mean number of optimisation steps and the mean last loss.
    """

    model: Model
    editor: Editor
    records: Sequence[Record]
    batch_size: int
    seconds: dict[str, float]
    batches: list[dict[str, float]]
    _originals: dict[int, Tensor] = field(repr=False)

    def revert(self) -> None:
        """Restore the weights from before the first batch, bit for bit. Calling it again changes nothing."""
        _restore(self.model, self._originals)

    def weight_change(self) -> dict[int, float]:
        """‖W − W₀‖ / ‖W₀‖ (Frobenius) of each edited layer."""
        changes = {}
        for layer, original in self._originals.items():
            change = self.model.weight(layer).float() - original.float()
            changes[layer] = (change.norm() / original.float().norm()).item()
        return changes


def edit_sequence(
    model: Model,
    records: Sequence[Record],
    editor: Editor,
    *,
    batch_size: int,
    seed: int = 0,
    progress: bool | None = None,
    after_batch: Callable[[int, BatchResult], None] | None = None,
) -> Run:
    """Edit ``model`` in place with all records, in their order, ``batch_size`` at a time.

    Args:
        model: changed in place; :meth:`Run.revert` restores it.
        records: the edits.
        editor: the method, see :func:`~bluelib.get_editor`.
        batch_size: edits per batch.
        seed: seeds torch's random numbers for the run; the caller's generator is left alone.
        progress: show a progress bar (default: on a terminal).
        after_batch: called after each batch with its number and result.

    Raises:
        ValueError: for no records, or a batch size below 1 or above the number of records.
        TargetError, SolverError: from the batch at hand; the model is left as it was before that batch.
    """
    if not records:
        raise ValueError("there are no records to edit")
    if not 1 <= batch_size <= len(records):
        raise ValueError(f"batch_size must be between 1 and the number of records, {len(records)}; it is {batch_size}")
    timer = Timer()
    with timer("prepare"):
        state = editor.prepare(model)
    originals = _snapshot(model, editor.layers)
    batches: list[dict[str, float]] = []
    with (
        torch.random.fork_rng(),
        tqdm(
            total=len(records), desc=editor.name, unit="edit", disable=None if progress is None else not progress
        ) as bar,
    ):
        torch.manual_seed(seed)
        for first in range(0, len(records), batch_size):
            requests = [record.request for record in records[first : first + batch_size]]
            before = _snapshot(model, editor.layers)
            try:
                result = editor.edit(model, requests, state, timer)
            except BaseException:
                _restore(model, before)
                raise
            batches.append(_summary(result, len(requests)))
            if after_batch:
                after_batch(len(batches) - 1, result)
            bar.update(len(requests))
    return Run(model, editor, list(records), batch_size, timer.rounded(), batches, originals)


@contextmanager
def preserved(model: Model, layers: Sequence[int]) -> Iterator[None]:
    """Whatever happens inside the block, the weights of ``layers`` are afterwards what they were before."""
    originals = _snapshot(model, layers)
    try:
        yield
    finally:
        _restore(model, originals)


def _summary(result: BatchResult, edits: int) -> dict[str, float]:
    steps = torch.stack([t.steps.float().mean() for t in result.targets.values()]).sum().item()
    loss = torch.stack([t.loss.mean() for t in result.targets.values()]).mean().item()
    return {"edits": edits, "steps": round(steps, 3), "loss": round(loss, 5)}


def _snapshot(model: Model, layers: Sequence[int]) -> dict[int, Tensor]:
    return {layer: model.weight(layer).clone() for layer in layers}


def _restore(model: Model, weights: dict[int, Tensor]) -> None:
    for layer, weight in weights.items():
        model.weight(layer).copy_(weight)
