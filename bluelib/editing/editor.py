"""Editors as compositions: which layers, which residual, which solver, which constraint.

An editor changes facts in place by adding a weight update to the MLP value projections of a few layers, as
:meth:`Editor.steps` does. :func:`blue` turns an editor into its BLUE variant. The named editors are in
:mod:`bluelib.editing.named`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from ..data.corpora import corpus_hash
from ..io.checks import check_real, check_whole
from ..io.timing import Timer
from ..models.choices import check_choice, published
from ..models.contexts import context_prefixes
from ..models.model import Model
from ..models.prompts import Request
from ..models.representations import replayed_hidden, subject_hidden, subject_keys
from .anchors import anchored
from .catalogue import VARIANTS
from .constraints import Constraint
from .method import BatchResult, Memory, Method, Size
from .residuals import DIRECT, REPLAYED, Residual
from .second_moments import TOKENS, SecondMoment, check_text, second_moments
from .solvers import Solver, SolverError, on_device
from .targets import TargetOptions, Targets, default_token_budget, optimise_targets


@dataclass(frozen=True)
class Editor(Method):
    """A locate-then-edit method.

    Attributes:
        layers: the layers to update, in ascending order.
        residual: how the difference to the target is shared among them.
        solver: how keys and residuals become a weight update.
        constraint: which part of the update is applied.
        targets: how targets are optimised.
        corpus, tokens: the text that second moments are measured on.
        max_batch: the largest number of edits made together; None for whole batches.
        token_budget: tokens in a micro-batch of targets; None for :func:`.default_token_budget`.
        key_mean: how a key is averaged over the context prefixes, see :func:`.subject_keys`.
        contexts: which context prefixes, see :func:`.context_prefixes`.
        anchor: the length ν̄ that v* is scaled to after every optimisation of targets, see :mod:`.anchors`; None to
            leave targets as they are.
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
    key_mean: str = published("key_mean")
    contexts: str = published("contexts")
    anchor: float | None = None
    name: str = "custom"

    def __post_init__(self) -> None:
        parts = {"residual": Residual, "solver": Solver, "constraint": Constraint, "targets": TargetOptions}
        for name, kind in parts.items():
            if not isinstance(getattr(self, name), kind):
                raise ValueError(f"{self.name}: {name} must be a {kind.__name__}, not {getattr(self, name)!r}")
        if not isinstance(self.layers, (tuple, list)):
            raise ValueError(f"{self.name}: layers must be a tuple of layers, not {self.layers!r}")
        for layer in self.layers:
            check_whole(f"{self.name}: a layer", layer, 0)
        if list(self.layers) != sorted(set(self.layers)) or not self.layers:
            raise ValueError(
                f"{self.name}: layers must be distinct and in ascending order, and at least one, not "
                f"{list(self.layers)}"
            )
        self.residual.check(len(self.layers))
        if self.residual.replayed and self.targets.component != "block":
            raise ValueError(
                f"{self.name}: replayed residuals are hidden states of blocks; targets of its {self.targets.component} "
                "cannot be replayed"
            )
        if self.anchor is not None:
            check_real("anchor", self.anchor)
            if self.targets.component != "block":
                raise ValueError(
                    f"{self.name}: norm anchors are for targets of blocks, not of {self.targets.component}"
                )
        check_choice("key_mean", self.key_mean)
        check_choice("contexts", self.contexts)
        check_whole("tokens", self.tokens, 1)
        for name in ("max_batch", "token_budget"):
            if getattr(self, name) is not None:
                check_whole(name, getattr(self, name), 1)

    def prefixes(self, model: Model) -> tuple[str, ...]:
        return context_prefixes(model, self.contexts)

    @property
    def remembers(self) -> bool:
        return self.solver.remembers

    @property
    def acts_once(self) -> bool:
        return self.constraint.once

    def check(self, model: Model) -> None:
        """Make sure that there is a text for second moments, if the solver needs them, and that it is long enough.

        Raises:
            ValueError: if there is none, or it is too short.
        """
        if self.solver.needs_text:
            check_text(model, self.layers, self._corpus(model), self.tokens)

    def prepare(self, model: Model) -> EditState:
        """Prepare what does not depend on a batch: context prefixes, and each layer's factored second moment.

        Raises:
            ValueError: if the editor names no corpus and needs one, or a layer is not in memory.
            SolverError: if a layer's second moment cannot be factored.
        """
        layers = model.check_editable(self.layers)
        moments = self.second_moments(model, layers, self.tokens) if self.solver.needs_text else {}
        solvers: dict[int, Any] = dict.fromkeys(layers)
        for layer in moments:
            of = f"C of layer {layer}, from {self.tokens} tokens for keys of {model.weight(layer).shape[1]} dimensions"
            with _named(f"{self.name}, factoring {of}"):
                prepared = self.solver.prepare(moments[layer].matrix.to(model.weight(layer).device))
            solvers[layer] = on_device(prepared, "cpu")
        return EditState(self.prefixes(model), solvers, self.token_budget or default_token_budget(model))

    def second_moments(self, model: Model, layers: Sequence[int], tokens: int) -> dict[int, SecondMoment]:
        """The second moments of the keys of ``layers``, measured on ``tokens`` tokens of the editor's corpus.

        Raises:
            ValueError: if the editor names no corpus.
        """
        return second_moments(model, layers, corpus=self._corpus(model), tokens=tokens)

    def _corpus(self, model: Model) -> str:
        if self.corpus is None:
            raise ValueError(
                f"{self.name} names no corpus for the second moments of {model.name}; "
                "pass corpus= (--corpus): sampled (shipped), wikipedia, or the path of a text; or set it in the "
                "model's settings"
            )
        return self.corpus

    def inputs(self, model: Model, state: EditState) -> dict[str, Any]:
        """The hash of the text of the second moments, if there are any, the context prefixes, and the tokens in a
        micro-batch."""
        text = {"corpus": corpus_hash(self._corpus(model))} if self.solver.needs_text else {}
        return {**text, "prefixes": state.prefixes, "token_budget": state.token_budget}

    def steps(
        self, model: Model, requests: Sequence[Request], state: EditState, timer: Timer | None = None
    ) -> Iterator[Step]:
        """One step per layer, from first to last; each step sees the updates of those before it.

        A step is yielded before its update is added to the weights. The update is added when the next step is asked
        for, so a caller that stops early leaves the rest undone. If the constraint restores, it acts after the last
        step.

        Raises:
            ArithmeticError: if a target, a key or a residual is not finite, or a system cannot be solved. The message
                names the layer, and the request if a single one is the cause.
        """
        timer = timer or Timer()
        layers = model.check_layers(self.layers)
        targets: dict[int, Targets] = {}
        replayed: dict[int, Tensor] = {}
        before = {layer: model.weight(layer).clone() for layer in layers} if self.constraint.restores else {}
        taken: list[Step] = []
        for position, layer in enumerate(layers):
            at = self.residual.site(layer, layers)
            if at not in targets:
                with timer("targets"):
                    targets[at] = optimise_targets(
                        model, requests, at, state.prefixes, self.targets, token_budget=state.token_budget
                    )
                    if self.anchor is not None:
                        targets[at] = anchored(model, requests, at, targets[at], self.anchor)
                    if self.residual.replayed:
                        replayed = replayed_hidden(model, requests, at, targets[at].values, layers[1:])
            with timer("keys"):
                keys = subject_keys(model, requests, layer, state.prefixes, self.key_mean)
                goal, measured = (replayed[layer], layer) if layer in replayed else (targets[at].values, at)
                missing = goal - subject_hidden(model, requests, measured, self.targets.component).to(goal.device)
            for what, columns in (("key", keys), ("residual", missing)):
                _check_columns(f"{self.name}, layer {layer}: the {what}", columns, requests)
            divisor = self.residual.divisor(len(layers) - position)
            solve = partial(self._solve, model, state, layer, keys, missing, divisor)
            keep = partial(self._keep, before.get(layer))
            taken.append(step := Step(layer, at, targets[at], keys, missing, divisor, solve, keep))
            yield step
            with timer("solve"):
                weight = model.weight(layer)
                weight.add_(step.update.to(weight.dtype))
        with timer("solve"):
            for step in taken if self.constraint.restores else ():
                weight = model.weight(step.layer)
                weight.copy_(before[step.layer])
                weight.add_(step.kept.to(weight.dtype))

    def _solve(
        self, model: Model, state: EditState, layer: int, keys: Tensor, missing: Tensor, divisor: float
    ) -> Tensor:
        """The update that is added to the layer before the next one is solved, from the weights as they stand."""
        weight = model.weight(layer)
        with _named(f"{self.name}, solving for layer {layer}"):
            solver = on_device(state.solvers[layer], weight.device)
            update = self.solver.solve(solver, keys, missing.to(weight.device) / divisor)
            if self.constraint.restores:
                return update.float()
            return self.constraint.batch(update.float(), weight.float())

    def _keep(self, before: Tensor | None, update: Tensor) -> Tensor:
        """The part of a step's update that stays when all layers are done. ``before`` is W before the batch, or None if
        the constraint does not restore."""
        return update if before is None else self.constraint.batch(update, before.float())

    def edit(self, model: Model, requests: Sequence[Request], state: EditState, timer: Timer) -> BatchResult:
        """Edit one batch, in place: take all :meth:`steps`.

        Raises:
            ArithmeticError: as :meth:`steps`.
        """
        taken = list(self.steps(model, requests, state, timer))
        targets = {step.at: step.targets for step in taken}
        return BatchResult(
            {step.layer: step.kept for step in taken},
            {step.layer: step.keys for step in taken} if self.remembers else {},
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
        """Apply the constraint to the sum of all updates, if it acts on that."""
        if not self.constraint.once:
            return
        for layer, original in originals.items():
            weight = model.weight(layer)
            total = self.constraint.total(weight.double() - original.double(), original.double())
            weight.copy_(original.double() + total)

    def memory(self, size: Size, batch: int) -> Memory:
        """Disk: second moments, and what the solver keeps of them. Host: all layers' solver states and, while they are
        prepared, all second moments. Device: the weights, copies of edited matrices, one of them in float64 too, and
        one layer's solver at work. Micro-batches of targets come on top."""
        n, together = len(self.layers), min(batch, self.max_batch or batch)
        measured = n if self.solver.needs_text else 0
        moments = measured * 4 * size.d_mlp**2
        return Memory(
            moments + measured * self.solver.disk_bytes(size.d_mlp),
            moments + measured * self.solver.state_bytes(size.d_mlp),
            size.weights
            + size.copies(n, 3)
            + 8 * size.d_model * size.d_mlp
            + self.solver.work_bytes(size.d_mlp, together),
        )


@dataclass(frozen=True)
class Step:
    """What an editor is about to do to one layer, for u requests.

    Attributes:
        layer: the layer.
        at: the layer that the targets were optimised at.
        targets: the targets there.
        keys: K, ``(d_mlp, u)`` float32.
        missing: the targets minus what the model has now, ``(d_model, u)``: at layer ``at``, or, for replayed targets,
            at ``layer``.
        divisor: the layer's share of it is ``missing / divisor``.
        solve: computes the update from the weights as they stand.
        keep: gives the part of the update that stays when all layers are done.
    """

    layer: int
    at: int
    targets: Targets
    keys: Tensor
    missing: Tensor
    divisor: float
    solve: Callable[[], Tensor] = field(repr=False)
    keep: Callable[[Tensor], Tensor] = field(repr=False)

    @cached_property
    def update(self) -> Tensor:
        """The update to be added to W, ``(d_model, d_mlp)`` float32: Δ, after the constraint unless that restores. It
        is solved for at the first access."""
        return self.solve()

    @cached_property
    def kept(self) -> Tensor:
        """The part of :attr:`update` that stays when all layers are done."""
        return self.keep(self.update)


@contextmanager
def _named(what: str) -> Iterator[None]:
    """Say in which step, and for which layer, a matrix could not be factored or decomposed."""
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
    """What an editor carries from batch to batch: the model's context prefixes; each layer's solver state, kept in the
    host's memory; and the tokens in a micro-batch, which decide how sums are rounded."""

    prefixes: tuple[str, ...]
    solvers: dict[int, Any] = field(repr=False)
    token_budget: int


def blue(editor: Editor) -> Editor:
    """BLUE (Li et al. 2025): the boundary layers only, each with a residual of its own.

    Raises:
        ValueError: if the editor has fewer than two layers.
    """
    if len(editor.layers) < 2:
        raise ValueError(f"{editor.name} updates {len(editor.layers)} layer; BLUE needs a first and a last one")
    layers = (min(editor.layers), max(editor.layers))
    return replace(editor, name=VARIANTS["blue"].name_of(editor.name), layers=layers, residual=DIRECT)


def fe(editor: Editor) -> Editor:
    """FE (arXiv:2605.00358), forward replay: one target is optimised, at the first layer, and one forward pass with it
    in place gives those of the later layers. Each layer's residual is measured again, and not divided.

    In a sequence, each batch's targets are optimised on the model as it is by then; FE's public code takes all of them
    from the unedited model.

    Raises:
        ValueError: if the editor's targets are not those of a block.
    """
    return replace(
        editor, name=VARIANTS["fe"].name_of(editor.name), layers=tuple(sorted(editor.layers)), residual=REPLAYED
    )
