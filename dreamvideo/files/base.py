"""A base on disk: which files of a folder are its UNet, its text and image encoder and its autoencoder.

A ModelScope base is a UNet, a text and image encoder, and an autoencoder. An image base is a Stable Diffusion 1.5
checkpoint, in which autoencoder and text encoder lie too, or a folder of diffusers; a motion module beside it, and an
image encoder if there is one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..safety.paths import PathLike
from .kinds import kinds_or_none, refuse_other_unet
from .shards import shards
from .tensors import SUFFIXES, CheckpointError

PARTS = {
    "unet": "UNet",
    "clip": "text and image encoder (CLIP)",
    "vae": "autoencoder (VAE)",
    "motion_module": "motion module (AnimateDiff)",
}
# What an image base may have in the place of the two together.
TOWERS = {"text": "text encoder (CLIP)", "vision": "image encoder (CLIP)"}

# Names under which the parts are published, best first; patterns below the base's folder.
FILE_NAMES = {
    "unet": (
        "unet.safetensors",
        "text2video_pytorch_model.safetensors",
        "text2video_pytorch_model.pth",
        "model_scope_v1-5_0632000.pth",
        "model_scope_v1-4_0600000.pth",
        "unet/diffusion_pytorch_model*.safetensors",
        "unet/diffusion_pytorch_model*.bin",
        "v1-5-pruned*.safetensors",
        "v1-5-pruned*.ckpt",
    ),
    "clip": (
        "clip.safetensors",
        "open_clip_pytorch_model.safetensors",
        "open_clip_model.safetensors",
        "open_clip_pytorch_model.bin",
    ),
    "vae": (
        "vae.safetensors",
        "VQGAN_autoencoder.safetensors",
        "VQGAN_autoencoder.pth",
        "VQGAN_autoencoder.ckpt",
        "vae/diffusion_pytorch_model*.safetensors",
        "vae/diffusion_pytorch_model*.bin",
        "v2-1_512-ema-pruned.safetensors",
        "v2-1_512-ema-pruned.ckpt",
    ),
    "text": ("text_encoder/model*.safetensors", "text_encoder/pytorch_model*.bin"),
    "vision": ("image_encoder/model*.safetensors", "image_encoder/pytorch_model*.bin"),
    "motion_module": (
        "motion_module.safetensors",
        "v3_sd15_mm.ckpt",
        "v3_sd15_mm.safetensors",
        "mm_sd_v15_v2.ckpt",
        "mm_sd_v15_v2.safetensors",
        "mm_sd_v15.ckpt",
        "mm_sd_v15.safetensors",
        "motion_adapter/diffusion_pytorch_model*.safetensors",
    ),
}
SOURCES = {
    "unet": (
        "text2video_pytorch_model.pth from iic/text-to-video-synthesis on ModelScope, the unet folder of "
        "damo-vilab/text-to-video-ms-1.7b on Hugging Face, or model_scope_v1-5_0632000.pth from iic/dreamvideo-t2v on "
        "ModelScope"
    ),
    "clip": "open_clip_pytorch_model.bin from laion/CLIP-ViT-H-14-laion2B-s32B-b79K on Hugging Face",
    "vae": (
        "VQGAN_autoencoder.pth from iic/text-to-video-synthesis on ModelScope, or v2-1_512-ema-pruned.ckpt from "
        "stabilityai/stable-diffusion-2-1-base on Hugging Face"
    ),
    "text": "text_encoder/model.safetensors of Stable Diffusion 1.5 in diffusers' layout, or a whole checkpoint of it",
}


@dataclass(frozen=True)
class BaseFiles:
    """The files of a base; None where a part is missing.

    An image base has a `text` encoder of its own, which may lie in the UNet's file, and perhaps an image encoder of its
    own (`vision`) and a motion module; a ModelScope base has none of these.
    """

    unet: Path | None
    clip: Path | None
    vae: Path | None
    motion_module: Path | None = None
    text: Path | None = None
    vision: Path | None = None
    image: bool = False

    @property
    def missing(self) -> tuple[str, ...]:
        """Which parts that it needs there is no file for."""
        needed = ("unet", "vae") if self.image and (self.text or self.clip) else ("unet", "clip", "vae")
        return tuple(
            "text" if self.image and part == "clip" else part for part in needed if getattr(self, part) is None
        )

    @property
    def present(self) -> dict[str, Path]:
        """Part -> file, a file only once."""
        parts = {part: getattr(self, part) for part in (*PARTS, *TOWERS)}
        inside = {part for part in ("vae", "text") if parts[part] == self.unet}
        return {part: path for part, path in parts.items() if path is not None and part not in inside}

    def file(self, part: str) -> Path:
        """The file of "unet", "clip" or "vae". Raises CheckpointError where there is none."""
        path = getattr(self, part)
        if path is None:
            raise CheckpointError(
                f"The base has no {named(part)}: put its file into the same folder ({SOURCES[part]})."
            )
        return path


def named(part: str) -> str:
    """A part in words."""
    return (PARTS | TOWERS)[part]


def find_base(
    folder: PathLike | None = None,
    *,
    unet: PathLike | None = None,
    clip: PathLike | None = None,
    vae: PathLike | None = None,
    motion_module: PathLike | None = None,
    partial: bool = False,
) -> BaseFiles:
    """The files of the base in `folder`, or the files given, which go before those of the folder.

    Parts are found by the names they are published under, else by what the tensor files of the folder hold.
    Raises CheckpointError when a part is missing (unless `partial`), telling which and where it comes from, and when a
    given file or the folder does not exist.
    """
    paths = {"unet": unet, "clip": clip, "vae": vae, "motion_module": motion_module}
    given = {part: Path(path) for part, path in paths.items() if path}
    for part, path in given.items():
        if path.is_dir():
            raise CheckpointError(
                f"{path} is a folder: name the file of the {PARTS[part]} in it, or give the folder of a base as --base."
            )
        if not path.is_file():
            raise CheckpointError(f"There is no file {path} for the {PARTS[part]}.")
    if folder is not None and Path(folder).is_file():
        raise CheckpointError(
            f"{folder} is a file, and a base is a folder: give the folder that holds it, or the file as a part "
            "(--unet, --clip, --vae or --motion-module)."
        )
    if folder is not None and not Path(folder).is_dir():
        raise CheckpointError(f"There is no folder {folder} to take the base from.")
    base = _of_parts(given, None if folder is None else Path(folder))
    if base.missing and not partial:
        raise CheckpointError(incomplete(base, folder))
    return base


def _of_parts(given: Mapping[str, Path], folder: Path | None) -> BaseFiles:
    def part(name: str) -> Path | None:
        return given.get(name) or (None if folder is None else _find_part(folder, name))

    unet = part("unet")
    held = [] if unet is None else kinds_or_none(unet)
    if unet is not None and not {"unet", "image unet"} & set(held):
        refuse_other_unet(unet)
    if "image unet" not in held:
        return BaseFiles(unet, part("clip"), part("vae"), given.get("motion_module"))
    vae = given.get("vae") or (unet if "vae" in held else part("vae"))
    text = unet if "text" in held else part("text")
    clip, vision = part("clip"), None
    if clip is None:
        vision = part("vision")
    elif _is_image_encoder(clip):
        clip, vision = None, clip
    return BaseFiles(unet, clip, vae, part("motion_module"), text, vision, image=True)


def _is_image_encoder(path: Path) -> bool:
    """Whether a file has the image encoder without being open_clip's two towers."""
    held = kinds_or_none(path)
    return "vision" in held and "clip" not in held


def _find_part(folder: Path, part: str) -> Path | None:
    for pattern in FILE_NAMES[part]:
        files = [path for path in folder.glob(pattern) if path.is_file()]
        hits = sorted(files, key=lambda path: (len(path.name), path))
        if hits:
            return hits[0]
    known = {name for names in FILE_NAMES.values() for name in names}
    others = [path for path in sorted(folder.iterdir()) if path.suffix in SUFFIXES and path.name not in known]
    kinds = {path: kinds_or_none(path) for path in others}
    hits = sorted({shards(path)[0] for path in others if part in kinds[path]})
    if part == "unet" and not hits:
        hits = sorted({shards(path)[0] for path in others if "image unet" in kinds[path]})
        for path in others if not hits else ():
            refuse_other_unet(path)
    if len(hits) > 1:
        raise CheckpointError(
            f"{folder} has several files with a {named(part)} ({', '.join(path.name for path in hits)}): name one."
        )
    return hits[0] if hits else None


def incomplete(base: BaseFiles, folder: PathLike | None) -> str:
    """What a base lacks and where it comes from, in a sentence."""
    present = [named(part) for part in base.present]
    lacks = "; ".join(f"the {named(part)}: {SOURCES[part]}" for part in base.missing)
    where = folder if folder is not None else "The base"
    state = f"is half a base (it has the {' and the '.join(present)})" if present else "holds no base"
    return f"{where} {state}; what is missing and where it comes from: {lacks}."
