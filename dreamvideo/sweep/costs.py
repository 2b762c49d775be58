"""What a plan will cost, from a few timed steps: one training of each method and one sampling on each base."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..runs import Reports, sample
from .job import Ended, Facts, Job, Worker
from .results import read_result
from .schedule import Executor, run
from .work import Training, Video

STEPS = 3  # of which the first is warm-up


@dataclass(frozen=True)
class TimedTraining:
    """A training's first steps, written nowhere. Its facts: seconds beside the steps, and stage -> seconds a step."""

    training: Training

    def __call__(self, worker: Worker) -> Facts:
        base = worker.base(self.training.base)
        told: dict[str, list[float]] = {}

        def progress(stage: str, *rest: Any) -> None:
            told.setdefault(stage, []).append(time.monotonic())

        began = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            over = {"steps": STEPS, "save_every": 0}
            if self.training.kind == "subject":
                over["token_steps"] = STEPS
            self.training.train(base, worker, Path(folder) / "timed.safetensors", Reports(progress=progress), **over)
        return _facts(time.monotonic() - began, told)


@dataclass(frozen=True)
class TimedSampling:
    """A few steps of a video's sampling, on the base alone."""

    video: Video

    def __call__(self, worker: Worker) -> Facts:
        base = worker.base(self.video.base)
        told: list[float] = []
        settings = {**self.video.settings, "steps": STEPS}
        began = time.monotonic()
        sample(base, "a toy", callback=lambda *_: told.append(time.monotonic()), **settings)
        return _facts(time.monotonic() - began, {"sampling": told})


def _facts(seconds: float, told: Mapping[str, Sequence[float]]) -> Facts:
    laps = {stage: (at[-1] - at[0]) / (len(at) - 1) for stage, at in told.items() if len(at) > 1}
    steps = sum(laps[stage] * len(at) for stage, at in told.items() if stage in laps)
    return {"files": [], "beside": max(0.0, seconds - steps), "steps": laps}


@dataclass
class Costs:
    """Seconds of jobs, as far as they are known: by timed steps, then by the jobs that ended."""

    timed: dict[str, Facts] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    _seen: dict[str, tuple[int, float]] = field(default_factory=dict)

    def of(self, job: Job) -> float:
        """Seconds that a job is expected to take: 0 where nothing is known."""
        kind = like(job)
        count, seconds = self._seen.get(kind, (0, 0.0))
        if count:
            return seconds / count
        facts = self.timed.get(kind)
        if facts is None:
            return 0.0
        steps = job.work.steps if isinstance(job.work, (Training, Video)) else {}
        return facts["beside"] + sum(count * facts["steps"].get(stage, 0.0) for stage, count in steps.items())

    def learn(self, job: Job, seconds: float) -> None:
        count, before = self._seen.get(like(job), (0, 0.0))
        self._seen[like(job)] = count + 1, before + seconds


def like(job: Job) -> str:
    """What jobs that cost alike have in common: kind, base and, of a training, method."""
    parts = job.name.split("/")
    return "/".join(parts[: 4 if job.kind == "training" else 2])


def time_steps(jobs: Iterable[Job], executor: Executor, kept: str = "") -> Costs:
    """The costs of all jobs, from one of each kind. What cannot be timed is told among the errors.

    kept: a folder below the sweep's, in which a run that goes on finds them; "" for none.
    """
    timed: dict[str, Job] = {}
    for job in jobs:
        work = TimedTraining(job.work) if isinstance(job.work, Training) else None
        work = TimedSampling(job.work) if isinstance(job.work, Video) else work
        if work is not None and like(job) not in timed:
            name = f"timing/{like(job)}"
            result = f"{kept}/{like(job).replace('/', '-')}.json" if kept else ""
            timed[like(job)] = Job(name, name, work, reads=job.reads, result=result)
    costs = Costs()
    for kind, job in list(timed.items()):
        facts = read_result(executor.out, job)
        if facts is not None and {"beside", "steps"} <= facts.keys():
            costs.timed[kind] = facts
            del timed[kind]
    run(list(timed.values()), executor, _Collecting(costs))
    return costs


class _Collecting:
    def __init__(self, costs: Costs) -> None:
        self.costs = costs

    def started(self, job: Job) -> None: ...

    def ended(self, job: Job, ended: Ended) -> None:
        kind = job.name.removeprefix("timing/")
        if ended.error:
            self.costs.errors.append(f"{kind}: {ended.error}")
        else:
            self.costs.timed[kind] = ended.facts

    def impossible(self, job: Job, because: Job) -> None: ...

    def waited(self) -> None: ...
