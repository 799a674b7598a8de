"""What a GPU is compared with: outcomes on a CPU, stored, so that the time of a GPU is not spent on a CPU's work.

python -m tests.support.gpu     # makes the stored file anew
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.common import machine
from bluelib import edit_sequence, evaluate, get_editor, load_dataset, load_model
from bluelib.editing.catalogue import names
from bluelib.io.formats import write_json

EXPECTED = Path(__file__).with_name("gpu_expected.json")
EDITS = load_dataset("pocket-counterfact", limit=20)
#: Every editor on one model, and one of each kind on the others.
CELLS = [("pocket-llama", name) for name in names()]
CELLS += [
    (model, name)
    for model in ("pocket-gpt2", "pocket-gptj")
    for name in ("ft", "rome", "memit_blue", "alphaedit", "pmet", "memit_fe")
]


def outcome(model: str, editor: str, device: str) -> dict[str, Any]:
    """Scores of twenty edits in batches of ten, and how far each edited matrix moved."""
    lm = load_model(model, device=device)
    run = edit_sequence(lm, EDITS, get_editor(editor, lm), batch_size=10, progress=False)
    changes = {str(layer): change for layer, change in run.weight_change().items()}
    return {"scores": dict(evaluate(lm, EDITS, generate=False).means), "weight_change": changes}


def main() -> None:
    found = {"-".join(cell): outcome(*cell, device="cpu") for cell in CELLS}
    write_json(EXPECTED, {"cells": found, "provenance": machine(load_model("pocket-llama"))}, indent=1)


if __name__ == "__main__":
    main()
