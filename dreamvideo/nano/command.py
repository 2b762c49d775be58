"""`dreamvideo nano`: make the embedded base again, and measure it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from ..base import image_base_beside
from ..defaults import EMBEDDED
from ..encoders.autoencoder import KLAutoencoder, build_vae
from ..encoders.loading import load_encoders
from ..encoders.protocols import Autoencoder, Encoders
from ..files.base import find_base
from ..files.encoders import stored_vae
from ..files.unet import load_unet
from ..media.writing import write_png
from ..models.diffusion import offset_noise
from ..models.network import VideoUNet
from ..sampling import sample_latents
from . import autoencoder, denoiser, image_base, package, reconstruction, vision_language, world

STEPS = {
    "autoencoder": 11000,
    "decoder": 1600,
    "clip": 700,
    "settling": 200,
}  # the UNets' stand in their lessons


def train(folder: Path, weights: Path, processes: int = 2, device: torch.device | str = "cpu") -> None:
    """Train all parts, one after the other, into `weights`; what `folder` holds of an earlier run goes on.

    An autoencoder that lies in `weights` is used as it is. processes: that train autoencoder and UNets side by side on
    a CPU, each on samples of its own; elsewhere one does their work.
    """
    device = torch.device(device)

    def together(work: Callable[..., None]) -> None:
        if device.type == "cpu":
            _side_by_side(work, processes, folder, weights)
        else:
            work(folder, weights, device, processes)

    folder.mkdir(parents=True, exist_ok=True)
    if not (weights / "vae.safetensors").is_file():
        together(_train_autoencoder)
        package.write_autoencoder(folder, weights)
    vision_language.train(folder, STEPS["clip"], device)
    package.write_clip(folder, weights)
    together(_train_unet)
    package.write_unet(folder, weights)
    vision_language.settle(folder, package.joined_clip(folder), STEPS["settling"], device)
    package.write_clip(folder, weights, "settled")
    together(_train_image_model)
    package.write_image_model(folder, weights)
    together(_train_motion_module)
    package.write_motion_module(folder, weights)


def _side_by_side(work: Callable[..., None], processes: int, folder: Path, weights: Path) -> None:
    """Several processes with a thread each, which use a CPU's cores better than one process with many."""
    (folder / "processes").unlink(missing_ok=True)  # by which they find each other: a killed run's misleads them
    spawn(_one_of, (processes, work, folder, weights), processes)


def _one_of(rank: int, processes: int, work: Callable[..., None], folder: Path, weights: Path) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder / 'processes'}", rank=rank, world_size=processes)
    work(folder, weights, torch.device("cpu"), 1)


# What one process trains, alone or beside others. share: as of `denoiser.train`.


def _train_autoencoder(folder: Path, weights: Path, device: torch.device, share: int) -> None:
    autoencoder.train(folder, STEPS["autoencoder"], device=device)
    if torch.distributed.is_initialized():
        torch.distributed.barrier()  # behind which the first one has saved it
    autoencoder.sharpen(folder, STEPS["decoder"], device=device)


def _train_unet(folder: Path, weights: Path, device: torch.device, share: int) -> None:
    denoiser.train(folder, training_encoders(weights, device), device=device, share=share)


def _train_image_model(folder: Path, weights: Path, device: torch.device, share: int) -> None:
    image_base.train_pictures(folder, training_encoders(weights, device), device=device, share=share)


def _train_motion_module(folder: Path, weights: Path, device: torch.device, share: int) -> None:
    image_base.train_motion_module(folder, training_encoders(weights, device), device=device, share=share)


def training_encoders(weights: Path, device: torch.device | str = "cpu") -> Encoders:
    """The encoders as they are stored, so that the UNet learns on what it will be used with."""
    return load_encoders(find_base(weights, partial=True), device=device)


def gate(folder: Path, size: int = world.SIZE, report: Callable[[str], None] = print) -> bool:
    """Measure what the autoencoder in `folder` keeps of held-out things: the one in training there, or vae.safetensors.

    Writes the sheet gate.png there, and of one in training its averaged weights as vae.safetensors. size: of the
    pictures, in pixels a side. Returns whether it passes; raises ValueError where there is none.
    """
    if (folder / "autoencoder.pt").is_file():
        package.write_autoencoder(folder, folder)
    elif not (folder / "vae.safetensors").is_file():
        raise ValueError(f"There is no autoencoder in {folder}: begin with dreamvideo nano train --out {folder}.")
    kept, sheet = reconstruction.measure(autoencoder_of(folder), size, report=report)
    for line in kept.lines():
        report(line)
    write_png(folder / "gate.png", sheet)
    return kept.passes


def autoencoder_of(folder: Path) -> Autoencoder:
    """The autoencoder of vae.safetensors in `folder`."""
    state, config = stored_vae(folder / "vae.safetensors")
    return KLAutoencoder(build_vae(dict(state.stream("cpu", torch.float32)), config))


def evaluate(
    weights: Path = package.FOLDER, count: int = 100, seed: int = 0, report: Callable[[str], None] = print
) -> dict[str, dict[str, float]]:
    """How often the rules agree with reconstructions and with samples of held-out captions.

    "image base": with samples of the image base and its motion module, where there is one beside the base.
    """
    files = find_base(weights)
    beside = image_base_beside(files)
    encoders = load_encoders(files)
    found = {"autoencoder": package.measure_autoencoder(encoders.vae, count)}
    report(f"autoencoder: {_line(found['autoencoder'])}")
    for name, base in {"samples": files, "image base": beside}.items():
        if base is not None:
            unet = load_unet(base.file("unet"), dtype=torch.float32, motion_module=base.motion_module)
            found[name] = package.measure_base(sampler(unet, encoders), count, seed=seed)
            report(f"{name}: {_line(found[name])}")
    return found


def sampler(unet: VideoUNet, encoders: Encoders, steps: int = EMBEDDED.steps) -> Callable[[list[str], int], Tensor]:
    """A function of captions and a seed that samples their videos [B, F, 3, H, W] as one batch."""

    def sample(captions: list[str], seed: int) -> Tensor:
        cells = world.SIZE // 8
        shape = (len(captions), 4, world.FRAMES, cells, cells)
        noise = offset_noise(shape, torch.Generator().manual_seed(seed))
        context = encoders.text.encode([*captions, ""])
        latents = sample_latents(unet, context[:-1], context[-1:], noise, steps=steps, guidance=EMBEDDED.guidance)
        frames = encoders.vae.decode(latents.transpose(1, 2).flatten(0, 1))
        return frames.unflatten(0, (len(captions), world.FRAMES))

    return sample


def _line(accuracy: dict[str, float]) -> str:
    return ", ".join(f"{name} {share:.0%}" for name, share in accuracy.items())
