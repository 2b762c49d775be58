"""Which videos the comparison on the embedded base makes, at which scale, and what each system is asked for them."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from ..defaults import EMBEDDED
from ..training.methods import Method
from . import world
from .comparison import Limits, System

PLACEHOLDER, MOTION_PLACEHOLDER = "<my-toy>", "<my-motion>"
OTHER_PLACEHOLDER = "<other-toy>"  # of the right one of two subjects
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
    sampling_steps: int = EMBEDDED.steps


FULL = Scale(one_in=2)
QUICK = Scale(("mushroom",), ("circling",), ("on the road", "on the grass"), seeds=2, share=0.25, sampling_steps=10)


@dataclass(frozen=True)
class Case:
    """One video to be made. subject: a name among the held-out ones or among `KNOWN_SUBJECTS`.

    other: of two subjects the right one, held out as the left one is; "" for one alone.
    """

    subject: str
    motion: str
    place: str
    seed: int
    other: str = ""

    @property
    def name(self) -> str:
        parts = (self.subject, self.other, self.motion, self.place, str(self.seed))
        return "-".join(part for part in parts if part).replace(" ", "-")

    @property
    def truth(self) -> world.Scene:
        """What it asks for."""
        companion = world.HELD_OUT_SUBJECTS[self.other] if self.other else None
        return world.Scene(self.looks, self.motion, self.place, companion=companion)

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
class Use:
    """What a case calls upon of a system: a row and what it learns, and when and how deep that acts."""

    row: Method
    what: str
    limits: Limits


def cases(task: str, scale: Scale) -> list[Case]:
    """The videos of a task, each from a noise of its own: of what it does not teach, the base's own take the place."""
    known_subjects, known_motions = tuple(KNOWN_SUBJECTS), world.MOTIONS
    subjects, motions = {
        "joint": (scale.subjects, scale.motions),
        "subject": (scale.subjects, known_motions[: len(scale.motions)]),
        "motion": (known_subjects[: len(scale.subjects)], scale.motions),
        "two": (scale.subjects, known_motions[: len(scale.motions)]),
    }[task]
    pairs = [
        (subject, motion)
        for (row, subject), (column, motion) in itertools.product(enumerate(subjects), enumerate(motions))
        if (row + column) % scale.one_in == 0
        for _ in range(scale.seeds)
    ]
    places = itertools.cycle(scale.places)
    return [
        Case(subject, motion, next(places), seed, _beside(subject) if task == "two" else "")
        for seed, (subject, motion) in enumerate(pairs)
    ]


def _beside(subject: str) -> str:
    """Who stands beside a held-out subject."""
    names = list(world.HELD_OUT_SUBJECTS)
    return names[(names.index(subject) + 1) % len(names)]


def used(system: System, case: Case) -> list[Use]:
    """What a case calls upon: of subjects from left to right, and of the motion."""
    found = []
    if system.subject is not None and case.new_subject:
        names = (case.subject, case.other) if case.other else (case.subject,)
        found += [Use(system.subject, name, system.subject_limits) for name in names]
    if system.motion is not None and case.new_motion:
        found.append(Use(system.motion, case.motion, system.motion_limits))
    return found


def prompt_for(system: System, case: Case) -> str:
    """What a system is asked; a subject that it has not learned is called by its class word."""
    learned = system.subject is not None and case.new_subject
    name = PLACEHOLDER if learned else world.CLASS_WORD if case.new_subject else case.looks.words
    if case.other:
        name += f" and a {OTHER_PLACEHOLDER if learned else world.CLASS_WORD}"
    return _prompt(name, system, case)


def region_prompts(system: System, case: Case) -> tuple[str, str] | None:
    """What the halves of a video of two subjects are asked for, where the system gives each its own."""
    if not (system.regions and case.other):
        return None
    left, right = (_prompt(name, system, case) for name in (PLACEHOLDER, OTHER_PLACEHOLDER))
    return left, right


def _prompt(name: str, system: System, case: Case) -> str:
    row = system.motion if case.new_motion else None
    return f"a {name} {motion_words(row, case.motion)} {case.place}"


def lesson(motion: str) -> world.Scene:
    """The clip that a motion is learned from."""
    return world.Scene(ACTOR, motion, STAGE, texture=DATA_SEED)


def motion_words(row: Method | None, motion: str) -> str:
    """How captions and prompts name a motion: by its own token where a row has one."""
    return MOTION_PLACEHOLDER if row is not None and row.token == "learned" else motion
