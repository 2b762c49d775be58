"""Figure 2: sampling, against diffusers' pipeline and the authors' recipe, and the price of the adapters."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dreamvideo.models.diffusion import ddim_sample
from dreamvideo.models.stack import AdapterStack, StackEntry
from dreamvideo.sampling import sample_latents

from .authors import AuthorsNetwork
from .clock import interleaved
from .pipeline import Pipeline
from .setting import Row, Setting, check_agreement

GUIDANCE = 9.0
KINDS = {"base": (), "identity": ("identity",), "motion": ("motion",), "both": ("identity", "motion")}


def rows(setting: Setting) -> list[Row]:
    found = []
    for frames in (setting.size.frames // 2, setting.size.frames):
        jobs = {f"ours, {name}": ours(setting, kinds, frames) for name, kinds in KINDS.items()}
        jobs["diffusers, base"] = diffusers(setting, frames)
        jobs["authors, both"] = authors(setting, frames)
        _agree(setting, jobs)
        seconds = interleaved(jobs, setting.rounds, setting.clock)
        absolute = {f"{name}, s a step": taken / setting.steps for name, taken in seconds.items()}
        base = seconds["ours, base"]

        def row(what: str, value: float, unit: str, target: str = "", absolute=absolute, frames=frames) -> Row:
            return Row(2, f"{what}, {frames} frames", value, unit, target, absolute)

        found.append(row("sampling the base, diffusers / ours", seconds["diffusers, base"] / base, "x", "1.2 / 1.5"))
        found.append(
            row("sampling with both adapters, authors / ours", seconds["authors, both"] / seconds["ours, both"], "x")
        )
        for name in list(KINDS)[1:]:
            target = "under 8" if name == "both" else ""
            found.append(row(f"price of {name} adapters", 100 * (seconds[f"ours, {name}"] / base - 1), "%", target))
    return found


def inputs(setting: Setting, frames: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Context, unconditional context, feature of the guidance image, noise."""
    width = setting.size.unet.context_dim
    return (
        setting.random(1, 77, width, seed=6),
        setting.random(1, 77, width, seed=7),
        setting.random(1, setting.size.feature_width, seed=8),
        setting.random(1, 4, frames, setting.side, setting.side, seed=9),
    )


def ours(setting: Setting, kinds: tuple[str, ...], frames: int) -> Callable[[], Tensor]:
    context, uncond, feature, noise = inputs(setting, frames)
    entries = [StackEntry(setting.adapter(kind).to(setting.dtype)) for kind in kinds]
    return lambda: sample_latents(
        setting.unet,
        context,
        uncond,
        noise,
        stack=AdapterStack(entries) if entries else None,
        feature=feature,
        feature_strengths=(1.0, 1.0),
        steps=setting.steps,
        guidance=GUIDANCE,
    )


def diffusers(setting: Setting, frames: int) -> Callable[[], Tensor]:
    context, uncond, _, noise = inputs(setting, frames)
    pipeline = Pipeline(setting.unet)
    return lambda: pipeline.sample(context, uncond, noise, setting.steps, GUIDANCE)


def authors(setting: Setting, frames: int) -> Callable[[], Tensor]:
    """The two halves of guidance one after the other, as they run them."""
    context, uncond, feature, noise = inputs(setting, frames)
    network = AuthorsNetwork(setting.unet, [setting.adapter(kind) for kind in KINDS["both"]], checkpointing=False)

    def predict(x: Tensor, t: int) -> Tensor:
        timesteps = torch.tensor([t], device=setting.device)
        told = network(x, timesteps, context, feature).float()
        untold = network(x, timesteps, uncond, torch.zeros_like(feature)).float()
        return untold + GUIDANCE * (told - untold)

    return lambda: ddim_sample(predict, noise, setting.steps)


def _agree(setting: Setting, jobs: dict[str, Callable[[], Tensor]]) -> None:
    exact = setting.dtype == torch.float32
    check_agreement("sampling the base", jobs["ours, base"](), jobs["diffusers, base"](), 1e-3 if exact else 0.3)
    check_agreement("sampling with both", jobs["ours, both"](), jobs["authors, both"](), 1e-3 if exact else 0.3)
