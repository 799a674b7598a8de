"""Commands that edit a model, and those that measure and train what editors need."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from .common import (
    CORPUS,
    EVALUATION,
    MODEL,
    PLACE,
    Answer,
    Gather,
    Option,
    command,
    measures_of,
    named_values,
    scores_table,
)

if TYPE_CHECKING:
    from ..data.records import Record
    from ..editing.sequence import Run
    from ..models.model import Model


@command(example="blue editors")
def editors(arguments: Namespace) -> Answer:
    """List the editors with their formulas."""
    from ..editing.catalogue import known, names

    formulas = {name: (known(name).make().__doc__ or "").strip().partition("\n")[0] for name in names()}
    return Answer({"editors": formulas}, "\n".join(f"{name:16} {formula}" for name, formula in formulas.items()))


@command(
    *EVALUATION,
    Option(
        "--output",
        type=Path,
        metavar="FILE",
        help="where to write every record's scores; read from there if they are there already",
    ),
    example="blue evaluate --model pocket-gpt2 --dataset pocket-counterfact --edits 40",
)
def evaluate(arguments: Namespace) -> Answer:
    """Evaluate a model before any edit."""
    from ..data.provenance import provenance
    from ..io.timing import Timer
    from ..runs.cell import evaluate_unedited, summary

    model, records = _load(arguments)
    timer = Timer()
    with timer("evaluate"):
        scores = evaluate_unedited(
            model,
            arguments.dataset,
            records,
            seed=arguments.seed,
            generate=not arguments.no_generate,
            measures=measures_of(arguments),
            path=arguments.output,
        )
    result = {
        "dataset": arguments.dataset,
        "scores": summary(scores),
        "seconds": timer.rounded(),
        "provenance": provenance(model, records),
    }
    return Answer(result, scores_table({"before editing": result["scores"]}))


@command(
    *EVALUATION,
    Option("--editor", required=True, help="see: blue editors"),
    Option("--corpus", help="the text of second moments, if not the configuration's: wikipedia, or a path"),
    Option("--tokens", type=int, help="how many tokens of that text, if not the configuration's"),
    Option("--batch-size", type=int, default=10, help="edits per batch"),
    Option(
        "--set",
        nargs="+",
        action=Gather,
        default=[],
        metavar="NAME=VALUE",
        help="hyper-parameters of the editor in place of the configuration's; values in JSON, or plain strings",
    ),
    Option(
        "--checkpoint",
        type=Path,
        metavar="DIR",
        help="write what continuing needs after each batch, and continue from it when the same command is given again "
        "(remove first what --save or --save-delta wrote)",
    ),
    Option(
        "--on-conflict",
        default="last",
        help="edits of the same fact: last, only the last of a batch is made; keep, all are; refuse, none",
    ),
    Option("--save", type=Path, metavar="DIR", help="save the edited model for transformers"),
    Option("--save-delta", type=Path, metavar="FILE", help="save only the changed matrices"),
    example="blue edit --model pocket-llama --dataset pocket-counterfact --editor memit_blue",
)
def edit(arguments: Namespace) -> Answer:
    """Edit a model with a sequence of records, then evaluate it on them."""
    from ..editing.named import check_corpus_of, get_editor
    from ..runs.cell import run_cell

    if arguments.save and arguments.save_delta and arguments.save.absolute() == arguments.save_delta.absolute():
        raise ValueError(f"--save is a folder and --save-delta a file: both cannot be {arguments.save}")
    for target in filter(None, (arguments.save, arguments.save_delta)):
        _check_new(target)
    overrides = named_values("hyper-parameter", arguments.set)
    corpus, tokens = (overrides.pop(name, getattr(arguments, name)) for name in ("corpus", "tokens"))
    check_corpus_of(arguments.editor, arguments.model, corpus)
    model, records = _load(arguments)
    editor = get_editor(arguments.editor, model, corpus=corpus, tokens=tokens, text=arguments.text, **overrides)

    def keep(run: Run) -> None:
        if arguments.save:
            run.save(arguments.save)
        if arguments.save_delta:
            run.save_delta(arguments.save_delta)

    cell = run_cell(
        model,
        arguments.dataset,
        records,
        editor,
        batch_size=arguments.batch_size,
        seed=arguments.seed,
        generate=not arguments.no_generate,
        measures=measures_of(arguments),
        checkpoint_dir=arguments.checkpoint,
        on_conflict=arguments.on_conflict,
        keep=keep,
    )
    scores = scores_table({"before editing": cell.result["before"], f"after {editor.name}": cell.result["after"]})
    seconds = ", ".join(f"{phase} {seconds:.1f}" for phase, seconds in cell.result["seconds"].items())
    return Answer(cell.result, f"{scores}\nseconds: {seconds}")


@command(
    Option("delta", type=Path, metavar="FILE", help="what blue edit --save-delta wrote"),
    Option("--model", required=True, help="the model it was made from"),
    Option("--save", type=Path, metavar="DIR", required=True, help="where to save the edited model"),
    Option("--dtype", default="float32", help="float32, bfloat16 or float16"),
    example="blue apply edit.safetensors --model pocket-llama --save edited/",
)
def apply(arguments: Namespace) -> Answer:
    """Put a saved edit into its model again, and save that."""
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
        help="what to train on; by default the pocket datasets for a pocket model, and facts for another",
    ),
    Option("--split", help="tune or report; by default tune, where the dataset has that"),
    Option("--edits", type=int, help="records of each dataset; by default all"),
    Option(
        "--layers",
        type=int,
        nargs="+",
        action=Gather,
        help="layers to edit; by default the last three critical layers of a configured model, or the last three of "
        "another",
    ),
    Option("--steps", type=int, default=800, help="training steps"),
    Option("--batch-size", type=int, help="edits per step; by default up to 10"),
    *PLACE,
    Option("--output", type=Path, help="file to write; by default a pocket model's shipped one, or one in the cache"),
    example="blue train-mend --model pocket-llama",
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
    Option("--editor", nargs="+", action=Gather, default=["memit"], help="one or more editors; see: blue editors"),
    Option("--null-spaces", action="store_true", help="also the null spaces that the editors work in"),
    CORPUS,
    Option("--tokens", type=int, help="how many tokens of it, if not the configuration's"),
    *PLACE,
    Option("--output", type=Path, metavar="FILE", help="where to write what was measured, as JSON"),
    example="blue statistics --model pocket-gpt2 --editor memit alphaedit",
)
def statistics(arguments: Namespace) -> Answer:
    """Measure the second moments that editors need, and keep them."""
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


def _load(arguments: Namespace) -> tuple[Model, list[Record]]:
    from ..data.datasets import load_dataset
    from ..models.load import load_model

    records = load_dataset(arguments.dataset, split=arguments.split, limit=arguments.edits, seed=arguments.seed)
    return load_model(arguments.model, device=arguments.device, dtype=arguments.dtype), records


def _check_new(target: Path) -> None:
    """Find out before any work whether something can be saved at ``target``.

    Raises FileExistsError if there is something already, and WriteError if nothing can be written there.
    """
    from ..io.writing import check_writable

    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise FileExistsError(f"{target} exists already; remove it, or choose another name")
    check_writable(target)
