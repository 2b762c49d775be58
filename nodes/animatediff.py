"""Load AnimateDiff: a stock MODEL of Stable Diffusion 1.5 and a motion module as a model of videos."""

from __future__ import annotations

from pathlib import Path, PurePath

from comfy_api.latest import io

from ..dreamvideo.files.base import FILE_NAMES
from ..dreamvideo.safety.texts import quoted
from . import host
from .fields import CATEGORY

NO_MODULE = "none"
KNOWN = {PurePath(pattern).name for pattern in FILE_NAMES["motion_module"] if "*" not in pattern}


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
            f"There is no motion module {quoted(name or '')} in models/animatediff_models. Get v3_sd15_mm.ckpt from "
            "guoyww/animatediff on Hugging Face: put it there and press R, or choose another in the list."
        )
    return host.file_in(found[name], name)


NODES = [LoadAnimateDiff]
