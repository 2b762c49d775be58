"""The UNet's layers, doing less where the result is the same: an `operations` namespace made from another one.

Two things are left out. A frozen convolution keeps its input for a gradient of its weight that nobody asks for; these
keep none. And a convolution over time that sees a single frame multiplies two of its three taps with padding; these
take the middle tap alone. Both sit behind torch's `_conv_forward`, so that layers which cast or move their weights
first, as ComfyUI's do, can be made economical too.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

CONVOLUTIONS = ("Conv1d", "Conv2d", "Conv3d")


def economical(operations: Any) -> SimpleNamespace:
    """The same layers, parameters and results; `operations` has torch.nn's layers or subclasses of them."""
    found = {name: type(name, (_Economical, getattr(operations, name)), {}) for name in CONVOLUTIONS}
    return SimpleNamespace(
        **found, Linear=operations.Linear, GroupNorm=operations.GroupNorm, LayerNorm=operations.LayerNorm
    )


class _Economical(nn.modules.conv._ConvNd):
    """Takes over from `_conv_forward` where weight and bias are frozen."""

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any, **named: Any) -> Tensor:
        if (
            self.groups != 1
            or self.padding_mode != "zeros"
            or rest
            or any(value is not None for value in named.values())
        ):
            return super()._conv_forward(x, weight, bias, *rest, **named)
        geometry = (self.stride, self.padding, self.dilation)
        if _sees_one_frame(self, x):
            x, weight, geometry = x.squeeze(2), weight[:, :, 1], ((1, 1), (0, 0), (1, 1))  # [B, C, H, W], [O, C, 1, 1]
            return _convolve(x, weight, bias, geometry).unsqueeze(2)
        return _convolve(x, weight, bias, geometry)


def _sees_one_frame(layer: nn.Module, x: Tensor) -> bool:
    return x.ndim == 5 and x.shape[2] == 1 and layer.kernel_size == (3, 1, 1) and layer.padding == (1, 0, 0)


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: tuple) -> Tensor:
    trained = weight.requires_grad or (bias is not None and bias.requires_grad)
    if trained or not (torch.is_grad_enabled() and x.requires_grad):
        stride, padding, dilation = geometry
        return torch.convolution(x, weight, bias, stride, padding, dilation, False, [0] * len(stride), 1)
    return _FrozenConvolution.apply(x, weight, bias, geometry)


class _FrozenConvolution(torch.autograd.Function):
    """A convolution that keeps its weight, which lives anyway, and of its input the shape."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: tuple) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.shape, ctx.geometry = x.shape, geometry
        stride, padding, dilation = geometry
        return torch.convolution(x, weight, bias, stride, padding, dilation, False, [0] * len(stride), 1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (weight,) = ctx.saved_tensors
        stride, padding, dilation = ctx.geometry
        unread = gradient.new_empty(1).expand(ctx.shape)  # the input's values enter the weight's gradient alone
        found, _, _ = torch.ops.aten.convolution_backward(
            gradient, unread, weight, None, stride, padding, dilation, False, [0] * len(stride), 1, (True, False, False)
        )
        return found, None, None, None
