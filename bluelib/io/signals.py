"""Signals that must not arrive in the middle of something."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

HELD = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold back Ctrl-C and SIGTERM inside the block, for C code may take their exception for a fault of its own: torch
    and safetensors say then that a file is damaged. They arrive behind the block. In another thread than the main one
    nothing is held back, because no signal is handled there."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[int] = []
    before = {number: signal.getsignal(number) for number in HELD}
    held = [number for number, handler in before.items() if handler is not None]  # None: not Python's to give back
    for number in held:
        signal.signal(number, lambda which, frame: arrived.append(which))
    try:
        yield
    finally:
        for number in held:
            signal.signal(number, before[number])
        for late in dict.fromkeys(arrived):
            signal.raise_signal(late)
