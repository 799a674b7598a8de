"""A long sequence of edits: resident memory and time per hundred edits, neither of which may grow.

    python -m benchmarks.soak                                   # 1,000 batches of one edit, two editors
    python -m benchmarks.soak --batch-size 10 --editors alphaedit_blue
    python -m benchmarks.soak --model smollm2-135m --dataset data/counterfact_2000.json --batch-size 50

What an editor remembers of earlier edits is a matrix of a fixed size (a solver's factor), not a list of their keys.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from statistics import fmean

import psutil

from bluelib import edit_sequence, get_editor, load_dataset, load_model
from bluelib.data import Record
from bluelib.editing.method import BatchResult, Method
from bluelib.models.model import Model


def soak(
    model: Model, editor: Method, records: Sequence[Record], *, batch_size: int, every: int = 100, show: bool = False
) -> list[dict]:
    """Edit all records in sequence: a row after every ``every`` edits and the last one. The model is put back.

    Returns:
        Rows with ``edits`` so far, the process's ``resident_mb``, the ``seconds`` of processor time since the row
        before (the first batch, which prepares, is not counted), and the ``steps`` of optimising an edit's targets,
        their mean since the row before: a model that has taken many edits needs more of them, and so more time. With
        ``show`` each row is printed as it comes.
    """
    process, rows, began, steps = psutil.Process(), [], 0.0, []

    def note(number: int, result: BatchResult) -> None:
        nonlocal began
        steps.append(result.steps)
        edits = min((number + 1) * batch_size, len(records))
        if number and (edits % every == 0 or edits == len(records)):
            resident = process.memory_info().rss / 2**20
            rows.append(
                {"edits": edits, "resident_mb": resident, "seconds": time.process_time() - began, "steps": fmean(steps)}
            )
            if show:
                print(f"| {edits} | {resident:.1f} | {rows[-1]['seconds']:.1f} | {rows[-1]['steps']:.1f} |", flush=True)
        if not number or edits % every == 0:
            began = time.process_time()
            steps.clear()

    with model.preserved(editor.layers):
        edit_sequence(
            model, records, editor, batch_size=batch_size, on_conflict="keep", progress=False, after_batch=note
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="pocket-llama")
    parser.add_argument("--dataset", default="pocket-counterfact")
    parser.add_argument("--editors", nargs="+", default=["memit_blue", "alphaedit_blue"])
    parser.add_argument("--edits", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=1)
    arguments = parser.parse_args()
    model = load_model(arguments.model)
    records = load_dataset(arguments.dataset, limit=arguments.edits)
    for name in arguments.editors:
        print(f"\n{name}, {model.name}, batches of {arguments.batch_size}\n")
        print("| edits | resident MB | seconds | steps |\n|---|---|---|---|", flush=True)
        soak(model, get_editor(name, model), records, batch_size=arguments.batch_size, show=True)


if __name__ == "__main__":
    main()
