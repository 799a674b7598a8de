"""Seconds per phase of a run."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Timer:
    """Adds up wall-clock seconds by phase: ``with timer("targets"): …``."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            if torch.cuda.is_initialized():
                for device in range(torch.cuda.device_count()):
                    if torch.cuda.memory_reserved(device):  # or it would take memory on cards that are not used
                        torch.cuda.synchronize(device)
            self.seconds[phase] += time.perf_counter() - began

    def rounded(self) -> dict[str, float]:
        return {phase: round(seconds, 3) for phase, seconds in self.seconds.items()}
