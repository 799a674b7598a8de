"""Seconds per phase of a run, and how many are left."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from tqdm.auto import tqdm


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


def progress_bar(items: Iterable[Any] | None = None, *, show: bool | None = None, **how: Any) -> tqdm:
    """A progress bar with the time that is left, for what takes more than a second.

    Args:
        items: what to go through; without, the caller moves the bar.
        show: whether to show it; by default in notebooks and on terminals only, and not where ``$TQDM_DISABLE`` is
            set, as it is for notebooks that run unattended: their outputs would keep the bar.
        how: of :class:`tqdm.tqdm`: ``desc``, ``total``, ``unit``, ``leave``.
    """
    hidden = (bool(os.environ.get("TQDM_DISABLE")) or None) if show is None else not show
    return tqdm(items, disable=hidden, delay=1, **how)
