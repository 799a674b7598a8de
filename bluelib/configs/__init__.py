"""Hyper-parameters: one YAML file per model, with the critical layers and the settings of each editor."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import yaml


def model_configs() -> dict[str, dict[str, Any]]:
    """All configurations, by each name in a file's ``models`` list."""
    configs = {}
    for file in sorted(files(__name__).iterdir(), key=lambda f: f.name):
        if file.name.endswith(".yaml"):
            config = yaml.safe_load(file.read_text(encoding="utf-8"))
            configs.update(dict.fromkeys(config["models"], config))
    return configs


def critical_layers(model: str) -> tuple[int, ...]:
    """The critical layers of a configured model.

    Raises:
        ValueError: for a model without a configuration.
    """
    configs = model_configs()
    if model not in configs:
        raise ValueError(f"model {model!r} has no configuration (configured: {', '.join(configs)})")
    return tuple(configs[model]["critical_layers"])


def editor_settings(model: str, editor: str, shared: bool = True) -> dict[str, Any]:
    """The settings of an editor for a model, from the file's ``editors``.

    With ``shared``, those stand on top of the settings that all compositions have in common: the critical layers,
    the text of the second moments and the optimisation of targets. Empty for a model without a configuration.
    """
    config = model_configs().get(model)
    if config is None:
        return {}
    common = {"layers": config["critical_layers"], **config.get("statistics", {}), **config["targets"]}
    return {**(common if shared else {}), **config["editors"].get(editor, {})}
