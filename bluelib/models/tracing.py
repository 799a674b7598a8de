"""Read or change what flows through a model's modules, inside a ``with`` block and nowhere else."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


class _Stop(Exception):
    """Raised by a hook when the last module of interest has run."""


@contextmanager
def trace(
    inputs: Mapping[Any, nn.Module] | None = None,
    outputs: Mapping[Any, nn.Module] | None = None,
    edit: Callable[[Any, Tensor], Tensor] | None = None,
    stop: bool = False,
) -> Iterator[dict[Any, Tensor]]:
    """Capture module inputs and outputs under the keys given; optionally change outputs on the way.

    Args:
        inputs: modules whose first argument is captured.
        outputs: modules whose output is captured. Blocks of some architectures return a tuple; its first item is
            what is captured and edited.
        edit: called with ``(key, hidden)`` for each module of ``outputs``; its result takes the output's place.
        stop: end the forward pass once everything has been captured. The model's call then raises inside the
            ``with`` block and is swallowed at its end, so it must be the block's last statement.

    Yields:
        A dictionary that fills up with the captured tensors while the model runs.

    All hooks are removed when the block ends, also after an error.
    """
    inputs, outputs = inputs or {}, outputs or {}
    captured: dict[Any, Tensor] = {}
    wanted = len(inputs) + len(outputs)

    def done() -> None:
        if stop and len(captured) == wanted:
            raise _Stop

    def reader(key):
        def hook(module, args):
            captured[key] = args[0]
            done()

        return hook

    def writer(key):
        def hook(module, args, output):
            hidden = output[0] if isinstance(output, tuple) else output
            changed = hidden if edit is None else edit(key, hidden)
            captured[key] = changed
            done()
            if changed is not hidden:
                return (changed, *output[1:]) if isinstance(output, tuple) else changed

        return hook

    handles = [module.register_forward_pre_hook(reader(key)) for key, module in inputs.items()]
    handles += [module.register_forward_hook(writer(key)) for key, module in outputs.items()]
    try:
        yield captured
    except _Stop:
        pass
    finally:
        for handle in handles:
            handle.remove()
