"""The methods by name: the label, plot style, needs and factory of each.

Everything that deals with methods by name reads this table: the command line, tables and plots, the grid and its
workflow, the search for hyper-parameters. Nothing else tests a method's name. It needs no torch: a factory is imported
when somebody asks for its editor.

:func:`register` adds your own method. An installed package is found by its entry points in the group
``bluelib.editors``: each names a factory (``module:function``), or a module that calls :func:`register` when it is
imported.
"""

from __future__ import annotations

import inspect
import logging
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import wraps
from importlib import import_module
from typing import Any

from ..io.checks import suggestion
from ..io.palette import BLUE, GREEN, GREY, LIGHT_GREY, ORANGE, PURPLE, SKY, VERMILION
from ..io.plugins import failures_logged, new_factories

log = logging.getLogger(__name__)

#: What a method may need besides the model and its settings.
SECOND_MOMENTS, NULL_SPACE, NETWORK = "second moments", "null space", "network"
NEEDS = (SECOND_MOMENTS, NULL_SPACE, NETWORK)
#: The row that stands for the model before editing.
UNEDITED = "pre-edited"
#: Where the paper reports a method.
MAIN_TABLE, APPENDIX = "main table", "appendix"


@dataclass(frozen=True)
class Scaled:
    """Candidates of a search: these multiples of the model's own setting of that name."""

    factors: tuple[float, ...]


@dataclass(frozen=True)
class EachAlone:
    """Candidates of a search: the first, the middle and the last critical layer, each alone."""


Axes = Mapping[str, tuple[Any, ...] | Scaled | EachAlone]


@dataclass(frozen=True)
class Variant:
    """A modification that turns a plain method into another one.

    Attributes:
        name: the variant of ``memit`` is called ``memit_<name>``.
        about: its name in docstrings.
        maker: ``module:function`` that makes the variant from the plain editor.
        fill, hatch, line: how plots distinguish it from the plain method, whose markers are hollow; Matplotlib's names.
    """

    name: str
    about: str
    maker: str
    fill: str = "full"
    hatch: str = "//"
    line: str = "-"

    def name_of(self, plain: str) -> str:
        return f"{plain}_{self.name}"

    def label_of(self, plain: str) -> str:
        return f"{plain}_{self.name.upper()}"


#: The variants by name.
VARIANTS = {
    "blue": Variant("blue", "BLUE", "bluelib.editing.editor:blue"),
    "fe": Variant("fe", "FE (ICML 2026)", "bluelib.editing.editor:fe", "left", "..", "-."),
}


@dataclass(frozen=True)
class Entry:
    """A row of the catalogue.

    Attributes:
        name: what it is called in code, files and on the command line.
        label: what it is called in tables and plots.
        family: the label of the plain method.
        colour: one per family.
        marker: Matplotlib's.
        order: its place in plots and lists; infinite for those at the end.
        paper: where it comes from.
        reported: where the paper reports it: :data:`MAIN_TABLE`, :data:`APPENDIX`, or nowhere.
        needs: what it needs, of :data:`NEEDS`.
        factory: a function, or ``module:function``, that makes the editor; None if the project does not implement it.
        variants: the names of its variants, of :data:`VARIANTS`.
        variant, plain: for a variant, its name in :data:`VARIANTS` and the name of the plain method.
        axes: the candidates in a search for hyper-parameters; None if there is no search.
        like: the method whose settings it uses where a model has none under its own name.
    """

    name: str
    label: str
    family: str
    colour: str = GREY
    marker: str = "o"
    order: float = math.inf
    paper: str = ""
    reported: str = ""
    needs: frozenset[str] = frozenset()
    factory: str | Callable[..., Any] | None = None
    variants: tuple[str, ...] = ()
    variant: str = ""
    plain: str = ""
    axes: Axes | None = field(default=None, repr=False)
    like: str = ""

    @property
    def shipped(self) -> bool:
        """Whether it is a method of the project."""
        return self.name in _SHIPPED

    @property
    def face(self) -> dict[str, Any]:
        """How Matplotlib fills its marker: not at all, or as set by its variant."""
        if not self.variant:
            return {"markerfacecolor": "white"}
        fill = VARIANTS[self.variant].fill
        return {"markerfacecolor": self.colour, "markerfacecoloralt": "white", "fillstyle": fill}

    @property
    def line(self) -> str:
        """Matplotlib's line style."""
        return VARIANTS[self.variant].line if self.variant else "--"

    def make(self) -> Callable[..., Any]:
        """The function that makes the editor, with its docstring.

        Raises:
            ValueError: if the project does not implement the method.
            ImportError: if the factory cannot be imported.
        """
        if self.variant:
            return _of_variant(VARIANTS[self.variant], _METHODS[self.plain].make())
        if self.factory is None:
            raise ValueError(
                f"{self.label} has published numbers only and is not implemented here; choose another method"
            )
        if not isinstance(self.factory, str):
            return self.factory
        try:
            return _imported(self.factory)
        except (ImportError, AttributeError) as error:
            raise ImportError(f"method {self.name!r} cannot be made by {self.factory}: {error}") from error


def _imported(place: str) -> Callable[..., Any]:
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)


def _of_variant(variant: Variant, make: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(make)
    def build(*args: Any, **kwargs: Any) -> Any:
        return _imported(variant.maker)(make(*args, **kwargs))

    build.__doc__ = f"{variant.about} of: {make.__doc__}"
    return build


_METHODS: dict[str, Entry] = {}


def _add(entry: Entry, *, like_it: Iterable[str]) -> None:
    """Add a row, and one for each of its variants; variants in ``like_it`` fall back on the plain method's settings."""
    rows = [entry]
    for step, name in enumerate(entry.variants, 1):
        variant = VARIANTS[name]
        rows.append(
            replace(
                entry,
                name=variant.name_of(entry.name),
                label=variant.label_of(entry.label),
                order=entry.order + step / 10,
                variants=(),
                variant=name,
                plain=entry.name,
                reported=entry.reported if name == "blue" else "",
                like=entry.name if name in like_it else "",
            )
        )
    for row in rows:
        taken = [other.name for other in _METHODS.values() if other.label == row.label and other.name != row.name]
        if taken:
            raise ValueError(f"label {row.label!r} is already used by {taken[0]}; give {row.name} another label")
    for before in [row.name for row in _METHODS.values() if entry.name in (row.name, row.plain)]:
        del _METHODS[before]
    _METHODS.update((row.name, row) for row in rows)


_OF_TARGETS: Axes = {"learning_rate": Scaled((1.0, 2.0)), "clamp": (0.75, 1.5)}
_RIDGE: Axes = {**_OF_TARGETS, "mom2_update_weight": (100, 10, 1000)}
_NULL_SPACE: Axes = {**_OF_TARGETS, "nullspace_threshold": (0.5, 0.125, 2.0), "l2": (10.0, 1.0, 100.0)}
#: PMET's clamp is relative to the MLP's output, which is 10 to 40 times shorter than the block's in these models.
_PMET: Axes = {**_RIDGE, "clamp": (15.0, 30.0)}
_ROME: Axes = {"layers": EachAlone(), **_OF_TARGETS}
_FT: Axes = {
    "layers": EachAlone(),
    "steps": (25,),
    "learning_rate": (1e-3, 1e-4, 1e-2),
    "norm_constraint": (None, 0.03, 0.01),
}
_SPHERE: Axes = {**_NULL_SPACE, "strength": (0.5, 0.25, 1.0)}
_ENCORE: Axes = {**_RIDGE, "norm_weight": (10, 1, 100)}
_BETA: Axes = {**_NULL_SPACE, "leak": (100, 10, 1000)}
_NOTHING, _C = frozenset[str](), frozenset({SECOND_MOMENTS})
_C_AND_NULL = _C | {NULL_SPACE}
_WITH_BLUE, _WITH_BOTH = ("blue",), ("blue", "fe")

#: The rows: name, label, colour, marker, paper, where it is reported, needs, variants, axes; and, for methods newer
#: than some settings files, the method whose settings they fall back on.
_ROWS: tuple[tuple[Any, ...], ...] = (
    (UNEDITED, UNEDITED, LIGHT_GREY, "o", "", MAIN_TABLE, _NOTHING, (), None),
    ("ft", "FT", GREY, "v", "Zhu et al. 2020", MAIN_TABLE, _NOTHING, (), _FT),
    ("mend", "MEND", GREY, "X", "Mitchell et al. 2022", MAIN_TABLE, frozenset({NETWORK}), (), None),
    ("instructedit", "InstructEdit", GREY, "o", "Zhang et al. 2024", MAIN_TABLE, _NOTHING, (), None),
    ("rome", "ROME", GREY, "s", "Meng et al. 2022", MAIN_TABLE, _C, (), _ROME),
    ("memit", "MEMIT", ORANGE, "o", "Meng et al. 2023", MAIN_TABLE, _C, _WITH_BOTH, _RIDGE),
    ("memit_history", "MEMIT (history)", SKY, "o", "Meng et al. 2023", "", _C, _WITH_BOTH, _RIDGE),
    ("prune", "PRUNE", VERMILION, "o", "Ma et al. 2025", MAIN_TABLE, _C, _WITH_BOTH, _RIDGE),
    ("rect", "RECT", PURPLE, "o", "Gu et al. 2024", MAIN_TABLE, _C, _WITH_BOTH, _RIDGE),
    ("alphaedit", "AlphaEdit", BLUE, "o", "Fang et al. 2025", MAIN_TABLE, _C_AND_NULL, _WITH_BOTH, _NULL_SPACE),
    ("pmet", "PMET", GREEN, "o", "Li et al. 2024", APPENDIX, _C, _WITH_BLUE, _PMET),
    ("memit_cake", "MEMIT_CAKE", ORANGE, "D", "CAKE, ACL 2026", "", _C, (), _RIDGE, "memit"),
    ("alphaedit_cake", "AlphaEdit_CAKE", BLUE, "D", "CAKE, ACL 2026", "", _C_AND_NULL, (), _NULL_SPACE, "alphaedit"),
    ("emmet", "EMMET", GREY, "P", "Gupta et al. 2024", "", _C, (), _OF_TARGETS),
    ("sphere", "SPHERE", BLUE, "h", "ICLR 2026", "", _C_AND_NULL, (), _SPHERE, "alphaedit"),
    ("encore", "ENCORE", SKY, "h", "Gupta et al. 2025", "", _C, (), _ENCORE, "memit"),
    ("alphaedit_nas", "AlphaEdit_NAS", BLUE, "P", "arXiv:2602.02543", "", _C_AND_NULL, (), _NULL_SPACE, "alphaedit"),
    ("betaedit", "BetaEdit", BLUE, "p", "IJCAI 2026", "", _C_AND_NULL, (), _BETA, "alphaedit"),
)
#: The rows that the project does not implement.
_PUBLISHED_ONLY = (UNEDITED, "instructedit")
for _number, (_name, _label, _colour, _marker, _paper, _reported, _needs, _variants, _axes, *_like) in enumerate(_ROWS):
    _add(
        Entry(
            _name,
            _label,
            _label,
            _colour,
            _marker,
            float(_number),
            _paper,
            _reported,
            _needs,
            None if _name in _PUBLISHED_ONLY else f"bluelib.editing.named:{_name}",
            _variants,
            axes=_axes,
            like=_like[0] if _like else "",
        ),
        like_it=("fe",),  # BLUE's settings are not the plain method's, and have been in settings files from the start
    )
_SHIPPED = frozenset(_METHODS)


def register(
    name: str,
    factory: Callable[..., Any] | str,
    *,
    label: str | None = None,
    family: str | None = None,
    colour: str | None = None,
    marker: str | None = None,
    order: float = math.inf,
    paper: str = "",
    needs: Iterable[str] = (),
    variants: Iterable[str] = (),
    axes: Axes | None = None,
    like: str = "",
) -> None:
    """Add a method under a name that the whole project then knows: ``get_editor``, grids, tables, plots.

    Registering a name again replaces the earlier method, so a notebook cell can be run twice.

    Args:
        name: of letters, digits, ``_``, ``-`` and ``.``; it becomes part of file names.
        factory: a function, or ``"module:function"``, that makes the editor from ``layers``, ``targets`` (for a
            composition only) and the method's own hyper-parameters.
        label: for tables and plots; by default the name.
        family, colour, marker: for plots; by default a family of its own, grey (or the colour of a known family), a
            circle.
        order: its place in plots, and in tables among the methods that the paper does not report; by default the last.
        paper: where it comes from.
        needs: any of ``"second moments"``, ``"null space"``, ``"network"``; the workflow measures the first two
            beforehand.
        variants: any of :data:`VARIANTS`: ``"blue"`` adds its BLUE variant as ``<name>_blue``, ``"fe"`` its FE variant
            as ``<name>_fe``.
        axes: candidates by hyper-parameter, for ``blue tune``.
        like: a method whose settings it uses where a model has none under its own name.

    Raises:
        ValueError: if the name belongs to a method of the project or is not valid, the label belongs to another method,
            the factory cannot be used, or a need, a variant or the method in ``like`` is unknown.
    """
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name):
        raise ValueError(
            "a method's name must consist of letters, digits, '_', '-' and '.', and begin with a letter or digit; "
            f"{name!r} does not"
        )
    if name in _SHIPPED:
        raise ValueError(f"{name!r} is a method of the project; register yours under another name")
    _check_factory(name, factory)
    _discover()  # first, so that this one replaces a package's method of the same name, and not the reverse
    needs = frozenset([needs] if isinstance(needs, str) else needs)
    variants = (variants,) if isinstance(variants, str) else tuple(variants)
    for what, given, known in (("need", needs, NEEDS), ("variant", variants, VARIANTS)):
        if unknown := sorted(set(given) - set(known)):
            raise ValueError(f"no {what} is called {unknown[0]!r}; known: {', '.join(known)}")
    if like and like not in _METHODS:
        raise ValueError(f"like: no method is called {like!r}; known: {', '.join(names())}")
    chain = like
    while chain:
        if chain == name:
            raise ValueError(f"{name!r} cannot take its settings from {like!r}, which takes its own from {name!r}")
        chain = entry(chain).like
    label = label or name
    relatives = [entry for entry in _METHODS.values() if family and entry.family == family]
    colour = colour or (relatives[0].colour if relatives else GREY)
    _add(
        Entry(
            name,
            label,
            family or label,
            colour,
            marker or "o",
            order,
            paper,
            needs=needs,
            factory=factory,
            variants=variants,
            axes=axes,
            like=like,
        ),
        like_it=variants,
    )


def _check_factory(name: str, factory: Any) -> None:
    """Refuse a factory that cannot make an editor, as far as this is visible before it is called."""
    if isinstance(factory, str) and re.fullmatch(r"[\w.]+:\w+", factory):
        return
    if not callable(factory):
        raise ValueError(f"the factory of {name!r} must be a function, or 'module:function', not {factory!r}")
    parameters = inspect.signature(factory).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        raise ValueError(f"the factory of {name!r} must name its hyper-parameters instead of taking **keywords")
    if "layers" not in {parameter.name for parameter in parameters}:
        raise ValueError(f"the factory of {name!r} must take layers; it takes {', '.join(p.name for p in parameters)}")


def _discover() -> None:
    """Add the methods of installed packages, each once."""
    for point in new_factories():
        with failures_logged(point):
            register(point.name, point.value)


def methods() -> dict[str, Entry]:
    """All rows by name, in their order."""
    _discover()
    return dict(sorted(_METHODS.items(), key=lambda item: item[1].order))


def names() -> list[str]:
    """The names of all methods that are implemented, in their order."""
    return [name for name, entry in methods().items() if entry.factory is not None]


def entry(name: str) -> Entry:
    """The row of a method. For an unknown method, the row has the name as its label, is grey, and comes last."""
    _discover()
    return _METHODS.get(name) or Entry(name, name, name)


def label(name: str) -> str:
    """What a method is called in tables and plots."""
    return entry(name).label


def labelled(label: str) -> Entry:
    """The row of the method with this label; if there is none, a new row as from :func:`entry`."""
    return next((row for row in methods().values() if row.label == label), None) or Entry(label, label, label)


def known(name: str) -> Entry:
    """The row of a method that is implemented.

    Raises:
        ValueError: if there is no such method; the message names one that is called nearly so, or lists the known ones.
    """
    found = entry(name)
    if found.factory is None:
        close = suggestion(name, names())
        raise ValueError(f"no editor is called {name!r}" + (close or f"; known: {', '.join(names())}"))
    return found


def blue_pairs(chosen: Sequence[str]) -> list[tuple[str, str]]:
    """The pairs (plain, BLUE) among these methods, in their order.

    Raises:
        ValueError: if there is no pair.
    """
    rows = [entry(name) for name in chosen]
    of = {row.plain: row.name for row in rows if row.variant == "blue"}
    found = [(row.name, of[row.name]) for row in rows if row.name in of]
    if not found:
        raise ValueError(
            f"no editor is given both with and without BLUE ({', '.join(chosen) or 'no editors'}); "
            "give both, e.g. memit and memit_blue"
        )
    return found


def label_pairs(labels: Iterable[str]) -> list[tuple[str, str]]:
    """The pairs (plain, BLUE) among these labels, in the order of plots."""
    rows = [labelled(label) for label in in_order(labels)]
    of = {row.plain: row.label for row in rows if row.variant == "blue"}
    return [(row.label, of[row.name]) for row in rows if row.name in of]


def in_order(labels: Iterable[str]) -> list[str]:
    """Labels in the order of plots; unknown ones come last, in the order given."""
    return sorted(labels, key=lambda label: labelled(label).order)


def in_table(labels: Iterable[str]) -> list[str]:
    """Labels in the order of tables: those of the paper's main table, of its appendix, then all others."""
    places = (MAIN_TABLE, APPENDIX, "")
    return sorted(labels, key=lambda label: (places.index(labelled(label).reported), labelled(label).order))
