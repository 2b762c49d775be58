"""The whole method in one command: a subject from photographs, a motion from a clip, both in one video.

Without media it takes a subject and a motion from the toy world that the embedded base has never seen.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ..base import Base
from ..customizing import NOTHING, customize
from ..defaults import Defaults
from ..evaluation.pictures import contact_sheet, few_frames
from ..evaluation.plots import loss_plot
from ..files.adapter_info import TrainedAdapter
from ..media.clips import find_clips, read_motion
from ..media.folders import caption_of
from ..media.photographs import Photo, load_images
from ..media.writing import write_animation, write_png, write_video
from ..plans import Plan
from ..runs import Outcome, Reports, save, train_stages
from ..safety.paths import write_json
from ..sampling import generate
from ..training.data import encode_clips, encode_photos
from ..training.methods import IDENTITY, TEXTUAL_INVERSION, motion_method
from ..training.settings import TrainingSettings
from . import rules, world

PLACEHOLDER = "<my-toy>"
SUBJECT = world.Subject("mushroom", "red", "white", "spotted")  # no mushroom is in the base's training
MOTION = "circling"
# A second one of each, for two subjects and a motion that changes in one video.
OTHER_PLACEHOLDER = "<other-toy>"
OTHER_SUBJECT = world.Subject("house", "green")
OTHER_MOTION = "bouncing"
SEED = 3  # of the photographs and the clip
MOTION_STRENGTH = 0.9  # beside the subject: less of the clip's looks comes along
PRIOR_STRENGTH = 0.7  # of the clip's noise in the start of every video: on so small a base a path is mostly there
# Of the embedded base's own steps: so all of it takes less than five minutes on two cores, a busy process beside it or
# not; the start gives a motion what it lacks. QUICK_SHARE: of any base's.
SHARES, QUICK_SHARE = {"token": 0.6, "identity": 0.75, "motion": 0.4}, 0.1
# What is written, the adapters first.
FILES = (
    "identity.safetensors",
    "motion.safetensors",
    "composed.mp4",
    "composed.gif",
    "sheet.png",
    "losses.png",
    "report.json",
)


@dataclass(frozen=True)
class Material:
    """What the demo learns from and is asked for.

    clip [F, 3, H, W]; prompt: what to compose, with the placeholder in it; note: what had to give in reading the clip.
    """

    photos: Sequence[Photo]
    clip: Tensor
    placeholder: str
    class_word: str
    motion_caption: str
    prompt: str
    note: str = ""

    def prompt_for(self, name: str) -> str:
        """The prompt with another name for the subject."""
        return self.prompt.replace(self.placeholder, name)


def toy_material(frames: int, other: bool = False) -> Material:
    """A toy and a motion that were held out of the embedded base's training, and a place that neither was seen in.

    other: a second toy and a second motion.
    """
    subject, motion, placeholder = (
        (OTHER_SUBJECT, OTHER_MOTION, OTHER_PLACEHOLDER) if other else (SUBJECT, MOTION, PLACEHOLDER)
    )
    shots = world.photographs(subject, 4, seed=SEED)
    photos = [Photo(shot.frames[0], shot.mask[0] > 0.5, None, Path(f"toy {index}")) for index, shot in enumerate(shots)]
    actor = world.Scene(world.Subject("circle", "yellow"), motion, "in the night", texture=SEED)
    return Material(
        photos,
        world.render(actor, frames).frames,
        placeholder,
        world.CLASS_WORD,
        actor.caption,
        f"a {placeholder} {motion} on the road",
    )


def own_material(
    images: Path,
    video: Path,
    defaults: Defaults,
    *,
    placeholder: str,
    class_word: str,
    motion_caption: str,
    prompt: str,
) -> Material:
    """Photographs of a folder and the first stretch of a clip, cropped to the base's size."""
    size = (defaults.height, defaults.width)
    notes: list[str] = []
    path = find_clips(video, defaults.frames, notes.append)[0]
    clip = read_motion(path, size, defaults.frames, defaults.fps)
    return Material(
        photos=load_images(images, size, say=notes.append),
        clip=clip.pixels(range(defaults.frames)),
        placeholder=placeholder,
        class_word=class_word,
        motion_caption=caption_of(path) or motion_caption,
        prompt=prompt,
        note=" ".join([*notes, clip.note]).strip(),
    )


def run(
    base: Base,
    material: Material,
    out: Path,
    *,
    seed: int = 0,
    quick: bool = False,
    report: Callable[[str], None] = print,
    reports: Reports | None = None,
) -> dict[str, Any]:
    """Train, compose and write everything into `out`; returns what report.json holds.

    quick: few steps, to see that everything works rather than what it can do. Raises KeyboardInterrupt, saying what is
    kept, when a report asks to stop.
    """
    reports = reports or Reports()
    seconds: dict[str, float] = {}

    @contextmanager
    def timed(stage: str) -> Iterator[None]:
        report(f"{stage} ...")
        began = time.monotonic()
        yield
        seconds[stage] = round(time.monotonic() - began, 1)

    def settings(stage: str) -> TrainingSettings:
        chosen = base.defaults.settings(stage, seed=seed)
        share = QUICK_SHARE if quick else SHARES[stage] if base.embedded else 1.0
        return replace(chosen, steps=max(1, round(chosen.steps * share)))

    if material.note:
        report(material.note)
    with timed("subject"):
        subject = _subject(base, material, settings, reports)
    if not subject.complete:
        raise KeyboardInterrupt("Interrupted; the demo keeps nothing half done.")
    save(base, subject.adapter, out / "identity.safetensors")
    with timed("motion"):
        motion = _motion(base, material, settings("motion"), reports)
    if not motion.complete:
        raise KeyboardInterrupt(f"Interrupted; {out / 'identity.safetensors'} is kept.")
    save(base, motion.adapter, out / "motion.safetensors")
    with timed("videos"):
        adapters = subject.adapter, motion.adapter
        videos = _four_videos(base, material, adapters, seed, 10 if quick else base.defaults.steps, reports)

    losses = {"learned token" if stage == "token" else stage: each for stage, each in subject.losses.items()}
    losses |= motion.losses
    _write_pictures(out, base, material, videos, losses)
    facts = {
        "prompt": material.prompt,
        "embedded_base": base.embedded,
        "seed": seed,
        "seconds": {**seconds, "all": round(sum(seconds.values()), 1)},
        "training": {name: _learned(each) for name, each in losses.items()},
    }
    if base.embedded:
        facts["seen"] = {name: _seen(video, material) for name, video in videos.items()}
    write_json(out / "report.json", facts)
    return facts


def _subject(base: Base, material: Material, settings: Callable[[str], TrainingSettings], reports: Reports) -> Outcome:
    photos = material.photos
    captions = [photo.caption or f"a {material.placeholder}" for photo in photos]
    data = encode_photos([photo.image for photo in photos], captions, base.encoders, [photo.mask for photo in photos])
    stages = ((TEXTUAL_INVERSION, settings("token")), (IDENTITY, settings("identity")))
    return train_stages(base, data, Plan(stages, material.placeholder, material.class_word), reports=reports)


def _motion(base: Base, material: Material, settings: TrainingSettings, reports: Reports) -> Outcome:
    data = encode_clips([material.clip], material.motion_caption, base.encoders, len(material.clip))
    return train_stages(base, data, Plan(((motion_method(1), settings),)), reports=reports)


def _four_videos(
    base: Base,
    material: Material,
    adapters: tuple[TrainedAdapter, TrainedAdapter],
    seed: int,
    steps: int,
    reports: Reports,
) -> dict[str, Tensor]:
    """The same prompt and start with nothing, the subject, the motion, and both; each [F, 3, H, W]."""
    identity, moves = adapters
    cases = {
        "no adapter": (NOTHING, material.class_word),
        "subject": (customize([identity]), material.placeholder),
        "motion": (customize([moves]), material.class_word),
        "subject and motion": (customize([identity, moves], [1.0, MOTION_STRENGTH]), material.placeholder),
    }
    videos = {}
    for index, (name, (customization, word)) in enumerate(cases.items()):
        prompt = material.prompt_for(word)
        settings = base.defaults.sampling(prompt, seed=seed, steps=steps, prior_strength=PRIOR_STRENGTH)

        def follow(done: int, total: int, estimate: Tensor, index: int = index) -> None:
            reports.progress("videos", index * total + done, len(cases) * total, 0.0, 0.0, 0.0)

        videos[name] = generate(
            base.unet, base.encoders, settings, customization, prior_clip=material.clip, callback=follow
        )
    return videos


def _write_pictures(
    out: Path, base: Base, material: Material, videos: dict[str, Tensor], losses: dict[str, Sequence[float]]
) -> None:
    composed = videos["subject and motion"]
    write_video(out / "composed.mp4", composed, base.defaults.fps)
    write_animation(out / "composed.gif", composed, base.defaults.fps)
    write_png(out / "sheet.png", _sheet(material, videos))
    write_png(out / "losses.png", loss_plot(losses))


def _sheet(material: Material, videos: dict[str, Tensor]) -> Tensor:
    """Photographs, clip, and the four videos, a row each."""

    rows = [("photographs", [photo.image for photo in material.photos][:8]), ("clip", few_frames(material.clip))]
    rows += [(name, few_frames(video)) for name, video in videos.items()]
    return contact_sheet(rows, title=material.prompt)


def _seen(video: Tensor, material: Material) -> dict[str, Any]:
    """What the toy world's rules read off a video."""
    reading = rules.read(video)
    return {
        "colour": reading.colour,
        "shape": reading.shape,
        "place": reading.place,
        "path_agreement": round(rules.path_agreement(reading.track, rules.read(material.clip).track), 3),
    }


def _learned(losses: Sequence[float]) -> dict[str, Any]:
    """Steps, and the mean loss of the first and the last twenty of them."""
    return {"steps": len(losses), "first_loss": _mean(losses[:20]), "last_loss": _mean(losses[-20:])}


def _mean(losses: Sequence[float]) -> float:
    return round(sum(losses) / max(len(losses), 1), 4)
