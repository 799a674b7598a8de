"""Sequential batch editing: a list of edits, applied batch after batch to the same model."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data import Record
from ..data.provenance import records_hash
from ..io.checks import check_seed, check_whole
from ..io.timing import Timer, progress_bar
from ..io.writing import check_writable
from ..models.model import Model, check_finite
from ..models.prompts import encode_target, locate
from .checkpoints import Checkpoint
from .conflicts import Conflict, resolve
from .deltas import save_delta
from .method import BatchResult, Method, describe

log = logging.getLogger(__name__)


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
        conflicts: edits that get in each other's way.
        skipped: ids of records that were not edited because a later one of their batch tells the same fact.
    """

    model: Model
    editor: Method
    records: Sequence[Record]
    batch_size: int
    seconds: dict[str, float]
    batches: list[dict[str, float]]
    conflicts: list[Conflict]
    skipped: list[int | str]
    _originals: Mapping[int, Tensor] = field(repr=False)

    def revert(self) -> None:
        """Restore the weights from before the first batch, bit for bit. Calling it again changes nothing. Of several
        runs on one model, the last one is to be reverted first."""
        _restore(self.model, self._originals)

    def weight_change(self) -> dict[int, float]:
        """‖W − W₀‖ / ‖W₀‖ (Frobenius) of each edited layer."""
        changes = {}
        for layer, original in self._originals.items():
            change = self.model.weight(layer).float() - original.float()
            changes[layer] = (change.norm() / original.float().norm()).item()
        return changes

    def save(self, path: str | Path) -> Path:
        """Write the edited model as a checkpoint that ``transformers`` loads, see :meth:`.Model.save`."""
        return self.model.save(path)

    def save_delta(self, path: str | Path) -> Path:
        """Write only the changed matrices, for :func:`~bluelib.apply_delta` on the same model: this run's, and those of
        runs before it, if they were not reverted."""
        about = {
            "editor": describe(self.editor),
            "edits": sum(int(batch["edits"]) for batch in self.batches),
            "batch_size": self.batch_size,
            "records_hash": records_hash(self.records),
        }
        return save_delta(self.model, tuple(self._originals), path, about)


def check_sequence(
    records: Sequence[Record],
    editor: Method,
    *,
    batch_size: int,
    checkpoint_dir: str | Path | None = None,
    on_conflict: str = "last",
) -> tuple[int, list[Conflict], set[int]]:
    """What :func:`edit_sequence` asks of its arguments before it begins, for who does long work before calling it.

    Returns:
        How many edits are made together, and :func:`~bluelib.editing.conflicts.resolve`'s answer.

    Raises:
        ValueError: for no records, or a batch size below 1 or above the number of records; for an unknown
            ``on_conflict``, or conflicts that are to be refused.
        OSError: if ``checkpoint_dir`` cannot be written, or is a file.
    """
    if not records:
        raise ValueError("there are no records to edit")
    check_whole("batch_size", batch_size, 1, len(records), "the number of records")
    if checkpoint_dir is not None:
        if Path(checkpoint_dir).is_file():
            raise NotADirectoryError(f"{checkpoint_dir} is a file; the folder of a checkpoint is to be there")
        check_writable(checkpoint_dir)
    size = min(batch_size, editor.max_batch or batch_size)
    return size, *resolve(records, size, on_conflict)


def edit_sequence(
    model: Model,
    records: Sequence[Record],
    editor: Method,
    *,
    batch_size: int,
    seed: int = 0,
    checkpoint_dir: str | Path | None = None,
    on_conflict: str = "last",
    progress: bool | None = None,
    after_batch: Callable[[int, BatchResult], None] | None = None,
) -> Run:
    """Edit ``model`` in place with all records, in their order, ``batch_size`` at a time.

    Args:
        model: changed in place; :meth:`Run.revert` restores it. In a model of lower precision the edited matrices
            are kept in float32, see :meth:`.Model.edit_in_float32`.
        records: the edits.
        editor: the method, see :func:`~bluelib.get_editor`. One that makes fewer edits together than ``batch_size``
            (ROME makes one) gets that many at a time.
        batch_size: edits per batch.
        seed: seeds torch's random numbers for the run; the caller's generator is left alone.
        checkpoint_dir: where to write after each batch what continuing needs. A run that finds its checkpoint there
            continues from it and ends, on the same machine with as many threads, with the same weights bit for bit.
        on_conflict: what to do about edits that get in each other's way, see :mod:`bluelib.editing.conflicts`:
            ``last``, ``keep`` or ``refuse``.
        progress: show a progress bar (default: on a terminal).
        after_batch: called after each batch with its number and result.

    Raises:
        ValueError: for no records, or a batch size below 1 or above the number of records; for a seed that is not
            allowed; for a record that cannot be tokenised, or that with a context prefix is longer than the model's
            context; for a layer to edit that is not in memory; for a checkpoint of another run; for conflicts that are
            to be refused; for weights that are not finite.
        ArithmeticError: from the batch at hand (a target that diverges, a matrix that cannot be factored, an update
            that overflows); the message names the batch's records, and the model is left as it was before that batch.
        OSError: if a checkpoint cannot be written; the model is left as before the batch, as the last checkpoint is.
        BlockingIOError: if another run is at work in ``checkpoint_dir``.
    """
    check_seed(seed)
    size, conflicts, skipped = check_sequence(
        records, editor, batch_size=batch_size, checkpoint_dir=checkpoint_dir, on_conflict=on_conflict
    )
    if conflicts:
        log.warning(
            "%d of %d edits conflict with an earlier one; %d are skipped", len(conflicts), len(records), len(skipped)
        )
    model.check_editable(editor.layers)
    _check_requests(model, records, editor)
    if checkpoint_dir is not None:
        model.check_unedited("checkpoints")
    check_finite(model.name, model.hf_model)
    model.edit_in_float32(editor.layers)
    timer = Timer()
    with timer("prepare"):
        state = editor.prepare(model)
    originals = _snapshot(model, editor.layers)
    groups = [
        [i for i in range(first, min(first + size, len(records))) if i not in skipped]
        for first in range(0, len(records), size)
    ]
    groups = [group for group in groups if group]

    checkpoint, done = None, None
    with ExitStack() as stack:
        # Ctrl-C on the way out of a no_grad block leaves gradients off, for whatever is run next in this process.
        stack.callback(torch.set_grad_enabled, torch.is_grad_enabled())
        if checkpoint_dir is not None:
            identity = {
                **_identity(model, records, editor, state),
                "batch_size": batch_size,
                "seed": seed,
                "on_conflict": on_conflict,
            }
            checkpoint = Checkpoint(checkpoint_dir, identity)
            stack.enter_context(checkpoint.held())
            done = checkpoint.load()
        batches = list(done.batches) if done else []
        made = sum(map(len, groups[: len(batches)]))
        stack.enter_context(torch.random.fork_rng())
        total = sum(map(len, groups))
        bar = stack.enter_context(progress_bar(total=total, initial=made, desc=editor.name, unit="edit", show=progress))
        torch.manual_seed(seed)
        if done:
            editor.choose(state, done.chosen)
            for keys in done.keys:
                editor.remember(state, {layer: k.to(model.weight(layer).device) for layer, k in keys.items()})
            _restore(model, done.weights)
            torch.set_rng_state(done.random_state)
            for phase, seconds in done.seconds.items():
                timer.seconds[phase] += seconds
        for group in groups[len(batches) :]:
            last = len(batches) + 1 == len(groups)
            before = _snapshot(model, editor.layers)
            try:
                result = editor.edit(model, [records[i].request for i in group], state, timer)
                _check_sizes("the update", result.updates)
                if last:
                    with timer("finish"):
                        editor.finish(model, originals)
                else:
                    with timer("remember"):
                        editor.remember(state, result.keys)
                weights = {layer: model.weight(layer) for layer in editor.layers}
                _check_sizes("the edited weight", weights)
                batches.append({"edits": len(group), "steps": round(result.steps, 3), "loss": round(result.loss, 5)})
                if checkpoint:
                    checkpoint.save(
                        weights, torch.get_rng_state(), result.keys, batches, timer.rounded(), editor.chosen(state)
                    )
            except (ArithmeticError, torch.linalg.LinAlgError) as error:
                _restore(model, before)
                kind = type(error) if isinstance(error, ArithmeticError) else ArithmeticError
                raise kind(f"{_batch_name(records, group)}: {error}") from error
            except BaseException:
                _restore(model, before)
                raise
            if after_batch:
                after_batch(len(batches) - 1, result)
            bar.update(len(group))
    ids = [records[i].case_id for i in sorted(skipped)]
    return Run(model, editor, list(records), batch_size, timer.rounded(), batches, conflicts, ids, originals)


def _check_sizes(what: str, matrices: Mapping[int, Tensor]) -> None:
    """Refuse what is not finite, or too large to be squared in float32: no norm of it is."""
    for layer, matrix in matrices.items():
        least, most = matrix.aminmax()
        largest = torch.maximum(-least, most).item()
        if not largest < math.sqrt(torch.finfo(torch.float32).max):  # nor is NaN
            raise FloatingPointError(f"{what} of layer {layer} overflows: its largest entry is {largest}")


def _batch_name(records: Sequence[Record], group: Sequence[int]) -> str:
    ids = [str(records[i].case_id) for i in group]
    more = f" and {len(ids) - 10} more" if len(ids) > 10 else ""
    return f"{'record' if len(ids) == 1 else 'records'} {', '.join(ids[:10])}{more}"


def _check_requests(model: Model, records: Sequence[Record], editor: Method) -> None:
    """Tokenise all edits behind the longest prefix, so that one that cannot be made is found before any is made.

    Raises:
        ValueError: naming the record.
    """
    prefix = max(editor.prefixes(model), key=len)
    for record in records:
        try:
            place = locate(model.tokenizer, record.prompt, record.subject, prefix)
            tokens = len(place.ids) + len(encode_target(model.tokenizer, record.target_new)) - 1
            model.check_length(tokens, "context prefix, prompt and target_new")
        except ValueError as error:
            raise ValueError(f"record {record.case_id}: {error}") from error


def _identity(model: Model, records: Sequence[Record], editor: Method, state: Any) -> dict[str, Any]:
    """What a continued run must have in common with the one that wrote its checkpoint."""
    return {
        "model": model.name,
        "model_revision": model.revision,
        "model_key": model.cache_key,
        "dtype": str(model.hf_model.dtype),
        "device": model.device.type,
        "editor": describe(editor),
        "inputs": editor.inputs(model, state),
        "records_hash": records_hash(records),
    }


@contextmanager
def preserved(model: Model, layers: Sequence[int]) -> Iterator[None]:
    """Whatever happens inside the block, the weights of ``layers`` are afterwards what they were before."""
    originals = _snapshot(model, layers)
    try:
        yield
    finally:
        _restore(model, originals)


@contextmanager
def edited(model: Model, records: Sequence[Record], editor: Method, *, batch_size: int, seed: int = 0) -> Iterator[Run]:
    """The model with these edits inside the block, and afterwards, whatever happens, as it was before."""
    with preserved(model, editor.layers):
        yield edit_sequence(model, records, editor, batch_size=batch_size, seed=seed, progress=False)


def _snapshot(model: Model, layers: Sequence[int]) -> dict[int, Tensor]:
    return {layer: model.weight(layer).clone() for layer in layers}


def _restore(model: Model, weights: Mapping[int, Tensor]) -> None:
    for layer, weight in weights.items():
        model.weight(layer).copy_(weight)
