"""Published numbers of the paper and of those it builds on, each with its source, from the CSV files in ``published``.

A number without a public source is missing here, and tables show it as not available.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from pathlib import Path

import pandas as pd

from ..models.known import PAPER_MODELS, SMALL_MODELS

_COUNTERPART = {
    "pocket-gpt2": "GPT2-XL",
    "pocket-gptj": "GPT-J-6B",
    "pocket-llama": "Llama3-8B-Instruct",
    **dict.fromkeys(SMALL_MODELS, "Llama3-8B-Instruct"),
    **dict(zip(PAPER_MODELS, ("GPT2-XL", "GPT-J-6B", "Llama3-8B-Instruct"), strict=True)),
}
#: The average improvement in the paper's abstract, in per cent.
PUBLISHED_IMPROVEMENT = 35.59


def counterpart(model: str) -> str:
    """The name under which scores of the model, or of the LLM with the same architecture, are published; if there are
    none, the model's own name."""
    return _COUNTERPART.get(model, model)


def benchmark(dataset: str) -> str:
    """The benchmark that a dataset's name contains, ``counterfact`` or ``zsre``; otherwise the dataset's own name."""
    stem = Path(dataset).stem
    return next((name for name in ("counterfact", "zsre") if name in stem), stem)


def has_published(model: str) -> bool:
    """Whether there are published scores of the model, or of the LLM with the same architecture."""
    return counterpart(model) in {place[0] for place in _scores()}


@cache
def _published(name: str) -> pd.DataFrame:
    with files(__package__).joinpath("published", f"{name}.csv").open(encoding="utf-8") as file:
        return pd.read_csv(file)


def published(name: str) -> pd.DataFrame:
    """One of the CSV files.

    They are ``published_results``; ``replications_fe`` (another group's, under its own protocol);
    ``single_layer_editing`` and ``single_layer_replication`` (another group's, 10,000 edits); ``layer_analysis`` (read
    from pictures, ± 0.02 of their axes); ``optimisation_steps``; ``edit_seconds``; and ``hyperparameters``.
    """
    return _published(name).copy()


def published_score(
    model: str, dataset: str, method: str, metric: str, edits: int = 2000, *, kind: str = "published"
) -> tuple[float, float | None, str] | None:
    """A published score of the main table, the number after its ± (None if it has none) and its source.

    Returns None if there is no published score.

    ``kind`` is ``published``, by the authors of a method, or ``replication``, by others.
    """
    return _scores().get((model, dataset, method, metric, edits, kind))


@cache
def _scores() -> dict[tuple[str, str, str, str, int, str], tuple[float, float | None, str]]:
    table = published("published_results")
    return {
        (row.model, row.dataset, row.method, row.metric, row.edits, row.kind): (
            float(row.value),
            None if pd.isna(row.sd) else float(row.sd),
            row.source,
        )
        for row in table.itertuples()
    }
