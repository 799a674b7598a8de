"""The command line: ``blue …``. Thin: every command calls the library function of the same name, and answers with what
it found, as plain values for ``--json`` and as text."""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterable, Sequence
from contextlib import nullcontext, redirect_stdout
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import __version__
from .runs.workflow import end_with_workflow

if TYPE_CHECKING:
    from .editing.sequence import Run

STATUS = """exit status: 0, done; 1, done, and the answer is no (an unhealthy model, recall below its bar, a job that
failed); 2, the input cannot be used, or the machine is short of something; 130, interrupted."""


@dataclass(frozen=True)
class Answer:
    """What a command found: plain values, the same as text, and the exit status."""

    values: dict[str, Any]
    text: str
    status: int = 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status, see :data:`STATUS`."""
    parser = _parser()
    if not (sys.argv[1:] if argv is None else argv):
        parser.print_help(sys.stderr)
        return 2
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if not sys.stderr.isatty():  # nor a bar for each file of weights; the library it speaks to is not loaded yet
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it tells of each of its five tries
    terminated = (
        signal.signal(signal.SIGTERM, _interrupt) if threading.current_thread() is threading.main_thread() else None
    )
    try:
        end_with_workflow()
        answer = arguments.command(arguments)
        text = json.dumps(answer.values, ensure_ascii=False) if arguments.json else answer.text
        print(text, end="\n" if text else "", flush=True)
        return answer.status
    except BrokenPipeError:  # whoever reads has read enough; Python would complain once more when it closes stdout
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("blue: interrupted; what was written is whole, and the same command goes on from it", file=sys.stderr)
        return 130
    except (ValueError, ArithmeticError, OSError, RuntimeError, ImportError) as error:
        print(f"blue: {error}", file=sys.stderr)
        return 2
    finally:
        if terminated is not None:
            signal.signal(signal.SIGTERM, terminated)


def _interrupt(number: int, frame: object) -> None:
    """A service's or a cluster's way to end a process is as good as Ctrl-C."""
    raise KeyboardInterrupt


class _Gather(argparse.Action):
    """An option of several values that may be given several times: the first takes the default's place."""

    def __call__(self, parser, namespace, values, option_string=None):
        so_far = getattr(namespace, self.dest)
        setattr(namespace, self.dest, [*([] if so_far is self.default else so_far), *values])


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Tells defaults, where there are any."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, [], False) else super()._get_help_string(action)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="blue", description="Edit facts in language models, and measure what happens.", epilog=STATUS
    )
    parser.add_argument("--version", action="version", version=f"bluelib {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, function, about: str, example: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name, help=about, description=about, epilog=f"example: {example}", formatter_class=_HelpFormatter
        )
        sub.set_defaults(command=function)
        sub.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
        return sub

    command("models", _models, "List the models that ship with the project.", "blue models")
    sub = command(
        "datasets", _datasets, "List the datasets that ship with the project, and those to download.", "blue datasets"
    )
    sub.add_argument("--write", type=Path, metavar="DIR", help="generate their files anew into DIR")
    sub = command(
        "download",
        _download,
        "Fetch benchmarks into the cache; goes on where it was interrupted, checks "
        "what comes, and checks again what is there.",
        "blue download multi-counterfact zsre",
    )
    sub.add_argument("name", nargs="+", help="what to fetch; see: blue datasets")
    sub.add_argument("--url", help="the folder of a mirror, if not the pages of ROME and MEMIT, nor $BLUELIB_DATA_URL")
    sub.add_argument("--sha256", metavar="HEX", help="accept a file with this hash, if not the one that is known")
    command("editors", _editors, "List the editors with their formulas.", "blue editors")

    sub = command(
        "doctor",
        _doctor,
        "Report what is found in a model, and check what is taken for granted, before anything is run.",
        "blue doctor pocket-llama",
    )
    sub.add_argument("model", help="a pocket model, a local checkpoint folder, or a hub id")
    _add_place(sub)

    sub = command(
        "pretrain",
        _pretrain,
        "Train a pocket model from scratch; continues an interrupted run.",
        "blue pretrain pocket-gpt2",
    )
    sub.add_argument("name", help="pocket-gpt2, pocket-gptj or pocket-llama")
    sub.add_argument("--output", type=Path, help="folder to write; by default the shipped model is replaced")
    sub.add_argument("--device", default="cpu", help="where to train")
    sub.add_argument("--steps", type=int, help="training steps, if not the recipe's own")

    sub = command(
        "recall",
        _recall,
        "Measure what a pocket model knows: facts and skills, against the bars.",
        "blue recall pocket-gpt2",
    )
    sub.add_argument("model", help="a pocket model or the folder of one")

    sub = command(
        "evaluate",
        _evaluate,
        "Evaluate a model before any edit.",
        "blue evaluate --model pocket-gpt2 --dataset pocket-counterfact --edits 40",
    )
    _add_common(sub)
    sub.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="where to write every record's scores; read from there if they are there already",
    )

    sub = command(
        "edit",
        _edit,
        "Edit a model with a sequence of records, then evaluate it on them.",
        "blue edit --model pocket-llama --dataset pocket-counterfact --editor memit_blue",
    )
    _add_common(sub)
    sub.add_argument("--editor", required=True, help="see: blue editors")
    sub.add_argument("--corpus", help="the text of second moments, if not the configuration's: wikipedia, or a path")
    sub.add_argument("--batch-size", type=int, default=10, help="edits per batch")
    sub.add_argument(
        "--checkpoint",
        type=Path,
        metavar="DIR",
        help="write what continuing needs after each batch, and continue from it when the same command is given again",
    )
    sub.add_argument(
        "--on-conflict",
        default="last",
        help="edits of the same fact: last, only the last of a batch is made; keep, all are; refuse, none",
    )
    sub.add_argument("--save", type=Path, metavar="DIR", help="save the edited model for transformers")
    sub.add_argument("--save-delta", type=Path, metavar="FILE", help="save only the changed matrices")

    sub = command(
        "apply",
        _apply,
        "Put a saved edit into its model again, and save that.",
        "blue apply edit.safetensors --model pocket-llama --save edited/",
    )
    sub.add_argument("delta", type=Path, metavar="FILE", help="what blue edit --save-delta wrote")
    sub.add_argument("--model", required=True, help="the model it was made from")
    sub.add_argument("--save", type=Path, metavar="DIR", required=True, help="where to save the edited model")
    sub.add_argument("--dtype", default="float32", help="float32, bfloat16 or float16")

    sub = command(
        "train-mend", _train_mend, "Train MEND's network for a model.", "blue train-mend --model pocket-llama"
    )
    sub.add_argument("--model", required=True, help="a pocket model, a local checkpoint folder, or a hub id")
    sub.add_argument(
        "--dataset", nargs="+", action=_Gather, default=["pocket-counterfact", "pocket-zsre"], help="what to train on"
    )
    sub.add_argument("--split", default="tune", help="tune or report")
    sub.add_argument(
        "--layers",
        type=int,
        nargs="+",
        action=_Gather,
        help="layers to edit; by default the last three "
        "critical layers of a configured model, or the last three of another",
    )
    sub.add_argument("--steps", type=int, default=800, help="training steps")
    sub.add_argument("--batch-size", type=int, default=10, help="edits per step")
    sub.add_argument("--device", default="cpu", help="a torch device")
    sub.add_argument("--output", type=Path, help="file to write; by default the shipped one is replaced")

    sub = command(
        "tune",
        _tune,
        "Search an editor's hyper-parameters on the tune split.",
        "blue tune --model pocket-gpt2 --editor memit",
    )
    sub.add_argument("--model", required=True, help="a pocket model")
    sub.add_argument("--editor", required=True, nargs="+", action=_Gather, help="one or more editors")

    sub = command(
        "contributions",
        _contributions,
        "Measure what an edit of each layer alone contributes.",
        "blue contributions --model pocket-gpt2",
    )
    sub.add_argument("--model", required=True, help="a pocket model")

    sub = command(
        "ablation",
        _ablation,
        "Edit with every choice of layers at several λ: which of them matter.",
        "blue ablation --model pocket-gpt2",
    )
    sub.add_argument("--model", required=True, help="a pocket model")

    sub = command(
        "nullspace",
        _nullspace,
        "Report what the null space of C keeps of edited subjects' keys.",
        "blue nullspace --model pocket-gpt2",
    )
    sub.add_argument("--model", required=True, help="a pocket model")

    sub = command(
        "convergence", _convergence, "Report how much text second moments need.", "blue convergence --model pocket-gpt2"
    )
    sub.add_argument("--model", required=True, help="a pocket model, a local checkpoint folder, or a hub id")
    sub.add_argument("--dataset", default="pocket-counterfact", help="of the sample edits")
    sub.add_argument("--edits", type=int, default=50, help="sample edits")
    sub.add_argument(
        "--editor",
        nargs="+",
        action=_Gather,
        default=["memit_blue", "alphaedit_blue"],
        help="one or more editors with second moments; see: blue editors",
    )
    sub.add_argument("--tokens", type=int, help="of the whole text, if not the configuration's")
    sub.add_argument("--corpus", help="the text, if not the configuration's")
    _add_place(sub)

    sub = command(
        "statistics",
        _statistics,
        "Measure the second moments that editors need, and keep them.",
        "blue statistics --model pocket-gpt2 --editor memit alphaedit",
    )
    sub.add_argument("--model", required=True, help="a pocket model, a local checkpoint folder, or a hub id")
    sub.add_argument(
        "--editor", nargs="+", action=_Gather, default=["memit"], help="one or more editors; see: blue editors"
    )
    sub.add_argument("--null-spaces", action="store_true", help="also the null spaces that the editors work in")
    sub.add_argument("--corpus", help="the text, if not the configuration's")
    sub.add_argument("--tokens", type=int, help="how many tokens of it, if not the configuration's")
    _add_place(sub)
    sub.add_argument("--output", type=Path, metavar="FILE", help="where to write what was measured, as JSON")

    sub = command(
        "notebook",
        _notebook,
        "Run a notebook through papermill.",
        "blue notebook 03_residuals out.ipynb -p model=pocket-gpt2 edits=20",
    )
    sub.add_argument("name", help="the notebook's name, without .ipynb")
    sub.add_argument("executed", type=Path, help="where the executed copy goes")
    sub.add_argument(
        "-p",
        "--parameters",
        nargs="+",
        action=_Gather,
        default=[],
        metavar="NAME=VALUE",
        help="values in JSON, or plain strings",
    )

    sub = command(
        "reproduce",
        _reproduce,
        "Run a grid: cells, tables, pictures, report. Makes only what is missing.",
        "blue reproduce --grid workflow/grid-pocket.yaml -- --dry-run",
    )
    sub.add_argument("--grid", type=Path, default=Path("workflow/grid.yaml"), help="the grid file")
    sub.add_argument("--profile", default="local", help="where jobs run: local, slurm or kubernetes")
    sub.add_argument("snakemake", nargs="*", help="after --, more arguments for Snakemake")

    sub = command(
        "tables",
        _tables,
        "Make a grid's tables and pictures from its results.",
        "blue tables --grid workflow/grid-pocket.yaml",
    )
    sub.add_argument("--grid", type=Path, default=Path("workflow/grid.yaml"), help="the grid file")

    sub = command(
        "draw",
        _draw,
        "Draw the figures of analysis notebooks from their numbers, models side by side.",
        "blue draw --grid workflow/grid-pocket.yaml 03_residuals",
    )
    sub.add_argument("notebook", nargs="*", help="notebooks by name; by default all of the grid")
    sub.add_argument("--grid", type=Path, default=Path("workflow/grid-pocket.yaml"), help="the grid file")

    sub = command(
        "site",
        _site,
        "Build a static site from the executed notebooks, the figures and the tables.",
        "blue site --plain --only 00_quickstart",
    )
    sub.add_argument("--output", type=Path, metavar="DIR", help="folder of the site; by default build/site")
    sub.add_argument(
        "--only", nargs="+", action=_Gather, default=[], metavar="NOTEBOOK", help="these notebooks only; by default all"
    )
    sub.add_argument(
        "--no-execute",
        action="store_true",
        help="take notebooks as they are kept, with the outputs of "
        "checked cells only, in place of running those that have changed",
    )
    sub.add_argument("--plain", action="store_true", help="plain pages by nbconvert, without asking MyST")
    return parser


def _add_place(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--device", default="cpu", help="a torch device; or auto, to spread a model over all there are")
    sub.add_argument("--dtype", default="float32", help="float32, bfloat16 or float16")


def _add_common(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--model", required=True, help="a pocket model, a local checkpoint folder, or a hub id")
    sub.add_argument("--dataset", required=True, help="see: blue datasets; or the path of a JSON file")
    sub.add_argument("--split", default="report", help="tune or report")
    sub.add_argument("--edits", type=int, default=100, help="number of records")
    sub.add_argument("--seed", type=int, default=0, help="0 keeps the dataset's order, others shuffle it")
    _add_place(sub)
    sub.add_argument("--no-generate", action="store_true", help="skip fluency and consistency")
    sub.add_argument(
        "--score-bos",
        action="store_true",
        help="zsRE: score a BOS token in every answer, as public code does for Llama",
    )


def _models(arguments: argparse.Namespace) -> Answer:
    from .models.known import pocket_models

    configs = {name: json.loads((path / "config.json").read_text("utf-8")) for name, path in pocket_models().items()}
    found = {name: config["architectures"][0] for name, config in configs.items()}
    lines = [f"{name:16} {architecture}" for name, architecture in found.items()]
    lines.append("or the path of a local checkpoint, or a hub id; architectures: see bluelib.models.adapters.ADAPTERS")
    return Answer({"models": found}, "\n".join(lines))


def _datasets(arguments: argparse.Namespace) -> Answer:
    from .data.datasets import DATASETS
    from .data.download import FILES, cached, size_of
    from .pocket.datasets import write_datasets

    if arguments.write:
        return _written(write_datasets(arguments.write))
    lines = [f"{name:20} {dataset.about}" for name, dataset in DATASETS.items()]
    for name, file in FILES.items():
        where = f"in {cached(name)}" if cached(name).exists() else f"to download, {size_of(file)}"
        lines.append(f"{name:20} {file.about}; {where}")
    lines.append("or the path of a JSON file in the form of CounterFact, zsRE or flat CounterFact")
    files = {name: str(cached(name)) if cached(name).exists() else None for name in FILES}
    return Answer({"shipped": list(DATASETS), "downloaded": files}, "\n".join(lines))


def _download(arguments: argparse.Namespace) -> Answer:
    from .data.download import FILES, download, expected_hash

    if arguments.sha256 and len(arguments.name) > 1:
        raise ValueError(f"--sha256 is the hash of one file, not of {', '.join(arguments.name)}")
    files, lines = [], []
    for name in arguments.name:
        path = download(name, url=arguments.url, sha256=arguments.sha256)
        found = expected_hash(name)
        known = found == FILES[name].sha256
        files.append({"name": name, "path": str(path), "sha256": found, "known": known})
        lines.append(f"{path}: SHA-256 {found}, {'as known' if known else 'as given, not as known'}")
    return Answer({"files": files}, "\n".join(lines))


def _editors(arguments: argparse.Namespace) -> Answer:
    from .editing.editor import EDITORS

    formulas = {name: make.__doc__ for name, make in EDITORS.items()}
    return Answer({"editors": formulas}, "\n".join(f"{name:16} {formula}" for name, formula in formulas.items()))


def _doctor(arguments: argparse.Namespace) -> Answer:
    from .models.load import load_model
    from .studies.doctor import examine, report

    findings = examine(load_model(arguments.model, device=arguments.device, dtype=arguments.dtype))
    return Answer(findings.as_dict(), report(findings), 0 if findings.healthy else 1)


def _pretrain(arguments: argparse.Namespace) -> Answer:
    from .pocket.card import make_model
    from .pocket.pretrain import recipe_for

    recipe = recipe_for(arguments.name)
    if arguments.steps is not None:
        recipe = replace(recipe, steps=arguments.steps)
    return _recalled(make_model(arguments.name, arguments.output, device=arguments.device, recipe=recipe))


def _recall(arguments: argparse.Namespace) -> Answer:
    from .models.load import load_model
    from .pocket.recall import recall

    return _recalled(recall(load_model(arguments.model)))


def _recalled(found: dict[str, float]) -> Answer:
    from .pocket.recall import bar, short_of_bar

    below = short_of_bar(found)
    lines = [
        f"{name:24} {value:6.2f} %   (bar {bar(name):.0f} %){'   below' if name in below else ''}"
        for name, value in found.items()
    ]
    return Answer({"recall": found, "below": below}, "\n".join(lines), 1 if below else 0)


def _load(arguments: argparse.Namespace):
    from .data.datasets import load_dataset
    from .models.load import load_model

    records = load_dataset(arguments.dataset, split=arguments.split, limit=arguments.edits, seed=arguments.seed)
    return load_model(arguments.model, device=arguments.device, dtype=arguments.dtype), records


def _evaluate(arguments: argparse.Namespace) -> Answer:
    from .data.provenance import provenance
    from .io.timing import Timer
    from .runs.cell import evaluate_unedited, summary

    model, records = _load(arguments)
    timer = Timer()
    with timer("evaluate"):
        scores = evaluate_unedited(
            model,
            arguments.dataset,
            records,
            seed=arguments.seed,
            generate=not arguments.no_generate,
            score_bos=arguments.score_bos,
            path=arguments.output,
        )
    result = {
        "dataset": arguments.dataset,
        "scores": summary(scores),
        "seconds": timer.rounded(),
        "provenance": provenance(model, records),
    }
    return Answer(result, _scores({"before editing": result["scores"]}))


def _edit(arguments: argparse.Namespace) -> Answer:
    from .editing.deltas import is_delta_of
    from .editing.editor import get_editor
    from .io.writing import check_writable
    from .runs.cell import run_cell

    model, records = _load(arguments)
    editor = get_editor(arguments.editor, model, corpus=arguments.corpus)
    targets = [target for target in (arguments.save, arguments.save_delta) if target is not None]
    if len(set(map(Path.absolute, targets))) < len(targets):
        raise ValueError(f"--save is a folder and --save-delta a file: both cannot be {targets[0]}")
    for target in targets:
        if target.exists() and not (arguments.checkpoint and arguments.checkpoint.is_dir()):
            raise FileExistsError(f"{target} exists already; choose another name")
        check_writable(target)

    def keep(run: Run) -> None:
        """What is there already must be what would be written, as it is if the same command was given before."""
        for target, save, holds in (
            (arguments.save, run.save, run.model.is_saved_in),
            (arguments.save_delta, run.save_delta, partial(is_delta_of, run.model, editor.layers)),
        ):
            if target is not None and not target.exists():
                save(target)
            elif target is not None and not holds(target):
                raise FileExistsError(
                    f"{target} exists already, and holds something else; choose another name: the "
                    f"edits are in {arguments.checkpoint}"
                )

    cell = run_cell(
        model,
        arguments.dataset,
        records,
        editor,
        batch_size=arguments.batch_size,
        seed=arguments.seed,
        generate=not arguments.no_generate,
        score_bos=arguments.score_bos,
        checkpoint_dir=arguments.checkpoint,
        on_conflict=arguments.on_conflict,
        keep=keep,
    )
    scores = _scores({"before editing": cell.result["before"], f"after {editor.name}": cell.result["after"]})
    seconds = ", ".join(f"{phase} {seconds:.1f}" for phase, seconds in cell.result["seconds"].items())
    return Answer(cell.result, f"{scores}\nseconds: {seconds}")


def _apply(arguments: argparse.Namespace) -> Answer:
    from .editing.deltas import apply_delta
    from .models.load import load_model

    if arguments.save.exists() and (arguments.save.is_file() or any(arguments.save.iterdir())):
        raise FileExistsError(f"{arguments.save} exists already; choose a new folder")
    model = load_model(arguments.model, dtype=arguments.dtype)
    about = apply_delta(model, arguments.delta)
    saved = model.save(arguments.save)
    return Answer(
        {"saved": str(saved), "model": model.name, **about}, f"{saved}: {model.name} with {about.get('edits')} edits"
    )


def _train_mend(arguments: argparse.Namespace) -> Answer:
    from .data.datasets import load_dataset
    from .editing.mend import train
    from .editing.settings import model_configs
    from .io.assets import ASSETS
    from .models.load import load_model

    model = load_model(arguments.model, device=arguments.device)
    records = [r for dataset in arguments.dataset for r in load_dataset(dataset, split=arguments.split)]
    critical = model_configs().get(model.name, {}).get("critical_layers", range(model.n_layers))
    layers = arguments.layers or critical[-3:]
    path = arguments.output or ASSETS / "mend" / f"{model.name}.safetensors"
    losses = train(model, records, list(layers), path, steps=arguments.steps, batch_size=arguments.batch_size)
    n = max(1, len(losses) // 20)
    first, last = sum(losses[:n]) / n, sum(losses[-n:]) / n
    return Answer(
        {"written": str(path), "first_loss": first, "last_loss": last},
        f"{path}: loss {first:.4f} at first, {last:.4f} at last",
    )


def _scores(rows: dict[str, dict[str, dict[str, Any]]]) -> str:
    metrics = list(next(iter(rows.values())))
    lines = [f"{'':24}" + "".join(f"{metric:>20}" for metric in metrics)]
    for name, scores in rows.items():
        values = (f"{s['mean']:.2f} ± {_error(s)}" for s in (scores[m] for m in metrics))
        lines.append(f"{name:24}" + "".join(f"{value:>20}" for value in values))
    return "\n".join(lines)


def _error(score: dict[str, Any]) -> str:
    return "–" if score["standard_error"] is None else f"{score['standard_error']:.2f}"


def _written(paths: Iterable[Path]) -> Answer:
    names = [str(path) for path in paths]
    return Answer({"written": names}, "\n".join(names))


def _tune(arguments: argparse.Namespace) -> Answer:
    from .models.load import load_model
    from .studies.tuning import axes, tune

    model = load_model(arguments.model)
    for editor in arguments.editor:  # before the first of them takes its hours
        axes(model, editor)
    return _written([tune(model, editor) for editor in arguments.editor])


def _contributions(arguments: argparse.Namespace) -> Answer:
    from .data.datasets import load_dataset
    from .editing.editor import get_composition
    from .io.paths import project_path
    from .io.writing import atomic_file
    from .models.load import load_model
    from .studies.layers import layer_contributions, layers_by_editing

    model = load_model(arguments.model)
    records = load_dataset("pocket-counterfact", split="tune", limit=40)
    frame = layer_contributions(model, records, get_composition("memit", model), range(model.n_layers))
    path = project_path("results", "contributions", f"{model.name}.csv")
    with atomic_file(path) as temporary:
        frame.round(4).to_csv(temporary, index=False, lineterminator="\n")
    best = layers_by_editing(frame)
    return Answer(
        {"written": [str(path)], "contributions": frame.round(4).to_dict("records"), "layers": best},
        f"{frame.round(3).to_string(index=False)}\nfive consecutive layers with the largest mean contribution: {best}",
    )


def _ablation(arguments: argparse.Namespace) -> Answer:
    from .models.load import load_model
    from .studies.ablation import run_ablation

    return _written([run_ablation(load_model(arguments.model))])


def _nullspace(arguments: argparse.Namespace) -> Answer:
    from .data.corpora import POCKET_CORPORA
    from .data.datasets import load_dataset
    from .editing.second_moments import TOKENS
    from .editing.settings import critical_layers
    from .models.load import load_model
    from .studies.nullspace import null_space_report, write_null_space_report

    model = load_model(arguments.model)
    records = load_dataset("pocket-counterfact", split="tune", limit=100)
    layers = critical_layers(model.name)
    stem = _table_stem("nullspace", model.name)
    write_null_space_report(null_space_report(model, records, layers, POCKET_CORPORA, TOKENS), stem)
    return _table(stem)


def _table_stem(kind: str, model: str) -> Path:
    """Where a table about a model goes: beside the committed ones for a pocket model."""
    from .io.paths import plain, project_path, raw_path
    from .models.known import scale_of

    name = f"{kind}_{plain(model)}"
    return project_path("figures", "pocket", name) if scale_of(model) == "pocket" else raw_path(name)


def _table(stem: Path) -> Answer:
    """A table that was written as CSV and as Markdown."""
    paths = [stem.with_name(stem.name + extension) for extension in (".csv", ".md")]
    return Answer({"written": [str(path) for path in paths]}, paths[1].read_text(encoding="utf-8"))


def _convergence(arguments: argparse.Namespace) -> Answer:
    from .data.datasets import choosing_split, load_dataset
    from .editing.editor import get_composition
    from .models.load import load_model
    from .studies.convergence import convergence, write_convergence

    model = load_model(arguments.model, device=arguments.device, dtype=arguments.dtype)
    records = load_dataset(arguments.dataset, split=choosing_split(arguments.dataset), limit=arguments.edits)
    editors = [get_composition(name, model, corpus=arguments.corpus) for name in arguments.editor]
    rows, scores = convergence(model, records, editors, arguments.tokens)
    stem = _table_stem("convergence", model.name)
    write_convergence(model, rows, scores, len(records), stem)
    return _table(stem)


def _statistics(arguments: argparse.Namespace) -> Answer:
    from .io.formats import write_json
    from .io.writing import check_new_file
    from .models.load import load_model
    from .runs.statistics import describe_statistics

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


def _notebook(arguments: argparse.Namespace) -> Answer:
    from .runs.notebooks import run_notebook

    parameters: dict[str, Any] = {}
    for name, value in map(_parameter, arguments.parameters):
        if name in parameters:
            raise ValueError(f"parameter {name} is given twice, as {parameters[name]!r} and as {value!r}")
        parameters[name] = value
    run_notebook(arguments.name, parameters, arguments.executed)
    return _written([arguments.executed])


def _parameter(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise ValueError(f"a parameter is NAME=VALUE, not {text!r}")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def _reproduce(arguments: argparse.Namespace) -> Answer:
    from .runs.grid import Grid
    from .runs.workflow import run_grid

    grid = Grid.load(arguments.grid)
    with redirect_stdout(sys.stderr) if arguments.json else nullcontext():  # of Snakemake's own words
        status = run_grid(arguments.grid, profile=arguments.profile, arguments=arguments.snakemake)
    return Answer({"grid": grid.name, "figures": str(grid.figures)}, "", status)


def _tables(arguments: argparse.Namespace) -> Answer:
    from .reports.tables import write_tables
    from .runs.grid import Grid

    return _written(write_tables(Grid.load(arguments.grid)))


def _draw(arguments: argparse.Namespace) -> Answer:
    from .reports.figures import draw
    from .runs.grid import Grid
    from .studies import study_of

    grid = Grid.load(arguments.grid)
    paths = []
    for notebook in arguments.notebook or grid.notebooks:
        numbers = {model: grid.numbers(notebook, model) for model in grid.models}
        paths += draw(study_of(notebook).name, numbers, grid.figures)
    return _written(paths)


def _site(arguments: argparse.Namespace) -> Answer:
    from .io.paths import project_path
    from .reports.site import build_site

    output = arguments.output or project_path("build", "site")
    return _written([build_site(output, only=arguments.only, execute=not arguments.no_execute, plain=arguments.plain)])


if __name__ == "__main__":
    sys.exit(main())
