"""Writes workflows/*.json and subgraphs/*.json anew: python tests/host/make_workflows.py. None of them is drawn.

1 and 7 are for the embedded base, 8 and 9 for an image base, the others for ModelScope's; `on_embedded` turns what
those queue into something that tiny bases can do, for tests and thumbnails.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from blueprints import PICTURE, blueprints, compose, learn_motion, learn_subject
from harness import PACK, Host, find_comfyui
from image_templates import animatediff, tune_a_video
from litegraph import Workflow
from on_embedded import (
    BASE,
    CAPTION,
    CLIP,
    DOG_FILE,
    GUITAR_FILE,
    MOTION_PROMPT,
    PROMPT,
    SUBJECT_PROMPT,
    TOYS,
)
from photographs import photographs
from several import several
from template_parts import (
    BELOW_TEXT,
    EMBEDDED,
    FULL_SIZE,
    TOY,
    VIDEO,
    engine,
    guided,
    prompts,
    sampled,
    short,
    subject_widgets,
    video_out,
    widgets,
)

FILES = """From [this page](https://huggingface.co/ali-vilab/modelscope-damo-text-to-video-synthesis/tree/main) take

- `text2video_pytorch_model.pth` → models/diffusion_models
- `open_clip_pytorch_model.bin` → models/text_encoders
- `VQGAN_autoencoder.pth` → models/vae

and press R. Without them choose **embedded** as base, and 128 x 128 pixels and 8 frames everywhere."""


def real_base(flow: Workflow) -> int:
    with flow.group("1 · Base"):
        base = flow.add("DreamVideoLoadModelScope", base=BASE)
        flow.beside()
        flow.note("Which files", FILES, 190, 460)
    return base


def quickstart(flow: Workflow) -> None:
    toy, demo = engine("nano.demo"), short()
    subject = learn_subject(flow.classes, "quickstart", 1, placeholder="<my-toy>", class_word="toy",
                            preview_every=0, filename_prefix="my-toy",
                            **subject_widgets(EMBEDDED))  # fmt: skip
    motion = learn_motion(flow.classes, "quickstart", 2, TOY | {"frames": demo["frames"]}, preview_every=0,
                          caption=TOYS[CAPTION], filename_prefix="circling", **widgets("motion", EMBEDDED))  # fmt: skip
    both = compose(flow.classes, "quickstart", 3, prompt=TOYS[PROMPT], motion_strength=toy.MOTION_STRENGTH,
                   prior_strength=toy.PRIOR_STRENGTH, enlarge=4.0, **TOY, **demo)  # fmt: skip
    with flow.group("1 · What to learn from"):
        flow.note("Quickstart", "Press **Run**. A toy is learned from four photographs, a motion from one clip, then "
                  "the toy does the motion. Nothing to download; some minutes on two CPU cores. Cancel whenever you "
                  "like: the next Run goes on from there.", 130)  # fmt: skip
        base = flow.add("DreamVideoLoadModelScope", base="embedded")
        media = flow.add("DreamVideoToyMedia", room=230)
        flow.note("Then your own", "For your own dog and dance open the templates **2** to **4**: they use the real "
                  "ModelScope weights and say where to get them. The three large nodes are **blueprints**: you find "
                  "them in the node library, and the arrow in their corner opens them.", 130)  # fmt: skip
    flow.right()
    sockets = {"model": (base, 0), "clip": (base, 1), "vae": (base, 2)}
    with flow.group("2 · Learn the subject"):
        learned = flow.place(subject, **sockets, clip_vision=(base, 3), photographs=(media, 0), masks=(media, 1),
                             title="Learn the toy", wide=400, room=60)  # fmt: skip
        flow.beside()
        flow.add("PreviewImage", title="Its loss", images=(learned, 1), wide=440, room=PICTURE)
    with flow.group("3 · Learn the motion"):
        moved = flow.place(motion, **sockets, clip_vision=(base, 3), images=(media, 2), title="Learn the motion",
                           wide=400, room=60)  # fmt: skip
        flow.beside()
        flow.add("PreviewImage", title="Its loss", images=(moved, 2), wide=440, room=PICTURE)
    flow.right()
    with flow.group("4 · The toy does the motion"):
        video = flow.place(both, **sockets, subject=(learned, 0), motion=(moved, 0), clip_latents=(moved, 1),
                           title="Put them together", wide=400)  # fmt: skip
        flow.add(
            "SaveVideo", video=(video, 0), filename_prefix="video/dreamvideo-quickstart", wide=400, room=VIDEO + 40
        )


def train_subject(flow: Workflow) -> None:
    base = real_base(flow)
    with flow.group("2 · Photographs"):
        flow.note("How to take them", "Three to six of the same thing, from different sides, on different grounds. "
                  "Right-click a picture, *Open in MaskEditor*, paint the subject: what is not painted is not learned. "
                  "More photographs: copy a column and connect it.", 80, 1090)  # fmt: skip
        flow.row()
        gathered = photographs(flow)
    flow.right()
    with flow.group("3 · Learn a word and its looks"):
        trained = flow.add("DreamVideoTrainSubject", model=(base, 0), clip=(base, 1), vae=(base, 2),
                           clip_vision=(base, 3), images=(gathered, 0), masks=(gathered, 1), placeholder="<my-dog>",
                           class_word="dog", captions="a <my-dog>", preview_every=200, filename_prefix="my-dog",
                           room=BELOW_TEXT, **subject_widgets(FULL_SIZE))  # fmt: skip
        flow.beside()
        flow.add("PreviewImage", title="Loss", images=(trained, 4), wide=420, room=PICTURE)
        flow.note("Training", "`class_word` says plainly what it is. Too unlike: more `steps`. Every video looks like "
                  "the photographs: fewer. Cancel keeps what was learned, Run goes on. *Save DreamVideo Adapter* makes "
                  "the word an ordinary embedding too.", 110)  # fmt: skip
    flow.right()
    with flow.group("4 · Try it"):
        positive, negative = prompts(flow, (trained, 3), SUBJECT_PROMPT)
        video = sampled(flow, (trained, 2), (positive, 0), (negative, 0))
        flow.beside()
        video_out(flow, (video, 0), (base, 2), "my-dog")


def train_motion(flow: Workflow) -> None:
    base = real_base(flow)
    with flow.group("2 · The clip"):
        flow.note("What to film", "Four seconds that show one motion. Or several such clips by different people: copy "
                  "both nodes, connect `more_clips` and `more_captions`. One clip teaches its own path, several what "
                  "they share. The caption says who does what, where.", 90, 820)  # fmt: skip
        flow.row()
        video = flow.add("LoadVideo", file=CLIP, room=VIDEO)
        flow.beside()
        clips = flow.add("DreamVideoMotionClips", video=(video, 0), caption=CAPTION, wide=440, room=BELOW_TEXT)
    flow.right()
    with flow.group("3 · Learn the motion"):
        trained = flow.add("DreamVideoTrainMotion", model=(base, 0), clip=(base, 1), vae=(base, 2),
                           clip_vision=(base, 3), clips=(clips, 0), captions=(clips, 1), frames=(clips, 2),
                           preview_every=200, gradient_checkpointing="automatic",
                           filename_prefix="playing-guitar", room=PICTURE,
                           **widgets("motion", FULL_SIZE))  # fmt: skip
        flow.beside()
        flow.add("PreviewImage", title="Loss", images=(trained, 3), wide=420, room=PICTURE)
        flow.note("Training", "Nothing moves: more `steps`. Out of memory: 16 frames in *Motion Clips*. "
                  "Several clips: `batch_size` 2.", 90)  # fmt: skip
    flow.right()
    with flow.group("4 · Try it on something else"):
        positive, negative = prompts(flow, (base, 1), MOTION_PROMPT)
        video = sampled(flow, (trained, 2), (positive, 0), (negative, 0))
        flow.beside()
        video_out(flow, (video, 0), (base, 2), "playing-guitar")


def adapter_files(flow: Workflow) -> tuple[int, int]:
    with flow.group("2 · What was learned"):
        subject = flow.add("DreamVideoLoadAdapter", title="Subject", adapter_file=DOG_FILE)
        motion = flow.add("DreamVideoLoadAdapter", title="Motion", adapter_file=GUITAR_FILE)
        flow.beside()
        flow.note("Adapters", "The names are those that the templates **2** and **3** save; choose yours. Files from "
                  "elsewhere, the authors' too, go to `models/dreamvideo_adapters`.", 100, 460)  # fmt: skip
    return subject, motion


def subject_and_motion(flow: Workflow) -> None:
    base = real_base(flow)
    subject, motion = adapter_files(flow)
    flow.right()
    with flow.group("3 · Both on the model"):
        first = flow.add("DreamVideoApplyAdapter", title="Add the subject", model=(base, 0), clip=(base, 1),
                         adapter=(subject, 0))  # fmt: skip
        both = flow.add("DreamVideoApplyAdapter", title="Add the motion", model=(first, 0),
                        adapter=(motion, 0))  # fmt: skip
        flow.note("When it looks wrong", "- stiff, or the photographs' pose: *Add the subject* 0.6 to 0.8\n"
                  "- weak motion: *Add the motion* up to 1.3\n- not the subject: that one down to 0.7",
                  110)  # fmt: skip
    flow.right()
    with flow.group("4 · What to make"):
        positive, negative = prompts(flow, (first, 1), PROMPT)
        shown = guided(flow, positive, negative, (subject, 0))
        flow.note("Appearance guidance", "Shows the motion what the video shall look like, so that the clip's looks "
                  "stay out. `negative_strength`: -1 follows the motion.", 90)  # fmt: skip
    flow.right()
    with flow.group("5 · Make the video"):
        video = sampled(flow, (both, 0), (shown, 0), (shown, 1))
        flow.beside()
        video_out(flow, (video, 0), (base, 2), "composed")


def one_only(flow: Workflow) -> None:
    base = real_base(flow)
    subject, motion = adapter_files(flow)
    flow.right()
    for title, text, name in (
        ("3 · The subject only, in any motion the base knows", SUBJECT_PROMPT, "subject-only"),
        ("4 · The motion only, by anyone the base knows", MOTION_PROMPT, "motion-only"),
    ):
        whose = name == "subject-only"
        with flow.group(title):
            given = {"adapter": (subject, 0), "clip": (base, 1)} if whose else {"adapter": (motion, 0)}
            placed = flow.add("DreamVideoApplyAdapter", model=(base, 0), **given)
            flow.beside()
            positive, negative = prompts(flow, (placed, 1) if whose else (base, 1), text)
            flow.beside()
            video = sampled(flow, (placed, 0), (positive, 0), (negative, 0))
            flow.beside()
            video_out(flow, (video, 0), (base, 2), name)


def strengths(flow: Workflow) -> None:
    base = real_base(flow)
    subject, motion = adapter_files(flow)
    with flow.group("3 · Prompt of the strengths"):
        text = flow.add("CLIPTextEncode", title="Prompt", clip=(base, 1), text=MOTION_PROMPT)
        flow.beside()
        empty = flow.add("CLIPTextEncode", title="Negative prompt (empty)", clip=(base, 1), text="")
    for strength in (0.5, 1.0, 1.5):
        flow.right()
        with flow.group(f"The motion at {strength:g}"):
            placed = flow.add("DreamVideoApplyAdapter", model=(base, 0), adapter=(motion, 0), strength=strength)
            video = sampled(flow, (placed, 0), (text, 0), (empty, 0), steps=25)
            video_out(flow, (video, 0), (base, 2), f"motion-{strength:g}")
    flow.right()
    with flow.group("None, each, both: the same prompt and seed"):
        sheet = flow.add("DreamVideoCompare", model=(base, 0), clip=(base, 1), vae=(base, 2), adapter_1=(subject, 0),
                         adapter_2=(motion, 0), prompt=PROMPT, frames=32, steps=25)  # fmt: skip
        flow.beside()
        flow.add("PreviewImage", wide=460, room=400, images=(sheet, 0))
        flow.note("Reading it", "One row each: no adapter, the subject, the motion, both. A row that looks like the "
                  "first comes from an adapter that does nothing: train it longer.", 70, 460)  # fmt: skip


ALL = {
    "1_quickstart": quickstart,
    "2_train_subject": train_subject,
    "3_train_motion": train_motion,
    "4_subject_and_motion": subject_and_motion,
    "5_subject_or_motion": one_only,
    "6_compare_strengths": strengths,
    "7_several_subjects_and_motions": several,
    "8_animatediff": animatediff,
    "9_tune_a_video": tune_a_video,
}


def write(classes: dict[str, type], folder: Path) -> None:
    """Below the folder, workflows and subgraphs."""
    files = {f"subgraphs/{name}.json": content for name, content in blueprints(classes).items()}
    for name, describe in ALL.items():
        flow = Workflow(classes)
        describe(flow)
        files[f"workflows/{name}.json"] = flow.build(name)
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    comfyui = find_comfyui()
    if comfyui is None:
        sys.exit("No ComfyUI found: set COMFYUI_PATH.")
    with tempfile.TemporaryDirectory() as base_folder:
        write(Host(comfyui, Path(base_folder)).nodes.NODE_CLASS_MAPPINGS, PACK)
