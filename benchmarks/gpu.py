"""What the library costs on a GPU, measured in minutes: the shapes of the paper's models with random weights.

    python -m benchmarks.gpu                                    # all of it, on the GPU
    python -m benchmarks.gpu --shapes llama3-8b --parts targets edits
    python -m benchmarks.gpu --device cpu --small               # small shapes, to see that it runs

No weights are read or written: a model of the right shape is made in memory, in bfloat16, and edited with records of
the pocket world. All optimisation steps are made (no early stop), so that the figures do not depend on what a model
knows. Parts: ``moments`` (second moments of the critical layers), ``targets`` (of a batch, at the first and at the last
critical layer), ``edits`` (whole, second moments there already), ``small-model`` (SmolLM2-135M-Instruct, real weights,
a sequence of batches). Rows are printed as they are made, so that what was measured is there if time runs out.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPTJConfig, LlamaConfig, PreTrainedConfig

from benchmarks.common import empty_cache, machine
from bluelib import edit_sequence, get_editor, load_dataset, load_model
from bluelib.editing.editor import Editor, blue, fe
from bluelib.editing.named import alphaedit, memit
from bluelib.editing.second_moments import second_moments
from bluelib.editing.targets import TargetOptions, optimise_targets
from bluelib.io.formats import write_json
from bluelib.models.contexts import OPENINGS
from bluelib.models.model import Model
from bluelib.pocket.tokenizer import build_tokenizer

PARTS = ("moments", "targets", "edits", "small-model")
CORPUS, TOKENS = "pocket", 40_000
#: As published for Llama 3; random weights have no null space at 0.02, so that a median eigenvalue takes its place.
STEPS, WEIGHT, L2 = 25, 15_000, 10


@dataclass(frozen=True)
class Shape:
    """A model's configuration, and its critical layers."""

    config: PreTrainedConfig
    small: PreTrainedConfig
    critical: tuple[int, ...]
    bos: bool = False


def _llama(hidden: int, mlp: int, layers: int, heads: int, vocabulary: int) -> PreTrainedConfig:
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // 4,
        rope_theta=500_000.0,
        tie_word_embeddings=False,
    )


SHAPES = {
    "llama3-8b": Shape(
        _llama(4096, 14_336, 32, 32, 128_256), _llama(64, 128, 10, 4, 4096), critical=(4, 5, 6, 7, 8), bos=True
    ),
    "gpt-j-6b": Shape(
        GPTJConfig(vocab_size=50_400, n_positions=2048, n_embd=4096, n_layer=28, n_head=16, rotary_dim=64),
        GPTJConfig(vocab_size=4096, n_positions=512, n_embd=64, n_layer=10, n_head=4, rotary_dim=8),
        critical=(3, 4, 5, 6, 7, 8),
    ),
    "gpt2-xl": Shape(
        GPT2Config(vocab_size=50_257, n_positions=1024, n_embd=1600, n_layer=48, n_head=25),
        GPT2Config(vocab_size=4096, n_positions=512, n_embd=64, n_layer=18, n_head=4),
        critical=(13, 14, 15, 16, 17),
    ),
}


def build(name: str, device: str, dtype: torch.dtype, *, small: bool) -> Model:
    """A model of this shape with random weights, made where it will run."""
    shape = SHAPES[name]
    tokenizer = build_tokenizer(bos=shape.bos)
    torch.manual_seed(0)
    with torch.device(device):
        lm = AutoModelForCausalLM.from_config(shape.small if small else shape.config, dtype=dtype)
    lm.eval().requires_grad_(False)
    return Model.of(f"{name}, random", lm, tokenizer, revision=f"random-{name}{'-small' if small else ''}")


class Meter:
    """Seconds and peak memory of what it is called with, and rows of them."""

    def __init__(self, device: str):
        self.on_gpu, self.rows = device.startswith("cuda"), []

    def __call__(self, model: str, what: str, function: Callable[[], Any], **more: Any) -> Any:
        gc.collect()
        if self.on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            torch.cuda.synchronize()
        began = time.perf_counter()
        found = function()
        if self.on_gpu:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - began
        peak = torch.cuda.max_memory_allocated() / 1e9 if self.on_gpu else None
        phases = getattr(found, "seconds", {})
        self.rows.append({"model": model, "what": what, "seconds": seconds, "peak_gb": peak, "phases": phases, **more})
        print(line(self.rows[-1]), flush=True)
        return found


HEADER = "| model | what | seconds | peak memory | of it |\n|---|---|---|---|---|"


def line(row: dict[str, Any]) -> str:
    peak = "–" if row["peak_gb"] is None else f"{row['peak_gb']:.1f} GB"
    phases = ", ".join(f"{phase} {seconds:.1f}" for phase, seconds in row["phases"].items() if seconds >= 0.05)
    return f"| {row['model']} | {row['what']} | {row['seconds']:.1f} | {peak} | {phases} |"


def editors(model: Model, layers: tuple[int, ...], moments: dict[int, torch.Tensor]) -> Iterator[Editor]:
    """MEMIT, its BLUE and FE, and AlphaEdit."""
    targets = TargetOptions(steps=STEPS, learning_rate=0.1, early_stop=0.0)
    plain = replace(memit(layers, targets, mom2_update_weight=WEIGHT), corpus=CORPUS, tokens=TOKENS)
    yield from (plain, blue(plain), fe(plain))
    first = moments[layers[0]].to(model.device, torch.float32)
    threshold = torch.linalg.eigvalsh(first).median().item()
    null = alphaedit(layers, targets, nullspace_threshold=max(threshold, 1e-12), l2=L2)
    yield replace(null, corpus=CORPUS, tokens=TOKENS)


def measure_shape(name: str, arguments: argparse.Namespace, meter: Meter) -> None:
    began = time.perf_counter()
    dtype = torch.bfloat16 if arguments.device.startswith("cuda") else torch.float32
    model = build(name, arguments.device, dtype, small=arguments.small)
    layers = SHAPES[name].critical
    print(f"({model.name}: made in {time.perf_counter() - began:.1f} s)", flush=True)
    records = load_dataset("pocket-counterfact", split="report", limit=arguments.edits)
    requests = [record.request for record in records]
    options = TargetOptions(steps=STEPS, learning_rate=0.1, early_stop=0.0)

    def moments() -> dict[int, torch.Tensor]:
        found = second_moments(model, layers, corpus=CORPUS, tokens=arguments.tokens)
        return {layer: moment.matrix for layer, moment in found.items()}

    found = {}
    if "moments" in arguments.parts or "edits" in arguments.parts:
        found = meter(model.name, f"second moments of {len(layers)} layers, {arguments.tokens:,} tokens", moments)
    if "targets" in arguments.parts:
        prefixes = ("", *(f"{words} " for words in OPENINGS))
        optimise_targets(model, requests[:2], layers[0], prefixes, replace(options, steps=2))  # warm up
        for layer in (layers[0], layers[-1]):
            for count in (1, len(requests)):
                what = f"{count} target{'s' * (count > 1)} at layer {layer}, {STEPS} steps"
                meter(
                    model.name,
                    what,
                    lambda count=count, layer=layer: optimise_targets(
                        model, requests[:count], layer, prefixes, options
                    ),
                )
    if "edits" in arguments.parts:
        for editor in editors(model, layers, found):
            editor = replace(editor, tokens=arguments.tokens)

            def edit(editor: Editor = editor) -> Any:
                return edit_sequence(model, records, editor, batch_size=len(records), progress=False)

            run = meter(model.name, f"{len(records)} edits, {editor.name}", edit)
            run.revert()


def measure_small_model(arguments: argparse.Namespace, meter: Meter) -> None:
    """400 edits of real facts in batches of 50, without and with the scores after the last batch."""
    from bluelib import evaluate

    model = load_model("smollm2-135m", device=arguments.device)
    edits, batch = (8, 4) if arguments.small else (400, 50)
    records = load_dataset("facts", limit=edits)
    for name in ("memit", "memit_blue"):
        editor = get_editor(name, model)
        editor.prepare(model)  # second moments and prefixes, measured once a model

        def edit(editor: Any = editor) -> Any:
            return edit_sequence(model, records, editor, batch_size=batch, on_conflict="keep", progress=False)

        run = meter(model.name, f"{edits} edits in batches of {batch}, {name}", edit)
        meter(model.name, f"scores of {edits} records", lambda: evaluate(model, records, generate=False))
        run.revert()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="*", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--edits", type=int, default=100, help="edits of a batch (default: 100)")
    parser.add_argument("--tokens", type=int, default=TOKENS, help=f"of second moments (default: {TOKENS:,})")
    parser.add_argument("--small", action="store_true", help="small shapes, to see that it runs")
    parser.add_argument("--output", type=Path, help="a JSON file for the rows with their provenance")
    arguments = parser.parse_args()
    meter = Meter(arguments.device)
    print(HEADER, flush=True)
    for name in arguments.shapes if set(arguments.parts) - {"small-model"} else ():
        with empty_cache():  # of random weights nothing is kept
            measure_shape(name, arguments, meter)
    if "small-model" in arguments.parts:
        measure_small_model(arguments, meter)
    if arguments.output:
        gpu = torch.cuda.get_device_name() if meter.on_gpu else None
        origin = machine(load_model("pocket-llama", device=arguments.device))
        write_json(arguments.output, {"rows": meter.rows, "provenance": {**origin, "gpu": gpu}}, indent=1)


if __name__ == "__main__":
    main()
