"""Editors as compositions: which layers, which residual, which solver.

An editor changes facts in place by adding a weight update to the MLP value projections of a few layers. The named
editors at the end of this file are one line each; :func:`blue` turns one into its BLUE variant.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from torch import Tensor

from .configs import editor_settings, model_configs
from .contexts import context_prefixes
from .models import Model
from .prompts import Request
from .representations import subject_hidden, subject_keys
from .residuals import DIRECT, DISTRIBUTED, Residual
from .solvers import NullSpace, Ridge, Solver
from .statistics import TOKENS, second_moments
from .targets import TargetOptions, Targets, optimise_targets
from .timing import Timer


@dataclass(frozen=True)
class Editor:
    """A locate-then-edit method.

    Attributes:
        name: for tables and provenance.
        layers: the layers to update, in ascending order.
        residual: how what is missing is shared among them.
        solver: how keys and residuals become a weight update.
        targets: how targets are optimised.
        tokens, corpus: the text that second moments are measured on.
    """

    name: str
    layers: tuple[int, ...]
    residual: Residual
    solver: Solver
    targets: TargetOptions = field(default_factory=TargetOptions)
    corpus: str | None = None
    tokens: int = TOKENS

    def prepare(self, model: Model) -> EditState:
        """What does not depend on a batch: context prefixes, and each layer's factored second moment.

        Raises:
            ValueError: if the editor names no corpus.
        """
        layers = model.check_layers(self.layers)
        if self.corpus is None:
            raise ValueError(f"{self.name} names no corpus for the second moments of {model.name}; "
                             "pass corpus='path/to/text.txt', or set it in the model's configuration")  # fmt: skip
        moments = second_moments(model, layers, corpus=self.corpus, tokens=self.tokens)
        solvers = {layer: self.solver.prepare(moments[layer].matrix.to(model.device)) for layer in layers}
        return EditState(context_prefixes(model), solvers)

    def edit(self, model: Model, requests: Sequence[Request], state: EditState, timer: Timer) -> BatchResult:
        """Edit one batch, in place; layers are updated from first to last, each seeing the ones before.

        Returns:
            The batch's updates and the optimised targets, by layer. ``state`` is advanced to the next batch.
        """
        layers = model.check_layers(self.layers)
        targets: dict[int, Targets] = {}
        updates: dict[int, Tensor] = {}
        for position, layer in enumerate(layers):
            at = layer if self.residual.direct else layers[-1]
            if at not in targets:
                with timer("targets"):
                    targets[at] = optimise_targets(model, requests, at, state.prefixes, self.targets)
            with timer("keys"):
                keys = subject_keys(model, requests, layer, state.prefixes)
                missing = targets[at].values - subject_hidden(model, requests, at)
            with timer("solve"):
                residuals = missing / self.residual.divisor(len(layers) - position)
                update, state.solvers[layer] = self.solver.solve(state.solvers[layer], keys, residuals)
                updates[layer] = update.float()
                model.weight(layer).add_(update.to(model.weight(layer).dtype))
        return BatchResult(updates, targets)


@dataclass
class EditState:
    """What an editor carries from batch to batch: the model's context prefixes and each layer's solver state."""

    prefixes: tuple[str, ...]
    solvers: dict[int, Any] = field(repr=False)


@dataclass(frozen=True)
class BatchResult:
    """One batch's weight updates Δ, ``(d_model, d_mlp)`` by layer, and targets by the layer they were optimised at."""

    updates: Mapping[int, Tensor]
    targets: Mapping[int, Targets]


def blue(editor: Editor) -> Editor:
    """BLUE (Li et al. 2025): the boundary layers only, each with a residual of its own.

    Raises:
        ValueError: if the editor has fewer than two layers, so that it has no boundary.
    """
    if len(editor.layers) < 2:
        raise ValueError(f"{editor.name} updates {len(editor.layers)} layer; BLUE needs a first and a last one")
    layers = (min(editor.layers), max(editor.layers))
    return replace(editor, name=f"{editor.name}_blue", layers=layers, residual=DIRECT)


def memit(layers: Sequence[int], targets: TargetOptions, *, mom2_update_weight: float) -> Editor:
    """MEMIT (Meng et al. 2023): distributed residuals, Δ = R Kᵀ (λ C + K Kᵀ)⁻¹."""
    return Editor("memit", tuple(layers), DISTRIBUTED, Ridge(mom2_update_weight), targets)


def alphaedit(layers: Sequence[int], targets: TargetOptions, *, nullspace_threshold: float, l2: float) -> Editor:
    """AlphaEdit (Fang et al. 2025): MEMIT's residuals, Δ = R Kᵀ P (K_p K_pᵀ P + K Kᵀ P + L2 · I)⁻¹."""
    return Editor("alphaedit", tuple(layers), DISTRIBUTED, NullSpace(nullspace_threshold, l2), targets)


def _blue_of(make: Callable[..., Editor]) -> Callable[..., Editor]:
    def build(*args: Any, **kwargs: Any) -> Editor:
        return blue(make(*args, **kwargs))

    build.__doc__ = f"BLUE of: {make.__doc__}"
    return build


#: The named editors.
EDITORS: dict[str, Callable[..., Editor]] = {
    "memit": memit,
    "memit_blue": _blue_of(memit),
    "alphaedit": alphaedit,
    "alphaedit_blue": _blue_of(alphaedit),
}


def get_editor(name: str, model: Model, **overrides: Any) -> Editor:
    """The editor ``name`` with its hyper-parameters for ``model``.

    Args:
        name: one of :data:`EDITORS`.
        model: decides which configuration applies (``bluelib/configs``).
        overrides: hyper-parameters that replace those of the configuration: ``layers``, the method's own
            (``mom2_update_weight``; ``nullspace_threshold``, ``l2``), those of the targets (``steps``,
            ``learning_rate``, ``weight_decay``, ``kl_factor``, ``clamp``, ``early_stop``), ``corpus``, ``tokens``.

    Raises:
        ValueError: for an unknown editor or hyper-parameter, or a layer that the model does not have.
    """
    if name not in EDITORS:
        raise ValueError(f"no editor is called {name!r}; known: {', '.join(EDITORS)}")
    settings = {**editor_settings(model.name, name), **overrides}
    if "layers" not in settings:
        raise ValueError(
            f"no configuration for model {model.name!r} (known: {', '.join(model_configs())}); "
            "pass layers and hyper-parameters as overrides, or add a file to bluelib/configs"
        )
    layers = model.check_layers(settings.pop("layers"))
    source = {key: settings.pop(key) for key in ("corpus", "tokens") if key in settings}
    options = {f.name: settings.pop(f.name) for f in fields(TargetOptions) if f.name in settings}
    try:
        editor = EDITORS[name](layers, TargetOptions(**options), **settings)
    except TypeError as error:
        raise ValueError(
            f"editor {name!r} does not take these hyper-parameters: {sorted(settings)} ({error})"
        ) from error
    return replace(editor, **source)


def describe(editor: Editor) -> dict[str, Any]:
    """An editor's resolved settings as plain values, for provenance."""
    return {
        "name": editor.name,
        "layers": list(editor.layers),
        "residual": editor.residual.name,
        "solver": {"kind": type(editor.solver).__name__, **vars(editor.solver)},
        "targets": vars(editor.targets),
        "corpus": editor.corpus,
        "tokens": editor.tokens,
    }
