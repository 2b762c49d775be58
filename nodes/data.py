"""What to train on: photographs of a subject, clips of a motion. What leaves here is what the trainers see."""

from __future__ import annotations

from fractions import Fraction
from itertools import chain

import torch
from comfy_api.latest import io, ui
from torch import Tensor

from ..dreamvideo.evaluation.pictures import contact_sheet, few_frames
from ..dreamvideo.media.clips import Clip, Taken, cover_of, read_motion
from ..dreamvideo.media.masks import cover_crop, crop_note, crop_subject
from ..dreamvideo.media.times import thin_out
from ..dreamvideo.nano.demo import toy_material
from . import host
from .fields import (
    MAX_FRAMES,
    TRAINING,
    check_images,
    engine_images,
    host_images,
    one,
    size_inputs,
    subject_masks,
)

FRAMES_AT_ONCE = 4  # of a full size that may be large


class ToyMedia(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DreamVideoToyMedia",
            display_name="Toy Media",
            category=TRAINING,
            description="Four photographs and a clip for trying everything on the embedded base, which never saw them.",
            inputs=[
                io.Int.Input(
                    "frames", default=8, min=2, max=64, tooltip="Length of the clip in frames; the embedded base has 8."
                ),
                io.Boolean.Input(
                    "other",
                    default=False,
                    optional=True,
                    tooltip="Another toy, <other-toy>, and a clip of another motion: for two of each in one video.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="images", tooltip="Photographs of a toy, 128 x 128 pixels."),
                io.Mask.Output(display_name="masks", tooltip="White on the toy, one for each photograph."),
                io.Image.Output(display_name="clip", tooltip="A clip of another toy, 8 frames a second, as a batch."),
                io.String.Output(display_name="caption", tooltip="What happens in the clip."),
                io.String.Output(display_name="prompt", tooltip="A prompt for the toy in that motion."),
            ],
        )

    @classmethod
    def execute(cls, frames=8, other=False) -> io.NodeOutput:
        found = toy_material(frames, other)
        photographs = [photo.image for photo in found.photos]
        sheet = contact_sheet([("photographs", photographs), ("clip", few_frames(found.clip, len(photographs)))])
        return io.NodeOutput(
            host_images(torch.stack(photographs)),
            torch.cat([photo.mask.reshape(1, *photo.image.shape[1:]) for photo in found.photos]).float(),
            host_images(found.clip),
            found.motion_caption,
            found.prompt.format(found.placeholder),
            ui=ui.PreviewImage(host_images(sheet[None]), cls=cls),
        )


class SubjectImages(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DreamVideoSubjectImages",
            display_name="Subject Images",
            category=TRAINING,
            description=(
                "Gathers 3 to 6 photographs of a subject at one size, with a mask each where there is one. "
                "Chain several of these nodes for photographs of different sizes."
            ),
            is_input_list=True,
            inputs=[
                io.Image.Input("images", tooltip="Photographs of the subject; a batch or a list."),
                *size_inputs(),
                io.Boolean.Input(
                    "invert_masks",
                    default=False,
                    tooltip="Turn on where the masks mark the background, as a cut-out picture's own mask does.",
                ),
                io.Mask.Input("masks", optional=True, tooltip="White on the subject, one for each photograph."),
                io.Image.Input("more_images", optional=True, tooltip="Photographs of another Subject Images node."),
                io.Mask.Input("more_masks", optional=True, tooltip="The masks of that node."),
            ],
            outputs=[
                io.Image.Output(display_name="images", tooltip="All photographs, scaled and cropped to the size."),
                io.Mask.Output(display_name="masks", tooltip="A mask for each: all white where there is none."),
            ],
        )

    @classmethod
    def execute(
        cls, images, width, height, invert_masks, masks=None, more_images=None, more_masks=None
    ) -> io.NodeOutput:
        size = (one(height), one(width))
        photos, kept, notes = _gather(images, masks, size, one(invert_masks, False))
        if more_images:
            others, others_kept, others_notes = _gather(more_images, more_masks, size, False)
            photos, kept, notes = torch.cat([others, photos]), torch.cat([others_kept, kept]), others_notes + notes
        shaded = photos * (0.35 + 0.65 * kept)  # what the loss does not see is dark
        rows = [(f"{len(photos)} photographs of {size[1]} x {size[0]}", list(shaded))]
        sheet = contact_sheet(rows, title=" ".join(notes))
        return io.NodeOutput(host_images(photos), kept[:, 0], ui=ui.PreviewImage(host_images(sheet[None]), cls=cls))


def _gather(images: list[Tensor], masks: list[Tensor] | None, size, invert: bool) -> tuple[Tensor, Tensor, list[str]]:
    """Photographs [N, 3, H, W] and masks [N, 1, H, W] of a list of batches, and notes on what was cut off."""
    batches = [engine_images(batch) for batch in images]
    given: list[Tensor | None] = list(masks) if masks else [None] * len(batches)
    if len(given) != len(batches):
        raise ValueError(f"Got {len(given)} batches of masks for {len(batches)} of images: connect as many of both.")
    photos, kept, notes = [], [], []
    for batch, mask in zip(batches, given, strict=True):
        if mask is not None and invert and mask.any():
            mask = 1 - mask
        for photo, region in zip(batch, subject_masks(mask, batch, len(photos) + 1), strict=True):
            number = len(photos) + 1
            if region is None:
                photo, region, lost = cover_crop(photo, *size), torch.ones(1, *size), 0.0
            else:
                photo, region, lost = crop_subject(photo, region, size, f"of photograph {number}")
            photos.append(photo)
            kept.append(region)
            if note := crop_note(lost, size):
                notes.append(f"Photograph {number}: {note}")
    return torch.stack(photos), torch.stack(kept), notes


class MotionClips(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DreamVideoMotionClips",
            display_name="Motion Clips",
            category=TRAINING,
            description=(
                "Prepares a clip that shows a motion, with its caption. Chain several of these nodes to learn one "
                "motion from several clips. The clips come out as a list: Save Video or Preview Image shows each."
            ),
            is_input_list=True,
            inputs=[
                io.String.Input(
                    "caption",
                    default="a person is playing the violin",
                    multiline=True,
                    tooltip="What happens in the clip, in a few plain words: who does what, where.",
                ),
                io.Int.Input(
                    "frames",
                    default=32,
                    min=2,
                    max=MAX_FRAMES,
                    tooltip="Frames of one training sample; of a longer clip every step takes another stretch.",
                ),
                io.Float.Input(
                    "fps",
                    default=8.0,
                    min=0.5,
                    max=60.0,
                    step=0.5,
                    tooltip="Frames a second to learn at: 8 as in the paper. A clip of a higher rate is thinned out.",
                ),
                *size_inputs(),
                io.Float.Input(
                    "images_fps",
                    default=8.0,
                    min=0.5,
                    max=240.0,
                    step=0.5,
                    tooltip="Frame rate of the images input; a VIDEO brings its own.",
                ),
                io.Video.Input("video", optional=True, tooltip="A clip, from Load Video."),
                io.Image.Input("images", optional=True, tooltip="A clip as a batch of frames, instead of a video."),
                io.Image.Input("more_clips", optional=True, tooltip="The clips of another Motion Clips node."),
                io.String.Input(
                    "more_captions", optional=True, force_input=True, tooltip="The captions of that node, in order."
                ),
                io.Mask.Input(
                    "masks",
                    optional=True,
                    tooltip="White on what is not to be learned from, such as faces: one a frame, or one for all.",
                ),
                io.Mask.Input("more_masks", optional=True, tooltip="The masks of the node that more_clips come from."),
                io.Boolean.Input(
                    "invert_masks",
                    default=False,
                    optional=True,
                    tooltip="Turn on where the masks mark what is to be learned from, and leave out the rest.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="clips", is_output_list=True, tooltip="The clips, one batch of frames each."
                ),
                io.String.Output(display_name="captions", is_output_list=True, tooltip="A caption for each clip."),
                io.Int.Output(display_name="frames", tooltip="Frames of one training sample."),
                io.Float.Output(display_name="fps", tooltip="Frames a second, for saving or previewing the clips."),
                io.Mask.Output(
                    display_name="masks",
                    is_output_list=True,
                    tooltip="A mask for each frame of each clip, white on what is not learned from; else black.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls, caption, frames, fps, width, height, images_fps, video=None, images=None, more_clips=None,
        more_captions=None, masks=None, more_masks=None, invert_masks=None,
    ) -> io.NodeOutput:  # fmt: skip
        videos, batches = video or [], images or []
        sources = len(videos) + len(batches)
        if not sources:
            raise ValueError("There is no clip: connect a VIDEO or a batch of IMAGE frames.")
        texts = caption if len(caption) == sources else [one(caption)] * sources
        if not all(text.strip() for text in texts):
            raise ValueError("The clip has no caption: say in a few words what happens in it.")
        clips, captions, notes = [each[..., :3] for each in more_clips or []], list(more_captions or []), []
        if len(clips) != len(captions):
            raise ValueError(f"Got {len(captions)} more captions for {len(clips)} more clips: connect both.")
        covers = list(more_masks or [each.new_zeros(each.shape[:3]) for each in clips])
        if len(covers) != len(clips):
            raise ValueError(f"Got {len(covers)} more masks for {len(clips)} more clips: connect both of that node.")
        if masks and len(masks) != sources:
            raise ValueError(f"Got {len(masks)} batches of masks for {sources} clips: connect as many of both.")
        wanted = {"size": (one(height), one(width)), "frames": one(frames), "fps": one(fps)}
        found = chain(
            (_of_video(each, **wanted) for each in videos),
            (_of_images(each, one(images_fps), **wanted) for each in batches),
        )
        for clip, text, mask in zip(found, texts, masks or [None] * sources, strict=True):
            covers.append(_cover(mask, clip, wanted["size"], one(invert_masks, False), len(clips) + 1))
            clips.append(clip.frames.movedim(1, -1).contiguous().float().div_(255))  # [N, H, W, 3], no second copy
            captions.append(text.strip())
            notes += [clip.note] if clip.note else []
        rows = (
            (text, _shaded(few_frames(clip.movedim(-1, 1)), few_frames(cover[:, None])))
            for text, clip, cover in zip(captions, clips, covers, strict=True)
        )
        sheet = contact_sheet(rows, title=" ".join(dict.fromkeys(notes)))
        return io.NodeOutput(
            clips,
            captions,
            one(frames),
            float(one(fps)),
            covers,
            ui=ui.PreviewImage(host_images(sheet[None]), cls=cls),
        )


def _shaded(frames: list[Tensor], covers: list[Tensor]) -> list[Tensor]:
    """What the loss does not see is dark."""
    return [frame * (1 - 0.65 * cover) for frame, cover in zip(frames, covers, strict=True)]


def _cover(mask: Tensor | None, clip: Clip, size: tuple[int, int], invert: bool, number: int) -> Tensor:
    """What of a clip is not learned from, [N, H, W] of 0 and 1. A black mask is none, as Load Image gives one."""
    if mask is None or clip.taken is None or not mask.any():
        return torch.zeros(len(clip.frames), *size)
    mask = mask.reshape(-1, *mask.shape[-2:])
    return cover_of(1 - mask if invert else mask, clip.taken, size, f"of clip {number}").float()


def _of_images(images: Tensor, own_fps: float, *, size: tuple[int, int], frames: int, fps: float) -> Clip:
    """What training takes of IMAGE frames [N, H, W, C]; those that are left out are never copied."""
    check_images(images)
    if len(images) < 2:
        raise ValueError("A clip needs at least two frames, and this IMAGE has one: connect all frames as one batch.")
    times = torch.arange(len(images), dtype=torch.float64) / own_fps
    choice = thin_out(times, frames, fps)
    parts = (engine_images(images[part.to(images.device)]) for part in choice.indices.split(FRAMES_AT_ONCE))
    pixels = torch.cat([cover_crop((part * 255).round().to(torch.uint8), *size) for part in parts])
    times = torch.arange(len(pixels), dtype=torch.float64) / choice.fps
    taken = Taken(choice.indices, len(images), (images.shape[1], images.shape[2]))
    return Clip(pixels, times, choice.fps, note=choice.note, taken=taken)


def _of_video(video, *, size: tuple[int, int], frames: int, fps: float) -> Clip:
    file = host.file_of(video)
    if file is not None:
        return read_motion(file.source, size, frames, fps, start=file.start, seconds=file.seconds)
    found = video.get_components()
    return _of_images(found.images, float(Fraction(found.frame_rate)), size=size, frames=frames, fps=fps)


NODES = [ToyMedia, SubjectImages, MotionClips]
