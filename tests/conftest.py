from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import pytest
import torch
from transformers import AutoModelForCausalLM

from bluelib.models import Model
from bluelib.pocket.pretrain import pocket_config
from bluelib.pocket.tokenizer import build_tokenizer
from bluelib.sequence import preserved

ARCHITECTURES = ("pocket-gpt2", "pocket-gptj", "pocket-llama")


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


@lru_cache
def _made(name: str) -> Model:
    return random_model(name)


@pytest.fixture(params=ARCHITECTURES)
def any_model(request) -> Iterator[Model]:
    """Each architecture in turn; value projections are put back after each test."""
    model = _made(request.param)
    with preserved(model, range(model.n_layers)):
        yield model
