"""The interactive page: change a fact, and read what a model says before, after a method, and after its variant.

Everything that is shown comes from :func:`compare`, a function of the model, the edits, the method and λ. The page only
collects these, and shows :func:`answers_table` and :func:`plot_comparison`. The model itself is never left edited.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from html import escape
from typing import Any

import ipywidgets as widgets
import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from torch import Tensor

from ..data import Probe, Record
from ..data.records import put_subject_out
from ..editing.catalogue import Entry, entry, names
from ..editing.editor import Editor
from ..editing.named import get_composition
from ..editing.solvers import NullSpace
from ..io.palette import GREY, SKY, VERMILION
from ..io.timing import Timer
from ..models.generation import answer
from ..models.model import Model
from ..models.prompts import Request, chat_frame, encode_answer
from ..models.scoring import next_token_log_probs
from .plots import style
from .sliders import png

#: The most edits in a list; all of them are made again when the method or λ changes.
MAX_EDITS = 10
#: The most tokens of an answer, and how many neighbours of a record are asked about.
TOKENS, NEIGHBOURS = 12, 4


def variants() -> dict[str, list[Entry]]:
    """The variants of each method that has any, by the method's label."""
    rows = [entry(name) for name in names()]
    return {row.label: [other for other in rows if other.plain == row.name] for row in rows if row.variants}


def check_variant(name: str) -> None:
    """Make sure that an editor is a variant of a method.

    Raises:
        ValueError: if it is not; the message lists the variants.
    """
    if not entry(name).plain:
        known = ", ".join(row.name for rows in variants().values() for row in rows)
        raise ValueError(f"{name!r} is not a variant of a method; known variants: {known}")


@dataclass(frozen=True)
class Comparison:
    """The same edits by a method and by its variant, each from the unedited model.

    The model's states are ``before`` (unedited) and, after the edits, the labels of the two methods.

    Attributes:
        records: the edits, in order.
        answers: what the model says to each question, with a column per state; the index is the ``kind`` of question
            and its ``prompt``. Kinds: ``prompt``, ``paraphrase``, ``in chat``, ``neighbour``, ``earlier edit``.
        objects: the new object of each question.
        next_token: by state, probabilities of the next token after the last edit's prompt, ``(vocabulary,)``.
        weights: λ, by method.
        changes: ‖W − W₀‖ / ‖W₀‖ (Frobenius), by method and layer.
    """

    records: tuple[Record, ...]
    answers: pd.DataFrame
    objects: tuple[str, ...]
    next_token: dict[str, Tensor] = field(repr=False)
    weights: dict[str, float]
    changes: dict[str, dict[int, float]]

    @property
    def kinds(self) -> pd.Index:
        return self.answers.index.get_level_values("kind")

    def holds(self) -> pd.DataFrame:
        """Whether each answer contains the new object, laid out as :attr:`answers`."""
        rows = zip(self.objects, self.answers.to_numpy(), strict=True)
        found = [[bool(_mention(new).search(said)) for said in row] for new, row in rows]
        return pd.DataFrame(found, self.answers.index, self.answers.columns)

    def changed(self) -> pd.DataFrame:
        """Whether an answer is a neighbour's and begins with another word than before, laid out as :attr:`answers`."""
        words = self.answers.map(lambda said: (re.findall(r"\w+", said.lower()) or [""])[0])
        return words.ne(words["before"], axis=0) & (self.kinds == "neighbour")[:, None]


def _mention(target: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w){re.escape(target)}(?!\w)", re.IGNORECASE)


class _Line:
    """Edits by one editor, one after another; more can follow without making the earlier ones again."""

    def __init__(self, model: Model, editor: Editor):
        self.model, self.editor, self.label = model, editor, entry(editor.name).label
        self.done: list[Request] = []
        self.keys: list[Mapping[int, Tensor]] = []
        self.weights = self.original = {layer: model.weight(layer).clone() for layer in editor.layers}

    @contextmanager
    def edited(self, requests: Sequence[Request], tell: Callable[[str], None]) -> Iterator[dict[int, float]]:
        """Give the model these edits inside the block, and take them off afterwards.

        Yields how far the weights moved, by layer.
        """
        model, editor, original = self.model, self.editor, self.original
        state = editor.prepare(model)  # not kept between calls: making it takes a second, keeping it much memory
        for keys in self.keys:
            editor.remember(state, keys)
        with model.preserved(editor.layers):
            model.edit_in_float32(editor.layers)
            for layer, weight in self.weights.items():
                model.weight(layer).copy_(weight)
            for number, request in enumerate(requests[len(self.done) :], len(self.done) + 1):
                tell(f"{self.label}: edit {number} of {len(requests)} …")
                keys = editor.edit(model, [request], state, Timer()).keys
                editor.remember(state, keys)
                self.keys.append(keys)
                self.done.append(request)
                self.weights = {layer: model.weight(layer).clone() for layer in editor.layers}
            editor.finish(model, original)
            yield model.weight_change(original)


def compare(
    model: Model,
    records: Sequence[Record],
    variant: str = "memit_blue",
    *,
    factor: float = 1.0,
    tell: Callable[[str, float], None] = lambda message, share: None,
    kept: dict[tuple[str, float], _Line] | None = None,
) -> Comparison:
    """Make the same edits, one after another, with an editor and with its variant, and ask the model each time.

    Args:
        model: the unedited model; it is unedited again afterwards.
        records: the edits. The paraphrases, questions (in chat) and first neighbours of the last one are asked, too.
        variant: the variant, see :func:`variants`; it is compared with its plain method.
        factor: λ of both as a multiple of its configured value.
        tell: called with what is being done, and the share of the work that is done, in [0, 1].
        kept: filled with what the next call can continue from, if it only adds edits.

    Raises:
        ValueError: if there are no records, ``variant`` is not a variant, ``factor`` is not above 0, the model already
            says the new object, or a prompt is longer than the model's context.
        ArithmeticError: if a target diverges or a matrix cannot be factored.
    """
    if not records:
        raise ValueError("there is nothing to edit yet: give at least one record")
    if not factor > 0:
        raise ValueError(f"λ must be above 0, but its factor is {factor}: give a factor above 0")
    check_variant(variant)
    requests, last = [record.request for record in records], records[-1]
    index, objects, asked = _questions(model, records)
    kept = {} if kept is None else kept
    before = dict(kept)
    kept.clear()
    for key in ((entry(variant).plain, factor), (variant, factor)):
        line = before.get(key)
        if line is None or line.done != requests[: len(line.done)]:
            line = _Line(model, scaled(get_composition(key[0], model), factor))
        kept[key] = line
    lines = list(kept.values())
    steps = 3 + sum(len(requests) - len(line.done) for line in lines)
    shares = iter(step / steps for step in range(steps))
    answers, next_token = {}, {}

    def step(message: str) -> None:
        tell(message, next(shares))

    def look(state: str) -> None:
        step(f"{state}: asking {len(asked)} questions …")
        answers[state] = answer(model, asked, tokens=TOKENS, stops="\n")
        with torch.no_grad():
            next_token[state] = next_token_log_probs(model, [last.request.text])[0].exp().cpu()

    look("before")
    if (said := _mention(last.target_new).search(answers["before"][0])) and not said.start():
        raise ValueError(f"“{last.target_new}” is what {model.name} already says: give another object.")
    weights, changes = {line.label: _weight(line.editor)[1] for line in lines}, {}
    for line in lines:
        with line.edited(requests, step) as changes[line.label]:
            look(line.label)
    return Comparison(tuple(records), pd.DataFrame(answers, index), objects, next_token, weights, changes)


def scaled(editor: Editor, factor: float) -> Editor:
    """The editor with its λ (AlphaEdit's L2) times ``factor``."""
    name, value = _weight(editor)
    solver: Any = editor.solver
    return replace(editor, solver=replace(solver, **{name: value * factor}))


def _weight(editor: Editor) -> tuple[str, float]:
    name = "l2" if isinstance(editor.solver, NullSpace) else "weight"
    return name, getattr(editor.solver, name)


def _questions(model: Model, records: Sequence[Record]) -> tuple[pd.Index, tuple[str, ...], list[str]]:
    """The kind and the prompt of each question, its new object, and what the model reads."""
    *earlier, last = records
    front, behind = chat_frame(model.tokenizer) if model.tokenizer.chat_template else ("", "")
    turns = (last.questions or (last.request.text,)) if behind else ()
    rows = [
        ("prompt", last.request.text),
        *(("paraphrase", prompt) for prompt in last.paraphrases),
        *(("in chat", prompt) for prompt in turns),
        *(("neighbour", probe.prompt) for probe in last.locality[:NEIGHBOURS]),
    ]
    objects = (last.target_new,) * len(rows) + tuple(record.target_new for record in earlier)
    rows += [("earlier edit", record.request.text) for record in earlier]
    asked = [front + prompt + behind if kind == "in chat" else prompt for kind, prompt in rows]
    return pd.MultiIndex.from_tuples(rows, names=["kind", "prompt"]), objects, asked


# --- what is shown -----------------------------------------------------------------


def summary(comparison: Comparison) -> str:
    """A sentence for each method, as HTML: does the edit hold, what else follows it, how many neighbours changed?"""
    kinds, found = comparison.kinds, comparison.holds()
    others = kinds == "neighbour"
    found.loc[others] = comparison.changed().loc[others].to_numpy()
    lines = []
    for name in comparison.weights:
        counts = found[name].groupby(kinds.map(_COUNTED), sort=False).agg(lambda hits: f"{hits.sum()} of {len(hits)}")
        told = [f"{count} {what}" for what, count in counts.items() if what]
        holds = "holds" if found[name].iloc[0] else "does <b>not</b> hold"
        lines.append(f"<b>{escape(name)}</b>: {', '.join([f'the edit {holds}', *told])}.")
    return "<br>".join(lines)


_COUNTED = {
    "prompt": "",
    "paraphrase": "paraphrases follow",
    "in chat": "answers in chat follow",
    "neighbour": "neighbours changed",
    "earlier edit": "earlier edits still hold",
}


def answers_table(comparison: Comparison) -> str:
    """What the model says, as HTML: the new object in bold, and neighbours that changed marked."""
    table, changed = comparison.answers.map(escape), comparison.changed()
    for row, new in enumerate(comparison.objects):
        for column, said in enumerate(table.iloc[row]):
            said = _mention(escape(new)).sub(r"<b>\g<0></b>", said)
            table.iat[row, column] = f"<mark>≠ {said}</mark>" if changed.iat[row, column] else said
    table.index = pd.MultiIndex.from_tuples([(kind, escape(prompt)) for kind, prompt in table.index])
    html = table.to_html(escape=False, border=0)
    return f"<style>{_LOOKS}</style>{html}<p>{_LEGEND}</p>"


_LOOKS = (
    ".bluelib-edit-page th, .bluelib-edit-page td { border-bottom: 1px solid #ccc; padding: 2px 8px; "
    "text-align: left; vertical-align: top; line-height: 1.35; font-weight: normal } mark { background: #ffe9a8 }"
)
_LEGEND = (
    "<b>Bold</b>: the new object. <mark>≠</mark>: a neighbour whose answer begins with another word than before. "
    f"In the picture: <span style='color:{SKY}'>■</span> what came first before the edit, "
    f"<span style='color:{VERMILION}'>■</span> the new object."
)


def plot_comparison(model: Model, comparison: Comparison) -> Figure:
    """The most probable next tokens before and after, and where the weights moved.

    Args:
        model: for its tokenizer and its name.
        comparison: see :func:`compare`.
    """
    last = comparison.records[-1]
    with style():
        figure = plt.figure(figsize=(10, 4.2), layout="constrained")
        parts: Any = figure.subfigures(2, 1, height_ratios=[2.4, 1.3])
        _next_tokens(parts[0], model, comparison)
        _changes(parts[1].subplots(), comparison)
        figure.suptitle(f"{model.name}: {last.request.text} … {last.target_new}")
        return figure


def _next_tokens(figure: Any, model: Model, comparison: Comparison) -> None:
    tokens = list(dict.fromkeys(int(t) for p in comparison.next_token.values() for t in p.topk(3).indices))
    last = comparison.records[-1]
    new = encode_answer(model.tokenizer, last.request.text, last.target_new)[0]
    colours = {tokens[0]: SKY, new: VERMILION}
    axes = figure.subplots(1, 3, sharey=True)
    for axis, (name, p) in zip(axes, comparison.next_token.items(), strict=True):
        axis.barh(range(len(tokens)), p[tokens].numpy(), color=[colours.get(token, GREY) for token in tokens])
        title = f"{name}, λ = {comparison.weights[name]:g}" if name in comparison.weights else name
        axis.set(xlim=(0, 1), title=title, xlabel="probability of the next token")
        axis.set_yticks(range(len(tokens)), [model.tokenizer.decode([token]).strip() or "␣" for token in tokens])
    axes[0].invert_yaxis()


def _changes(axis: Axes, comparison: Comparison) -> None:
    changes = 100 * pd.DataFrame(comparison.changes).T
    sns.heatmap(
        changes,
        mask=~(changes > 0),
        annot=changes.map(lambda change: f"{change:,.0f}" if change >= 10 else f"{change:.1g}"),
        fmt="",
        cmap="Blues",
        norm=LogNorm(),
        cbar=False,
        ax=axis,
        linewidths=1,
    )
    axis.set(title="how far the weights moved, ‖W − W₀‖ / ‖W₀‖ (%); empty: not touched", xlabel="layer")
    axis.tick_params(axis="y", rotation=0)
    axis.grid(False)


# --- the page ----------------------------------------------------------------------


def find_record(records: Sequence[Record], subject: str) -> Record:
    """The first record about a subject.

    Raises:
        ValueError: if there is none; the message suggests subjects with a similar spelling.
    """
    for record in records:
        if record.subject == subject:
            return record
    close = get_close_matches(subject, [record.subject for record in records], n=3, cutoff=0.7)
    raise ValueError(f"No record is about “{subject}”." + f" Did you mean {' or '.join(close)}?" * bool(close))


class EditPage(widgets.VBox):
    """The page as one widget: fields for the request, the method and λ; buttons; a message; the answers; the picture.

    Each press of *Edit* adds an edit to the list, in place of any earlier one with the same prompt. All edits are made
    in order, with the chosen method and λ. *Undo* takes back the last press.

    Args:
        model: the model to edit, unedited.
        records: facts that fill the fields when their subject is picked.
        subject, target_new: what the fields contain at first.
        editor: the variant that is chosen at first.

    Raises:
        ValueError: if ``editor`` is not a variant.
    """

    def __init__(
        self,
        model: Model,
        records: Sequence[Record],
        *,
        subject: str = "",
        target_new: str = "",
        editor: str = "memit_blue",
    ):
        check_variant(editor)
        self.model, self.records = model, list(records)
        self._presses: list[tuple[tuple[Record, ...], str, str, bytes]] = []
        self._kept: dict[tuple[str, float], _Line] = {}
        about = {"style": {"description_width": "90px"}, "layout": widgets.Layout(width="95%")}
        self.subject = widgets.Combobox(
            description="Subject",
            options=sorted({r.subject for r in records}),
            placeholder="pick or type one",
            continuous_update=False,
            **about,
        )
        self.prompt = widgets.Text(description="Prompt", placeholder="a prompt that mentions the subject", **about)
        self.target = widgets.Combobox(description="New object", placeholder="what should come next", **about)
        self.paraphrases, self.questions, self.neighbours = self.lists = [
            widgets.Textarea(description=name, placeholder=f"{what}, one a line", rows=rows, **about)
            for name, what, rows in (
                ("Paraphrases", "the same in other words", 2),
                ("In chat", "the same as a question", 2),
                ("Neighbours", "prompts about other subjects", NEIGHBOURS),
            )
        ]
        more = widgets.Accordion([widgets.VBox(self.lists)], titles=("What else to ask",), layout=about["layout"])
        self.method = widgets.Dropdown(description="Method", options=list(variants()), **about)
        self.variant = widgets.Dropdown(description="Variant", **about)
        self.factor = widgets.FloatLogSlider(
            description="λ ×", value=1.0, base=10, min=-2, max=2, step=0.25, readout_format=".3g", **about
        )
        self.edit = widgets.Button(description="Edit", button_style="primary", icon="pencil")
        self.undo = widgets.Button(description="Undo", icon="undo", disabled=True)
        self.reset = widgets.Button(description="Start over", icon="trash", disabled=True)
        self.buttons = [self.edit, self.undo, self.reset]
        self.progress = widgets.FloatProgress(max=1.0, layout=widgets.Layout(width="95%", display="none"))
        self.message, self.edits, self.answers = widgets.HTML(), widgets.HTML(), widgets.HTML()
        self.picture = widgets.Image(format="png", layout=widgets.Layout(max_width="100%", display="none"))
        self.subject.observe(lambda change: self._fill(), names="value")
        self.method.observe(lambda change: self._show_variants(), names="value")
        self.edit.on_click(lambda button: self._press_edit())
        self.undo.on_click(lambda button: self._go_back(len(self._presses) - 1))
        self.reset.on_click(lambda button: self._go_back(0))
        fields = (self.subject, self.prompt, self.target, more, self.method, self.variant, self.factor)
        shown = (self.progress, self.message, self.edits, self.answers, self.picture)
        super().__init__([*fields, widgets.HBox(self.buttons), *shown], layout=widgets.Layout(max_width="1100px"))
        self.add_class("bluelib-edit-page")
        self.method.value = entry(entry(editor).plain).label
        self._show_variants()
        self.variant.value = editor
        self.subject.value = subject
        self.target.value = target_new or self.target.value

    def __repr__(self) -> str:
        """The text that is shown where a notebook has no running kernel."""
        return "An interactive page: open this notebook in JupyterLab or Voilà to use it."

    def request(self) -> Record:
        """The edit that the fields describe.

        Raises:
            ValueError: if the subject or the object is empty, or the prompt does not mention the subject.
        """
        prompt, subject, target_new = (box.value.strip() for box in (self.prompt, self.subject, self.target))
        if not subject:
            raise ValueError("The subject is empty: pick one from the list, or type its name.")
        if not target_new:
            raise ValueError("The new object is empty: what should the model say in future?")
        if subject not in prompt:
            raise ValueError(
                f"The prompt does not mention the subject “{subject}”: write it there letter for letter, "
                "because the edit is made where the subject's last token is read."
            )
        template = put_subject_out(prompt, subject, "typed", "prompt")
        paraphrases, questions, neighbours = (
            tuple(line for line in box.value.splitlines() if line.strip()) for box in self.lists
        )
        return Record(
            *("typed", "counterfact", template, subject, target_new, None),
            paraphrases=paraphrases,
            questions=questions,
            locality=tuple(map(Probe, neighbours)),
        )

    def _show_variants(self) -> None:
        self.variant.options = [(row.label, row.name) for row in variants()[self.method.value]]

    def _say(self, html: str, share: float = 0.0) -> None:
        self.message.value, self.progress.value = f'<div role="status">{html}</div>', share

    def _fill(self) -> None:
        """Fill the fields from the chosen subject's record; without one, empty the lists."""
        texts: list[Sequence[str]] = [(), (), ()]
        try:
            record = find_record(self.records, self.subject.value.strip())
            texts = [record.paraphrases, record.questions, [probe.prompt for probe in record.locality[:NEIGHBOURS]]]
            alike = [r for r in self.records if r.relation == record.relation]
            self.target.options = sorted({text for r in alike for text in (r.target_new, r.target_true) if text})
            self.prompt.value, self.target.value = record.request.text, record.target_new
            (said,) = answer(self.model, [record.request.text], tokens=TOKENS, stops="\n")
            self._say(f"Unedited, {escape(self.model.name)} goes on with: <b>{escape(said)}</b>")
        except ValueError as error:
            self._say(f"{escape(str(error))} Write a prompt about it, and what the model should say.")
        for box, lines in zip(self.lists, texts, strict=True):
            box.value = "\n".join(lines)

    def _press_edit(self) -> None:
        """Make the edit; input that cannot be used is explained on the page."""
        try:
            record = self.request()
            records = (*(r for r in self._edits() if r.request.text != record.request.text), record)
            if len(records) > MAX_EDITS:
                raise ValueError(f"This page makes {MAX_EDITS} edits at most; undo some, or start over.")
            for button in self.buttons:
                button.disabled = True
            self.progress.layout.display = ""
            how: dict[str, Any] = {"factor": self.factor.value, "tell": self._say, "kept": self._kept}
            comparison = compare(self.model, records, self.variant.value, **how)
            picture = png(plot_comparison(self.model, comparison))
            self._presses.append((records, summary(comparison), answers_table(comparison), picture))
            self._show()
        except (ValueError, ArithmeticError) as error:
            self.message.value = f'<div role="alert" style="color:#B00020">⚠ {escape(str(error))}</div>'
        finally:
            self.progress.layout.display = "none"
            self._show_buttons()

    def _edits(self) -> tuple[Record, ...]:
        return self._presses[-1][0] if self._presses else ()

    def _go_back(self, presses: int) -> None:
        del self._presses[presses:]
        self._show_buttons()
        self._show()

    def _show_buttons(self) -> None:
        self.edit.disabled, self.undo.disabled, self.reset.disabled = False, not self._presses, not self._presses

    def _show(self) -> None:
        nothing = ((), "The model is unedited.", "", b"")
        records, text, self.answers.value, picture = self._presses[-1] if self._presses else nothing
        items = "".join(f"<li>{escape(r.request.text)} <b>{escape(r.target_new)}</b></li>" for r in records)
        self.edits.value = f"Edits, in their order:<ol>{items}</ol>" if items else ""
        self.picture.value, self.picture.layout.display = picture, "" if picture else "none"
        self._say(text)
