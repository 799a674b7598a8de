"""Hold back signals that must not interrupt a block of code."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

HELD = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold back Ctrl-C and SIGTERM inside the block; they arrive after it.

    C code may take their exception for an error of its own: torch and safetensors then say that a file is damaged.
    Outside the main thread nothing is held back, because no signal is handled there."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[int] = []
    before = {number: signal.getsignal(number) for number in HELD}
    held = [number for number, handler in before.items() if handler is not None]  # None: Python cannot restore it
    for number in held:
        signal.signal(number, lambda which, frame: arrived.append(which))
    try:
        yield
    finally:
        for number in held:
            signal.signal(number, before[number])
        for late in dict.fromkeys(arrived):
            signal.raise_signal(late)
