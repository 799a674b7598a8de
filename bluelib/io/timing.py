"""Seconds per phase of a run, and progress bars with the time that is left."""

from __future__ import annotations

import logging
import os
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from tqdm import tqdm as text_bar
from tqdm.auto import tqdm

log = logging.getLogger(__name__)
#: Seconds between two log lines of a progress bar.
LINES = 30


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
                    if torch.cuda.memory_reserved(device):  # so no memory is taken on unused cards
                        torch.cuda.synchronize(device)
            self.seconds[phase] += time.perf_counter() - began

    def rounded(self) -> dict[str, float]:
        return {phase: round(seconds, 3) for phase, seconds in self.seconds.items()}


def progress_bar(items: Iterable[Any] | None = None, *, show: bool | None = None, **how: Any) -> tqdm:
    """A progress bar with the time that is left, for what takes more than a second.

    Args:
        items: what to go through; without it, the caller moves the bar.
        show: whether to show it. By default it is shown in notebooks and on terminals only, and not if
            ``$TQDM_DISABLE`` is set, as it is for notebooks that run unattended: their outputs would keep the bar.
            There, a bar becomes lines of the log: every half minute, and with ``leave`` at its start and end too.
        how: arguments of :class:`tqdm.tqdm`: ``desc``, ``total``, ``unit``, ``leave``.
    """
    if show is None and os.environ.get("TQDM_DISABLE") and log.isEnabledFor(logging.INFO):
        unit = how.get("unit", "step")
        unit = "B" if unit == "B" else f" {unit}es" if unit.endswith("ch") else f" {unit}s"
        form = f"{{desc}}: {{n_fmt}} of {{total_fmt}}{unit} after {{elapsed}}, {{remaining}} left"
        delay = 0 if how.get("leave", True) else LINES
        return text_bar(items, disable=False, file=_Lines(), mininterval=LINES, delay=delay, bar_format=form, **how)
    hidden = (bool(os.environ.get("TQDM_DISABLE")) or None) if show is None else not show
    return tqdm(items, disable=hidden, delay=1, **how)


class _Lines:
    """A file for a bar outside a terminal: whatever the bar draws becomes a line of the log."""

    def write(self, text: str) -> None:
        if line := text.strip():
            log.info(line)

    def flush(self) -> None:
        return None
