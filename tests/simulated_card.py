"""A card without a card: tensors that claim to lie on one, and complain of mixed devices, as a real card's do.

PyTorch's FakeTensorMode knows shapes and devices; here each fake tensor also carries its value, computed on the CPU. So
code that asks a tensor what it holds (`if mask.any()`, `loss.item()`) goes on as it does on a card, and results can be
compared with the CPU's.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map_only

from dreamvideo.models.diffusion import SCHEDULE

aten = torch.ops.aten
READS = (aten._local_scalar_dense.default, aten.equal.default)
SHAPED_BY_VALUES = (aten._unique2.default,)
JOINS = (aten.stack.default, aten.cat.default)  # which take no number of the CPU's beside a card's tensors
POOLS = (aten._adaptive_avg_pool2d.default, aten.adaptive_avg_pool2d.default)
CPU, META = torch.device("cpu"), torch.device("meta")


class Mode(FakeTensorMode):
    def __init__(self, card: str) -> None:
        super().__init__(allow_non_fake_inputs=True)
        self.card = torch.device(card)
        self.inside = False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.prim.device.default:  # C++ asks; its autograd would look for the card's driver
            device = args[0].device
            return device if device.type == "cpu" else META
        told = torch._C._current_graph_task_id() != -1 or any(isinstance(leaf, Tensor) for leaf in tree_leaves(args))
        if told and kwargs.get("device") == META:  # C++ repeats what it was told above
            kwargs = {**kwargs, "device": self.card}
        if self.inside:
            return super().__torch_dispatch__(func, types, args, kwargs)
        if func in READS:
            return self._computed(func, args, kwargs)
        if func in SHAPED_BY_VALUES:
            return tuple(self._claiming(args[0].device, value) for value in self._computed(func, args, kwargs))
        _refuse_as_cards_do(func, args, kwargs)
        self.inside = True
        try:
            fakes = super().__torch_dispatch__(func, types, args, kwargs)
        finally:
            self.inside = False
        if fakes is not NotImplemented:
            for fake, value in zip(tree_leaves(fakes), tree_leaves(self._computed(func, args, kwargs)), strict=True):
                if isinstance(fake, FakeTensor):
                    fake.value = value
        return fakes

    def _claiming(self, device: torch.device, value: Tensor) -> FakeTensor:
        with self:
            fake = torch.empty(value.shape, dtype=value.dtype, device=device)
        fake.value = value
        return fake

    def _computed(self, func, args: tuple, kwargs: dict) -> Any:
        given = tree_map_only(FakeTensor, value_of, (args, kwargs))
        args, kwargs = tree_map_only(torch.device, lambda device: CPU, given)
        with _disable_current_modes():
            return func(*args, **kwargs)


def _refuse_as_cards_do(func, args: tuple, kwargs: dict) -> None:
    """What FakeTensorMode lets pass and devices do not."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    if func in JOINS and len({tensor.device for tensor in tensors}) > 1:
        raise RuntimeError(f"Expected all tensors to be on the same device ({func}).")
    on_mps = any(tensor.device.type == "mps" for tensor in tensors)
    if on_mps and kwargs.get("dtype") == torch.float64:
        raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64.")
    if on_mps and func in POOLS and any(a % b for a, b in zip(args[0].shape[-2:], args[1], strict=True)):
        raise RuntimeError("Adaptive pool MPS: input sizes must be divisible by output sizes.")


def value_of(tensor: Tensor) -> Tensor:
    """What a tensor holds, as a real one on the CPU."""
    return getattr(tensor, "value", tensor)


@contextmanager
def simulated_card(mode: Mode) -> Iterator[torch.device]:
    """The device. Within, new tensors are simulated, on it and on the CPU, where real tensors count as lying."""
    SCHEDULE.alphas_cumprod  # noqa: B018, cached: to be made outside
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.Module, "_apply", _replace_tensors)
        patch.setattr(FakeTensor, "__deepcopy__", _copy, raising=False)
        patch.setattr(FakeTensor, "data", property(Tensor.detach, _become), raising=False)
        patch.setattr(FakeTensor, "__getitem__", _item, raising=False)
        patch.setattr(FakeTensor, "is_meta", property(lambda self: self.device == META), raising=False)
        patch.setattr(FakeTensor, "numpy", lambda self: _outside(Tensor.numpy, self), raising=False)
        patch.setattr(FakeTensor, "tolist", lambda self: _outside(Tensor.tolist, self))
        with mode:
            yield mode.card


@torch.no_grad()
def _replace_tensors(module: nn.Module, change, recurse: bool = True) -> nn.Module:
    """`nn.Module._apply`, which cannot change a simulated tensor in its place."""
    for child in module.children() if recurse else ():
        child._apply(change)
    for name, parameter in module._parameters.items():
        if parameter is not None:
            module._parameters[name] = nn.Parameter(change(parameter.detach()), parameter.requires_grad)
    for name, buffer in module._buffers.items():
        if buffer is not None:
            module._buffers[name] = change(buffer.detach())
    return module


def _item(tensor: FakeTensor, index: Any) -> Tensor:
    """Indexing, whose lists C++ would make tensors of where it was told that the tensor lies."""
    return Tensor.__getitem__(tensor, torch.tensor(index) if isinstance(index, list) else index)


def _outside(read, tensor: FakeTensor) -> Any:
    with _disable_current_modes():
        return read(tensor.value.detach())


def copied_to(module: nn.Module, device: torch.device | str) -> nn.Module:
    """A copy of a real module on a simulated device."""
    with _disable_current_modes():
        module = copy.deepcopy(module)
    return module.to(device)


def _copy(tensor: Tensor, memo: dict[int, Any]) -> Tensor:
    if id(tensor) not in memo:
        copied = tensor.detach().clone()
        is_parameter = isinstance(tensor, nn.Parameter)
        memo[id(tensor)] = nn.Parameter(copied, tensor.requires_grad) if is_parameter else copied
    return memo[id(tensor)]


def _become(tensor: FakeTensor, other: FakeTensor) -> None:
    """`tensor.data = other`"""
    tensor.fake_device, tensor.value = other.device, other.value
