"""The report: every claim of the paper with a verdict for each model, what was seen, and where."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from ..editing.catalogue import APPENDIX, label, label_pairs, labelled
from ..io.formats import read_json, write_json
from ..io.paths import project_path
from ..io.writing import atomic_file
from ..metrics.definitions import DEFINITIONS, VARYING
from ..models.choices import CHOICES
from ..runs.grid import Grid
from ..studies import STUDIES, Study
from .claims import LEGEND, MARKS, Verdict
from .claims.main import average_improvement, blue_against_plain
from .comparison import champions, families, family_gains, improvement, paired, record_scores
from .tables import load_cells, main_frame, markdown_table, short_table

ALL = "all models"
MAIN = "05_sequential_editing"


@dataclass(frozen=True)
class Finding:
    """A claim of the paper and what came of it.

    Attributes:
        notebook: that examines it.
        text: the claim.
        verdicts: by model, or by :data:`ALL` where the claim is about all of them together.
        figures: pictures of the notebook's evidence.
        size: of what it is about, in edits.
    """

    notebook: str
    text: str
    verdicts: Mapping[str, Verdict]
    figures: tuple[Path, ...]
    size: str


def claims(grid: Grid) -> list[Finding]:
    """The claims in the order of the notebooks: those of the analyses from their numbers (an analysis that the grid
    does not run: from the committed ones), those of the main table from the grid's cells.

    Raises:
        FileNotFoundError: if numbers are missing, naming them.
    """
    found = []
    for study in STUDIES.values():
        found += _of_study(grid, study) if study.notebook < MAIN else []
    found += _of_cells(grid)
    for study in STUDIES.values():
        found += _of_study(grid, study) if study.notebook > MAIN else []
    return found


def _of_study(grid: Grid, study: Study) -> list[Finding]:
    source, notebook = grid.source_of(study), study.notebook
    parameters = source.notebooks[notebook]
    figures = tuple(path for path in source.drawn(notebook) if path.suffix == ".png")
    by_claim: dict[str, dict[str, Verdict]] = {}
    sizes: dict[str, dict[str, None]] = {}
    for model in grid.models:
        path = source.numbers(notebook, model)
        content = read_json(path)
        if not content["parameters"].items() >= dict(parameters).items():
            raise ValueError(f"{path} is of another analysis ({content['parameters']}) than the grid's ({parameters})")
        for verdict in (Verdict(**values) for values in content["verdicts"]):
            by_claim.setdefault(verdict.claim, {})[model] = verdict
            size = verdict.size or f"{content['parameters']['edits']} edits"
            sizes.setdefault(verdict.claim, {})[size] = None
    return [Finding(notebook, text, verdicts, figures, ", ".join(sizes[text])) for text, verdicts in by_claim.items()]


def _of_cells(grid: Grid) -> list[Finding]:
    scores = record_scores(load_cells(grid))
    gains, best = family_gains(scores), champions(scores)
    plain = [method for method, _ in label_pairs(map(label, grid.editors))]
    of_pmet = family_gains(scores, [method for method in plain if labelled(method).reported == APPENDIX])
    by_claim: dict[str, dict[str, Verdict]] = {}
    for model in grid.models:
        frames = (gains, best, of_pmet)
        for verdict in blue_against_plain(*(frame[frame.model == model] for frame in frames)):
            by_claim.setdefault(verdict.claim, {})[model] = verdict
    average = improvement(scores)[0].iloc[-1]
    of_all = average_improvement(average)
    by_claim[of_all.claim] = {ALL: of_all}
    seeds = "1 seed" if len(grid.seeds) == 1 else f"{len(grid.seeds)} seeds"
    size = f"{grid.edits} edits in batches of {grid.batch_size}, {seeds}"
    figures = tuple(path for path in grid.tables() if path.suffix == ".png")
    return [Finding(MAIN, text, verdicts, figures, size) for text, verdicts in by_claim.items()]


def verdict_table(found: Sequence[Finding], models: Sequence[str], folder: Path) -> str:
    """The verdicts as a Markdown table with links relative to ``folder``: a claim a row, a model a column."""
    lines = ["| claim | " + " | ".join(models) + " | evidence |", "|---" * (len(models) + 2) + "|"]
    for claim in found:
        of_all = claim.verdicts.get(ALL)
        words = [(of_all or claim.verdicts[model]).verdict for model in models]
        cells = [f"{MARKS[word]} {word}" for word in words]
        if of_all:
            cells = [f"{cells[0]} (together)", *("″" for _ in cells[1:])]
        links = [f"[notebook]({_link(project_path('notebooks', f'{claim.notebook}.ipynb'), folder)})"]
        links += [f"[{path.stem.removeprefix(claim.notebook[:3])}]({_link(path, folder)})" for path in claim.figures]
        lines.append(f"| {claim.text} | " + " | ".join(cells) + f" | {', '.join(links)} |")
    return "\n".join([*lines, "", LEGEND])


def short_verdicts(found: Sequence[Finding], models: Sequence[str], folder: Path) -> str:
    """The verdicts as signs, with a link to the notebook relative to ``folder``."""
    lines = ["| claim | " + " | ".join(models) + " | where |", "|---" * (len(models) + 2) + "|"]
    for claim in found:
        signs = [MARKS[(claim.verdicts.get(ALL) or claim.verdicts[model]).verdict] for model in models]
        place = f"[{claim.notebook[:2]}]({_link(project_path('notebooks', f'{claim.notebook}.ipynb'), folder)})"
        lines.append(f"| {claim.text} | " + " | ".join(signs) + f" | {place} |")
    return "\n".join([*lines, "", "✓ reproduced, ◐ partly, ✗ not at this scale."])


#: What of the committed results stands in which page of the project, by the name of its place: ``<!-- name -->``.
SHOWN = {
    "README.md": ("main pocket-counterfact",),
    "docs/results.md": ("main pocket-zsre", "verdicts"),
    "docs/as-published.md": ("choices",),
    "docs/metrics.md": ("metrics",),
}


def shown(grid: Grid) -> dict[Path, dict[str, str]]:
    """The parts of each page that are made from a grid's results, or from the code, by the names of their places."""
    main = main_frame(load_cells(grid))
    parts = {f"main {dataset}": short_table(main[main.dataset == dataset]) for dataset in grid.datasets}
    parts["verdicts"] = short_verdicts(claims(grid), grid.models, project_path("docs"))
    parts["choices"] = choices_table()
    parts["metrics"] = metrics_table()
    return {project_path(page): {name: parts[name] for name in names} for page, names in SHOWN.items()}


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


def fill(text: str, parts: Mapping[str, str]) -> str:
    """The text with each part between its marks, ``<!-- name -->`` and ``<!-- /name -->``.

    Raises:
        ValueError: for a part that has no place.
    """
    for name, part in parts.items():
        start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        if text.count(start) != 1 or text.count(end) != 1:
            raise ValueError(f"the text has no one place for {name!r}: {start} … {end}")
        before, rest = text.split(start)
        text = f"{before}{start}\n{part}\n{end}{rest.split(end)[1]}"
    return text


def evidence_table(found: Sequence[Finding]) -> str:
    """What was seen, a row for each claim and model, as Markdown."""
    lines = ["| claim | model | what we see | verdict | size |", "|---|---|---|---|---|"]
    for claim in found:
        for model, verdict in claim.verdicts.items():
            lines.append(f"| {claim.text} | {model} | {verdict.seen} | **{verdict.verdict}** | {claim.size} |")
    return "\n".join(lines)


def _link(path: Path, folder: Path) -> str:
    return Path(os.path.relpath(path, folder)).as_posix()


def summary_frame(found: Sequence[Finding]) -> pd.DataFrame:
    """How many verdicts of each kind a notebook's claims got."""
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
    """How often a BLUE variant is better or worse than its plain method, by metric, and the gains by model of the
    paper's methods and of those that are not the project's, as Markdown."""
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
                "BLUE minus plain in points, datasets weighing alike, with 95 % intervals",
                gained,
                ["model", "method", *wide.columns],
            ),
        ]
    )


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
            "means, a median or equal layers have none.",
            "## Verdicts",
            verdict_table(found, grid.models, folder),
            "## Editing against preservation",
            f"![Editing against specificity, plain and BLUE]({_link(grid.figures / 'pareto.png', folder)})",
            f"## Tables\n\n{_tables(grid, folder)}",
            "## BLUE against plain",
            "Paired over records, with intervals and tests; all metrics and how they are made are in "
            f"[paired.md]({_link(grid.figures / 'paired.md', folder)}).",
            paired_summary(grid),
            "## What was seen",
            evidence_table(found),
        ]
    )
    with atomic_file(folder / "report.md") as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
    content = {
        "grid": grid.name,
        "scale": scale,
        "claims": [
            {
                "notebook": claim.notebook,
                "claim": claim.text,
                "size": claim.size,
                "verdicts": {model: [verdict.verdict, verdict.seen] for model, verdict in claim.verdicts.items()},
            }
            for claim in found
        ],
    }
    return [folder / "report.md", write_json(folder / "verdicts.json", content)]
