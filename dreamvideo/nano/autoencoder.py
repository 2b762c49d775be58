"""Trains the embedded base's autoencoder: diffusers' AutoencoderKL, f8 with 4 channels, in miniature."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import scenes, world
from .muon import Muon
from .progress import Loop, processes, rank

CONFIG = {
    "block_out_channels": (64, 64, 128, 192),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 32,
    "sample_size": world.SIZE,
}
SCALE = 0.18215
NOISE = 0.05  # of the latents' own spread, so that neighbouring latents decode alike

# Of every norm while it trains, for activations of about 1: where a picture is flat, a norm with the usual 1e-6 would
# blow up nothing to noise. `finish` brings it to the usual one.
EPSILON = 1.0
USUAL_EPSILON = 1e-6
VARIANCE = 0.3  # of a picture's colours, about
CUTTING = 64  # pixels a side that it learns on
WARM_UP = 200  # steps


def build(epsilon: float = USUAL_EPSILON) -> Any:
    """The untrained autoencoder. It begins as plain down- and upsampling of colours and learns details from there.

    Every residual branch starts at zero. Channels 0..5 of the trunk carry the picture's three colours, each beside its
    negative: the mean of a norm's group is then nothing, and the difference of SiLU on a channel and on its negative is
    linear.
    """
    from diffusers.models.attention_processor import Attention
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.downsampling import Downsample2D
    from diffusers.models.resnet import ResnetBlock2D
    from diffusers.models.upsampling import Upsample2D

    model: Any = AutoencoderKL(**CONFIG)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.GroupNorm):
                module.eps = epsilon
            elif isinstance(module, ResnetBlock2D):
                nn.init.kaiming_normal_(module.conv1.weight)
                _zero(module.conv2)
                if module.conv_shortcut is not None:
                    _carry(module.conv_shortcut)
            elif isinstance(module, Attention):
                _zero(module.get_submodule("to_out.0"))
            elif isinstance(module, Downsample2D):
                _carry(module.conv, slice(0, 2), 0.25)
            elif isinstance(module, Upsample2D):
                _carry(module.conv)
        for half in (model.encoder, model.decoder):
            _enter(half.conv_in)
            _leave(half.conv_out, epsilon)
        for mix in (model.quant_conv, model.post_quant_conv):
            _zero(mix)
            mix.weight[:, :, 0, 0] = torch.eye(len(mix.weight))
    return model


def _zero(layer) -> None:
    layer.weight.zero_()
    layer.bias.zero_()


def _carry(conv, taps: slice | None = None, value: float = 1.0) -> None:
    """Let a convolution pass channels 0..5 on; `taps` of its kernel with `value`, the middle one by default."""
    middle = conv.weight.shape[-1] // 2
    taps = taps or slice(middle, middle + 1)
    conv.weight[:6], conv.bias[:6] = 0, 0
    for channel in range(6):
        conv.weight[channel, channel, taps, taps] = value


def _enter(conv) -> None:
    """Put three inputs and their negatives into channels 0..5."""
    conv.weight[:6], conv.bias[:6] = 0, 0
    for channel in range(3):
        conv.weight[2 * channel, channel, 1, 1], conv.weight[2 * channel + 1, channel, 1, 1] = 1, -1


def _leave(conv, epsilon: float) -> None:
    """Take three outputs from channels 0..5, behind the last normalisation and SiLU."""
    _zero(conv)
    spread = math.sqrt(VARIANCE + epsilon)  # what the norm divided by
    for channel in range(3):
        conv.weight[channel, 2 * channel, 1, 1], conv.weight[channel, 2 * channel + 1, 1, 1] = spread, -spread


def optimizer_of(model, rate: float = 5e-3, adam_rate: float = 3e-4) -> Muon:
    """Muon for what lies between convolutions, Adam for the rest."""
    ends = ("conv_in", "conv_out", "quant_conv")
    matrices, others = [], []
    for name, weight in model.named_parameters():
        if not weight.requires_grad:
            continue
        inside = weight.ndim > 1 and not any(end in name for end in ends)
        (matrices if inside else others).append(weight)
    return Muon(matrices, others, rate, adam_rate)


def train(folder: Path, steps: int, batch: int = 8, device: torch.device | str = "cpu") -> None:
    """Train to `folder`/autoencoder.pt, resuming what is there. Processes of a group share a batch."""
    torch.manual_seed(0)
    device = torch.device(device)
    model = build(EPSILON).to(device)
    optimizer = optimizer_of(model)
    loop = Loop(folder / "autoencoder.pt", model, optimizer, steps)
    for step in loop:
        optimizer.at(min(1, (step + 1) / WARM_UP) * _decayed(step / steps))
        loop.update(_step(model, step, batch, device))


def sharpen(folder: Path, steps: int, batch: int = 8, device: torch.device | str = "cpu") -> None:
    """Train the decoder alone on, under clean latents, to `folder`/decoder.pt, resuming what is there.

    The encoder of `folder`/autoencoder.pt stays, and so do the latents that a UNet learns beside it.
    """
    torch.manual_seed(0)
    device = torch.device(device)
    model = build(EPSILON)
    model.load_state_dict(torch.load(folder / "autoencoder.pt", map_location="cpu", weights_only=True)["average"])
    for part in (model.to(device).encoder, model.quant_conv):
        part.requires_grad_(False)
    optimizer = optimizer_of(model)
    loop = Loop(folder / "decoder.pt", model, optimizer, steps)
    for step in loop:
        optimizer.at(min(1, (step + 1) / WARM_UP) * _decayed(0.5 + 0.5 * step / steps))
        loop.update(_step(model, -1 - step, batch, device, noise=0))


def _decayed(part: float) -> float:
    """Full for the first half of the training, then evenly down to almost nothing."""
    return min(1.0, 2 * (1 - part) + 0.01)


def _step(model, seed: int, batch: int, device: torch.device, noise: float = NOISE) -> Tensor:
    """The loss of this process's part of a step whose random numbers come from this seed."""
    generator = torch.Generator(device).manual_seed(processes() * seed + rank())
    images = scenes.draw(batch // processes(), generator, CUTTING) * 2 - 1
    with torch.autocast(device.type, torch.bfloat16):
        return _loss(model, images, generator, noise)


def _loss(model, images: Tensor, generator: torch.Generator, noise: float) -> Tensor:
    """Of images [B, 3, 8h, 8w] in -1..1, encoded, with a little noise on the latents, and decoded."""
    mean = model.encode(images).latent_dist.mean.float()  # [B, 4, h, w]
    drawn = torch.randn(mean.shape, generator=generator, device=mean.device)
    spread = mean.detach().std((0, 2, 3), keepdim=True)
    error = model.decode(mean + noise * spread * drawn).sample.float() - images
    return error.abs().mean() + 0.25 * _edges(error)


def _edges(error: Tensor) -> Tensor:
    """Error of the differences between neighbours: keeps outlines sharp."""
    across, down = error[..., 1:] - error[..., :-1], error[..., 1:, :] - error[..., :-1, :]
    return across.abs().mean() + down.abs().mean()


# -------------------------------------------------------------------------------------------------- finishing


@torch.no_grad()
def finish(model, epsilon: float = EPSILON) -> None:
    """Bring a model trained with this epsilon of its norms to the usual one, which every loader takes for granted.

    Exact: a norm of k x with epsilon k^2 e is the norm of x with e. So whatever adds to what a norm reads is multiplied
    by k.
    """
    from diffusers.models.attention_processor import Attention
    from diffusers.models.downsampling import Downsample2D
    from diffusers.models.resnet import ResnetBlock2D
    from diffusers.models.upsampling import Upsample2D

    k = math.sqrt(USUAL_EPSILON / epsilon)
    for module in model.modules():
        if isinstance(module, nn.GroupNorm):
            module.eps = USUAL_EPSILON
        elif isinstance(module, ResnetBlock2D):
            for conv in (module.conv1, module.conv2):
                _multiply(conv, k)
            if module.conv_shortcut is not None:
                module.get_parameter("conv_shortcut.bias").mul_(k)
        elif isinstance(module, Attention):
            _multiply(module.get_submodule("to_out.0"), k)
        elif isinstance(module, (Downsample2D, Upsample2D)):
            module.get_parameter("conv.bias").mul_(k)
    for half in (model.encoder, model.decoder):
        _multiply(half.conv_in, k)


def _multiply(layer, factor: float) -> None:
    layer.weight *= factor
    layer.bias *= factor


@torch.no_grad()
def normalise(model, images: Tensor) -> None:
    """Scale the latents, channel by channel, to unit variance after the customary factor 0.18215, and centre them.

    Exact: what the encoder's last layer is multiplied by, the decoder's first layer is divided by.
    """
    mean = model.encode(images * 2 - 1).latent_dist.mean  # [N, 4, h, w]
    centre, spread = mean.mean((0, 2, 3)), mean.std((0, 2, 3)).clamp(min=1e-3)  # early a channel may carry nothing
    gain = 1 / (spread * SCALE)
    quant, post = model.quant_conv, model.post_quant_conv
    channels = len(gain)
    post.bias += torch.einsum("oihw,i->o", post.weight, centre)
    post.weight /= gain[None, :, None, None]
    quant.bias[:channels] = (quant.bias[:channels] - centre) * gain
    quant.weight[:channels] *= gain[:, None, None, None]
    # The posterior's spread is the noise that the decoder was trained with.
    quant.weight[channels:] = 0
    quant.bias[channels:] = 2 * math.log(NOISE / SCALE)


__all__ = ["CONFIG", "SCALE", "build", "finish", "normalise", "sharpen", "train"]
