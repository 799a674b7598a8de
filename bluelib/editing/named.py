"""The named editors, one line each (:mod:`bluelib.editing.catalogue` lists them), and :func:`get_editor`, which makes
one with a model's settings."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from inspect import Parameter
from numbers import Real
from pathlib import PurePath
from typing import Any

from ..data.corpora import check_corpus
from ..models.choices import CHOICES, as_text, published
from ..models.model import Model
from .catalogue import known
from .constraints import Damp, Project, Sparsify
from .editor import Editor
from .finetuning import FineTuning
from .mend import Mend
from .method import Method
from .residuals import DIRECT, DISTRIBUTED, DISTRIBUTED_SQRT, Weighted
from .settings import editor_settings, no_settings, settings_in, settings_of
from .solvers import Equality, LeakyNullSpace, NormRidge, NullSpace, Ridge
from .targets import TargetOptions


def memit(layers: Sequence[int], targets: TargetOptions, *, mom2_update_weight: float) -> Editor:
    """MEMIT (Meng et al. 2023): distributed residuals, Δ = R Kᵀ (λ C + K Kᵀ)⁻¹."""
    return Editor(tuple(layers), DISTRIBUTED, Ridge(mom2_update_weight), targets=targets, name="memit")


def memit_history(layers: Sequence[int], targets: TargetOptions, *, mom2_update_weight: float) -> Editor:
    """MEMIT (Meng et al. 2023) with earlier batches' keys protected: Δ = R Kᵀ (λ C + K_p K_pᵀ + K Kᵀ)⁻¹."""
    solver = Ridge(mom2_update_weight, remembers=True)
    return Editor(tuple(layers), DISTRIBUTED, solver, targets=targets, name="memit_history")


def rect(
    layers: Sequence[int],
    targets: TargetOptions,
    *,
    mom2_update_weight: float,
    keep: float = 0.4,
    at_end: bool = False,
    order: str = published("order"),
) -> Editor:
    """RECT (Gu et al. 2024): MEMIT, keeping only the 40% of Δ's entries with the largest |Δ / W|."""
    return replace(
        memit(layers, targets, mom2_update_weight=mom2_update_weight),
        name="rect",
        constraint=Sparsify(keep, at_end, order),
    )


def prune(
    layers: Sequence[int], targets: TargetOptions, *, mom2_update_weight: float, twice: bool = published("twice")
) -> Editor:
    """PRUNE (Ma et al. 2025): MEMIT, and at the end singular values s > σ₁(W) of ΣΔ become log s − log σ₁ + σ₁."""
    return replace(memit(layers, targets, mom2_update_weight=mom2_update_weight), name="prune", constraint=Damp(twice))


def alphaedit(layers: Sequence[int], targets: TargetOptions, *, nullspace_threshold: float, l2: float) -> Editor:
    """AlphaEdit (Fang et al. 2025): MEMIT's residuals, Δ = R Kᵀ P (K_p K_pᵀ P + K Kᵀ P + L2 · I)⁻¹."""
    return Editor(tuple(layers), DISTRIBUTED, NullSpace(nullspace_threshold, l2), targets=targets, name="alphaedit")


def memit_cake(
    layers: Sequence[int],
    targets: TargetOptions,
    *,
    mom2_update_weight: float,
    layer_scores: Sequence[float],
    temperature: float = 0.1,
) -> Editor:
    """CAKE (ACL 2026) with MEMIT's solver: R^l = η_l R^L, η_l = w_l / Σ_{k ≥ l} w_k, w = softmax(scores / τ)."""
    plain = memit(layers, targets, mom2_update_weight=mom2_update_weight)
    return replace(plain, name="memit_cake", residual=Weighted.of(layer_scores, temperature))


def alphaedit_cake(
    layers: Sequence[int],
    targets: TargetOptions,
    *,
    nullspace_threshold: float,
    l2: float,
    layer_scores: Sequence[float],
    temperature: float = 0.1,
) -> Editor:
    """CAKE (ACL 2026) with AlphaEdit's solver: R^l = η_l R^L, η_l = w_l / Σ_{k ≥ l} w_k, w = softmax(scores / τ)."""
    plain = alphaedit(layers, targets, nullspace_threshold=nullspace_threshold, l2=l2)
    return replace(plain, name="alphaedit_cake", residual=Weighted.of(layer_scores, temperature))


def emmet(layers: Sequence[int], targets: TargetOptions) -> Editor:
    """EMMET (Gupta et al. 2024): a batch's residuals are reached exactly: Δ = R (Kᵀ C⁻¹ K)⁻¹ Kᵀ C⁻¹."""
    return Editor(tuple(layers), DISTRIBUTED, Equality(), targets=targets, name="emmet")


def sphere(
    layers: Sequence[int],
    targets: TargetOptions,
    *,
    nullspace_threshold: float,
    l2: float,
    share: float = 0.5,
    strength: float = 0.5,
    order: str = "in_turn",
) -> Editor:
    """SPHERE (ICLR 2026): AlphaEdit's Δ (I − α U Uᵀ), U the principal directions of W that hold the share η."""
    plain = alphaedit(layers, targets, nullspace_threshold=nullspace_threshold, l2=l2)
    return replace(plain, name="sphere", constraint=Project(share, strength, order))


def encore(layers: Sequence[int], targets: TargetOptions, *, mom2_update_weight: float, norm_weight: float) -> Editor:
    """ENCORE (Gupta et al. 2025): Δ = R Kᵀ (λ C + λ_n I + K_p K_pᵀ + K Kᵀ)⁻¹; a target stops at first choice."""
    solver = NormRidge(mom2_update_weight, remembers=True, norm_weight=norm_weight)
    return Editor(tuple(layers), DISTRIBUTED, solver, targets=replace(targets, stop="first_choice"), name="encore")


def betaedit(
    layers: Sequence[int], targets: TargetOptions, *, nullspace_threshold: float, l2: float, leak: float
) -> Editor:
    """BetaEdit (IJCAI 2026): Δ = R Kᵀ P [(K_p K_pᵀ + K Kᵀ + λ₁ C) P + λ₂ I]⁻¹."""
    solver = LeakyNullSpace(nullspace_threshold, l2, leak)
    return Editor(tuple(layers), DISTRIBUTED, solver, targets=targets, name="betaedit")


def alphaedit_nas(
    layers: Sequence[int], targets: TargetOptions, *, nullspace_threshold: float, l2: float, anchor: float
) -> Editor:
    """Norm anchors (arXiv:2602.02543) with AlphaEdit: v* is scaled to length ν̄; none over 2 ν̄ is installed."""
    plain = alphaedit(layers, targets, nullspace_threshold=nullspace_threshold, l2=l2)
    return replace(plain, name="alphaedit_nas", anchor=anchor)


def pmet(
    layers: Sequence[int], targets: TargetOptions, *, mom2_update_weight: float, relax: bool = published("relax")
) -> Editor:
    """PMET (Li et al. 2024): MEMIT's Δ with R / √n; targets of the MLP's output, optimised along with attention's."""
    return Editor(
        tuple(layers),
        DISTRIBUTED_SQRT,
        Ridge(mom2_update_weight),
        targets=replace(targets, component="mlp", relax=relax),
        name="pmet",
    )


def rome(layers: Sequence[int], targets: TargetOptions, *, mom2_adjustment: bool = True) -> Editor:
    """ROME (Meng et al. 2022): one layer, one edit at a time, exactly: Δ = r (C⁻¹ k)ᵀ / (kᵀ C⁻¹ k)."""
    if len(layers) != 1:
        raise ValueError(f"rome edits one layer, not {list(layers)}")
    return Editor(tuple(layers), DIRECT, Equality(mom2_adjustment), targets=targets, max_batch=1, name="rome")


def ft(layers: Sequence[int], *, steps: int, learning_rate: float, norm_constraint: float | None = None) -> Method:
    """FT (Zhu et al. 2020): Adam on one value projection, every entry kept within a distance of its old value."""
    return FineTuning("ft", tuple(layers), steps, learning_rate, norm_constraint)


def mend(layers: Sequence[int], *, network: str | None = None) -> Method:
    """MEND (Mitchell et al. 2022): a trained network maps the gradient's factors, ΔW = − α Σ_t d̃_t k̃_tᵀ."""
    return Mend("mend", tuple(layers), network)


def check_corpus_of(name: str, model: Model | str, corpus: str | None = None) -> None:
    """Make sure, before a model is loaded, that an editor that needs a text has one: named here, or in the model's
    settings. If the model's name has no settings, a missing text is not reported.

    Raises:
        ValueError: if there is no text, or it is neither a known corpus nor a path.
    """
    if not composes(known(name).make()):
        return
    config = settings_of(model)
    settings = settings_in(config, name) if config else {}
    configured = settings.get("corpus")
    if settings.get("mom2_adjustment") is False:  # ROME without C
        return
    if config and not (corpus or configured):
        raise ValueError(
            f"{name} needs a text for second moments, and none is configured for "
            f"{model if isinstance(model, str) else model.name}; name one with --corpus: sampled (shipped), "
            "wikipedia, or the path of a text"
        )
    if corpus or configured:
        check_corpus(corpus or str(configured))


def get_editor(
    name: str,
    model: Model,
    *,
    corpus: str | None = None,
    tokens: int | None = None,
    text: bool = False,
    **overrides: Any,
) -> Method:
    """The editor ``name`` with its hyper-parameters for ``model``.

    Args:
        name: of a method in the catalogue, see ``blue editors``.
        model: decides which configuration applies (``bluelib/configs``).
        corpus: the text to measure second moments on, instead of the configured one; methods that use none ignore it.
        tokens: how many tokens of it, likewise.
        text: where the papers' text and the public code differ (:mod:`bluelib.models.choices`), follow the text.
        overrides: hyper-parameters that replace those of the configuration: ``layers``; the method's own, which are
            the arguments of its factory; for a composition also those of its targets (the fields of
            :class:`~bluelib.editing.targets.TargetOptions`), ``token_budget``, ``key_mean`` and ``contexts``.

    Raises:
        ValueError: if the editor, the corpus or a hyper-parameter is unknown, a hyper-parameter is out of its range, or
            the model does not have one of the layers.
    """
    if not isinstance(model, Model):
        raise ValueError(f"get_editor needs a model, as load_model returns it, not {model!r}")
    make = known(name).make()
    if composes(make):
        if tokens is not None:
            overrides["tokens"] = tokens
        if corpus:  # a notebook's parameter is an empty string where none is named
            overrides["corpus"] = corpus
            check_corpus(corpus)
    check_names(name, overrides)
    settings = {
        **editor_settings(model, name, shared=composes(make)),
        **(as_text(_hyper_parameters(make), known(name).plain or name) if text else {}),
        **overrides,
    }
    if "layers" not in settings:
        raise ValueError(
            f"no settings for editor {name!r}: "
            + (
                no_settings(model.name)
                if settings_of(model) is None
                else f"the settings of {model.name} name no layers for it"
            )
            + ". Or pass layers and hyper-parameters as arguments. Only editors whose factory takes targets share the "
            "model's critical layers"
        )
    return editor_with(name, model, settings)


def check_names(name: str, settings: Iterable[str]) -> None:
    """Make sure that these are names of hyper-parameters of the editor ``name``.

    Raises:
        ValueError: if the editor or one of the names is unknown; the message lists those that it has.
    """
    has = _hyper_parameters(known(name).make())
    if unknown := sorted(set(settings) - has):
        raise ValueError(
            f"editor {name!r} has no hyper-parameter {', '.join(unknown)}; it has {', '.join(sorted(has))}"
        )


def editor_with(name: str, model: Model, settings: Mapping[str, Any]) -> Method:
    """The editor ``name`` with these hyper-parameters and no others.

    Raises:
        ValueError: as :func:`get_editor`, or if a hyper-parameter is missing.
    """
    make, settings = known(name).make(), dict(settings)
    layers = model.check_layers(settings["layers"])
    if "layer_scores" in settings and layers != tuple(settings["layers"]):
        raise ValueError(
            f"layers of editor {name!r} must ascend, as layer_scores are in their order; not {settings['layers']}"
        )
    settings["layers"] = layers
    parts = {}
    if composes(make):
        parts = {key: settings.pop(key) for key in _OF_ITSELF & set(settings)}
        of_targets = (_OF_TARGETS - set(inspect.signature(make).parameters)) & set(settings)
        settings["targets"] = TargetOptions(**{key: settings.pop(key) for key in of_targets})
    for key, parameter in inspect.signature(make).parameters.items():
        if key in settings and key not in CHOICES:  # of a choice, its own check says what both values mean
            _check_kind(name, key, settings[key], parameter.annotation)
    try:
        inspect.signature(make).bind(**settings)
    except TypeError as error:
        takes = ", ".join(sorted(_hyper_parameters(make)))
        check_measured(name, model.name, settings)
        raise ValueError(
            f"editor {name!r}: {error}; it takes {takes}. Pass them, or set them in the configuration of {model.name}, "
            "for this editor or for the one that it was registered to be like"
        ) from error
    editor: Any = make(**settings)
    if not (isinstance(editor, Method) and is_dataclass(editor)):
        raise ValueError(
            f"the factory of {name!r} must return an Editor or another Method that is a dataclass, "
            f"not {type(editor).__name__}"
        )
    return replace(editor, name=name, **parts)


#: What hyper-parameters can be, by their factory's annotation.
_KINDS: dict[str, tuple[Any, str]] = {
    "float": (Real, "a number"),
    "int": (Real, "a number"),
    "bool": (bool, "true or false"),
    "str": ((str, PurePath), "text"),
}


def _check_kind(editor: str, key: str, value: Any, annotation: Any) -> None:
    """Refuse a value of another kind than a factory's annotation says, if that is one of :data:`_KINDS`, or optional.

    Raises:
        ValueError: if the value is refused.
    """
    kind, _, optional = (getattr(annotation, "__name__", None) or str(annotation)).partition(" | ")
    if kind not in _KINDS or (optional and value is None):
        return
    wanted, words = _KINDS[kind]
    if not isinstance(value, wanted) or (wanted is Real and isinstance(value, bool)):
        raise ValueError(f"{key} of editor {editor!r} must be {words}, not {value!r}")


def get_composition(name: str, model: Model, **settings: Any) -> Editor:
    """As :func:`get_editor`, for callers that need the parts of a composition.

    Raises:
        ValueError: as :func:`get_editor`; if the editor is not a composition, as FT and MEND.
    """
    editor = get_editor(name, model, **settings)
    if not isinstance(editor, Editor):
        raise ValueError(f"{name} is not a composition of layers, residual, solver and constraint, as needed here")
    return editor


#: Hyper-parameters of a composition that are not its factory's: those of its targets, and the editor's own fields.
_OF_TARGETS = {f.name for f in fields(TargetOptions)} - {"component", "relax", "stop"}  # which factories set
_OF_ITSELF = {"corpus", "tokens", "token_budget", "key_mean", "contexts"}


#: Hyper-parameters that are measured on a model and hold for it alone, with the commands that measure them.
MEASURED = {"layer_scores": "blue locate MODEL", "anchor": "blue tune MODEL --editor alphaedit_nas"}


def check_measured(name: str, model: str, settings: Mapping[str, Any]) -> None:
    """Make sure that settings have the hyper-parameters of an editor that are measured on the model.

    Raises:
        ValueError: if one is missing; the message names it, the editor, and the command that measures it.
    """
    taken = inspect.signature(known(name).make()).parameters
    for key in (
        key for key in MEASURED.keys() & taken.keys() - settings.keys() if taken[key].default is Parameter.empty
    ):
        command = MEASURED[key].replace("MODEL", model)
        raise ValueError(
            f"editor {name!r} needs {key}, which is measured on a model: `{command}` measures it and writes it into "
            "your settings"
        )


def composes(make: Callable[..., Method]) -> bool:
    """Whether a factory makes a composition, that is, takes ``targets``."""
    return "targets" in inspect.signature(make).parameters


def _hyper_parameters(make: Callable[..., Method]) -> set[str]:
    own = set(inspect.signature(make).parameters)
    return (own | _OF_TARGETS | _OF_ITSELF) - {"targets"} if composes(make) else own
