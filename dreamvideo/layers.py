"""The UNet's layers, doing less where the result is the same: an `operations` namespace made from another one.

Two things are left out. A frozen convolution keeps its input for a gradient of its weight that nobody asks for; these
keep none. And a convolution over time that sees a single frame multiplies two of its three taps with padding; these
take the middle tap alone. Both sit behind torch's `_conv_forward`, so that layers which cast or move their weights
first, as ComfyUI's do, can be made economical too.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CONVOLUTIONS = ("Conv1d", "Conv2d", "Conv3d")


def economical(operations: Any) -> SimpleNamespace:
    """The same layers, parameters and results; `operations` has torch.nn's layers or subclasses of them."""
    found = {name: type(name, (_Economical, getattr(operations, name)), {}) for name in CONVOLUTIONS}
    return SimpleNamespace(
        **found, Linear=operations.Linear, GroupNorm=operations.GroupNorm, LayerNorm=operations.LayerNorm
    )


class _Economical(nn.modules.conv._ConvNd):
    """Goes before torch's convolution, or a host's, and leaves to it what needs no economy."""

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None, **named: Any) -> Tensor:
        if self.kernel_size == (3, 1, 1) and self.padding == (1, 0, 0) and x.ndim == 5 and x.shape[2] == 1:
            tap = weight[:, :, 1]  # [O, C, 1, 1]
            return _convolve(F.conv2d, x.squeeze(2), tap, bias, (1, 1), (0, 0)).unsqueeze(2)
        usual = partial(super()._conv_forward, **named)  # what else a host's layer may tell its own
        return _convolve(usual, x, weight, bias, self.stride, self.padding)


def _convolve(
    usual: Callable[[Tensor, Tensor, Tensor | None], Tensor],
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, ...],
    padding: tuple[int, ...],
) -> Tensor:
    trained = weight.requires_grad or (bias is not None and bias.requires_grad)
    if trained or not (torch.is_grad_enabled() and x.requires_grad):
        return usual(x, weight, bias)
    return _FrozenConvolution.apply(x, weight, bias, stride, padding)


class _FrozenConvolution(torch.autograd.Function):
    """A convolution that keeps its weight, which lives anyway, and of its input the shape."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple, padding: tuple) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.shape, ctx.geometry = x.shape, _geometry(stride, padding)
        return torch.convolution(x, weight, bias, *ctx.geometry)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        (weight,) = ctx.saved_tensors
        unread = gradient.new_empty(1).expand(ctx.shape)  # the input's values enter the weight's gradient alone
        wanted = (True, False, False)  # of input, weight and bias
        found = torch.ops.aten.convolution_backward(gradient, unread, weight, None, *ctx.geometry, wanted)
        return found[0], None, None, None, None


def _geometry(stride: tuple[int, ...], padding: tuple[int, ...]) -> tuple:
    """What torch's convolutions take behind the bias; the UNet has neither dilations nor groups."""
    dims = len(stride)
    return stride, padding, (1,) * dims, False, (0,) * dims, 1
