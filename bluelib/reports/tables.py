"""Tables of results: ours at its scale, the published figure beside it with its source."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ..files import atomic_file
from ..metrics.editing import METRICS
from .published import METHOD, benchmark, counterpart, published_score

NOT_AVAILABLE = "n/a"
NOT_MEASURED = "–"
KEYS = ["model", "dataset", "edits", "batch_size", "seed", "method", "metric"]


def results_frame(cells: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Cells (see :func:`bluelib.experiment.run_cell`) as one row per (model, dataset, method, metric).

    The scores before editing are the method ``pre-edited``; every row says which scale it has. A published figure
    stands in a column of its own, and is missing where none was found.
    """
    rows = []
    for cell in cells:
        editor = cell["editor"]["name"]
        for method, scores in (("pre-edited", cell["before"]), (editor, cell["after"])):
            for metric, score in scores.items():
                found = published_score(
                    counterpart(cell["model"]), benchmark(cell["dataset"]),
                    METHOD.get(method, method), metric,
                )  # fmt: skip
                rows.append(
                    {
                        "scale": cell["provenance"]["scale"],
                        "model": cell["model"],
                        "dataset": cell["dataset"],
                        "method": METHOD.get(method, method),
                        "metric": metric,
                        "mean": score["mean"],
                        "standard_error": score["standard_error"],
                        "records": score["n"],
                        "edits": cell["edits"],
                        "batch_size": cell["batch_size"],
                        "seed": cell["seed"],
                        "published_model": counterpart(cell["model"]),
                        "published": found[0] if found else None,
                        "published_source": found[1] if found else NOT_AVAILABLE,
                    }
                )
    frame = pd.DataFrame(rows)
    before = frame.method == METHOD["pre-edited"]
    frame = frame[~(before & frame.duplicated(KEYS))].reset_index(drop=True)
    if frame.duplicated(KEYS).any():
        twice = frame[frame.duplicated(KEYS)].iloc[0][KEYS].to_dict()
        raise ValueError(f"two cells claim the same place in the table: {twice}")
    return frame


def markdown(frame: pd.DataFrame) -> str:
    """The frame as a Markdown table per (model, dataset): methods × metrics, ``ours ± standard error (published)``."""
    parts = []
    for (model, dataset, *_), group in frame.groupby(KEYS[:5], sort=False):
        metrics = [metric for metric in METRICS if metric in set(group.metric)]
        first = group.iloc[0]
        lines = [
            f"**{model}, {dataset}** — {first.scale} scale, {first.edits} edits in batches of {first.batch_size}, "
            f"evaluated after the last batch on the {first.records} edited records: mean ± standard error over "
            "records. "
            f"*In italics: the paper scale ({first.published_model}, {benchmark(dataset)}, 2,000 edits in "
            "batches of 100), as published; not comparable in size, only in pattern.*",
            "",
            "| method | " + " | ".join(metrics) + " |",
            "|---" * (len(metrics) + 1) + "|",
        ]
        for method, rows in group.groupby("method", sort=False):
            cells = {row.metric: _cell(row) for row in rows.itertuples()}
            lines.append(f"| {method} | " + " | ".join(cells.get(metric, NOT_MEASURED) for metric in metrics) + " |")
        parts.append("\n".join(lines))
    sources = sorted({source for source in frame.published_source if source != NOT_AVAILABLE})
    notes = ["Sources of the published figures:", *(f"- {source}" for source in sources),
             f"- {NOT_AVAILABLE}: not found in any public source."]  # fmt: skip
    return "\n\n".join(parts) + "\n\n" + "\n".join(notes) + "\n"


def _cell(row: Any) -> str:
    published = NOT_AVAILABLE if pd.isna(row.published) else f"{row.published:.2f}"
    return f"{row.mean:.2f} ± {row.standard_error:.2f} (*{published}*)"


def provenance_note(cells: Sequence[dict[str, Any]]) -> str:
    """Where a table's own figures come from, as Markdown."""
    first = cells[0]["provenance"]
    versions = ", ".join(f"{name} {number}" for name, number in first["versions"].items())
    settings = "\n".join(f"- {_settings(cell['editor'])}" for cell in cells)
    return (
        f"\nOur figures: {first['dtype']} on {first['device']}, seed {cells[0]['seed']}; "
        f"weights `{first['model_revision']}`, records `{first['records_hash']}`; {versions}; "
        f"commit `{first['git_commit']}`.\n\n{settings}\n"
    )


def _settings(values: dict[str, Any]) -> str:
    """An editor's settings on one line: parts with a name by their name, others by their kind and settings."""
    shown = {key: value for key, value in values.items() if key not in ("name", "kind") and value is not None}
    inner = ", ".join(f"{key} {_setting(value)}" for key, value in shown.items())
    return f"{values.get('name') or values['kind']}: {inner}" if inner else values["kind"]


def _setting(value: Any) -> str:
    if not isinstance(value, dict):
        return str(value)
    return value["name"] if "name" in value else f"({_settings(value)})"


def write_table(cells: Sequence[dict[str, Any]], stem: Path) -> pd.DataFrame:
    """Write ``stem.csv`` and ``stem.md``, and return the frame."""
    frame = results_frame(cells)
    with atomic_file(stem.with_suffix(".csv")) as temporary:
        frame.to_csv(temporary, index=False, lineterminator="\n")
    with atomic_file(stem.with_suffix(".md")) as temporary:
        temporary.write_text(markdown(frame) + provenance_note(cells), encoding="utf-8")
    return frame
