"""Several subjects and motions in one video: parts of it, and prompts that only a part reads."""

from __future__ import annotations

from comfy_api.latest import io

from ..dreamvideo.models.regions import part_of_video
from . import host
from .fields import CATEGORY, MAX_FRAMES


def _part(name: str, default: float, tooltip: str) -> io.Float.Input:
    return io.Float.Input(name, default=default, min=0.0, max=1.0, step=0.01, tooltip=tooltip)


class PartOfVideo(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DreamVideoPartOfVideo",
            display_name="Part of a Video",
            category=CATEGORY,
            description=(
                "A mask of a box in the picture and of a stretch of frames: where a subject stands, when a motion "
                "happens. Any other MASK will do as well, one picture or one a frame."
            ),
            inputs=[
                io.Int.Input("frames", default=32, min=1, max=MAX_FRAMES, tooltip="Length of the video in frames."),
                _part("left", 0.0, "Left edge of the box: 0 is the picture's left, 1 its right."),
                _part("right", 1.0, "Right edge of the box: 0 is the picture's left, 1 its right."),
                _part("top", 0.0, "Upper edge of the box: 0 is the picture's top, 1 its bottom."),
                _part("bottom", 1.0, "Lower edge of the box: 0 is the picture's top, 1 its bottom."),
                _part("start", 0.0, "Where in the video it begins: 0 is the first frame."),
                _part("end", 1.0, "Where in the video it ends: 1 is the last frame."),
            ],
            outputs=[io.Mask.Output(display_name="mask", tooltip="One mask a frame, white in the part.")],
        )

    @classmethod
    def execute(cls, frames=32, left=0.0, right=1.0, top=0.0, bottom=1.0, start=0.0, end=1.0) -> io.NodeOutput:
        return io.NodeOutput(part_of_video(frames, (left, right), (top, bottom), (start, end)))


class PromptRegion(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DreamVideoPromptRegion",
            display_name="Prompt a Region",
            category=CATEGORY,
            description=(
                "Lets a part of the video read a prompt of its own instead of the video's, so that two subjects do not "
                "bleed into each other. One node a subject, in a row."
            ),
            inputs=[
                io.Conditioning.Input("positive", tooltip="The video's encoded prompt, or one that has regions."),
                io.Conditioning.Input("region_prompt", tooltip="The encoded prompt that this part reads."),
                io.Mask.Input("mask", tooltip="The part, white; one mask for all frames, or one a frame."),
                io.Float.Input(
                    "apart",
                    optional=True,  # graphs from before it run on
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip=(
                        "Up to this part of the steps the region is drawn by itself, as a picture of its own: raise it "
                        "where only one of two subjects appears, and connect negative. 0 draws all together, 1 each "
                        "apart to the end."
                    ),
                ),
                io.Conditioning.Input(
                    "negative",
                    optional=True,
                    tooltip="The encoded negative prompt, or one that has regions; where apart is above 0.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(display_name="positive", tooltip="The video's prompt with the region."),
                io.Conditioning.Output(
                    display_name="negative", tooltip="The negative prompt, which is drawn apart in the same region."
                ),
            ],
        )

    @classmethod
    def execute(cls, positive, region_prompt, mask, apart=0.0, negative=None) -> io.NodeOutput:
        if apart > 0 and negative is None:
            raise ValueError(
                "A region that is drawn apart needs the negative prompt, too: connect it to negative, and this node's "
                "to the sampler, or set apart to 0."
            )
        region = as_region(mask)
        where = None if negative is None else host.with_region(negative, negative, region, apart)
        return io.NodeOutput(host.with_region(positive, region_prompt, region, apart), where)


def as_region(mask):
    """A MASK as the engine takes it: [H, W], or [F, H, W] where there is one a frame."""
    region = mask[0] if mask.ndim == 3 and len(mask) == 1 else mask
    return region.float().clamp(0, 1)


NODES = [PartOfVideo, PromptRegion]
