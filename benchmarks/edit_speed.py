"""How fast targets and whole MEMIT edits are, against the plain reference, on the same requests in one process.

    python -m benchmarks.edit_speed                        # the table of docs/performance.md
    python -m benchmarks.edit_speed --models pocket-llama --batch-sizes 10

Both ways make every optimisation step (no early stop), so that they do the same work. Beside each measured ratio
stands the ratio of counted work: token-blocks, one for each token that runs through one block in one step, of the
plain way over those of this way (which runs every token through every block once, at first). It is what the measured
ratio would be if a token-block cost the same in both; their quotient says how much of it is reached. The plain way's
targets are timed on at most ``--plain-requests`` of the requests, spread evenly over the batch, as its time per request
does not depend on the batch; whole edits on all of them.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import psutil
import torch

from benchmarks.plain import plain_memit, plain_target
from bluelib import Editor, edit_sequence, get_editor, load_dataset, load_model
from bluelib.data.provenance import provenance
from bluelib.editing.second_moments import second_moments
from bluelib.editing.targets import ESSENCE, optimise_targets
from bluelib.io.formats import write_json
from bluelib.models.contexts import context_prefixes
from bluelib.models.model import Model
from bluelib.models.prompts import Request, encode_answer, locate


def counted_work(model: Model, requests: Sequence[Request], layer: int, prefixes: Sequence[str], steps: int) -> float:
    """Token-blocks of the plain way over those of this way, from the definition of both, padding of neither."""
    plain = ours = 0
    for request in requests:
        target = len(encode_answer(model.tokenizer, request.text, request.target))
        places = [locate(model.tokenizer, request.prompt, request.subject, prefix) for prefix in prefixes]
        essence = locate(model.tokenizer, ESSENCE, request.subject)
        rows = [(len(p.ids) + target - 1, p.subject_last) for p in places] + [(len(essence.ids), essence.subject_last)]
        tokens = sum(length for length, _ in rows)
        suffix = sum(length - subject for length, subject in rows)
        plain += steps * tokens * model.n_layers
        ours += tokens * model.n_layers + steps * suffix * (model.n_layers - layer - 1)
    return plain / ours


class Peak(threading.Thread):
    """Samples the process's resident memory every 2 ms; ``.mb`` is the largest increase over the start."""

    def __enter__(self) -> Peak:
        self.start_at, self.top, self.running = psutil.Process().memory_info().rss, 0, True
        self.start()
        return self

    def run(self) -> None:
        process = psutil.Process()
        while self.running:
            self.top = max(self.top, process.memory_info().rss)
            time.sleep(0.002)

    def __exit__(self, *error: object) -> None:
        self.running = False
        self.join()
        self.mb = max(0, self.top - self.start_at) / 2**20


def timed(function: Callable, repeat: int) -> tuple[float, float, object]:
    """The best of ``repeat`` wall-clock times in seconds, the memory it took in MB, and the last result."""
    times, memory = [], []
    for _ in range(repeat):
        gc.collect()
        with Peak() as peak:
            began = time.perf_counter()
            result = function()
            times.append(time.perf_counter() - began)
        memory.append(peak.mb)
    return min(times), max(memory), result


def measure(model: Model, editor: Editor, batch_size: int, plain_requests: int, repeat: int) -> list[dict]:
    """The rows of one model and batch size: targets at the first and last critical layer, and whole edits."""
    records = load_dataset("pocket-counterfact", split="tune", limit=batch_size)
    requests = [record.request for record in records]
    count = min(plain_requests, len(requests))
    sample = [requests[i * len(requests) // count] for i in range(count)]
    prefixes = context_prefixes(model)
    options = replace(editor.targets, early_stop=0.0)
    rows = []
    for layer in (editor.layers[0], editor.layers[-1]):
        ours, memory, found = timed(partial(optimise_targets, model, requests, layer, prefixes, options), repeat)
        plain, plain_memory, expected = timed(partial(plain_targets, model, sample, layer, prefixes, options), 1)
        where = [requests.index(r) for r in sample]
        z, h = torch.stack(expected, 1), found.hidden[:, where]
        cosine = partial(torch.nn.functional.cosine_similarity, dim=0)
        rows.append(
            {
                "what": f"targets at layer {layer}",
                "seconds_per_edit": ours / batch_size,
                "plain_seconds_per_edit": plain / len(sample),
                "counted_ratio": counted_work(model, requests, layer, prefixes, options.steps),
                "least_cosine": cosine(found.values[:, where], z).min().item(),
                "least_cosine_delta": cosine(found.deltas[:, where], z - h).min().item(),
                "memory_mb": memory,
                "plain_memory_mb": plain_memory,
            }
        )
    moments = {layer: m.matrix for layer, m in second_moments(model, editor.layers, corpus=editor.corpus).items()}
    method = replace(editor, targets=options)

    def edit() -> None:
        with model.preserved(editor.layers):
            edit_sequence(model, records, method, batch_size=batch_size, progress=False)

    def edit_plainly() -> None:
        with model.preserved(editor.layers):
            plain_memit(model, requests, editor.layers, prefixes, options, editor.solver.weight, moments)

    ours, memory, _ = timed(edit, repeat)
    plain, plain_memory, _ = timed(edit_plainly, 1)
    rows.append(
        {
            "what": "whole MEMIT edits",
            "seconds_per_edit": ours / batch_size,
            "plain_seconds_per_edit": plain / batch_size,
            "memory_mb": memory,
            "plain_memory_mb": plain_memory,
        }
    )
    for row in rows:
        row |= {
            "model": model.name,
            "batch_size": batch_size,
            "plain_requests": len(sample),
            "ratio": row["plain_seconds_per_edit"] / row["seconds_per_edit"],
        }
        if "counted_ratio" in row:
            row["share_of_counted"] = row["ratio"] / row["counted_ratio"]
    return rows


def plain_targets(model: Model, requests: Sequence[Request], *how) -> list[torch.Tensor]:
    return [plain_target(model, request, *how)[0] for request in requests]


def cost_of_batches(model: Model, editor: Editor, batch_size: int, points: int) -> list[dict]:
    """Seconds of each batch of a sequence: they must not grow."""
    records = load_dataset("pocket-counterfact", split="tune", limit=batch_size * points)
    method = replace(editor, targets=replace(editor.targets, early_stop=0.0))
    stamps: list[float] = []  # at the end of each batch: the first batch, which prepares, is not counted
    with model.preserved(editor.layers):
        edit_sequence(
            model,
            records,
            method,
            batch_size=batch_size,
            progress=False,
            after_batch=lambda number, result: stamps.append(time.perf_counter()),
        )
    return [
        {"model": model.name, "editor": editor.name, "batch": i + 2, "seconds": b - a}
        for i, (a, b) in enumerate(itertools.pairwise(stamps))
    ]


def markdown(rows: Sequence[dict]) -> str:
    lines = [
        "| model | batch | what | s/edit | plain s/edit | ratio | counted | share | least cosine of z, δ | MB, plain |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        counted = f"{r['counted_ratio']:.2f} | {r['share_of_counted']:.0%}" if "counted_ratio" in r else "– | –"
        cosine = f"{r['least_cosine']:.7f}, {r['least_cosine_delta']:.7f}" if "least_cosine" in r else "–"
        lines.append(
            f"| {r['model']} | {r['batch_size']} | {r['what']} | {r['seconds_per_edit']:.4f} | "
            f"{r['plain_seconds_per_edit']:.4f} | {r['ratio']:.1f} | {counted} | {cosine} | "
            f"{r['memory_mb']:.0f}, {r['plain_memory_mb']:.0f} |"
        )
    return "\n".join(lines)


def write(path: Path, model: Model, rows: Sequence[dict], batches: Sequence[dict]) -> None:
    machine = {k: v for k, v in provenance(model, []).items() if k in ("device", "threads", "versions", "git_commit")}
    write_json(path, {"rows": rows, "batches": batches, "provenance": machine}, indent=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["pocket-gpt2", "pocket-gptj", "pocket-llama"])
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 10, 100])
    parser.add_argument("--plain-requests", type=int, default=20)
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--output", type=Path, help="a JSON file for the rows with their provenance")
    arguments = parser.parse_args()
    rows, batches = [], []
    for name in arguments.models:
        model = load_model(name)
        editor = get_editor("memit", model)
        measure(model, editor, 2, 1, 1)  # warm up: statistics, allocator
        for batch_size in arguments.batch_sizes:
            rows += measure(model, editor, batch_size, arguments.plain_requests, arguments.repeat)
            print(markdown(rows[-3:]), flush=True)
        history = get_editor("memit_history", model, mom2_update_weight=editor.solver.weight)
        for method in (editor, history, get_editor("alphaedit", model)):
            batches += cost_of_batches(model, method, 10, 6)
        if arguments.output:  # after each model, so that an interrupted run keeps what it has
            write(arguments.output, model, rows, batches)
    print("\n" + markdown(rows) + "\n\nSeconds of consecutive batches of 10 edits:\n")
    for name, editor_name in dict.fromkeys((b["model"], b["editor"]) for b in batches):
        seconds = [f"{b['seconds']:.2f}" for b in batches if (b["model"], b["editor"]) == (name, editor_name)]
        print(f"{name:14} {editor_name:16} {' '.join(seconds)}")


if __name__ == "__main__":
    main()
