"""Figure 7: what single shortcuts of ours bring, each against ourselves without it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from dreamvideo.models import blocks
from dreamvideo.models.blocks import Attention
from dreamvideo.models.stack import AdapterStack, StackEntry
from dreamvideo.models.unet import UNet

from .clock import interleaved
from .growth import forward
from .setting import Row, Setting

FRAMES = 16


def rows(setting: Setting) -> list[Row]:
    plain = UNet(setting.size.unet, device=setting.device, dtype=setting.dtype).eval().requires_grad_(False)
    plain.load_state_dict(setting.unet.state_dict())
    adapter = setting.adapter("identity").requires_grad_()
    jobs = {
        "economical": photo_step(setting, setting.unet, adapter),
        "torch's layers": photo_step(setting, plain, adapter),
        "whole attention": with_whole_attention(photo_step(setting, setting.unet, adapter)),
    }
    seconds = interleaved(jobs, setting.rounds, setting.clock)
    best = seconds["economical"]
    absolute = {f"{name}, s": taken for name, taken in seconds.items()}
    taps = seconds["torch's layers"] / best
    values = seconds["whole attention"] / best
    taken = interleaved(video_forwards(setting, plain), setting.rounds, setting.clock)
    videos = {f"video, {name}, s": seconds for name, seconds in taken.items()}
    layers, pieces = (taken[name] / taken["economical"] for name in ("torch's layers", "one piece"))
    updates = interleaved(adam(setting), setting.rounds, setting.clock)
    return [
        Row(7, "forward and backward on 4 photographs, torch's layers / economical", taps, "x", "", absolute),
        Row(7, "the same, whole attention in time / values alone", values, "x", "", absolute),
        Row(7, f"forward of {FRAMES} frames, torch's layers / economical", layers, "x", "", videos),
        Row(7, "the same, tokens in one piece / in several", pieces, "x", "", videos),
        Row(7, "update of a motion adapter, default AdamW / fused", updates["default"] / updates["fused"], "x", "", {
            f"AdamW {name}, s": taken for name, taken in updates.items()
        }),
    ]  # fmt: skip


def photo_step(setting: Setting, unet: UNet, adapter: nn.Module) -> Callable[[], None]:
    x = setting.random(4, 4, 1, setting.side, setting.side).to(setting.dtype)
    context = setting.random(4, 77, setting.size.unet.context_dim).to(setting.dtype)
    timesteps = torch.full((4,), 500, device=setting.device)

    def run() -> None:
        unet(x, timesteps, context, AdapterStack([StackEntry(adapter)])).square().mean().backward()

    return run


def video_forwards(setting: Setting, plain: UNet) -> dict[str, Callable[[], None]]:
    ours = forward(setting, FRAMES, setting.side)
    return {
        "economical": ours,
        "torch's layers": forward(setting, FRAMES, setting.side, plain),
        "one piece": in_one_piece(ours, FRAMES * setting.side**2),
    }


def in_one_piece(job: Callable[[], None], tokens: int) -> Callable[[], None]:
    def run() -> None:
        usual = blocks.TOKENS_IN_CACHE
        blocks.TOKENS_IN_CACHE = tokens
        try:
            job()
        finally:
            blocks.TOKENS_IN_CACHE = usual

    return run


def with_whole_attention(job: Callable[[], None]) -> Callable[[], None]:
    """The job with queries and keys computed for single tokens too."""
    short = Attention.forward

    def whole(self: Attention, x: Tensor, context: Tensor | None = None) -> Tensor:
        if context is not None or x.shape[2] != 1:
            return short(self, x, context)
        tokens = x.flatten(0, 1)
        q, k, v = (
            projected.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for projected in (self.to_q(tokens), self.to_k(tokens), self.to_v(tokens))
        )
        return self.to_out(self.attention(q, k, v).transpose(1, 2).flatten(2)).view_as(x)

    def run() -> None:
        Attention.forward = whole
        try:
            job()
        finally:
            Attention.forward = short

    return run


def adam(setting: Setting) -> dict[str, Callable[[], object]]:
    parameters = list(setting.adapter("motion").requires_grad_().parameters())
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    options = {"default": {}, "fused": {"fused": True}}
    return {name: torch.optim.AdamW(parameters, **given).step for name, given in options.items()}
