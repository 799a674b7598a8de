"""How long edits take."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from ..data import Record
from ..editing.method import Method
from ..io.timing import Timer, progress_bar
from ..models.model import Model


def seconds_by_batch(
    model: Model, records: Sequence[Record], editors: Sequence[Method], batch_size: int
) -> pd.DataFrame:
    """Wall-clock seconds of every batch by phase, for each editor; the model is left as it was.

    All editors edit a batch before the next one begins, so they are compared under the same load. Every edit starts
    from the unedited weights; keys of earlier batches are remembered as in a sequence. The first batch is edited once
    beforehand, which is not counted. What is made once per model (second moments, their factors) is not counted either.

    Returns:
        Columns ``editor``, ``batch``, ``edits``, ``phase``, ``seconds``.
    """
    batches = [[r.request for r in records[i : i + batch_size]] for i in range(0, len(records), batch_size)]
    rows = []
    with model.preserved({layer for editor in editors for layer in editor.layers}):
        for editor in editors:
            model.edit_in_float32(editor.layers)
        states = {editor.name: editor.prepare(model) for editor in editors}
        for number, requests in enumerate(
            progress_bar([batches[0], *batches], desc="timing", unit="batch", leave=False)
        ):
            for editor in editors:
                timer, state = Timer(), states[editor.name]
                with model.preserved(editor.layers):
                    result = editor.edit(model, requests, state, timer)
                if number:
                    with timer("remember"):
                        editor.remember(state, result.keys)
                    rows += [
                        {
                            "editor": editor.name,
                            "batch": number - 1,
                            "edits": len(requests),
                            "phase": phase,
                            "seconds": seconds,
                        }
                        for phase, seconds in timer.seconds.items()
                    ]
    return pd.DataFrame(rows)
