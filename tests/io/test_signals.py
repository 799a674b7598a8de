"""Signals are held back while a file is read, and not lost."""

from __future__ import annotations

import signal
import threading

import pytest
import torch

from bluelib.io.signals import uninterrupted
from bluelib.io.tensors import load_tensors, save_tensors


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_arrives_behind_the_block(number):
    before = signal.signal(number, signal.default_int_handler)
    try:
        reached = False
        with pytest.raises(KeyboardInterrupt):
            with uninterrupted():
                signal.raise_signal(number)
                signal.raise_signal(number)
                reached = True
        assert reached and signal.getsignal(number) is signal.default_int_handler
    finally:
        signal.signal(number, before)


def test_an_error_in_the_block_keeps_the_handlers():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(ValueError, match="own"):
        with uninterrupted():
            raise ValueError("own")
    assert signal.getsignal(signal.SIGINT) is before


def test_another_thread_reads_as_it_is():
    seen: list[bool] = []

    def read() -> None:
        with uninterrupted():
            seen.append(True)

    thread = threading.Thread(target=read)
    thread.start()
    thread.join()
    assert seen == [True]


def test_an_interrupted_reading_is_no_damage(tmp_path, monkeypatch):
    """As where C code takes the exception for a fault of the file."""
    path = tmp_path / "x.safetensors"
    save_tensors(path, {"x": torch.ones(3)})

    class Interrupting:
        def __init__(self, *args):
            self.file = safe_open(*args)

        def __enter__(self):
            file = self.file.__enter__()
            try:
                signal.raise_signal(signal.SIGINT)
            except KeyboardInterrupt:
                raise RuntimeError("could not determine the shape") from None
            return file

        def __exit__(self, *args):
            return self.file.__exit__(*args)

    from safetensors import safe_open

    monkeypatch.setattr("safetensors.safe_open", Interrupting)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    try:
        with pytest.raises(KeyboardInterrupt):
            load_tensors(path)
    finally:
        signal.signal(signal.SIGINT, before)
    monkeypatch.undo()
    assert torch.equal(load_tensors(path)[0]["x"], torch.ones(3))
