"""The tables of ``docs/open-questions.md``: what this project measured about questions that the paper leaves open."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from ..editing.catalogue import entry, label
from ..io.paths import project_path
from ..metrics.editing import TEACHER_FORCED
from ..metrics.intervals import Interval, interval, less, share_interval
from ..models.choices import CHOICES
from ..models.known import label_of_model, short_label
from ..studies.follow import followed
from ..studies.single import PROTOCOLS, singles
from .claims.wording import points
from .comparison import RecordScores, by_benchmark, gains
from .figures.follow import with_editing
from .published import benchmark
from .summary import in_words
from .tables import markdown_table

NOTHING = "*Not measured yet.*"


def history(scores: Sequence[RecordScores]) -> str:
    """What earlier keys add without and with BLUE, and what BLUE adds without and with earlier keys, as Markdown.

    Both are in points of editing and of specificity.

    Args:
        scores: of each grid, see :func:`~bluelib.reports.comparison.record_scores`.
    """
    plain, blue, kept, both = map(label, ("memit", "memit_blue", "memit_history", "memit_history_blue"))
    pairs = [(plain, kept), (blue, both), (plain, blue), (kept, both)]
    rows = []
    for part in [part for of_grid in scores for part in by_benchmark(of_grid)]:
        frame = gains(part, pairs)
        of_datasets = ", ".join(dict.fromkeys(benchmark(dataset) for _, dataset in part))
        for (model, method, other), group in frame.groupby(["model", "method", "other"], sort=False):
            found = group.set_index("measure")
            cells = [points(found.loc[name]) for name in ("editing", "specificity") if name in found.index]
            rows.append([short_label(model), of_datasets, f"{other} − {method}", *cells])
    header = ["model", "records", "difference", "editing", "specificity"]
    note = "Points, paired over records, with 95 % intervals; the datasets of one row have equal weight."
    return f"{markdown_table('', rows, header)}\n\n{note}" if rows else NOTHING


def one_option(option: str, edits: int, batch_size: int) -> str:
    """Runs of one size that differ in one option, a row for each editor and value, as Markdown."""
    frame = _runs(edits, batch_size)
    chosen = (
        frame[[len(options) == 1 and options[0][0] == option for options in frame.options]] if len(frame) else frame
    )
    rows = [
        [label_of_model(row.model), row.dataset, f"{dict(row.options)[option]:g}", label(row.editor), *_scores(row)]
        for row in sorted(
            chosen.itertuples(), key=lambda row: (row.model, row.dataset, -dict(row.options)[option], _order(row))
        )
    ]
    header = ["model", "dataset", f"`{option}`", "method", *_HEADER]
    return f"{markdown_table('', rows, header)}\n\n{_NOTE}" if rows else NOTHING


def choices_measured(edits: int, batch_size: int) -> str:
    """For each of :data:`~bluelib.models.choices.CHOICES`, the scores with the text's value minus those with the
    code's, paired over records, as Markdown."""
    frame = _runs(edits, batch_size)
    rows = []
    for row in frame.itertuples():
        if len(row.options) != 1 or row.options[0][0] not in CHOICES:
            continue
        same = frame[(frame.model == row.model) & (frame.dataset == row.dataset) & (frame.editor == row.editor)]
        own = same[[not options for options in same.options]]
        if own.empty:
            continue
        differences = [
            points(interval(less(getattr(row, name), own[name].iloc[0]), clusters=row.subjects)._asdict())
            for name in TEACHER_FORCED
        ]
        name, value = row.options[0]
        rows.append([f"`{name}={value}`", label_of_model(row.model), row.dataset, label(row.editor), *differences])
    header = ["text's value", "model", "dataset", "method", *TEACHER_FORCED]
    note = f"Points, with the text's value minus with the code's, paired over {edits} records, with 95 % intervals."
    return f"{markdown_table('', rows, header)}\n\n{note}" if rows else NOTHING


_HEADER = (*TEACHER_FORCED, "moved elsewhere", "‖ΔW‖/‖W‖")
_NOTE = (
    "Per cent, with 95 % intervals over records. Moved elsewhere: mean D_KL(before ‖ after) in nats of the next token "
    "after prompts about subjects that nobody edited. ‖ΔW‖/‖W‖: of the most changed layer."
)


def _runs(edits: int, batch_size: int) -> pd.DataFrame:
    """The ends of the followed runs of one size."""
    frame = followed()
    if frame.empty:
        return frame
    return with_editing(frame[(frame.edits == edits) & (frame.batch_size == batch_size) & (frame.length == edits)])


def _order(row: Any) -> float:
    return entry(row.editor).order


def _scores(row: Any) -> list[str]:
    found = [_interval(getattr(row, name), row.subjects) for name in TEACHER_FORCED]
    elsewhere = "–" if row.elsewhere is None else f"{row.elsewhere:.3f}"
    return [
        *(f"{one.mean:.1f} [{one.low:.1f}, {one.high:.1f}]" for one in found),
        elsewhere,
        f"{row.weight_change:.2f}",
    ]


def what_follows() -> str:
    """For each run of ``blue single`` and each protocol, whether edits succeed and what follows from them, as Markdown:
    the shares over all edits that are asked, whether they succeed or not."""
    frame = singles(sorted(project_path("results", "single").glob("*.json")))
    frame = frame if frame.empty else frame[frame.seed == 0]
    if frame.empty:
        return NOTHING
    starts = "executed_"
    groups = dict.fromkeys(name.removeprefix(starts) for each in frame.scores for name in each if starts in name)
    rows = [
        [
            label_of_model(row.model),
            f"{row.dataset}, {row.edits}",
            label(row.editor) + (f" ({in_words(dict(row.options))})" if row.options else ""),
            PROTOCOLS[row.protocol],
            *(_share(row, name) for name in ("argmax_efficacy", "edited", *(f"all_{group}" for group in groups))),
        ]
        for row in sorted(frame.itertuples(), key=lambda row: (row.model, row.dataset, row.edits, _order(row)))
    ]
    header = ["model", "dataset, edits", "method", "edited", "first choice", "named", *map("`{}`".format, groups)]
    note = (
        "Per cent, with 95 % intervals over records, and the number of records that have such a consequence with its "
        "conditions answered right before editing. First choice and named: the new object, after the edit's own prompt."
    )
    return f"{markdown_table('', rows, header)}\n\n{note}"


def _share(row: Any, name: str) -> str:
    values = row.scores.get(name, [None])
    n = sum(value is not None for value in values)
    if not n:
        return "– (0)"
    found = _interval(values, row.subjects)
    low, high = max(found.low, 0.0), min(found.high, 100.0)  # Student's t can leave the scale
    return f"{found.mean:.0f} [{low:.0f}, {high:.0f}] ({n})"


def _interval(values: Sequence[float | None], subjects: Sequence[int]) -> Interval:
    """The mean of shares in per cent over records with its interval: Wilson's where all records agree."""
    found = interval(values, clusters=subjects)
    if found.low < found.high or found.mean not in (0, 100):
        return found
    there = {subject for subject, value in zip(subjects, values, strict=True) if value is not None}
    return share_interval(found.mean, len(there))
