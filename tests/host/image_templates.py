"""Templates 8 and 9, for Stable Diffusion 1.5: a subject and a motion with AnimateDiff; Tune-A-Video on one clip."""

from __future__ import annotations

from blueprints import PICTURE
from litegraph import Workflow
from on_embedded import CAPTION, CLIP, IMAGE_MODEL, MOTION_MODULE, PROMPT, SKIING, SKIING_PROMPT
from photographs import photographs
from template_parts import (
    BELOW_TEXT,
    IMAGE,
    VIDEO,
    guided,
    prompts,
    sampled,
    sampling,
    subject_widgets,
    video_out,
    widgets,
)

IMAGE_ENCODER = "CLIP-ViT-H-14-laion2B-s32B-b79K.safetensors"
TUNED = {"frames": 24, "steps": 50, "cfg": 12.5}  # Tune-A-Video's own (arXiv 2212.11565)
CHECKPOINT = """- a Stable Diffusion 1.5 checkpoint → models/checkpoints: [`v1-5-pruned-emaonly-fp16.safetensors`]\
(https://huggingface.co/Comfy-Org/stable-diffusion-v1-5-archive/tree/main) or any model fine-tuned from it"""
FILES = f"""{CHECKPOINT}
- [`v3_sd15_mm.ckpt`](https://huggingface.co/guoyww/animatediff/tree/main) → models/animatediff_models
- the image encoder of IP-Adapter's SD 1.5 set, [`model.safetensors`]\
(https://huggingface.co/h94/IP-Adapter/tree/main/models/image_encoder) → models/clip_vision, renamed to \
`{IMAGE_ENCODER}`

and press R. LoRAs go between *Load Checkpoint* and *Load AnimateDiff*."""


def size() -> dict[str, int]:
    own = sampling(IMAGE)
    return {"width": own["width"], "height": own["height"]}


def image_base(flow: Workflow, module: str) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """The base's model, clip and vae."""
    stock = flow.add("CheckpointLoaderSimple", ckpt_name=IMAGE_MODEL)
    video = flow.add("DreamVideoLoadAnimateDiff", model=(stock, 0), motion_module=module)
    return (video, 0), (stock, 1), (stock, 2)


def animatediff(flow: Workflow) -> None:
    with flow.group("1 · Base"):
        model, clip, vae = image_base(flow, MOTION_MODULE)
        vision = (flow.add("CLIPVisionLoader", title="Image encoder", clip_name=IMAGE_ENCODER), 0)
        flow.beside()
        flow.note("Which files", FILES, 300, 460)
    sockets = {"model": model, "clip": clip, "vae": vae, "clip_vision": vision}
    flow.right()
    subject = _subject(flow, sockets)
    motion = _motion(flow, sockets)
    flow.right()
    with flow.group("4 · Both on the model"):
        first = flow.add("DreamVideoApplyAdapter", title="Add the subject", model=model, clip=clip,
                         adapter=subject)  # fmt: skip
        both = flow.add("DreamVideoApplyAdapter", title="Add the motion", model=(first, 0), adapter=motion)
    flow.right()
    with flow.group("5 · What to make"):
        positive, negative = prompts(flow, (first, 1), PROMPT)
        shown = guided(flow, positive, negative, subject)
        flow.note("When it looks wrong", "- stiff, or the photographs' pose: *Add the subject* 0.6 to 0.8\n"
                  "- weak motion: *Add the motion* up to 1.3\n- blurred or grey: 512 x 512 and 16 frames",
                  110)  # fmt: skip
    flow.right()
    with flow.group("6 · Make the video"):
        video = sampled(flow, (both, 0), (shown, 0), (shown, 1), **sampling(IMAGE))
        flow.beside()
        video_out(flow, (video, 0), vae, "animatediff")


def _subject(flow: Workflow, sockets: dict[str, tuple[int, int]]) -> tuple[int, int]:
    with flow.group("2 · Learn the subject"):
        flow.note("Photographs", "Three to six of the same thing, from different sides. Right-click a picture, *Open "
                  "in MaskEditor*, paint the subject: what is not painted is not learned. `class_word` says plainly "
                  "what it is.", 80, 1090)  # fmt: skip
        flow.row()
        gathered = photographs(flow, **size())
        flow.beside()
        trained = flow.add("DreamVideoTrainSubject", **sockets, images=(gathered, 0), masks=(gathered, 1),
                           placeholder="<my-dog>", class_word="dog", captions="a <my-dog>", preview_every=0,
                           filename_prefix="my-dog-sd15", room=BELOW_TEXT, **subject_widgets(IMAGE))  # fmt: skip
        flow.beside()
        flow.add("PreviewImage", title="Its loss", images=(trained, 4), wide=420, room=PICTURE)
    return trained, 0


def _motion(flow: Workflow, sockets: dict[str, tuple[int, int]]) -> tuple[int, int]:
    with flow.group("3 · Learn the motion"):
        video = flow.add("LoadVideo", file=CLIP, room=VIDEO)
        flow.beside()
        clips = flow.add("DreamVideoMotionClips", video=(video, 0), caption=CAPTION, wide=440, room=BELOW_TEXT,
                         frames=sampling(IMAGE)["frames"], **size())  # fmt: skip
        flow.beside()
        trained = flow.add("DreamVideoTrainMotion", **sockets, clips=(clips, 0), captions=(clips, 1),
                           frames=(clips, 2), preview_every=0, filename_prefix="playing-guitar-sd15", room=PICTURE,
                           **widgets("motion", IMAGE))  # fmt: skip
        flow.beside()
        flow.add("PreviewImage", title="Its loss", images=(trained, 3), wide=420, room=PICTURE)
        flow.note("Both are kept", "The files are written below output/dreamvideo; *Load DreamVideo Adapter* takes the "
                  "place of the trainers next time. They fit Stable Diffusion 1.5, not ModelScope.", 90)  # fmt: skip
    return trained, 0


def tune_a_video(flow: Workflow) -> None:
    with flow.group("1 · Base"):
        model, clip, vae = image_base(flow, "none")
        flow.beside()
        flow.note("Which files", f"{CHECKPOINT}\n\nand press R. Tune-A-Video makes a video model of the image model "
                  "itself, so `motion_module` stays **none**.", 170, 460)  # fmt: skip
    with flow.group("2 · The clip"):
        video = flow.add("LoadVideo", file=CLIP, room=VIDEO)
        flow.beside()
        clips = flow.add("DreamVideoMotionClips", video=(video, 0), caption=SKIING, wide=440, room=BELOW_TEXT,
                         frames=TUNED["frames"], **size())  # fmt: skip
        flow.note("What to take", "Three seconds, which make 24 frames at 8 a second. The caption says who does what; "
                  "the prompt then changes some of its words.", 90, 440)  # fmt: skip
    flow.right()
    with flow.group("3 · Learn the clip"):
        trained = flow.add("DreamVideoTrainMotion", model=model, clip=clip, vae=vae, clips=(clips, 0),
                           captions=(clips, 1), frames=(clips, 2), method="tune_a_video", text_drop=0.0,
                           preview_every=0, filename_prefix="skiing-tuned", room=PICTURE,
                           **widgets("tune_a_video", IMAGE))  # fmt: skip
        flow.beside()
        flow.add("PreviewImage", title="Loss", images=(trained, 3), wide=420, room=PICTURE)
        flow.note("Training", "Queries of self- and cross-attention and a new attention over time. Out of memory: "
                  "fewer frames, in *Motion Clips* and in the sampler.", 90)  # fmt: skip
    flow.right()
    with flow.group("4 · The clip with other words"):
        start = flow.add("VAEEncode", title="The clip, for the start", pixels=(clips, 0), vae=vae)
        positive, negative = prompts(flow, clip, SKIING_PROMPT)
        flow.note("The start", "`prior_strength` 1 begins with the noise that lies behind the clip. Size and frames "
                  "are the clip's.", 80)  # fmt: skip
    flow.right()
    with flow.group("5 · Make the video"):
        made = sampled(flow, (trained, 2), (positive, 0), (negative, 0), prior=(start, 0), prior_strength=1.0,
                       **(sampling(IMAGE) | TUNED))  # fmt: skip
        flow.beside()
        video_out(flow, (made, 0), vae, "tune-a-video")
