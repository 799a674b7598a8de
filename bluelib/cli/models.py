"""Commands about models: list them, examine and ask one, and train the pocket models."""

from __future__ import annotations

import json
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

from .common import MODEL_HELP, PLACE, Answer, Option, begins_anew, command


@command(example="blue models")
def models(arguments: Namespace) -> Answer:
    """List the models that ship with the project, and those that are downloaded on first use."""
    from ..models.download import cached_model
    from ..models.known import DOWNLOADS, pocket_models

    configs = {name: json.loads((path / "config.json").read_text("utf-8")) for name, path in pocket_models().items()}
    found = {name: config["architectures"][0] for name, config in configs.items()}
    lines = [f"{name:16} {architecture}" for name, architecture in found.items()]
    here = {name: cached_model(name) for name in DOWNLOADS}
    for name, source in DOWNLOADS.items():
        where = f"in {here[name]}" if here[name].exists() else f"to download on first use, {source.size / 1e6:.0f} MB"
        lines.append(f"{name:16} {source.architecture}: {source.label}; {where}")
        found[name] = source.architecture
    lines.append("or the path of a local checkpoint or a GGUF file, or a hub id; architectures: see docs/adapters.md")
    downloaded = {name: str(path) if path.exists() else None for name, path in here.items()}
    return Answer({"models": found, "downloaded": downloaded}, "\n".join(lines))


@command(
    Option("model", help=MODEL_HELP),
    *PLACE,
    example="blue doctor pocket-llama",
    kept=begins_anew,
)
def doctor(arguments: Namespace) -> Answer:
    """Report what the library finds in a model, and check its assumptions about the model."""
    from ..models.load import load_model
    from ..studies.doctor import examine, report

    findings = examine(load_model(arguments.model, device=arguments.device, dtype=arguments.dtype))
    return Answer(findings.as_dict(), report(findings), 0 if findings.healthy else 1)


@command(
    Option("model", help=MODEL_HELP),
    Option("prompt", help="the text to continue or, with --chat, what a user says to the model"),
    Option("--chat", action="store_true", help="put the prompt into a user's turn of the tokenizer's chat template"),
    Option("--delta", type=Path, metavar="FILE", help="first apply an edit: a file that --save-delta wrote"),
    Option("--tokens", type=int, default=40, help="the maximum number of tokens"),
    Option("--top", type=int, default=5, help="how many of the most probable next tokens to list"),
    *PLACE,
    example='blue ask pocket-llama "The Eiffel Tower is in"',
    kept=begins_anew,
)
def ask(arguments: Namespace) -> Answer:
    """Let a model continue a prompt, and list the most probable next tokens."""
    from ..editing.deltas import apply_delta
    from ..models.load import load_model

    model = load_model(arguments.model, device=arguments.device, dtype=arguments.dtype)
    if arguments.delta:
        apply_delta(model, arguments.delta)
    reply = model.ask(arguments.prompt, chat=arguments.chat, tokens=arguments.tokens, top=arguments.top)
    top = [{"token": token, "probability": probability} for token, probability in reply.top]
    return Answer({"model": model.name, "prompt": reply.prompt, "text": reply.text, "top": top}, str(reply))


@command(
    Option("name", help="pocket-gpt2, pocket-gptj or pocket-llama"),
    Option("--output", type=Path, help="the folder to write; by default the shipped model is replaced"),
    Option("--device", default="cpu", help="a torch device"),
    Option("--steps", type=int, help="training steps; by default the recipe's"),
    example="blue pretrain pocket-gpt2",
)
def pretrain(arguments: Namespace) -> Answer:
    """Train a pocket model from scratch, or continue an interrupted training."""
    from ..pocket.card import make_model
    from ..pocket.pretrain import recipe_for

    recipe = recipe_for(arguments.name)
    if arguments.steps is not None:
        recipe = replace(recipe, steps=arguments.steps)
    return _recalled(make_model(arguments.name, arguments.output, device=arguments.device, recipe=recipe))


@command(Option("model", help="a pocket model, or the folder of one"), example="blue recall pocket-gpt2")
def recall(arguments: Namespace) -> Answer:
    """Measure a pocket model's facts and skills, and compare them with the bars."""
    from ..models.load import load_model
    from ..pocket.recall import recall

    return _recalled(recall(load_model(arguments.model)))


def _recalled(found: dict[str, float]) -> Answer:
    from ..pocket.recall import bar, short_of_bar

    below = short_of_bar(found)
    lines = [
        f"{name:24} {value:6.2f} %   (bar {bar(name):.0f} %){'   below' if name in below else ''}"
        for name, value in found.items()
    ]
    return Answer({"recall": found, "below": below}, "\n".join(lines), 1 if below else 0)
