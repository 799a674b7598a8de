"""General capability while edits add up."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd

from ..data import Record
from ..editing.method import Method
from ..editing.sequence import check_together, edit_sequence
from ..io.checks import check_whole
from ..metrics.capability import Tasks, capability
from ..metrics.intervals import intervals_by, stratified_interval
from ..models.model import Model


def capability_along_sequence(
    model: Model,
    records: Sequence[Record],
    editors: Sequence[Method],
    tasks: Tasks,
    *,
    every: int,
    batch_size: int,
    limit: int | None = None,
    progress: bool | None = None,
) -> pd.DataFrame:
    """Edit with each editor in turn; evaluate the tasks before, after each ``every`` batches, and after the last.

    The model is left as it was. PRUNE damps its update after the last batch only, so before that its scores are those
    of the undamped one.

    Args:
        tasks: see :func:`~bluelib.metrics.capability.load_tasks`.
        every: batches between two evaluations.
        limit: items per task; by default all.

    Returns:
        The items of :class:`~bluelib.metrics.capability.Capability` with their ``editor`` and number of ``edits``.
        The unedited model's items are included for every editor, with 0 edits. ``names_edit`` marks the items whose
        prompt contains the subject of one of ``records``: there the edit may be meant to change the answer.

    Raises:
        ValueError: if ``every`` is below 1, or an editor cannot make batches of ``batch_size``.
    """
    check_whole("every", every, 1)
    for editor in editors:
        check_together(editor, batch_size)
    start = capability(model, tasks, limit=limit).items
    subjects = {record.subject for record in records}
    start["names_edit"] = [any(subject in prompt for subject in subjects) for prompt in start.prompt]
    batches = math.ceil(len(records) / batch_size)
    frames = []
    for editor in editors:
        frames.append(start.assign(editor=editor.name, edits=0))

        def evaluate_now(number: int, result: object, name: str = editor.name) -> None:
            if (number + 1) % every == 0 or number + 1 == batches:
                found = capability(model, tasks, limit=limit).items.assign(names_edit=start.names_edit)
                frames.append(found.assign(editor=name, edits=min(len(records), (number + 1) * batch_size)))

        with model.preserved(editor.layers):
            edit_sequence(model, records, editor, batch_size=batch_size, progress=progress, after_batch=evaluate_now)
    return pd.concat(frames, ignore_index=True).drop(columns="prompt")


#: The name of the mean over tasks, in the column of tasks.
MEAN = "mean of the tasks"


def _by_task(items: pd.DataFrame, value: str) -> pd.DataFrame:
    """The mean of ``value`` over each task's items, then the mean over tasks, with intervals over items."""
    mean = stratified_interval([group[value] for _, group in items.groupby("task", sort=False)])
    total = pd.DataFrame([{"task": MEAN, **mean._asdict(), "n": len(items)}])
    return pd.concat([intervals_by(items, ["task"], value), total], ignore_index=True)


def capability_scores(along: pd.DataFrame) -> pd.DataFrame:
    """From :func:`capability_along_sequence`: the accuracy per editor, number of edits and task, and the mean over
    tasks, with its interval over items. Columns: editor, edits, task, mean, low, high, n."""
    groups = along.groupby(["editor", "edits"], sort=False)
    frames = [_by_task(group, "accuracy").assign(editor=editor, edits=edits) for (editor, edits), group in groups]
    return pd.concat(frames, ignore_index=True)


def capability_difference(along: pd.DataFrame, one: tuple[str, int], other: tuple[str, int]) -> pd.DataFrame:
    """How many points more ``one`` has than ``other`` on the same items; each is an editor's name and number of edits.

    Per task and in the mean over tasks, with intervals over items. Columns: task, mean, low, high, n.

    Raises:
        ValueError: if one of the two was not evaluated.
    """
    wide = along.pivot(index=["task", "item"], columns=["editor", "edits"], values="accuracy")
    missing = [key for key in (one, other) if key not in wide.columns]
    if missing:
        raise ValueError(f"not evaluated: {missing}; known: {list(wide.columns)}")
    difference = (wide[one] - wide[other]).rename("difference").reset_index()
    return _by_task(difference, "difference")
