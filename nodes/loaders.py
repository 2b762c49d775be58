"""Load ModelScope T2V: all parts of a base by one name."""

from __future__ import annotations

from pathlib import Path

import torch
from comfy_api.latest import io

from ..dreamvideo.base import EMBEDDED_FOLDER
from ..dreamvideo.files.base import FILE_NAMES, SOURCES, BaseFiles, find_base
from ..dreamvideo.safety.paths import inside
from ..dreamvideo.safety.texts import quoted
from . import host
from .fields import CATEGORY

EMBEDDED = "embedded"
AUTOMATIC = "automatic"
PRECISIONS = {
    "default": None,
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp8_e4m3fn": torch.float8_e4m3fn,
}
PLACES = {"unet": ("diffusion_models",), "clip": ("text_encoders", "clip_vision"), "vae": ("vae",)}


class LoadModelScopeT2V(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DreamVideoLoadModelScope",
            display_name="Load ModelScope T2V",
            category=CATEGORY,
            description=(
                "Loads a ModelScope text-to-video base: model, text encoder, autoencoder and image encoder. "
                "The embedded base comes with this pack and needs no download; it knows a small world of toys only."
            ),
            inputs=[
                io.Combo.Input(
                    "base",
                    options=base_names(),
                    default=EMBEDDED,
                    tooltip=(
                        "Which base: the embedded one, a folder in models/dreamvideo that holds all its files, "
                        "or a UNet file in models/diffusion_models."
                    ),
                ),
                io.Combo.Input(
                    "clip_file",
                    options=[AUTOMATIC, *host.files_in("text_encoders")],
                    default=AUTOMATIC,
                    tooltip=(
                        "OpenCLIP ViT-H-14 with its text and its image encoder; automatic takes the base folder's own, "
                        "or the file that is called open_clip_pytorch_model in models/text_encoders."
                    ),
                ),
                io.Combo.Input(
                    "vae_file",
                    options=[AUTOMATIC, *host.files_in("vae")],
                    default=AUTOMATIC,
                    tooltip=(
                        "The autoencoder; automatic takes the base folder's own, or the file that is called "
                        "VQGAN_autoencoder or v2-1_512-ema-pruned in models/vae."
                    ),
                ),
                io.Combo.Input(
                    "precision",
                    options=list(PRECISIONS),
                    default="default",
                    tooltip="How the model's weights are kept: default lets ComfyUI choose, fp8 saves half the memory.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The video model; frames are the batch of its LATENT."),
                io.Clip.Output(display_name="clip", tooltip="The text encoder."),
                io.Vae.Output(display_name="vae", tooltip="The autoencoder."),
                io.ClipVision.Output(display_name="clip_vision", tooltip="The image encoder, for appearance guidance."),
            ],
        )

    @classmethod
    def execute(cls, base, clip_file=AUTOMATIC, vae_file=AUTOMATIC, precision="default") -> io.NodeOutput:
        files = base_files(base, clip_file, vae_file)
        return io.NodeOutput(
            host.load_model(files.unet, PRECISIONS[precision]),
            host.load_clip(files.clip),
            host.load_vae(files.vae),
            host.load_clip_vision(files.clip),
        )

    @classmethod
    def validate_inputs(cls, base):
        # In place of the host's own check: some take the slash off a folder's name before they compare.
        if base is None or base in base_names():
            return True
        if base.endswith("/"):
            return no_folder(base)
        return _absent("unet", base)

    @classmethod
    def fingerprint_inputs(cls, base, clip_file=AUTOMATIC, vae_file=AUTOMATIC, precision="default"):
        try:
            files = base_files(base, clip_file, vae_file)
            return [precision, *((str(path), path.stat().st_mtime) for path in (files.unet, files.clip, files.vae))]
        except (ValueError, OSError):
            return float("nan")  # the run will say what is wrong


def base_names() -> list[str]:
    """What the widget offers."""
    return [EMBEDDED, *folder_names(), *host.files_in("diffusion_models")]


def folder_names() -> list[str]:
    """Folders in models/dreamvideo, as the widget shows them."""
    found = set()
    for root in host.folders_of(host.BASES_FOLDER):
        if root.is_dir():
            found |= {f"{path.name}/" for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")}
    return sorted(found)


def base_files(base: str, clip: str, vae: str) -> BaseFiles:
    """The files that the widgets name. ValueError telling what is missing, where to get it and where to put it."""
    if base is None:
        raise ValueError("The input base holds nothing: choose one in the list.")
    given = {
        "clip": None if clip == AUTOMATIC else _chosen("clip", clip),
        "vae": None if vae == AUTOMATIC else _chosen("vae", vae),
    }
    if base == EMBEDDED:
        found = find_base(EMBEDDED_FOLDER, **given, partial=True)
        if found.unet is None:
            raise ValueError("The embedded base's files are not in this copy of the pack: install it again.")
        return found
    if base.endswith("/"):
        found = find_base(base_folder(base), **given, partial=True)
        if found.image:
            raise ValueError(f"The base {base} is Stable Diffusion 1.5: load it with Load Image Base.")
    else:
        found = BaseFiles(_chosen("unet", base), given["clip"], given["vae"])
    parts = {part: getattr(found, part) or _published(part) for part in ("clip", "vae")}
    found = BaseFiles(found.unet, **parts)
    if found.missing:
        raise ValueError(_missing(base, found))
    return found


def no_folder(name: str) -> str:
    return f"There is no folder {quoted(name)} in models/dreamvideo; reload the page if it was added just now."


def base_folder(name: str) -> Path:
    """A folder in models/dreamvideo, by the name that the widget shows. ValueError where there is none."""
    if name not in folder_names():
        raise ValueError(no_folder(name))
    roots = host.folders_of(host.BASES_FOLDER)
    root = next(root for root in roots if (root / name).is_dir())
    return inside(root, name.rstrip("/"))


def _chosen(part: str, file: str) -> Path:
    """The file that a widget names. ValueError telling where to get it, where it is not there."""
    if file not in host.files_in(PLACES[part][0]):
        raise ValueError(_absent(part, file))
    return host.file_in(PLACES[part][0], file)


def _absent(part: str, file: str) -> str:
    folder = PLACES[part][0]
    return (
        f"There is no {quoted(file)} in models/{folder}. Get {SOURCES[part]}: put it into models/{folder} and press R, "
        "or choose another in the list."
    )


def _published(part: str) -> Path | None:
    """A file of the host's folders that has one of the names under which the part is published."""
    for folder in PLACES[part]:
        listed = {Path(name).name: name for name in reversed(host.files_in(folder))}
        for name in FILE_NAMES[part]:
            if name in listed:
                return host.file_in(folder, listed[name])
    return None


def _missing(base: str, found: BaseFiles) -> str:
    folder = f"models/dreamvideo/{base}" if base.endswith("/") else None
    lacks = "; ".join(f"{SOURCES[part]}: put it into {folder or f'models/{PLACES[part][0]}'}" for part in found.missing)
    names = {"unet": "UNet", "clip": "text and image encoder", "vae": "autoencoder"}
    return f"The base {base} lacks its {' and '.join(names[part] for part in found.missing)}. Get {lacks}."


NODES = [LoadModelScopeT2V]
