"""Make and document a pocket model: train it, add its context prefixes, measure it, write its card."""

from __future__ import annotations

import json
from pathlib import Path

from ..io.assets import ASSETS, update_sums
from ..io.formats import read_json
from ..io.writing import atomic_file
from ..models.contexts import FILE, make_prefixes
from ..models.load import load_model
from .pretrain import Recipe, pretrain, recipe_for
from .recall import bar, recall, short_of_bar

#: Openings of the generated context prefixes; all of them occur in the pocket text.
OPENINGS = ("The", "In", "What", "At", "Every")


def make_model(name: str, output: Path | None = None, *, device: str = "cpu", recipe: Recipe | None = None) -> dict:
    """``blue pretrain``: train ``name`` into ``output`` (default: where shipped models are) and document it.

    Returns:
        What :func:`~bluelib.pocket.recall.recall` measured.

    Raises:
        ValueError: if the recipe is not the model's own and there is no ``output``: a model ships with its own recipe.
    """
    if output is None and recipe not in (None, recipe_for(name)):
        raise ValueError(f"{name} ships with its own recipe; to use another one, give an output folder (--output)")
    output = output or ASSETS / "models" / name
    found: dict[str, float] = {}
    pretrain(name, output, device=device, recipe=recipe, complete=lambda folder: found.update(document(folder)))
    update_sums(output)
    return found


def document(folder: Path) -> dict[str, float]:
    """Write ``contexts.json``, ``recall.json`` and ``README.md`` beside a trained model's weights."""
    model = load_model(str(folder))
    make_prefixes(model, folder / FILE, openings=OPENINGS)
    found = recall(model)
    training = read_json(folder / "training.json")
    _write(folder / "recall.json", json.dumps({"weights": model.revision, **found}, indent=1) + "\n")
    _write(folder / "README.md", _card(model, training, found))
    return found


def _card(model, training: dict, found: dict[str, float]) -> str:
    parameters = sum(p.numel() for p in model.hf_model.parameters())
    rows = "\n".join(f"| {name.replace('_', ' ')} | {value:.2f} | {bar(name):.0f} |" for name, value in found.items())
    curve = training["curve"]
    points = curve[:: max(1, len(curve) // 12)] + curve[-1:]
    losses = "\n".join(f"| {step} | {loss:.3f} | {answers:.3f} |" for step, loss, answers in points)
    failed = short_of_bar(found)
    verdict = f"Below the bar: {', '.join(failed)}." if failed else "All bars are met."
    recipe = "\n".join(f"| {key} | {value} |" for key, value in training["recipe"].items())
    return f"""---
license: mit
language: en
tags: [toy, model-editing]
---
# {training["name"]}

A {type(model.hf_model).__name__} of {parameters / 1e6:.2f} million parameters, {model.n_layers} layers, d_model
{model.weight(0).shape[0]}, d_mlp {model.weight(0).shape[1]}, trained from scratch on the pocket world of bluelib. Its
geography is real; the people, companies and places it speaks of are invented. It is made to be edited, and is of no
use for anything else.

Made again by `blue pretrain {training["name"]}` ({training["seconds"] / 60:.0f} minutes on {training["threads"]}
threads of {training["device"]}, torch {training["torch"]}). Weights are stored as float16 safetensors; the project
computes in float32 with them.

Training text: `sha256:{training["data"]}`. Weights: `{model.revision}`.

## Recall (per cent)

| what | measured | bar |
|---|---|---|
{rows}

{verdict} See `bluelib.pocket.recall` for the definitions; printed by `blue recall {training["name"]}`.

## Recipe

| | |
|---|---|
{recipe}

## Training loss

`loss` is what was minimised, `answers` the plain cross-entropy of the answers' tokens (both in nats per token).

| step | loss | answers |
|---|---|---|
{losses}

The full curve is in `training.json`.
"""


def _write(path: Path, text: str) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
