"""Claims of the paper against what a notebook saw: each claim is a condition on the notebook's numbers.

A verdict is *reproduced* where all of a claim's conditions hold, *partly* where some do, and *not at this scale* where
none does: the last says that the numbers do not show it, not that they refute it. Conditions on sizes and differences
are conditions on their 95 % intervals; those on an order, a count, a ratio of means or a median have none. What holds
by definition (at the last critical layer the two residuals are one) is left out. "Edits better" is about efficacy and
generalization; specificity is a claim of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import pandas as pd

from ..editing.catalogue import entry
from ..studies.capability import MEAN
from .published import PUBLISHED_IMPROVEMENT

Numbers = Mapping[str, Any]


#: What the words mean, for readers of a table.
LEGEND = (
    "*reproduced*: all of a claim's conditions hold, on 95 % intervals where there are any; *partly*: some do; *not at "
    "this scale*: none does, so that the claim is not shown here, which does not refute it."
)


class Verdict(NamedTuple):
    """One row of the table that ends a notebook; with the size of what it is about, if not that of the notebook."""

    claim: str
    seen: str
    verdict: str
    size: str = ""


def judge(*conditions: bool) -> str:
    """*reproduced*, *partly* or *not at this scale*: all, some or none of the conditions hold.

    Raises:
        ValueError: for no conditions.
    """
    if not conditions:
        raise ValueError("a claim without conditions has no verdict")
    return "reproduced" if all(conditions) else "partly" if any(conditions) else "not at this scale"


def as_table(verdicts: Sequence[Mapping[str, str]]) -> str:
    """The verdicts of a notebook's numbers as a Markdown table."""
    lines = ["| claim | what we see | verdict |", "|---|---|---|"]
    lines += [f"| {v['claim']} | {v['seen']} | **{v['verdict']}** |" for v in verdicts]
    return "\n".join([*lines, "", LEGEND])


def as_lines(verdicts: Sequence[Mapping[str, str]]) -> str:
    """One line for each verdict and its claim."""
    return "\n".join(f"{v['verdict']}: {v['claim']}" for v in verdicts)


def _frame(numbers: Numbers, name: str, by: str) -> pd.DataFrame:
    return pd.DataFrame(numbers[name]).sort_values(by)


def _falls(values: Sequence[float]) -> bool:
    return all(a > b for a, b in pairwise(values))


def _list(values: Sequence[float], digits: int = 2) -> str:
    return ", ".join(f"{value:.{digits}f}" for value in values)


def _band(row: Any) -> str:
    return f"{row['mean']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"


def _points(row: Any) -> str:
    return f"{row['mean']:+.1f} [{row['low']:+.1f}, {row['high']:+.1f}]"


def locate(numbers: Numbers) -> list[Verdict]:
    """Of ``01_locate``."""
    effects = pd.DataFrame(numbers["effects"])
    n = int(effects.layer.max()) + 1
    largest = lambda rows: rows.loc[rows["mean"].idxmax()]  # noqa: E731
    mlp, attention = (effects[effects.kind == kind] for kind in ("mlp", "attention"))
    best = largest(mlp)
    here, rival = (largest(rows[rows.role == "last subject"]) for rows in (mlp, attention))
    found, configured = numbers["layers"]["tracing"], numbers["layers"]["configured"]
    start = configured[0]
    lost = pd.DataFrame(numbers["severed"]).set_index(["path", "layer"])
    hidden = effects[(effects.kind == "hidden") & (effects.role == "last subject")].set_index("layer")
    whole = hidden["mean"][start]
    mlps, paths = lost.loc[("MLPs", start)], lost.loc[("attention", start)]
    return [
        Verdict(
            "a fact is recalled by MLPs at the subject's last token, in early to middle layers (ROME)",
            f"largest MLP effect {_band(best)} at the {best.role} token, layer {best.layer}; at the last subject token "
            f"MLPs have at most {_band(here)} (layer {here.layer}), attention {_band(rival)} (layer {rival.layer})",
            judge(best.role == "last subject" and best.layer < 2 * n / 3, here.low > rival.high),
        ),
        Verdict(
            "the state of a critical layer works through the MLPs after it (MEMIT)",
            f"effect of layer {start}'s state {whole:.2f}; severing later MLPs takes {_band(mlps)} of it, "
            f"severing later attention {_band(paths)}",
            judge(mlps.low > 0, mlps.low > whole / 2),
        ),
        Verdict(
            "tracing names the layers to edit",
            f"tracing: {found}, where the effect is {_list(hidden['mean'][found])}; editing (configured): {configured}",
            judge(found == configured, hidden.low[found].min() > 0),
        ),
    ]


def theory(numbers: Numbers) -> list[Verdict]:
    """Of ``02_weight_shift_theory``."""
    tightness = pd.DataFrame(numbers["tightness"])
    far = tightness[tightness.distance == tightness.distance.max()].set_index("bound")["median"]
    relative = _frame(numbers, "relative", "distance")
    means = relative["mean"].tolist()
    history = numbers["history_ratio"]
    cells, violations = numbers["cells"], numbers["violations"]
    return [
        Verdict(
            "‖Δ* − Δ‖ is at most the bound of Theorem 4.1",
            f"{violations} violations in {cells} cells, of it and of three closer bounds",
            judge(violations == 0),
        ),
        Verdict(
            "the bound tells how large the error is",
            f"at the largest distance the paper's bound is {far['paper']:.1f} times the error, "
            f"tight {far['tight']:.1f}, shared {far['shared']:.1f} times (medians)",
            judge(far["paper"] < 2),
        ),
        Verdict(
            "the error grows with the distance L − l",
            f"‖E‖/‖R*Q‖ at L − l = 1, 2, …: {_list(means)}",
            judge(_falls(means[::-1]), relative["low"].iloc[-1] > relative["high"].iloc[0]),
        ),
        Verdict(
            "earlier keys make the gain, and so the bound, grow (Lemma 4.3)",
            f"‖Q_p‖/‖Q‖ with all other edits made before: {history['mean']:.3f} "
            f"[{history['low']:.3f}, {history['high']:.3f}]",
            judge(history["low"] > 1),
        ),
    ]


def residuals(numbers: Numbers) -> list[Verdict]:
    """Of ``03_residuals``."""
    contribution = _frame(numbers, "contributions", "layer")
    direct = contribution[contribution.residual == "direct"]
    shared = contribution[contribution.residual == "distributed"]
    compared = _frame(numbers, "compared", "layer")
    trend = pd.DataFrame(numbers["trend"]).set_index("measure")
    cosine = compared[compared.measure == "cosine"]["mean"].tolist()
    deviation = compared[compared.measure == "deviation"]["mean"].tolist()
    steps = _frame(numbers, "steps", "layer")
    drop = 1 - steps["mean"].iloc[1] / steps["mean"].iloc[0] if steps["mean"].iloc[0] else 0.0
    single = pd.DataFrame(numbers["single_layer"])
    efficacy = single[single.metric == "efficacy"].pivot(index="layer", columns="residual", values="mean").iloc[:-1]
    ratio = efficacy.direct.mean() / max(efficacy.distributed.mean(), 1e-9)
    differences = pd.DataFrame(numbers["single_layer_differences"])
    gains = differences[differences.metric == "efficacy"]
    return [
        Verdict(
            "a distributed residual contributes near 1 at the last critical layer only, under 0.7 elsewhere and under "
            "0.1 at the first",
            f"from first to last: {_list(shared['mean'])}",
            judge(shared.high.iloc[:-1].max() < 0.7, shared.high.iloc[0] < 0.1, shared.low.iloc[-1] > 0.8),
        ),
        Verdict(
            "a direct residual contributes near 1 at every layer",
            f"from first to last: {_list(direct['mean'])}",
            judge(*(low > 0.8 for low in direct.low.iloc[:-1])),
        ),
        Verdict(
            "the two residuals' cosine falls with distance",
            f"from first to last: {_list(cosine)}; from the layer before the last to the first it falls by "
            f"{_band(trend.loc['cosine'])}",
            judge(_falls(cosine[-2::-1]), trend.low["cosine"] > 0),
        ),
        Verdict(
            "‖R* − R^L‖ grows with distance",
            f"from first to last: {_list(deviation, 1)}; from the layer before the last to the first it grows by "
            f"{_band(trend.loc['deviation'])}",
            judge(_falls(deviation[:-1]), trend.low["deviation"] > 0),
        ),
        Verdict(
            "once the first layer is updated, the second needs far fewer steps (by 84 % on GPT-J, 55.6 % on Llama3), "
            "and the third fewer than 2",
            f"steps from first to last: {_list(steps['mean'])}: {drop:.0%} fewer at the second",
            judge(steps.high.iloc[1] < 0.5 * steps.low.iloc[0], steps.high.iloc[2] < 2),
        ),
        Verdict(
            "single-layer editing is more than 3 times as effective with direct residuals",
            f"mean efficacy before the last layer {efficacy.direct.mean():.1f} % direct, "
            f"{efficacy.distributed.mean():.1f} % distributed ({'over 100' if ratio > 100 else f'{ratio:.1f}'} times); "
            f"least paired gain {gains['mean'].min():.1f} points, interval from {gains['low'].min():.1f}",
            judge(ratio > 3, gains["low"].min() > 0),
        ),
    ]


#: Points of success by which a choice of layers may be behind BLUE and count as "about as good".
MARGIN = 3
#: Errors of batches that have nothing to do with each other gather like this power of their number: so do random
#: matrices of rank ten and of the pocket models' shapes (`tests/reports/test_claims.py`).
UNRELATED = 0.2
EDITING = ("efficacy", "generalization")


def growth(numbers: Numbers) -> list[Verdict]:
    """Of ``04_error_growth``."""
    relative = _frame(numbers, "by_distance", "distance")
    relative = relative[relative.distance > 0]
    means = relative["mean"].tolist()
    batch, sequence = (numbers["growth"][name] for name in ("batch", "sequence"))
    power = lambda found: f"n^{_band(found)}"  # noqa: E731
    end = pd.DataFrame(numbers["end_differences"]).set_index("metric")
    better, kept = end.loc[end.index.isin(EDITING)], end.loc[["specificity"]]
    listed = lambda rows: (  # noqa: E731
        "; ".join(f"{metric} {_points(row)}" for metric, row in rows.iterrows()) + " points, paired over records"
    )
    ablation = pd.DataFrame(numbers["ablation_best"]).set_index("choice")
    against = pd.DataFrame(numbers["ablation_differences"]).set_index("choice")
    singles = ablation[(ablation.family == "one layer, direct") & ablation.reached]
    best = singles.success.idxmax() if len(singles) else None
    pairs = against.loc[ablation.index[ablation.family == "another pair, direct"]]
    distributed = against.loc[ablation.index[ablation.family == "distributed, BLUE's settings"]]
    fair = ablation.reached[distributed.index]
    beside = {name: "" if fair[name] else " (does not reach BLUE's specificity)" for name in distributed.index}
    edited = f"{len(numbers['ablation_provenance']['case_ids'])} edits"
    return [
        Verdict(
            "the error grows with the distribution distance",
            f"‖E‖/‖R*Q‖ at L − l = 1, 2, …: {_list(means)}",
            judge(_falls(means[::-1]), relative["low"].iloc[-1] > relative["high"].iloc[0]),
        ),
        Verdict(
            "the error grows with the batch size, through ‖Q‖",
            f"‖E‖ ∝ {power(batch['error'])}, ‖Q‖ ∝ {power(batch['norm_q'])}, ‖R*‖ ∝ {power(batch['norm_direct'])}",
            judge(
                batch["error"]["low"] > 0,
                batch["norm_q"]["low"] > 0,
                batch["norm_q"]["low"] > batch["norm_direct"]["mean"],
            ),
        ),
        Verdict(
            "the error grows with the length of the edit sequence",
            f"of one batch ∝ {power(sequence['error'])}; gathered ∝ {power(sequence['total'])}, where errors that have "
            f"nothing to do with each other give n^{UNRELATED}",
            judge(sequence["error"]["low"] > 0, sequence["total"]["low"] > UNRELATED),
        ),
        Verdict(
            "BLUE edits better than MEMIT at the end of the sequence",
            listed(better),
            judge(*(better.low > 0)),
        ),
        Verdict(
            "BLUE leaves more of the rest alone than MEMIT at the end of the sequence",
            listed(kept),
            judge(*(kept.low > 0)),
        ),
        Verdict(
            "it is the direct residual that makes BLUE better",
            "with distributed residuals and BLUE's settings, against BLUE: "
            + "; ".join(
                f"{name.removesuffix(', distributed')} {_points(row)}{beside[name]}"
                for name, row in distributed.iterrows()
            ),
            judge(*(distributed.high < 0), *fair),
            edited,
        ),
        Verdict(
            "the first and the last are the two layers to update",
            f"of {len(pairs)} other pairs {int((pairs.high < 0).sum())} are worse than BLUE and "
            f"{int((pairs.low > 0).sum())} better by their intervals; all layers {_points(against.loc['all layers'])}",
            judge(*(pairs.high < 0)),
            edited,
        ),
        Verdict(
            "one layer is about as good as BLUE's two (a public replication, Llama3)",
            f"best single layer at BLUE's specificity: {best}, {_points(against.loc[best])} points of success"
            + (" (at an end of the λ tried)" if ablation.edge[best] else "")
            if best
            else "no single layer reaches BLUE's specificity",
            judge(bool(best) and against.low[best] > -MARGIN),
            edited,
        ),
    ]


def blue_against_plain(gains: pd.DataFrame, best: pd.DataFrame, of_pmet: pd.DataFrame) -> list[Verdict]:
    """Of the main table, for one model: see :func:`~bluelib.reports.comparison.family_gains`, which has the paper's
    methods and, by themselves, PMET where the grid has it, and ``champions``."""

    def of(measure: str) -> pd.DataFrame:
        return gains[gains.measure == measure]

    def points(rows: pd.DataFrame) -> str:
        each = (f"{row.method} {row.mean:+.1f} [{row.low:+.1f}, {row.high:+.1f}]" for row in rows.itertuples())
        return "; ".join(each) + " points, paired over records, both datasets"

    leaders = "; ".join(
        f"{row.dataset}: {row.blue} {row.mean:+.1f} [{row.low:+.1f}, {row.high:+.1f}] points of "
        f"success against {row.other}"
        for row in best.itertuples()
    )
    return [
        Verdict(
            "every BLUE variant edits better than its plain method (efficacy, generalization)",
            points(of("editing")),
            judge(*(of("editing").low > 0)),
        ),
        Verdict(
            "every BLUE variant leaves more of the rest alone (specificity)",
            points(of("specificity")),
            judge(*(of("specificity").low > 0)),
        ),
        Verdict(
            "a BLUE variant is the best of the paper's methods, on either dataset",
            leaders,
            judge(*(best.low > 0)),
        ),
        *(
            Verdict("BLUE works with PMET too (efficacy, generalization)", points(rows), judge(*(rows.low > 0)))
            for rows in [of_pmet[of_pmet.measure == "editing"]]
            if len(rows)
        ),
    ]


def average_improvement(average: Mapping[str, Any]) -> Verdict:
    """Of the last row of :func:`~bluelib.reports.comparison.improvement`, which is about all models."""
    return Verdict(
        f"BLUE improves its methods by {PUBLISHED_IMPROVEMENT} % on average (the paper's abstract)",
        f"{average['improvement']:+.1f} % [{average['low']:+.1f}, {average['high']:+.1f}], median over settings "
        f"{average['median']:+.1f} %; {average['points']:+.1f} [{average['points_low']:+.1f}, "
        f"{average['points_high']:+.1f}] points",
        judge(
            average["low"] > 0 and average["points_low"] > 0,
            0 < average["low"] <= PUBLISHED_IMPROVEMENT <= average["high"],
        ),
    )


#: Points of mean accuracy that an editor may lose and count as keeping what the unedited model can do.
KEPT = 3


def capability(numbers: Numbers) -> list[Verdict]:
    """Of ``06_general_capability``."""
    gains, changes = (pd.DataFrame(numbers[name]) for name in ("gains", "changes"))
    gains, changes = gains[gains.task == MEAN], changes[changes.task == MEAN]
    plain, blue = (changes[changes.editor.isin(set(names))] for names in (gains.plain, gains.editor))
    from_start = lambda rows: rows[rows.since == 0]  # noqa: E731
    later = plain[plain.since > 0]
    listed = lambda rows: "; ".join(f"{entry(row.editor).label} {_points(row)}" for _, row in rows.iterrows())  # noqa: E731
    edits = numbers["parameters"]["edits"]
    return [
        Verdict(
            "a BLUE variant keeps more of the model's general capability than its plain method",
            f"after {edits} edits, less the plain method, paired over items: {listed(gains)} points of mean accuracy",
            judge(*(gains.low > 0)),
        ),
        Verdict(
            "the plain methods lose general capability as edits add up",
            f"change over all {edits} edits: {listed(from_start(plain))} points; from edit {later.since.iloc[0]} on: "
            f"{listed(later)} points",
            judge(*(plain.high < 0)),
        ),
        Verdict(
            f"the BLUE variants keep it: they lose less than {KEPT} points",
            f"change over all {edits} edits: {listed(from_start(blue))} points",
            judge(*(from_start(blue).low > -KEPT)),
        ),
    ]


def shift(numbers: Numbers) -> list[Verdict]:
    """Of ``07_hidden_state_shift``."""
    found = pd.DataFrame(numbers["shift"]).set_index(["measure", "editor"])
    differences = pd.DataFrame(numbers["differences"]).set_index("measure")
    half, facts = numbers["halves"], numbers["facts"]
    pairs = differences.loc[["energy"], ["plain", "blue"]].values.tolist()
    plain, blue = ([pair[i] for pair in pairs] for i in (0, 1))
    energy, displacement, kept = (differences.loc[[name]] for name in ("energy", "displacement", "recalled"))
    listed = lambda rows, digits: "; ".join(  # noqa: E731
        f"{entry(row.blue).label} {row['mean']:+.{digits}f} [{row.low:+.{digits}f}, {row.high:+.{digits}f}]"
        for _, row in rows.iterrows()
    )
    distances = lambda names: "; ".join(  # noqa: E731
        f"{entry(name).label} {found['mean']['energy', name]:.4f}" for name in names
    )
    return [
        Verdict(
            "editing without BLUE shifts the hidden states of known facts",
            f"energy distance to the unedited states, {facts} facts: {distances(plain)} (p by swaps up to "
            f"{max(found.p['energy', name] for name in plain):.4f}); two halves of the unedited facts have up to "
            f"{half['energy']:.4f}",
            judge(
                *(found.p["energy", name] < 0.05 for name in plain),
                *(found.low["energy", name] > half["energy"] for name in plain),
            ),
        ),
        Verdict(
            "BLUE keeps their distribution closer to the original one",
            f"energy distance, BLUE less plain: {listed(energy, 4)}, paired over facts",
            judge(*(energy.high < 0)),
        ),
        Verdict(
            "with BLUE the distribution is hardly another than before, where without it is",
            f"{distances(blue)}; without: {distances(plain)}; two halves of the unedited facts have up to "
            f"{half['energy']:.4f}",
            judge(*(found.high["energy", name] < half["energy"] < found.low["energy", other] for other, name in pairs)),
        ),
        Verdict(
            "BLUE moves single known facts less",
            f"displacement, BLUE less plain, in typical distances of two facts: {listed(displacement, 3)}",
            judge(*(displacement.high < 0)),
        ),
        Verdict(
            "with BLUE more of the known facts are still recalled",
            f"BLUE less plain: {listed(kept, 1)} points",
            judge(*(kept.low > 0)),
        ),
    ]


def long_form(numbers: Numbers) -> list[Verdict]:
    """Of ``08_long_form_and_batch``."""
    batch = pd.DataFrame(numbers["batch_differences"])
    size = int(batch.edits.max())
    largest = batch[batch.edits == size]
    long = pd.DataFrame(numbers["long_form_differences"])
    asked = long[(long.prompt == "question") & (long.metric != "whole")]
    times = pd.DataFrame(numbers["time_ratios"])
    points = lambda row: f"{row['metric']} {row['mean']:+.1f} [{row.low:+.1f}, {row.high:+.1f}]"  # noqa: E731

    def seen(rows: pd.DataFrame) -> str:
        groups = rows.groupby("blue", sort=False)
        return "; ".join(
            f"{entry(name).label} {', '.join(points(row) for _, row in group.iterrows())}" for name, group in groups
        )

    editing, of_pmet = largest.metric.isin(EDITING), largest.plain == "pmet"
    claims = [
        ("PMET_BLUE edits better than PMET in one large batch", largest[editing & of_pmet]),
        ("BLUE edits better in one large batch", largest[editing & ~of_pmet]),
        ("BLUE leaves more of the rest alone in one large batch", largest[largest.metric == "specificity"]),
    ]
    return [
        *(
            Verdict(
                claim,
                f"one batch of {size}, BLUE less plain in points: {seen(rows)}; paired over records",
                judge(*(rows.low > 0)),
                f"one batch of {size}",
            )
            for claim, rows in claims
            if len(rows)
        ),
        Verdict(
            "BLUE edits better where the target is a text of several sentences",
            f"{numbers['parameters']['edits']} edits, after the question, BLUE less plain in points: {seen(asked)}; "
            "paired over records",
            judge(*(asked.low > 0)),
        ),
        Verdict(
            "an edit with BLUE takes longer than one without (a public replication)",
            "times as long: "
            + "; ".join(f"{entry(row.blue).label} {_band(row)}" for _, row in times.iterrows())
            + ", paired over batches",
            judge(*(times.low > 1)),
        ),
    ]
