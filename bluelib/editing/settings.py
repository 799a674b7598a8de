"""Hyper-parameters: one YAML file per model, with the critical layers and the settings of each editor.

Files of the same form in the user's folders are read too, for models that are not configured here, and take precedence
over the shipped ones. ``blue locate MODEL`` writes one, ``blue tune MODEL`` improves it. The folders are the one that
``$BLUELIB_CONFIGS`` names and, after it, :func:`.config_dir`.

A file belongs to a model if its list ``models`` has the model's name, or the path of the model's folder, however that
is written; or if its ``revision`` is the hash of the model's weights, wherever they are stored.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from ..io.formats import read_yaml
from ..io.paths import config_dir
from ..io.writing import atomic_file
from .catalogue import entry

if TYPE_CHECKING:
    from ..models.model import Model

USER_CONFIGS = "BLUELIB_CONFIGS"
SUFFIXES = (".yaml", ".yml")


def shipped_configs() -> dict[str, dict[str, Any]]:
    """The configurations that ship, by each name in a file's ``models`` list."""
    return {model: config for file, config in _files() if is_shipped(file) for model in config["models"]}


def model_configs() -> dict[str, dict[str, Any]]:
    """All configurations, by each name in a file's ``models`` list.

    Raises:
        ValueError: if a user's file or folder cannot be used; the message names the file and the key.
    """
    return {model: config for _, config in _files() for model in config["models"]}


def find_settings(model: Model | str) -> tuple[Path, dict[str, Any]] | None:
    """The file of a model's settings and its contents; None for a model without settings.

    Args:
        model: a model, or its name; by its name alone, a model is not found by the hash of its weights.

    Raises:
        ValueError: as :func:`model_configs`.
    """
    name, revision = (model, None) if isinstance(model, str) else (model.name, model.revision)
    found = list(reversed(_files()))  # of two files for one model, the later one counts
    place = Path(name).resolve() if Path(name).exists() else None
    by_name = (pair for pair in found if name in pair[1]["models"])
    by_path = (pair for pair in found if place and place in map(_resolved, pair[1]["models"]))
    by_weights = (pair for pair in found if revision and _same(pair[1].get("revision"), revision))
    return next(by_name, None) or next(by_path, None) or next(by_weights, None)


def _same(written: Any, revision: str) -> bool:
    """Whether the revision in a file is the model's, with or without ``sha256:`` in front."""
    return isinstance(written, str) and written.removeprefix("sha256:") == revision.removeprefix("sha256:")


def _resolved(name: str) -> Path | None:
    return Path(name).expanduser().resolve() if Path(name).expanduser().exists() else None


def place_of(name: str) -> str:
    """What a settings file calls a model: the full path of a folder or a file, any other name as it is."""
    return str(Path(name).resolve()) if Path(name).exists() else name


def settings_of(model: Model | str) -> dict[str, Any] | None:
    """A model's settings, see :func:`find_settings`; None for a model without settings."""
    found = find_settings(model)
    return found[1] if found else None


def settings_file(model: Model | str) -> Path | None:
    """The file that a model's settings come from; None for a model without settings."""
    found = find_settings(model)
    return found[0] if found else None


def user_folder() -> Path:
    """Where a user's settings are written: the folder that ``$BLUELIB_CONFIGS`` names, or :func:`.config_dir`."""
    return Path(os.environ.get(USER_CONFIGS) or config_dir())


def is_shipped(file: Path) -> bool:
    """Whether a settings file ships with the project, and must not be changed."""
    return file.parent == _shipped()


def _shipped() -> Path:
    return Path(str(files("bluelib"))) / "configs"


def _files() -> list[tuple[Path, dict[str, Any]]]:
    """All files with their contents, the shipped ones first."""
    folders = [_shipped()]
    if config_dir().is_dir():
        folders.append(config_dir())
    if own := os.environ.get(USER_CONFIGS):
        if not Path(own).is_dir():
            raise ValueError(f"{USER_CONFIGS} must name a folder of YAML files; {own} is not a folder")
        folders.append(Path(own))
    return [
        (file, _checked(file))
        for folder in folders
        for file in sorted(folder.iterdir())
        if file.suffix.lower() in SUFFIXES and not file.name.startswith(".")
    ]


def _checked(file: Path) -> dict[str, Any]:
    config = read_yaml(file)
    wanted = {"models": list, "critical_layers": list, "targets": dict, "editors": dict}
    for key, kind in wanted.items():
        if not isinstance(config, dict) or not isinstance(config.get(key), kind):
            raise ValueError(
                f"{file}: {key} must be a {'list' if kind is list else 'mapping'}; a configuration has "
                f"{', '.join(wanted)}, and statistics where a text is configured"
            )
    if not isinstance(config.get("statistics", {}), dict):
        raise ValueError(f"{file}: statistics must be a mapping of corpus and tokens, not {config['statistics']!r}")
    for name, own in config["editors"].items():
        if not isinstance(own, dict):
            raise ValueError(
                f"{file}: editors.{name} must be a mapping of hyper-parameters, {{}} for none, not {own!r}"
            )
    if wrong := [name for name in config["models"] if not isinstance(name, str)]:
        raise ValueError(
            f"{file}: models must be a list of names and paths; {wrong[0]!r} is not text: write it in quotes"
        )
    return config


def no_settings(name: str) -> str:
    """The message for a model without settings."""
    if alike := [known for known in model_configs() if Path(known).name == Path(name).name and known != name]:
        return (
            f"model {name!r} has no settings under this path, but {alike[0]!r} has; if that is the same model, add the "
            "full path to its settings, or the revision, which `blue doctor` prints"
        )
    return (
        f"model {name!r} has no settings; `blue locate {name}` finds some and writes them into {user_folder()}, and "
        f"`blue doctor {name}` prints some to begin with (configured: "
        f"{', '.join(model_configs())}). A model that --save wrote cannot be edited further: save the first edits with "
        "--save-delta FILE, and continue from them with --from FILE"
    )


def critical_layers(model: Model | str) -> tuple[int, ...]:
    """The critical layers of a configured model, see :func:`find_settings`.

    Raises:
        ValueError: if the model has no configuration.
    """
    config = settings_of(model)
    if config is None:
        raise ValueError(no_settings(model if isinstance(model, str) else model.name))
    return tuple(config["critical_layers"])


def editor_settings(model: Model | str, editor: str, shared: bool = True) -> dict[str, Any]:
    """The settings of an editor for a model, see :func:`find_settings`; empty for a model without a configuration."""
    config = settings_of(model)
    return {} if config is None else settings_in(config, editor, shared)


def settings_in(config: Mapping[str, Any], editor: str, shared: bool = True) -> dict[str, Any]:
    """The settings of an editor in a configuration: those under its name in ``editors``, and for what these leave out,
    those of the method that it is like.

    With ``shared``, they are added to the settings that all compositions have in common, and override them: the
    critical layers, the text of the second moments and the optimisation of targets.
    """
    common = {"layers": config["critical_layers"], **config.get("statistics", {}), **config["targets"]}
    found: dict[str, Any] = {}
    while editor:
        found = {**(config["editors"].get(editor) or {}), **found}
        editor = entry(editor).like
    return {**(common if shared else {}), **found}


def settings_text(config: Mapping[str, Any], comments: str = "") -> str:
    """A configuration as YAML, one line per entry and per editor, after ``comments``, which get a ``#``."""

    def flow(value: Any) -> str:
        return (
            yaml.safe_dump(value, sort_keys=False, default_flow_style=True, width=10**6, allow_unicode=True)
            .removesuffix("...\n")
            .strip()
        )

    lines = [f"# {line}".rstrip() for line in comments.splitlines()]
    lines += [f"{key}: {flow(value)}" for key, value in config.items() if key != "editors"]
    editors = [f"  {name}: {flow(settings)}" for name, settings in config["editors"].items()]
    lines += ["editors:", *editors] if editors else ["editors: {}"]
    return "\n".join(lines) + "\n"


def write_settings(path: Path, config: Mapping[str, Any], comments: str = "") -> Path:
    """Write a configuration, see :func:`settings_text`, whole or not at all."""
    with atomic_file(path) as temporary:
        temporary.write_text(settings_text(config, comments), encoding="utf-8")
    return path


def set_editor(file: Path, editor: str, settings: Mapping[str, Any]) -> None:
    """Put settings of an editor into a user's file, in addition to those that it has there already. Of the file's
    comments, only those at its beginning are kept.

    Raises:
        ValueError: if the file ships with the project.
    """
    if is_shipped(file):
        raise ValueError(f"{file} ships with the project; copy it into {user_folder()} to change it")
    config = _checked(file)
    config["editors"][editor] = {**(config["editors"].get(editor) or {}), **settings}
    comments = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        comments.append(line.removeprefix("#").removeprefix(" "))
    write_settings(file, config, "\n".join(comments))
