"""What a sweep consists of, as its plan says it: bases, subjects, motions, methods, prompts, seeds, measures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..training.methods import MOTION_WORD
from .bases import BaseSpec
from .measures import Measuring

SUBJECT, MOTION = "{subject}", "{motion}"  # in prompts


@dataclass(frozen=True)
class Subject:
    """Photographs of one thing. images: absolute paths; options: of `train subject`, before the plan's."""

    name: str
    images: tuple[str, ...]
    class_word: str
    placeholder: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Motion:
    """Clips of one motion. words: what prompts say of it; caption: of clips that have none beside them."""

    name: str
    clips: tuple[str, ...]
    words: str
    caption: str = ""
    related: tuple[str, ...] = ()
    placeholder: str = "<my-motion>"
    class_word: str = MOTION_WORD
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Method:
    """What teaches subjects and what motions, by the names of `--method`; None for what it does not learn."""

    name: str
    subject: str | None = None
    motion: str | None = None
    subject_strength: float = 1.0
    motion_strength: float = 1.0


@dataclass(frozen=True)
class Plan:
    """A whole sweep. training: "subject" and "motion" -> options for all of them; sampling: of `SamplingSettings`."""

    out: Path
    bases: tuple[BaseSpec, ...]
    subjects: tuple[Subject, ...]
    motions: tuple[Motion, ...]
    methods: tuple[Method, ...]
    prompts: tuple[str, ...] = (f"a {SUBJECT} {MOTION}",)
    seeds: tuple[int, ...] = (0,)
    training: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    sampling: Mapping[str, Any] = field(default_factory=dict)
    measuring: Measuring = Measuring()
