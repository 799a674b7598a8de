"""Editors as compositions: which layers, which residual, which solver, which constraint.

An editor changes facts in place by adding a weight update to the MLP value projections of a few layers. The named
editors at the end of this file are one line each; :func:`blue` turns one into its BLUE variant. FT and MEND, which
are no such composition, stand beside them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from ..data.corpora import check_corpus, corpus_hash
from ..io.checks import check_whole
from ..io.timing import Timer
from ..models.contexts import context_prefixes
from ..models.model import Model
from ..models.prompts import Request
from ..models.representations import subject_hidden, subject_keys
from .constraints import Constraint, Damp, Sparsify
from .finetuning import FineTuning
from .mend import Mend
from .method import BatchResult, Method
from .residuals import DIRECT, DISTRIBUTED, DISTRIBUTED_SQRT, Residual
from .second_moments import TOKENS, SecondMoment, second_moments
from .settings import editor_settings, model_configs
from .solvers import Equality, NullSpace, Ridge, Solver, SolverError, on_device
from .targets import TargetOptions, Targets, default_token_budget, optimise_targets


@dataclass(frozen=True)
class Editor(Method):
    """A locate-then-edit method.

    Attributes:
        layers: the layers to update, in ascending order.
        residual: how what is missing is shared among them.
        solver: how keys and residuals become a weight update.
        constraint: what of the update is applied.
        targets: how targets are optimised.
        corpus, tokens: the text that second moments are measured on.
        max_batch: edits that are made together at most; None for whole batches.
        token_budget: tokens of a micro-batch of targets; None for what fits into memory when a run begins.
        name: for tables and provenance.
    """

    layers: tuple[int, ...]
    residual: Residual
    solver: Solver
    constraint: Constraint = field(default_factory=Constraint)
    targets: TargetOptions = field(default_factory=TargetOptions)
    corpus: str | None = None
    tokens: int = TOKENS
    max_batch: int | None = None
    token_budget: int | None = None
    name: str = "custom"

    def __post_init__(self) -> None:
        for layer in self.layers:
            check_whole(f"{self.name}: a layer", layer, 0)
        if len(set(self.layers)) != len(self.layers) or not self.layers:
            raise ValueError(f"{self.name}: layers must be distinct, and at least one, not {list(self.layers)}")
        check_whole("tokens", self.tokens, 1)
        for name in ("max_batch", "token_budget"):
            if getattr(self, name) is not None:
                check_whole(name, getattr(self, name), 1)

    def prefixes(self, model: Model) -> tuple[str, ...]:
        return context_prefixes(model)

    def prepare(self, model: Model) -> EditState:
        """What does not depend on a batch: context prefixes, and each layer's factored second moment.

        Raises:
            ValueError: if the editor names no corpus, or a layer is not in memory.
            SolverError: if a layer's second moment cannot be factored.
        """
        layers = model.check_editable(self.layers)
        moments = self.second_moments(model, layers, self.tokens)
        solvers = {}
        for layer in layers:
            with _named(f"{self.name}, factoring C of layer {layer}"):
                prepared = self.solver.prepare(moments[layer].matrix.to(model.weight(layer).device))
            solvers[layer] = on_device(prepared, "cpu")
        return EditState(self.prefixes(model), solvers, self.token_budget or default_token_budget(model))

    def second_moments(self, model: Model, layers: Sequence[int], tokens: int) -> dict[int, SecondMoment]:
        """The second moments of keys of ``layers``, on so many tokens of the editor's corpus.

        Raises:
            ValueError: if the editor names no corpus.
        """
        if self.corpus is None:
            raise ValueError(
                f"{self.name} names no corpus for the second moments of {model.name}; "
                "pass corpus='wikipedia' or a text's path (--corpus), or configure it"
            )
        return second_moments(model, layers, corpus=self.corpus, tokens=tokens)

    def inputs(self, model: Model, state: EditState) -> dict[str, Any]:
        """The text of the second moments by its content, and the context prefixes."""
        return {"corpus": corpus_hash(str(self.corpus)), "prefixes": state.prefixes}

    def chosen(self, state: EditState) -> dict[str, Any]:
        return {"token_budget": state.token_budget}

    def choose(self, state: EditState, chosen: dict[str, Any]) -> None:
        state.token_budget = chosen["token_budget"]

    def edit(self, model: Model, requests: Sequence[Request], state: EditState, timer: Timer) -> BatchResult:
        """Edit one batch, in place; layers are updated from first to last, each seeing the ones before.

        Raises:
            ArithmeticError: for a target, a key, a residual or a system that is not finite or cannot be solved; the
                message names the layer, and the request where it is one request's.
        """
        layers = model.check_layers(self.layers)
        targets: dict[int, Targets] = {}
        keys: dict[int, Tensor] = {}
        updates: dict[int, Tensor] = {}
        for position, layer in enumerate(layers):
            at = layer if self.residual.direct else layers[-1]
            if at not in targets:
                with timer("targets"):
                    targets[at] = optimise_targets(
                        model, requests, at, state.prefixes, self.targets, token_budget=state.token_budget
                    )
            with timer("keys"):
                keys[layer] = subject_keys(model, requests, layer, state.prefixes)
                missing = targets[at].values - subject_hidden(model, requests, at, self.targets.component)
            for what, columns in (("key", keys[layer]), ("residual", missing)):
                _check_columns(f"{self.name}, layer {layer}: the {what}", columns, requests)
            with timer("solve"), _named(f"{self.name}, solving for layer {layer}"):
                weight = model.weight(layer)
                residuals = missing.to(weight.device) / self.residual.divisor(len(layers) - position)
                update = self.solver.solve(on_device(state.solvers[layer], weight.device), keys[layer], residuals)
                updates[layer] = self.constraint.batch(update.float(), weight.float())
                weight.add_(updates[layer].to(weight.dtype))
        return BatchResult(
            updates,
            keys if self.solver.remembers else {},
            targets,
            steps=sum(t.steps.float().mean().item() for t in targets.values()),
            loss=torch.stack([t.loss.mean() for t in targets.values()]).mean().item(),
        )

    def remember(self, state: EditState, keys: Mapping[int, Tensor]) -> None:
        """Advance each layer's solver past a batch with these keys."""
        for layer, k in keys.items():
            advanced = self.solver.remember(on_device(state.solvers[layer], k.device), k)
            state.solvers[layer] = on_device(advanced, "cpu")

    def finish(self, model: Model, originals: Mapping[int, Tensor]) -> None:
        """Apply the constraint to the sum of all updates, if it has anything to say about it."""
        if not self.constraint.once:
            return
        for layer, original in originals.items():
            weight = model.weight(layer)
            total = self.constraint.total(weight.double() - original.double(), original.double())
            weight.copy_(original.double() + total)


@contextmanager
def _named(what: str) -> Iterator[None]:
    """Say in which step, and of which layer, a matrix could not be factored or decomposed."""
    try:
        yield
    except (ArithmeticError, torch.linalg.LinAlgError) as error:
        raise SolverError(f"{what}: {error}") from error


def _check_columns(what: str, columns: Tensor, requests: Sequence[Request]) -> None:
    wrong = (~torch.isfinite(columns)).any(0).nonzero()[:, 0].tolist()
    if wrong:
        request = requests[wrong[0]]
        raise FloatingPointError(f"{what} of {request.text!r} → {request.target!r} is not finite")


@dataclass
class EditState:
    """What an editor carries from batch to batch: the model's context prefixes, each layer's solver state, kept in the
    host's memory, and the tokens of a micro-batch, which decide how sums are rounded."""

    prefixes: tuple[str, ...]
    solvers: dict[int, Any] = field(repr=False)
    token_budget: int | None = None


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
    return Editor(tuple(layers), DISTRIBUTED, Ridge(mom2_update_weight), targets=targets, name="memit")


def memit_history(layers: Sequence[int], targets: TargetOptions, *, mom2_update_weight: float) -> Editor:
    """MEMIT (Meng et al. 2023) with earlier batches' keys protected: Δ = R Kᵀ (λ C + K_p K_pᵀ + K Kᵀ)⁻¹."""
    solver = Ridge(mom2_update_weight, remembers=True)
    return Editor(tuple(layers), DISTRIBUTED, solver, targets=targets, name="memit_history")


def rect(
    layers: Sequence[int], targets: TargetOptions, *, mom2_update_weight: float, keep: float = 0.4, at_end: bool = False
) -> Editor:
    """RECT (Gu et al. 2024): MEMIT, of whose Δ only the entries with the largest |Δ / W| are kept, 40% of them."""
    return replace(
        memit(layers, targets, mom2_update_weight=mom2_update_weight), name="rect", constraint=Sparsify(keep, at_end)
    )


def prune(layers: Sequence[int], targets: TargetOptions, *, mom2_update_weight: float, twice: bool = False) -> Editor:
    """PRUNE (Ma et al. 2025): MEMIT, and at the end singular values s > σ₁(W) of ΣΔ become log s − log σ₁ + σ₁."""
    return replace(memit(layers, targets, mom2_update_weight=mom2_update_weight), name="prune", constraint=Damp(twice))


def alphaedit(layers: Sequence[int], targets: TargetOptions, *, nullspace_threshold: float, l2: float) -> Editor:
    """AlphaEdit (Fang et al. 2025): MEMIT's residuals, Δ = R Kᵀ P (K_p K_pᵀ P + K Kᵀ P + L2 · I)⁻¹."""
    return Editor(tuple(layers), DISTRIBUTED, NullSpace(nullspace_threshold, l2), targets=targets, name="alphaedit")


def pmet(layers: Sequence[int], targets: TargetOptions, *, mom2_update_weight: float) -> Editor:
    """PMET (Li et al. 2024): MEMIT's Δ; targets of the MLP's output, optimised with one of attention's; R / √n."""
    return Editor(
        tuple(layers),
        DISTRIBUTED_SQRT,
        Ridge(mom2_update_weight),
        targets=replace(targets, component="mlp"),
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


def _blue_of(make: Callable[..., Editor]) -> Callable[..., Editor]:
    @wraps(make)
    def build(*args: Any, **kwargs: Any) -> Editor:
        return blue(make(*args, **kwargs))

    build.__doc__ = f"BLUE of: {make.__doc__}"
    return build


_PLAIN = (memit, memit_history, rect, prune, alphaedit, pmet)
#: The named editors.
EDITORS: dict[str, Callable[..., Method]] = {make.__name__: make for make in (ft, mend, rome, *_PLAIN)}
EDITORS |= {f"{make.__name__}_blue": _blue_of(make) for make in _PLAIN}


def blue_pairs(names: Sequence[str]) -> list[tuple[str, str]]:
    """Of these editors, those that are there with and without BLUE: (plain, BLUE), in their order.

    Raises:
        ValueError: if there is no such pair.
    """
    pairs = [(name, f"{name}_blue") for name in names if f"{name}_blue" in names]
    if not pairs:
        raise ValueError(
            f"of {', '.join(names) or 'no editors'}, none is there with and without BLUE; "
            "give both, e.g. memit and memit_blue"
        )
    return pairs


def get_composition(name: str, model: Model, **settings: Any) -> Editor:
    """As :func:`get_editor`, where the parts of a composition are needed.

    Raises:
        ValueError: as from there; for FT and MEND, which are none.
    """
    editor = get_editor(name, model, **settings)
    if not isinstance(editor, Editor):
        raise ValueError(f"{name} is no composition of layers, residual, solver and constraint, as is needed here")
    return editor


def get_editor(name: str, model: Model, *, corpus: str | None = None, **overrides: Any) -> Method:
    """The editor ``name`` with its hyper-parameters for ``model``.

    Args:
        name: one of :data:`EDITORS`.
        model: decides which configuration applies (``bluelib/configs``).
        corpus: the text of the second moments, if not the configuration's; methods that use none ignore it.
        overrides: hyper-parameters that replace those of the configuration: ``layers``; the method's own, which are
            the arguments of its function in this file; for a composition also those of its targets (the fields of
            :class:`~bluelib.editing.targets.TargetOptions`), ``tokens`` and ``token_budget``.

    Raises:
        ValueError: for an unknown editor, corpus or hyper-parameter, one that is out of its range, or a layer that the
            model does not have.
    """
    if name not in EDITORS:
        raise ValueError(f"no editor is called {name!r}; known: {', '.join(EDITORS)}")
    own = set(inspect.signature(EDITORS[name]).parameters)
    composed = "targets" in own
    if corpus and composed:
        overrides["corpus"] = corpus
        check_corpus(corpus)
    of_targets = {f.name for f in fields(TargetOptions)} if composed else set()
    of_itself = {"corpus", "tokens", "token_budget"} if composed else set()

    known = (own | of_targets | of_itself) - {"targets", "component"}
    unknown = sorted(set(overrides) - known)
    if unknown:
        raise ValueError(
            f"editor {name!r} has no hyper-parameter {', '.join(unknown)}; it has {', '.join(sorted(known))}"
        )
    settings = {**editor_settings(model.name, name, shared=composed), **overrides}
    if "layers" not in settings:
        raise ValueError(
            f"no settings of editor {name!r} for model {model.name!r} (configured: {', '.join(model_configs())}); "
            "pass layers and hyper-parameters as overrides, or add them to bluelib/configs"
        )
    settings["layers"] = model.check_layers(settings["layers"])
    parts = {key: settings.pop(key) for key in of_itself & set(settings)}
    if composed:
        settings["targets"] = TargetOptions(**{key: settings.pop(key) for key in of_targets & set(settings)})
    try:
        return replace(EDITORS[name](**settings), **parts)
    except TypeError as error:
        raise ValueError(
            f"editor {name!r}: {error}; set it in the configuration of {model.name}, or pass it"
        ) from error
