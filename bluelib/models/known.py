"""The models that this project knows by name, and the scale that results of each belong to; needs no torch."""

from __future__ import annotations

from pathlib import Path

from ..io.assets import ASSETS

#: The paper's models.
PAPER_MODELS = ("gpt2-xl", "EleutherAI/gpt-j-6B", "meta-llama/Meta-Llama-3-8B-Instruct")


def scale_of(name: str) -> str:
    """The scale that results of a model belong to: ``pocket``, ``paper``, or ``other`` for any other model."""
    return "pocket" if name in pocket_models() else "paper" if name in PAPER_MODELS else "other"


def pocket_models() -> dict[str, Path]:
    """The models shipped with the project: name to folder."""
    return {path.name: path for path in sorted((ASSETS / "models").glob("pocket-*")) if path.is_dir()}
