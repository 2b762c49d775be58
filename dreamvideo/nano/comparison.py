"""The paper's comparison as rows: which systems stand in which table, and on what task they are measured.

The bodies of the paper's tables are not at hand; which system stands where follows its text (sections 4.2 and 4.3 and
the appendix). AnimateDiff and Tune-A-Video, which start from an image base, are missing until there is an embedded one.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..training import methods
from ..training.methods import IDENTITY, MOTION, MOTION_METHODS, SUBJECT_METHODS, Method

VIDEO, WITH_MODULE, PICTURES = "video", "image", "pictures"


@dataclass(frozen=True)
class System:
    """One row of a table: what teaches it the subject and what the motion; None for what it does not learn.

    start: the base that it starts from: "video", "image" (the image base with its motion module) or "pictures" (the
    same without).
    """

    name: str
    subject: Method | None = None
    motion: Method | None = None
    start: str = VIDEO


@dataclass(frozen=True)
class Table:
    """One table of the paper. task: "joint" (a new subject in a new motion), "subject" (a new subject in a motion that
    the base knows) or "motion" (a subject that the base knows in a new motion)."""

    number: str
    title: str
    task: str
    systems: tuple[System, ...]


BASE = System("base, nothing learned")
DREAMVIDEO = System("DreamVideo", IDENTITY, MOTION)
SUBJECT_ONLY, MOTION_ONLY = System("DreamVideo", IDENTITY), System("DreamVideo", motion=MOTION)


def _subject(name: str, method: str) -> System:
    return System(name, SUBJECT_METHODS[method], MOTION)


def _motion(name: str, method: str) -> System:
    return System(name, IDENTITY, MOTION_METHODS[method])


TABLES = (
    Table(
        "1",
        "subject and motion together",
        "joint",
        (
            BASE,
            System("ModelScopeT2V, fine-tuned", methods.FINE_TUNING_SUBJECT, methods.FINE_TUNING_MOTION),
            System("LoRA", methods.LORA_SUBJECT, methods.LORA_MOTION),
            DREAMVIDEO,
        ),
    ),
    Table(
        "2",
        "subject",
        "subject",
        (
            BASE,
            System("Textual Inversion", methods.TEXTUAL_INVERSION),
            System("Dreamix", methods.DREAMIX),
            System("Custom Diffusion", methods.CUSTOM_DIFFUSION),
            SUBJECT_ONLY,
        ),
    ),
    Table(
        "3",
        "motion",
        "motion",
        (
            BASE,
            System("ModelScopeT2V, fine-tuned", motion=methods.FINE_TUNING_MOTION),
            System("Customizing Motion", motion=methods.CUSTOMIZING_MOTION),
            MOTION_ONLY,
        ),
    ),
    Table(
        "5",
        "parts of DreamVideo",
        "joint",
        (
            _subject("without textual identity", "no_textual_identity"),
            System("without motion adapter", IDENTITY),
            _motion("without appearance guidance", "no_appearance_guidance"),
            DREAMVIDEO,
        ),
    ),
    Table(
        "A1",
        "further combinations",
        "joint",
        (
            System("Custom Diffusion + Customizing Motion", methods.CUSTOM_DIFFUSION, methods.CUSTOMIZING_MOTION),
            System("Dreamix + ModelScopeT2V, fine-tuned", methods.DREAMIX, methods.FINE_TUNING_MOTION),
            System("DreamVideo's identity + Customizing Motion", IDENTITY, methods.CUSTOMIZING_MOTION),
            DREAMVIDEO,
        ),
    ),
    Table(
        "A4",
        "where adapters sit and how wide they are",
        "joint",
        (
            _subject("identity adapter at self-attention", "self_attention"),
            _subject("identity adapter at feed-forward", "feed_forward"),
            _subject("identity adapter at all layers", "all_layers"),
            _subject("identity adapter, hidden width 32", "hidden_32"),
            _motion("motion adapter at self-attention", "self_attention"),
            _motion("motion adapter at feed-forward", "feed_forward"),
            _motion("motion adapter, hidden width 32", "hidden_32"),
            DREAMVIDEO,
        ),
    ),
    Table(
        "A5",
        "serial and parallel adapters",
        "joint",
        (
            _subject("serial identity adapter", "serial"),
            _motion("serial motion adapter", "serial"),
            System("both serial", SUBJECT_METHODS["serial"], MOTION_METHODS["serial"]),
            System("both parallel (DreamVideo)", IDENTITY, MOTION),
        ),
    ),
)
