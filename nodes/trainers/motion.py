"""A motion's training node."""

from __future__ import annotations

from collections.abc import Sequence

from comfy_api.latest import io
from torch import Tensor

from ...dreamvideo.models.network import check_frames
from ...dreamvideo.plans import motion_plan
from ...dreamvideo.sampling import missing_placeholders, notes_on_motion
from ...dreamvideo.training.data import encode_clips
from ...dreamvideo.training.methods import MOTION_METHODS, MOTION_WORD, Method, for_clips
from ..fields import TRAINING, check_images, check_size, clip_input, engine_images, model_input, one, vae_input
from .inputs import SWITCH, file_inputs, method_input, motion_inputs, outputs, rate_input, run_inputs, steps_input
from .run import Job

IMAGE_DROP = {"automatic": None, "half": 0.5, "never": 0.0}


class TrainMotion(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DreamVideoTrainMotion",
            display_name="Train Motion Adapter",
            category=TRAINING,
            description="Learns a motion from one or several clips; their frames guide it, so that looks stay out.",
            is_input_list=True,
            inputs=[
                model_input(),
                clip_input(),
                vae_input(),
                io.ClipVision.Input(
                    "clip_vision",
                    optional=True,
                    tooltip="The image encoder of the base, for appearance guidance; without one there is none.",
                ),
                io.Image.Input("clips", tooltip="The clips, from Motion Clips: one batch of frames each."),
                io.String.Input("captions", force_input=True, tooltip="A caption for each clip, from Motion Clips."),
                io.Int.Input("frames", force_input=True, tooltip="Frames of a training sample, from Motion Clips."),
                steps_input("motion"),
                rate_input("motion"),
                *run_inputs(),
                io.Float.Input(
                    "text_drop",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="How often the caption is left out: 0.5 as released; some methods never do.",
                ),
                io.Combo.Input(
                    "image_drop",
                    options=list(IMAGE_DROP),
                    default="automatic",
                    tooltip=(
                        "How often a blank image takes the frame's place: automatic is half of the time for one clip "
                        "and never for several, as released."
                    ),
                ),
                method_input(MOTION_METHODS),
                *file_inputs("motion"),
                *motion_inputs(),
            ],
            outputs=outputs(clip=False),
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, model, clip, vae, clips, captions, frames, clip_vision=None, masks=None, **lists) -> io.NodeOutput:
        model, clip, vae, clip_vision, frames = (one(each) for each in (model, clip, vae, clip_vision, frames))
        run = {name: one(values) for name, values in lists.items()}
        job = Job.of(cls, model, clip, vae, clip_vision)
        if len(captions) != len(clips):
            raise ValueError(f"Got {len(captions)} captions for {len(clips)} clips: connect both of Motion Clips.")
        if masks and len(masks) != len(clips):
            raise ValueError(f"Got {len(masks)} masks for {len(clips)} clips: connect both of Motion Clips.")
        for each in clips:
            check_images(each)
            check_size(job.config, each.shape[2], each.shape[1])
        check_frames(job.config, frames)
        method = job.guided(MOTION_METHODS[run["method"]])
        placeholder = _placeholder_in(captions, method)
        for note in notes_on_motion(captions, frames, known=[placeholder]):
            job.say(note)
        pairs = ((engine_images(each), cover) for each, cover in zip(clips, _covers(masks, len(clips)), strict=True))
        data = job.seen(encode_clips(pairs, captions, job.encoders, frames))
        row = for_clips(method, len(clips))
        chosen = {
            **{name: SWITCH[run.get(name) or "automatic"] for name in ("debias", "absorber")},
            "p_text_drop": run["text_drop"] if row.p_text_drop else None,
            "p_image_drop": IMAGE_DROP[run["image_drop"]] if row.appearance_guidance else None,
        }
        plan = motion_plan(
            job.defaults, job.config, method, len(clips), placeholder=placeholder, class_word=MOTION_WORD,
            settings=job.settings(run) | chosen,
        )  # fmt: skip
        return job.run("motion", plan, data, ["motion", run["method"], data.digest], run)


def _covers(masks: Sequence[Tensor] | None, clips: int) -> list[Tensor | None]:
    """A mask [N, H, W] for each clip; None for one without white."""
    return [each.float().cpu() if each.any() else None for each in masks] if masks else [None] * clips


def _placeholder_in(captions: Sequence[str], method: Method) -> str:
    """The name that a motion's captions give it, where a method learns a word for it."""
    if method.token != "learned":
        return ""
    named = missing_placeholders(captions[0], {})
    if not named:
        raise ValueError(f"{method.name} learns a word for the motion: name it in the caption, as <my-motion>.")
    return named[0]
