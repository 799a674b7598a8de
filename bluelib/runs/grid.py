"""A grid of experiments: models × datasets × editors × seeds at one size, as ``workflow/grid*.yaml`` describe it.

The workflow makes results from a grid; tables and the report use the grid to find them. Imports no torch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from ..editing import catalogue
from ..io.checks import LARGEST_SEED, check_whole
from ..io.formats import read_yaml
from ..io.paths import cell_name, numbers_name, plain, project_path, raw_path, sequence_path
from ..models.known import DTYPES
from ..studies import Study, study_of

#: Stands in place of an analysis notebook's parameters, for those of its study in :data:`~bluelib.studies.STUDIES`.
COMMITTED = "committed"
#: The grid of the committed results. Reports take from it the studies that their own grid does not run.
COMMITTED_GRID = "pocket"
#: What a cell measures, unless its grid says otherwise.
USUAL = {"metrics": ("editing",), "contexts": ("bare",)}
RESOURCES = ("mem_mb", "runtime", "gpu")
#: In a task file of the harness, whose tags only the harness can read.
_DATA_FILES = re.compile(r"\bdata_files: *[\"']?([^\s,}\"']+)")


def _beside(folder: Path, name: str) -> str:
    """The path beside a grid, if a file or folder of this name is there and not in the project; otherwise the name."""
    return name if project_path(name).exists() or not (folder / name).exists() else str(folder / name)


@dataclass(frozen=True)
class Place:
    """A place in a grid: the choices that make one cell of the main table."""

    model: str
    dataset: str
    editor: str
    seed: int


@dataclass(frozen=True)
class Followed:
    """One editor along one sequence: a run of ``blue follow``, see :func:`~bluelib.studies.follow.follow`."""

    model: str
    dataset: str
    editor: str
    edits: int
    batch_size: int
    at: tuple[int, ...] = ()
    scored: int | None = None
    others: int | None = None
    option: tuple[str, Any] | None = None

    @property
    def options(self) -> dict[str, Any]:
        return {} if self.option is None else dict([self.option])

    @property
    def path(self) -> Path:
        """Where its scores are kept."""
        about = (plain(self.model), self.dataset, self.editor, self.edits, self.batch_size, 0, self.options)
        return sequence_path("follow", *about)


@dataclass(frozen=True)
class Grid:
    """What is run, and where its results are.

    Attributes:
        name: the name of the folders of its results and figures; ``pocket`` is the committed grid.
        models, datasets, editors, seeds: every combination is one cell.
        edits, batch_size: of each cell.
        notebooks: analysis notebooks that run for each model, with their parameters.
        follow: runs of ``blue follow`` for each model and dataset: ``editors``, ``edits``, ``batch_size``, and, if not
            the usual, ``at``, ``scored``, ``others`` and ``options``. Every value of an option is a run.
        settings: hyper-parameters of cells, in place of the model's settings: a list of entries with ``values`` by
            name, and the ``models``, ``datasets`` and ``editors`` that they are for, if not all. A later one overrides.
            What is measured on a model, as CAKE's scores, belongs in the model's settings.
        device, dtype, corpus: as for :func:`~bluelib.load_model` and :func:`~bluelib.get_editor`.
        metrics, contexts: of each cell, as for :func:`~bluelib.evaluate`.
        threads: CPU threads of each job.
        resources: by model, or ``default``, what a job asks a cluster for: ``mem_mb``, ``runtime`` (minutes), ``gpu``.
    """

    name: str
    models: tuple[str, ...]
    datasets: tuple[str, ...]
    editors: tuple[str, ...]
    seeds: tuple[int, ...]
    edits: int
    batch_size: int
    notebooks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    follow: tuple[Mapping[str, Any], ...] = ()
    settings: tuple[Mapping[str, Any], ...] = ()
    device: str = "cpu"
    dtype: str = "float32"
    corpus: str = ""
    metrics: tuple[str, ...] = USUAL["metrics"]
    contexts: tuple[str, ...] = USUAL["contexts"]
    threads: int = 1
    resources: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Grid:
        """Make a grid from the values of a grid file, which are checked.

        Raises:
            ValueError: if a key is unknown or missing, or its value is wrong; the message says what would be right.
        """
        known = {f.name: f for f in fields(cls)}
        unknown = [key for key in values if key not in known]
        if unknown:
            raise ValueError(f"a grid has no key {', '.join(map(repr, unknown))}; known: {', '.join(known)}")
        missing = [
            key
            for key in ("name", "models", "datasets", "editors", "seeds", "edits", "batch_size")
            if key not in values
        ]
        if missing:
            raise ValueError(f"the grid lacks {', '.join(missing)}")
        taken = dict(values)
        for key, kind in (("models", str), ("datasets", str), ("editors", str), ("seeds", int)):
            taken[key] = _distinct(key, values[key], kind)
        asked = {key: _distinct(key, values[key], str) for key in USUAL if key in values}
        if asked != {key: usual for key, usual in USUAL.items() if key in asked}:
            from ..metrics.editing import check_groups  # imports torch

            check_groups(**{**USUAL, **asked})
            if not {*USUAL["metrics"]} <= {*asked.get("metrics", USUAL["metrics"])}:
                raise ValueError("metrics of the grid must include editing, which its tables are made from")
        taken |= asked
        for key in ("edits", "batch_size", "threads"):
            if key in values:
                check_whole(f"{key} of the grid", values[key], 1)
        for key in ("name", "device", "dtype", "corpus"):
            if key in values and not isinstance(values[key], str):
                raise ValueError(f"{key} of the grid must be a string, not {values[key]!r}")
        for key, names in (("models", taken["models"]), ("datasets", [Path(name).stem for name in taken["datasets"]])):
            if len({plain(name) for name in names}) < len(names):
                raise ValueError(f"{key} of the grid must differ in their file names, not {list(taken[key])}")
        for seed in taken["seeds"]:
            check_whole("a seed of the grid", seed, 0, LARGEST_SEED)
        catalogue.blue_pairs(taken["editors"])
        if values.get("dtype", DTYPES[0]) not in DTYPES:
            raise ValueError(f"dtype of the grid must be one of {', '.join(DTYPES)}, not {values['dtype']!r}")
        if not values["name"] or plain(values["name"]) != values["name"] or values["name"] == "raw":
            raise ValueError(
                f"name of the grid becomes a folder; it must consist of letters, digits and -, not {values['name']!r}"
            )
        if values["batch_size"] > values["edits"]:
            raise ValueError(f"batch_size of the grid, {values['batch_size']}, exceeds its edits, {values['edits']}")
        taken["notebooks"] = {
            notebook: _parameters(notebook, parameters)
            for notebook, parameters in _mapping("notebooks", values.get("notebooks")).items()
        }
        taken["follow"] = tuple(
            _follow(number, part) for number, part in enumerate(_listed("follow", values.get("follow")))
        )
        taken["settings"] = tuple(
            _entry(number, part, taken) for number, part in enumerate(_listed("settings", values.get("settings")))
        )
        paths = [run.path.stem for run in cls(**taken).followed()]
        if twice := [path for path in paths if paths.count(path) > 1]:
            raise ValueError(f"two runs of follow of the grid would be written to {twice[0]}; drop one, or merge them")
        resources = _mapping("resources", values.get("resources"))
        strangers = sorted(set(resources) - {"default", *taken["models"]})
        if strangers:
            raise ValueError(f"resources of the grid name {', '.join(strangers)}, which are neither models nor default")
        for name, asked in resources.items():
            right = isinstance(asked, Mapping) and all(
                key in RESOURCES and isinstance(value, int) and value >= 0 for key, value in asked.items()
            )
            if not right:
                raise ValueError(
                    f"resources.{name} of the grid must map {', '.join(RESOURCES)} to whole numbers, not {asked!r}"
                )
        return cls(**{**taken, "resources": resources})

    @classmethod
    def load(cls, path: str | Path) -> Grid:
        """Read a grid file, YAML or JSON. A model or dataset that is a file or folder beside it is named by its path.

        Raises:
            ValueError: as :meth:`of`, or if the file is neither YAML nor JSON.
            FileNotFoundError: if the file does not exist.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(
                f"there is no grid file {path}: run this in a checkout of the project, or name one with --grid"
            )
        values = read_yaml(path)
        if not isinstance(values, Mapping):
            raise ValueError(f"{path} must hold the keys of a grid: {', '.join(f.name for f in fields(cls))}")
        grid = cls.of(values)
        beside = partial(_beside, Path(path).resolve().parent)
        return replace(
            grid,
            models=tuple(map(beside, grid.models)),
            datasets=tuple(map(beside, grid.datasets)),
            resources={beside(name): asked for name, asked in grid.resources.items()},
            settings=tuple(
                {
                    key: tuple(map(beside, value)) if key in ("models", "datasets") else value
                    for key, value in part.items()
                }
                for part in grid.settings
            ),
        )

    def check_files(self) -> None:
        """Make sure, before anything runs, that every dataset is known or is a file that exists, also a notebook's.

        Raises:
            ValueError: if a dataset is neither.
        """
        from ..data.datasets import BENCHMARKS, DATASETS
        from ..io.plugins import load_plugins

        load_plugins()
        of_notebooks = [
            values[key] for values in self.notebooks.values() for key in ("dataset", "long_dataset") if values.get(key)
        ]
        for name in dict.fromkeys((*self.datasets, *of_notebooks)):
            if name not in (*DATASETS, *BENCHMARKS) and not project_path(name).exists():
                raise ValueError(
                    f"the grid's dataset {name!r} is neither a name that `blue datasets` lists nor a file beside the "
                    f"grid or in {project_path()}"
                )

    def check_editors(self) -> None:
        """Make sure, before anything runs, that all editors exist and have the hyper-parameters that ``settings``
        names, and that each model's settings have the measured values that they need. (Tables also show results of
        editors that do not exist here.)

        Raises:
            ValueError: if an editor or a hyper-parameter is unknown, or a setting that an editor needs is missing.
        """
        from ..editing.named import check_measured, check_names, composes
        from ..editing.settings import editor_settings, settings_of

        for part in self.settings:
            for name in part.get("editors", self.editors):
                check_names(name, part["values"])
        for name in (*self.editors, *(name for part in self.follow for name in part["editors"])):
            make = catalogue.known(name).make()
            for model in self.models if composes(make) else ():
                if settings_of(model) is not None:  # your own checkpoint may still get settings
                    check_measured(name, model, editor_settings(model, name))

    def only(self, models: Sequence[str]) -> Grid:
        """This grid with only some of its models, or with all if none is named.

        Raises:
            ValueError: if the grid does not have one of the models.
        """
        unknown = [model for model in models if model not in self.models]
        if unknown:
            raise ValueError(f"the grid has no model {', '.join(unknown)}; it has {', '.join(self.models)}")
        if not models:
            return self
        settings = [
            {**part, "models": [name for name in part["models"] if name in models]} if "models" in part else part
            for part in self.settings
        ]
        return replace(self, models=tuple(models), settings=tuple(s for s in settings if s.get("models") != []))

    def as_dict(self) -> dict[str, Any]:
        """The keys of a grid file; ``metrics`` and ``contexts`` only if they differ from the usual ones, as older files
        have no such keys."""
        given = {key: value for key, value in asdict(self).items() if value != USUAL.get(key)}
        for key in ("follow", "settings"):
            if not given[key]:
                del given[key]
        return json.loads(json.dumps(given))  # lists for tuples at every depth, as a file has them

    def cells(self) -> list[Place]:
        """All cells, models outermost."""
        return [Place(*place) for place in product(self.models, self.datasets, self.editors, self.seeds)]

    def followed(self) -> list[Followed]:
        """All runs along a sequence, in the order of the file."""
        found = []
        for part in self.follow:
            values = {key: part[key] for key in ("edits", "batch_size", "at", "scored", "others") if key in part}
            given = [(name, value) for name, each in part.get("options", {}).items() for value in each]
            options: list[tuple[str, Any] | None] = [*given] or [None]
            for option, model, dataset, editor in product(options, self.models, self.datasets, part["editors"]):
                found.append(Followed(model, dataset, editor, option=option, **values))
        return found

    def parameters(self, cell: Place) -> dict[str, Any]:
        """A cell's parameters of ``06_main_table``, without those that name files."""
        measured = {key: value for key, value in self.as_dict().items() if key in USUAL}
        given = {**asdict(cell), "edits": self.edits, "batch_size": self.batch_size, **measured, **self.where}
        settings = self.settings_of(cell)
        return {**given, "settings": settings} if settings else given

    def settings_of(self, cell: Place) -> dict[str, Any]:
        """The hyper-parameters that ``settings`` has for a cell."""
        found: dict[str, Any] = {}
        for part in self.settings:
            if all(getattr(cell, key[:-1]) in part.get(key, (getattr(cell, key[:-1]),)) for key in _CHOSEN_BY):
                found |= part["values"]
        return found

    @property
    def where(self) -> dict[str, Any]:
        return {"device": self.device, "dtype": self.dtype, **({"corpus": self.corpus} if self.corpus else {})}

    def of_notebook(self, notebook: str) -> dict[str, Any]:
        """An analysis notebook's parameters, without those that name a model or files."""
        return {**self.where, **self.notebooks[notebook]}

    def read_by(self, notebook: str, model: str) -> list[Path]:
        """The files that an analysis notebook reads, beside its model's, as far as they exist: datasets, task files and
        the data that these name, and results of other commands."""
        values = [value if isinstance(value, list) else [value] for value in self.of_notebook(notebook).values()]
        named = [name for value in values for name in value if isinstance(name, str) and name]
        for task in [project_path(name) for name in named if name.endswith(".yaml")]:
            named += _DATA_FILES.findall(task.read_text("utf-8")) if task.is_file() else []
        named += [name.format(model=plain(model)) for name in study_of(notebook).reads]
        return [path for path in map(project_path, named) if path.is_file()]

    def cell_name(self, cell: Place) -> str:
        return cell_name(cell.model, cell.dataset, cell.editor, self.edits, self.batch_size, cell.seed)

    def result(self, cell: Place) -> Path:
        """Where a cell's numbers are."""
        return self.results / f"{self.cell_name(cell)}.json"

    @property
    def results(self) -> Path:
        """The folder of the cells' numbers."""
        return project_path("results", self.name)

    @property
    def figures(self) -> Path:
        """The folder of tables, pictures and report."""
        return project_path("figures", self.name)

    @property
    def work(self) -> Path:
        """The folder of what need not be kept: executed notebooks, checkpoints, shared intermediate results."""
        return raw_path(self.name)

    def numbers(self, notebook: str, model: str) -> Path:
        """Where an analysis notebook's numbers for a model are."""
        return self.results / "analysis" / numbers_name(notebook, model)

    def drawn(self, notebook: str) -> list[Path]:
        """The figures of an analysis notebook.

        Raises:
            ValueError: if the notebook has none.
        """
        return [self.figures / f"{name}.png" for name in study_of(notebook).figures]

    def source_of(self, study: Study) -> Grid | None:
        """The grid from which a report on this one takes a study: this grid if it runs the study, or else the committed
        one with the same models. None if that lacks the numbers of one of the models."""
        if study.notebook in self.notebooks:
            return self
        kept = replace(self, name=COMMITTED_GRID, notebooks={study.notebook: study.parameters})
        return kept if all(kept.numbers(study.notebook, model).exists() for model in self.models) else None

    def tables(self) -> list[Path]:
        """The tables and pictures that are made of the cells' numbers."""
        of_a_dataset = [
            f"main_{plain(Path(name).stem)}{suffix}"
            for name in self.datasets
            for suffix in (".md", ".csv", ".tex", ".png")
        ]
        if self.metrics != USUAL["metrics"]:
            names = [plain(Path(name).stem) for name in self.datasets]
            of_a_dataset += [f"further_{name}{suffix}" for name in names for suffix in (".md", ".csv", ".png")]
        pairs = [f"{name}{suffix}" for name in ("improvement", "paired") for suffix in (".md", ".csv", ".tex")]
        drawn = [f"{name}.png" for name in ("pareto", "forest", "improvement")]
        return [self.figures / name for name in (*of_a_dataset, *pairs, *drawn)]

    def resources_of(self, model: str) -> dict[str, int]:
        return {"gpu": 0, **self.resources.get("default", {}), **self.resources.get(model, {})}


def _distinct(key: str, values: Any, kind: type) -> tuple[Any, ...]:
    if isinstance(values, (list, tuple)) and not values:
        raise ValueError(f"{key} of the grid must name at least one, not an empty list")
    right = isinstance(values, (list, tuple)) and len(set(map(str, values))) == len(values)
    if not right or any(not isinstance(value, kind) or isinstance(value, bool) for value in values):
        raise ValueError(f"{key} of the grid must be a list of distinct {kind.__name__}, not {values!r}")
    return tuple(values)


_FOLLOW = {"editors": list, "edits": int, "batch_size": int, "at": list, "scored": int, "others": int, "options": dict}


def _listed(key: str, values: Any) -> list[Any]:
    if not isinstance(values, (list, tuple)) and values is not None:
        raise ValueError(f"{key} of the grid must be a list, not {values!r}")
    return list(values or [])


#: What an entry of ``settings`` chooses cells by.
_CHOSEN_BY = ("models", "datasets", "editors")


def _entry(number: int, part: Any, taken: Mapping[str, Any]) -> Mapping[str, Any]:
    """One entry of ``settings``, checked against the grid's models, datasets and editors."""
    place = f"settings[{number}] of the grid"
    if not isinstance(part, Mapping) or set(part) - {*_CHOSEN_BY, "values"}:
        raise ValueError(f"{place} must map {', '.join(_CHOSEN_BY)} and values, not {part!r}")
    if not isinstance(part.get("values"), Mapping) or not part["values"]:
        raise ValueError(f"values of {place} must map hyper-parameters to values, not {part.get('values')!r}")
    chosen = {key: _distinct(f"{key} of settings[{number}]", part[key], str) for key in _CHOSEN_BY if key in part}
    for key, names in chosen.items():
        if strangers := [name for name in names if name not in taken[key]]:
            raise ValueError(f"{key} of {place} has {', '.join(strangers)}, which the grid does not have")
    return {**chosen, "values": dict(part["values"])}


def _follow(number: int, part: Any) -> dict[str, Any]:
    """One entry of ``follow``, checked."""
    place = f"follow[{number}] of the grid"
    if not isinstance(part, Mapping):
        raise ValueError(f"{place} must map {', '.join(_FOLLOW)}, not {part!r}")
    for key in ("editors", "edits", "batch_size"):
        if key not in part:
            raise ValueError(f"{place} lacks {key}")
    for key, value in part.items():
        kind = _FOLLOW.get(key)
        if kind is None:
            raise ValueError(f"{place} has no key {key!r}; known: {', '.join(_FOLLOW)}")
        value = list(value) if isinstance(value, tuple) else value
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ValueError(f"{key} of {place} must be of type {kind.__name__}, not {value!r}")
    for key, least in (("edits", 1), ("batch_size", 1), ("scored", 1), ("others", 0)):
        if key in part:
            check_whole(f"{key} of {place}", part[key], least)
    for number in part.get("at", ()):
        check_whole(f"a number of at of {place}", number, 1, part["edits"], "its edits")
    for name, values in part.get("options", {}).items():
        if not isinstance(values, (list, tuple)) or not values:
            raise ValueError(f"options of {place} must list the values of {name}, not {values!r}")
    checked = {**part, "editors": _distinct(f"editors of follow[{number}]", part["editors"], str)}
    return checked | ({"at": tuple(part["at"])} if "at" in part else {})


def _mapping(key: str, values: Any) -> Mapping[str, Any]:
    if not isinstance(values, Mapping | None):
        raise ValueError(f"{key} of the grid must be a mapping, not {values!r}")
    return values or {}


def _parameters(notebook: str, values: Any) -> Mapping[str, Any]:
    study = study_of(notebook)
    return study.parameters if values == COMMITTED else _mapping(f"notebooks.{notebook}", values)
