"""bluelib: a companion to "Rethinking Residual Distribution in Locate-then-Edit Model Editing" (BLUE, NeurIPS 2025)."""

from .data import load_dataset
from .deltas import apply_delta
from .editors import Editor, blue, get_editor
from .metrics import evaluate
from .models import load_model
from .sequence import edit_sequence

__all__ = ["Editor", "apply_delta", "blue", "edit_sequence", "evaluate", "get_editor", "load_dataset", "load_model"]
__version__ = "0.1.0"
