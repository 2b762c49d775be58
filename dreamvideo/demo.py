"""The whole method in one command: a subject from photographs, a motion from a clip, both in one video.

Without media it takes a subject and a motion from the toy world that the embedded base has never seen.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .base import Base
from .files import write_json
from .media import Photo, choose_frames, load_clips, load_images, write_animation, write_png, write_video
from .nano import rules, world
from .nano.defaults import Defaults
from .pictures import contact_sheet, loss_plot
from .sampling import NOTHING, customize, generate
from .stages import train_motion, train_subject
from .training import Callbacks, TrainingResult, TrainingSettings
from .training_data import encode_clips

PLACEHOLDER = "<my-toy>"
SUBJECT = "mushroom"
MOTION = "circling"
SEED = 3  # of the photographs and the clip


@dataclass(frozen=True)
class Material:
    """What the demo learns from and is asked for.

    clip [F, 3, H, W]; in `prompt` {} stands for the subject: its placeholder, or the class word where none is learned.
    """

    photos: Sequence[Photo]
    clip: Tensor
    placeholder: str
    class_word: str
    motion_caption: str
    prompt: str
    notes: tuple[str, ...] = ()


def toy_material(frames: int) -> Material:
    """A toy and a motion that were held out of the embedded base's training, and a place that neither was seen in."""
    subject = world.HELD_OUT_SUBJECTS[SUBJECT]
    shots = world.photographs(subject, 4, seed=SEED)
    photos = [Photo(shot.frames[0], shot.mask[0] > 0.5, None, Path(f"toy {index}")) for index, shot in enumerate(shots)]
    actor = world.Scene(world.Subject("square", "yellow"), MOTION, "on the road", texture=SEED)
    return Material(
        photos,
        world.render(actor, frames).frames,
        PLACEHOLDER,
        world.CLASS_WORD,
        actor.caption,
        f"a {{}} {MOTION} on the water",
    )


def own_material(
    images: Path,
    video: Path,
    defaults: Defaults,
    placeholder: str,
    class_word: str,
    motion_caption: str,
    prompt: str,
) -> Material:
    """Photographs of a folder and the first stretch of a clip, cropped to the base's size."""
    size = (defaults.height, defaults.width)
    clip = load_clips(video, size)[0]
    choice = choose_frames(clip.times, defaults.frames, defaults.fps, start=0)
    notes = tuple(note for note in (clip.note, choice.note) if note)
    return Material(
        load_images(images, size), clip.pixels(choice.indices), placeholder, class_word, motion_caption, prompt, notes
    )


def run(
    base: Base,
    material: Material,
    out: Path,
    *,
    seed: int = 0,
    quick: bool = False,
    report: Callable[[str], None] = print,
    callbacks_for: Callable[[str], Callbacks] = lambda stage: Callbacks(),
) -> dict[str, Any]:
    """Train, compose and write everything into `out`; returns what report.json holds.

    quick: few steps, to see that everything works rather than what it can do.
    """
    began = time.monotonic()
    defaults = base.defaults
    seconds: dict[str, float] = {}
    results: dict[str, TrainingResult] = {}

    def timed(stage: str, work: Callable[[], Any]) -> Any:
        report(f"{stage} ...")
        start = time.monotonic()
        found = work()
        seconds[stage] = round(time.monotonic() - start, 1)
        return found

    def settings(stage: str) -> TrainingSettings:
        chosen = defaults.settings(stage, seed=seed)
        return replace(chosen, steps=chosen.steps // 10) if quick else chosen

    for note in material.notes:
        report(note)
    subject = timed(
        "subject",
        lambda: train_subject(
            base.unet,
            base.encoders,
            [photo.image for photo in material.photos],
            [photo.mask for photo in material.photos],
            [photo.caption or f"a {material.placeholder}" for photo in material.photos],
            placeholder=material.placeholder,
            class_word=material.class_word,
            token_settings=settings("token"),
            identity_settings=settings("identity"),
            callbacks_for=callbacks_for,
        ),
    )
    if subject.stopped:
        raise KeyboardInterrupt("Interrupted; the demo keeps nothing half done.")
    results["learned token"], results["identity"] = subject.token, subject.identity
    subject.identity.save(out / "identity.safetensors")
    results["motion"] = timed("motion", lambda: _motion(base, material, settings("motion"), callbacks_for("motion")))
    if results["motion"].stopped:
        raise KeyboardInterrupt(f"Interrupted; {out / 'identity.safetensors'} is kept.")
    results["motion"].save(out / "motion.safetensors")

    steps = 10 if quick else 50
    videos = timed("videos", lambda: _four_videos(base, material, results, seed, steps, callbacks_for("videos")))
    write_video(out / "composed.mp4", videos["subject and motion"], defaults.fps)
    write_animation(out / "composed.gif", videos["subject and motion"], defaults.fps)
    write_png(out / "sheet.png", _sheet(material, videos))
    losses = {name: result.losses for name, result in results.items()}
    write_png(out / "losses.png", loss_plot(losses))
    facts = {
        "prompt": material.prompt.format(material.placeholder),
        "embedded_base": base.embedded,
        "seed": seed,
        "seconds": {**seconds, "all": round(time.monotonic() - began, 1)},
        "training": {name: _learned(result) for name, result in results.items()},
    }
    if base.embedded:
        facts["seen"] = {name: _seen(video, material) for name, video in videos.items()}
    write_json(out / "report.json", facts)
    return facts


def _motion(base: Base, material: Material, settings: TrainingSettings, callbacks: Callbacks) -> TrainingResult:
    data = encode_clips([material.clip], material.motion_caption, base.encoders, len(material.clip))
    return train_motion(base.unet, base.encoders.text, data, settings=settings, callbacks=callbacks)


def _four_videos(
    base: Base, material: Material, results: dict[str, TrainingResult], seed: int, steps: int, callbacks: Callbacks
) -> dict[str, Tensor]:
    """The same prompt and seed with nothing, the subject, the motion, and both; each [F, 3, H, W]."""
    identity, motion = results["identity"].trained, results["motion"].trained
    cases = {
        "no adapter": (NOTHING, material.class_word),
        "subject": (customize([identity]), material.placeholder),
        "motion": (customize([motion]), material.class_word),
        "subject and motion": (customize([identity, motion]), material.placeholder),
    }
    videos = {}
    for index, (name, (customization, word)) in enumerate(cases.items()):
        settings = base.defaults.sampling(material.prompt.format(word), seed=seed, steps=steps)

        def follow(done: int, total: int, estimate: Tensor, index: int = index) -> None:
            callbacks.progress(index * total + done, 0.0, 0.0, 0.0)

        videos[name] = generate(base.unet, base.encoders, settings, customization, callback=follow)
    return videos


def _sheet(material: Material, videos: dict[str, Tensor]) -> Tensor:
    """Photographs, clip, and the four videos, a row each."""

    def few(frames: Tensor) -> list[Tensor]:
        return list(frames[torch.linspace(0, len(frames) - 1, min(len(frames), 8)).round().long()])

    rows = [("photographs", [photo.image for photo in material.photos][:8]), ("clip", few(material.clip))]
    rows += [(name, few(video)) for name, video in videos.items()]
    return contact_sheet(rows, title=material.prompt.format(material.placeholder))


def _seen(video: Tensor, material: Material) -> dict[str, Any]:
    """What the toy world's rules read off a video."""
    reading = rules.read(video)
    return {
        "colour": reading.colour,
        "shape": reading.shape,
        "place": reading.place,
        "path_agreement": round(rules.path_agreement(reading.track, rules.read(material.clip).track), 3),
    }


def _learned(result: TrainingResult) -> dict[str, Any]:
    """Steps, and the mean loss of the first and the last twenty of them."""
    first, last = _mean(result.losses[:20]), _mean(result.losses[-20:])
    return {"steps": result.steps, "first_loss": first, "last_loss": last}


def _mean(losses: Sequence[float]) -> float:
    return round(sum(losses) / max(len(losses), 1), 4)
