"""Template 7: two subjects, each in its half of the picture and of the prompts, and a motion that changes half way."""

from __future__ import annotations

from blueprints import PICTURE
from litegraph import Workflow
from template_parts import BELOW_TEXT, EMBEDDED, TOY, prompts, sampled, short, subject_widgets, video_out, widgets

WORDS = ("<my-toy>", "<other-toy>")
MOTIONS = ("circling", "bouncing")
PARTS = {"left": {"right": 0.5}, "right": {"left": 0.5}, "first half": {"end": 0.5}, "second half": {"start": 0.5}}


def several(flow: Workflow) -> None:
    with flow.group("1 · What to learn from"):
        flow.note("Two subjects, two motions", "Press **Run**. Two toys and two motions are learned on the embedded "
                  "base, about twice the quickstart's time. Then each toy stands in its half of the picture, and the "
                  "motion changes half way. That base draws one toy where two words are learned, so `apart` makes "
                  "each half a picture of its own. With the real one load your files with *Load DreamVideo Adapter*.",
                  190)  # fmt: skip
        base = flow.add("DreamVideoLoadModelScope", base="embedded")
        media = [flow.add("DreamVideoToyMedia", title=f"Toy and motion {number + 1}", other=bool(number), room=230)
                 for number in range(2)]  # fmt: skip
    flow.right()
    subjects, motions = _learned(flow, base, media)
    flow.right()
    with flow.group("4 · Where and when"):
        parts = [flow.add("DreamVideoPartOfVideo", title=title.capitalize(), frames=short()["frames"], **box)
                 for title, box in PARTS.items()]  # fmt: skip
    flow.right()
    with flow.group("5 · On the model, each in its part"):
        chain = [(base, 0), (base, 1)]
        for title, adapter, part in zip(("Toy 1, left", "Toy 2, right", "Motion 1, then", "Motion 2"),
                                        (*subjects, *motions), parts, strict=True):  # fmt: skip
            node = flow.add("DreamVideoApplyAdapter", title=title, model=chain[0], clip=chain[1], adapter=adapter,
                            mask=(part, 0), strength=0.7 if adapter in motions else 1.0)  # fmt: skip
            chain = [(node, 0), (node, 1)]
    flow.right()
    positive, negative = _prompted(flow, chain[1], parts)
    flow.right()
    with flow.group("7 · Make the video"):
        video = sampled(flow, chain[0], positive, negative, seed=3, **(TOY | short()))
        flow.beside()
        video_out(flow, (video, 0), (base, 2), "several", enlarge=True)


def _learned(flow: Workflow, base: int, media: list[int]) -> tuple[list, list]:
    sockets = {"model": (base, 0), "clip": (base, 1), "vae": (base, 2), "clip_vision": (base, 3)}
    subjects, motions = [], []
    with flow.group("2 · Two subjects, each with its word"):
        for number, (source, word) in enumerate(zip(media, WORDS, strict=True)):
            if number:
                flow.beside()
            node = flow.add("DreamVideoTrainSubject", title=f"Learn toy {number + 1}", images=(source, 0),
                            masks=(source, 1), placeholder=word, class_word="toy", preview_every=0,
                            filename_prefix=f"toy-{number + 1}", room=BELOW_TEXT, **sockets,
                            **subject_widgets(EMBEDDED))  # fmt: skip
            subjects.append((node, 0))
    with flow.group("3 · Two motions"):
        for number, (source, word) in enumerate(zip(media, MOTIONS, strict=True)):
            if number:
                flow.beside()
            clips = flow.add("DreamVideoMotionClips", images=(source, 2), frames=short()["frames"], room=BELOW_TEXT,
                             caption=f"a yellow circle {word} in the night", **TOY)  # fmt: skip
            node = flow.add("DreamVideoTrainMotion", title=f"Learn motion {number + 1}", clips=(clips, 0),
                            captions=(clips, 1), frames=(clips, 2), method="dreamvideo_plus", preview_every=0,
                            filename_prefix=f"{word}-plus", room=PICTURE, **sockets,
                            **widgets("motion", EMBEDDED))  # fmt: skip
            motions.append((node, 0))
    return subjects, motions


def _prompted(flow: Workflow, clip: tuple[int, int], parts: list[int]) -> tuple[tuple[int, int], tuple[int, int]]:
    with flow.group("6 · Each half reads a prompt of its own"):
        chain = tuple((node, 0) for node in prompts(flow, clip, f"a {WORDS[0]} and a {WORDS[1]} on the grass"))
        for title, word, part in zip(("Left", "Right"), WORDS, parts, strict=False):
            own = flow.add("CLIPTextEncode", title=f"{title} prompt", clip=clip, text=f"a {word} on the grass")
            node = flow.add("DreamVideoPromptRegion", title=f"{title} half", positive=chain[0], negative=chain[1],
                            region_prompt=(own, 0), mask=(part, 0), apart=1.0)  # fmt: skip
            chain = (node, 0), (node, 1)
    return chain
