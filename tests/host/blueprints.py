"""The pack's blueprints: three parts of workflows, each one node on the outside. The quickstart is made of them.

What they show outside is what a user changes. In the quickstart they have the embedded base's own numbers; in
`subgraphs/` a 0 stands for what suits the base, and sizes are the real one's.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from litegraph import TEXT_HEIGHT, Promoted

from subgraphs import Part

PICTURE = 260  # pixels that a preview needs

SUBJECT = "Learn a Subject (DreamVideo)"
MOTION = "Learn a Motion (DreamVideo)"
COMPOSE = "Subject and Motion to Video (DreamVideo)"


def base_inputs(part: Part, *more: str) -> dict[str, tuple[int, int]]:
    """The sockets of a base that a part needs."""
    types = {"model": "MODEL", "clip": "CLIP", "vae": "VAE", "clip_vision": "CLIP_VISION"}
    return {name: part.input(name, types[name]) for name in ("model", "clip", "vae", *more)}


def learn_subject(classes: dict[str, type], owner: str, place: int = 1, **given: Any) -> Part:
    """given: values of Train Subject's widgets."""
    part = Part(classes, SUBJECT, "Photographs of one subject to its word and its looks.", owner,
                place)  # fmt: skip
    base = base_inputs(part, "clip_vision")
    values = {"placeholder": "<my-dog>", "class_word": "dog", "captions": "", "token_steps": 0, "steps": 0,
              "filename_prefix": "my-dog", **given}  # fmt: skip
    shown = {name: Promoted(values.pop(name)) for name in ("placeholder", "class_word")}
    shown |= {"token_steps": Promoted(values.pop("token_steps"), "steps_of_word")}
    shown |= {"steps": Promoted(values.pop("steps"), "steps_of_looks")}
    shown |= {"filename_prefix": Promoted(values.pop("filename_prefix"), "save_as")}
    with part.group("A word, then its looks"):
        trained = part.add("DreamVideoTrainSubject", **base, images=part.input("photographs", "IMAGE"),
                           masks=part.input("masks", "MASK"), room=190, **shown, **values)  # fmt: skip
    part.output("subject", (trained, 0))
    part.output("loss_plot", (trained, 4))
    return part


def learn_motion(
    classes: dict[str, type], owner: str, place: int = 1, size: dict[str, Any] | None = None, **given: Any
) -> Part:
    """size: width, height and frames of Motion Clips; given: values of Train Motion Adapter's widgets."""
    part = Part(classes, MOTION, "A clip, as a video or as images, to its motion.", owner, place)
    base = base_inputs(part, "clip_vision")
    size = {"width": 256, "height": 256, "frames": 32, **(size or {})}
    values = {"steps": 0, "filename_prefix": "my-motion", **given}
    caption = Promoted(values.pop("caption", "a person is dancing in a room"))
    with part.group("The clip"):
        clips = part.add("DreamVideoMotionClips", video=part.input("video", "VIDEO"),
                         images=part.input("images", "IMAGE"), caption=caption, room=190,
                         **{name: Promoted(value) for name, value in size.items()})  # fmt: skip
        start = part.add("VAEEncode", title="The clip, for the start of a video", pixels=(clips, 0), vae=base["vae"])
    part.right()
    with part.group("Its motion"):
        steps = Promoted(values.pop("steps"))
        save_as = Promoted(values.pop("filename_prefix"), "save_as")
        trained = part.add("DreamVideoTrainMotion", **base, clips=(clips, 0), captions=(clips, 1), frames=(clips, 2),
                           steps=steps, filename_prefix=save_as, room=PICTURE, **values)  # fmt: skip
    part.output("motion", (trained, 0))
    part.output("clip_latents", (start, 0))
    part.output("loss_plot", (trained, 3))
    return part


def compose(classes: dict[str, type], owner: str, place: int = 1, **given: Any) -> Part:
    """given: values of the outer widgets."""
    part = Part(classes, COMPOSE, "A subject and a motion, learned apart, in one video.", owner, place)
    base = base_inputs(part)
    values = {"prompt": "a <my-dog> is dancing on the beach", "subject_strength": 1.0, "motion_strength": 1.0,
              "prior_strength": 0.0, "seed": 0, "steps": 50, "cfg": 9.0, "width": 256, "height": 256, "frames": 32,
              "enlarge": 1.0, **given}  # fmt: skip

    def shown(name: str) -> Promoted:
        return Promoted(values[name], name)

    prompt = shown("prompt")  # the first that stands outside: it is what changes most
    prompt = replace(prompt, link=part.promote("prompt", "STRING", prompt.value, TEXT_HEIGHT))
    with part.group("Both on the model"):
        subject = part.input("subject", "DREAMVIDEO_ADAPTER")
        first = part.add("DreamVideoApplyAdapter", title="Add the subject", model=base["model"], clip=base["clip"],
                         adapter=subject, strength=shown("subject_strength"))  # fmt: skip
        both = part.add("DreamVideoApplyAdapter", title="Add the motion", model=(first, 0),
                        adapter=part.input("motion", "DREAMVIDEO_ADAPTER"),
                        strength=shown("motion_strength"))  # fmt: skip
    part.right()
    with part.group("What to make"):
        positive = part.add("CLIPTextEncode", title="Prompt", clip=(first, 1), text=prompt)
        negative = part.add("CLIPTextEncode", title="Negative prompt (empty)", clip=(first, 1), text="")
        guided = part.add("DreamVideoEncodeAppearance", positive=(positive, 0), negative=(negative, 0),
                          subject=subject)  # fmt: skip
    part.right()
    with part.group("The video"):
        names = ("seed", "steps", "cfg", "frames", "width", "height", "prior_strength")
        latents = part.add("DreamVideoSampler", model=(both, 0), positive=(guided, 0), negative=(guided, 1),
                           prior=part.input("clip_latents", "LATENT"),
                           **{name: shown(name) for name in names})  # fmt: skip
        part.beside()
        images = part.add("VAEDecode", samples=(latents, 0), vae=base["vae"])
        larger = part.add("ImageScaleBy", title="Enlarge to look at", image=(images, 0), upscale_method="nearest-exact",
                          scale_by=shown("enlarge"))  # fmt: skip
        video = part.add("CreateVideo", images=(larger, 0), fps=8.0)
    part.output("video", (video, 0))
    return part


def blueprints(classes: dict[str, type]) -> dict[str, dict]:
    """The name of a file in `subgraphs` -> what it holds."""
    parts = [make(classes, "blueprint") for make in (learn_subject, learn_motion, compose)]
    return {part.name: part.blueprint() for part in parts}
