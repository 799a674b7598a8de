"""How much difference does the text make that second moments are measured on? C, Δ and scores, text by text.

    python -m benchmarks.second_moment_texts --texts sampled wikipedia.txt wikipedia.txt:200000 --output texts.json

The first text, at the largest number of tokens, is what the others are compared with. The targets of all edits are
optimised once, at the last critical layer, and MEMIT makes the edits in one batch with each text's second moments, so
that nothing but C differs.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bluelib.data import Record
from bluelib.data.corpora import corpus_hash
from bluelib.data.datasets import choosing_split, load_dataset
from bluelib.data.provenance import provenance
from bluelib.editing.editor import Editor
from bluelib.editing.named import get_composition
from bluelib.editing.second_moments import second_moments
from bluelib.editing.targets import Targets, optimise_targets
from bluelib.io.formats import write_json
from bluelib.metrics import evaluate
from bluelib.models.load import load_model
from bluelib.models.model import Model
from bluelib.models.representations import subject_hidden, subject_keys
from bluelib.runs.cell import summary


def edit(
    model: Model, records: Sequence[Record], editor: Editor, targets: Targets, moments: dict[int, Tensor]
) -> dict[int, Tensor]:
    """One batch with targets that are known already; Δ by layer. The model stays edited."""
    requests = [record.request for record in records]
    prefixes, last, updates = editor.prefixes(model), editor.layers[-1], {}
    for position, layer in enumerate(editor.layers):
        keys = subject_keys(model, requests, layer, prefixes, editor.key_mean)
        missing = targets.values - subject_hidden(model, requests, last)
        share = missing / editor.residual.divisor(len(editor.layers) - position)
        updates[layer] = editor.solver.solve(editor.solver.prepare(moments[layer]), keys, share).float()
        model.weight(layer).add_(updates[layer])
    return updates


def compare(
    model: Model, records: Sequence[Record], editor: Editor, texts: Sequence[tuple[str, int]]
) -> list[dict[str, Any]]:
    """A row for each text and number of tokens; relative changes are Frobenius, the largest over the layers."""
    requests = [record.request for record in records]
    targets = optimise_targets(model, requests, editor.layers[-1], editor.prefixes(model), editor.targets)
    rows: list[dict[str, Any]] = []
    first: tuple[dict[int, Tensor], dict[int, Tensor]] | None = None
    for corpus, tokens in texts:
        found = second_moments(model, editor.layers, corpus=corpus, tokens=tokens)
        moments = {layer: moment.matrix for layer, moment in found.items()}
        with model.preserved(editor.layers):
            before = {layer: model.weight(layer).norm() for layer in editor.layers}
            updates = edit(model, records, editor, targets, moments)
            scores = evaluate(model, records, generate=False)
        first = first or (moments, updates)
        rows.append(
            {
                "text": Path(corpus).name,
                "sha256": corpus_hash(corpus),
                "tokens": tokens,
                "change_of_C": max(_change(moments[n], first[0][n]) for n in editor.layers),
                "change_of_update": max(_change(updates[n], first[1][n]) for n in editor.layers),
                "weight_change": max((updates[n].norm() / before[n]).item() for n in editor.layers),
                "scores": summary(scores),
            }
        )
        print(rows[-1], flush=True)
    return rows


def _change(a: Tensor, b: Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dataset", default="facts")
    parser.add_argument("--edits", type=int, default=100)
    parser.add_argument("--texts", nargs="+", required=True, help="corpora, each perhaps with :TOKENS behind it")
    parser.add_argument("--tokens", type=int, default=20_000, help="of the texts without")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    model = load_model(arguments.model)
    records = load_dataset(arguments.dataset, split=choosing_split(arguments.dataset), limit=arguments.edits)
    editor = replace(get_composition("memit", model), corpus=None)
    parts = [text.rpartition(":") for text in arguments.texts]
    texts = [
        (name, int(n)) if n.isdigit() and name else (name + colon + n, arguments.tokens) for name, colon, n in parts
    ]
    with torch.no_grad():
        rows = compare(model, records, editor, texts)
    about = {"dataset": Path(arguments.dataset).name, "edits": len(records), "provenance": provenance(model, records)}
    write_json(arguments.output, {"rows": rows, **about}, indent=1)


if __name__ == "__main__":
    main()
