"""The comparison on the embedded base: trains every method, samples, measures against the rendered truth.

Every training, video and score is a file of its own in one folder. What is there is not made again, so a run that was
stopped goes on, and systems that share a training share its file.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..base import Base
from ..customizing import customize
from ..defaults import fitted
from ..files.adapter_info import TrainedAdapter, check_fits
from ..files.adapters import load_adapter, save_trained
from ..files.fingerprint import fingerprint, same_base
from ..media.photographs import load_image
from ..media.writing import write_png
from ..models.diffusion import Callback
from ..safety.limits import json_object, parsed
from ..safety.paths import read_small, write_json
from ..sampling import generate
from ..training.data import TrainingData, encode_clips, encode_photos
from ..training.loop import Callbacks
from ..training.methods import MOTION_WORD, TEXTUAL_INVERSION, Method
from ..training.stages import train_method
from . import fidelity, world
from .comparison import System, Table

PLACEHOLDER, MOTION_PLACEHOLDER = "<my-toy>", "<my-motion>"
PHOTOGRAPHS, RELATED_CLIPS = 4, 4
ACTOR, STAGE = world.Subject("square", "yellow"), "in the night"  # who shows a motion, and where
# What the base knows: the subjects that a learned motion is asked of, and the motions that a learned subject is asked
# for, as many of each as a scale has new ones.
KNOWN_SUBJECTS = {
    f"{colour}-{shape}": world.Subject(shape, colour)
    for colour, shape in (
        ("red", "circle"),
        ("blue", "square"),
        ("green", "triangle"),
        ("purple", "star"),
        ("orange", "cross"),
        ("white", "heart"),
        ("yellow", "circle"),
        ("red", "star"),
    )
}
DATA_SEED = 3


@dataclass(frozen=True)
class Scale:
    """How much of the comparison is done: subjects with motions, the places in turn.

    one_in: of the pairs of subject and motion, so that each subject and each motion has its part; seeds: of each such
    pair; share: of each row's training steps; sampling_steps: of DDIM.
    """

    subjects: tuple[str, ...] = tuple(world.HELD_OUT_SUBJECTS)
    motions: tuple[str, ...] = world.HELD_OUT_MOTIONS
    places: tuple[str, ...] = tuple(world.PLACES)
    one_in: int = 1
    seeds: int = 1
    share: float = 1.0
    sampling_steps: int = 50


FULL = Scale(one_in=2)
QUICK = Scale(("mushroom",), ("circling",), ("on the road", "on the grass"), seeds=2, share=0.25, sampling_steps=20)


@dataclass(frozen=True)
class Case:
    """One video to be made. subject: a name among the held-out ones or among `KNOWN_SUBJECTS`."""

    subject: str
    motion: str
    place: str
    seed: int

    @property
    def name(self) -> str:
        return "-".join((self.subject, self.motion, self.place, str(self.seed))).replace(" ", "-")

    @property
    def looks(self) -> world.Subject:
        return (world.HELD_OUT_SUBJECTS | KNOWN_SUBJECTS)[self.subject]

    @property
    def new_subject(self) -> bool:
        return self.subject in world.HELD_OUT_SUBJECTS

    @property
    def new_motion(self) -> bool:
        return self.motion in world.HELD_OUT_MOTIONS


@dataclass(frozen=True)
class Tools:
    """What a run works with. report: told a sentence for every job; training, sampling: progress of one."""

    base: Base
    folder: Path
    scale: Scale
    report: Callable[[str], None] = print
    training: Callable[[str], Callbacks] = lambda what: Callbacks()
    sampling: Callable[[str], Callback | None] = lambda what: None


@dataclass(frozen=True)
class Measured:
    """A system on a table's cases: the scores of each, its strips of frames, and the numbers that it trains."""

    scores: list[dict[str, float]]
    strips: list[Path]
    parameters: int


def cases(task: str, scale: Scale) -> list[Case]:
    """The videos of a task, each from a noise of its own: of what it does not teach, the base's own take the place."""
    known_subjects, known_motions = tuple(KNOWN_SUBJECTS), world.MOTIONS
    subjects, motions = {
        "joint": (scale.subjects, scale.motions),
        "subject": (scale.subjects, known_motions[: len(scale.motions)]),
        "motion": (known_subjects[: len(scale.subjects)], scale.motions),
    }[task]
    pairs = [
        (subject, motion)
        for (row, subject), (column, motion) in itertools.product(enumerate(subjects), enumerate(motions))
        if (row + column) % scale.one_in == 0
        for _ in range(scale.seeds)
    ]
    places = itertools.cycle(scale.places)
    return [Case(subject, motion, next(places), seed) for seed, (subject, motion) in enumerate(pairs)]


def measure(tools: Tools, tables: Sequence[Table]) -> dict[str, dict[str, Measured]]:
    """Table's number -> system's name -> what was measured.

    Raises ValueError for a folder of another run and for a base that does not draw the toy world.
    """
    _claim(tools)
    found: dict[str, dict[str, Measured]] = {}
    for table in tables:
        for system in table.systems:
            tools.report(f"Table {table.number}: {system.name}")
            found.setdefault(table.number, {})[system.name] = _measure(tools, system, cases(table.task, tools.scale))
    return found


def seconds_spent(folder: Path) -> float:
    """Wall time of all jobs of a folder, over all its runs."""
    return sum(_noted(path, "seconds")["seconds"] for path in folder.rglob("*.seconds.json"))


def _noted(path: Path, *names: str) -> dict[str, Any]:
    """What an earlier run noted in a file. Raises ValueError where it lacks one of the names."""
    try:
        found = json_object("it", parsed(read_small(path).decode()))
        if missing := [name for name in names if name not in found]:
            raise ValueError(f"it has no {missing[0]}")
    except ValueError as error:
        raise ValueError(f"{path} is not as a run left it; delete it, or name another --out.") from error
    return found


def _claim(tools: Tools) -> None:
    """Write what this folder is for, or make sure that it is for the same."""
    defaults, path = tools.base.defaults, tools.folder / "run.json"
    if (defaults.height, defaults.width, defaults.frames) != (world.SIZE, world.SIZE, world.FRAMES):
        raise ValueError(
            "The toy world goes with the embedded base, or with one trained again; score videos with --videos."
        )
    settings = json.loads(json.dumps({"scale": asdict(tools.scale), "defaults": asdict(defaults)}))
    about = {"base": fingerprint(tools.base.unet), "settings": settings}
    if path.exists():
        theirs = _noted(path, "base", "settings")
        if theirs["settings"] != settings or not same_base(str(theirs["base"]), about["base"]):
            raise ValueError(
                f"{tools.folder} holds a comparison at another scale, with other training settings or on another base; "
                "name another --out."
            )
    else:
        write_json(path, about)


def _measure(tools: Tools, system: System, wanted: Sequence[Case]) -> Measured:
    scores, strips, parameters = [], [], 0
    for case in wanted:
        learned = list(_learned(tools, system, case))
        parameters = sum(_parameters(each) for each in learned)
        strip = _video(tools, system, case, learned)
        strips.append(strip)
        scores.append(_scores(tools, strip, case))
    return Measured(scores, strips, parameters)


def _parameters(learned: TrainedAdapter) -> int:
    tensors = [] if learned.adapter is None else list(learned.adapter.parameters())
    return sum(tensor.numel() for tensor in [*tensors, *learned.tokens.values()])


# ------------------------------------------------------------------------------------------------ training


def _learned(tools: Tools, system: System, case: Case) -> Iterator[TrainedAdapter]:
    """The files that a case needs of a system, trained where they are not there."""
    for row, what in zip(_used(system, case), (case.subject, case.motion), strict=True):
        if row is not None:
            yield _train(tools, row, what)


def _train(tools: Tools, row: Method, what: str) -> TrainedAdapter:
    """A row's file for a subject or a motion."""
    base, path = tools.base, tools.folder / "adapters" / row.name / f"{what}.safetensors"
    if not path.exists():
        given = _train(tools, TEXTUAL_INVERSION, what).tokens if row.token == "given" else None
        method = fitted(row, base.unet.config)
        settings = base.defaults.settings_for(method)
        settings = replace(settings, steps=max(1, round(settings.steps * tools.scale.share)))
        state = path.with_suffix(".state.safetensors")
        with _timed(path):
            result = train_method(
                base.unet,
                base.encoders.text,
                _data(base, row, what),
                method,
                placeholder=PLACEHOLDER if row.data == "images" else MOTION_PLACEHOLDER,
                class_word=world.CLASS_WORD if row.data == "images" else MOTION_WORD,
                tokens=given,
                settings=settings,
                callbacks=tools.training(f"{row.name} {what}"),
                state_path=state,
                resume=True,
            )
            if result.stopped:
                raise KeyboardInterrupt(f"Stopped; the same command goes on from what {tools.folder} holds.")
            save_trained(path, result.trained)
        state.unlink(missing_ok=True)
    loaded = load_adapter(path)
    check_fits(loaded.info, base.unet.config, fingerprint(base.unet), same_base=same_base)
    return loaded


def _data(base: Base, row: Method, what: str) -> TrainingData:
    if row.data == "images":
        shots = world.photographs(world.HELD_OUT_SUBJECTS[what], PHOTOGRAPHS, seed=DATA_SEED)
        photos, masks = [shot.frames[0] for shot in shots], [shot.mask[0] for shot in shots]
        return encode_photos(photos, f"a {PLACEHOLDER}", base.encoders, masks)
    shown = [(lesson(what), f"a {ACTOR.words} {_motion_words(row, what)} {STAGE}")]
    if row.related_clips:
        generators = (torch.Generator().manual_seed(seed) for seed in range(RELATED_CLIPS))
        shown += [(scene, scene.caption) for scene in map(world.training_scene, generators)]
    clips = [world.render(scene).frames for scene, _ in shown]
    return encode_clips(clips, [caption for _, caption in shown], base.encoders, world.FRAMES)


def lesson(motion: str) -> world.Scene:
    """The clip that a motion is learned from."""
    return world.Scene(ACTOR, motion, STAGE, texture=DATA_SEED)


def _motion_words(row: Method | None, motion: str) -> str:
    """How captions and prompts name a motion: by its own token where a row has one."""
    return MOTION_PLACEHOLDER if row is not None and row.token == "learned" else motion


# ------------------------------------------------------------------------------------------------ sampling


def _video(tools: Tools, system: System, case: Case, learned: Sequence[TrainedAdapter]) -> Path:
    """The strip of a case's frames, [3, H, F * W], sampled where it is not there."""
    rows = "+".join(row.name if row else "none" for row in _used(system, case))
    path = tools.folder / "videos" / rows / f"{case.name}.png"
    if not path.exists():
        prompt, steps = prompt_for(system, case), tools.scale.sampling_steps
        settings = tools.base.defaults.sampling(prompt, seed=case.seed, steps=steps)
        with _timed(path):
            follow = tools.sampling(f"{rows} {case.name}")
            frames = generate(tools.base.unet, tools.base.encoders, settings, customize(learned), callback=follow)
            write_png(path, torch.cat(list(frames), dim=2))
    return path


def _used(system: System, case: Case) -> tuple[Method | None, Method | None]:
    """The rows of a system that a case calls upon."""
    return system.subject if case.new_subject else None, system.motion if case.new_motion else None


def prompt_for(system: System, case: Case) -> str:
    """What a system is asked; a subject that it has not learned is called by its class word."""
    subject, motion = _used(system, case)
    name = PLACEHOLDER if subject else world.CLASS_WORD if case.new_subject else case.looks.words
    return f"a {name} {_motion_words(motion, case.motion)} {case.place}"


def _scores(tools: Tools, strip: Path, case: Case) -> dict[str, float]:
    path = strip.with_suffix(".json")
    if not path.exists():
        write_json(path, score(frames_of(strip), case))
    return _noted(path, "subject", "motion", "context")


def frames_of(strip: Path) -> Tensor:
    """The frames [F, 3, H, W] of a strip."""
    return torch.stack(load_image(strip).split(world.SIZE, dim=2))


def score(frames: Tensor, case: Case) -> dict[str, float]:
    """The three exact metrics of a video [F, 3, 64, 64]."""
    found = fidelity.find(frames, case.looks)
    colour = "" if case.new_subject else case.looks.colour
    return {
        "subject": fidelity.subject_fidelity(found),
        "motion": fidelity.motion_fidelity(found.path, world.path_of(case.motion, len(frames))),
        "context": fidelity.context_fidelity(frames, case.place, colour),
    }


@contextmanager
def _timed(path: Path) -> Iterator[None]:
    """Adds the seconds inside to what is noted beside a file, however the block ends."""
    note, began = path.with_suffix(".seconds.json"), time.monotonic()
    before = _noted(note, "seconds")["seconds"] if note.exists() else 0.0
    try:
        yield
    finally:
        write_json(note, {"seconds": before + time.monotonic() - began})
