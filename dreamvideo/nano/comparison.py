"""The comparison as rows: which systems stand in which table, and on what task they are measured.

Tables 1 to A5 are the paper's, B1 to B3 what this project has beyond it. The bodies of the paper's tables are not at
hand; which system stands where follows its text (sections 4.2 and 4.3 and the appendix). AnimateDiff and Tune-A-Video
start from the image base beside the embedded one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..training import methods
from ..training.methods import IDENTITY, IDENTITY_PLUS, MOTION, MOTION_METHODS, MOTION_PLUS, SUBJECT_METHODS, Method

VIDEO, WITH_MODULE, PICTURES = "video", "image", "pictures"


@dataclass(frozen=True)
class Limits:
    """When and how deep an adapter acts: fields of `StackEntry`. window, guided_from: None for what its file says."""

    window: tuple[float, float] | None = None
    ramp: tuple[float, float] = (1.0, 1.0)
    depth: tuple[float, float] = (1.0, 1.0)
    guided_from: float | None = None


AS_TOLD = Limits()


@dataclass(frozen=True)
class System:
    """One row of a table: what teaches it the subject and what the motion; None for what it does not learn.

    start: the base that it starts from: "video", "image" (the image base with its motion module) or "pictures" (the
    same without). regions: whether of two subjects each has a region and a prompt of its own; apart: up to where each
    is then drawn by itself, see `models.regions.Region`.
    """

    name: str
    subject: Method | None = None
    motion: Method | None = None
    start: str = VIDEO
    subject_limits: Limits = AS_TOLD
    motion_limits: Limits = AS_TOLD
    regions: bool = False
    apart: float = 0.0


@dataclass(frozen=True)
class Table:
    """One table. task: "joint" (a new subject in a new motion), "subject" (a new subject in a motion that the base
    knows), "motion" (a subject that the base knows in a new motion) or "two" (two new subjects, each in its half, in a
    motion that the base knows)."""

    number: str
    title: str
    task: str
    systems: tuple[System, ...]


BASE = System("base, nothing learned")
DREAMVIDEO = System("DreamVideo", IDENTITY, MOTION)
DREAMVIDEO_PLUS = System("DreamVideo plus", IDENTITY_PLUS, MOTION_PLUS)
SUBJECT_ONLY, MOTION_ONLY = System("DreamVideo", IDENTITY), System("DreamVideo", motion=MOTION)


def _subject(name: str, method: str) -> System:
    return System(name, SUBJECT_METHODS[method], MOTION)


def _motion(name: str, method: str) -> System:
    return System(name, IDENTITY, MOTION_METHODS[method])


def _with_option(name: str, row: Method, option: str) -> System:
    """DreamVideo with this row in the place of its own, and one of the row's options."""
    chosen = replace(row, name=f"{row.name}_{option}", **{option: True})
    return System(name, chosen, MOTION) if row.data == "images" else System(name, IDENTITY, chosen)


def _scheduled(name: str, subject: Limits = AS_TOLD, motion: Limits = AS_TOLD) -> System:
    return replace(DREAMVIDEO_PLUS, name=name, subject_limits=subject, motion_limits=motion)


THROUGHOUT, LATE, EARLY = Limits(window=(0.0, 1.0)), Limits(window=(0.3, 1.0)), Limits(window=(0.0, 0.6))
RISING, FALLING = replace(THROUGHOUT, ramp=(0.5, 1.5)), replace(THROUGHOUT, ramp=(1.5, 0.5))
GUIDED, NOT_GUIDED = Limits(guided_from=methods.IDENTITY_PLUS.guided_from), Limits(guided_from=1.0)
SHALLOW, DEEP = Limits(depth=(1.5, 0.5)), Limits(depth=(0.5, 1.5))

PAPERS = (
    Table(
        "1",
        "subject and motion together",
        "joint",
        (
            BASE,
            System("ModelScopeT2V, fine-tuned", methods.FINE_TUNING_SUBJECT, methods.FINE_TUNING_MOTION),
            System("LoRA", methods.LORA_SUBJECT, methods.LORA_MOTION),
            System("AnimateDiff, fine-tuned", methods.FINE_TUNING_SUBJECT, methods.FINE_TUNING_MOTION, WITH_MODULE),
            System("AnimateDiff, LoRA", methods.LORA_SUBJECT, methods.LORA_MOTION, WITH_MODULE),
            System("DreamVideo on AnimateDiff", IDENTITY, MOTION, WITH_MODULE),
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
            System("Tune-A-Video", motion=methods.TUNE_A_VIDEO, start=PICTURES),
            System("AnimateDiff, fine-tuned", motion=methods.FINE_TUNING_MOTION, start=WITH_MODULE),
            System("DreamVideo on AnimateDiff", motion=MOTION, start=WITH_MODULE),
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
BEYOND = (
    Table(
        "B1",
        "beyond the paper",
        "joint",
        (
            DREAMVIDEO,
            _with_option("debiased loss", MOTION, "debias"),
            _with_option("absorber", MOTION, "absorber"),
            _motion("frame-aware motion adapter", "frame_aware"),
            _motion("frame-aware motion adapter, residuals", "frame_aware_convolutions"),
            _with_option("both, debiased loss", methods.FRAME_AWARE_CONVOLUTIONS, "debias"),
            _motion("residuals alone, rank 16", "temporal_convolutions"),
            _motion("residuals alone, rank 64", "dreamvideo_plus"),
            _with_option("a vector a layer for the word", IDENTITY, "layered_token"),
            _with_option("attention to the mask", IDENTITY, "mask_attention"),
            replace(DREAMVIDEO, name="guided towards the subject", subject_limits=GUIDED),
            _subject("identity adapter at all layers", "all_layers"),
            System("ModelScopeT2V, fine-tuned", methods.FINE_TUNING_SUBJECT, methods.FINE_TUNING_MOTION),
            System("Dreamix + ModelScopeT2V, fine-tuned", methods.DREAMIX, methods.FINE_TUNING_MOTION),
            _scheduled("DreamVideo plus, not guided towards the subject", subject=NOT_GUIDED),
            DREAMVIDEO_PLUS,
        ),
    ),
    Table(
        "B2",
        "schedules",
        "joint",
        (
            _scheduled("subject throughout (steps 0 to 1)", subject=THROUGHOUT),
            _scheduled("subject late (steps 0.3 to 1)", subject=LATE),
            _scheduled("subject rising (steps 0 to 1, 0.5 to 1.5)", subject=RISING),
            _scheduled("subject shallow (1.5 to 0.5)", subject=SHALLOW),
            _scheduled("motion early (steps 0 to 0.6)", motion=EARLY),
            _scheduled("motion falling (1.5 to 0.5)", motion=FALLING),
            _scheduled("motion deep (0.5 to 1.5)", motion=DEEP),
            _scheduled("subject rising, motion falling", RISING, FALLING),
            _scheduled("subject shallow, motion deep", SHALLOW, DEEP),
            DREAMVIDEO_PLUS,
        ),
    ),
    Table(
        "B3",
        "two subjects, each in its half",
        "two",
        (
            BASE,
            System("one prompt for both", IDENTITY_PLUS),
            System("each in its region", IDENTITY_PLUS, regions=True),
            System("each in its region, half of the way apart", IDENTITY_PLUS, regions=True, apart=0.5),
            System("each in its region, apart", IDENTITY_PLUS, regions=True, apart=1.0),
        ),
    ),
)
TABLES = (*PAPERS, *BEYOND)
