"""Two graphics cards that are not there: tensors that say where they live, compute on the CPU, and refuse to mix.

A :class:`CardTensor` wraps a tensor of the CPU. It says that it lives on a card, and what is computed from it lives
there too. As with CUDA, an operation on tensors of two cards, or of a card and the CPU, raises; excepted are what CUDA
excepts: copying, zero-dimensional tensors of the CPU, and indexing by tensors of the CPU. To torch's own C++ code it
is a tensor of the CPU, so the same kernels run, autograd included, and numbers are those of the CPU bit for bit.

Inside :class:`Cards`, ``device="cuda:1"`` and ``.to("cuda:1")`` mean such a card.
"""

from __future__ import annotations

from typing import Any
from unittest import mock

import torch
from accelerate import dispatch_model
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from bluelib.models.model import Model

CPU = torch.device("cpu")
CARDS = (torch.device("cuda:0"), torch.device("cuda:1"))


class CardTensor(Tensor):
    """A tensor on a virtual card; ``inner`` is the tensor of the CPU that has its numbers."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: Tensor, card: torch.device | None = None, requires_grad: bool = False):
        if isinstance(inner, CardTensor):  # as accelerate makes a parameter's successor
            inner, card = inner.inner, card or inner.card
        made = Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            requires_grad=requires_grad,
        )
        made.inner, made.card = inner.detach(), card
        return made

    @property
    def device(self) -> torch.device:
        return self.card

    @property
    def is_cuda(self) -> bool:
        return True

    def get_device(self) -> int:
        return self.card.index

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    def numpy(self, *args: Any, **kwargs: Any):
        raise TypeError(f"can't convert {self.card} device type tensor to numpy. Use Tensor.cpu()")

    __array__ = numpy

    def tolist(self) -> list:
        return self.inner.tolist()

    def __repr__(self, **_: Any) -> str:
        return f"CardTensor({self.inner!r}, card={str(self.card)!r})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        leaves = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        card = _common(func, args, leaves)
        wrappers = {id(leaf.inner): leaf for leaf in leaves if isinstance(leaf, CardTensor)}
        result = func(*tree_map(_inner, args), **tree_map(_inner, kwargs))
        if func is torch.ops.aten.copy_.default and not isinstance(args[0], CardTensor):
            return args[0]

        def wrap(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            changed = wrappers.get(id(value))  # in place: the very tensor
            return CardTensor(value, card) if changed is None else changed

        return tree_map(wrap, result)


#: Operations whose second argument is a list of indices.
_INDEXING = {
    getattr(torch.ops.aten, name) for name in ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index")
}


def _inner(value: Any) -> Any:
    return value.inner if isinstance(value, CardTensor) else value


def _common(func, args: tuple, leaves: list[Tensor]) -> torch.device:
    """The card that an operation runs on.

    Raises:
        RuntimeError: if its tensors do not live on one.
    """
    packet = func.overloadpacket
    if packet is torch.ops.aten.copy_:
        return args[0].device
    indices = {id(i) for i in args[1] if i is not None} if packet in _INDEXING else set()
    places = []
    for leaf in leaves:
        free = not isinstance(leaf, CardTensor) and (leaf.ndim == 0 or id(leaf) in indices)
        if not free and leaf.device not in places:
            places.append(leaf.device)
    if len(places) != 1:
        found = ", ".join(map(str, places))
        raise RuntimeError(f"Expected all tensors to be on the same device, but found {found} in {func}")
    return places[0]


class _Send(torch.autograd.Function):
    """A copy on another device; the gradient goes the way back."""

    @staticmethod
    def forward(ctx, tensor: Tensor, device: torch.device) -> Tensor:
        ctx.source = tensor.device
        return _placed(tensor, device)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        return _placed(gradient, ctx.source), None


def _placed(tensor: Tensor, device: torch.device) -> Tensor:
    copy = _inner(tensor).detach().clone()
    return copy if device == CPU else CardTensor(copy, device)


def _send(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor if tensor.device == device else _Send.apply(tensor, device)


def _device(value: Any) -> torch.device | None:
    if value is None:
        return None
    device = torch.device(f"cuda:{value}") if isinstance(value, int) else torch.device(value)
    return torch.device("cuda:0") if device.type == "cuda" and device.index is None else device


def _to(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    if args and isinstance(args[0], Tensor):
        args = (args[0].device, args[0].dtype, *args[1:])
    if args and isinstance(args[0], int):
        args = (_device(args[0]), *args[1:])
    copy = kwargs.pop("copy", False)
    device, dtype, _, _ = torch._C._nn._parse_to(*args, **kwargs)
    if device is not None:
        tensor = _send(tensor, _device(device))
    return Tensor.to(tensor, dtype=dtype or tensor.dtype, copy=copy)


#: Of a subclass torch computes vectors along with these, in case of a gradient, and that rounds the values otherwise.
_VALUES_ALONE = (torch.linalg.eigvalsh, torch.linalg.svdvals, torch.linalg.matrix_norm)


class Cards(TorchFunctionMode):
    """Inside the block, cuda:0 and cuda:1 are there, each with ``memory`` bytes, none of them in use."""

    def __init__(self, memory: int = 10**12):
        super().__init__()
        self.state = mock.patch.multiple(
            torch.cuda,
            mem_get_info=lambda card: (memory, memory),
            memory_reserved=lambda card: 0,
            memory_allocated=lambda card: 0,
        )

    def __enter__(self) -> Cards:
        self.state.start()
        # a parameter that is moved cannot stay the same tensor: it gets another type
        self.before = torch.__future__.get_overwrite_module_params_on_conversion()
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        torch.__future__.set_overwrite_module_params_on_conversion(self.before)
        self.state.stop()
        super().__exit__(*error)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        involved = isinstance(args[0], CardTensor) if args else False
        if func is Tensor.to and (involved or self._names_card(args[1:], kwargs)):
            with torch._C.DisableTorchFunction():
                return _to(*args, **kwargs)
        if func is Tensor.cpu and involved:
            return _send(args[0], CPU)
        if func is Tensor.cuda:
            return _send(args[0], _device(args[1] if len(args) > 1 else kwargs.get("device", 0)))
        if func in _VALUES_ALONE and involved and not args[0].requires_grad:
            return CardTensor(func(args[0].inner, *args[1:], **kwargs), args[0].card)
        device = _device(kwargs.get("device"))
        if device is not None and (device.type == "cuda" or involved):
            if device.type == "cuda" and device not in CARDS:
                raise RuntimeError(f"CUDA error: invalid device ordinal ({device})")
            kwargs["device"] = None if involved else CPU
            made = func(*args, **kwargs)
            if made.device == device:
                return made
            wanted, made = made.requires_grad, made.detach()
            return _placed(made, device).requires_grad_(wanted)
        return func(*args, **kwargs)

    @staticmethod
    def _names_card(args: tuple, kwargs: dict) -> bool:
        values = [*args[:1], kwargs.get("device"), kwargs.get("other")]
        return any(
            isinstance(v, CardTensor)
            or (isinstance(v, int) and not isinstance(v, bool))
            or (isinstance(v, str | torch.device) and torch.device(v).type == "cuda")
            for v in values
        )


def spread(model: Model) -> Model:
    """Spread a model of the CPU over the two cards by accelerate; the model itself is changed.

    Embeddings and the first half of the blocks go to the first card, the rest to the second; a head that is tied to
    the embeddings stays with them, as in transformers' own maps.
    """
    blocks, tied = model.adapter.blocks, model.head.weight is model.hf_model.get_input_embeddings().weight
    places = {
        name: "cuda:0"
        for name, module in model.hf_model.named_modules()
        if not name.startswith(f"{blocks}.") and not list(module.children())
    }
    places |= {f"{blocks}.{layer}": f"cuda:{2 * layer // model.n_layers}" for layer in range(model.n_layers)}
    places |= {model.adapter.norm: "cuda:1", model.adapter.head: "cuda:0" if tied else "cuda:1"}
    dispatch_model(model.hf_model, places, main_device="cuda:0", skip_keys=model.hf_model._skip_keys_device_placement)
    return model
