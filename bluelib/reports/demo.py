"""The interactive page: change a fact, and see MEMIT beside MEMIT_BLUE (or another method beside its BLUE variant).

Everything that is shown comes from :func:`compare`, a function of the model, the list of edits, the method and λ; the
page only collects these and shows :func:`plot_comparison`. The model itself is never left edited.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from html import escape
from typing import Any

import ipywidgets as widgets
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from torch import Tensor

from ..data import Record
from ..data.records import put_subject_out
from ..editing.catalogue import VARIANTS, blue_pairs, entry, labelled, names
from ..editing.editor import Editor
from ..editing.named import get_composition
from ..editing.sequence import edited
from ..editing.solvers import NullSpace
from ..io.palette import GREY, SKY, VERMILION
from ..models.model import Model
from ..models.prompts import encode_answer
from ..models.scoring import next_token_log_probs, score_targets, top_tokens
from .plots import style


#: The methods to choose from, by their names in tables: each is there with and without BLUE.
def methods() -> dict[str, str]:
    """The methods that have a BLUE variant, by label."""
    return {entry(plain).label: plain for plain, _ in blue_pairs(names())}


#: Edits that are made from the first to the last each time, so that a page answers in seconds.
MAX_EDITS = 10


@dataclass(frozen=True)
class State:
    """A model before editing, or after the edits of one method.

    Attributes:
        name: ``before``, or the method's name in tables.
        next_token: probabilities of the next token after the last edit's prompt, ``(vocabulary,)``.
        margins: log P(new object) − log P(true object) of each question, in their order; nats per token.
        weight_change: ‖W − W₀‖ / ‖W₀‖ (Frobenius) by layer.
        weight: λ, as the method took it.
    """

    name: str
    next_token: Tensor = field(repr=False)
    margins: tuple[float, ...]
    weight_change: dict[int, float]
    weight: float | None = None


@dataclass(frozen=True)
class Comparison:
    """The same edits by a method and by its BLUE variant, each from the unedited model.

    Attributes:
        records: the edits, in order; the questions are those of the last one, and the rewrites of the others.
        questions: (kind, prompt, new object, true object); kinds: ``rewrite``, ``paraphrase``, ``neighbour``,
            ``earlier edit``.
        states: before, after the plain method, after its BLUE variant.
    """

    records: tuple[Record, ...]
    questions: tuple[tuple[str, str, str, str], ...]
    states: tuple[State, State, State]

    def table(self) -> pd.DataFrame:
        """A row for each question: its kind and prompt, and the margin in each state."""
        margins = {state.name: state.margins for state in self.states}
        kinds, prompts, *_ = zip(*self.questions, strict=True)
        return pd.DataFrame({"kind": kinds, "prompt": prompts, **margins})


def compare(
    model: Model,
    records: Sequence[Record],
    plain: str = "memit",
    *,
    factor: float = 1.0,
    tell: Callable[[str], None] = lambda message: None,
) -> Comparison:
    """Make the same edits, one after another, with an editor and with its BLUE variant, and look at each.

    Args:
        model: unedited; it is so again afterwards.
        records: the edits, of the ``counterfact`` kind.
        plain: the editor, see :func:`methods`.
        factor: λ of both as a multiple of its configured value.
        tell: called with what is being done.

    Raises:
        ValueError: for no records, or a factor that is not above 0.
        ArithmeticError: if a target diverges or a matrix cannot be factored.
    """
    if not records:
        raise ValueError("there is nothing to edit yet")
    if not factor > 0:
        raise ValueError(f"λ must be above 0; {factor} times the configured one was asked for")
    questions = tuple(_questions(records))
    states = [_look(model, "before", records[-1], questions)]
    for name in (plain, VARIANTS["blue"].name_of(plain)):
        tell(f"Editing with {entry(name).label} …")
        editor = scaled(get_composition(name, model), factor)
        with edited(model, records, editor, batch_size=1) as run:
            state = _look(model, entry(name).label, records[-1], questions)
            changes = state.weight_change | run.weight_change()
            states.append(replace(state, weight_change=changes, weight=_weight(editor)[1]))
    before, one, other = states
    return Comparison(tuple(records), questions, (before, one, other))


def scaled(editor: Editor, factor: float) -> Editor:
    """The editor with its λ (AlphaEdit's L2) times ``factor``."""
    name, value = _weight(editor)
    solver: Any = editor.solver
    return replace(editor, solver=replace(solver, **{name: value * factor}))


def _weight(editor: Editor) -> tuple[str, float]:
    name = "l2" if isinstance(editor.solver, NullSpace) else "weight"
    return name, getattr(editor.solver, name)


def _questions(records: Sequence[Record]) -> list[tuple[str, str, str, str]]:
    *earlier, last = records
    new, true = last.target_new, _true_object(last)
    return [
        ("rewrite", last.request.text, new, true),
        *(("paraphrase", prompt, new, true) for prompt in last.paraphrases),
        *(("neighbour", probe.prompt, new, probe.answer) for probe in last.locality if probe.answer is not None),
        *(("earlier edit", record.request.text, record.target_new, _true_object(record)) for record in earlier),
    ]


def _true_object(record: Record) -> str:
    if record.target_true is None:
        raise ValueError(
            f"record {record.case_id} has no true object, which the new one is compared with; choose a "
            "dataset in CounterFact's form"
        )
    return record.target_true


@torch.no_grad()
def _look(model: Model, name: str, record: Record, questions: Sequence[tuple[str, str, str, str]]) -> State:
    pairs = [(prompt, target) for _, prompt, new, true in questions for target in (new, true)]
    scores = [score.log_prob for score in score_targets(model, pairs)]
    margins = tuple(new - true for new, true in zip(scores[0::2], scores[1::2], strict=True))
    next_token = next_token_log_probs(model, [record.request.text])[0].exp().cpu()
    return State(name, next_token, margins, dict.fromkeys(range(model.n_layers), 0.0))


# --- requests ----------------------------------------------------------------------


def find_record(records: Sequence[Record], subject: str) -> Record:
    """The record about a subject.

    Raises:
        ValueError: if there is none; the message suggests subjects that are spelt alike.
    """
    subject = subject.strip()
    if not subject:
        raise ValueError("The subject is empty: pick one from the list, or type its name.")
    for record in records:
        if record.subject == subject:
            return record
    close = get_close_matches(subject, [record.subject for record in records], n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(close)}?" if close else " The list of the field shows whom it knows."
    raise ValueError(f"No record is about “{subject}”, so there is nothing to compare with.{hint}")


def requested(record: Record, prompt: str, target_new: str) -> Record:
    """A record with another wording of its prompt and another new object.

    Args:
        record: what is known about the subject.
        prompt: a full prompt that mentions the subject; the object is to follow it.
        target_new: the new object.

    Raises:
        ValueError: if the object is empty or the true one, or the prompt does not mention the subject.
    """
    prompt, target_new = prompt.strip(), target_new.strip()
    if not target_new:
        raise ValueError("The new object is empty: what should the model say in future?")
    if target_new == record.target_true:
        raise ValueError(f"“{target_new}” is what the model says already; give another object.")
    if record.subject not in prompt:
        raise ValueError(
            f"The prompt does not mention the subject “{record.subject}”: it has to, letter for letter, "
            "for the edit is made where the subject's last token is read."
        )
    template = put_subject_out(prompt, record.subject, record.case_id, "prompt")
    return replace(record, prompt=template, target_new=target_new)


# --- the picture -------------------------------------------------------------------


def plot_comparison(model: Model, comparison: Comparison) -> Figure:
    """Next tokens before and after; the margin of every question in each state; where the weights moved.

    Args:
        model: for its tokenizer, its layers and its name.
        comparison: see :func:`compare`.
    """
    record = comparison.records[-1]
    rows = 0.24 * len(comparison.questions)
    with style():
        figure = plt.figure(figsize=(10, 4.6 + rows), layout="constrained")
        parts: Any = figure.subfigures(3, 1, height_ratios=[2.2, 0.8 + rows, 1.5])
        top, middle, bottom = parts
        _next_tokens(top, model, comparison)
        _margins(middle.subplots(), comparison)
        _changes(bottom.subplots(), comparison)
        edits = "1 edit" if len(comparison.records) == 1 else f"{len(comparison.records)} edits, the last one"
        figure.suptitle(f"{model.name}, {edits}: {record.request.text} … {record.target_true} → {record.target_new}")
        return figure


def _next_tokens(figure: Any, model: Model, comparison: Comparison) -> None:
    likely = {int(t): None for state in comparison.states for t in state.next_token.topk(4).indices}
    _, asked, *objects = comparison.questions[0]
    first_new, first_true = (encode_answer(model.tokenizer, asked, target)[0] for target in objects)
    tokens = sorted(likely, key=lambda token: -comparison.states[0].next_token[token])
    labels = [model.tokenizer.decode([token]).strip() or "␣" for token in tokens]
    colours = [VERMILION if t == first_new else SKY if t == first_true else GREY for t in tokens]
    axes = figure.subplots(1, 3, sharey=True)
    for axis, state in zip(axes, comparison.states, strict=True):
        axis.barh(range(len(tokens)), state.next_token[tokens].numpy(), color=colours)
        weight = "" if state.weight is None else f", λ = {state.weight:g}"
        axis.set(xlim=(0, 1), title=f"{state.name}{weight}", xlabel="probability of the next token")
        axis.set_yticks(range(len(tokens)), labels)
    axis.invert_yaxis()


def _margins(axis: Axes, comparison: Comparison) -> None:
    kinds, prompts, *_ = zip(*comparison.questions, strict=True)
    places = np.arange(len(prompts))
    _, plain, blue = comparison.states
    colour = labelled(plain.name).colour
    looks = ((GREY, "|", GREY, 12), (colour, "o", "white", 7), (colour, "o", colour, 7))
    for state, (edge, marker, face, size) in zip(comparison.states, looks, strict=True):
        axis.plot(
            state.margins,
            places,
            marker,
            markeredgecolor=edge,
            markerfacecolor=face,
            markersize=size,
            linestyle="none",
            label=state.name,
        )
    axis.axvline(0, color="black", linewidth=1)
    axis.set_yticks(
        places, [f"{kind}: {_short(prompt)}" for kind, prompt in zip(kinds, prompts, strict=True)], fontsize=8
    )
    axis.invert_yaxis()
    axis.set(xlabel="log P(new object) − log P(true object): to the right of 0 the new object is preferred")
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8)
    for label, kind, *margins in zip(axis.get_yticklabels(), kinds, plain.margins, blue.margins, strict=True):
        moved = kind == "neighbour" and max(margins) > 0
        label.set_color("#B00020" if moved else "black")


def _changes(axis: Axes, comparison: Comparison) -> None:
    changes = 100 * pd.DataFrame({state.name: state.weight_change for state in comparison.states[1:]}).T
    told = changes.map(lambda change: f"{change:,.0f}" if change >= 10 else f"{change:.1g}")
    sns.heatmap(
        changes,
        mask=changes == 0,
        annot=told,
        fmt="",
        cmap="Blues",
        norm=LogNorm(),
        cbar=False,
        ax=axis,
        linewidths=1,
        annot_kws={"fontsize": 7} if changes.shape[1] > 16 else None,
    )
    axis.set(title="how far the weights moved, ‖W − W₀‖ / ‖W₀‖ (%); empty: not touched", xlabel="layer")
    axis.tick_params(axis="y", rotation=0)
    axis.grid(False)


def _short(text: str, limit: int = 64) -> str:
    return text if len(text) <= limit else f"…{text[1 - limit :]}"


# --- the page ----------------------------------------------------------------------


class EditPage(widgets.VBox):
    """The page as one widget: fields for the request, the method and λ; buttons; a message; the picture.

    Each press of *Edit* makes all edits of the list anew, in their order, with the method and the λ that are chosen;
    an edit of a subject that is in the list already replaces that one. *Undo* takes the last press back.

    Args:
        model: the model to edit, unedited.
        records: what it may be asked, of the ``counterfact`` kind: paraphrases and neighbours come from here.
        subject, target_new: what stands in the fields at first.

    Raises:
        ValueError: for records that name no true object to compare with.
    """

    def __init__(self, model: Model, records: Sequence[Record], *, subject: str = "", target_new: str = ""):
        for record in records:
            _true_object(record)
        self.model, self.records = model, list(records)
        self._presses: list[tuple[tuple[Record, ...], str, bytes]] = []
        wide = widgets.Layout(width="95%")
        about = {"style": {"description_width": "90px"}, "layout": wide}
        self.subject = widgets.Combobox(
            description="Subject",
            options=sorted({r.subject for r in records}),
            placeholder="pick or type one",
            continuous_update=False,
            **about,
        )
        self.prompt = widgets.Text(description="Prompt", placeholder="a prompt that mentions the subject", **about)
        self.target = widgets.Combobox(description="New object", placeholder="what should come next", **about)
        self.method = widgets.Dropdown(description="Method", options=list(methods()), **about)
        self.factor = widgets.FloatLogSlider(
            description="λ ×", value=1.0, base=10, min=-2, max=2, step=0.25, readout_format=".3g", **about
        )
        self.edit = widgets.Button(description="Edit", button_style="primary", icon="pencil")
        self.undo = widgets.Button(description="Undo", icon="undo", disabled=True)
        self.reset = widgets.Button(description="Start over", icon="trash", disabled=True)
        self.message = widgets.HTML()
        self.edits = widgets.HTML()
        self.picture = widgets.Image(format="png", layout=widgets.Layout(max_width="100%", display="none"))
        self.subject.observe(lambda change: self._show_problem(self._fill), names="value")
        self.edit.on_click(lambda button: self._show_problem(self._press_edit))
        self.undo.on_click(lambda button: self._go_back(len(self._presses) - 1))
        self.reset.on_click(lambda button: self._go_back(0))
        super().__init__(
            [
                self.subject,
                self.prompt,
                self.target,
                self.method,
                self.factor,
                widgets.HBox([self.edit, self.undo, self.reset]),
                self.message,
                self.edits,
                self.picture,
            ],
            layout=widgets.Layout(max_width="1000px"),
        )
        self.add_class("bluelib-edit-page")
        self.subject.value = subject
        self.target.value = target_new or self.target.value

    def __repr__(self) -> str:
        """What is shown where there is no kernel behind a notebook."""
        return "An interactive page: open this notebook in JupyterLab or Voilà to use it."

    def _show_problem(self, action: Callable[[], None]) -> None:
        """Run an action; input that cannot be used is explained on the page."""
        try:
            action()
        except (ValueError, ArithmeticError) as error:
            self._say(f'<div role="alert" style="color:#B00020">⚠ {escape(str(error))}</div>')

    def _say(self, html: str) -> None:
        self.message.value = html

    def _fill(self) -> None:
        """A subject was chosen: take its record's prompt and object, and ask the model."""
        record = find_record(self.records, self.subject.value)
        self.prompt.value = record.request.text
        self.target.options = sorted(
            {target for r in self.records if r.relation == record.relation for target in (r.target_new, r.target_true)}
        )
        self.target.value = record.target_new
        answers = ", ".join(
            f"{escape(token.strip())} ({p:.0%})" for token, p in top_tokens(self.model, record.request.text, 3)
        )
        self._say(f'<div role="status">Unedited, {escape(self.model.name)} goes on with: <b>{answers}</b></div>')

    def _press_edit(self) -> None:
        record = requested(find_record(self.records, self.subject.value), self.prompt.value, self.target.value)
        records = (*(r for r in self._edits() if r.subject != record.subject), record)
        if len(records) > MAX_EDITS:
            raise ValueError(f"This page makes {MAX_EDITS} edits at most; undo some, or start over.")
        buttons = (self.edit, self.undo, self.reset)
        try:
            for button in buttons:
                button.disabled = True
            comparison = compare(
                self.model,
                records,
                methods()[self.method.value],
                factor=self.factor.value,
                tell=lambda text: self._say(f'<div role="status">{escape(text)}</div>'),
            )
            self._presses.append((records, summary(comparison), _png(plot_comparison(self.model, comparison))))
        finally:
            self.edit.disabled = False
            self._show_buttons()
        self._show()

    def _edits(self) -> tuple[Record, ...]:
        return self._presses[-1][0] if self._presses else ()

    def _go_back(self, presses: int) -> None:
        del self._presses[presses:]
        self._show_buttons()
        self._show()

    def _show_buttons(self) -> None:
        self.undo.disabled = self.reset.disabled = not self._presses

    def _show(self) -> None:
        records, text, picture = self._presses[-1] if self._presses else ((), "The model is unedited.", b"")
        items = "".join(f"<li>{escape(r.request.text)} <b>{escape(r.target_new)}</b></li>" for r in records)
        self.edits.value = f"Edits, in their order:<ol>{items}</ol>" if items else ""
        self.picture.value, self.picture.layout.display = picture, "" if picture else "none"
        self._say(f'<div role="status">{text}</div>')


def summary(comparison: Comparison) -> str:
    """A sentence for each method, as HTML: does the edit hold, do paraphrases follow, how many neighbours moved."""
    table = comparison.table()
    lines = []
    for state in comparison.states[1:]:
        follows = (table[state.name] > 0).groupby(table.kind).agg(["sum", "count"])
        counts = {kind: f"{row['sum']} of {row['count']}" for kind, row in follows.iterrows()}
        holds = "holds" if follows.loc["rewrite", "sum"] else "does <b>not</b> hold"
        parts = [f"the edit {holds}"]
        for kind, text in (
            ("paraphrase", "paraphrases follow"),
            ("neighbour", "neighbours moved along"),
            ("earlier edit", "earlier edits still hold"),
        ):
            if kind in counts:
                parts.append(f"{counts[kind]} {text}")
        lines.append(f"<b>{escape(state.name)}</b>: {', '.join(parts)}.")
    return "<br>".join(lines)


def _png(figure: Figure) -> bytes:
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110)
    plt.close(figure)
    return content.getvalue()
