"""Does AlphaEdit's premise hold? What the null space of C keeps of the keys of edited subjects, and of C itself.

AlphaEdit assumes that C has a large null space, that the text's keys have next to no energy in it (so that an update
there disturbs nothing), and that the keys of edited subjects have enough (so that an update there can reach them).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from ..data import Record
from ..editing.editor import Editor
from ..editing.second_moments import second_moments
from ..io.writing import atomic_file
from ..models.known import label_of_model, scale_of
from ..models.model import Model
from ..models.representations import subject_keys

THRESHOLDS = (1e-5, 1e-4, 1e-3, 1e-2, 2e-2, 1e-1)


def energy_shares(second_moment: Tensor, keys: Tensor, thresholds: Sequence[float]) -> list[dict[str, float]]:
    """Per threshold: the null space's dimension, and the shares of energy in it.

    Args:
        second_moment: C, ``(d_mlp, d_mlp)``.
        keys: K, ``(d_mlp, u)``.
        thresholds: eigenvalues of C below it count as zero.

    Returns:
        For each threshold ``dimension`` (as a share of d_mlp), ``key_energy`` = ‖Uᵀ K‖² / ‖K‖² and
        ``moment_energy`` = tr(Uᵀ C U) / tr(C), all in [0, 1].
    """
    values, vectors = torch.linalg.eigh(second_moment.double())
    energy = (vectors.T @ keys.double().to(values.device)).square().sum(1)
    rows = []
    for threshold in thresholds:
        inside = values < threshold
        rows.append(
            {
                "threshold": threshold,
                "dimension": inside.double().mean().item(),
                "key_energy": (energy[inside].sum() / energy.sum()).item(),
                "moment_energy": (values[inside].clamp_min(0).sum() / values.clamp_min(0).sum()).item(),
            }
        )
    return rows


def null_space_report(model: Model, records: Sequence[Record], editor: Editor, corpora: Sequence[str]) -> pd.DataFrame:
    """:func:`energy_shares` per corpus and layer of an editor, with the keys that it has for the records' subjects."""
    requests, prefixes = [record.request for record in records], editor.prefixes(model)
    keys = {layer: subject_keys(model, requests, layer, prefixes, editor.key_mean) for layer in editor.layers}
    rows = []
    for corpus in corpora:
        for layer, moment in second_moments(model, editor.layers, corpus=corpus, tokens=editor.tokens).items():
            for row in energy_shares(moment.matrix, keys[layer], THRESHOLDS):
                rows.append({"model": model.name, "d_mlp": len(moment.matrix), "corpus": corpus, "layer": layer, **row})
    return pd.DataFrame(rows)


def write_null_space_report(model: Model, frame: pd.DataFrame, stem: Path) -> None:
    """Write ``stem.csv``, and ``stem.md`` with one line per corpus and layer and one column per threshold."""
    with atomic_file(stem.with_name(f"{stem.name}.csv")) as temporary:
        frame.round(6).to_csv(temporary, index=False, lineterminator="\n")
    lines = [
        f"Shares in the null space of C, {label_of_model(model.name)} ({scale_of(model.name, model.revision)} scale, "
        f"d_mlp = {frame.d_mlp[0]}), in per cent: *dimension / energy of edited subjects' keys / energy of C*. "
        "AlphaEdit's premise is a large first, a large second and a negligible third number.",
        "",
        "| corpus | layer | " + " | ".join(f"< {threshold:g}" for threshold in THRESHOLDS) + " |",
        "|---" * (2 + len(THRESHOLDS)) + "|",
    ]
    for (corpus, layer), rows in frame.groupby(["corpus", "layer"], sort=False):
        cells = (
            f"{100 * r.dimension:.1f} / {100 * r.key_energy:.2f} / {100 * r.moment_energy:.3f}"
            for r in rows.itertuples()
        )
        lines.append(f"| {corpus} | {layer} | " + " | ".join(cells) + " |")
    with atomic_file(stem.with_name(f"{stem.name}.md")) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
