"""What a grid's editors need from a model before they run: second moments and null spaces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any


def describe_statistics(
    model: Any, editors: Sequence[str], *, corpus: str | None, tokens: int | None = None, null_spaces: bool
) -> dict[str, Any]:
    """Measure the second moments of a model that the editors of a grid need, and describe them.

    The description gives, by text with its number of tokens and by layer, the mean energy E‖k‖² of a key. With
    ``null_spaces``, those that editors work in are computed too, and their dimensions are given. Methods that use no
    second moments are passed over.
    """
    from ..editing.editor import Editor
    from ..editing.named import get_editor
    from ..editing.second_moments import null_space
    from ..editing.solvers import NullSpace

    found: dict[str, Any] = {}
    for name in editors:
        method = get_editor(name, model, corpus=corpus)
        if not (isinstance(method, Editor) and method.solver.needs_text):
            continue
        threshold = method.solver.threshold if isinstance(method.solver, NullSpace) else None
        count = method.tokens if tokens is None else tokens
        replace(method, tokens=count).check(model)
        for layer, moment in method.second_moments(model, method.layers, count).items():
            entry = found.setdefault(f"{method.corpus}, {count} tokens", {}).setdefault(str(layer), {})
            entry["d_mlp"], entry["energy"] = len(moment.matrix), round(moment.matrix.trace().item(), 6)
            if null_spaces and threshold is not None:
                basis = null_space(moment.matrix, threshold)
                entry.setdefault("null_space", {})[f"{threshold:g}"] = basis.shape[1]
    return {"model": model.name, "model_revision": model.revision, "editors": list(editors), "layers": found}
