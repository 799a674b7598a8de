"""Sequential batch editing: a list of edits, applied batch after batch to the same model."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data import Record
from ..data.chat import in_chat
from ..data.provenance import records_hash
from ..io.checks import check_whole
from ..io.tensors import file_hash
from ..io.timing import Timer, progress_bar
from ..io.writing import check_writable
from ..models.model import Model, Snapshot, check_finite
from ..models.prompts import encode_answer, encode_prompt, locate
from .checkpoints import Checkpoint, held
from .conflicts import Conflict, resolve
from .deltas import Delta, put, read_delta, save_delta
from .method import BatchResult, Method, describe

log = logging.getLogger(__name__)


@dataclass(repr=False)
class Run:
    """A sequence of edits that has been made.

    Attributes:
        model: the edited model.
        editor: the method that edited it.
        records: the edits, in the order they were made.
        batch_size: edits per batch; the last batch may be smaller.
        seconds: wall-clock time by phase.
        batches: per batch, the number of edits, the mean number of optimisation steps and the mean last loss.
        conflicts: edits that conflict with each other.
        skipped: ids of records that were not edited because a later one of their batch states the same fact.
        inputs: what the outcome depends on besides the settings, the model and the records.
    """

    model: Model
    editor: Method
    records: Sequence[Record]
    batch_size: int
    seconds: dict[str, float]
    batches: list[dict[str, float]]
    conflicts: list[Conflict]
    skipped: list[int | str]
    inputs: dict[str, Any]
    _originals: Snapshot
    _keys: list[Mapping[int, Tensor]]
    _reverted: bool = False

    def __repr__(self) -> str:
        layers = ", ".join(map(str, self._originals.weights))
        return f"<Run: {self._made} edits of {self.model.name} with {self.editor.name}, layers {layers}>"

    @property
    def _made(self) -> int:
        """How many edits were made: those that conflict may have been skipped."""
        return sum(int(batch["edits"]) for batch in self.batches)

    def revert(self) -> None:
        """Restore the weights from before the first batch, bit for bit and in their type. Calling it again changes
        nothing. Of several runs on one model, revert the last one first."""
        self.model.restore(self._originals)
        self._reverted = True

    def weight_change(self) -> dict[int, float]:
        """‖W − W₀‖ / ‖W₀‖ (Frobenius) of each edited layer."""
        return self.model.weight_change(self._originals.weights)

    def save(self, path: str | Path) -> Path:
        """Write the edited model as a checkpoint that ``transformers`` loads, see :meth:`.Model.save`.

        Raises:
            ValueError: if the run was reverted.
        """
        self._check_there()
        return self.model.save(path)

    def save_delta(self, path: str | Path) -> Path:
        """Write only the changed matrices, for :func:`~bluelib.apply_delta` on the same model: those of this run, and
        of runs before it that were not reverted. The file also has the keys that a method with a history needs to
        continue from it (``edit_sequence(…, start=PATH)``).

        Raises:
            ValueError: if the run was reverted.
        """
        self._check_there()
        about = {
            "editor": describe(self.editor),
            "edits": self._made,
            "batch_size": self.batch_size,
            "records_hash": records_hash(self.records),
        }
        return save_delta(self.model, tuple(self._originals.weights), path, about, self._keys)

    def _check_there(self) -> None:
        if self._reverted:
            raise ValueError("this run was reverted, so the model has no edit to save: save before revert()")


def check_sequence(
    records: Sequence[Record],
    editor: Method,
    *,
    batch_size: int,
    checkpoint_dir: str | Path | None = None,
    on_conflict: str = "last",
) -> tuple[int, list[Conflict], set[int]]:
    """Check the arguments of :func:`edit_sequence` as it does itself, for callers that do long work before calling it.

    Returns:
        How many edits are made together, and what :func:`~bluelib.editing.conflicts.resolve` returns.

    Raises:
        ValueError: if there are no records, the batch size is below 1 or above the number of records, ``on_conflict``
            is unknown, or conflicts are to be refused and there are some.
        OSError: if ``checkpoint_dir`` cannot be written, or is a file.
    """
    if not isinstance(editor, Method):
        raise ValueError(f"an editor is needed, as get_editor returns it, not {editor!r}")
    if not records:
        raise ValueError("there are no records to edit")
    check_whole("batch_size", batch_size, 1, len(records), "the number of records")
    if checkpoint_dir is not None:
        if Path(checkpoint_dir).is_file():
            raise NotADirectoryError(f"{checkpoint_dir} is a file; name a folder for the checkpoint")
        check_writable(checkpoint_dir)
    size = min(batch_size, editor.max_batch or batch_size)
    return size, *resolve(records, size, on_conflict)


def check_together(editor: Method, batch_size: int) -> None:
    """Make sure that an editor makes a whole batch of edits together, where its size is what is studied. (In
    :func:`edit_sequence` an editor with a ``max_batch`` makes smaller ones.)

    Raises:
        ValueError: if it does not.
    """
    if batch_size > (editor.max_batch or batch_size):
        raise ValueError(
            f"{editor.name} makes at most {editor.max_batch} edits together, but the batch size is {batch_size}"
        )


def edit_sequence(
    model: Model,
    records: Sequence[Record],
    editor: Method,
    *,
    batch_size: int,
    checkpoint_dir: str | Path | None = None,
    on_conflict: str = "last",
    chat: bool = False,
    start: str | Path | None = None,
    prepared: Any = None,
    progress: bool | None = None,
    after_batch: Callable[[int, BatchResult], None] | None = None,
    on_resume: Callable[[int], None] | None = None,
) -> Run:
    """Edit ``model`` in place with all records, in their order, ``batch_size`` at a time.

    Args:
        model: changed in place; :meth:`Run.revert` restores it. In a model of lower precision the edited matrices
            are kept in float32, see :meth:`.Model.edit_in_float32`.
        records: the edits.
        editor: the method, see :func:`~bluelib.get_editor`. One that makes fewer edits together than ``batch_size``
            (ROME makes one) gets that many at a time.
        batch_size: edits per batch.
        checkpoint_dir: the folder for a checkpoint, which is written after each batch. A run that finds its checkpoint
            there continues from it. On the same machine, with the same number of threads, it ends with the same weights
            bit for bit.
        on_conflict: what to do about edits that conflict with each other, see :mod:`bluelib.editing.conflicts`:
            ``last``, ``keep`` or ``refuse``.
        chat: edit in the tokenizer's chat template, see :func:`~bluelib.data.chat.in_chat`; the run's records are then
            those in the template.
        start: continue from an earlier run on the same model, given as a file that :meth:`Run.save_delta` wrote. The
            model must be as loaded. Second moments and prefixes are those of the unedited model, as in one long run,
            and a method with a history remembers the earlier run's keys. :meth:`Run.revert` reverts both runs.
        prepared: what the editor's ``prepare`` returned for this model, to make many short runs without preparing each.
            A method with a history advances it after each batch but the last.
        progress: show a progress bar (default: on a terminal).
        after_batch: called after each batch with its number and result.
        on_resume: called if a checkpoint is continued, with the number of the last batch in it, when the model is as it
            was after that batch.

    Raises:
        ValueError: if there are no records, or the batch size is below 1 or above their number; if there is no template
            for ``chat``; if a record cannot be tokenised or, with a context prefix, is longer than the model's context;
            if a layer to edit is not in memory; if the checkpoint is another run's; if conflicts are to be refused and
            there are some; if weights are not finite; if ``start`` belongs to other weights, lacks keys that the editor
            needs, or is for an editor that acts once, at the end.
        ArithmeticError: if a batch fails (a target diverges, a matrix cannot be factored, an update overflows). The
            message names the batch's records, and the model is left as it was before that batch.
        OSError: if a checkpoint cannot be written; the model is left as it was before the batch, as in the last
            checkpoint.
        BlockingIOError: if another run is at work in ``checkpoint_dir``.
    """
    size, conflicts, skipped = check_sequence(
        records, editor, batch_size=batch_size, checkpoint_dir=checkpoint_dir, on_conflict=on_conflict
    )
    if conflicts:
        second = {conflict.second for conflict in conflicts}
        log.warning(
            "%d of %d edits conflict with an earlier one; %d are skipped", len(second), len(records), len(skipped)
        )
    records = in_chat(model, records) if chat else records
    _check_model(model, editor, checkpointed=checkpoint_dir is not None)
    check_requests(model, records, editor)
    groups = _groups(len(records), size, skipped)
    before = None if start is None else check_start(model, editor, start)
    touched = sorted({*editor.layers, *(before.weights if before else ())})
    timer = Timer()
    with _gradients_as_before(), held(checkpoint_dir) if checkpoint_dir else nullcontext():
        with model.restored_on_error(touched) as originals:
            model.edit_in_float32(editor.layers)
            with timer("prepare"):
                state = editor.prepare(model) if prepared is None else prepared
            inputs = editor.inputs(model, state)
            keys: list[Mapping[int, Tensor]] = []
            all_are_here = not (editor.remembers and model.changed_layers())  # no keys of an earlier run are missing
            if before and start:
                put(model, before)
                inputs |= {"start": file_hash(start)}
                if editor.remembers:  # a run whose editor does not would pass on the keys of a part of its edits
                    keys.append({layer: before.keys[layer] for layer in editor.layers})
                    editor.remember(state, _near(model, keys[-1]))
            checkpoint = None
            if checkpoint_dir:
                how = {"batch_size": batch_size, "on_conflict": on_conflict}
                checkpoint = Checkpoint(checkpoint_dir, _identity(model, records, editor, inputs, **how))
            batches = _resume(model, editor, state, checkpoint, timer, keys)
            if batches and on_resume:
                on_resume(len(batches) - 1)
        made, total = sum(map(len, groups[: len(batches)])), sum(map(len, groups))
        with progress_bar(total=total, initial=made, desc=editor.name, unit="edit", show=progress) as bar:
            for group in groups[len(batches) :]:
                chosen = [records[i] for i in group]
                last = len(batches) + 1 == len(groups)
                with model.restored_on_error(editor.layers), _named(chosen):
                    result, weights = _edit_batch(model, editor, chosen, state, timer, originals if last else None)
                    batches.append(_row(result, len(group)))
                    if result.keys and all_are_here:
                        keys.append({layer: k.cpu() for layer, k in result.keys.items()})
                    if checkpoint:
                        checkpoint.save(weights, result.keys, batches, timer.rounded())
                if after_batch:
                    after_batch(len(batches) - 1, result)
                bar.update(len(group))
    ids = [records[i].case_id for i in sorted(skipped)]
    seconds = timer.rounded()
    return Run(model, editor, list(records), batch_size, seconds, batches, conflicts, ids, inputs, originals, keys)


def check_start(model: Model, editor: Method, path: str | Path) -> Delta:
    """The earlier run that ``editor`` is to continue from, see ``start`` of :func:`edit_sequence`.

    Raises:
        ValueError: if it cannot continue from that run.
    """
    if editor.acts_once:
        raise ValueError(f"{editor.name} acts once, on all edits together, and cannot go on from {path}")
    delta = read_delta(model, path)
    missing = sorted({*editor.layers} - delta.keys.keys()) if editor.remembers else []
    if missing:
        name = delta.about.get("editor", {}).get("name", "another editor")
        raise ValueError(
            f"{editor.name} remembers earlier keys, and {path} has none of layers {missing}: it was made by {name}. "
            f"Go on with that editor, or make the earlier edits with {editor.name}"
        )
    return delta


def _near(model: Model, keys: Mapping[int, Tensor]) -> dict[int, Tensor]:
    return {layer: k.to(model.weight(layer).device) for layer, k in keys.items()}


def _check_model(model: Model, editor: Method, *, checkpointed: bool) -> None:
    """Refuse a model that cannot be edited, or whose edits could not be continued.

    Raises:
        ValueError: if it has to be refused; the message says why.
    """
    model.check_editable(editor.layers)
    if checkpointed:
        model.check_unedited("checkpoints")
    check_finite(model.name, model.hf_model)


def _groups(records: int, size: int, skipped: set[int]) -> list[list[int]]:
    """The positions of each batch's records; the last record of a batch is never skipped."""
    starts = range(0, records, size)
    return [[i for i in range(at, min(at + size, records)) if i not in skipped] for at in starts]


@contextmanager
def _gradients_as_before() -> Iterator[None]:
    """Restore the gradient mode: Ctrl-C on the way out of a no_grad block leaves gradients off for what is run next."""
    enabled = torch.is_grad_enabled()
    try:
        yield
    finally:
        torch.set_grad_enabled(enabled)


def _resume(
    model: Model,
    editor: Method,
    state: Any,
    checkpoint: Checkpoint | None,
    timer: Timer,
    remembered: list[Mapping[int, Tensor]],
) -> list[dict[str, float]]:
    """Bring model, state, timer and the remembered keys to where the checkpoint stands; returns the batches made."""
    done = checkpoint.load() if checkpoint else None
    if done is None:
        return []
    for keys in filter(None, done.keys):
        remembered.append(keys)
        editor.remember(state, _near(model, keys))
    model.restore(Snapshot(done.weights, frozenset(done.weights)))
    for phase, seconds in done.seconds.items():
        timer.seconds[phase] += seconds
    return list(done.batches)


@contextmanager
def _named(records: Sequence[Record]) -> Iterator[None]:
    """Say which records' batch a computation failed in."""
    try:
        yield
    except (ArithmeticError, torch.linalg.LinAlgError) as error:
        kind = type(error) if isinstance(error, ArithmeticError) else ArithmeticError
        raise kind(f"{_batch_name(records)}: {error}") from error


def _edit_batch(
    model: Model, editor: Method, records: Sequence[Record], state: Any, timer: Timer, originals: Snapshot | None
) -> tuple[BatchResult, dict[int, Tensor]]:
    """Edit one batch, and advance the state past it, or, given ``originals``, finish: it is the last one.

    Returns:
        What the batch did, and the weights after it by layer.

    Raises:
        ArithmeticError: from the editor, or for an update or a weight that overflows.
    """
    result = editor.edit(model, [record.request for record in records], state, timer)
    _check_sizes("the update", result.updates)
    if originals is None:
        with timer("remember"):
            editor.remember(state, result.keys)
    else:
        with timer("finish"):
            editor.finish(model, originals.weights)
    weights = {layer: model.weight(layer) for layer in editor.layers}
    _check_sizes("the edited weight", weights)
    return result, weights


def _row(result: BatchResult, edits: int) -> dict[str, float]:
    return {"edits": edits, "steps": round(result.steps, 3), "loss": round(result.loss, 5)}


def _check_sizes(what: str, matrices: Mapping[int, Tensor]) -> None:
    """Refuse matrices that are not finite, or too large to be squared in float32: their norm would not be finite."""
    for layer, matrix in matrices.items():
        least, most = matrix.aminmax()
        largest = torch.maximum(-least, most).item()
        if not largest < math.sqrt(torch.finfo(torch.float32).max):  # nor is NaN
            raise FloatingPointError(f"{what} of layer {layer} overflows: its largest entry is {largest}")


def _batch_name(records: Sequence[Record]) -> str:
    ids = [str(record.case_id) for record in records]
    more = f" and {len(ids) - 10} more" if len(ids) > 10 else ""
    return f"{'record' if len(ids) == 1 else 'records'} {', '.join(ids[:10])}{more}"


def check_requests(model: Model, records: Sequence[Record], editor: Method) -> int:
    """Tokenise all edits after the longest prefix, so that an edit that cannot be made is found before any is made.

    Returns:
        The length of the longest sequence that editing runs, in tokens: context prefix, prompt and target.

    Raises:
        ValueError: if an edit cannot be made; the message names the record.
    """
    prefix = longest_prefix(model, editor)
    return max(check_request(model, record, prefix) for record in records)


def longest_prefix(model: Model, editor: Method) -> str:
    """The longest of the texts that are put before a prompt while it is edited, in tokens."""
    return max(editor.prefixes(model), key=lambda prefix: len(encode_prompt(model.tokenizer, prefix + "It")))


def check_request(model: Model, record: Record, prefix: str) -> int:
    """Tokenise an edit after a prefix.

    Returns:
        The number of tokens that editing runs.

    Raises:
        ValueError: if it cannot be made; the message names the record.
    """
    try:
        request = record.request
        place = locate(model.tokenizer, request.prompt, request.subject, prefix, request.before)
        answer = encode_answer(model.tokenizer, request.text, request.target, request.separator)
        tokens = len(place.ids) + len(answer) - 1
        model.check_length(tokens, "context prefix, prompt and target_new")
    except ValueError as error:
        raise ValueError(f"record {record.case_id}: {error}") from error
    return tokens


def _identity(
    model: Model, records: Sequence[Record], editor: Method, inputs: dict[str, Any], **how: Any
) -> dict[str, Any]:
    """What a continued run must have in common with the one that wrote its checkpoint."""
    return {
        "model": model.name,
        "model_revision": model.revision,
        "model_key": model.cache_key,
        "dtype": str(model.hf_model.dtype),
        "device": model.device.type,
        "editor": describe(editor),
        "inputs": inputs,
        "records_hash": records_hash(records),
        **how,
    }


@contextmanager
def edited(model: Model, records: Sequence[Record], editor: Method, *, batch_size: int) -> Iterator[Run]:
    """Edit the model inside the block, and restore it afterwards, whatever happens."""
    with model.preserved(editor.layers):
        run = edit_sequence(model, records, editor, batch_size=batch_size, progress=False)
        try:
            yield run
        finally:
            run._reverted = True  # by `preserved`
