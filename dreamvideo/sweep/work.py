"""What jobs do: trainings, samplings and measurements, by the functions that the command line and the nodes call."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ..base import Base
from ..files.adapters import load_adapter
from ..files.base import PARTS
from ..media.clips import find_clips, read_clip
from ..media.photographs import load_images
from ..media.writing import write_video
from ..runs import Outcome, Reports, sample, train_motion, train_subject
from ..safety.locks import Locked
from ..safety.paths import inside
from ..sampling import latent_size
from ..training.cache import default_cache
from ..training.places import losses_paths, run_file_path
from ..training.settings import TrainingSettings
from .bases import BaseSpec
from .job import Facts, Worker
from .measures import Measuring, measured

RunFile = Callable[[Any, str, Path], str]
"""(options, what an adapter tells of its run, its folder) -> the run file that makes it again."""

LOCKED_SECONDS = 120.0  # that a worker which was given up may take to be gone
TRAINING = {item.name for item in fields(TrainingSettings)}


@dataclass(frozen=True)
class Training:
    """A subject or a motion, learned by a method, as `train subject` and `train motion` do.

    media: photographs or clips as the plan names them, absolute. options: by the names of run files, but for those that
    have a field here. out: the adapter's file below the sweep's folder. steps: stage -> how many it will take.
    """

    base: BaseSpec
    kind: str
    media: tuple[str, ...]
    method: str
    placeholder: str
    class_word: str
    out: str
    options: Mapping[str, Any] = field(default_factory=dict)
    captions: tuple[str, ...] = ()
    related: tuple[str, ...] = ()
    steps: Mapping[str, int] = field(default_factory=dict)
    run_file: RunFile | None = None

    def __call__(self, worker: Worker) -> Facts:
        base, out = worker.base(self.base), worker.out / self.out
        _patiently(lambda: self.train(base, worker, out, self._reports(worker)), worker)
        names = [out, run_file_path(out), *losses_paths(out)]
        written = [path.relative_to(worker.out).as_posix() for path in names if path.exists()]
        return {"files": written, "adapter": self.out, "sha256": sha256(out)}

    def train(self, base: Base, worker: Worker, out: Path, reports: Reports, **over: Any) -> Outcome:
        """over: options that go before the job's own."""
        options = {**self.options, **over}
        size = (options.get("height") or base.defaults.height, options.get("width") or base.defaults.width)
        latent_size(base.unet, *size)
        settings = {name: value for name, value in options.items() if name in TRAINING}
        common = {
            "placeholder": self.placeholder,
            "class_word": self.class_word,
            "method": self.method,
            "out": out,
            "cache": default_cache(),
            "reports": reports,
        }
        media = [worker.read(path) for path in self.media]
        if self.kind == "subject":
            source = media[0] if len(media) == 1 else media
            photos = load_images(source, size, with_masks=not options.get("no_masks"), say=worker.say)
            token = {"steps": options.get("token_steps"), "learning_rate": options.get("token_learning_rate")}
            return train_subject(base, photos, **common, token_settings=token, **settings)
        frames, fps = options.get("frames"), options.get("fps")
        clips = find_clips(media, frames or base.defaults.frames, worker.say)
        related = [worker.read(path) for path in self.related]
        more = {"related": len(related), "size": size, "frames": frames, "fps": fps}
        return train_motion(base, [*clips, *related], self.captions, **more, **common, **settings)

    def _reports(self, worker: Worker) -> Reports:
        def progress(stage: str, step: int, steps: int, loss: float, speed: float, left: float) -> None:
            worker.progress(f"{stage}: step {step}/{steps}, loss {loss:.4f}, {speed:.3g} steps/s, {left:.0f} s left")

        return Reports(progress=progress, say=worker.say, run_file=self._run_file)

    def _run_file(self, run: str, folder: Path) -> str:
        given = {"images": list(self.media)} if self.kind == "subject" else {"clips": list(self.media)}
        parts = {name: getattr(self.base, name) for name in (*PARTS, "dtype")}
        options = {**self.options, **given, **parts, "base": self.base.folder}
        return "" if self.run_file is None else self.run_file(SimpleNamespace(**options), run, folder)


def sha256(path: Path) -> str:
    """Of a file."""
    found = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            found.update(block)
    return found.hexdigest()


def _patiently(train: Callable[[], Outcome], worker: Worker) -> Outcome:
    """Where a worker that is being given up still holds the file, wait for its end."""
    until = time.monotonic() + LOCKED_SECONDS
    while True:
        try:
            return train()
        except Locked as error:
            if time.monotonic() > until:
                raise
            worker.say(f"Waiting: {error}")
            time.sleep(1.0)


@dataclass(frozen=True)
class Video:
    """A video of a prompt under adapters, as `sample` makes it.

    adapters: (file below the sweep's folder, strength). settings: of `SamplingSettings`. steps: how many they make.
    """

    base: BaseSpec
    prompt: str
    adapters: tuple[tuple[str, float], ...]
    settings: Mapping[str, Any]
    out: str
    steps: Mapping[str, int] = field(default_factory=dict)

    def __call__(self, worker: Worker) -> Facts:
        base = worker.base(self.base)
        loaded = [load_adapter(inside(worker.out, name), base.unet.config) for name, _ in self.adapters]
        strengths = [strength for _, strength in self.adapters]

        def follow(done: int, steps: int, estimate: Any) -> None:
            worker.progress(f"sampling: step {done}/{steps}")

        video = sample(base, self.prompt, loaded, strengths, callback=follow, **self.settings)
        if not video.isfinite().all():
            raise ValueError(f"The video came out as NaN in {base.dtype}: take float32 or other settings.")
        fps = self.settings.get("fps") or base.defaults.fps
        write_video(worker.out / self.out, video, fps)
        return {"files": [self.out]}


@dataclass(frozen=True)
class Measures:
    """The measures of a video, read from its file. words: the prompt, with the subject in words."""

    base: BaseSpec
    measuring: Measuring
    video: str
    words: str
    images: tuple[str, ...] = ()

    def __call__(self, worker: Worker) -> Facts:
        frames = read_clip(inside(worker.out, self.video)).pixels()
        photos: Sequence[Any] = ()
        if self.images:
            source = [worker.read(path) for path in self.images]
            photos = [photo.image for photo in load_images(source, (512, 512), with_masks=False, say=worker.say)]
        base = worker.base(self.base) if self.measuring.by_base else None
        return {"files": [], "scores": measured(frames, self.words, photos, self.measuring, base, worker.read)}
