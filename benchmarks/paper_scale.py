"""What the paper's experiments cost on one GPU: a model of time and memory, not a measurement.

    python benchmarks/paper_scale.py

prints the table of docs/paper-scale.md. Every figure follows from the shapes of a model and the counts below; nothing
was measured on these models. Operations are multiplications and additions, two for each weight and token.
"""

from __future__ import annotations

from dataclasses import dataclass

from bluelib.editing.method import Memory, Size
from bluelib.editing.named import memit
from bluelib.editing.targets import TargetOptions

#: Operations per second that are reached: half of an H100's 67 · 10¹² in float32, 0.4 of its 989 · 10¹² in bfloat16.
SPEED = {"float32": 33e12, "bfloat16": 395e12}
#: Bytes per second of its memory that are reached in generation, of 3.35 · 10¹².
BANDWIDTH = 1.7e12
BYTES = {"float32": 4, "bfloat16": 2}

#: Of an edit: sequences (six context prefixes and the essence prompt), tokens from the subject's last one on in each,
#: positions where logits are read, and loss evaluations.
SEQUENCES, SUFFIX, READS, STEPS = 7, 8, 13, 25
#: Of a record's evaluation: teacher-forced sequences and tokens in each; generated texts and tokens in each.
SCORED, SCORED_TOKENS, GENERATED, GENERATED_TOKENS, GENERATED_TOGETHER = 26, 14, 10, 100, 128
STATISTICS_TOKENS = 10_000_000
EDITS, BATCH = 2000, 100


@dataclass(frozen=True)
class Shape:
    """A model's sizes: weights of a block and of all, of the head, and the layers that are edited."""

    name: str
    layers: int
    d_model: int
    d_mlp: int
    vocabulary: int
    block: float
    total: float
    critical: tuple[int, ...]

    def target_operations(self, layer: int) -> float:
        """One edit's target at a layer: forward and backward through the later blocks, and the head, at each step."""
        blocks = 2 * self.block * (self.layers - 1 - layer) * SEQUENCES * SUFFIX
        head = 2 * self.d_model * self.vocabulary * READS
        return 2 * STEPS * (blocks + head)

    def edit_seconds(self, dtype: str, at: tuple[int, ...]) -> float:
        """One hundred edits with targets at these layers; solving takes about a second a layer and is left out."""
        return BATCH * sum(map(self.target_operations, at)) / SPEED[dtype]

    def statistics_seconds(self, dtype: str) -> float:
        """Forward to the last critical layer, and K Kᵀ of each critical layer in float32."""
        forward = 2 * self.block * (self.critical[-1] + 1) * STATISTICS_TOKENS / SPEED[dtype]
        return forward + len(self.critical) * 2 * self.d_mlp**2 * STATISTICS_TOKENS / SPEED["float32"]

    def evaluate_seconds(self, dtype: str) -> float:
        """All records once: teacher-forced scores, and generation, which reads every weight for each token."""
        scored = 2 * self.total * EDITS * SCORED * SCORED_TOKENS / SPEED[dtype]
        runs = EDITS * GENERATED / GENERATED_TOGETHER * GENERATED_TOKENS
        return scored + runs * self.total * BYTES[dtype] / BANDWIDTH

    def memory(self, dtype: str) -> Memory:
        """As `blue doctor` counts it for MEMIT, without micro-batches."""
        size = Size(self.d_model, self.d_mlp, int(self.total * BYTES[dtype]), BYTES[dtype])
        return memit(self.critical, TargetOptions(), mom2_update_weight=1.0).memory(size, BATCH)

    def device_gb(self, dtype: str) -> float:
        """With 4 GB for a micro-batch."""
        return self.memory(dtype).device / 1e9 + 4

    def host_gb(self) -> float:
        """Solver states of all critical layers, and their second moments while they are prepared."""
        return self.memory("float32").host / 1e9


SHAPES = (
    Shape("GPT2-XL", 48, 1600, 6400, 50257, 30.7e6, 1.56e9, (13, 14, 15, 16, 17)),
    Shape("GPT-J-6B", 28, 4096, 16384, 50400, 201e6, 6.05e9, (3, 4, 5, 6, 7, 8)),
    Shape("Llama3-8B", 32, 4096, 14336, 128256, 218e6, 8.03e9, (4, 5, 6, 7, 8)),
)


def table() -> str:
    """The table in Markdown."""
    columns = ("model", "type", "second moments", "100 edits, plain", "100 edits, BLUE", "a cell", "device", "host")
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for shape in SHAPES:
        for dtype in SPEED:
            plain = shape.edit_seconds(dtype, shape.critical[-1:])
            blue = shape.edit_seconds(dtype, (shape.critical[0], shape.critical[-1]))
            cell = EDITS / BATCH * (plain + blue) / 2 + shape.evaluate_seconds(dtype)
            moments = f"{shape.statistics_seconds(dtype) / 60:.0f} min"
            times = moments, f"{plain:.0f} s", f"{blue:.0f} s", f"{cell / 60:.0f} min"
            memory = f"{shape.device_gb(dtype):.0f} GB", f"{shape.host_gb():.0f} GB"
            lines.append(f"| {' | '.join((shape.name, dtype, *times, *memory))} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
