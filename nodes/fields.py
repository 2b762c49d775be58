"""What several nodes share: the adapter type, common inputs, and the way between the host's images and the engine's."""

from __future__ import annotations

from comfy_api.latest import io
from torch import Tensor

from ..dreamvideo.media.masks import fit_mask
from ..dreamvideo.safety.limits import LIMITS
from ..dreamvideo.safety.sizes import check_divides

CATEGORY = "DreamVideo"
TRAINING = f"{CATEGORY}/training"


def most(name: str) -> int | float:
    """The largest number that every face takes under this name."""
    return LIMITS[name].most


MAX_FRAMES, MAX_SIDE, MAX_STEPS = most("frames"), most("width"), most("steps")

ADVANCED = {"advanced": True}  # folded away until it is asked for; older hosts' inputs take no argument for it

Adapter = io.Custom("DREAMVIDEO_ADAPTER")


def model_input(tooltip: str = "The video model, from Load ModelScope T2V or Load AnimateDiff.") -> io.Model.Input:
    return io.Model.Input("model", tooltip=tooltip)


def clip_input() -> io.Clip.Input:
    return io.Clip.Input("clip", tooltip="The text encoder of the same base.")


def vae_input() -> io.Vae.Input:
    return io.Vae.Input("vae", tooltip="The autoencoder of the same base; any Stable Diffusion 1 or 2 VAE will do.")


def size_inputs(width: int = 256, height: int = 256) -> list:
    return [
        io.Int.Input(
            name,
            default=pixels,
            min=64,
            max=MAX_SIDE,
            step=8,
            tooltip=(
                f"{name.capitalize()} in pixels. ModelScope was trained at 256, Stable Diffusion 1.5 at 512; the "
                "embedded base works at 128."
            ),
        )
        for name, pixels in (("width", width), ("height", height))
    ]


def seed_input(tooltip: str, *, control: bool) -> io.Int.Input:
    """control: whether the frontend may draw a new one after each run; a trainer would train anew."""
    return io.Int.Input("seed", default=0, min=0, max=most("seed"), control_after_generate=control, tooltip=tooltip)


def other_base_input() -> io.Boolean.Input:
    return io.Boolean.Input(
        "other_base",
        default=False,
        optional=True,
        tooltip=(
            "Take an adapter that was trained on other weights of the same architecture, such as one of ModelScope on "
            "ZeroScope; off refuses it."
        ),
    )


def engine_images(images: Tensor) -> Tensor:
    """IMAGE [N, H, W, C] -> [N, 3, H, W] on the CPU, without alpha."""
    check_images(images)
    return images[..., :3].movedim(-1, 1).float().clamp(0, 1).cpu().contiguous()


def check_images(images: Tensor) -> None:
    if images.ndim != 4 or images.shape[-1] < 3 or not images.numel():
        raise ValueError(f"IMAGE holds no pictures that can be used: its shape is {list(images.shape)}.")


def host_images(images: Tensor) -> Tensor:
    """[N, 3, H, W] -> IMAGE [N, H, W, 3]."""
    return images.movedim(1, -1).float().cpu().contiguous()


def subject_masks(masks: Tensor | None, images: Tensor, first: int = 1) -> list[Tensor | None]:
    """MASK [N or 1, h, w] for images [N, 3, H, W] -> one [1, H, W] of 0 and 1 each; None where nothing is painted.

    Load Image gives a small black MASK for a picture without one. `first`: what messages call the first photograph.
    ValueError when there are neither one nor as many, and for a mask of another shape than its photograph.
    """
    count, size = len(images), tuple(images.shape[-2:])
    if masks is None:
        return [None] * count
    masks = (masks.reshape(-1, 1, *masks.shape[-2:]).float().cpu() > 0.5).float()
    if len(masks) not in (1, count):
        raise ValueError(f"Got {len(masks)} masks for {count} images: connect one each, in the same order, or none.")
    named = enumerate(masks.expand(count, -1, -1, -1), start=first)
    return [fit_mask(mask, size, f"of photograph {number}") if mask.any() else None for number, mask in named]


def one(values, default=None):
    """The single value of an input of a node that takes lists."""
    if isinstance(values, list):
        return values[0] if values else default
    return default if values is None else values


def check_size(unet_config, width: int, height: int) -> None:
    """Raise ValueError for pixels that the base cannot take."""
    check_divides("A picture", width, height, 8 * unet_config.stride)
