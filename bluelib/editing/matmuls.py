"""Matrix products in bfloat16 with sums in float32, for a model in float32: faster on processors that support them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

MATMULS = ("model", "bfloat16")


def matmuls(kind: str) -> AbstractContextManager:
    """A context in which linear layers multiply in the model's own precision (``model``) or in ``bfloat16``.

    With ``bfloat16``, each linear layer rounds its input, its weights and, in the backward pass, the gradient to
    bfloat16; products are summed in float32 and rounded once. Everything else (norms, attention, residual stream, loss)
    stays in float32. A layer that is not in float32 is left as it is. Each context rounds a weight only once.
    """
    return _Bfloat16() if kind == "bfloat16" else nullcontext()


class _Bfloat16(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.rounded = WeakTensorKeyDictionary()

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func is functional.linear:
            x, weight, bias = (*args, kwargs.get("bias"))[:3]
            if weight.dtype == torch.float32:
                y = _Product.apply(x, self._low(weight).T)
                return y if bias is None else y + bias
        elif func is torch.addmm and not kwargs and args[2].dtype == torch.float32:  # GPT-2's Conv1D
            bias, x, weight = args
            return _Product.apply(x, self._low(weight)) + bias
        return func(*args, **kwargs)

    def _low(self, weight: Tensor) -> Tensor:
        if weight not in self.rounded:
            self.rounded[weight] = weight.detach().bfloat16()
        return self.rounded[weight]


class _Product(torch.autograd.Function):
    """x W, ``(…, out)``, for x ``(…, in)`` in float32 and W ``(in, out)`` in bfloat16. W gets no gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.weight = weight
        return (x.bfloat16() @ weight).float()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return (gradient.bfloat16() @ ctx.weight.T).float(), None
