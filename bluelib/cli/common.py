"""What the commands share: how a command is declared, common options, and how answers are written."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..models.known import DTYPES

if TYPE_CHECKING:
    from ..metrics.editing import Measures


@dataclass(frozen=True)
class Answer:
    """What a command found: plain values, the same as text, and the exit status."""

    values: dict[str, Any]
    text: str
    status: int = 0


class Option:
    """An option or an argument of a command: what a parser's ``add_argument`` takes."""

    def __init__(self, *names: str, **settings: Any) -> None:
        self.names, self.settings = names, settings


@dataclass(frozen=True)
class Command:
    """A function that ``blue`` offers under the function's own name; its docstring is what ``--help`` says about it."""

    function: Callable[[argparse.Namespace], Answer]
    options: tuple[Option, ...]
    example: str
    kept: Callable[[argparse.Namespace], str]

    def add_to(self, commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
        parser = commands.add_parser(
            self.function.__name__.replace("_", "-"),
            help=self.function.__doc__,
            description=self.function.__doc__,
            epilog=f"example: {self.example}",
            formatter_class=_HelpFormatter,
        )
        parser.set_defaults(command=self.function, kept=self.kept)
        parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
        for option in self.options:
            parser.add_argument(*option.names, **option.settings)


def goes_on(arguments: argparse.Namespace) -> str:
    """What is left of an interrupted command that continues when it is run again."""
    return "what was written is complete, and the same command continues from it"


def begins_anew(arguments: argparse.Namespace) -> str:
    """What is left of an interrupted command that keeps nothing."""
    return "nothing was kept; the same command starts again"


def command(
    *options: Option, example: str, kept: Callable[[argparse.Namespace], str] = goes_on
) -> Callable[[Callable[[argparse.Namespace], Answer]], Command]:
    """Make a command of the function below, see :class:`Command`; ``kept`` says what is left if it is interrupted."""
    return lambda function: Command(function, options, example, kept)


class Gather(argparse.Action):
    """An option with several values that may be given several times; the first time, they replace the default."""

    def __call__(self, parser, namespace, values, option_string=None):
        so_far = getattr(namespace, self.dest)
        setattr(namespace, self.dest, [*([] if so_far is self.default else so_far), *values])


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows defaults where there are any."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, [], False) else super()._get_help_string(action)


#: What names a model, for arguments and options alike.
MODEL_HELP = "a name that `blue models` lists, a local checkpoint folder, a GGUF file, or a hub id"
MODEL = Option("--model", required=True, help=MODEL_HELP)
CORPUS = Option(
    "--corpus",
    help="the text for second moments: sampled (shipped), wikipedia, or a path; by default the configuration's",
)
TOKENS = Option("--tokens", type=int, help="how many tokens of that text; by default the configuration's")
GRID = Option("--grid", type=Path, default=Path("workflow/grid.yaml"), help="the grid file")

SET = Option(
    "--set",
    nargs="+",
    action=Gather,
    default=[],
    metavar="NAME=VALUE",
    help="hyper-parameters, instead of the configuration's, for example mom2_update_weight=15000; values in JSON or as "
    "plain strings",
)

DTYPE = Option("--dtype", default=DTYPES[0], help=f"one of {', '.join(DTYPES)}")
#: Where a model is loaded, and how.
PLACE = (Option("--device", default="cpu", help="a torch device, or auto to spread the model over all devices"), DTYPE)

#: A model, and records.
RECORDS = (
    MODEL,
    Option("--dataset", help="a name that `blue datasets` lists, or the path of a file"),
    Option(
        "--facts",
        type=Path,
        metavar="FILE",
        help="your own facts instead of a dataset: JSON, JSON Lines or CSV with subject, prompt and target_new",
    ),
    Option("--split", help="tune or report; by default report for a dataset, and all records for a file of facts"),
    Option(
        "--edits", type=int, help="number of records; by default up to 100 of a dataset, and all of a file of facts"
    ),
    Option("--skip-bad-records", action="store_true", help="leave out records that cannot be used, and name them"),
    Option("--seed", type=int, default=0, help="0 keeps the dataset's order; any other seed shuffles it"),
    *PLACE,
)
CONTEXTS = Option(
    "--contexts",
    nargs="+",
    action=Gather,
    default=["bare"],
    metavar="CONTEXT",
    help="how to ask for generated answers: bare, instruction, chat",
)


def metrics_option(*usual: str) -> Option:
    """Which groups of metrics are measured; ``usual`` by default."""
    return Option(
        "--metrics",
        nargs="+",
        action=Gather,
        default=[*usual],
        metavar="GROUP",
        help="what to measure: editing, argmax, generated, locality, portability, negation (docs/metrics.md)",
    )


#: A model, records, and how the model is evaluated on them.
EVALUATION = (
    *RECORDS,
    Option("--no-generate", action="store_true", help="skip fluency and consistency"),
    Option(
        "--text",
        action="store_true",
        help="where the papers' text and their public code differ, follow the text (docs/as-published.md)",
    ),
    Option("--chat", action="store_true", help="put every prompt behind the tokenizer's chat template"),
    Option(
        "--measure",
        nargs="+",
        action=Gather,
        default=[],
        metavar="NAME=VALUE",
        help="options of metrics: idf, words, score_bos (docs/as-published.md)",
    ),
    metrics_option("editing"),
    CONTEXTS,
)


def named_values(what: str, texts: Iterable[str]) -> dict[str, Any]:
    """What a command line gives as ``NAME=VALUE``, with values in JSON or as plain strings.

    Raises:
        ValueError: if a text has another form, or a name is given twice.
    """
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise ValueError(f"give each {what} as NAME=VALUE, not {text!r}")
        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            pass
        if name in found:
            raise ValueError(f"{what} {name} is given twice, as {found[name]!r} and as {value!r}")
        found[name] = value
    return found


def measures_of(arguments: argparse.Namespace) -> Measures:
    """What ``--text`` and ``--measure`` ask for.

    Raises:
        ValueError: if metrics have no such option, or the option has no such value.
    """
    from ..metrics.editing import PUBLISHED, TEXT

    given = named_values("measure", arguments.measure)
    if unknown := sorted(given.keys() - vars(PUBLISHED)):
        raise ValueError(f"metrics have no option {unknown[0]!r}; they have {', '.join(vars(PUBLISHED))}")
    return replace(TEXT if arguments.text else PUBLISHED, **given)


def written(paths: Iterable[Path]) -> Answer:
    """The answer of a command that wrote files or folders."""
    names = [str(path) for path in paths]
    return Answer({"written": names}, "\n".join(names))


#: Up to this many metrics are shown beside each other; more are shown below each other.
BESIDE = 6


def scores_table(rows: dict[str, dict[str, dict[str, Any]]]) -> str:
    """Scores by row and metric as text, each with its standard error."""
    metrics = list(dict.fromkeys(metric for scores in rows.values() for metric in scores))
    if not metrics:
        return "no metric can be measured on these records"
    table = [["", *metrics]]
    table += [[name, *(_cell(scores.get(metric)) for metric in metrics)] for name, scores in rows.items()]
    if len(metrics) > BESIDE:
        table = [list(column) for column in zip(*table, strict=True)]
    first, *others = (max(map(len, column)) + 2 for column in zip(*table, strict=True))
    wide = [max(20, width) for width in others]
    return "\n".join(
        f"{line[0]:{max(24, first)}}" + "".join(f"{cell:>{width}}" for cell, width in zip(line[1:], wide, strict=True))
        for line in table
    )


def _cell(score: dict[str, Any] | None) -> str:
    if score is None:
        return "–"
    error = score["standard_error"]
    return f"{_number(score['mean'])} ± {'–' if error is None else _number(error)}"


def _number(value: float) -> str:
    """With two decimals; a small one with two significant digits."""
    return f"{value:.2f}" if value == 0 or abs(value) >= 0.1 else f"{value:.2g}"


def answers_table(rows: Sequence[dict[str, Any]]) -> str:
    """What a model said before and after editing, one line per record: see :func:`bluelib.metrics.answers.compare`.

    The last columns show whether the new object is its first choice after editing, and after how many paraphrases.
    """
    cells = [("", "before", "after", "first choice", "paraphrases")]
    for row in rows:
        after, of = row["after"], row["paraphrases"]
        cells.append(
            (
                _shortened(row["prompt"], 44, end=True),
                _shortened(row["before"]["says"], 24),
                _shortened(after["says"], 24),
                "yes" if after["first_choice"] else f"no ({row['target_new']})",
                f"{after['first_choice_paraphrases']}/{of}" if of else "–",
            )
        )
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(f"{cell:{width}}" for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]
    return "\n".join(lines)


def _shortened(text: str, most: int, *, end: bool = False) -> str:
    """A text in one line of at most ``most`` characters: its beginning, or its end if ``end`` is true."""
    text = " ".join(text.split()) or "(nothing)"
    if len(text) <= most:
        return text
    return "…" + text[1 - most :] if end else text[: most - 1] + "…"
