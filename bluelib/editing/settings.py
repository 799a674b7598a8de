"""Hyper-parameters: one YAML file per model, with the critical layers and the settings of each editor.

Files of the same form in the folder that ``$BLUELIB_CONFIGS`` names are read too, and go before those that are shipped:
for models that are not configured here. ``blue doctor MODEL`` prints one to begin with.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from ..io.formats import read_yaml
from .catalogue import entry

USER_CONFIGS = "BLUELIB_CONFIGS"


def model_configs() -> dict[str, dict[str, Any]]:
    """All configurations, by each name in a file's ``models`` list.

    Raises:
        ValueError: for a user's file or folder that cannot be used; the message names the file and the key.
    """
    return {model: config for _, config in _files() for model in config["models"]}


def settings_file(model: str) -> Path | None:
    """The file that a model's settings come from; None for a model without."""
    return next((file for file, config in reversed(_files()) if model in config["models"]), None)


def _files() -> list[tuple[Path, dict[str, Any]]]:
    """All files with what is in them; of two for one model the later counts."""
    folders = [Path(str(files("bluelib"))) / "configs"]
    if own := os.environ.get(USER_CONFIGS):
        if not Path(own).is_dir():
            raise ValueError(f"{USER_CONFIGS} must name a folder of YAML files; {own} is none")
        folders.append(Path(own))
    return [(file, _checked(file)) for folder in folders for file in sorted(folder.glob("*.yaml"))]


def _checked(file: Path) -> dict[str, Any]:
    config = read_yaml(file)
    wanted = {"models": list, "critical_layers": list, "targets": dict, "editors": dict}
    for key, kind in wanted.items():
        if not isinstance(config, dict) or not isinstance(config.get(key), kind):
            raise ValueError(
                f"{file}: {key} must be a {'list' if kind is list else 'mapping'}; a configuration has "
                f"{', '.join(wanted)}, and statistics where a text is configured"
            )
    return config


def critical_layers(model: str) -> tuple[int, ...]:
    """The critical layers of a configured model.

    Raises:
        ValueError: for a model without a configuration.
    """
    configs = model_configs()
    if model not in configs:
        raise ValueError(
            f"model {model!r} has no configuration (configured: {', '.join(configs)}); write one into the "
            f"folder {USER_CONFIGS} names: `blue doctor {model}` prints it"
        )
    return tuple(configs[model]["critical_layers"])


def editor_settings(model: str, editor: str, shared: bool = True) -> dict[str, Any]:
    """The settings of an editor for a model; empty for a model without a configuration."""
    config = model_configs().get(model)
    return {} if config is None else settings_in(config, editor, shared)


def settings_in(config: Mapping[str, Any], editor: str, shared: bool = True) -> dict[str, Any]:
    """The settings of an editor in a configuration: those under its name in ``editors``, or else under that of the
    method that it is like.

    With ``shared``, they stand on top of the settings that all compositions have in common: the critical layers, the
    text of the second moments and the optimisation of targets.
    """
    common = {"layers": config["critical_layers"], **config.get("statistics", {}), **config["targets"]}
    own: Mapping[str, Any] | None = None
    while own is None and editor:
        own, editor = config["editors"].get(editor), entry(editor).like
    return {**(common if shared else {}), **(own or {})}
