"""Commands that study a model: the search of hyper-parameters, and which layers and how much text editors need."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from .common import CORPUS, MODEL, PLACE, POCKET_MODEL, Answer, Gather, Option, command, written


@command(
    POCKET_MODEL,
    Option("--editor", required=True, nargs="+", action=Gather, help="one or more editors"),
    example="blue tune --model pocket-gpt2 --editor memit",
)
def tune(arguments: Namespace) -> Answer:
    """Search an editor's hyper-parameters on the tune split."""
    from ..models.load import load_model
    from ..studies.tuning import axes, tune

    model = load_model(arguments.model)
    for editor in arguments.editor:  # before the first of them takes its hours
        axes(model, editor)
    return written([tune(model, editor) for editor in arguments.editor])


@command(POCKET_MODEL, example="blue contributions --model pocket-gpt2")
def contributions(arguments: Namespace) -> Answer:
    """Measure what an edit of each layer alone contributes."""
    from ..data.datasets import load_dataset
    from ..editing.named import get_composition
    from ..io.paths import project_path
    from ..io.writing import atomic_file
    from ..models.load import load_model
    from ..studies.layers import layer_contributions, layers_by_editing

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


@command(POCKET_MODEL, example="blue ablation --model pocket-gpt2")
def ablation(arguments: Namespace) -> Answer:
    """Edit with every choice of layers at several λ: which of them matter."""
    from ..models.load import load_model
    from ..studies.ablation import run_ablation

    return written([run_ablation(load_model(arguments.model))])


@command(POCKET_MODEL, example="blue nullspace --model pocket-gpt2")
def nullspace(arguments: Namespace) -> Answer:
    """Report what the null space of C keeps of edited subjects' keys."""
    from ..data.corpora import POCKET_CORPORA
    from ..data.datasets import load_dataset
    from ..editing.second_moments import TOKENS
    from ..editing.settings import critical_layers
    from ..models.load import load_model
    from ..studies.nullspace import null_space_report, write_null_space_report

    model = load_model(arguments.model)
    records = load_dataset("pocket-counterfact", split="tune", limit=100)
    layers = critical_layers(model.name)
    stem = _table_stem("nullspace", model.name)
    write_null_space_report(null_space_report(model, records, layers, POCKET_CORPORA, TOKENS), stem)
    return _table(stem)


@command(
    MODEL,
    Option("--dataset", default="pocket-counterfact", help="of the sample edits"),
    Option("--edits", type=int, default=50, help="sample edits"),
    Option(
        "--editor",
        nargs="+",
        action=Gather,
        default=["memit_blue", "alphaedit_blue"],
        help="one or more editors with second moments; see: blue editors",
    ),
    Option("--tokens", type=int, help="of the whole text, if not the configuration's"),
    CORPUS,
    *PLACE,
    example="blue convergence --model pocket-gpt2",
)
def convergence(arguments: Namespace) -> Answer:
    """Report how much text second moments need."""
    from ..data.datasets import choosing_split, load_dataset
    from ..editing.named import get_composition
    from ..models.load import load_model
    from ..studies.convergence import convergence, write_convergence

    model = load_model(arguments.model, device=arguments.device, dtype=arguments.dtype)
    records = load_dataset(arguments.dataset, split=choosing_split(arguments.dataset), limit=arguments.edits)
    editors = [get_composition(name, model, corpus=arguments.corpus) for name in arguments.editor]
    rows, scores = convergence(model, records, editors, arguments.tokens)
    stem = _table_stem("convergence", model.name)
    write_convergence(model, rows, scores, len(records), stem)
    return _table(stem)


def _table_stem(kind: str, model: str) -> Path:
    """Where a table about a model goes: beside the committed ones for a pocket model."""
    from ..io.paths import plain, project_path, raw_path
    from ..models.known import scale_of

    name = f"{kind}_{plain(model)}"
    return project_path("figures", "pocket", name) if scale_of(model) == "pocket" else raw_path(name)


def _table(stem: Path) -> Answer:
    """A table that was written as CSV and as Markdown."""
    paths = [stem.with_name(stem.name + extension) for extension in (".csv", ".md")]
    return Answer({"written": [str(path) for path in paths]}, paths[1].read_text(encoding="utf-8"))
