"""Write what the plain reference makes of a shipped model: targets and keys by every option of ``choices``.

    python -m benchmarks.golden tests/editing/golden.safetensors

The library is compared with the file, and not with the reference's present state: a change of both is noticed.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from bluelib.editing.targets import TargetOptions
from bluelib.io.tensors import save_tensors
from bluelib.models.load import load_model
from bluelib.models.model import Model
from bluelib.models.prompts import Request

from .plain import plain_keys, plain_target

MODEL, LAYERS = "pocket-llama", (1, 4)
PREFIXES = ("", "Every morning the fog lifts. ", "In Paris, people laugh. ", "What is for lunch? soup. ")
REQUESTS = (
    Request("{} is in", "Eiffel Tower", "Rome"),
    Request("The capital of {} is", "Peru", "Addis Ababa"),
    Request("Where is {}?", "Louvre", "East Timor"),
)
OPTIONS = TargetOptions(steps=12, learning_rate=2.0, clamp=1.5)
#: By name, the options of targets that are not the defaults.
CASES = {
    "subject": {},
    "prompt": {"kl_at": "prompt"},
    "mlp": {"component": "mlp", "clamp": 15.0, "learning_rate": 8.0, "early_stop": 0.0},
    "relaxed": {"component": "mlp", "clamp": 15.0, "learning_rate": 8.0, "early_stop": 0.0, "relax": True},
}


def options(case: str) -> TargetOptions:
    return replace(OPTIONS, **CASES[case])


def golden(model: Model) -> dict[str, Tensor]:
    """Targets ``(d_model,)`` by case, layer and request; keys ``(d_mlp, u)`` by mean and layer."""
    found = {
        f"{case}.layer{layer}.{i}": plain_target(model, request, layer, PREFIXES, options(case))[0].contiguous()
        for case in CASES
        for layer in LAYERS
        for i, request in enumerate(REQUESTS)
    }
    for mean in ("bare_half", "equal"):
        for layer in LAYERS:
            found[f"{mean}.layer{layer}"] = plain_keys(model, REQUESTS, layer, PREFIXES, mean).contiguous()
    return found


if __name__ == "__main__":
    lm = load_model(MODEL)
    save_tensors(Path(sys.argv[1]), golden(lm), {"model": MODEL, "revision": lm.revision})
