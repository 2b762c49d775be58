"""Load AnimateDiff: a stock MODEL of Stable Diffusion 1.5 and a motion module as a model of videos.

Load Image Base: both, and their encoders, from a folder of models/dreamvideo.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path, PurePath

from comfy_api.latest import io

from ..dreamvideo.base import EMBEDDED_FOLDER, image_base_beside
from ..dreamvideo.files.base import FILE_NAMES, BaseFiles, find_base, incomplete
from ..dreamvideo.safety.texts import quoted
from . import host
from .fields import CATEGORY
from .loaders import AUTOMATIC, EMBEDDED, base_folder, folder_names, no_folder

NO_MODULE = "none"
NO_FOLDER = "The input base holds nothing: choose one in the list."
KNOWN = {PurePath(pattern).name for pattern in FILE_NAMES["motion_module"] if "*" not in pattern}
GET_MODULE = "Get v3_sd15_mm.ckpt from guoyww/animatediff on Hugging Face: put it"


class LoadAnimateDiff(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DreamVideoLoadAnimateDiff",
            display_name="Load AnimateDiff",
            category=CATEGORY,
            description=(
                "Makes a video model of a Stable Diffusion 1.5 checkpoint and a motion module of AnimateDiff. Text "
                "encoder and autoencoder are those of Load Checkpoint."
            ),
            inputs=[
                io.Model.Input(
                    "model", tooltip="A Stable Diffusion 1.5 model from Load Checkpoint, with LoRAs on it or without."
                ),
                io.Combo.Input(
                    "motion_module",
                    options=[*motion_modules(), NO_MODULE],
                    tooltip=(
                        "A motion module in models/animatediff_models, or that of a base in models/dreamvideo; none "
                        "leaves every frame alone, as Tune-A-Video has it."
                    ),
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The video model; frames are the batch of its LATENT.")
            ],
        )

    @classmethod
    def execute(cls, model, motion_module) -> io.NodeOutput:
        return io.NodeOutput(host.with_motion_module(model, module_file(motion_module)))

    @classmethod
    def validate_inputs(cls, motion_module):
        # In place of the host's own check, which knows no way out.
        try:
            module_file(motion_module)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, motion_module, **_):
        try:
            path = module_file(motion_module)
            return [] if path is None else [str(path), path.stat().st_mtime]
        except (ValueError, OSError):
            return float("nan")  # the run will say what is wrong


def motion_modules() -> dict[str, str]:
    """What the widget offers -> the host's folder that it lies in. Of bases, by the names they are published under."""
    bases = [name for name in host.files_in(host.BASES_FOLDER) if PurePath(name).name in KNOWN]
    return {
        **dict.fromkeys(bases, host.BASES_FOLDER),
        **dict.fromkeys(host.files_in(host.MOTION_FOLDER), host.MOTION_FOLDER),
    }


def module_file(name: str | None) -> Path | None:
    """The file that the widget names, None for none. ValueError telling where to get one, where it is not there."""
    if name == NO_MODULE:
        return None
    found = motion_modules()
    if name is None or name not in found:
        raise ValueError(
            f"There is no motion module {quoted(name or '')} in models/animatediff_models. {GET_MODULE} there and "
            "press R, or choose another in the list."
        )
    return host.file_in(found[name], name)


class LoadImageBase(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DreamVideoLoadImageBase",
            display_name="Load Image Base",
            category=CATEGORY,
            description=(
                "Loads a Stable Diffusion 1.5 base that lies whole in one folder, as the command line takes it: video "
                "model, text encoder, autoencoder and, where there is one, image encoder."
            ),
            inputs=[
                io.Combo.Input(
                    "base",
                    options=[EMBEDDED, *folder_names()],
                    default=EMBEDDED,
                    tooltip=(
                        "A folder in models/dreamvideo with a Stable Diffusion 1.5 checkpoint, or one in diffusers' "
                        "layout, and a motion module beside it; or the embedded one, which knows a small world of toys."
                    ),
                ),
                io.Combo.Input(
                    "motion_module",
                    options=[AUTOMATIC, *motion_modules(), NO_MODULE],
                    default=AUTOMATIC,
                    tooltip=(
                        "Automatic takes the folder's own, or one that has its published name in "
                        "models/animatediff_models; none leaves every frame alone, as Tune-A-Video has it."
                    ),
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The video model; frames are the batch of its LATENT."),
                io.Clip.Output(display_name="clip", tooltip="The text encoder."),
                io.Vae.Output(display_name="vae", tooltip="The autoencoder."),
                io.ClipVision.Output(
                    display_name="clip_vision",
                    tooltip="The image encoder, for appearance guidance; nothing where the folder has none.",
                ),
            ],
        )

    @classmethod
    def execute(cls, base, motion_module=AUTOMATIC) -> io.NodeOutput:
        files = image_files(base, motion_module)
        return io.NodeOutput(*host.load_image_base(files), host.image_encoder(files))

    @classmethod
    def validate_inputs(cls, base, motion_module):
        # In place of the host's own check: some take the slash off a folder's name before they compare.
        if base != EMBEDDED and base not in folder_names():
            return NO_FOLDER if base is None else no_folder(base)
        return True if motion_module == AUTOMATIC else LoadAnimateDiff.validate_inputs(motion_module)

    @classmethod
    def fingerprint_inputs(cls, base, motion_module=AUTOMATIC):
        try:
            files = image_files(base, motion_module)
            return [(part, str(path), path.stat().st_mtime) for part, path in files.present.items()]
        except (ValueError, OSError):
            return float("nan")  # the run will say what is wrong


def image_files(base: str, motion_module: str) -> BaseFiles:
    """The files of an image base that the widgets name. ValueError telling what is missing and where to get it."""
    if base == EMBEDDED:
        return _embedded(motion_module)
    found = find_base(base_folder(base), partial=True)
    if found.unet is None:
        raise ValueError(
            f"models/dreamvideo/{base} holds no Stable Diffusion 1.5 checkpoint: put one there, or load it with Load "
            "Checkpoint and Load AnimateDiff."
        )
    if not found.image:
        raise ValueError(f"The base {base} is ModelScope's: load it with Load ModelScope T2V.")
    found = found if found.text else replace(found, clip=None)  # whose text states are of another model
    if found.missing:
        raise ValueError(incomplete(found, f"models/dreamvideo/{base}"))
    return replace(found, motion_module=_module_for(found, base, motion_module))


def _embedded(motion_module: str) -> BaseFiles:
    found = image_base_beside(find_base(EMBEDDED_FOLDER))
    if found is None:
        raise ValueError("The embedded image base's files are not in this copy of the pack: install it again.")
    return found if motion_module == AUTOMATIC else replace(found, motion_module=module_file(motion_module))


def _module_for(found: BaseFiles, base: str, name: str) -> Path | None:
    if name != AUTOMATIC:
        return module_file(name)
    published = [each for each in host.files_in(host.MOTION_FOLDER) if PurePath(each).name in KNOWN]
    own = found.motion_module or (host.file_in(host.MOTION_FOLDER, published[0]) if published else None)
    if own is None:
        raise ValueError(
            f"The base {base} has no motion module. {GET_MODULE} into models/dreamvideo/{base} or "
            "models/animatediff_models, or choose none for Tune-A-Video."
        )
    return own


NODES = [LoadAnimateDiff, LoadImageBase]
