"""Claims of the paper against what a notebook saw: each claim is a condition on the notebook's numbers.

A verdict is *reproduced* where all of a claim's conditions hold, *partly* where some do, and *not at this scale* where
none does. A condition on a mean is one on its 95 % interval where the notebook has one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import pandas as pd

Numbers = Mapping[str, Any]


class Verdict(NamedTuple):
    """One row of the table that ends a notebook."""

    claim: str
    seen: str
    verdict: str


def judge(*conditions: bool) -> str:
    """*reproduced*, *partly* or *not at this scale*: all, some or none of the conditions hold."""
    return "reproduced" if all(conditions) else "partly" if any(conditions) else "not at this scale"


def as_table(verdicts: Sequence[Verdict]) -> str:
    """The verdicts as a Markdown table."""
    lines = ["| claim | what we see | verdict |", "|---|---|---|"]
    return "\n".join([*lines, *(f"| {v.claim} | {v.seen} | **{v.verdict}** |" for v in verdicts)])


def _frame(numbers: Numbers, name: str, by: str) -> pd.DataFrame:
    return pd.DataFrame(numbers[name]).sort_values(by)


def _falls(values: Sequence[float]) -> bool:
    return all(a > b for a, b in pairwise(values))


def _list(values: Sequence[float], digits: int = 2) -> str:
    return ", ".join(f"{value:.{digits}f}" for value in values)


def locate(numbers: Numbers) -> list[Verdict]:
    """Of ``01_locate``."""
    effects = pd.DataFrame(numbers["effects"])
    n = int(effects.layer.max()) + 1
    mlp, attention = (effects[effects.kind == kind] for kind in ("mlp", "attention"))
    best = mlp.loc[mlp["mean"].idxmax()]
    best_attention = attention.loc[attention["mean"].idxmax()]
    here = effects[effects.role == "last subject"].set_index(["kind", "layer"])["mean"]
    found, configured = numbers["layers"]["tracing"], numbers["layers"]["configured"]
    start = configured[0]
    whole, severed = here["hidden", start], here["hidden, MLPs severed", start]
    severed_attention = here["hidden, attention severed", start]
    shared = len(set(found) & set(configured))
    return [
        Verdict(
            "MLPs recall a fact at the subject's last token, in early to middle layers (ROME)",
            f"largest MLP effect {best['mean']:.3f} at layer {best.layer}, {best.role} token; "
            f"largest attention effect {best_attention['mean']:.3f} at layer {best_attention.layer}, "
            f"{best_attention.role} token",
            judge(best.role == "last subject", best.layer < 2 * n / 3),
        ),
        Verdict(
            "it is the MLPs after a critical layer, more than attention, that carry its state's effect (MEMIT)",
            f"effect of layer {start}'s state {whole:.3f}; with later MLPs severed {severed:.3f}, "
            f"with later attention severed {severed_attention:.3f}",
            judge(severed < 0.5 * whole, severed < severed_attention),
        ),
        Verdict(
            "tracing names the layers to edit",
            f"tracing: {found}; editing (configured): {configured}; {shared} of {len(configured)} in common",
            "reproduced" if shared == len(configured) else "partly" if shared else "not at this scale",
        ),
    ]


def theory(numbers: Numbers) -> list[Verdict]:
    """Of ``02_weight_shift_theory``."""
    tightness = pd.DataFrame(numbers["tightness"])
    far = tightness[tightness.distance == tightness.distance.max()].set_index("bound")["median"]
    relative = _frame(numbers, "relative", "distance")["mean"].tolist()
    history = _frame(numbers, "history", "earlier_edits")
    cells, violations = numbers["cells"], numbers["violations"]
    return [
        Verdict(
            "‖Δ* − Δ‖ is at most the bound of Theorem 4.1",
            f"{violations} violations in {cells} cells; so do three closer bounds",
            judge(violations == 0),
        ),
        Verdict(
            "the bound tells how large the error is",
            f"at the largest distance the paper's bound is {far['paper']:.1f} times the error, "
            f"tight {far['tight']:.1f}, shared {far['shared']:.1f} times",
            judge(far["paper"] < 2, far["shared"] < 2),
        ),
        Verdict(
            "the error grows with the distance L − l",
            f"‖E‖/‖R*Q‖ at L − l = 0, 1, …: {_list(relative)}",
            judge(relative[-1] > relative[0], _falls(relative[::-1])),
        ),
        Verdict(
            "with earlier keys the error grows, through ‖Q_p‖ (Lemma 4.3)",
            f"‖Q_p‖ from {history.norm_q.iloc[0]:.4g} without to {history.norm_q.iloc[-1]:.4g} with "
            f"{history.earlier_edits.iloc[-1]} earlier edits, while ‖K_pK_pᵀ‖ grows to "
            f"{history.norm_history.iloc[-1]:.4g}",
            judge(history.norm_q.iloc[-1] > history.norm_q.iloc[0]),
        ),
    ]


def residuals(numbers: Numbers) -> list[Verdict]:
    """Of ``03_residuals``."""
    contribution = _frame(numbers, "contributions", "layer")
    direct = contribution[contribution.residual == "direct"]["mean"].tolist()
    shared = contribution[contribution.residual == "distributed"]["mean"].tolist()
    compared = _frame(numbers, "compared", "layer")
    cosine = compared[compared.measure == "cosine"]["mean"].tolist()
    deviation = compared[compared.measure == "deviation"]["mean"].tolist()
    steps = _frame(numbers, "steps", "layer")["mean"].tolist()
    drop = 1 - steps[1] / steps[0] if steps[0] else 0.0
    single = pd.DataFrame(numbers["single_layer"])
    efficacy = single[single.metric == "efficacy"].pivot(index="layer", columns="residual", values="mean").iloc[:-1]
    ratio = efficacy.direct.mean() / max(efficacy.distributed.mean(), 1e-9)
    differences = pd.DataFrame(numbers["single_layer_differences"])
    gains = differences[differences.metric == "efficacy"]
    return [
        Verdict(
            "a distributed residual contributes near 1 at the last critical layer only, under 0.7 elsewhere and under "
            "0.1 at the first",
            f"from first to last: {_list(shared)}",
            judge(max(shared[:-1]) < 0.7, shared[0] < 0.1, shared[-1] > 0.8),
        ),
        Verdict(
            "a direct residual contributes near 1 at every layer",
            f"from first to last: {_list(direct)}",
            judge(*(value > 0.8 for value in direct)),
        ),
        Verdict(
            "the two residuals' cosine falls with distance",
            f"from first to last: {_list(cosine)}",
            judge(_falls(cosine[::-1])),
        ),
        Verdict(
            "‖R* − R^L‖ grows with distance",
            f"from first to last: {_list(deviation, 1)}",
            judge(_falls(deviation)),
        ),
        Verdict(
            "once the first layer is updated, the second needs far fewer steps (by 84 % on GPT-J, 55.6 % on Llama3), "
            "and the third fewer than 2",
            f"steps from first to last: {_list(steps)}: {drop:.0%} fewer",
            judge(drop > 0.5, steps[2] < 2),
        ),
        Verdict(
            "single-layer editing is more than 3 times as effective with direct residuals",
            f"mean efficacy before the last layer {efficacy.direct.mean():.1f} % direct, "
            f"{efficacy.distributed.mean():.1f} % distributed ({'over 100' if ratio > 100 else f'{ratio:.1f}'} times); "
            f"least paired gain {gains['mean'].min():.1f} points, interval from {gains['low'].min():.1f}",
            judge(ratio > 3, gains["low"].min() > 0),
        ),
    ]


def growth(numbers: Numbers) -> list[Verdict]:
    """Of ``04_error_growth``."""
    relative = _frame(numbers, "by_distance", "distance")
    batch, sequence = (numbers["growth"][name] for name in ("batch", "sequence"))
    spread = lambda found: f"n^{found['mean']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"  # noqa: E731
    edited = pd.DataFrame(numbers["scores_by_sequence"])
    end = edited[edited.edits == edited.edits.max()].set_index(["editor", "metric"])["mean"]
    ablation = pd.DataFrame(numbers["ablation_best"]).set_index("choice")
    against = pd.DataFrame(numbers["ablation_differences"]).set_index("choice")
    one = ablation[ablation.family == "one layer, direct"].success.idxmax()
    verdicts = [
        Verdict(
            "the error grows with the distribution distance",
            f"‖E‖/‖R*Q‖: {_list(relative['mean'].tolist())} at distance 0 to {relative.distance.max()}",
            judge(_falls(relative["mean"].tolist()[::-1]), relative["low"].iloc[-1] > relative["high"].iloc[1]),
        ),
        Verdict(
            "the error grows with the batch size, through ‖Q‖",
            f"‖E‖ ∝ {spread(batch['error'])}, ‖Q‖ ∝ {spread(batch['norm_q'])}",
            judge(batch["error"]["low"] > 0, batch["norm_q"]["low"] > 0),
        ),
        Verdict(
            "the error grows with the length of the edit sequence",
            f"gathered error ∝ {spread(sequence['total'])}; error of one batch ∝ {spread(sequence['error'])}",
            judge(sequence["total"]["low"] > 0, sequence["error"]["low"] > 0),
        ),
        Verdict(
            "BLUE edits better than MEMIT at the end of the sequence",
            "; ".join(
                f"{metric} {end['memit', metric]:.1f} → {end['memit_blue', metric]:.1f}"
                for metric in ("efficacy", "generalization", "specificity")
            ),
            judge(*(end["memit_blue", m] > end["memit", m] for m in ("efficacy", "generalization", "specificity"))),
        ),
    ]
    difference = against.loc[one]
    verdicts.append(
        Verdict(
            "one layer is about as good as BLUE's two (a public replication, Llama3)",
            f"best single layer, {one}: success {ablation.success[one]:.1f} against {ablation.success['BLUE']:.1f}, "
            f"paired difference {difference['mean']:.1f} [{difference['low']:.1f}, {difference['high']:.1f}] points "
            "at the same specificity",
            judge(difference["high"] > 0, difference["low"] > -3),
        )
    )
    return verdicts
