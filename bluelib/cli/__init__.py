"""The command line: ``blue …``. It is thin: every command calls a library function, and returns what that found, as
plain values for ``--json`` and as text. Each module has the commands of one kind."""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence

from .. import __version__
from . import data, editing, models, reports, runs, studies
from .common import Command

#: In the order in which ``--help`` lists their commands.
GROUPS = (models, data, editing, studies, runs, reports)

STATUS = """exit status: 0: success; 1: the command ran, and its answer is no (an unhealthy model, recall below its bar,
a failed job); 2: the input cannot be used, or something is missing (memory, disk space, the network); 130:
interrupted"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status, see :data:`STATUS`."""
    parser = _parser()
    if not (sys.argv[1:] if argv is None else argv):
        parser.print_help(sys.stderr)
        return 2
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if not sys.stderr.isatty():  # no progress bars in a log; the libraries that draw them are not loaded yet
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("TQDM_DISABLE", "1")
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it reports each of its five tries
    # SIGTERM, with which a service or a cluster ends a process, is handled like Ctrl-C.
    in_main_thread = threading.current_thread() is threading.main_thread()
    terminated = signal.signal(signal.SIGTERM, signal.default_int_handler) if in_main_thread else None
    try:
        answer = arguments.command(arguments)
        text = json.dumps(answer.values, ensure_ascii=False) if arguments.json else answer.text
        print(text, end="\n" if text else "", flush=True)
        return answer.status
    except BrokenPipeError:  # the reader has read enough; Python would complain again when it closes stdout
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print(f"blue: interrupted; {arguments.kept(arguments)}", file=sys.stderr)
        return 130
    except (ValueError, ArithmeticError, OSError, RuntimeError, ImportError) as error:
        print(f"blue: {error}", file=sys.stderr)
        return 2
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # from tokenizers' Rust code, and not an Exception
            raise
        print(
            f"blue: the tokenizers library failed ({error}): the checkpoint's tokenizer.json is damaged, or lacks "
            "tokens; copy it again",
            file=sys.stderr,
        )
        return 2
    finally:
        if terminated is not None:
            signal.signal(signal.SIGTERM, terminated)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="blue", description="Edit facts in language models, and measure the effects.", epilog=STATUS
    )
    parser.add_argument("--version", action="version", version=f"bluelib {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for group in GROUPS:
        for command in vars(group).values():
            if isinstance(command, Command):
                command.add_to(commands)
    return parser
