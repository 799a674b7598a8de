"""How much text do second moments need? Measures C, the update that follows from it, and the scores of the edits,
against the number of tokens.

Public claims disagree: MEMIT's code reads 100,000 articles; less than 0.3 % of that is said to suffice
(arXiv:2506.04226); AlphaEdit's Table 6 loses 12 points of specificity with a tenth of the text.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from ..data import Record
from ..editing.editor import Editor, EditState
from ..editing.residuals import DIRECT
from ..editing.sequence import check_together, edited
from ..editing.solvers import Solver, SolverError
from ..editing.targets import default_token_budget
from ..io.checks import check_whole
from ..io.timing import progress_bar
from ..io.writing import atomic_file
from ..metrics.editing import TEACHER_FORCED, evaluate
from ..models.known import label_of_model, scale_of
from ..models.model import Model

#: Tokens of the text, as shares of the largest number.
SHARES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)


def rank(matrix: Tensor) -> int:
    """The number of eigenvalues above d · ε · the largest one, with float32's ε: the rank that its precision shows."""
    values = torch.linalg.eigvalsh(matrix.double())
    return int((values > len(matrix) * torch.finfo(torch.float32).eps * values[-1]).sum())


def relative_change(a: Tensor, b: Tensor) -> float:
    """‖A − B‖ / ‖B‖, Frobenius."""
    return ((a - b).norm() / b.norm()).item()


def solution(solver: Solver, moment: Tensor, keys: Tensor, residuals: Tensor) -> Tensor | None:
    """Δ with this C; None if its system cannot be factored."""
    try:
        return solver.solve(solver.prepare(moment), keys, residuals)
    except SolverError:
        return None


def convergence(
    model: Model,
    records: Sequence[Record],
    editors: Sequence[Editor],
    tokens: int | None = None,
    *,
    shares: Sequence[float] = SHARES,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Compare second moments of shares of the text with those of ``tokens`` tokens of it.

    Args:
        model: as loaded; it is left as it was.
        records: sample edits, made in one batch.
        editors: the editors whose solutions and scores are compared, each with its own settings.
        tokens: tokens of the whole text; by default the number in the first editor's settings.
        shares: in (0, 1], ascending; the last must be 1.

    Returns:
        Two tables. Per editor, layer and share: ``change`` of C, ``rank`` of C, and ``solution``, the change of Δ for
        the batch's keys and direct residuals on the unedited model (NaN if there is no unique solution). Per editor and
        share: the scores after the batch (NaN likewise).

    Raises:
        ValueError: if shares are not as above, ``tokens`` is below 1, or an editor has no second moments or does not
            make a batch of all records.
    """
    if not shares or list(shares) != sorted(set(shares)) or shares[0] <= 0 or shares[-1] != 1:
        raise ValueError(f"shares must ascend from above 0 to 1, not {list(shares)}")
    without = [editor.name for editor in editors if not (isinstance(editor, Editor) and editor.solver.needs_text)]
    if without:
        raise ValueError(f"editors without second moments: {', '.join(without)}; choose others, such as memit_blue")
    for editor in editors:
        check_together(editor, len(records))
    tokens = editors[0].tokens if tokens is None else tokens
    check_whole("tokens", tokens, 1)
    counts = [max(1, round(share * tokens)) for share in shares]
    requests = [record.request for record in records]
    rows, scores = [], []
    ranks: dict[tuple[str | None, int, int], int] = {}  # the same for editors with the same corpus
    for editor in editors:
        for n in progress_bar(counts, desc="second moments", unit="text"):
            editor.second_moments(model, editor.layers, n)  # caches all layers in one pass, to be read below
        for layer in editor.layers:
            moments = {n: editor.second_moments(model, [layer], n)[layer].matrix for n in counts}
            alone = replace(editor, layers=(layer,), residual=DIRECT)
            step = next(
                alone.steps(
                    model,
                    requests,
                    EditState(editor.prefixes(model), {}, editor.token_budget or default_token_budget(model)),
                )
            )
            keys, residuals = step.keys, step.missing
            whole = moments[tokens].to(keys.device)
            last = solution(editor.solver, whole, keys, residuals)
            for n in counts:
                moment = moments[n].to(keys.device)
                found = last if n == tokens else solution(editor.solver, moment, keys, residuals)
                place = (editor.corpus, layer, n)
                ranks[place] = ranks[place] if place in ranks else rank(moment)
                change = math.nan if found is None or last is None else relative_change(found, last)
                rows.append(
                    {
                        "editor": editor.name,
                        "layer": layer,
                        "tokens": n,
                        "share": n / tokens,
                        "d_mlp": len(moment),
                        "rank": ranks[place],
                        "change": relative_change(moment, whole),
                        "solution": change,
                    }
                )
        for n in progress_bar(counts, desc=f"edits with {editor.name}", unit="text"):
            scores.append(
                {
                    "editor": editor.name,
                    "tokens": n,
                    "share": n / tokens,
                    **_scores(model, records, replace(editor, tokens=n)),
                }
            )
    return pd.DataFrame(rows), pd.DataFrame(scores)


def _scores(model: Model, records: Sequence[Record], editor: Editor) -> dict[str, float]:
    try:
        with edited(model, records, editor, batch_size=len(records)):
            return evaluate(model, records, generate=False).means
    except SolverError:
        return dict.fromkeys(TEACHER_FORCED, math.nan)


def write_convergence(model: Model, rows: pd.DataFrame, scores: pd.DataFrame, edits: int, stem: Path) -> None:
    """Write ``stem.csv``, all rows, and ``stem.md``, one line per editor and number of tokens."""
    joined = rows.merge(scores, on=["editor", "tokens", "share"])
    with atomic_file(stem.with_name(f"{stem.name}.csv")) as temporary:
        joined.to_csv(temporary, index=False, lineterminator="\n", float_format="%.5g")
    metrics = [name for name in TEACHER_FORCED if name in scores]
    lines = [
        "Second moments of shares of the text against the whole; "
        f"{label_of_model(model.name)} ({scale_of(model.name, model.revision)} scale), d_mlp = {rows.d_mlp[0]}. "
        "C and Δ: relative change (Frobenius), the largest over the layers; rank: the least. "
        f"Scores after {edits} edits in one batch, in per cent; *none*: the system is singular, without a unique "
        "solution.",
        "",
        "| editor | tokens | share | rank of C | change of C | change of Δ | " + " | ".join(metrics) + " |",
        "|---" * (6 + len(metrics)) + "|",
    ]
    for (editor, tokens), group in joined.groupby(["editor", "tokens"], sort=False):
        worst = group.solution.max(skipna=False)
        cells = [
            editor,
            f"{tokens:,}",
            f"{100 * group.share.iloc[0]:.1f} %",
            f"{group['rank'].min()}",
            f"{group.change.max():.3f}",
            "none" if math.isnan(worst) else f"{worst:.3f}",
            *("none" if math.isnan(group[name].iloc[0]) else f"{group[name].iloc[0]:.1f}" for name in metrics),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    with atomic_file(stem.with_name(f"{stem.name}.md")) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
