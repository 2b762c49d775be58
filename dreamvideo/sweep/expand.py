"""A plan as jobs: every training once, a video for each base, method, subject, motion, prompt and seed, its measures.

A job's id is a digest of all that decides what comes out: files by their contents, settings as they are resolved, the
base by its weights. So a plan that grows finds what it has, and what changed gets another name instead of its place.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ..base import FoundBase
from ..files.fingerprint import fingerprint
from ..media.clips import file_digest, find_clips
from ..media.folders import Say, caption_of, frame_files, mask_files, photograph_files, quiet
from ..plans import motion_plan, subject_plan
from ..safety.limits import short
from ..sampling import SamplingSettings
from ..training.methods import MOTION_METHODS, SUBJECT_METHODS
from .bases import BaseSpec
from .job import Job
from .measures import Measuring
from .plan import MOTION, SUBJECT, Method, Motion, Plan, Subject
from .work import TRAINING, Measures, RunFile, Training, Video

PIXELS = ("height", "width", "frames", "fps")


@dataclass(frozen=True)
class Cell:
    """One video of the matrix, by the names of the plan, and the ids of its jobs. measures: "" where none are taken."""

    base: str
    method: str
    subject: str
    motion: str
    prompt: str
    seed: int
    video: str
    measures: str = ""


@dataclass(frozen=True)
class Sweep:
    """All jobs of a plan, each after those it needs, and what is to be shown of them."""

    plan: Plan
    jobs: tuple[Job, ...]
    cells: tuple[Cell, ...]

    @cached_property
    def by_id(self) -> Mapping[str, Job]:
        return {job.id: job for job in self.jobs}


@dataclass(frozen=True)
class _Source:
    """The files of a subject or a motion, and a digest of them."""

    media: tuple[str, ...]
    reads: tuple[str, ...]
    digest: str
    captions: tuple[str, ...] = ()
    related: tuple[str, ...] = ()


@dataclass
class _Jobs:
    """Collects each job once."""

    found: dict[str, Job] = field(default_factory=dict)

    def add(self, job: Job) -> Job:
        return self.found.setdefault(job.id, job)


@dataclass(frozen=True)
class _Base:
    spec: BaseSpec
    found: FoundBase
    fingerprint: str


def expand(plan: Plan, run_file: RunFile | None = None, say: Say = quiet) -> Sweep:
    """The jobs of a plan. Raises ValueError, before anything is made, for media, settings and bases that are none."""
    subjects = {each.name: _photographs(each, say) for each in plan.subjects if _wanted(plan, "subject")}
    motions = {each.name: _clips(each, say) for each in plan.motions if _wanted(plan, "motion")}
    jobs, cells = _Jobs(), []
    for spec in plan.bases:
        found = spec.look()
        base = _Base(spec, found, fingerprint(found.unet.tensors))
        for method in plan.methods:
            for subject in plan.subjects or (None,):
                for motion in plan.motions or (None,):
                    learned = _learned(plan, base, method, subject, motion, subjects, motions, run_file)
                    cells += _cells(plan, base, method, subject, motion, list(map(jobs.add, learned)), subjects, jobs)
    return Sweep(plan, tuple(jobs.found.values()), tuple(cells))


def _wanted(plan: Plan, part: str) -> bool:
    return any(getattr(method, part) for method in plan.methods)


# ------------------------------------------------------------------------------------------------------------ trainings


def _learned(
    plan: Plan,
    base: _Base,
    method: Method,
    subject: Subject | None,
    motion: Motion | None,
    subjects: Mapping[str, _Source],
    motions: Mapping[str, _Source],
    run_file: RunFile | None,
) -> list[Job]:
    """The trainings that a cell composes, the subject's first."""
    found = []
    if subject is not None and method.subject is not None:
        found.append(_train_subject(plan, base, method.subject, subject, subjects[subject.name], run_file))
    if motion is not None and method.motion is not None:
        found.append(_train_motion(plan, base, method.motion, motion, motions[motion.name], run_file))
    return found


def _train_subject(
    plan: Plan, base: _Base, method: str, subject: Subject, source: _Source, run_file: RunFile | None
) -> Job:
    options = {**plan.training.get("subject", {}), **subject.options}
    whole = subject_plan(
        base.found.defaults,
        base.found.unet.config,
        SUBJECT_METHODS[method],
        placeholder=subject.placeholder,
        class_word=subject.class_word,
        settings=_settings(options),
        token_settings={"steps": options.get("token_steps"), "learning_rate": options.get("token_learning_rate")},
    )
    about = {**whole.about(), "steps": whole.steps, "no_masks": bool(options.get("no_masks"))}
    work = Training(base.spec, "subject", source.media, method, subject.placeholder, subject.class_word, "", options)
    return _training(base, work, subject.name, source, about, run_file)


def _train_motion(
    plan: Plan, base: _Base, method: str, motion: Motion, source: _Source, run_file: RunFile | None
) -> Job:
    options = {**plan.training.get("motion", {}), **motion.options}
    row = MOTION_METHODS[method]
    captions = tuple(_named(motion, caption) for caption in source.captions) if _has_word(method) else source.captions
    own = len(source.captions) - len(source.related)
    captions = (*captions[:own], *source.captions[own:])
    names = (motion.placeholder, motion.class_word)
    whole = motion_plan(
        base.found.defaults,
        base.found.unet.config,
        row,
        own,
        placeholder=names[0],
        class_word=names[1],
        settings=_settings(options),
    )
    about = {**whole.about(), "steps": whole.steps, "captions": captions}
    work = Training(base.spec, "motion", source.media, method, *names, "", options, captions, source.related)
    return _training(base, work, motion.name, source, about, run_file)


def _training(
    base: _Base, work: Training, name: str, source: _Source, about: Mapping[str, Any], run_file: RunFile | None
) -> Job:
    defaults, options = base.found.defaults, work.options
    pixels = {part: options.get(part) or getattr(defaults, part) for part in PIXELS}
    if work.kind == "subject":
        pixels = {part: pixels[part] for part in ("height", "width")}
    id = _digest("training", about, pixels, source.digest, base.fingerprint)
    place = f"{base.spec.name}/{work.kind}/{work.method}/{name}"
    out = f"adapters/{place}-{id[:8]}.safetensors"
    work = replace(work, out=out, steps=about["steps"], run_file=run_file)
    states = out.removesuffix(".safetensors") + ".state"
    return Job(f"training/{place}", id, work, reads=source.reads, result=_result(id), states=states)


def _settings(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name in TRAINING}


def _has_word(method: str | None) -> bool:
    """Whether a motion's method learns a word of its own for it."""
    return method is not None and MOTION_METHODS[method].token == "learned"


def _named(motion: Motion, caption: str) -> str:
    """A caption in which the motion is called by its own word."""
    if motion.placeholder in caption:
        return caption
    if motion.words not in caption:
        raise ValueError(
            f"A method learns a word for the motion {short(motion.name)}, and its caption {short(caption)} does not "
            f"hold the words {short(motion.words)} that it stands for; put them into the caption, or change words."
        )
    return caption.replace(motion.words, motion.placeholder)


# -------------------------------------------------------------------------------------------------- videos and measures


def _cells(
    plan: Plan,
    base: _Base,
    method: Method,
    subject: Subject | None,
    motion: Motion | None,
    learned: Sequence[Job],
    subjects: Mapping[str, _Source],
    jobs: _Jobs,
) -> Iterable[Cell]:
    """The videos of one field of the matrix."""
    for number, prompt in enumerate(plan.prompts, start=1):
        for seed in plan.seeds:
            video = jobs.add(_video(plan, base, method, subject, motion, learned, (number, prompt, seed)))
            measures = ""
            if plan.measuring.any:
                source = subjects.get(subject.name) if subject else None
                words = _filled(prompt, subject.class_word if subject else "", motion.words if motion else "")
                measures = jobs.add(_measures(plan.measuring, base, video, words, source)).id
            names = (subject.name if subject else "", motion.name if motion else "")
            yield Cell(base.spec.name, method.name, *names, prompt, seed, video.id, measures)


def _video(
    plan: Plan,
    base: _Base,
    method: Method,
    subject: Subject | None,
    motion: Motion | None,
    learned: Sequence[Job],
    asked: tuple[int, str, int],
) -> Job:
    number, template, seed = asked
    called = "" if subject is None else subject.placeholder if method.subject else subject.class_word
    moves = "" if motion is None else motion.placeholder if _has_word(method.motion) else motion.words
    prompt = _filled(template, called, moves)
    settings = {**plan.sampling, "seed": seed}
    resolved: SamplingSettings = base.found.defaults.sampling(prompt, **settings)
    strength = {"subject": method.subject_strength, "motion": method.motion_strength}
    adapters = tuple((job.work.out, strength[job.work.kind]) for job in learned if isinstance(job.work, Training))
    ids = [(job.id, by) for job, (_, by) in zip(learned, adapters, strict=True)]
    id = _digest("video", asdict(resolved), ids, base.fingerprint)
    names = "-".join(filter(None, (subject and subject.name, motion and motion.name))) or "nothing"
    place = f"{base.spec.name}/{method.name}/{names}/prompt-{number}-seed-{seed}"
    work = Video(base.spec, prompt, adapters, settings, f"videos/{place}-{id[:8]}.mp4", {"sampling": resolved.steps})
    uses = tuple(name for name, _ in adapters)
    return Job(f"video/{place}", id, work, tuple(job.id for job in learned), uses=uses, result=_result(id))


def _measures(measuring: Measuring, base: _Base, video: Job, words: str, source: _Source | None) -> Job:
    assert isinstance(video.work, Video)
    images = () if source is None else source.media
    weights = [file_digest(Path(path)) for path in (measuring.clip, measuring.dino) if path]
    id = _digest("measures", video.id, words, source.digest if source else "", weights, measuring.by_base)
    work = Measures(base.spec, measuring, video.work.out, words, images)
    reads = (*(source.reads if source else ()), *filter(None, (measuring.clip, measuring.dino)))
    name = video.name.replace("video", "measures", 1)
    return Job(name, id, work, (video.id,), reads, (video.work.out,), _result(id))


def _filled(template: str, subject: str, motion: str) -> str:
    return " ".join(template.replace(SUBJECT, subject).replace(MOTION, motion).split())


# -------------------------------------------------------------------------------------------------------------- sources


def _photographs(subject: Subject, say: Say) -> _Source:
    files = photograph_files(subject.images[0] if len(subject.images) == 1 else subject.images, say)
    masks = [mask for mask in mask_files(files).values() if mask is not None]
    captions = [caption_of(path) or "" for path in files]
    texts = [path for file in files for path in _texts_beside(file)]
    digest = _digest([file_digest(path) for path in (*files, *masks)], captions)
    return _Source(subject.images, tuple(str(path) for path in (*files, *masks, *texts)), digest)


def _clips(motion: Motion, say: Say) -> _Source:
    clips = find_clips(motion.clips[0] if len(motion.clips) == 1 else motion.clips, 2, say)
    related = find_clips(motion.related, 2, say) if motion.related else []
    captions = [_caption(path, motion.caption) for path in clips] + [_caption(path, "") for path in related]
    files = [path for clip in (*clips, *related) for path in (frame_files(clip) if clip.is_dir() else [clip])]
    digest = _digest([file_digest(path) for path in (*clips, *related)], len(related))
    return _Source(
        tuple(map(str, clips)), tuple(map(str, files)), digest, tuple(captions), tuple(str(path) for path in related)
    )


def _caption(path: Path, otherwise: str) -> str:
    caption = caption_of(path) or otherwise
    if not caption:
        raise ValueError(
            f"{path} has no caption; say what happens there in a .txt beside it, or as the motion's caption."
        )
    return caption


def _texts_beside(photo: Path) -> list[Path]:
    return [path for suffix in (".txt", ".caption") if (path := photo.with_suffix(suffix)).exists()]


def _digest(*parts: Any) -> str:
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


def _result(id: str) -> str:
    """Where a job's result lies: few in a folder, for whoever writes there looks through it."""
    return f"jobs/{id[:2]}/{id}.json"
