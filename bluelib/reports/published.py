"""Published figures of the paper and of those it builds on, each with its source; see the CSV files beside this one.

A figure that no public source has is not here, and a table shows it as not available.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import pandas as pd

from ..models import PAPER_MODELS

_COUNTERPART = {
    "pocket-gpt2": "GPT2-XL",
    "pocket-gptj": "GPT-J-6B",
    "pocket-llama": "Llama3-8B-Instruct",
    **dict(zip(PAPER_MODELS, ("GPT2-XL", "GPT-J-6B", "Llama3-8B-Instruct"), strict=True)),
}
_WITH_BLUE = {"memit": "MEMIT", "memit_history": "MEMIT (history)", "prune": "PRUNE", "rect": "RECT",
              "alphaedit": "AlphaEdit", "pmet": "PMET"}  # fmt: skip
#: By an editor's name, the method's name in tables, in their order.
METHOD = {"pre-edited": "pre-edited", "ft": "FT", "mend": "MEND", "rome": "ROME"} | {
    f"{editor}{suffix}": f"{name}{suffix.upper()}" for editor, name in _WITH_BLUE.items() for suffix in ("", "_blue")
}


def counterpart(model: str) -> str:
    """The name under which figures of a model are published: its own, or that of the same architecture."""
    return _COUNTERPART.get(model, model)


def benchmark(dataset: str) -> str:
    """The benchmark that a dataset has the schema of: ``counterfact``, ``zsre``, or its own name."""
    stem = Path(dataset).stem
    return next((name for name in ("counterfact", "zsre") if name in stem), stem)


def published(name: str) -> pd.DataFrame:
    """One of the CSV files: ``published_results``, ``single_layer_editing``, ``optimisation_steps``,
    ``edit_seconds`` or ``hyperparameters``."""
    with files(__package__).joinpath("published", f"{name}.csv").open(encoding="utf-8") as file:
        return pd.read_csv(file)


def published_score(model: str, dataset: str, method: str, metric: str, edits: int = 2000) -> tuple[float, str] | None:
    """A published main-table figure and its source, or None if there is none."""
    table = published("published_results")
    rows = table[
        (table.model == model) & (table.dataset == dataset) & (table.method == method) & (table.metric == metric)
        & (table.edits == edits) & (table.kind == "published")
    ]  # fmt: skip
    return None if rows.empty else (float(rows.iloc[0].value), str(rows.iloc[0].source))
