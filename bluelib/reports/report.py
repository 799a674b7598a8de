"""The report: every claim of the paper with a verdict for each model, what was seen, and where."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path

import pandas as pd

from ..editing.catalogue import APPENDIX, label, label_pairs, labelled
from ..io.formats import read_json, write_json
from ..io.paths import plain, project_path
from ..io.writing import atomic_file
from ..metrics.definitions import DEFINITIONS, VARYING
from ..models.choices import CHOICES
from ..models.known import label_of_model
from ..runs.grid import COMMITTED_GRID, Grid
from ..studies import STUDIES, Study, study_of
from . import open_questions, summary
from .claims import LEGEND, MARKS, SOURCES, Claim, Verdict, claims_of, verdicts
from .claims.main import AVERAGE, CLAIMS, average_improvement, of_main_table
from .comparison import (
    RecordScores,
    by_benchmark,
    champions,
    families,
    family_gains,
    gains,
    improvement,
    later_pairs,
    paired,
    record_scores,
    there,
    variant_pairs,
)
from .figures.residuals import overlay
from .plots import keep
from .tables import NOT_AVAILABLE, NOT_MEASURED, complete, load_cells, main_frame, markdown_table, short_table

MAIN = "06_main_table"


@dataclass(frozen=True)
class Finding:
    """A claim and what came of it.

    Attributes:
        notebook: the notebook that examines the claim.
        claim: the claim, with its bar, its source and what was published.
        verdicts: the verdict for each model.
        size: for each model, the size of the runs that the claim is about, in words.
    """

    notebook: str
    claim: Claim
    verdicts: Mapping[str, Verdict]
    size: Mapping[str, str]


def claims(*grids: Grid, partial: bool = False) -> list[Finding]:
    """The claims in the order of the notebooks, over the models of these grids in their order.

    Claims of the analyses come from the analyses' numbers, claims of the main table from the grids' cells. A grid that
    does not run an analysis takes it from the committed grid, if that one has all of its models.

    Raises:
        FileNotFoundError: if numbers are missing; the message names them. With ``partial``, cells of a grid and numbers
            of its analyses may be missing.
    """
    notebooks = sorted([*(study.notebook for study in STUDIES.values()), MAIN])
    return [one for notebook in notebooks for one in _of_notebook(notebook, grids, partial)]


def _of_notebook(notebook: str, grids: Sequence[Grid], partial: bool) -> list[Finding]:
    found: dict[str, Finding] = {}
    for grid in grids:
        for one in _of_cells(grid, partial) if notebook == MAIN else _of_study(grid, study_of(notebook), partial):
            other = found.get(one.claim.text)
            found[one.claim.text] = one if other is None else _together(other, one)
    return list(found.values())


def _together(one: Finding, other: Finding) -> Finding:
    """One finding with the models of both findings."""
    return replace(one, verdicts={**one.verdicts, **other.verdicts}, size={**one.size, **other.size})


def _findings(
    notebook: str, known: Iterable[Claim], by_model: Mapping[str, Sequence[Verdict]], size: str
) -> list[Finding]:
    """A finding for each claim, with its verdicts by model; claims that no model's numbers are about are left out."""
    found = []
    for claim in known:
        verdicts = {
            model: verdict for model, all_ in by_model.items() for verdict in all_ if verdict.claim == claim.text
        }
        if verdicts:
            sizes = {model: verdict.size or size for model, verdict in verdicts.items()}
            found.append(Finding(notebook, claim, verdicts, sizes))
    return found


def _of_study(grid: Grid, study: Study, partial: bool = False) -> list[Finding]:
    notebook = study.notebook
    source = grid.source_of(study)
    if source is None or (partial and not all(source.numbers(notebook, model).exists() for model in grid.models)):
        return []
    parameters = source.notebooks[notebook]
    by_model = {}
    for model in grid.models:
        path = source.numbers(notebook, model)
        content = read_json(path)
        if not content["parameters"].items() >= dict(parameters).items():
            raise ValueError(
                f"{path} was made with the parameters {content['parameters']}, but the grid has {parameters}: delete "
                "it and run the grid again"
            )
        by_model[model] = verdicts(study.name, content)
        size = f"{content['parameters']['edits']} edits"
    return _findings(notebook, claims_of(study.name), by_model, size)


def _of_cells(grid: Grid, partial: bool = False) -> list[Finding]:
    cells = load_cells(grid, partial=partial)
    whole = len(cells) == len(grid.cells())
    if not whole:
        cells = complete(cells, ("dataset",), len(grid.models) * len(grid.seeds))
    if not cells:
        return []
    scores = record_scores(cells)
    compared, best = contrasts(scores), champions(scores)
    if not whole:
        best = best.iloc[:0]  # who is best can't be said before all have run
    by_model = {
        model: of_main_table(
            {name: frame[frame.model == model] for name, frame in compared.items()}, best[best.model == model]
        )
        for model in grid.models
    }
    if any(families(part) for part in by_benchmark(scores)):
        average = average_improvement(improvement(scores)[0].iloc[-1])
        by_model = {model: [*verdicts, average] for model, verdicts in by_model.items()}
    seeds = "1 seed" if len(grid.seeds) == 1 else f"{len(grid.seeds)} seeds"
    size = f"{grid.edits} edits in batches of {grid.batch_size}, {seeds}"
    if not whole:
        size += f"; so far of {_so_far(scores)}"
    return _findings(MAIN, (*CLAIMS, AVERAGE), by_model, size)


def _so_far(scores: RecordScores) -> str:
    """The methods that claims on an unfinished grid are about: MEMIT, AlphaEdit; on CounterFact also RECT."""
    everywhere, words = families(scores), []
    for place, frame in scores.items():
        if more := [method for method in families({place: frame}) if method not in everywhere]:
            words.append(f"on {summary.called(place[1])} also {', '.join(more)}")
    return "; ".join([", ".join(everywhere), *dict.fromkeys(words)])


def contrasts(scores: RecordScores) -> dict[str, pd.DataFrame]:
    """The gains of one kind of method over another that the claims of the main table look at, see
    :class:`~bluelib.reports.claims.main.View`: of the methods that a part of :func:`.by_benchmark` has."""
    parts = by_benchmark(scores)
    found: defaultdict[str, list[pd.DataFrame]] = defaultdict(list)
    for part in parts:
        labels, papers = there(part), families(part)
        plain = variant_pairs(labels, "", "blue")
        pairs = {
            "blue": [pair for pair in plain if pair[0] in papers],
            "pmet": [pair for pair in plain if labelled(pair[0]).reported == APPENDIX],
            "fe": variant_pairs(labels, "", "fe"),
            "fe over blue": variant_pairs(labels, "blue", "fe"),
            "cake": later_pairs(labels, "CAKE"),
        }
        for name, chosen in pairs.items():
            frame = gains(part, chosen)
            if len(parts) > 1:
                (_, dataset), *_ = part
                frame = frame.assign(**{of: f"{summary.called(dataset)}: " + frame[of] for of in ("method", "other")})
            found[name].append(frame)
    return {name: pd.concat(frames, ignore_index=True) for name, frames in found.items()}


def verdict_table(found: Sequence[Finding], models: Sequence[str], folder: Path) -> str:
    """The verdicts as Markdown tables with links relative to ``folder``: one table for each source of claims, with a
    row per claim and a column per model. The bar stands beside each claim, and what was published at the end."""
    blocks = []
    for source, words in SOURCES.items():
        of_source = [one for one in found if one.claim.source == source]
        if not of_source:
            continue
        header = ["claim", "bar", *map(label_of_model, models), "published", "where"]
        lines = [f"**{words}**", "", f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
        for one in of_source:
            signs = [one.verdicts[model].mark if model in one.verdicts else NOT_MEASURED for model in models]
            place = f"[{one.notebook[:2]}]({_link(project_path('notebooks', f'{one.notebook}.ipynb'), folder)})"
            row = [one.claim.text, one.claim.bar, *signs, one.claim.published or NOT_AVAILABLE, place]
            lines.append(f"| {' | '.join(row)} |")
        blocks.append("\n".join(lines))
    return "\n\n".join([*blocks, LEGEND])


#: The grids of the committed results: the real model's first.
COMMITTED = ("small", "pocket")


def committed() -> list[Grid]:
    """The grids of :data:`COMMITTED` that have results."""
    files = [project_path("results", name, "grid.json") for name in COMMITTED]
    return [Grid.load(path) for path in files if path.exists()]


def draw_overlay(folder: Path) -> Path:
    """Draw the residuals of all models of the committed grids, and the published ones, into ``folder``."""
    study = STUDIES["residuals"]
    paths = {
        model: grid.numbers(study.notebook, model)
        for grid in committed()
        if study.notebook in grid.notebooks
        for model in grid.models
    }
    return keep(overlay({model: read_json(path) for model, path in paths.items()}), folder / "overlay")


def study_verdicts(notebook: str) -> str:
    """The verdicts on the claims of a notebook's study over the models of the committed grids, as Markdown for it."""
    grids = committed()
    found = _of_notebook(notebook, grids, partial=True)
    models = [model for grid in grids for model in grid.models if any(model in one.verdicts for one in found)]
    return verdict_table(found, models, project_path("notebooks"))


#: Edits, and edits per batch, of the runs that answer the open questions.
FOLLOWED = (100, 20)
#: By page of the project, the names of the places that show committed results: ``<!-- name -->``.
SHOWN = {
    "README.md": ("findings", "differences"),
    "docs/results.md": (
        "real model",
        "runs",
        "main counterfact_2000",
        "main zsre_2000",
        "main pocket-counterfact",
        "main pocket-zsre",
        "verdicts",
    ),
    "docs/as-published.md": ("choices",),
    "docs/open-questions.md": ("history", "one weight", "choices measured", "what follows"),
    "docs/metrics.md": ("metrics",),
}


def shown() -> dict[Path, dict[str, str]]:
    """The parts of each page that are made from the committed results, or from the code, by the names of their
    places."""
    grids = committed()
    parts: dict[str, str] = {}
    cells = {grid.name: load_cells(grid, partial=True) for grid in grids}
    for grid in grids:
        main = main_frame(cells[grid.name])
        parts |= {f"main {plain(Path(name).stem)}": short_table(main[main.dataset == name]) for name in grid.datasets}
    models = [model for grid in grids for model in grid.models]
    found = claims(*grids, partial=True)
    parts["verdicts"] = verdict_table(found, models, project_path("docs"))
    scores = {name: record_scores(of_grid) for name, of_grid in cells.items()}
    lines = [summary.findings(grids, scores, cells), summary.reversals(found), LEGEND]
    parts["findings"] = "\n".join(filter(None, lines[:2])) + f"\n\n<sub>{lines[2]}</sub>"
    parts["real model"] = summary.real_model(scores[grids[0].name], cells[grids[0].name])
    parts["runs"] = summary.runs(grids[0], cells[grids[0].name])
    parts["differences"] = summary.differences(scores)
    parts["history"] = open_questions.history(list(scores.values()))
    parts["one weight"] = open_questions.one_option("mom2_update_weight", *FOLLOWED)
    parts["choices measured"] = open_questions.choices_measured(*FOLLOWED)
    parts["what follows"] = open_questions.what_follows()
    parts["choices"] = choices_table()
    parts["metrics"] = metrics_table()
    pages = {project_path(page): {name: parts[name] for name in names} for page, names in SHOWN.items()}
    notebooks = {
        project_path("notebooks", f"{study.notebook}.ipynb"): study_verdicts(study.notebook)
        for study in STUDIES.values()
    }
    return pages | {path: {"verdicts": verdicts} for path, verdicts in notebooks.items()}


def choices_table() -> str:
    """Where the papers' text and the public code differ, a row for each option, as Markdown."""
    lines = ["| option | of | point | public code, the default | text | source of the text |", "|---" * 6 + "|"]
    for choice in CHOICES.values():
        code, text = (
            f"`{value!r}`: {words}"
            for value, words in ((choice.published, choice.code_does), (choice.text, choice.text_says))
        )
        lines.append(f"| `{choice.name}` | {choice.of} | {choice.point} | {code} | {text} | {choice.source} |")
    return "\n".join(lines)


def metrics_table() -> str:
    """What each metric is, as Markdown."""
    rows = [[f"`{one.name}`", one.group, one.definition, one.unit, one.source] for one in DEFINITIONS]
    lines = ["| metric | group | definition | unit | source |", "|---" * 5 + "|"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([*lines, "", "; ".join(f"`{part}` is {meaning}" for part, meaning in VARYING.items()) + "."])


def filled(page: Path, parts: Mapping[str, str]) -> str:
    """The text of a page, or of a notebook (its JSON), with each part between its marks, ``<!-- name -->`` and
    ``<!-- /name -->``.

    Raises:
        ValueError: if a part has no place, or more than one.
    """
    text = page.read_text(encoding="utf-8")
    if page.suffix != ".ipynb":
        return fill(text, parts)
    notebook = json.loads(text)
    for name, part in parts.items():
        cells = [cell for cell in notebook["cells"] if _marks(name)[0] in "".join(cell["source"])]
        if len(cells) != 1:
            raise ValueError(f"{page.name} has {len(cells)} cells with the mark {_marks(name)[0]}: one is expected")
        cells[0]["source"] = fill("".join(cells[0]["source"]), {name: part}).splitlines(keepends=True)
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def _marks(name: str) -> tuple[str, str]:
    """The marks before and after the part of that name."""
    return f"<!-- {name} -->", f"<!-- /{name} -->"


def fill(text: str, parts: Mapping[str, str]) -> str:
    """The text with each part between its marks.

    Raises:
        ValueError: if a part has no place, or more than one.
    """
    for name, part in parts.items():
        start, end = _marks(name)
        if text.count(start) != 1 or text.count(end) != 1:
            raise ValueError(f"the text must have exactly one place for {name!r}: {start} … {end}")
        before, rest = text.split(start)
        text = f"{before}{start}\n{part}\n{end}{rest.split(end)[1]}"
    return text


def evidence(found: Sequence[Finding]) -> str:
    """What was seen, claim by claim, as Markdown that folds out; models that share a verdict share a line."""
    blocks = []
    for one in found:
        by_verdict: dict[Verdict, list[str]] = {}
        for model, verdict in one.verdicts.items():
            by_verdict.setdefault(verdict, []).append(model)
        marks = ", ".join(verdict.mark for verdict in one.verdicts.values())
        seen = [
            f"- {', '.join(models)}: **{verdict.verdict}** ({one.size[models[0]]}): {verdict.seen}"
            for verdict, models in by_verdict.items()
        ]
        summary = f"<summary>{marks} {escape(one.claim.text, quote=False)}</summary>"
        blocks.append("\n".join([f"<details>{summary}", "", *seen, "", "</details>"]))
    return "\n\n".join(blocks)


def _link(path: Path, folder: Path) -> str:
    return Path(os.path.relpath(path, folder)).as_posix()


def summary_frame(found: Sequence[Finding]) -> pd.DataFrame:
    """How many verdicts of each kind the claims of each notebook got."""
    rows = [
        {"notebook": claim.notebook, "verdict": verdict.verdict}
        for claim in found
        for verdict in claim.verdicts.values()
    ]
    frame = pd.DataFrame(rows)
    return pd.crosstab(frame.notebook, frame.verdict).reindex(columns=list(MARKS), fill_value=0)


def _tables(grid: Grid, folder: Path) -> str:
    """Links to the grid's tables."""
    paths = [path for path in grid.tables() if path.suffix == ".md"]
    return "\n".join(f"- [{path.stem}]({_link(path, folder)})" for path in paths)


def paired_summary(grid: Grid) -> str:
    """How often BLUE variants are better or worse than their plain methods, by metric, and their gains by model.

    Both are tables in Markdown. The gains are those of the paper's methods, and of methods that are not the project's.
    """
    scores = record_scores(load_cells(grid))
    others = [plain for plain, _ in label_pairs(map(label, grid.editors)) if not labelled(plain).shipped]
    compared = paired(scores)
    gains = family_gains(scores, list(dict.fromkeys([*families(scores), *others])))
    counts = pd.crosstab(compared.metric, compared.verdict)
    rows = [[metric, *map(str, row)] for metric, row in zip(counts.index, counts.to_numpy(), strict=True)]
    header = ["metric", *(f"BLUE is {verdict}" for verdict in counts.columns)]
    gains["gain"] = [f"{row.mean:+.1f} [{row.low:+.1f}, {row.high:+.1f}]" for row in gains.itertuples()]
    wide = gains.pivot(index=["model", "method"], columns="measure", values="gain")
    gained = [[*place, *row] for place, row in zip(wide.index, wide.to_numpy().tolist(), strict=True)]
    return "\n\n".join(
        [
            markdown_table("Settings (model, dataset, method) by what BLUE is", rows, header),
            markdown_table(
                "BLUE minus plain in points, with 95 % intervals; all datasets have equal weight",
                gained,
                ["model", "method", *wide.columns],
            ),
        ]
    )


def _borrowed(grid: Grid) -> str:
    """A sentence on the studies that a report takes from another grid."""
    sources = {study.notebook: grid.source_of(study) for study in STUDIES.values()}
    taken = [notebook for notebook, source in sources.items() if source is not None and source.name != grid.name]
    if not taken:
        return ""
    return f" This grid did not run {', '.join(taken)}: their verdicts are those of the grid `{COMMITTED_GRID}`."


def write_report(grid: Grid, found: Sequence[Finding], folder: Path) -> list[Path]:
    """Write ``report.md`` and ``verdicts.json`` into ``folder``; returns their paths."""
    scale = read_json(grid.result(grid.cells()[0]))["provenance"]["scale"]
    text = "\n\n".join(
        [
            f"# Report: the claims of the paper at the {scale} scale",
            f"Grid `{grid.name}`: {', '.join(grid.models)}; {', '.join(grid.datasets)}; {grid.edits} edits in batches "
            f"of {grid.batch_size}; seeds {', '.join(map(str, grid.seeds))}. Every verdict is about this scale and "
            "these models. Conditions on sizes and differences are conditions on their 95 % intervals, over records "
            "and, in the main table, over seeds where there are several; conditions on an order, a count, a ratio of "
            "means, a median or equal layers have none. Published numbers are those of the paper's three LLMs."
            + _borrowed(grid),
            "## Verdicts",
            verdict_table(found, grid.models, folder),
            "## Editing against preservation",
            f"![Editing against specificity, plain and BLUE]({_link(grid.figures / 'pareto.png', folder)})",
            f"## Tables\n\n{_tables(grid, folder)}",
            "## BLUE against plain",
            f"![Each variant minus its plain method]({_link(grid.figures / 'forest.png', folder)})",
            f"![Relative improvement, setting by setting]({_link(grid.figures / 'improvement.png', folder)})",
            "Paired over records, with intervals and tests; all metrics and how they are made are in "
            f"[paired.md]({_link(grid.figures / 'paired.md', folder)}).",
            paired_summary(grid),
            "## What was seen",
            evidence(found),
        ]
    )
    with atomic_file(folder / "report.md") as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
    content = {
        "grid": grid.name,
        "scale": scale,
        "claims": [
            {
                "notebook": one.notebook,
                "source": one.claim.source,
                "claim": one.claim.text,
                "bar": list(one.claim.conditions),
                "published": one.claim.published,
                "size": one.size,
                "verdicts": {model: [verdict.verdict, verdict.seen] for model, verdict in one.verdicts.items()},
            }
            for one in found
        ],
    }
    return [folder / "report.md", write_json(folder / "verdicts.json", content)]
