"""Records, targets, models with random weights and an editor, small enough for exact comparisons."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from bluelib.data import Record
from bluelib.editing import catalogue
from bluelib.editing.editor import Editor
from bluelib.editing.residuals import DISTRIBUTED
from bluelib.editing.solvers import Ridge
from bluelib.editing.targets import TargetOptions
from bluelib.models.model import Model
from bluelib.pocket.pretrain import pocket_config
from bluelib.pocket.tokenizer import build_tokenizer

ARCHITECTURES = ("pocket-gpt2", "pocket-gptj", "pocket-llama")
#: For tests of many cases: all three, of which `make test` runs one and `make test-long` the others.
QUICK_FIRST = [pytest.param(name, marks=[] if name == "pocket-llama" else pytest.mark.slow) for name in ARCHITECTURES]
#: For tests in which the architecture hardly matters.
LLAMA_FIRST = pytest.mark.parametrize("any_model", QUICK_FIRST, indirect=True)
#: For tests of every method: `make test` leaves out the variants of all but MEMIT, which are made of the same parts.
METHODS = [
    pytest.param(name, marks=pytest.mark.slow if row.variant and row.plain != "memit" else [])
    for name, row in ((name, catalogue.known(name)) for name in catalogue.names())
]
SUBJECTS = ["Ilvane Quillbrook", "Torrin Vantorre", "Zoë D'Astrelle", "Oskel Ashgrave", "Maribeth Okonmere"]
RECORDS = [
    Record(i, "counterfact", prompt, subject, new, "harp")
    for i, (subject, new, prompt) in enumerate(
        zip(
            SUBJECTS,
            ["tuba", "Swedish", "Rome", "kites", "East Timor"],
            ["{} plays the", "The mother tongue of {} is", "{} was born in", "The product of {} is", "{} votes in"],
            strict=True,
        )
    )
]
PREFIXES = ("", "Peru is far. ")
TARGETS = TargetOptions(steps=4, learning_rate=0.2)


def random_model(name: str, seed: int = 0) -> Model:
    """A small model of one of the three architectures with random weights, in float64 for exact comparisons."""
    tokenizer = build_tokenizer(bos=name == "pocket-llama")
    config = pocket_config(name, tokenizer)
    for key, value in {"n_layer": 4, "num_hidden_layers": 4, "n_inner": 96, "intermediate_size": 96}.items():
        if hasattr(config, key):
            setattr(config, key, value)
    torch.manual_seed(seed)
    lm = AutoModelForCausalLM.from_config(config, dtype=torch.float64).eval().requires_grad_(False)
    for parameter in lm.parameters():  # larger than at initialisation, so that the blocks matter
        parameter.mul_(4.0) if parameter.ndim > 1 else None
    return Model.of(f"random-{name}", lm, tokenizer)


def editor(solver=None, residual=DISTRIBUTED, layers=(0, 1, 2)):
    return Editor(layers, residual, solver or Ridge(50.0), targets=TARGETS, corpus="pocket", tokens=3000, name="test")


RIDGE, NULL_SPACE = {"mom2_update_weight": 50.0}, {"nullspace_threshold": 1e9, "l2": 2.0}
OWN: dict[str, dict[str, Any]] = {
    "alphaedit": NULL_SPACE,
    "alphaedit_cake": {**NULL_SPACE, "layer_scores": [0.1, 0.3, 0.2]},
    "alphaedit_nas": {**NULL_SPACE, "anchor": 7.0},
    "betaedit": {**NULL_SPACE, "leak": 4.0},
    "emmet": {},
    "encore": {**RIDGE, "norm_weight": 5.0},
    "ft": {"steps": 3, "learning_rate": 0.01},
    "memit_cake": {**RIDGE, "layer_scores": [0.1, 0.3, 0.2]},
    "mend": {},
    "rome": {},
    "sphere": {**NULL_SPACE, "strength": 0.25},
}


def own_settings(name: str, layers: int = 3) -> dict[str, Any]:
    """A method's own hyper-parameters, for so many layers of a small model."""
    own = dict(OWN.get(catalogue.known(name).plain or name, RIDGE))
    if "layer_scores" in own:
        own["layer_scores"] = own["layer_scores"][:layers]
    return own
