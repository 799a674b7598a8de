"""bluelib: a companion to "Rethinking Residual Distribution in Locate-then-Edit Model Editing" (BLUE, NeurIPS 2025)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .data.datasets import load_dataset, load_facts
    from .editing.catalogue import register
    from .editing.deltas import apply_delta
    from .editing.editor import Editor, blue, fe
    from .editing.named import get_editor
    from .editing.sequence import edit_sequence
    from .metrics import Before, evaluate
    from .models.load import load_model

__all__ = [
    "Before",
    "Editor",
    "apply_delta",
    "blue",
    "edit_sequence",
    "evaluate",
    "fe",
    "get_editor",
    "load_dataset",
    "load_facts",
    "load_model",
    "register",
]
__version__ = "0.2.0"

#: The module of each public name, loaded on first use: torch and transformers take seconds, a workflow needs neither.
_HOME = {
    "Before": "metrics",
    "Editor": "editing.editor",
    "apply_delta": "editing.deltas",
    "blue": "editing.editor",
    "edit_sequence": "editing.sequence",
    "evaluate": "metrics",
    "fe": "editing.editor",
    "get_editor": "editing.named",
    "load_dataset": "data",
    "load_facts": "data",
    "load_model": "models.load",
    "register": "editing.catalogue",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
