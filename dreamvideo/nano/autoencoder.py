"""Trains the embedded base's autoencoder: diffusers' AutoencoderKL, f8 with 4 channels, in miniature."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import world
from .progress import Loop

CONFIG = {
    "block_out_channels": (24, 32, 64, 96),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 1,
    "latent_channels": 4,
    # Groups of many channels: with few, normalisation would erase the brightness of a plain ground.
    "norm_num_groups": 2,
    "sample_size": world.SIZE,
}
SCALE = 0.18215
NOISE = 0.08  # of the latents' own spread, so that neighbouring latents decode alike


ANCHOR = 4.0
WHOLE = 1300  # steps on whole frames before close-ups
PLAIN = 0.4  # share of the toys without a pattern that the decoder still sees when it is refined


def build() -> Any:
    """The untrained autoencoder. It begins as plain down- and upsampling of colours and learns details from there.

    Every residual branch starts at zero. Channels 0..2 of the trunk carry the picture's colours, 3..5 their negatives,
    6 and 7 a large constant and its negative, which make normalisation nearly the identity; the difference of SiLU on
    a channel and on its negative is linear.
    """
    from diffusers.models.attention_processor import Attention
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.downsampling import Downsample2D
    from diffusers.models.resnet import ResnetBlock2D
    from diffusers.models.upsampling import Upsample2D

    model: Any = AutoencoderKL(**CONFIG)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, ResnetBlock2D):
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
            _leave(half.conv_out)
        for mix in (model.quant_conv, model.post_quant_conv):
            _zero(mix)
            mix.weight[:, :, 0, 0] = torch.eye(len(mix.weight))
    return model


def _zero(layer) -> None:
    layer.weight.zero_()
    layer.bias.zero_()


def _carry(conv, taps: slice | None = None, value: float = 1.0) -> None:
    """Let a convolution pass channels 0..7 on; `taps` of its kernel with `value`, the middle one by default."""
    middle = conv.weight.shape[-1] // 2
    taps = taps or slice(middle, middle + 1)
    conv.weight[:8], conv.bias[:8] = 0, 0
    for channel in range(8):
        conv.weight[channel, channel, taps, taps] = value


def _enter(conv) -> None:
    """Put three inputs, their negatives and the constants into channels 0..7."""
    conv.weight[:8], conv.bias[:8] = 0, 0
    for channel in range(3):
        conv.weight[channel, channel, 1, 1], conv.weight[channel + 3, channel, 1, 1] = 1, -1
    conv.bias[6], conv.bias[7] = ANCHOR, -ANCHOR


def _leave(conv) -> None:
    """Take three outputs from channels 0..5, behind the last normalisation and SiLU."""
    spread = ANCHOR * math.sqrt(2 * CONFIG["norm_num_groups"] / conv.weight.shape[1])
    conv.weight[:3], conv.bias[:3] = 0, 0
    for channel in range(3):
        conv.weight[channel, channel, 1, 1], conv.weight[channel, channel + 3, 1, 1] = spread, -spread


def dead_leaves(count: int, generator: torch.Generator, size: int = world.SIZE, leaves: int = 24) -> Tensor:
    """Overlapping discs of random colours, [count, 3, size, size]: they have the statistics of photographs."""
    axis = torch.linspace(-1, 1, size)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    images = torch.rand(count, 3, 1, 1, generator=generator).expand(-1, -1, size, size).clone()
    for _ in range(leaves):
        cx, cy, u = (torch.rand(3, count, 1, 1, generator=generator) * 2 - 1).unbind(0)
        radius = 0.05 + 0.6 * ((u + 1) / 2) ** 3
        inside = ((radius - torch.sqrt((x - cx) ** 2 + (y - cy) ** 2)) * size / 2).clamp(0, 1)[:, None]
        colour = torch.rand(count, 3, 1, 1, generator=generator)
        images = images * (1 - inside) + colour * inside
    return images


def _recoloured(images: Tensor, generator: torch.Generator) -> Tensor:
    """Three in ten images with their channels exchanged and their contrast changed, so that no colour is unknown."""
    changed = images[:, torch.randperm(3, generator=generator)]
    low, high = torch.rand(2, len(images), 3, 1, 1, generator=generator).sort(0).values.unbind(0)
    changed = low * 0.4 + changed * (0.6 + 0.4 * high - low * 0.4)
    keep = torch.rand(len(images), 1, 1, 1, generator=generator) < 0.7
    return torch.where(keep, images, changed.clamp(0, 1))


def _scenes(generator: torch.Generator, count: int, plain: float) -> list[world.Canvas]:
    """`count` scenes; of those without a pattern only the share `plain` is taken."""
    canvases: list[world.Canvas] = []
    while len(canvases) < count:
        scene = world.training_scene(generator)
        if scene.subject.pattern != "plain" or plain == 1 or torch.rand((), generator=generator) < plain:
            canvases.append(world.render(scene))
    return canvases


def _frames(generator: torch.Generator, count: int, plain: float = 1.0) -> Tensor:
    """Whole frames of toys and, one in eight, dead leaves: [count, 3, 64, 64] in 0..1."""
    toys = count * 7 // 8
    picks = torch.randint(world.FRAMES, (toys,), generator=generator).tolist()
    frames = [canvas.frames[pick] for canvas, pick in zip(_scenes(generator, toys, plain), picks, strict=True)]
    return torch.cat([_recoloured(torch.stack(frames), generator), dead_leaves(count - toys, generator)])


def _close_ups(generator: torch.Generator, count: int, plain: float = 1.0, size: int = 32) -> Tensor:
    """Cuttings of toys and, one in eight, dead leaves: [count, 3, 32, 32] in 0..1. Details are learnt on these."""
    toys, cuttings = count * 7 // 8, []
    for canvas in _scenes(generator, (toys + 3) // 4, plain):
        for frame in torch.randint(world.FRAMES, (4,), generator=generator).tolist():
            seen = canvas.mask[frame].nonzero()
            centre = seen[int(torch.randint(len(seen), (1,), generator=generator))]
            top, left = (centre - size // 2).clamp(0, world.SIZE - size).tolist()
            cuttings.append(canvas.frames[frame, :, top : top + size, left : left + size])
    leaves = dead_leaves(count - toys, generator)[..., :size, :size]
    return torch.cat([_recoloured(torch.stack(cuttings[:toys]), generator), leaves])


def train(folder: Path, steps: int, batch: int = 8, learning_rate: float = 1e-3) -> None:
    """Train to `folder`/autoencoder.pt, resuming what is there."""
    torch.manual_seed(0)
    model = build()
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.99), weight_decay=0)
    loop = Loop(folder / "autoencoder.pt", model, optimizer, steps)
    for step in loop:
        generator = torch.Generator().manual_seed(step)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * min(1, (step + 1) / WHOLE) * (0.02 + 0.98 * _cosine(step / steps))
        whole = step < WHOLE or step % 5 == 0
        images = (_frames(generator, batch) if whole else _close_ups(generator, 3 * batch)) * 2 - 1
        loop.update(_loss(model, model.encode(images).latent_dist.mean, images, generator))


def refine(folder: Path, state: dict[str, Tensor], steps: int, learning_rate: float = 5e-4) -> None:
    """Let a trained autoencoder's decoder alone learn on, to `folder`/decoder.pt, resuming what is there.

    state: of the autoencoder. Its latents, and what was trained on them, stay as they are.
    """
    model = build()
    model.load_state_dict(state)
    model.requires_grad_(False)
    decoder = nn.ModuleDict({name: getattr(model, name) for name in ("decoder", "post_quant_conv")})
    decoder.requires_grad_(True)
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=learning_rate, betas=(0.9, 0.99), weight_decay=0)
    loop = Loop(folder / "decoder.pt", decoder, optimizer, steps)
    for step in loop:
        generator = torch.Generator().manual_seed(1_000_000 + step)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * min(1, (step + 1) / 100) * (0.02 + 0.98 * _cosine(step / steps))
        images = (_close_ups(generator, 24, PLAIN) if step % 4 else _frames(generator, 8, PLAIN)) * 2 - 1
        with torch.no_grad():
            mean = model.encode(images).latent_dist.mean
        loop.update(_loss(model, mean, images, generator))


def _loss(model, mean: Tensor, images: Tensor, generator: torch.Generator) -> Tensor:
    """Of decoding latents [B, 4, h, w], with a little noise on them, to images [B, 3, 8h, 8w] in -1..1."""
    noise = torch.randn(mean.shape, generator=generator) * NOISE * mean.detach().std((0, 2, 3), keepdim=True)
    error = model.decode(mean + noise).sample - images
    return error.abs().mean() + 4 * _regions(error) + 0.25 * _edges(error)


def _regions(error: Tensor) -> Tensor:
    """Squared error of the mean colour of each latent's region: colours are learnt before details."""
    return F.avg_pool2d(error, 8).square().mean()


def _edges(error: Tensor) -> Tensor:
    """Error of the differences between neighbours: keeps outlines sharp."""
    across, down = error[..., 1:] - error[..., :-1], error[..., 1:, :] - error[..., :-1, :]
    return across.abs().mean() + down.abs().mean()


def _cosine(part: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * part))


@torch.no_grad()
def normalise(model, images: Tensor) -> None:
    """Scale the latents, channel by channel, to unit variance after the customary factor 0.18215, and centre them.

    Exact: what the encoder's last layer is multiplied by, the decoder's first layer is divided by.
    """
    mean = model.encode(images * 2 - 1).latent_dist.mean  # [N, 4, h, w]
    centre, spread = mean.mean((0, 2, 3)), mean.std((0, 2, 3))
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


__all__ = ["CONFIG", "SCALE", "build", "dead_leaves", "normalise", "refine", "train"]
