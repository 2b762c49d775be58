"""The authors' recipe, built from installed packages: diffusers' UNet with adapters as hooks, and their training step.

What it does, after the facts about the released code: the network is diffusers' `UNet3DConditionModel`, the same
arithmetic as the released one and as fast (measured within 6 %); every residual block and transformer is checkpointed;
the image condition is repeated for every token and projected there; weights stay in float32 under autocast to float16
(on a GPU; the CPU has none, so both sides compute in float32 there); a step encodes its frames one by one, runs both
CLIP towers, used or not, and hands all parameters to AdamW. Left out in its favour: previews, data loading and dropout.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import UNet3DConditionModel
from diffusers.models.resnet import ResnetBlock2D, TemporalConvLayer
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.transformers.transformer_temporal import TransformerTemporalModel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dreamvideo.encoders.protocols import Encoders
from dreamvideo.files.conversion import diffusers_config
from dreamvideo.files.layouts import diffusers_name, diffusers_shape
from dreamvideo.models.adapters import Adapter, Bottleneck
from dreamvideo.models.diffusion import SCHEDULE, diffusion_loss, offset_noise
from dreamvideo.models.unet import UNet

CHECKPOINTED = (ResnetBlock2D, TemporalConvLayer, Transformer2DModel, TransformerTemporalModel)


def twin_of(unet: UNet) -> UNet3DConditionModel:
    """diffusers' network with the weights of ours, float32, frozen."""
    config = {key: value for key, value in diffusers_config(unet.config).items() if not key.startswith("_")}
    twin = UNet3DConditionModel(**config).to(next(unet.parameters()).device)
    state = {
        diffusers_name(name, unet.config.res_blocks): value.float().reshape(diffusers_shape(name, tuple(value.shape)))
        for name, value in unet.state_dict().items()
    }
    twin.load_state_dict(state)
    return twin.eval().requires_grad_(False)


class AuthorsNetwork:
    """diffusers' UNet with bottleneck adapters in the authors' way, with the weights of our `adapters`."""

    def __init__(self, unet: UNet, adapters: list[Adapter], checkpointing: bool) -> None:
        self.twin = twin_of(unet)
        self.adapters = nn.ModuleList()
        self.feature: Tensor | None = None  # [B, D] of the forward in progress
        self.strength = 1.0
        for adapter in adapters:
            for site in adapter.modules_at:
                bottleneck = _copy(adapter.at(site))
                self.adapters.append(bottleneck)
                self._attach(site, bottleneck, unet.config.res_blocks)
        if checkpointing:
            for module in self.twin.modules():
                if isinstance(module, CHECKPOINTED):
                    module.forward = partial(checkpoint, module.forward, use_reentrant=False)

    def _attach(self, site: str, bottleneck: Bottleneck, res_blocks: int) -> None:
        """Beside a sublayer: it reads what enters the sublayer's norm and adds to what leaves the sublayer."""
        block, sublayer = site.rsplit(".", 1)
        norm = {"attn1": "norm1", "attn2": "norm2", "ff": "norm3"}[sublayer]
        leaf = "net.0.proj.weight" if sublayer == "ff" else "to_q.weight"
        path = diffusers_name(f"{site}.{leaf}", res_blocks).removesuffix(f".{leaf}")
        norm_path = diffusers_name(f"{block}.{norm}.weight", res_blocks).removesuffix(".weight")
        entering: list[Tensor] = []

        def remember(module: nn.Module, given: tuple[Any, ...]) -> None:
            entering[:] = given[:1]

        def add(module: nn.Module, given: tuple[Any, ...], out: Tensor) -> Tensor:
            return out + self._residual(bottleneck, entering[0])

        self.twin.get_submodule(norm_path).register_forward_pre_hook(remember)
        self.twin.get_submodule(path).register_forward_hook(add)

    def _residual(self, bottleneck: Bottleneck, x: Tensor) -> Tensor:
        if self.feature is not None and bottleneck.condition_linear is not None:
            rows = self.feature.repeat_interleave(x.shape[0] // len(self.feature), 0)  # [B*h*w, D]
            repeated = rows[:, None].repeat(1, x.shape[1], 1)  # [B*h*w, F, D], materialised as theirs is
            x = x + self.strength * bottleneck.condition_linear(repeated)
        return bottleneck.up_linear(F.gelu(bottleneck.down_linear(x)))

    def __call__(
        self, x: Tensor, timesteps: Tensor, context: Tensor, feature: Tensor | None = None, strength: float = 1.0
    ) -> Tensor:
        self.feature, self.strength = feature, strength
        with autocast(x.device):
            return self.twin(x, timesteps, context, return_dict=False)[0]


def autocast(device: torch.device) -> AbstractContextManager:
    return torch.autocast("cuda", torch.float16) if device.type == "cuda" else nullcontext()


def _copy(bottleneck: Bottleneck) -> nn.Module:
    """The same weights in plain nn.Linear layers."""
    copied = nn.Module()
    for name in ("down_linear", "up_linear", "condition_linear"):
        linear, twin = getattr(bottleneck, name), None
        if linear is not None:
            twin = nn.Linear(linear.in_features, linear.out_features).to(linear.weight)
            twin.load_state_dict(linear.state_dict())
        setattr(copied, name, twin)
    return copied


class AuthorsTraining:
    """One of their three trainings; `step` prepares, runs and updates as theirs does.

    clips [B, F, 3, H, W] in 0..1; token [1, D] where one is learned, under the caption "a *". mask [B, 1, F, h, w].
    """

    def __init__(
        self,
        network: AuthorsNetwork,
        encoders: Encoders,
        clips: Tensor,
        caption: str,
        *,
        token: Tensor | None = None,
        conditioned: bool = False,
        learning_rate: float = 1e-5,
    ) -> None:
        self.network, self.encoders, self.clips, self.caption = network, encoders, clips, caption
        self.tokens = {} if token is None else {"*": token.clone().requires_grad_()}
        self.conditioned = conditioned
        learnt = [*self.tokens.values(), *network.adapters.parameters()]
        self.learnt = [tensor for tensor in learnt if tensor.requires_grad]
        everything = [*self.learnt, *network.twin.parameters()]
        self.optimizer = torch.optim.AdamW(everything, lr=learning_rate, weight_decay=0.0)
        self.scaler = torch.amp.GradScaler(clips.device.type, enabled=clips.device.type == "cuda")
        self.generator = torch.Generator().manual_seed(0)

    def step(self) -> None:
        device, (batch, frames) = self.clips.device, self.clips.shape[:2]
        moments = self.encoders.vae.encode(self.clips.flatten(0, 1), chunk=1)
        latents = moments.sample(self.generator).unflatten(0, (batch, frames)).transpose(1, 2)  # [B, 4, F, h, w]
        context = self.encoders.text.encode([self.caption] * batch, self.tokens)
        features = self.encoders.image.encode(self.clips[:, 0])
        timesteps = torch.randint(1000, (batch,), generator=self.generator)
        noise = offset_noise(latents.shape, self.generator).to(device)
        x = SCHEDULE.add_noise(latents, noise, timesteps.to(device))
        prediction = self.network(x, timesteps.to(device), context, features if self.conditioned else None)
        loss = diffusion_loss(prediction, noise)
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        loss.item()  # which their log line does
