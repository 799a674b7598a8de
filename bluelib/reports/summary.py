"""What the README says of the committed results: findings, and what the variants gain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from ..editing.catalogue import VARIANTS, entry, in_order, label_pairs
from ..editing.settings import editor_settings
from ..io.formats import read_json
from ..io.paths import project_path
from ..metrics.editing import editing_scores
from ..metrics.intervals import Interval, interval, less
from ..models.known import scale_of, short_label
from ..runs.grid import Grid
from ..studies import STUDIES
from ..studies.ablation import PAIR
from ..studies.follow import SEQUENCE, followed
from .claims import MARKS, verdicts
from .comparison import RecordScores, by_benchmark, families, gains, improvement, variant_pairs
from .figures.follow import SHORT
from .published import PUBLISHED_IMPROVEMENT, benchmark, counterpart, published
from .tables import markdown_table


def findings(
    grids: Sequence[Grid], scores: Mapping[str, RecordScores], cells: Mapping[str, Sequence[Mapping[str, Any]]]
) -> str:
    """Findings as Markdown: what one model shows about residuals, and what all models show about BLUE.

    Args:
        grids: the grids; the first model of the first one that runs the study of residuals is shown for it.
        scores: :func:`~bluelib.reports.comparison.record_scores` of each grid's cells, by the grid's name.
        cells: each grid's cells, by the grid's name.
    """
    study = STUDIES["residuals"]
    grid = next(grid for grid in grids if study.notebook in grid.notebooks)
    model = grid.models[0]
    numbers = read_json(grid.numbers(study.notebook, model))
    marks = {verdict.claim: MARKS[verdict.verdict] for verdict in verdicts(study.name, numbers)}
    return "\n".join(
        line
        for line in (
            _share(grid, model, numbers, marks),
            _steps(model, numbers, marks),
            _layers(grid, model),
            _length(followed()),
            _gain(scores),
            _asked(cells),
        )
        if line
    )


def called(dataset: str) -> str:
    """The benchmark of a dataset, as papers spell it."""
    name = benchmark(dataset)
    return {"counterfact": "CounterFact", "zsre": "zsRE"}.get(name, name)


def _mark(marks: Mapping[str, str], words: str) -> str:
    return next(mark for claim, mark in marks.items() if words in claim)


def _share(grid: Grid, model: str, numbers: Mapping[str, Any], marks: Mapping[str, str]) -> str:
    error = ""
    if (theory := STUDIES["theory"].notebook) in grid.notebooks:
        terms = pd.DataFrame(read_json(grid.numbers(theory, model))["terms"])
        shares = terms[terms.term == "direction"]["mean"] * 100
        error = (
            f" Whatever the share, {shares.min():.0f} to {shares.max():.0f} % of the squared error in the weights "
            "would be left."
        )
    contribution = pd.DataFrame(numbers["contributions"])
    first = contribution[contribution.layer == contribution.layer.min()].set_index("residual")["mean"]
    wrong = first["undivided"] < first["direct"] / 2
    direction = ": the direction is wrong, not only the length" if wrong else ""
    theirs = published("layer_analysis")
    theirs = theirs[theirs.model == counterpart(model)]
    theirs = theirs[theirs.layer == theirs.layer.min()].set_index("quantity").value
    return (
        f"- {_mark(marks, 'a distributed residual contributes')} **A share is not what a layer needs.** At the first "
        f"critical layer of {short_label(model)} MEMIT's share raises the new object's probability by "
        f"{first['distributed']:.2f}, a residual of the layer's own by {first['direct']:.2f} (published for "
        f"{counterpart(model)}: {theirs['contribution_distributed']:.2f} and {theirs['contribution_direct']:.2f}). "
        f"The whole, undivided residual raises it by {first['undivided']:.2f}{direction}.{error}"
    )


def _steps(model: str, numbers: Mapping[str, Any], marks: Mapping[str, str]) -> str:
    steps, about = pd.DataFrame(numbers["steps"]).sort_values("layer")["mean"].tolist(), numbers["parameters"]
    edits = min(about["edits"], about["batch_size"])  # those of the first batch
    theirs = published("optimisation_steps")
    theirs = theirs[theirs.model == counterpart(model)].sort_values("layer").mean_steps.tolist()
    return (
        f"- {_mark(marks, 'once the first layer is updated')} **The first layer does the work.** Its own residual "
        f"takes {steps[0]:.1f} steps to find; after its update the second layer needs {steps[1]:.1f}, the third "
        f"{steps[2]:.1f} ({called(about['dataset'])}, {edits} edits; published for {counterpart(model)}: "
        f"{theirs[0]:.1f}, the limit there, {theirs[1]:.1f}, {theirs[2]:.1f})."
    )


def _layers(grid: Grid, model: str) -> str:
    """What an ablation says: distributed residuals, and other pairs of layers, in BLUE's place; if there is one."""
    study = STUDIES["growth"]
    path = grid.numbers(study.notebook, model)
    if study.notebook not in grid.notebooks or not path.exists():
        return ""
    numbers = read_json(path)
    if "ablation_best" not in numbers:
        return ""
    marks = {verdict.claim: MARKS[verdict.verdict] for verdict in verdicts(study.name, numbers)}
    gaps = pd.DataFrame(numbers["ablation_differences"]).set_index("choice")
    families = pd.DataFrame(numbers["ablation_best"]).set_index("choice").family
    pairs, shared = gaps[families == PAIR], gaps.loc["first and last, distributed"]
    about = numbers["ablation_provenance"]["identity"]
    worse = (pairs.high < 0).sum()
    return (
        f"- {_mark(marks, 'direct residual')} **Direct residuals edit; which two layers get them is not "
        f"settled.** With shares in its two layers, BLUE loses {-shared['mean']:.0f} points of efficacy and "
        f"generalization [{-shared.high:.0f}, {-shared.low:.0f}] ({short_label(model)}, {called(about['dataset'])}, "
        f"{about['edits']} edits). {worse or 'None'} of the {len(pairs)} other pairs of critical layers with direct "
        f"residuals {'are' if worse > 1 else 'is'} shown to edit worse there."
    )


def _length(runs: pd.DataFrame) -> str:
    """How methods and their BLUE variants, with settings of their own, end the longest sequence that both ran along."""
    ends = runs[runs.length == runs.edits]
    ends = ends[[any(value is not None for value in editing_scores(end)) for _, end in ends.iterrows()]]
    ends = ends.assign(label=[entry(name).label for name in ends.editor])
    found: dict[int, list[str]] = {}
    for (_, _, edits, _), along in ends.groupby(SEQUENCE, sort=False):
        own = along[[not options for options in along.options]].set_index("label")
        pairs = [tuple(own.loc[label] for label in pair) for pair in label_pairs(own.index)]
        if pairs:
            others = own.drop([one.name for pair in pairs for one in pair])
            found.setdefault(edits, []).append(_ends(along, pairs) + _alone(others))
    return "\n".join(found[max(found)]) if found else ""


def _alone(ends: pd.DataFrame) -> str:
    """How methods that were followed without a variant end the same sequence."""
    parts = [f"{end.name} ends it at {interval(editing_scores(end)).mean:.0f} %" for _, end in ends.iterrows()]
    return f" {'; '.join(parts)}." if parts else ""


def _gained(plain: Sequence[float | None], blue: Sequence[float | None], subjects: Sequence[int]) -> Interval:
    return interval(less(blue, plain), clusters=subjects)


def _same_weight(along: pd.DataFrame, blue: pd.Series, plain: pd.Series) -> str:
    """The gain with one λ for both, if one of the two was also followed along the sequence with the other's."""
    for one, other in ((plain, blue), (blue, plain)):
        weight = editor_settings(other.model, other.editor).get("mom2_update_weight")
        same = along[[options == (("mom2_update_weight", weight),) for options in along.options]]
        same = same[same.editor == one.editor]
        if len(same):
            again = editing_scores(same.iloc[0])
            sides = (again, editing_scores(blue)) if one is plain else (editing_scores(plain), again)
            gain = _gained(*sides, blue.subjects)
            return f"; with {other.name}'s λ for both, {gain.mean:+.0f} [{gain.low:+.0f}, {gain.high:+.0f}]"
    return ""


def _ends(along: pd.DataFrame, pairs: Sequence[tuple[pd.Series, pd.Series]]) -> str:
    """How each pair, plain and BLUE, ends one and the same sequence."""
    parts, ahead = [], []
    for plain, blue in pairs:
        gain = _gained(editing_scores(plain), editing_scores(blue), blue.subjects)
        ahead += [plain.name] if gain.low > 0 else []
        each = ", ".join(f"{end.name} {interval(editing_scores(end)).mean:.0f} %" for end in (blue, plain))
        parts.append(f"{each} ({gain.mean:+.0f} [{gain.low:+.0f}, {gain.high:+.0f}]{_same_weight(along, blue, plain)})")
    words = f"BLUE {'holds' if ahead else 'is not shown to hold'} longer"
    words += f" with {' and '.join(ahead)}" if ahead and len(ahead) < len(pairs) else ""
    first = pairs[0][0]
    return (
        f"- **Along a long sequence {words}.** After {first.edits:,} edits of {short_label(first.model)} "
        f"({called(first.dataset)}, batches of {first.batch_size}, one sequence), the mean of efficacy and "
        f"generalization is: {'; '.join(parts)}."
    )


def in_words(options: Mapping[str, Any]) -> str:
    """Options of an editor in words: λ = 1,000."""
    return ", ".join(
        f"{name} = {value}" if isinstance(value, (bool, str)) else f"{SHORT.get(name, name)} = {value:,}"
        for name, value in options.items()
    )


def _gain(scores: Mapping[str, RecordScores]) -> str:
    found, relative, smaller = [], [], []
    for of_grid in scores.values():
        models, datasets = (list(dict.fromkeys(names)) for names in zip(*of_grid, strict=True))
        names = short_label(models[0]) if len(models) == 1 else f"the {len(models)} pocket models"
        for part in by_benchmark(of_grid):
            if not families(part):
                continue
            chosen = [dataset for dataset in datasets if dataset in {of for _, of in part}]
            *settings, average = (row for _, row in improvement(part)[0].iterrows())
            methods = families(part)
            if len(settings) == len(methods):  # each method's own gain, as one can make up most of the mean
                methods = [f"{row['method']} {row['points']:+.1f}" for row in settings]
            unclear = ", which may be none" if average["points_low"] <= 0 <= average["points_high"] else ""
            found.append(
                f"{average['points']:+.1f} points [{average['points_low']:+.1f}, {average['points_high']:+.1f}]"
                f"{unclear}, on {names} ({', '.join(map(called, chosen))}: {', '.join(methods)})"
            )
            relative.append(f"{average['improvement']:+.1f} %{_one_makes_it(settings, average['improvement'])}")
            smaller.append(average["high"] < PUBLISHED_IMPROVEMENT)
        words = "is smaller than the abstract's in our runs" if all(smaller) else "need not be the abstract's"
    in_turn = " and ".join(", ".join(relative).rsplit(", ", 1))
    return (
        f"- **BLUE's average gain {words}**, where settings were searched for every method. Mean of efficacy, "
        f"generalization and specificity: {'; '.join(found)}. In per cent of the plain method, averaged over all "
        f"metrics (fluency and consistency, too), it is {in_turn}; the abstract has {PUBLISHED_IMPROVEMENT} %."
    )


def _one_makes_it(settings: Sequence[pd.Series], average: float) -> str:
    """The average without the one method that makes up more than half of it, if there is one."""
    methods = list(dict.fromkeys(row["method"] for row in settings))
    if len(methods) < 3:
        return ""
    others = {
        method: np.mean([row["improvement"] for row in settings if row["method"] != method]) for method in methods
    }
    method = min(others, key=others.__getitem__)
    return f" ({others[method]:+.1f} % without {method})" if others[method] < average / 2 else ""


def _asked(cells: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """What the first dataset with further metrics shows: likelihood against chat."""
    measured = [cell for of_grid in cells.values() for cell in of_grid if "chat_contains_efficacy" in cell["after"]]
    if not measured:
        return ""
    measured = [cell for cell in measured if cell["dataset"] == measured[0]["dataset"]]
    after = {entry(cell["editor"]["name"]).label: cell["after"] for cell in measured}
    ranges = [
        _range([scores[metric]["mean"] for scores in after.values()])
        for metric in ("efficacy", "chat_contains_efficacy")
    ]
    return (
        f"- **Likelihood is the mildest of questions.** Of {measured[0]['edits']} edits of "
        f"{called(measured[0]['dataset'])} {ranges[0]} % succeed by likelihood; in chat "
        f"{short_label(measured[0]['model'])} names {ranges[1]} % of the new objects."
    )


def runs(grid: Grid, cells: Sequence[Mapping[str, Any]]) -> str:
    """How long each run of a grid took and on what, as a Markdown table, and which of its runs are missing.

    Args:
        grid: the grid.
        cells: its cells that have been run.
    """
    times: dict[tuple[str, ...], list[str]] = {}

    def add(what: str, dataset: str, editor: str, found: Mapping[str, Any]) -> None:
        origin = found["provenance"]
        where = f"{origin['device']}, {origin['threads']} thread{'s' * (origin['threads'] != 1)}"
        minutes = sum(found["seconds"].values()) / 60
        times.setdefault((what, called(dataset), where), []).append(f"{editor} {minutes:.0f}")

    size = f"{grid.edits} edits in batches of {grid.batch_size}"
    for cell in sorted(cells, key=lambda cell: entry(cell["editor"]["name"]).order):
        add(f"main table, {size}", cell["dataset"], entry(cell["editor"]["name"]).label, cell)
    missing = [cell for cell in grid.cells() if not grid.result(cell).exists()]
    along = [run for run in grid.followed() if run.path.exists()]
    for path in sorted(project_path("results", "follow").glob("*.json")):
        found = read_json(path)
        about = found["identity"]
        if about["model"] in grid.models:
            options = in_words(about["options"])
            label = entry(about["editor"]).label + (f" ({options})" if options else "")
            add(f"along {about['edits']:,} edits in batches of {about['batch_size']}", about["dataset"], label, found)
    rows = [[*place, "; ".join(each)] for place, each in times.items()]
    table = markdown_table("", rows, ["run", "dataset", "on", "minutes"])
    return (
        f"{table}\n\nNot run yet: {len(missing)} of {len(grid.cells())} cells of the main table, and "
        f"{len(grid.followed()) - len(along)} of {len(grid.followed())} runs along a sequence "
        f"([`workflow/grid-{grid.name}.yaml`](../workflow/grid-{grid.name}.yaml))."
    )


def _range(values: Sequence[float]) -> str:
    return f"{min(values):.0f} to {max(values):.0f}"


def reversals(found: Sequence[Any]) -> str:
    """The claims of the paper that a real model reverses, or most of the models on which they were tested, as one more
    finding.

    Args:
        found: findings of :func:`bluelib.reports.report.claims`.
    """
    texts = []
    for one in found:
        pocket = [model for model in one.verdicts if scale_of(model) == "pocket"]
        against = [model for model, verdict in one.verdicts.items() if verdict.verdict == "reversed here"]
        real = [short_label(model) for model in against if model not in pocket]
        if one.claim.source == "BLUE" and (real or len(against) > len(one.verdicts) / 2):
            also = {*against} & {*pocket}
            where = real + ([f"{len(also)} of {len(pocket)} pocket models"] if also else [])
            shown = [short_label(model) for model, verdict in one.verdicts.items() if verdict.verdict == "reproduced"]
            but = f"; reproduced in {', '.join(shown)}" if shown else ""
            texts.append(f"“{one.claim.text}” ({', '.join(where)}{but})")
    if not texts:
        return ""
    return (
        f"- {MARKS['reversed here']} **Reversed** on the real model, or on most models that tested the claim: "
        f"{'; '.join(texts)}."
    )


def differences(scores: Mapping[str, RecordScores]) -> str:
    """Every variant minus its plain method as a Markdown table, with a column for each model.

    A cell has editing and, below it, specificity: of a single model for each dataset, of several with equal weight for
    each dataset.
    """
    cells: dict[str, dict[str, str]] = {}
    for of_grid in scores.values():
        pairs = [pair for kind in VARIANTS for pair in variant_pairs(_anywhere(of_grid), "", kind)]
        parts = by_benchmark(of_grid)
        for part in parts:
            (_, dataset), *_ = part
            for (model, other), group in gains(part, pairs).groupby(["model", "other"], sort=False):
                found = group.set_index("measure")
                lines = [
                    f"{found['mean'][name]:+.1f} [{found.low[name]:+.1f}, {found.high[name]:+.1f}]"
                    for name in ("editing", "specificity")
                    if name in found.index
                ]
                if len(parts) > 1:
                    lines[0] = f"{called(dataset)}: {lines[0]}"
                of_model = cells.setdefault(model, {})
                of_model[other] = "<br>".join([*filter(None, [of_model.get(other)]), *lines])
    methods = in_order({method for of_model in cells.values() for method in of_model})
    rows = [[method, *(of_model.get(method, "–") for of_model in cells.values())] for method in methods]
    return markdown_table("", rows, ["", *map(short_label, cells)])


def _anywhere(scores: RecordScores) -> list[str]:
    """The labels of the methods that any model and dataset has."""
    return list(dict.fromkeys(label for frame in scores.values() for label in frame.columns.unique(0)))


def real_model(scores: RecordScores, cells: Sequence[Mapping[str, Any]]) -> str:
    """What the main table of the real model shows, in sentences: how BLUE variants edit, how far the answers about
    neighbours move, and whether the model says the new object in its own words, after the bare prompt and in chat."""
    lines = []
    for place, frame in scores.items():
        for plain, blue in variant_pairs(frame.columns.unique(0), "", "blue"):
            gained = gains({place: frame}, [(plain, blue)]).set_index("measure")
            words = [
                f"{gained['mean'][name]:+.1f} [{gained.low[name]:+.1f}, {gained.high[name]:+.1f}]"
                for name in ("editing", "specificity")
            ]
            lines.append(
                f"- *{blue} minus {plain}* ({called(place[1])}): {words[0]} points of efficacy and generalization, "
                f"{words[1]} of specificity."
            )
    for dataset in dict.fromkeys(cell["dataset"] for cell in cells):
        after = {entry(cell["editor"]["name"]).label: cell["after"] for cell in cells if cell["dataset"] == dataset}
        order = in_order(after)
        for metric, what in (
            ("kl", "How far next tokens move where nothing should change"),
            ("contains_efficacy", "The new object is in what the model says after the edit's own prompt"),
            ("chat_contains_efficacy", "It is in what the model says in chat"),
        ):
            there_ = [name for name in order if metric in after[name]]
            unit = " nats of D_KL" if metric == "kl" else " %"
            values = ", ".join(
                f"{name} {after[name][metric]['mean']:.{2 if metric == 'kl' else 1}f}" for name in there_
            )
            if there_:
                lines.append(f"- *{what}* ({called(dataset)}): {values}{unit}.")
    return "\n".join(lines)
