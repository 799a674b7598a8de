"""Critical layers and settings for a model without settings, in minutes: what ``blue locate`` does.

Nothing is known about the model beforehand, so every choice is measured on it:

- *layers*: the consecutive layers that contribute most after paraphrases when each is edited alone. Causal tracing of
  facts that the model knows is shown beside them. Where the two disagree, contributions decide, since the aim is to
  edit (Hase et al. 2023 found that the two need not agree). In a model of many layers, every third layer of the first
  two thirds is edited, then the layers around the best ones;
- *Adam's rate*, in units of hidden states: the rate that brings targets nearest to the new objects; of equally good
  rates, the one that needs the fewest steps;
- *the clamp*: the smallest that costs hardly anything;
- *λ*, in units of the energy of keys, and AlphaEdit's *L2*: by the harmonic mean of efficacy, generalization and
  specificity after an edit of one layer;
- *AlphaEdit's threshold*: the eigenvalue of C below which a share :data:`NULL_SHARE` of its dimensions lies.

To be quick, edits here are made without context prefixes. ``blue tune`` continues the search with them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from inspect import signature
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from ..data import Record
from ..data.corpora import check_corpus
from ..data.datasets import default_dataset, records_to_choose_on
from ..data.provenance import provenance
from ..editing.catalogue import known, names
from ..editing.editor import Editor, EditState, Step
from ..editing.named import composes, editor_with
from ..editing.residuals import DIRECT
from ..editing.second_moments import check_text, enough_tokens, second_moments
from ..editing.settings import (
    SUFFIXES,
    find_settings,
    is_shipped,
    place_of,
    settings_in,
    settings_of,
    user_folder,
    write_settings,
)
from ..editing.solvers import NullSpace, Ridge, Solver, SolverError
from ..editing.targets import TargetOptions, default_token_budget, optimise_targets
from ..io.checks import check_whole
from ..io.formats import write_json
from ..io.timing import Timer, progress_bar
from ..io.writing import check_new_file
from ..metrics import evaluate
from ..metrics.intervals import intervals_by
from ..models.known import scale_of
from ..models.model import Model
from ..models.prompts import Request
from ..models.representations import subject_hidden
from .doctor import beginning
from .layers import best_window, growth_of_probability, window_width
from .locate import causal_trace, effects_frame, known_facts, layers_by_tracing
from .tuning import check_scored, score

#: How many facts are asked, and traced at most; how many known facts tracing needs; and how many edits to measure with.
ASKED, TRACED, FEWEST, EDITS = 100, 10, 5, 8
#: Number of edits whose targets are optimised to try rates and clamps.
TARGETS = 5
#: Noise samples per trace.
SAMPLES = 4
#: Steps per target: as in the settings that are written, and where layers are compared.
STEPS, QUICK = 20, 10
RATES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50)
CLAMPS = (0.75, 1.5, 4)
#: The additional loss that a smaller clamp may cost, in nats.
TOLERATED = 0.1
WEIGHTS = tuple(10**k for k in range(-1, 8))
L2 = (0.001, 0.01, 0.1, 1, 10, 100, 1000)
#: The share of C's dimensions that its null space should have: as in Llama 3 and others with the published 0.02.
NULL_SHARE = 0.85
#: The ratio of BetaEdit's λ₁ to MEMIT's λ, both as published for Llama 3.
LEAK = 0.2
#: A model with more layers than the first number is edited in two passes: every third layer (the second number) of the
#: first two thirds, then the layers around the best ones.
FEW_LAYERS, STRIDE = 12, 3
#: Bytes of second moments to measure in one pass over the text.
MOMENTS_BYTES = 2e9


@dataclass(frozen=True)
class Located:
    """The layers and settings found for a model.

    Attributes:
        model: the model.
        dataset: the records' dataset, and which of its records were used.
        facts: how many were ``asked``, are ``known`` (their answer's first token is the model's first choice), were
            ``traced`` and were ``edited``.
        tracing: mean indirect effect at the subject's last token, with its interval, by ``kind`` and ``layer``; empty
            where too few facts are known.
        contributions: ``rewrite`` and ``paraphrase`` by ``layer``, see :func:`.layer_contributions`.
        windows: the layers by ``tracing`` (None where nothing was traced) and by ``contributions``.
        trials: by setting, every value that was tried, with its result.
        config: the settings file's content.
        provenance: where the results come from.
        seconds: duration by phase.
    """

    model: Model = field(repr=False)
    dataset: Mapping[str, str]
    facts: Mapping[str, int]
    tracing: pd.DataFrame = field(repr=False)
    contributions: pd.DataFrame = field(repr=False)
    windows: Mapping[str, list[int] | None]
    trials: Mapping[str, list[dict[str, float]]]
    config: Mapping[str, Any]
    provenance: Mapping[str, Any] = field(repr=False)
    seconds: Mapping[str, float]

    def as_dict(self) -> dict[str, Any]:
        """All of it as plain values."""
        return {
            "model": self.model.name,
            "n_layers": self.model.n_layers,
            "dataset": dict(self.dataset),
            "facts": dict(self.facts),
            "windows": dict(self.windows),
            "why": why(self),
            "tracing": self.tracing.round(5).to_dict("records"),
            "contributions": self.contributions.round(5).to_dict("records"),
            "trials": dict(self.trials),
            "config": dict(self.config),
            "provenance": dict(self.provenance),
            "seconds": dict(self.seconds),
        }

    def write(self, stem: Path) -> Path:
        """Write all of it as ``stem.json``."""
        return write_json(stem.with_name(f"{stem.name}.json"), self.as_dict())

    def write_settings(self, path: Path) -> Path:
        """Write the settings file."""
        return write_settings(path, self.config, f"Written by `blue locate`.\n{explain(self, table=False)}")


def find(
    model: Model,
    *,
    dataset: str | Path | None = None,
    split: str | None = None,
    edits: int | None = None,
    corpus: str | None = None,
    tokens: int | None = None,
) -> Located:
    """Find critical layers and settings for a model.

    Args:
        model: left as it was.
        dataset: by default :func:`.default_dataset`.
        split: by default ``tune``, where the dataset has that.
        edits: how many records are edited, in one batch; by default :data:`EDITS`, or all if there are fewer. Facts to
            trace are looked for among the first :data:`ASKED` records.
        corpus: the text for second moments; by default the one in the settings, or else the one that ships.
        tokens: how many tokens of the text to use; by default :func:`.enough_tokens`.

    Raises:
        ValueError: if the text is too short, there are too few records, or they lack what settings are chosen by; if
            the model has been edited.
        ArithmeticError: if no target, or no solution, is finite.
    """
    timer = Timer()
    corpus = corpus or default_corpus(model)
    check_corpus(corpus)
    tokens = enough_tokens(model.weight(0).shape[1]) if tokens is None else tokens
    check_text(model, [0], corpus, tokens)
    dataset = dataset or default_dataset(model.name)
    records, about = records_to_choose_on(dataset, split=split, up_to=ASKED)
    edits = min(EDITS, len(records)) if edits is None else edits
    check_whole("edits", edits, 1, len(records), "the number of records")
    edited = records[:edits]
    check_scored(edited)
    model.check_editable([0])

    width = window_width(model.n_layers)
    with timer("tracing"):
        facts = known_facts(model, records, least=0)
        traced = facts[:TRACED] if len(facts) >= FEWEST else []
        tracing, by_tracing = _traced(model, traced, width)
    start = by_tracing[0] if by_tracing else min(model.n_layers // 8, model.n_layers - width)
    middle = start + width // 2
    trials: dict[str, list[dict[str, float]]] = {}
    with timer("targets"):
        targets = target_options(model, [record.request for record in edited[:TARGETS]], middle, trials)
    trier = _Trier(model, edited, targets, corpus, tokens)
    with timer("solver"):
        weight = trier.best("mom2_update_weight", middle, Ridge, WEIGHTS, 1000, trials)
    with timer("contributions"):
        quick = _Trier(model, edited, replace(targets, steps=QUICK), corpus, tokens)
        contributions = _contributions(model, quick, weight, width)
    curve = contributions.set_index("layer").paraphrase
    window = best_window(curve, width)
    middle, best = window[width // 2], int(curve.loc[window].idxmax())
    with timer("solver"):
        weight = trier.best("mom2_update_weight", middle, Ridge, WEIGHTS, weight, trials)
        threshold = _null_threshold(trier.moments(window).values())
        l2 = trier.best("l2", middle, lambda value: NullSpace(threshold, value), L2, 1, trials)
    measured = {"mom2_update_weight": weight, "leak": LEAK * weight, "nullspace_threshold": threshold, "l2": l2}
    text = {"corpus": str(Path(corpus).resolve()) if Path(corpus).exists() else corpus, "tokens": tokens}
    asked = [record for record in records if record.target_true]
    return Located(
        model,
        {"name": str(dataset), **about},
        {"asked": len(asked), "known": len(facts), "traced": len(traced), "edited": len(edited)},
        tracing,
        contributions,
        {"tracing": by_tracing, "contributions": window},
        trials,
        _config(
            model,
            window,
            text,
            targets,
            measured,
            best,
            _clamp_of_mlp(model, edited, middle, targets.clamp),
            contributions.set_index("layer").rewrite.loc[window].round(4).tolist(),
        ),
        {key: value for key, value in provenance(model, edited).items() if key != "case_ids"},
        timer.rounded(),
    )


def default_corpus(model: Model) -> str:
    """The text for second moments, unless another is given."""
    configured = (settings_of(model) or {}).get("statistics", {}).get("corpus")
    return configured or ("pocket" if scale_of(model.name) == "pocket" else "sampled")


def settings_target(model: Model | str, output: Path | None = None, *, force: bool = False) -> Path | None:
    """Where to write a model's settings file: for callers that check this before they do long work.

    Args:
        model: a model, or its name before it is loaded.
        output: the file; by default one in :func:`.user_folder`, or the one that the model has there.
        force: replace it if it exists.

    Returns:
        The file; None if this can be told only after the model is loaded.

    Raises:
        FileExistsError: if the file exists and ``force`` is not set.
        ValueError: if the file's suffix is not one of YAML's; if no ``output`` is given and the model's settings ship
            with the project, as a new file would silently take their place.
        OSError: if the file cannot be written.
    """
    name = model if isinstance(model, str) else model.name
    file = output
    if output is None:
        found = find_settings(model)
        if found and is_shipped(found[0]):
            raise ValueError(
                f"the settings of {name} ship with the project ({found[0]}); to write others, name their file: "
                "--output FILE"
            )
        file = found[0] if found else None if isinstance(model, str) else user_folder() / f"{model.stem}.yaml"
    elif output.suffix not in SUFFIXES:
        raise ValueError(f"settings are written into a {' or '.join(SUFFIXES)} file, not {output}")
    if file is None:
        return None
    if file.exists() and not force:
        raise FileExistsError(f"{file} exists already; --force replaces it, --output FILE writes another")
    check_new_file(file)
    return file


def _traced(model: Model, facts: Sequence[Request], width: int) -> tuple[pd.DataFrame, list[int] | None]:
    """The mean effects at the subjects' last tokens, and the layers that the effects of hidden states single out."""
    if not facts:
        return pd.DataFrame(columns=["kind", "layer", "mean", "low", "high"]), None
    around = max(1, model.n_layers // 5)  # the share that ROME restores together: ten of 48
    traces = [
        causal_trace(model, fact, samples=SAMPLES, window=around, kinds=("hidden", "mlp"), at_subject=True)
        for fact in progress_bar(facts, desc="causal tracing", unit="fact")
    ]
    effects = effects_frame(traces)
    means = intervals_by(effects, ["kind", "layer"], "effect")
    return pd.DataFrame(means), layers_by_tracing(effects, width=width)


def climb(ladder: Sequence[float], start: float, cost: Callable[[float], Any]) -> float:
    """Go from ``start`` to the cheaper neighbouring rung until neither neighbour is cheaper; return the last rung."""
    costs: dict[int, Any] = {}
    here = ladder.index(start)
    while True:
        around = [i for i in (here, here - 1, here + 1) if 0 <= i < len(ladder)]
        for i in around:
            if i not in costs:
                costs[i] = cost(ladder[i])
        best = min(around, key=costs.__getitem__)  # a tie goes to the current rung
        if best == here:
            return ladder[here]
        here = best


def target_options(
    model: Model, requests: Sequence[Request], layer: int, trials: dict[str, list[dict[str, float]]]
) -> TargetOptions:
    """Choose the rate and the clamp of a model's targets, by trying them on these requests at a layer.

    A trial's cost is the mean loss, where a loss below the early stop counts as the early stop. Of two trials with the
    same cost, the one whose targets take fewer steps is better. Rates are tried with the largest clamp, starting from a
    tenth of an entry's typical size, ‖h‖ / √d_model. Then the smallest clamp is chosen that costs at most
    :data:`TOLERATED` more.

    Args:
        model: left as it was.
        requests: edits to try on.
        layer: where the targets are optimised.
        trials: every trial is added here.

    Raises:
        ArithmeticError: if no rate gives finite targets.
    """
    norm = subject_hidden(model, requests, layer).norm(dim=0).mean().item()
    typical = norm / 10 / math.sqrt(model.weight(layer).shape[0])
    start = min(RATES, key=lambda rate: abs(math.log(rate / typical)))

    def cost(options: TargetOptions) -> tuple[float, float]:
        try:
            found = optimise_targets(model, requests, layer, ("",), options)
        except ArithmeticError:
            return math.inf, math.inf
        return (
            round(found.loss.clamp_min(options.early_stop).mean().item(), 4),
            round(found.steps.float().mean().item(), 2),
        )

    def tried(name: str, options: TargetOptions) -> tuple[float, float]:
        loss, steps = cost(options)
        value = getattr(options, name)
        finite = {"loss": loss, "steps": steps} if math.isfinite(loss) else {}
        trials.setdefault(name, []).append({"layer": layer, "value": value, **finite})
        return loss, steps

    widest = TargetOptions(steps=STEPS, clamp=CLAMPS[-1])
    rate = climb(RATES, start, lambda value: tried("learning_rate", replace(widest, learning_rate=value)))
    best = replace(widest, learning_rate=rate)
    costs = {clamp: tried("clamp", replace(best, clamp=clamp))[0] for clamp in CLAMPS[:-1]}
    costs[CLAMPS[-1]] = min(row.get("loss", math.inf) for row in trials["learning_rate"] if row["value"] == rate)
    trials["clamp"].append({"layer": layer, "value": CLAMPS[-1], "loss": costs[CLAMPS[-1]]})
    if not math.isfinite(costs[CLAMPS[-1]]):
        raise FloatingPointError(f"no rate from {RATES[0]} to {RATES[-1]} gives finite targets in {model.name}")
    return replace(best, clamp=next(clamp for clamp in CLAMPS if costs[clamp] <= costs[CLAMPS[-1]] + TOLERATED))


class _Trier:
    """Edits of one layer: the targets are optimised once per layer, and solved for with any number of solvers."""

    def __init__(self, model: Model, records: Sequence[Record], targets: TargetOptions, corpus: str, tokens: int):
        self.model, self.records, self.corpus, self.tokens = model, records, corpus, tokens
        self.editor = Editor((0,), DIRECT, Ridge(1.0), targets=targets, corpus=corpus, tokens=tokens, name="locate")
        self._steps: dict[int, Step] = {}

    def moments(self, layers: Sequence[int]) -> dict[int, torch.Tensor]:
        """C by layer, measured for as many layers at a time as :data:`MOMENTS_BYTES` allows in float64."""
        each = 8 * self.model.weight(layers[0]).shape[1] ** 2
        size = max(1, int(MOMENTS_BYTES // each))
        found: dict[int, torch.Tensor] = {}
        for at in range(0, len(layers), size):
            part = second_moments(self.model, layers[at : at + size], corpus=self.corpus, tokens=self.tokens)
            found |= {layer: moment.matrix for layer, moment in part.items()}
        return found

    def step(self, layer: int) -> Step:
        """The keys at a layer and what is missing there, computed once."""
        if layer not in self._steps:
            alone = replace(self.editor, layers=(layer,))
            state = EditState(("",), {}, default_token_budget(self.model))
            requests = [record.request for record in self.records]
            self._steps[layer] = next(alone.steps(self.model, requests, state))
        return self._steps[layer]

    def after(self, layer: int, solver: Solver, measure: Callable[[], Any]) -> Any:
        """What ``measure`` returns while one layer of the model is edited.

        Raises:
            SolverError: if there is no solution.
        """
        step, weight = self.step(layer), self.model.weight(layer)
        moment = self.moments([layer])[layer].to(weight.device)
        update = solver.solve(solver.prepare(moment), step.keys, step.missing)
        with self.model.preserved([layer]):
            self.model.edit_in_float32([layer])
            self.model.weight(layer).add_(update.to(self.model.weight(layer)))
            return measure()

    def best(
        self,
        name: str,
        layer: int,
        make: Callable[[float], Solver],
        ladder: Sequence[float],
        start: float,
        trials: dict[str, list[dict[str, float]]],
    ) -> float:
        """The value of a solver's setting with the best score after an edit of a layer; :func:`climb` searches the
        ladder from ``start``."""

        rows = trials.setdefault(name, [])

        def cost(value: float) -> float:
            for row in rows:
                if (row["layer"], row["value"]) == (layer, value):
                    return -row["score"]
            try:
                scores = self.after(layer, make(value), lambda: evaluate(self.model, self.records, generate=False))
                found = round(score(scores), 3)
                means = {metric: round(mean, 2) for metric, mean in scores.means.items()}
            except SolverError:
                found, means = 0.0, {}
            rows.append({"layer": layer, "value": value, "score": found, **means})
            return -found

        return climb(ladder, start, cost)


def _contributions(model: Model, trier: _Trier, weight: float, width: int) -> pd.DataFrame:
    """Contributions of all layers, if the model has few; otherwise of every third layer in the first two thirds, and of
    those in the best window and beside it. Targets have half the steps."""
    growth = growth_of_probability(model, trier.records)
    rows: dict[int, dict[str, float]] = {}

    def measure(layers: Iterable[int]) -> pd.Series:
        missing = [layer for layer in layers if layer not in rows]
        if missing:
            trier.moments(missing)
        for layer in progress_bar(missing, desc="edits of one layer", unit="layer"):
            rows[layer] = trier.after(layer, Ridge(weight), growth)
        frame = pd.DataFrame.from_dict(rows, orient="index").sort_index()
        return frame.paraphrase.reindex(range(frame.index[-1] + 1)).interpolate()

    n = model.n_layers
    if n <= FEW_LAYERS:
        measure(range(n))
    else:
        best = best_window(measure(range(0, 2 * n // 3 + 1, STRIDE)), width)
        measure(range(max(0, best[0] - 1), min(n, best[-1] + 2)))
    frame = pd.DataFrame.from_dict(rows, orient="index").sort_index()
    return frame.rename_axis("layer").reset_index()


def _null_threshold(moments: Iterable[torch.Tensor]) -> float:
    """The eigenvalue below which a share :data:`NULL_SHARE` of C's dimensions lies: the median over layers, rounded to
    two digits."""
    values = [torch.linalg.eigvalsh(moment.double()).clamp_min(0).quantile(NULL_SHARE) for moment in moments]
    return float(f"{torch.stack(values).median().item():.2g}")


def _clamp_of_mlp(model: Model, records: Sequence[Record], layer: int, clamp: float) -> float:
    """The clamp of targets in the MLP's output, which is shorter than the block's: ``clamp``, larger by that factor."""
    requests = [record.request for record in records]
    block, mlp = (subject_hidden(model, requests, layer, part).norm(dim=0).mean().item() for part in ("block", "mlp"))
    return float(f"{clamp * block / mlp:.2g}")


def _config(
    model: Model,
    layers: list[int],
    text: Mapping[str, Any],
    targets: TargetOptions,
    measured: Mapping[str, float],
    best: int,
    clamp_of_mlp: float,
    layer_scores: list[float],
) -> dict[str, Any]:
    """The settings file's content: the doctor's settings to start from, with what was measured in place of another
    model's values, and with entries for the methods that weigh layers."""
    kept = ("steps", "learning_rate", "weight_decay", "kl_factor", "clamp", "early_stop")
    config = {
        "models": [place_of(model.name)],
        "revision": model.revision,
        "critical_layers": layers,
        "statistics": dict(text),
        "targets": {key: getattr(targets, key) for key in kept},
        "editors": beginning(model, layers)["editors"],
    }
    for name, own in config["editors"].items():
        if not composes(known(name).make()):
            continue
        for key in ("learning_rate", "clamp", "weight_decay"):
            own.pop(key, None)
        own |= {key: value for key, value in measured.items() if key in own}
        editor = editor_with(name, model, settings_in(config, name))
        if isinstance(editor, Editor) and editor.targets.component == "mlp":
            own["clamp"] = clamp_of_mlp
        if len(editor.layers) == 1:
            own["layers"] = [best]
    for name in names():
        takes = signature(known(name).make()).parameters
        if "layer_scores" in takes:
            own = {key: value for key, value in measured.items() if key in takes}
            config["editors"][name] = {**own, "layer_scores": layer_scores}
    return config


def why(located: Located) -> str:
    """Which layers were chosen, and why, in a sentence or two."""
    facts, windows = located.facts, located.windows
    chosen = windows["contributions"]
    said = f"layers {_span(chosen)}: edits of these alone contribute most after paraphrases"
    if windows["tracing"] is None:
        return (
            f"{said}. The model knows {facts['known']} of {facts['asked']} facts, fewer than the {FEWEST} that tracing "
            "needs: nothing was traced, and contributions alone decided"
        )
    told = f"{facts['traced']} of the {facts['known']} facts that the model knows, of {facts['asked']}, were traced"
    if windows["tracing"] == chosen:
        return f"{said}; causal tracing finds the same ({told})"
    return (
        f"{said}; causal tracing finds {_span(windows['tracing'])} ({told}). Where the two disagree, contributions "
        "decide, since the aim is to edit"
    )


def _span(layers: Sequence[int] | None) -> str:
    return f"{layers[0]}" if layers and len(layers) == 1 else f"{layers[0]}–{layers[-1]}" if layers else "none"


def explain(located: Located, *, table: bool = True) -> str:
    """What was chosen and why, as text; ``table`` adds the curves of contributions and of tracing."""
    config, trials = located.config, located.trials

    def tried(name: str, of: str) -> str:
        rows = sorted(
            (row for row in trials[name] if row["layer"] == trials[name][-1]["layer"]), key=lambda row: row["value"]
        )
        return ", ".join(f"{row['value']:g}: {row[of]:g}" if of in row else f"{row['value']:g}: none" for row in rows)

    editors, edited = config["editors"], located.facts["edited"]
    lines = [
        why(located),
        f"learning rate {config['targets']['learning_rate']:g} (loss of {min(TARGETS, edited)} targets at layer "
        f"{trials['learning_rate'][-1]['layer']} by rate: {tried('learning_rate', 'loss')})",
        f"clamp {config['targets']['clamp']:g} (loss by clamp: {tried('clamp', 'loss')})",
        f"λ {editors['memit_blue']['mom2_update_weight']:g} (score of {edited} edits of layer "
        f"{trials['mom2_update_weight'][-1]['layer']} by λ: {tried('mom2_update_weight', 'score')})",
        f"AlphaEdit: threshold {editors['alphaedit']['nullspace_threshold']:g} ({NULL_SHARE:.0%} of C's dimensions lie "
        f"under it), L2 {editors['alphaedit']['l2']:g} (score by L2: {tried('l2', 'score')})",
        f"on {located.dataset['name']}, {located.dataset.get('choosing_split', 'split ' + located.dataset['split'])}; "
        f"{sum(located.seconds.values()):.0f} seconds ("
        + ", ".join(f"{phase} {seconds:.0f}" for phase, seconds in located.seconds.items())
        + ")",
    ]
    if not table:
        return "\n".join(lines)
    frame = located.contributions.set_index("layer")
    if len(located.tracing):
        hidden = located.tracing[located.tracing.kind == "hidden"].set_index("layer")["mean"]
        frame = frame.join(hidden.rename("tracing"), how="outer")
    return "\n".join([frame.round(3).to_string(na_rep="–"), "", *lines])
