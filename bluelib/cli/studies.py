"""Commands that study a model: which layers and settings to edit it with, and how much text editors need."""

from __future__ import annotations

from argparse import BooleanOptionalAction, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .common import (
    CONTEXTS,
    CORPUS,
    MODEL,
    MODEL_HELP,
    PLACE,
    SET,
    TOKENS,
    Answer,
    Gather,
    Option,
    begins_anew,
    command,
    metrics_option,
    named_values,
    scores_table,
    written,
)

if TYPE_CHECKING:
    from ..data.records import Record
    from ..models.model import Model

DATASET = Option(
    "--dataset",
    help="a name that `blue datasets` lists, or the path of a file; by default pocket-counterfact for a pocket model, "
    "and facts for any other",
)
SPLIT = Option("--split", help="tune or report; by default tune, if the dataset has it")
#: A text for second moments.
TEXT = (CORPUS, TOKENS)
#: The editors whose sequences are compared, and what else their runs are made with.
EDITORS = Option(
    "--editor",
    nargs="+",
    action=Gather,
    default=["memit", "memit_blue"],
    help="editors that `blue editors` lists",
)
OF_SEQUENCE = (
    Option("--seed", type=int, default=0, help="0 keeps the dataset's order; any other seed shuffles it"),
    SET,
    *TEXT,
    *PLACE,
    Option("--output", type=Path, metavar="FILE", help="where the scores of one editor are written"),
)


def _edits(default: int | str) -> Option:
    return Option("--edits", type=int, help=f"number of records; by default {default}, or all if there are fewer")


def _kept_trials(arguments: Namespace) -> str:
    """What is left of an interrupted search or ablation."""
    return "finished trials are kept under results/, and the same command continues after the last one"


def _batch_size(default: int | str) -> Option:
    return Option("--batch-size", type=int, help=f"edits per batch; by default {default}, or all if there are fewer")


@command(
    Option("model", help=MODEL_HELP),
    DATASET,
    SPLIT,
    Option(
        "--edits", type=int, help="number of records to edit each layer with; by default 8, or all if there are fewer"
    ),
    *TEXT,
    *PLACE,
    Option("--output", type=Path, metavar="FILE", help="the settings file; by default one in your own settings folder"),
    Option("--force", action="store_true", help="replace the settings file if it exists"),
    example="blue locate pocket-llama --output settings.yaml",
    kept=begins_anew,
)
def locate(arguments: Namespace) -> Answer:
    """Find the layers to edit, and write them into a settings file, with settings to start from."""
    from ..editing.settings import USER_CONFIGS, user_folder
    from ..io.paths import config_dir, project_path
    from ..models.load import load_model
    from ..reports.figures.locate import critical_layers
    from ..reports.plots import save
    from ..studies.critical import explain, find, settings_target

    settings_target(arguments.model, arguments.output, force=arguments.force)
    model = load_model(arguments.model, device=arguments.device, dtype=arguments.dtype)
    target = settings_target(model, arguments.output, force=arguments.force)
    located = find(
        model,
        dataset=arguments.dataset,
        split=arguments.split,
        edits=arguments.edits,
        corpus=arguments.corpus,
        tokens=arguments.tokens,
    )
    stem = project_path("results", "locate", model.stem)
    numbers, picture = located.write(stem), save(critical_layers(located.as_dict()), stem)
    assert target is not None  # as the model is loaded
    file = located.write_settings(target)
    paths = {"settings": str(file), "numbers": str(numbers), "picture": str(picture)}
    commands = [
        f"blue tune {arguments.model}",
        f"blue edit --model {arguments.model} --dataset {located.dataset['name']} --editor memit_blue --edits 10",
    ]
    lines = [explain(located), "", *(f"{name}: {path}" for name, path in paths.items()), ""]
    if file.parent not in (user_folder(), config_dir()):
        lines.append(f"settings are read from {user_folder()}: put {file} there, or set {USER_CONFIGS} to its folder")
    lines += ["next:", *(f"  {line}" for line in commands)]
    return Answer({**located.as_dict(), **paths, "next": commands}, "\n".join(lines))


@command(
    Option("model", nargs="?", help="a model with settings; `blue locate MODEL` writes some"),
    Option("--model", dest="named_model", metavar="MODEL", help="the same as the argument"),
    Option(
        "--editor",
        nargs="+",
        action=Gather,
        default=["memit_blue"],
        help="editors that `blue editors` lists",
    ),
    DATASET,
    SPLIT,
    _edits("20 (60 for a pocket model)"),
    _batch_size("10 (3 for a pocket model)"),
    Option(
        "--axes",
        choices=["solver", "all"],
        help="search the solver's parameters, or all, with those of the targets; by default all for a pocket model, "
        "and solver for any other",
    ),
    Option(
        "--candidates",
        nargs="+",
        action=Gather,
        default=[],
        metavar="NAME=LIST",
        help="search these hyper-parameters instead, from these values, for example 'l2=[1,0.1,10]'; the first one is "
        "where the search starts",
    ),
    *TEXT,
    Option(
        "--write",
        action=BooleanOptionalAction,
        default=None,
        help="write the best settings into the settings file; by default only if it is your own",
    ),
    *PLACE,
    Option("--output", type=Path, metavar="FOLDER", help="where the searches are written; by default results/tuning"),
    example="blue tune pocket-gpt2 --editor memit",
    kept=_kept_trials,
)
def tune(arguments: Namespace) -> Answer:
    """Search the hyper-parameters of editors, on records that no result is reported on."""
    from ..editing.named import check_corpus_of
    from ..editing.settings import is_shipped, settings_file
    from ..io.formats import read_json
    from ..models.load import load_model
    from ..studies.tuning import axes, keep_best, own_file, tune

    if (arguments.model is None) == (arguments.named_model is None):
        raise ValueError("name one model: blue tune MODEL")
    if arguments.axes and arguments.candidates:
        raise ValueError("--axes and --candidates both say what is searched; give only one of them")
    which = named_values("hyper-parameter", arguments.candidates) or arguments.axes
    name = arguments.model or arguments.named_model
    for editor in arguments.editor:
        check_corpus_of(editor, name, arguments.corpus)
    model = load_model(name, device=arguments.device, dtype=arguments.dtype)
    for editor in arguments.editor:  # refuses settings before the first search takes hours
        axes(model, editor, which)
    file = own_file(model) if arguments.write else settings_file(model)
    writes = arguments.write is not False and file is not None and not is_shipped(file)
    paths = [
        tune(
            model,
            editor,
            arguments.output,
            dataset=arguments.dataset,
            split=arguments.split,
            edits=arguments.edits,
            batch_size=arguments.batch_size,
            which=which,
            corpus=arguments.corpus,
            tokens=arguments.tokens,
        )
        for editor in arguments.editor
    ]
    found = {}
    for editor, path in zip(arguments.editor, paths, strict=True):
        search = read_json(path)
        best = max(trial["score"] for trial in search["trials"])
        found[editor] = {"best": search["best"], "score": best, "trials": len(search["trials"])}
    lines = [
        f"{editor}: {', '.join(f'{axis} {value}' for axis, value in row['best'].items())}"
        f" (score {row['score']:.1f}, {row['trials']} trials)"
        for editor, row in found.items()
    ]
    files = [*paths, keep_best(model, paths)] if writes else paths
    if not writes:
        lines.append(f"the best settings were not written into {file}")
    answer = written(files)
    return Answer({**answer.values, "best": found}, "\n".join([*lines, answer.text]))


@command(
    MODEL,
    DATASET,
    SPLIT,
    _edits(40),
    *TEXT,
    *PLACE,
    example="blue contributions --model pocket-gpt2",
    kept=begins_anew,
)
def contributions(arguments: Namespace) -> Answer:
    """Edit each layer alone, and measure how much that contributes."""
    from ..editing.named import get_composition
    from ..editing.settings import critical_layers
    from ..io.paths import project_path
    from ..io.writing import atomic_file
    from ..studies.layers import layer_contributions, layers_by_editing

    model, records, about = _loaded(arguments, "memit", 40)
    editor = get_composition("memit", model, corpus=arguments.corpus, tokens=arguments.tokens)
    editor.check(model)
    frame = layer_contributions(model, records, editor, range(model.n_layers))
    path = project_path("results", "contributions", f"{model.stem}.csv")
    with atomic_file(path) as temporary:
        frame.round(4).to_csv(temporary, index=False, lineterminator="\n")
    width = len(critical_layers(model))
    best = layers_by_editing(frame, width)
    return Answer(
        {"written": [str(path)], **about, "contributions": frame.round(4).to_dict("records"), "layers": best},
        f"{frame.round(3).to_string(index=False)}\n"
        f"the {width} consecutive layers with the largest mean contribution: {best}",
    )


@command(
    MODEL,
    DATASET,
    Option("--split", default="report", help="tune or report"),
    _edits(60),
    _batch_size(10),
    Option(
        "--weights",
        type=float,
        nargs="+",
        action=Gather,
        help="values of λ; by default 10, 1 and 0.1 times that of the settings",
    ),
    *TEXT,
    *PLACE,
    example="blue ablation --model pocket-gpt2",
    kept=_kept_trials,
)
def ablation(arguments: Namespace) -> Answer:
    """Find which layers matter: edit with every choice of layers, at several λ."""
    from ..data.datasets import default_dataset
    from ..editing.named import check_corpus_of
    from ..models.load import load_model
    from ..studies.ablation import run_ablation

    for editor in ("memit", "memit_blue"):
        check_corpus_of(editor, arguments.model, arguments.corpus)
    model = load_model(arguments.model, device=arguments.device, dtype=arguments.dtype)
    path = run_ablation(
        model,
        dataset=arguments.dataset or default_dataset(model.name),
        split=arguments.split,
        edits=arguments.edits,
        batch_size=arguments.batch_size,
        weights=arguments.weights,
        corpus=arguments.corpus,
        tokens=arguments.tokens,
    )
    return written([path])


@command(
    MODEL,
    DATASET,
    Option("--split", default="report", help="tune or report"),
    EDITORS,
    Option("--edits", type=int, help="length of the sequence; by default 100, or all records if there are fewer"),
    _batch_size(20),
    Option(
        "--at",
        type=int,
        nargs="+",
        action=Gather,
        default=[],
        help="after how many edits to score, besides the end of the sequence",
    ),
    Option("--scored", type=int, default=200, help="maximum number of edits to score at each length"),
    Option(
        "--others",
        type=int,
        default=100,
        help="number of records after the sequence that show how far the model has moved elsewhere",
    ),
    *OF_SEQUENCE,
    example="blue follow --model pocket-gpt2 --editor memit memit_blue --edits 200 --at 50 100",
)
def follow(arguments: Namespace) -> Answer:
    """Edit a model with a sequence of records, and score it as the sequence grows."""
    from ..data.datasets import default_dataset
    from ..studies.follow import BATCH_SIZE, EDITS, follow

    model, given = _given(arguments, arguments.dataset or default_dataset(arguments.model), EDITS)
    batch_size = min(BATCH_SIZE, given["edits"]) if arguments.batch_size is None else arguments.batch_size
    of_sequence = {"at": arguments.at, "scored": arguments.scored, "others": arguments.others}
    paths = [follow(model, editor, batch_size=batch_size, **of_sequence, **given) for editor in arguments.editor]
    return written(paths)


@command(
    MODEL,
    Option("--dataset", default="facts-ripple", help="a name that `blue datasets` lists, or the path of a file"),
    Option("--split", default="report", help="tune or report"),
    EDITORS,
    _edits(100),
    metrics_option("editing", "argmax", "portability"),
    CONTEXTS,
    *OF_SEQUENCE,
    example="blue single --model pocket-gpt2 --dataset pocket-ripple --editor memit memit_blue --edits 20",
)
def single(arguments: Namespace) -> Answer:
    """Edit records one at a time, each in the unedited model, and then the same ones in sequence."""
    from ..metrics import Scores
    from ..runs.cell import summary
    from ..studies.single import EDITS, PROTOCOLS, single, singles

    model, given = _given(arguments, arguments.dataset, EDITS)
    measured = {"metrics": arguments.metrics, "contexts": arguments.contexts}
    paths = [single(model, editor, **measured, **given) for editor in arguments.editor]
    rows = {
        f"{row.editor}, {PROTOCOLS[row.protocol]}": summary(Scores.of_columns(row.scores))
        for row in singles(paths).itertuples()
    }
    return Answer({"written": list(map(str, paths)), "scores": rows}, scores_table(rows))


def _given(arguments: Namespace, dataset: str, usual: int) -> tuple[Model, dict[str, Any]]:
    """The model, and what the runs of all editors that are to be compared have in common: ``usual`` edits if no number
    is given, or all records if there are fewer."""
    from ..data.datasets import load_dataset
    from ..editing.named import check_corpus_of
    from ..models.load import load_model

    if arguments.output and len(arguments.editor) > 1:
        raise ValueError(f"--output is the file of one editor's scores; {len(arguments.editor)} editors were named")
    for editor in arguments.editor:
        check_corpus_of(editor, arguments.model, arguments.corpus)
    edits = arguments.edits
    if edits is None:
        edits = len(load_dataset(dataset, split=arguments.split, up_to=usual, seed=arguments.seed))
    given = {key: getattr(arguments, key) for key in ("split", "seed", "corpus", "tokens", "output")}
    model = load_model(arguments.model, device=arguments.device, dtype=arguments.dtype)
    return model, {"dataset": dataset, "edits": edits, "options": named_values("option", arguments.set), **given}


@command(
    MODEL, DATASET, SPLIT, _edits(100), *TEXT, *PLACE, example="blue nullspace --model pocket-gpt2", kept=begins_anew
)
def nullspace(arguments: Namespace) -> Answer:
    """Report how much of the edited subjects' keys lies in the null space of C."""
    from ..data.corpora import POCKET_CORPORA
    from ..editing.named import get_composition
    from ..models.known import scale_of
    from ..studies.nullspace import null_space_report, write_null_space_report

    model, records, _ = _loaded(arguments, "alphaedit", 100)
    editor = get_composition("alphaedit", model, corpus=arguments.corpus, tokens=arguments.tokens)
    editor.check(model)
    both = arguments.corpus is None and scale_of(model.name) == "pocket"
    corpora = POCKET_CORPORA if both else (str(editor.corpus),)
    stem = _table_stem("nullspace", model)
    found = null_space_report(model, records, editor, corpora)
    write_null_space_report(model, found, stem)
    return _table(stem)


@command(
    MODEL,
    DATASET,
    SPLIT,
    Option("--edits", type=int, help="number of edits, in one batch; by default 50, or all if there are fewer"),
    Option(
        "--editor",
        nargs="+",
        action=Gather,
        default=["memit_blue", "alphaedit_blue"],
        help="editors with second moments that `blue editors` lists",
    ),
    *TEXT,
    *PLACE,
    example="blue convergence --model pocket-gpt2",
    kept=begins_anew,
)
def convergence(arguments: Namespace) -> Answer:
    """Report how much text second moments need."""
    from ..editing.named import get_composition
    from ..studies.convergence import convergence, write_convergence

    model, records, _ = _loaded(arguments, arguments.editor[0], 50)
    editors = [
        get_composition(name, model, corpus=arguments.corpus, tokens=arguments.tokens) for name in arguments.editor
    ]
    for editor in editors:
        editor.check(model)
    rows, scores = convergence(model, records, editors)
    stem = _table_stem("convergence", model)
    write_convergence(model, rows, scores, len(records), stem)
    return _table(stem)


def _loaded(arguments: Namespace, editor: str, edits: int) -> tuple[Model, list[Record], dict[str, str]]:
    """A model, and records to study it on: up to ``edits`` unless a number is given. Input is checked before the model
    is loaded, as far as it can be."""
    from ..data.datasets import default_dataset, records_to_choose_on
    from ..editing.named import check_corpus_of
    from ..models.load import load_model

    check_corpus_of(editor, arguments.model, arguments.corpus)
    records, about = records_to_choose_on(
        arguments.dataset or default_dataset(arguments.model),
        split=arguments.split,
        edits=arguments.edits,
        up_to=edits,
    )
    return load_model(arguments.model, device=arguments.device, dtype=arguments.dtype), records, about


def _table_stem(kind: str, model: Model) -> Path:
    """Where a table about a model goes: beside the committed ones for a pocket model."""
    from ..io.paths import project_path
    from ..models.known import scale_of

    pocket = scale_of(model.name) == "pocket"
    return (
        project_path("figures", "pocket", f"{kind}_{model.stem}")
        if pocket
        else project_path("results", kind, model.stem)
    )


def _table(stem: Path) -> Answer:
    """A table that was written as CSV and as Markdown."""
    paths = [stem.with_name(stem.name + extension) for extension in (".csv", ".md")]
    return Answer({"written": [str(path) for path in paths]}, paths[1].read_text(encoding="utf-8"))
