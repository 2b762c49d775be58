"""The pieces of the comparison: trainings and videos with their scores, each a file of its own and a job.

What is there is not made again, so a run that was stopped goes on, and systems that share a training share its file.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..base import Base
from ..customizing import Customization, RegionPrompt, customize
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
from ..sweep.bases import BaseSpec
from ..sweep.job import Facts, Job, Worker
from ..training.data import TrainingData, encode_clips, encode_photos
from ..training.loop import Callbacks
from ..training.methods import MOTION_WORD, TUNE_A_VIDEO, WORD_OPTIONS, Method, word_method
from ..training.stages import train_method
from . import world
from .cases import (
    ACTOR,
    DATA_SEED,
    MOTION_PLACEHOLDER,
    OTHER_PLACEHOLDER,
    PHOTOGRAPHS,
    PLACEHOLDER,
    RELATED_CLIPS,
    STAGE,
    Case,
    Scale,
    lesson,
    motion_words,
    prompt_for,
    region_prompts,
    used,
)
from .comparison import AS_TOLD, VIDEO, Limits, System
from .scoring import score
from .starts import image_base


@dataclass(frozen=True)
class Tools:
    """What a run works with. report: told a sentence for every job; training, sampling: progress of one."""

    base: Base
    folder: Path
    scale: Scale
    report: Callable[[str], None] = print
    training: Callable[[str], Callbacks] = lambda what: Callbacks()
    sampling: Callable[[str], Callback | None] = lambda what: None

    def on(self, start: str) -> Base:
        """The base that a system starts from. ValueError where there is none."""
        return self.base if start == VIDEO else image_base(self.base, start)


def noted(path: Path, *names: str) -> dict[str, Any]:
    """What an earlier run noted in a file. Raises ValueError where it lacks one of the names."""
    try:
        found = json_object("it", parsed(read_small(path).decode()))
        if missing := [name for name in names if name not in found]:
            raise ValueError(f"it has no {missing[0]}")
    except ValueError as error:
        raise ValueError(f"{path} is not as a run left it; delete it, or name another --out.") from error
    return found


def parameters(learned: TrainedAdapter) -> int:
    tensors = [] if learned.adapter is None else list(learned.adapter.parameters())
    return sum(tensor.numel() for tensor in [*tensors, *learned.tokens.values()])


def learned(tools: Tools, system: System, case: Case) -> Iterator[TrainedAdapter]:
    """The files that a case needs of a system, trained where they are not there."""
    for use in used(system, case):
        yield train(tools, use.row, use.what, system.start)


def adapter_path(folder: Path, row: Method, what: str, start: str = VIDEO) -> Path:
    return folder / "adapters" / _below(start) / row.name / f"{what}.safetensors"


def _below(start: str) -> str:
    """The folder of what is made on another base than the video one."""
    return "" if start == VIDEO else start


def train(tools: Tools, row: Method, what: str, start: str = VIDEO) -> TrainedAdapter:
    """A row's file for a subject or a motion."""
    base, path = tools.on(start), adapter_path(tools.folder, row, what, start)
    if not path.exists():
        given = train(tools, _word(row), what, start).tokens if row.token == "given" else None
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


def _word(row: Method) -> Method:
    """The row of the word that a row is given, by a name that tells it from words with other options."""
    word = word_method(row)
    return replace(word, name="_".join([word.name, *(option for option in WORD_OPTIONS if getattr(word, option))]))


def _data(base: Base, row: Method, what: str) -> TrainingData:
    if row.data == "images":
        shots = world.photographs(world.HELD_OUT_SUBJECTS[what], PHOTOGRAPHS, seed=DATA_SEED)
        photos, masks = [shot.frames[0] for shot in shots], [shot.mask[0] for shot in shots]
        return encode_photos(photos, f"a {PLACEHOLDER}", base.encoders, masks)
    shown = [(lesson(what), f"a {ACTOR.words} {motion_words(row, what)} {STAGE}")]
    if row.related_clips:
        generators = (torch.Generator().manual_seed(seed) for seed in range(RELATED_CLIPS))
        shown += [(scene, scene.caption) for scene in map(world.training_scene, generators)]
    clips = [world.render(scene).frames for scene, _ in shown]
    return encode_clips(clips, [caption for _, caption in shown], base.encoders, world.FRAMES)


def video_path(folder: Path, system: System, case: Case) -> Path:
    rows = [f"{use.row.name}{_limited(use.limits)}" for use in used(system, case)]
    rows += [f"regions-{system.apart:g}"] if region_prompts(system, case) else []
    return folder / "videos" / _below(system.start) / ("+".join(rows) or "none") / f"{case.name}.png"


def _limited(limits: Limits) -> str:
    """What a path says of limits: nothing where there are none."""
    values = {name: value for name, value in asdict(limits).items() if value != getattr(AS_TOLD, name)}
    numbers = {name: value if isinstance(value, tuple) else (value,) for name, value in values.items()}
    return "".join(f"-{name}" + "".join(f"-{number:g}" for number in own) for name, own in numbers.items())


def video(tools: Tools, system: System, case: Case, learned: Sequence[TrainedAdapter]) -> Path:
    """The strip of a case's frames, [3, H, F * W], sampled where it is not there."""
    path = video_path(tools.folder, system, case)
    if not path.exists():
        base, prompt = tools.on(system.start), prompt_for(system, case)
        inverts = system.motion == TUNE_A_VIDEO and case.new_motion  # begins from the noise of the clip that it learned
        settings = base.defaults.sampling(
            prompt, seed=case.seed, steps=tools.scale.sampling_steps, prior_strength=1.0 if inverts else 0.0
        )
        clip = world.render(lesson(case.motion)).frames if inverts else None
        with _timed(path):
            follow = tools.sampling(f"{path.parent.name} {case.name}")
            stack = _customization(system, case, learned)
            frames = generate(base.unet, base.encoders, settings, stack, prior_clip=clip, callback=follow)
            write_png(path, torch.cat(list(frames), dim=2))
    return path


def _customization(system: System, case: Case, learned: Sequence[TrainedAdapter]) -> Customization:
    limits = [
        {name: value for name, value in asdict(use.limits).items() if value is not None} for use in used(system, case)
    ]
    if case.other and learned:  # both were learned under one name
        second = learned[1]
        renamed = replace(second, tokens={OTHER_PLACEHOLDER: second.tokens[PLACEHOLDER]})
        learned = [learned[0], renamed, *learned[2:]]
    regions = [
        RegionPrompt(prompt, half, system.apart)
        for prompt, half in zip(region_prompts(system, case) or (), _halves(), strict=False)
    ]
    return customize(learned, limits=limits, regions=regions)


def _halves() -> tuple[Tensor, Tensor]:
    """Masks [H, W] of the left and the right half."""
    left = torch.zeros(world.SIZE, world.SIZE)
    left[:, : world.SIZE // 2] = 1
    return left, 1 - left


def scores(tools: Tools, strip: Path, case: Case) -> dict[str, float]:
    path = strip.with_suffix(".json")
    if not path.exists():
        write_json(path, score(frames_of(strip), case))
    return noted(path, "subject", "motion", "context")


def frames_of(strip: Path) -> Tensor:
    """The frames [F, 3, H, W] of a strip."""
    return torch.stack(load_image(strip).split(world.SIZE, dim=2))


@contextmanager
def _timed(path: Path) -> Iterator[None]:
    """Adds the seconds inside to what is noted beside a file, however the block ends."""
    note, began = path.with_suffix(".seconds.json"), time.monotonic()
    before = noted(note, "seconds")["seconds"] if note.exists() else 0.0
    try:
        yield
    finally:
        write_json(note, {"seconds": before + time.monotonic() - began})


# ------------------------------------------------------------------------------------------------ as jobs


@dataclass(frozen=True)
class Piece:
    """A training, or a video and its scores, for any worker that sees the base.

    row, what, start: of a training; system, case: of a video.
    """

    base: BaseSpec
    scale: Scale
    row: Method | None = None
    what: str = ""
    start: str = VIDEO
    system: System | None = None
    case: Case | None = None

    def __call__(self, worker: Worker) -> Facts:
        return self.make(_tools(worker, self))

    def make(self, tools: Tools) -> Facts:
        """Make it, where it is not there; which files it has written."""
        if self.row is not None:
            train(tools, self.row, self.what, self.start)
            written = [adapter_path(tools.folder, self.row, self.what, self.start)]
        else:
            assert self.system is not None and self.case is not None
            strip = video(tools, self.system, self.case, list(learned(tools, self.system, self.case)))
            scores(tools, strip, self.case)
            written = [strip, strip.with_suffix(".json")]
        written.append(written[0].with_suffix(".seconds.json"))
        return {"files": [path.relative_to(tools.folder).as_posix() for path in written if path.exists()]}


def _tools(worker: Worker, piece: Piece) -> Tools:
    """What a worker gives a piece to work with."""

    def progress(step: int, loss: float, speed: float, seconds_left: float) -> None:
        worker.progress(f"step {step}, loss {loss:.4f}")

    def sampling(done: int, steps: int, estimate: Any) -> None:
        worker.progress(f"sampling: step {done}/{steps}")

    def training(what: str) -> Callbacks:
        return Callbacks(progress=progress)

    return Tools(worker.base(piece.base), worker.out, piece.scale, worker.say, training, lambda what: sampling)


def jobs_for(folder: Path, base: BaseSpec, scale: Scale, system: System, wanted: Sequence[Case]) -> Iterator[Job]:
    """The jobs of a system on cases, each after those it needs, some of them more than once."""
    for case in wanted:
        needs: list[Job] = []
        for use in used(system, case):
            needs += _trainings(folder, base, scale, use.row, use.what, system.start)
        yield from needs
        path = video_path(folder, system, case)
        name = path.relative_to(folder).with_suffix("").as_posix()
        work = Piece(base, scale, system=system, case=case)
        uses = tuple(file for job in needs for file in _files(job))
        yield Job(f"video/{name}", name, work, tuple(job.id for job in needs), uses=uses)


def _trainings(folder: Path, base: BaseSpec, scale: Scale, row: Method, what: str, start: str) -> list[Job]:
    """A training, after the textual inversion that it takes its word from."""
    before = _trainings(folder, base, scale, _word(row), what, start) if row.token == "given" else []
    name = adapter_path(folder, row, what, start).relative_to(folder).with_suffix("").as_posix()
    uses = tuple(file for job in before for file in _files(job))
    work, title = Piece(base, scale, row, what, start), "/".join(filter(None, (_below(start), row.name, what)))
    return [*before, Job(f"training/{title}", name, work, tuple(job.id for job in before), uses=uses)]


def _files(job: Job) -> list[str]:
    """What a training's job leaves for others."""
    return [f"{job.id}.safetensors"]


def is_made(folder: Path, job: Job) -> bool:
    """Whether a job's files are there."""
    endings = (".safetensors",) if job.kind == "training" else (".png", ".json")
    return all((folder / f"{job.id}{ending}").exists() for ending in endings)
