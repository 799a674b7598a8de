"""Commands that edit a model, and those that measure and train what editors need."""

from __future__ import annotations

import logging
from argparse import Namespace
from collections.abc import Sequence
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .common import (
    CONTEXTS,
    CORPUS,
    DTYPE,
    EVALUATION,
    MODEL,
    PLACE,
    RECORDS,
    SET,
    TOKENS,
    Answer,
    Gather,
    Option,
    answers_table,
    begins_anew,
    command,
    goes_on,
    measures_of,
    named_values,
    scores_table,
)

if TYPE_CHECKING:
    from ..data.records import Record
    from ..editing.method import Method
    from ..editing.sequence import Run
    from ..models.model import Model

log = logging.getLogger(__name__)


@command(example="blue editors")
def editors(arguments: Namespace) -> Answer:
    """List the editors with their formulas and options."""
    from ..editing.catalogue import known, names

    makers = {name: known(name).make() for name in names()}
    formulas = {name: (make.__doc__ or "").strip().partition("\n")[0] for name, make in makers.items()}
    usual = ("layers", "targets")
    options = {name: [key for key in signature(make).parameters if key not in usual] for name, make in makers.items()}
    width = max(map(len, formulas))
    lines = [f"{name:{width}} {formulas[name]} [{', '.join(options[name])}]" for name in makers]
    lines.append(
        "[…]: what --set takes, besides layers and, but for ft and mend, the targets' options (steps, clamp, …)"
    )
    return Answer({"editors": formulas, "options": options}, "\n".join(lines))


@command(
    *EVALUATION,
    Option(
        "--output",
        type=Path,
        metavar="FILE",
        help="the file for every record's scores; if it exists, the scores are read from it",
    ),
    example="blue evaluate --model pocket-gpt2 --dataset pocket-counterfact --edits 40",
    kept=begins_anew,
)
def evaluate(arguments: Namespace) -> Answer:
    """Evaluate a model before any edit."""
    from ..data.provenance import provenance
    from ..io.timing import Timer
    from ..runs.cell import evaluate_unedited, summary

    model, records = _load(arguments)
    timer = Timer()
    with timer("evaluate"):
        found = evaluate_unedited(
            model,
            _source(arguments),
            records,
            seed=arguments.seed,
            generate=not arguments.no_generate,
            measures=measures_of(arguments),
            chat=arguments.chat,
            metrics=arguments.metrics,
            contexts=arguments.contexts,
            path=arguments.output,
        )
    result: dict[str, Any] = {
        "dataset": _source(arguments),
        "scores": summary(found.scores),
        "seconds": timer.rounded(),
        "provenance": provenance(model, records),
    }
    return Answer(result, scores_table({"before editing": result["scores"]}))


#: How many records of a dataset are shown one by one.
SHOWN = 5


def _kept_edits(arguments: Namespace) -> str:
    """What an interrupted edit leaves behind."""
    saved = [str(path) for path in (arguments.save, arguments.save_delta) if path and path.exists()]
    if saved:
        return f"the edited model is saved ({', '.join(saved)}), but its evaluation was not finished"
    if arguments.checkpoint:
        return goes_on(arguments)
    return "no edit was kept; with --checkpoint DIR, the same command continues after the last whole batch"


@command(
    *EVALUATION,
    Option("--editor", default="memit_blue", help="a name that `blue editors` lists"),
    CORPUS,
    TOKENS,
    Option("--batch-size", type=int, help="edits per batch; by default 10, or all if there are fewer"),
    SET,
    Option(
        "--checkpoint",
        type=Path,
        metavar="DIR",
        help="write a checkpoint after each batch; the same command continues from it (first remove what --save or "
        "--save-delta wrote)",
    ),
    Option(
        "--from",
        dest="start",
        type=Path,
        metavar="DELTA",
        help="continue from earlier edits of the same model: a file that --save-delta wrote; what is saved has both",
    ),
    Option(
        "--on-conflict",
        default="last",
        help="if a batch edits a fact several times: last makes only the last edit, keep makes all, refuse stops",
    ),
    Option("--save", type=Path, metavar="DIR", help="save the edited model for transformers"),
    Option("--save-delta", type=Path, metavar="FILE", help="save only the changed matrices"),
    example="blue edit --model pocket-llama --dataset pocket-counterfact --editor memit_blue",
    kept=_kept_edits,
)
def edit(arguments: Namespace) -> Answer:
    """Edit a model with a sequence of records, show its answers before and after, and evaluate it."""
    from ..data.chat import in_chat
    from ..editing.named import check_corpus_of, check_names, get_editor
    from ..editing.sequence import check_sequence, check_start
    from ..io.writing import check_new_file
    from ..metrics.answers import ask_about, compare
    from ..metrics.drift import drift, unrelated
    from ..metrics.editing import check_groups
    from ..metrics.locality import Reference
    from ..runs.cell import run_cell

    if arguments.save and arguments.save_delta and arguments.save.absolute() == arguments.save_delta.absolute():
        raise ValueError(f"--save is a folder and --save-delta a file: they cannot both be {arguments.save}")
    for target in filter(None, (arguments.save, arguments.save_delta)):
        _check_new(target)
    if arguments.save_delta:
        check_new_file(arguments.save_delta)
    overrides = named_values("hyper-parameter", arguments.set)
    check_names(arguments.editor, overrides)
    corpus, tokens = (overrides.pop(name, getattr(arguments, name)) for name in ("corpus", "tokens"))
    check_corpus_of(arguments.editor, arguments.model, corpus)
    model, records = _load(arguments)
    if arguments.save:
        model.check_here("a checkpoint")
    editor = get_editor(arguments.editor, model, corpus=corpus, tokens=tokens, text=arguments.text, **overrides)

    def keep(run: Run) -> None:
        if arguments.save:
            run.save(arguments.save)
        if arguments.save_delta:
            run.save_delta(arguments.save_delta)

    how = {"checkpoint_dir": arguments.checkpoint, "on_conflict": arguments.on_conflict}
    if arguments.start:
        check_start(model, editor, arguments.start)
    editor.check(model)
    check_groups(arguments.metrics, arguments.contexts)
    records = _readable(model, records, editor, arguments)
    batch_size = min(10, len(records)) if arguments.batch_size is None else arguments.batch_size
    check_sequence(records, editor, batch_size=batch_size, **how)
    asked = records if arguments.facts else records[:SHOWN]
    asked = in_chat(model, asked) if arguments.chat else asked
    about = {"neighbours": arguments.facts is not None}
    said = ask_about(model, asked, **about)
    prompts = unrelated(records)
    before = Reference.of(model, prompts) if prompts else None
    cell = run_cell(
        model,
        _source(arguments),
        records,
        editor,
        batch_size=batch_size,
        seed=arguments.seed,
        generate=not arguments.no_generate,
        measures=measures_of(arguments),
        chat=arguments.chat,
        metrics=arguments.metrics,
        contexts=arguments.contexts,
        keep=keep,
        start=arguments.start,
        **how,
    )
    answers = compare(said, ask_about(model, asked, **about))
    moved = drift(model, before)
    scores = scores_table({"before editing": cell.result["before"], f"after {editor.name}": cell.result["after"]})
    seconds = ", ".join(f"{phase} {seconds:.1f}" for phase, seconds in cell.result["seconds"].items())
    lines = [*_answers(answers, len(records)), _drift_line(moved), "", scores, f"seconds: {seconds}"]
    return Answer({**cell.result, "answers": answers, "drift": moved}, "\n".join(lines))


@command(
    *RECORDS,
    CONTEXTS,
    Option("--delta", type=Path, metavar="FILE", help="first apply an edit: a file that --save-delta wrote"),
    Option("--judge", type=Path, metavar="FILE", required=True, help="the file for the answers, JSON Lines"),
    example="blue export --model smollm2-135m --dataset facts --edits 5 --judge answers.jsonl",
    kept=begins_anew,
)
def export(arguments: Namespace) -> Answer:
    """Write a model's answers for another model to judge, one JSON object per line."""
    from ..editing.deltas import apply_delta
    from ..io.writing import check_new_file
    from ..metrics.editing import check_groups
    from ..metrics.generated import ask_all, write_answers

    check_groups(("generated",), arguments.contexts)
    check_new_file(arguments.judge)
    model, records = _load(arguments)
    if arguments.delta:
        apply_delta(model, arguments.delta)
    answers = [one for context in arguments.contexts for one in ask_all(model, records, context=context, probes=None)]
    write_answers(arguments.judge, answers)
    return Answer(
        {"written": str(arguments.judge), "answers": len(answers)}, f"{arguments.judge}: {len(answers)} answers"
    )


@command(
    Option("delta", type=Path, metavar="FILE", help="a file that `blue edit --save-delta` wrote"),
    Option("--model", required=True, help="the model that the edit was made in"),
    Option("--save", type=Path, metavar="DIR", required=True, help="the folder for the edited model"),
    DTYPE,
    example="blue apply edit.safetensors --model pocket-llama --save edited/",
    kept=begins_anew,
)
def apply(arguments: Namespace) -> Answer:
    """Apply a saved edit to its model, and save the edited model."""
    from ..editing.deltas import apply_delta
    from ..models.load import load_model

    _check_new(arguments.save)
    model = load_model(arguments.model, dtype=arguments.dtype)
    about = apply_delta(model, arguments.delta)
    saved = model.save(arguments.save)
    return Answer(
        {"saved": str(saved), "model": model.name, **about}, f"{saved}: {model.name} with {about.get('edits')} edits"
    )


@command(
    MODEL,
    Option(
        "--dataset",
        nargs="+",
        action=Gather,
        help="what to train on; by default the pocket datasets for a pocket model, and facts for any other",
    ),
    Option("--split", help="tune or report; by default tune, if the dataset has it"),
    Option("--edits", type=int, help="records of each dataset; by default all"),
    Option(
        "--layers",
        type=int,
        nargs="+",
        action=Gather,
        help="layers to edit; by default the last three critical layers of a configured model, and the last three "
        "layers of any other",
    ),
    Option("--steps", type=int, default=800, help="training steps"),
    Option("--batch-size", type=int, help="edits per step; by default up to 10"),
    *PLACE,
    Option(
        "--output",
        type=Path,
        help="the file to write; by default a pocket model's shipped file, or a file in the cache",
    ),
    example="blue train-mend --model pocket-llama",
    kept=begins_anew,
)
def train_mend(arguments: Namespace) -> Answer:
    """Train MEND's network for a model."""
    from ..data.datasets import records_to_choose_on
    from ..editing.mend import network_path, train
    from ..editing.settings import settings_of
    from ..models.known import scale_of
    from ..models.load import load_model

    usual = ["pocket-counterfact", "pocket-zsre"] if scale_of(arguments.model) == "pocket" else ["facts"]
    chosen = [
        records_to_choose_on(dataset, split=arguments.split, edits=arguments.edits)
        for dataset in arguments.dataset or usual
    ]
    records = [record for records, _ in chosen for record in records]
    model = load_model(arguments.model, device=arguments.device, dtype=arguments.dtype)
    critical = (settings_of(model) or {}).get("critical_layers", range(model.n_layers))
    layers = arguments.layers or critical[-3:]
    path = arguments.output or network_path(model)
    batch_size = min(10, len(records)) if arguments.batch_size is None else arguments.batch_size
    losses = train(model, records, list(layers), path, steps=arguments.steps, batch_size=batch_size)
    n = max(1, len(losses) // 20)
    first, last = sum(losses[:n]) / n, sum(losses[-n:]) / n
    return Answer(
        {"written": str(path), "layers": list(layers), "first_loss": first, "last_loss": last},
        f"{path}: loss {first:.4f} at first, {last:.4f} at last",
    )


@command(
    MODEL,
    Option("--editor", nargs="+", action=Gather, default=["memit"], help="editors that `blue editors` lists"),
    Option("--null-spaces", action="store_true", help="also compute the null spaces that the editors work in"),
    CORPUS,
    TOKENS,
    *PLACE,
    Option("--output", type=Path, metavar="FILE", help="a JSON file for what was measured"),
    example="blue statistics --model pocket-gpt2 --editor memit alphaedit",
)
def statistics(arguments: Namespace) -> Answer:
    """Measure the second moments that editors need, and keep them in the cache."""
    from ..io.formats import write_json
    from ..io.writing import check_new_file
    from ..models.load import load_model
    from ..runs.statistics import describe_statistics

    if arguments.output:
        check_new_file(arguments.output)
    model = load_model(arguments.model, device=arguments.device, dtype=arguments.dtype)
    found = describe_statistics(
        model, arguments.editor, corpus=arguments.corpus, tokens=arguments.tokens, null_spaces=arguments.null_spaces
    )
    if arguments.output:
        write_json(arguments.output, found)
    lines = [f"{model.name}, {text}: layers {', '.join(layers)}" for text, layers in found["layers"].items()]
    return Answer(found, "\n".join(lines))


def _answers(rows: Sequence[dict[str, Any]], records: int) -> list[str]:
    """The answers as lines: a table, and how often the new object is the first choice."""
    counts = []
    for state in ("before", "after"):
        facts, wordings = (sum(row[state][key] for row in rows) for key in ("first_choice", "first_choice_paraphrases"))
        of = sum(row["paraphrases"] for row in rows)
        counts.append(f"{facts} of {len(rows)} {state}" + (f" ({wordings} of {of} after paraphrases)" if of else ""))
    shown = f", in the first {len(rows)} of {records} records" if len(rows) < records else ""
    lines = [answers_table(rows), "", f"new object is the first choice{shown}: {', '.join(counts)}"]
    near = [neighbour for row in rows for neighbour in row.get("neighbours", ())]
    changed = [one for one in near if one["before"] != one["after"]]
    if near:
        lines.append(f"other answers about neighbours: {len(changed)} of {len(near)}")
        lines += [f"  {one['prompt']}  {one['before']!r} → {one['after']!r}" for one in changed]
    return lines


def _drift_line(moved: dict[str, Any]) -> str:
    if not moved["prompts"]:
        return "no unrelated prompts: each of them mentions an edited subject"
    return (
        f"next tokens after {moved['prompts']} unrelated prompts moved by {moved['mean_nats']:.4f} nats on average, "
        f"{moved['max_nats']:.4f} at most (D_KL before ‖ after), after {moved['most_after']!r}"
    )


def _source(arguments: Namespace) -> str:
    """Where the records come from, as results say it."""
    return str(arguments.facts or arguments.dataset)


def _load(arguments: Namespace) -> tuple[Model, list[Record]]:
    from ..data.datasets import load_dataset, load_facts
    from ..models.load import load_model

    if (arguments.facts is None) == (arguments.dataset is None):
        raise ValueError("give either --dataset NAME or --facts FILE")
    chosen = {"limit": arguments.edits, "seed": arguments.seed, "skip_bad": arguments.skip_bad_records}
    if arguments.facts:
        records = load_facts(arguments.facts, split=arguments.split, **chosen)
    else:
        up_to = 100 if arguments.edits is None else None
        records = load_dataset(arguments.dataset, split=arguments.split or "report", up_to=up_to, **chosen)
    return load_model(arguments.model, device=arguments.device, dtype=arguments.dtype), records


def _readable(model: Model, records: list[Record], editor: Method, arguments: Namespace) -> list[Record]:
    """The records that a model can read: a prompt with its target may be longer than its context.

    Raises:
        ValueError: if it cannot read all of them, and they are not to be skipped; if it can read none.
    """
    from ..data.chat import in_chat
    from ..data.datasets import reasons
    from ..editing.sequence import check_request, longest_prefix
    from ..metrics.editing import check_texts

    prefix, edited = longest_prefix(model, editor), in_chat(model, records) if arguments.chat else records
    readable, bad = [], []
    for record, as_edited in zip(records, edited, strict=True):
        try:
            check_request(model, as_edited, prefix)
            check_texts(model, as_edited, generate=not arguments.no_generate)
            readable.append(record)
        except ValueError as error:
            bad.append(error)
    if bad and not (readable and arguments.skip_bad_records):
        heading = f"{model.name} cannot read {len(bad)} of {len(records)} records; --skip-bad-records leaves them out"
        raise ValueError(reasons(bad, heading))
    if bad:
        log.warning(reasons(bad, f"{len(bad)} of {len(records)} records are left out", always=True))
    return readable


def _check_new(target: Path) -> None:
    """Make sure, before any work, that something can be saved at ``target``.

    Raises:
        FileExistsError: if something is already there.
        WriteError: if nothing can be written there.
    """
    from ..io.writing import check_writable

    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise FileExistsError(f"{target} exists already; remove it, or choose another name")
    check_writable(target)
