"""Tables of results: our numbers at their scale, the published ones below them with their source, and how each BLUE
variant compares with its plain method."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..editing.catalogue import UNEDITED, entry, in_table, methods
from ..io.formats import read_json
from ..io.paths import plain
from ..io.writing import atomic_file
from ..metrics.editing import METRICS, TEACHER_FORCED
from ..models.known import label_of_model
from ..runs.cell import SCHEMA
from ..runs.grid import USUAL, Grid
from .comparison import (
    all_gains,
    families,
    improvement,
    paired_table,
    published_gains,
    published_improvement,
    record_scores,
)
from .plots import keep, plot_forest, plot_improvement, plot_main, plot_pareto, plot_ways
from .published import PUBLISHED_IMPROVEMENT, benchmark, counterpart, has_published, published_score

NOT_AVAILABLE = "n/a"
NOT_MEASURED = "–"
#: How far the most changed of the edited matrices has moved, relative to its own norm before editing.
CHANGE = "‖ΔW‖/‖W‖"
KEYS = ["model", "dataset", "edits", "batch_size", "seed", "method", "metric"]
#: Digits after the decimal point of percentages, and of fluency and consistency, as in published tables.
DIGITS = 2


def load_cells(grid: Grid, *, partial: bool = False) -> list[dict[str, Any]]:
    """The numbers of all of a grid's cells, or, with ``partial``, of those that have been run so far.

    Raises:
        FileNotFoundError: if cells have not been run (the message names them); with ``partial``, only if none has.
        ValueError: if a cell has another schema, the models are of several scales, or the cells of a table were not
            made from the same weights or records.
    """
    paths = [grid.result(cell) for cell in grid.cells()]
    missing = [path.name for path in paths if not path.exists()]
    if partial:
        paths = [path for path in paths if path.exists()]
    if missing and not (partial and paths):
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise FileNotFoundError(f"{grid.results} lacks {', '.join(missing[:3])}{more}: run the grid first")
    cells = [read_json(path) for path in paths]
    for path, cell in zip(paths, cells, strict=True):
        if cell.get("schema") != SCHEMA:
            raise ValueError(
                f"{path} is of schema {cell.get('schema')}, not {SCHEMA}: delete it and run the grid again"
            )
    scales = {cell["provenance"]["scale"] for cell in cells}
    if len(scales) > 1:
        raise ValueError(
            f"a table shows one scale, not {' and '.join(sorted(scales))}: {grid.name} has models of both; give each "
            "scale a grid of its own"
        )
    made_from: dict[tuple[Any, ...], tuple[str, Path]] = {}
    for path, cell in zip(paths, cells, strict=True):
        for what, of in (("model_revision", ("model",)), ("records_hash", ("dataset", "seed"))):
            found = cell["provenance"][what]
            first, there = made_from.setdefault((what, *(cell[key] for key in of)), (found, path))
            if found != first:
                raise ValueError(
                    f"{path} was made with {what} {found}, {there} with {first}: delete what is out of "
                    "date and run the grid again"
                )
    return cells


_COLUMNS = [
    "scale",
    "model",
    "dataset",
    "method",
    "metric",
    "mean",
    "standard_error",
    "records",
    "edits",
    "batch_size",
    "seed",
    "weight_change",
]


def results_frame(cells: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Cells (see :func:`bluelib.runs.cell.run_cell`) as one row per (model, dataset, seed, method, metric).

    The scores before editing have the method ``pre-edited``, and every row has its scale. Published scores are in
    columns of their own, and are missing where none was found.

    Raises:
        ValueError: if two cells claim the same place.
    """
    rows = []
    for cell in cells:
        editor = cell["editor"]["name"]
        for method, scores in ((UNEDITED, cell["before"]), (editor, cell["after"])):
            for metric, score in scores.items():
                rows.append(
                    {
                        "scale": cell["provenance"]["scale"],
                        "model": cell["model"],
                        "dataset": cell["dataset"],
                        "method": entry(method).label,
                        "metric": metric,
                        "mean": score["mean"],
                        "standard_error": score["standard_error"],
                        "records": score["n"],
                        "edits": cell["edits"],
                        "batch_size": cell["batch_size"],
                        "seed": cell["seed"],
                        "weight_change": None if method == UNEDITED else max(cell["weight_change"].values()),
                    }
                )
    frame = pd.DataFrame(rows, columns=_COLUMNS)  # it has columns even if nothing could be measured
    before = frame.method == UNEDITED
    frame = frame[~(before & frame.duplicated(KEYS))].reset_index(drop=True)
    if frame.duplicated(KEYS).any():
        twice = frame[frame.duplicated(KEYS)].iloc[0][KEYS].to_dict()
        raise ValueError(f"two cells claim the same place in the table: {twice}")
    return with_published(frame)


def with_published(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with the scores published for each row's counterpart: by the paper, and by a replication."""
    found = [
        {
            "published_model": counterpart(row.model),
            **_published(row, "published"),
            **_published(row, "replication"),
        }
        for row in frame.itertuples()
    ]
    return pd.concat([frame, pd.DataFrame(found, index=frame.index)], axis=1)


def _published(row: Any, kind: str) -> dict[str, Any]:
    place = counterpart(row.model), benchmark(row.dataset), row.method, row.metric
    value, sd, source = published_score(*place, kind=kind) or (None, None, NOT_AVAILABLE)
    return {kind: value, f"{kind}_sd": sd, f"{kind}_source": source}


def main_frame(cells: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """One row per (model, dataset, method, metric): the mean over the records of all seeds with its standard error, the
    rank among the edited models (1 is best; None before editing), the largest ‖ΔW‖/‖W‖ of any layer and seed, and the
    published scores.

    Seeds count as independent samples of the records (they share few), so the standard error of the mean over S seeds
    is √(Σ SE²) / S.
    """
    frame = results_frame(cells)
    fixed = [*KEYS[:4], "method", "metric"]
    pooled = (
        frame.groupby(fixed, sort=False)
        .agg(
            scale=("scale", "first"),
            mean=("mean", "mean"),
            standard_error=("standard_error", _pooled_error),
            records=("records", "sum"),
            seeds=("seed", "nunique"),
            weight_change=("weight_change", "max"),
        )
        .reset_index()
    )
    edited = pooled.method != UNEDITED
    ranks = pooled[edited].groupby(["model", "dataset", "metric"])["mean"].rank(ascending=False, method="min")
    pooled["rank"] = ranks.astype("Int64")
    return with_published(pooled)


def _pooled_error(errors: pd.Series) -> float:
    """The standard error of a mean over seeds; NaN if that of one is not known, as with a single record."""
    return float(np.sqrt((errors.astype(float) ** 2).sum(skipna=False)) / len(errors))


def main_table(frame: pd.DataFrame, write: Callable[[str, list[list[str]], list[str]], str]) -> list[str]:
    """The blocks of the main table of one dataset, one for each model; ``write`` takes (title, rows, header)."""
    metrics = [metric for metric in METRICS if metric in set(frame.metric)]
    blocks = []
    for model, group in frame.groupby("model", sort=False):
        measured = group.set_index(["method", "metric"])
        rows = []
        for method in in_table(dict.fromkeys([*(row.label for row in methods().values()), *group.method])):
            place = counterpart(model), benchmark(group.dataset.iloc[0]), method
            theirs = {
                kind: [published_score(*place, metric, kind=kind) for metric in metrics]
                for kind in ("published", "replication")
            }
            if method not in set(group.method) and not any(theirs["published"]):
                continue
            ours = [measured.loc[(method, m)] if (method, m) in measured.index else None for m in metrics]
            changes = group.weight_change[group.method == method].dropna()
            change = _change(changes.iloc[0]) if len(changes) else NOT_MEASURED
            rows.append([method, *(_ours(row) for row in ours), change])
            if has_published(model):
                rows.append(["↳ published", *map(_theirs, theirs["published"]), NOT_AVAILABLE])
            if any(theirs["replication"]):
                rows.append(["↳ replicated", *map(_theirs, theirs["replication"]), NOT_AVAILABLE])
        first = group.iloc[0]
        title = (
            f"{label_of_model(model)} ({first.scale} scale): {first.edits} edits in batches of {first.batch_size}, "
            f"{first.seeds} {'seed' if first.seeds == 1 else 'seeds'}"
        )
        if has_published(model):
            title += f". Published: {counterpart(model)} (paper scale), 2,000 edits in batches of 100"
        blocks.append(write(title, rows, ["method", *metrics, CHANGE]))
    return blocks


def further_table(frame: pd.DataFrame) -> list[str]:
    """The metrics of one dataset beyond the paper's, as Markdown: a block for each model, with a row per metric."""
    blocks = []
    for model, group in frame[~frame.metric.isin(METRICS)].groupby("model", sort=False):
        measured = group.set_index(["metric", "method"])
        methods_there = in_table(group.method.unique())
        rows = [
            [metric, *(_small(measured, metric, method) for method in methods_there)]
            for metric in dict.fromkeys(group.metric)
        ]
        first = group.iloc[0]
        title = f"{label_of_model(model)} ({first.scale} scale): {first.edits} edits in batches of {first.batch_size}"
        blocks.append(markdown_table(title, rows, ["metric", *methods_there]))
    return blocks


def _small(measured: pd.DataFrame, metric: str, method: str) -> str:
    if (metric, method) not in measured.index:
        return NOT_MEASURED
    row = measured.loc[(metric, method)]
    return f"{row['mean']:.3g} ± {_error(row.standard_error, '.2g')} ({row.records})"


_MARKS = {1: "**", 2: "__"}


def _ours(row: pd.Series | None) -> str:
    if row is None:
        return NOT_MEASURED
    return _marked(f"{row['mean']:.{DIGITS}f} ± {_error(row.standard_error, f'.{DIGITS}f')}", row["rank"])


def _error(error: float, form: str) -> str:
    return "–" if np.isnan(error) else f"{error:{form}}"


def _marked(text: str, rank: Any) -> str:
    mark = "" if pd.isna(rank) else _MARKS.get(int(rank), "")
    return f"{mark}{text}{mark}"


def _theirs(score: tuple[float, float | None, str] | None) -> str:
    if score is None:
        return NOT_AVAILABLE
    value, sd, _ = score
    return f"{value:.{DIGITS}f}" + ("" if sd is None else f" ± {sd:.{DIGITS}f}")


def markdown_table(title: str, rows: list[list[str]], header: list[str]) -> str:
    """A table in Markdown: the best number is bold, the second best underlined, and published ones are in italics."""
    lines = [f"**{title}**", ""] if title else []
    lines += ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    for row in rows:
        quoted = row[0].startswith("↳")
        cells = [f"*{cell}*" if quoted else cell for cell in row]
        cells = [f"<u>{cell[2:-2]}</u>" if cell.startswith("__") else cell for cell in cells]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def latex_table(title: str, rows: list[list[str]], header: list[str]) -> str:
    """The same table as a LaTeX ``tabular`` with rules of ``booktabs``."""
    lines = [rf"\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}", r"\toprule"]
    if title:
        lines += [rf"\multicolumn{{{len(header)}}}{{l}}{{{_latex(title)}}} \\", r"\midrule"]
    lines += [" & ".join(map(_latex, header)) + r" \\", r"\midrule"]
    for row in rows:
        cells = list(map(_latex, row))
        if row[0].startswith("↳"):
            cells = [rf"\textit{{{cell}}}" for cell in cells]
            cells[0] = r"\quad " + cells[0].replace("↳ ", "")
        lines.append(" & ".join(cells) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"])


def _latex(text: str) -> str:
    for mark, command in (("**", "textbf"), ("__", "underline")):
        if text.startswith(mark) and text.endswith(mark):
            return rf"\{command}{{{_latex(text[2:-2])}}}"
    for plain_, escaped in (
        ("_", r"\_"),
        ("%", r"\%"),
        ("±", r"$\pm$"),
        ("–", "--"),
        ("−", "$-$"),
        ("→", r"$\to$"),
        ("‖", r"$\|$"),
        ("Δ", r"$\Delta$"),
    ):
        text = text.replace(plain_, escaped)
    return text


def notes(cells: Sequence[dict[str, Any]], frame: pd.DataFrame) -> str:
    """The text below a main table: how to read it, the sources, and where our own numbers come from."""
    datasets = {benchmark(dataset) for dataset in frame.dataset}
    sources = sorted(
        {
            source
            for kind in ("published", "replication")
            for source in frame[f"{kind}_source"]
            if source != NOT_AVAILABLE
        }
    )
    lines = [
        "Evaluated on the edited records after the last batch: mean ± standard error over records. Bold: the best of "
        "the edited models, underlined: the second best; a method that changes nothing keeps all specificity. "
        "*In italics: numbers of the paper scale, to compare the pattern and not the size*; ± there is as published. "
        f"{NOT_AVAILABLE}: not found in any public source. {NOT_MEASURED}: not implemented here, or not in this grid.",
        "",
        _regime(frame),
        "",
        *([f"Sources of the published numbers ({', '.join(sorted(datasets))}):"] if sources else []),
        *(f"- {source}" for source in sources),
        *([""] if sources else []),
        provenance_note(cells),
    ]
    return "\n".join(lines)


def _regime(frame: pd.DataFrame) -> str:
    """What the column of weight changes shows, and whether it is in the range these methods were made for."""
    changes = frame.drop_duplicates(["model", "method"]).weight_change.dropna()
    found = (
        f"{CHANGE}: of the most changed layer; here {_change(changes.min())} to {_change(changes.max())}, "
        f"half of them above {_change(changes.median())}."
    )
    if set(frame.scale) != {"pocket"}:
        return found
    return (
        f"{found} **Where it is far above 1, a pocket model is outside the regime in which these methods were made**: "
        "that of matrices which move by a part of their own norm, or little more. What a real model says counts more."
    )


def _change(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.2f}"


def provenance_note(cells: Sequence[dict[str, Any]]) -> str:
    """Where our own numbers in a table come from, as Markdown."""
    of_all = [cell["provenance"] for cell in cells]

    def each(values: Iterable[str]) -> str:
        return ", ".join(f"`{value}`" for value in dict.fromkeys(values))

    made: dict[str, list[str]] = {}
    for cell, of in zip(cells, of_all, strict=True):
        versions = ", ".join(f"{name} {number}" for name, number in of["versions"].items())
        how = f"{of['dtype']} on {of['device']}, {of.get('threads', '?')} CPU thread(s); {versions}"
        made.setdefault(how, []).append(entry(cell["editor"]["name"]).label)
    ways = [how + (f" ({', '.join(dict.fromkeys(labels))})" if len(made) > 1 else "") for how, labels in made.items()]
    lines = [
        f"Our numbers: {'; or '.join(ways)}; commit {each(str(p['git_commit']) for p in of_all)}.",
        "",
        *(
            f"- weights of {cell['model']}: `{cell['provenance']['model_revision']}`"
            for cell in {cell["model"]: cell for cell in cells}.values()
        ),
        *(
            f"- records of {dataset}, seed {seed}: `{hash_}`"
            for dataset, seed, hash_ in dict.fromkeys(
                (cell["dataset"], cell["seed"], cell["provenance"]["records_hash"]) for cell in cells
            )
        ),
        *(
            f"- {model}: {settings}"
            for model, settings in dict.fromkeys((cell["model"], _settings(cell["editor"])) for cell in cells)
        ),
    ]
    return "\n".join(lines)


def _settings(values: dict[str, Any]) -> str:
    """An editor's settings on one line: parts with a name by their name, others by their kind and settings."""
    shown = {key: value for key, value in values.items() if key not in ("name", "kind") and value is not None}
    inner = ", ".join(f"{key} {_setting(value)}" for key, value in shown.items())
    return f"{values.get('name') or values['kind']}: {inner}" if inner else values["kind"]


def _setting(value: Any) -> str:
    if not isinstance(value, dict):
        return str(value)
    return value["name"] if "name" in value else f"({_settings(value)})"


def short_table(frame: pd.DataFrame) -> str:
    """The main table of one dataset for a reader in a hurry: methods × (model, metric), means only, as Markdown."""
    models = list(dict.fromkeys(frame.model))
    metrics = [metric for metric in TEACHER_FORCED if metric in set(frame.metric)]
    measured = frame.set_index(["model", "method", "metric"])
    rows = []
    for method in in_table(frame.method.unique()):
        places = [(model, method, metric) for model in models for metric in metrics]
        cells = [measured.loc[place] if place in measured.index else None for place in places]
        marked = [NOT_MEASURED if row is None else _marked(f"{row['mean']:.1f}", row["rank"]) for row in cells]
        rows.append([method, *marked])
    header = ["", *(f"{model} {metric[:4]}." for model in models for metric in metrics)]
    return markdown_table("", rows, header)


def write_tables(grid: Grid, *, partial: bool = False) -> list[Path]:
    """Write the tables and pictures of a grid into its folder of ``figures``, from its cells' numbers alone.

    The same numbers give the same bytes.

    Args:
        grid: the grid; its cells are in its folder of ``results``.
        partial: whether cells may be missing; the tables then say how many are, and show the methods that have all
            seeds.

    Returns:
        The paths of the files.

    Raises:
        FileNotFoundError: if cells have not been run; with ``partial``, if no method has all seeds yet.
    """
    cells = load_cells(grid, partial=partial)
    if partial:  # means over fewer seeds compare with nothing
        cells = complete(cells, ("model", "dataset"), len(grid.seeds))
        if not cells:
            raise FileNotFoundError(f"{grid.results}: no method has been run with all {len(grid.seeds)} seeds yet")
    main = main_frame(cells)
    scores = record_scores(cells)
    missing = len(grid.cells()) - len(cells)
    for dataset in dict.fromkeys(cell["dataset"] for cell in cells):
        frame, own = main[main.dataset == dataset], [cell for cell in cells if cell["dataset"] == dataset]
        stem = grid.figures / f"main_{plain(Path(dataset).stem)}"
        below = notes(own, frame)
        if missing:
            unlike = " or lack another seed" if len(grid.seeds) > 1 else ""
            below = f"**{missing} of the grid's {len(grid.cells())} cells have not been run yet{unlike}.**\n\n{below}"
        _write(stem.with_suffix(".md"), "\n\n".join([*main_table(frame, markdown_table), below]))
        commented = "\n".join(f"% {line}".rstrip() for line in below.splitlines())
        _write(stem.with_suffix(".tex"), "\n\n".join([*main_table(frame, latex_table), commented]))
        _write(stem.with_suffix(".csv"), frame.to_csv(index=False, lineterminator="\n", float_format="%.6g"))
        keep(plot_main(frame), stem)
        if grid.metrics != USUAL["metrics"]:
            stem = grid.figures / f"further_{plain(Path(dataset).stem)}"
            note = "Mean ± standard error over records (how many); what each metric is: docs/metrics.md."
            _write(stem.with_suffix(".md"), "\n\n".join([*further_table(frame), note, provenance_note(own)]))
            others = frame[~frame.metric.isin(METRICS)]
            _write(stem.with_suffix(".csv"), others.to_csv(index=False, lineterminator="\n", float_format="%.6g"))
            keep(plot_ways(frame), stem)
    compared = {"paired": paired_table, "improvement": improvement} if families(scores) else {}
    for name, (frame, rows, header, below) in ((name, make(scores)) for name, make in compared.items()):
        stem = grid.figures / name
        below += "\n\n" + provenance_note(cells)
        commented = "\n".join(f"% {line}".rstrip() for line in below.splitlines())
        _write(stem.with_suffix(".md"), markdown_table("", rows, header) + "\n\n" + below)
        _write(stem.with_suffix(".tex"), latex_table("", rows, header) + "\n\n" + commented)
        _write(stem.with_suffix(".csv"), frame.to_csv(index=False, lineterminator="\n", float_format="%.6g"))
    keep(plot_pareto(main), grid.figures / "pareto")
    if compared:
        keep(plot_forest(all_gains(scores), published_gains(scores)), grid.figures / "forest")
        average, pairs = improvement(scores)[0], published_improvement()[0]
        keep(plot_improvement(average, pairs, PUBLISHED_IMPROVEMENT), grid.figures / "improvement")
    return [path for path in grid.tables() if path.exists()]


def complete(cells: Sequence[dict[str, Any]], within: Sequence[str], number: int) -> list[dict[str, Any]]:
    """The cells of methods that have ``number`` cells in the place that the keys ``within`` name."""
    places = [(*(cell[key] for key in within), cell["editor"]["name"]) for cell in cells]
    made = Counter(places)
    return [cell for cell, place in zip(cells, places, strict=True) if made[place] == number]


def _write(path: Path, text: str) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text(text.rstrip("\n") + "\n", encoding="utf-8")
