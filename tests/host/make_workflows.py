"""Writes workflows/*.json anew: python tests/host/make_workflows.py. They are described here, not drawn."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from harness import PACK, Host, find_comfyui
from litegraph import Workflow

X = (40, 420, 800, 1180, 1560, 1940)  # columns
TOY = {"width": 64, "height": 64}
SUBJECT_FILE, MOTION_FILE = "my-toy_00001_.safetensors", "circling_00001_.safetensors"
BASE_NOTE = (
    "**The base.** `embedded` runs at once and knows toys only. For real videos choose your ModelScope base here and "
    "set width and height to 256, frames to 16 or 32. The node's help (i) says which files go where."
)


def video_out(flow: Workflow, at: tuple[int, int], latent, vae, name: str, scale: int = 256) -> int:
    x, y = at
    images = flow.add("VAEDecode", (x, y), samples=latent, vae=vae)
    if scale:
        images = flow.add("ImageScale", (x, y + 90), image=(images, 0), upscale_method="nearest-exact", width=scale,
                          height=scale, crop="disabled")  # fmt: skip
    made = flow.add("CreateVideo", (x, y + 260), images=(images, 0), fps=8.0)
    return flow.add("SaveVideo", (x, y + 370), video=(made, 0), filename_prefix=f"video/{name}")


def prompts(flow: Workflow, at: tuple[int, int], clip, text) -> tuple[int, int]:
    x, y = at
    return (
        flow.add("CLIPTextEncode", (x, y), title="Prompt", clip=clip, text=text),
        flow.add("CLIPTextEncode", (x, y + 200), title="Negative prompt (empty)", clip=clip, text=""),
    )


def guided(flow: Workflow, at, positive, negative, subject, **strengths) -> int:
    return flow.add("DreamVideoEncodeAppearance", at, positive=(positive, 0), negative=(negative, 0), subject=subject,
                    **strengths)  # fmt: skip


def sampled(flow: Workflow, at, model, positive, negative, **options) -> int:
    settings = {"frames": 8, "steps": 50, "cfg": 9.0, "seed": 0, **TOY, **options}
    return flow.add("DreamVideoSampler", at, model=model, positive=positive, negative=negative, **settings)


def quickstart(flow: Workflow) -> None:
    flow.note((X[0], 40), "**Quickstart.** Press Run: a toy is learned from four photographs, a motion from one clip, "
              "and the toy does the motion. No download; a few minutes on any computer. "
              "While a node trains it shows its progress.", (340, 190))  # fmt: skip
    base = flow.add("DreamVideoLoadModelScope", (X[0], 260), base="embedded")
    media = flow.add("DreamVideoToyMedia", (X[0], 520))
    subject = flow.add("DreamVideoTrainSubject", (X[1], 40), model=(base, 0), clip=(base, 1), vae=(base, 2),
                       clip_vision=(base, 3), images=(media, 0), masks=(media, 1), placeholder="<my-toy>",
                       class_word="toy", preview_every=200)  # fmt: skip
    clips = flow.add("DreamVideoMotionClips", (X[0], 760), images=(media, 2), caption=(media, 3), frames=8, **TOY)
    motion = flow.add("DreamVideoTrainMotion", (X[1], 760), model=(base, 0), clip=(base, 1), vae=(base, 2),
                      clip_vision=(base, 3), clips=(clips, 0), captions=(clips, 1), frames=(clips, 2),
                      preview_every=200)  # fmt: skip
    flow.add("DreamVideoSaveAdapter", (X[2], 40), adapter=(subject, 0), filename_prefix="my-toy")
    flow.add("DreamVideoSaveAdapter", (X[2], 220), adapter=(motion, 0), filename_prefix="circling")
    both = flow.add("DreamVideoApplyAdapter", (X[2], 420), title="Add the motion", model=(subject, 2),
                    adapter=(motion, 0))  # fmt: skip
    positive, negative = prompts(flow, (X[2], 700), (subject, 3), (media, 4))
    shown = guided(flow, (X[3], 40), positive, negative, (subject, 0))
    video = sampled(flow, (X[3], 300), (both, 0), (shown, 0), (shown, 1))
    flow.note((X[3], 720), "**When it looks wrong.** The toy is not itself: more `steps`. It does not move: a higher "
              "`strength` of the motion. Looks of the clip leak in: a higher strength of the appearance guidance.",
              (340, 180))  # fmt: skip
    video_out(flow, (X[4], 40), (video, 0), (base, 2), "dreamvideo-quickstart")


def train_subject(flow: Workflow) -> None:
    flow.note((X[0], 40), BASE_NOTE, (340, 170))
    base = flow.add("DreamVideoLoadModelScope", (X[0], 240), base="embedded")
    flow.note((X[0], 480), "**Photographs.** Three to six of the same thing, from different sides, on different "
              "grounds. Right-click a picture, Open in MaskEditor, paint the subject: the rest is not learned.",
              (340, 170))  # fmt: skip
    gathered = None
    for index in range(3):
        image = flow.add("LoadImage", (X[0], 680 + 350 * index))
        more = {} if gathered is None else {"more_images": (gathered, 0), "more_masks": (gathered, 1)}
        gathered = flow.add("DreamVideoSubjectImages", (X[1], 680 + 350 * index), images=(image, 0),
                            masks=(image, 1), **TOY, **more)  # fmt: skip
    trained = flow.add("DreamVideoTrainSubject", (X[2], 40), model=(base, 0), clip=(base, 1), vae=(base, 2),
                       clip_vision=(base, 3), images=(gathered, 0), masks=(gathered, 1), placeholder="<my-dog>",
                       class_word="dog", preview_every=200)  # fmt: skip
    flow.add("DreamVideoSaveAdapter", (X[3], 40), adapter=(trained, 0), filename_prefix="my-dog", save_embedding=True)
    flow.add("LossGraphNode", (X[3], 260), loss=(trained, 1), filename_prefix="loss-my-dog")
    positive, negative = prompts(flow, (X[3], 700), (trained, 3), "a <my-dog> running on the grass")
    video = sampled(flow, (X[4], 40), (trained, 2), (positive, 0), (negative, 0))
    video_out(flow, (X[5], 40), (video, 0), (base, 2), "my-dog")


def train_motion(flow: Workflow) -> None:
    flow.note((X[0], 40), BASE_NOTE, (340, 170))
    base = flow.add("DreamVideoLoadModelScope", (X[0], 240), base="embedded")
    flow.note((X[0], 480), "**The clip.** Two to four seconds that show one motion. Say in the caption who does what "
              "and where. For several clips, chain several Motion Clips nodes.", (340, 150))  # fmt: skip
    media = flow.add("DreamVideoToyMedia", (X[0], 660), title="Toy Media (put Load Video here)")
    clips = flow.add("DreamVideoMotionClips", (X[1], 480), images=(media, 2), caption=(media, 3), frames=8, **TOY)
    trained = flow.add("DreamVideoTrainMotion", (X[2], 40), model=(base, 0), clip=(base, 1), vae=(base, 2),
                       clip_vision=(base, 3), clips=(clips, 0), captions=(clips, 1), frames=(clips, 2),
                       preview_every=200)  # fmt: skip
    flow.add("DreamVideoSaveAdapter", (X[3], 40), adapter=(trained, 0), filename_prefix="circling")
    flow.add("LossGraphNode", (X[3], 260), loss=(trained, 1), filename_prefix="loss-circling")
    positive, negative = prompts(flow, (X[3], 700), (base, 1), "a red circle circling on the grass")
    video = sampled(flow, (X[4], 40), (trained, 2), (positive, 0), (negative, 0))
    video_out(flow, (X[5], 40), (video, 0), (base, 2), "motion")


def _files(flow: Workflow) -> tuple[int, int, int]:
    flow.note((X[0], 40), BASE_NOTE + " The adapters are those that the quickstart saved; choose yours.", (340, 210))
    base = flow.add("DreamVideoLoadModelScope", (X[0], 280), base="embedded")
    subject = flow.add("DreamVideoLoadAdapter", (X[0], 520), title="Subject", adapter_file=SUBJECT_FILE)
    motion = flow.add("DreamVideoLoadAdapter", (X[0], 640), title="Motion", adapter_file=MOTION_FILE)
    return base, subject, motion


def compose(flow: Workflow) -> None:
    base, subject, motion = _files(flow)
    first = flow.add("DreamVideoApplyAdapter", (X[1], 40), title="Add the subject", model=(base, 0), clip=(base, 1),
                     adapter=(subject, 0))  # fmt: skip
    both = flow.add("DreamVideoApplyAdapter", (X[1], 340), title="Add the motion", model=(first, 0),
                    adapter=(motion, 0))  # fmt: skip
    positive, negative = prompts(flow, (X[2], 40), (first, 1), "a <my-toy> circling on the water")
    shown = guided(flow, (X[2], 460), positive, negative, (subject, 0))
    video = sampled(flow, (X[3], 40), (both, 0), (shown, 0), (shown, 1))
    flow.note((X[3], 460), "**When it looks wrong.** Subject too strong, stiff motion: strength 0.6 to 0.8 on the "
              "subject. Weak motion: up to 1.3. Of several clips: negative_strength 0.", (340, 150))  # fmt: skip
    video_out(flow, (X[4], 40), (video, 0), (base, 2), "composed")


def one_only(flow: Workflow) -> None:
    base, subject, motion = _files(flow)
    one = flow.add("DreamVideoApplyAdapter", (X[1], 40), title="The subject only", model=(base, 0), clip=(base, 1),
                   adapter=(subject, 0))  # fmt: skip
    positive, negative = prompts(flow, (X[2], 40), (one, 1), "a <my-toy> moving left on the grass")
    video = sampled(flow, (X[3], 40), (one, 0), (positive, 0), (negative, 0))
    video_out(flow, (X[4], 40), (video, 0), (base, 2), "subject-only")
    other = flow.add("DreamVideoApplyAdapter", (X[1], 640), title="The motion only", model=(base, 0),
                     adapter=(motion, 0))  # fmt: skip
    positive, negative = prompts(flow, (X[2], 640), (base, 1), "a red circle circling on the grass")
    video = sampled(flow, (X[3], 640), (other, 0), (positive, 0), (negative, 0))
    video_out(flow, (X[4], 640), (video, 0), (base, 2), "motion-only")


def strengths(flow: Workflow) -> None:
    base, subject, motion = _files(flow)
    sheet = flow.add("DreamVideoCompare", (X[1], 40), model=(base, 0), clip=(base, 1), vae=(base, 2),
                     adapter_1=(subject, 0), adapter_2=(motion, 0), prompt="a <my-toy> circling on the water",
                     frames=8, steps=25, **TOY)  # fmt: skip
    flow.add("PreviewImage", (X[2], 40), title="None, each, both", images=(sheet, 0))
    for index, strength in enumerate((0.5, 1.0, 1.5)):
        y = 640 + 560 * index
        placed = flow.add("DreamVideoApplyAdapter", (X[1], y), title=f"Motion at {strength:g}", model=(base, 0),
                          adapter=(motion, 0), strength=strength)  # fmt: skip
        positive, negative = prompts(flow, (X[2], y), (base, 1), "a red circle circling on the grass")
        video = sampled(flow, (X[3], y), (placed, 0), (positive, 0), (negative, 0), steps=25)
        video_out(flow, (X[4], y), (video, 0), (base, 2), f"motion-{strength:g}")


ALL = {
    "1_quickstart": quickstart,
    "2_train_subject": train_subject,
    "3_train_motion": train_motion,
    "4_compose_subject_and_motion": compose,
    "5_subject_only_motion_only": one_only,
    "6_compare_strengths": strengths,
}


def write(classes: dict[str, type], folder: Path) -> None:
    for name, describe in ALL.items():
        flow = Workflow(classes)
        describe(flow)
        text = json.dumps(flow.build(name), indent=1, ensure_ascii=False)
        (folder / f"{name}.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    comfyui = find_comfyui()
    if comfyui is None:
        sys.exit("No ComfyUI found: set COMFYUI_PATH.")
    with tempfile.TemporaryDirectory() as base_folder:
        write(Host(comfyui, Path(base_folder)).nodes.NODE_CLASS_MAPPINGS, PACK / "workflows")
