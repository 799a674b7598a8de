"""How fast targets, whole edits and second moments are, against a plain reference, on the same requests in one process.

    python -m benchmarks.edit_speed                        # the tables of docs/performance.md
    python -m benchmarks.edit_speed --models pocket-llama --batch-sizes 10
    python -m benchmarks.edit_speed --models smollm2-135m --dataset counterfact.json

*Targets.* This library, with matrix products in the model's precision and in bfloat16, against the plain reference
(:mod:`benchmarks.plain`). Both make every optimisation step (no early stop), so that they do the same work. Beside each
measured ratio stands the ratio of counted work, the multiplications in matrix products of the plain way over those of
this way. It is what the measured ratio would be if one cost the same in both; their quotient says how much of it is
reached. The reference is timed on at most ``--plain-requests`` of the requests, spread evenly over the batch, as its
time per request does not depend on the batch.

*Whole edits.* As the editors are used, early stop and all: seconds, and the ratio to MEMIT's.

*Second moments.* Tokens a second, against what their counted matrix products would take at the rate that this
machine's own matrix product reaches.
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

from benchmarks.common import empty_cache, machine
from benchmarks.plain import plain_target
from bluelib import Editor, edit_sequence, get_editor, load_dataset, load_model
from bluelib.data.records import Record
from bluelib.editing.matmuls import MATMULS
from bluelib.editing.targets import ESSENCE, TargetOptions, optimise_targets
from bluelib.io.formats import write_json
from bluelib.models.model import Model
from bluelib.models.prompts import Request, encode_answer, locate

POCKET = ("pocket-gpt2", "pocket-gptj", "pocket-llama")
EDITORS = ("memit", "memit_blue", "memit_fe", "memit_history", "alphaedit")


def counted_work(model: Model, requests: Sequence[Request], layer: int, prefixes: Sequence[str], steps: int) -> float:
    """Multiplications in matrix products of the plain way over those of this way, from the definition of both, padding
    of neither, attention's own left out. What the requests' rows have in common is counted for each of them."""
    block = sum(p.numel() for p in model.blocks[0].parameters() if p.ndim == 2)
    head = model.head.weight.numel()
    later = model.n_layers - layer - 1
    plain = ours = 0
    for request in requests:
        target = len(encode_answer(model.tokenizer, request.text, request.target))
        places = [locate(model.tokenizer, request.prompt, request.subject, prefix) for prefix in prefixes]
        essence = locate(model.tokenizer, ESSENCE, request.subject)
        rows = [(len(p.ids) + target - 1, p.subject_last) for p in places] + [(len(essence.ids), essence.subject_last)]
        tokens = sum(length for length, _ in rows)
        suffix = sum(length - subject for length, subject in rows)
        reads = len(places) * target + 1
        plain += steps * tokens * (model.n_layers * block + 2 * head)
        first = tokens * (layer + 1) + (tokens - suffix) * later
        ours += (first + steps * suffix * later) * block + steps * reads * head
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


def targets(
    model: Model,
    editor: Editor,
    records: Sequence[Record],
    batch_size: int,
    plain_requests: int,
    repeat: int,
    steps: int | None,
) -> list[dict]:
    """At the first and the last critical layer, with each kind of matrix product: of one batch, or of as many as hold
    the requests of the plain way."""
    requests = [record.request for record in records[: max(batch_size, plain_requests)]]
    batches = [requests[i : i + batch_size] for i in range(0, len(requests), batch_size)]
    count = min(plain_requests, len(requests))
    sample = [i * len(requests) // count for i in range(count)]
    prefixes = editor.prefixes(model)
    options = replace(editor.targets, early_stop=0.0, steps=steps or editor.targets.steps)
    cosine = partial(torch.nn.functional.cosine_similarity, dim=0)
    rows = []
    for layer in (editor.layers[0], editor.layers[-1]):
        plain, plain_memory, expected = timed(
            partial(_plain_targets, model, [requests[i] for i in sample], layer, prefixes, options), 1
        )
        z = torch.stack(expected, 1)
        for kind in MATMULS:
            how = replace(options, matmuls=kind)
            seconds, memory, parts = timed(
                lambda how=how, layer=layer: [optimise_targets(model, b, layer, prefixes, how) for b in batches], repeat
            )
            values, hidden = torch.cat([p.values for p in parts], 1), torch.cat([p.hidden for p in parts], 1)
            each, plain_each = seconds / len(requests), plain / len(sample)
            counted = counted_work(model, requests, layer, prefixes, options.steps)
            rows.append(
                {
                    "model": model.name,
                    "batch_size": batch_size,
                    "layer": layer,
                    "matmuls": kind,
                    "steps": options.steps,
                    "seconds_per_edit": each,
                    "plain_seconds_per_edit": plain_each,
                    "plain_requests": len(sample),
                    "ratio": plain_each / each,
                    "counted_ratio": counted,
                    "share_of_counted": plain_each / each / counted,
                    "least_cosine": cosine(values[:, sample], z).min().item(),
                    "least_cosine_delta": cosine((values - hidden)[:, sample], z - hidden[:, sample]).min().item(),
                    "memory_mb": memory,
                    "plain_memory_mb": plain_memory,
                }
            )
            print(targets_table(rows[-1:]).splitlines()[-1], flush=True)
    return rows


def _plain_targets(
    model: Model, requests: Sequence[Request], layer: int, prefixes: Sequence[str], options: TargetOptions
) -> list[torch.Tensor]:
    return [plain_target(model, request, layer, prefixes, options)[0] for request in requests]


def edits(model: Model, records: Sequence[Record], batch_size: int, repeat: int) -> list[dict]:
    """Whole edits of every editor, as configured; what is measured once a model is there already."""
    rows: list[dict] = []
    for name in EDITORS:
        editor = get_editor(name, model)
        editor.prepare(model)

        def edit(editor: Editor = editor) -> dict[str, float]:
            with model.preserved(editor.layers):
                return edit_sequence(model, records, editor, batch_size=batch_size, progress=False).seconds

        seconds, _, phases = timed(edit, repeat)
        rows.append(
            {
                "model": model.name,
                "editor": name,
                "edits": len(records),
                "batch_size": batch_size,
                "seconds": seconds,
                "to_memit": seconds / (rows[0]["seconds"] if rows else seconds),
                "phases": phases,
            }
        )
        print(edits_table(rows[-1:]).splitlines()[-1], flush=True)
    return rows


def matmul_rate() -> float:
    """Floating-point operations a second of a matrix product of 2048 × 2048 in float32, on all threads."""
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    return 2 * 2048**3 / timed(lambda: a @ b, 10)[0]


def moments(model: Model, editor: Editor, tokens: int) -> dict:
    """Second moments of the critical layers, measured anew."""
    d_model, d_mlp = model.weight(0).shape
    blocks = model.blocks[: editor.layers[-1] + 1]
    in_blocks = sum(p.numel() for block in blocks for p in block.parameters() if p.ndim == 2) - d_model * d_mlp
    counted = 2 * tokens * (in_blocks + len(editor.layers) * d_mlp**2)
    with empty_cache():
        seconds, _, _ = timed(partial(editor.second_moments, model, editor.layers, tokens), 1)
    rate = matmul_rate()
    return {
        "model": model.name,
        "layers": len(editor.layers),
        "tokens": tokens,
        "seconds": seconds,
        "counted_flop": counted,
        "matmul_flop_per_second": rate,
        "share_of_limit": counted / rate / seconds,
    }


def cost_of_batches(model: Model, editor: Editor, records: Sequence[Record]) -> list[dict]:
    """Seconds of each of a sequence's six batches but the first: they must not grow."""
    method = replace(editor, targets=replace(editor.targets, early_stop=0.0))
    stamps: list[float] = []  # at the end of each batch: the first batch, which prepares, is not counted
    with model.preserved(editor.layers):
        edit_sequence(
            model,
            records,
            method,
            batch_size=len(records) // 6,
            progress=False,
            after_batch=lambda number, result: stamps.append(time.perf_counter()),
        )
    return [
        {"model": model.name, "editor": editor.name, "batch": i + 2, "seconds": b - a}
        for i, (a, b) in enumerate(itertools.pairwise(stamps))
    ]


def _table(columns: dict[str, Callable[[dict], str]], rows: Sequence[dict]) -> str:
    head = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    return "\n".join([*head, *(f"| {' | '.join(cell(row) for cell in columns.values())} |" for row in rows)])


def targets_table(rows: Sequence[dict]) -> str:
    return _table(
        {
            "model": lambda r: r["model"],
            "batch": lambda r: str(r["batch_size"]),
            "layer": lambda r: str(r["layer"]),
            "products": lambda r: "float32" if r["matmuls"] == "model" else r["matmuls"],
            "s/edit": lambda r: f"{r['seconds_per_edit']:.3f}",
            "plain s/edit": lambda r: f"{r['plain_seconds_per_edit']:.3f}",
            "ratio": lambda r: f"**{r['ratio']:.1f}**",
            "counted": lambda r: f"{r['counted_ratio']:.1f}",
            "share": lambda r: f"{r['share_of_counted']:.0%}",
            "least cosine of δ": lambda r: f"{r['least_cosine_delta']:.6f}",
        },
        rows,
    )


def edits_table(rows: Sequence[dict]) -> str:
    return _table(
        {
            "model": lambda r: r["model"],
            "edits": lambda r: f"{r['edits']} in batches of {r['batch_size']}",
            "editor": lambda r: r["editor"],
            "seconds": lambda r: f"{r['seconds']:.1f}",
            "to MEMIT": lambda r: f"{r['to_memit']:.2f}",
            "of it": lambda r: ", ".join(f"{k} {v:.1f}" for k, v in r["phases"].items() if v >= 0.05),
        },
        rows,
    )


def moments_table(rows: Sequence[dict]) -> str:
    return _table(
        {
            "model": lambda r: r["model"],
            "layers": lambda r: str(r["layers"]),
            "tokens": lambda r: f"{r['tokens']:,}",
            "seconds": lambda r: f"{r['seconds']:.1f}",
            "tokens a second": lambda r: f"{r['tokens'] / r['seconds']:,.0f}",
            "share of the limit": lambda r: f"{r['share_of_limit']:.0%}",
        },
        rows,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["smollm2-135m", *POCKET])
    parser.add_argument("--dataset", help="records (default: facts; of a pocket model, those of its world)")
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 20])
    parser.add_argument("--edits", type=int, default=40, help="whole edits of each editor (default: 40)")
    parser.add_argument("--sequence", type=int, default=60, help="edits of a sequence of six batches (default: 60)")
    parser.add_argument("--tokens", type=int, default=200_000, help="of second moments (default: 200,000)")
    parser.add_argument("--steps", type=int, help="of targets (default: the model's setting)")
    parser.add_argument("--plain-requests", type=int, default=4)
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--output", type=Path, help="a JSON file for the rows with their provenance")
    arguments = parser.parse_args()
    found: dict[str, list[dict]] = {"targets": [], "edits": [], "moments": [], "batches": []}
    for name in arguments.models:
        model = load_model(name)
        pocket = name in POCKET
        dataset = arguments.dataset or ("pocket-counterfact" if pocket else "facts")
        split = {"split": "tune"} if dataset == "pocket-counterfact" else {}
        records = load_dataset(dataset, limit=max(*arguments.batch_sizes, arguments.edits, arguments.sequence), **split)
        editor = get_editor("memit", model)
        targets(model, editor, records, 2, 1, 1, 2)  # warm up: text, allocator
        for batch_size in arguments.batch_sizes:
            found["targets"] += targets(
                model, editor, records, batch_size, arguments.plain_requests, arguments.repeat, arguments.steps
            )
        found["edits"] += edits(model, records[: arguments.edits], min(20, arguments.edits), arguments.repeat)
        found["moments"].append(moments(model, editor, arguments.tokens))
        if pocket:
            history = get_editor("memit_history", model, mom2_update_weight=editor.solver.weight)
            for method in (editor, history, get_editor("alphaedit", model)):
                found["batches"] += cost_of_batches(model, method, records[: arguments.sequence])
        if arguments.output:  # after each model, so that an interrupted run keeps what it has
            write_json(
                arguments.output, {**found, "dataset": Path(dataset).name, "provenance": machine(model)}, indent=1
            )
    print("\n" + targets_table(found["targets"]) + "\n\n" + edits_table(found["edits"]))
    print("\n" + moments_table(found["moments"]) + "\n\nSeconds of consecutive batches:\n")
    for name, editor_name in dict.fromkeys((b["model"], b["editor"]) for b in found["batches"]):
        seconds = [f"{b['seconds']:.2f}" for b in found["batches"] if (b["model"], b["editor"]) == (name, editor_name)]
        print(f"{name:14} {editor_name:16} {' '.join(seconds)}")


if __name__ == "__main__":
    main()
