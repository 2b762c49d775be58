"""Figure 10: what a sweep's driver itself takes: thousands of jobs of no work, on the engine of one process."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import psutil
import torch

from dreamvideo.media.writing import write_animation, write_png
from dreamvideo.sweep.bases import BaseSpec
from dreamvideo.sweep.choice import missing
from dreamvideo.sweep.costs import Costs
from dreamvideo.sweep.expand import Sweep, expand
from dreamvideo.sweep.job import Facts, Worker
from dreamvideo.sweep.local import LocalExecutor
from dreamvideo.sweep.plan import Method, Motion, Plan, Subject
from dreamvideo.sweep.progress import Progress
from dreamvideo.sweep.results import done_before
from dreamvideo.sweep.schedule import run

from .growth import exponent
from .setting import Row, Setting

SHAPES = ((8, 4), (12, 4), (18, 4), (25, 4))  # subjects and motions, and seeds: the last has 5,050 jobs


class Nothing:
    """A job's work that is done already."""

    def __call__(self, worker: Worker) -> Facts:
        return {"files": []}


def rows(setting: Setting) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        write_png(Path(folder) / "photos" / "00.png", torch.rand(3, 64, 64))
        write_animation(Path(folder) / "clip.gif", torch.rand(4, 3, 64, 64))
        _measured(Path(folder), "warm", (2, 1))
        found = [_measured(Path(folder), f"{side}", (side, seeds)) for side, seeds in SHAPES]
    jobs = [float(count) for count, *_ in found]
    processor, wall = [seconds for _, seconds, *_ in found], [seconds for _, _, seconds, _ in found]
    absolute = {f"{count:.0f} jobs, s of the processor": taken for count, taken in zip(jobs, processor, strict=True)}
    absolute |= {f"{count:.0f} jobs, s passed": taken for count, taken in zip(jobs, wall, strict=True)}
    last = f"{jobs[-1]:.0f} jobs"
    return [
        Row(8, f"the driver's own work a job, {last}", 1000 * processor[-1] / jobs[-1], "ms", "at most 20", absolute),
        Row(8, "the same, time passed, with the disk's", 1000 * wall[-1] / jobs[-1], "ms", "at most 20"),
        Row(8, f"exponent of time in jobs, {jobs[0]:.0f} to {last}", exponent(jobs, processor), "", "about 1"),
        Row(8, f"memory that the driver gains, {last}", found[-1][3] / 2**20, "MiB"),
    ]


def _measured(folder: Path, name: str, shape: tuple[int, int]) -> tuple[int, float, float, int]:
    """Jobs, seconds of the processor and of the clock for all that a driver does, and bytes that it gains."""
    memory = psutil.Process().memory_info().rss
    processor, wall = time.process_time(), time.perf_counter()
    whole = expand(_plan(folder, folder / name, *shape))
    sweep = Sweep(whole.plan, tuple(replace(job, work=Nothing(), states="") for job in whole.jobs), whole.cells)
    jobs = missing(sweep, done_before(sweep.plan.out, sweep.jobs))
    executor = LocalExecutor(Worker(sweep.plan.out, BaseSpec.open), str)
    run(jobs, executor, Progress(jobs, Costs(), executor, str, lambda text, last: None))
    assert len(done_before(sweep.plan.out, sweep.jobs)) == len(jobs)
    seconds = time.process_time() - processor, time.perf_counter() - wall
    return len(jobs), *seconds, psutil.Process().memory_info().rss - memory


def _plan(folder: Path, out: Path, side: int, seeds: int) -> Plan:
    """So many subjects and motions, of one photograph and one clip."""
    names: Sequence[str] = [str(number) for number in range(side)]
    photos, clip = str(folder / "photos"), str(folder / "clip.gif")
    return Plan(
        out,
        (BaseSpec(),),
        tuple(Subject(name, (photos,), "toy", f"<my-{name}>") for name in names),
        tuple(Motion(name, (clip,), name, f"a toy {name}") for name in names),
        (Method("dreamvideo", "dreamvideo", "dreamvideo"),),
        seeds=tuple(range(seeds)),
    )
