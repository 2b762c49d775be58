"""The UNet's layers, doing less where the result is the same: an `operations` namespace made from another one.

A frozen convolution keeps its input for a gradient of its weight that nobody asks for; these keep none. A convolution
over time is one in 2-D, of time and position, for which libraries have faster kernels; of a single frame it multiplies
two of its three taps with padding, and these take the middle tap alone. A convolution with one tap is a linear layer.
All of it sits behind torch's `_conv_forward`, so that layers which cast or move their weights first, as ComfyUI's do,
can be made economical too.

On a CPU and without gradients they work with channels last in memory, [N, H, W, C]: its convolutions are faster so, and
pictures are tokens and videos frames as they lie. Elsewhere channels come first, as PyTorch's group norm asks: on a GPU
in either pass, on a CPU in its backward pass.
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
SLOW_BELOW = 1024  # positions: with fewer, PyTorch's group norm takes a multiple of its time for channels last on a CPU


def economical(operations: Any) -> SimpleNamespace:
    """The same layers, parameters and results; `operations` has torch.nn's layers or subclasses of them."""
    found = {name: type(name, (_Economical, getattr(operations, name)), {}) for name in CONVOLUTIONS}
    norm = type("GroupNorm", (_GroupNorm, operations.GroupNorm), {})
    return SimpleNamespace(**found, GroupNorm=norm, Linear=operations.Linear, LayerNorm=operations.LayerNorm)


class _Economical(nn.modules.conv._ConvNd):
    """Goes before torch's convolution, or a host's, and leaves to it what needs no economy."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None, **named: Any) -> Tensor:
        x = input  # torch's name for it
        if self.kernel_size == (1,):
            return F.linear(x.transpose(1, 2), weight.squeeze(2), bias).transpose(1, 2)  # [N, O, L]
        if self.kernel_size == (3, 1, 1) and self.padding == (1, 0, 0):
            return _over_time(x, weight, bias)
        if x.ndim == 4 and x.device.type == "cpu" and not torch.is_grad_enabled():
            x = x.contiguous(memory_format=torch.channels_last)
        usual = partial(super()._conv_forward, **named)  # what else a host's layer may tell its own
        assert not isinstance(self.padding, str)  # the UNet has numbers
        return _convolve(usual, x, weight, bias, self.stride, self.padding)


class _GroupNorm(nn.GroupNorm):
    """Goes before torch's group norm, or a host's, and leaves channels where they lie."""

    def forward(self, input: Tensor) -> Tensor:
        x = input  # torch's name for it
        stacked = x.flatten(2, -2)  # [N, C, H, W], a video's frames one below the other: statistics know no positions
        channels_last = stacked.is_contiguous(memory_format=torch.channels_last)
        if x.device.type == "cpu" and channels_last and stacked[0, 0].numel() < SLOW_BELOW:
            normed = super().forward(stacked.contiguous()).contiguous(memory_format=torch.channels_last)
        else:
            normed = super().forward(stacked)
        return normed.unflatten(2, x.shape[2:-1])


def _over_time(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x [B, C, F, H, W] with weight [O, C, 3, 1, 1] -> [B, O, F, H, W]"""
    taps, padding = weight.squeeze(4), (1, 0)  # [O, C, 3, 1]
    if x.shape[2] == 1:
        taps, padding = taps[:, :, 1:2], (0, 0)
    usual = partial(F.conv2d, padding=padding)
    positions = x.flatten(3)  # [B, C, F, H*W]
    return _convolve(usual, positions, taps, bias, (1, 1), padding).unflatten(3, x.shape[3:])


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
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None, None, None]:
        (gradient,) = grad_outputs
        (weight,) = ctx.saved_tensors
        unread = gradient.new_empty(1).expand(ctx.shape)  # the input's values enter the weight's gradient alone
        wanted = (True, False, False)  # of input, weight and bias
        found = torch.ops.aten.convolution_backward(gradient, unread, weight, None, *ctx.geometry, wanted)
        return found[0], None, None, None, None


def _geometry(stride: tuple[int, ...], padding: tuple[int, ...]) -> tuple:
    """What torch's convolutions take behind the bias; the UNet has neither dilations nor groups."""
    dims = len(stride)
    return stride, padding, (1,) * dims, False, (0,) * dims, 1
