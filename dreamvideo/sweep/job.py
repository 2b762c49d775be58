"""A job of a sweep: one run that stands for itself, and what it works with."""

from __future__ import annotations

import os
import platform
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..base import Base
from ..safety.paths import write_json
from ..training.state_folder import remove_states
from .bases import BaseSpec
from .logs import JobLog

Facts = Mapping[str, Any]
"""What a job tells of its outcome, fit for JSON; "files": those that it wrote, as names below the sweep's folder."""
Explain = Callable[[Exception], str]
"""What went wrong, in one sentence."""


@dataclass(frozen=True)
class Worker:
    """What a job works with.

    out: the folder of all outcomes. base: opens a base, or gives the one that this process has open. read: where a file
    lies here that the plan names so. say: hears sentences. progress: hears how far the job is.
    """

    out: Path
    base: Callable[[BaseSpec], Base]
    read: Callable[[str], Path] = Path
    say: Callable[[str], None] = lambda text: None
    progress: Callable[[str], None] = lambda text: None


Work = Callable[[Worker], Facts]


@dataclass(frozen=True)
class Job:
    """One run.

    name: for people, such as "training/embedded/subject/lora/dog"; id: a digest of all that decides what comes out.
    needs: ids of the jobs before it. reads: the files that it reads of the user's, absolute; uses: those that it reads
    of the sweep's, below its folder. result: the file there that is written last and
    says that all is done; "" where the work has its own way to tell. states: a folder there of training states, that
    goes once the result is there: a sweep of fifty would keep fifty.
    """

    name: str
    id: str
    work: Work
    needs: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    uses: tuple[str, ...] = ()
    result: str = ""
    states: str = ""

    @property
    def kind(self) -> str:
        """ "training", "video", "measures" or "timing"."""
        return self.name.partition("/")[0]


@dataclass(frozen=True)
class Ended:
    """How a job ended. error: a sentence; "" where it was done."""

    facts: Facts = field(default_factory=dict)
    seconds: float = 0.0
    error: str = ""


def perform(job: Job, worker: Worker, explain: Explain) -> Ended:
    """Do a job and write its result, last. Its log is in `logs/`. Raises nothing but KeyboardInterrupt and the like."""
    began = time.monotonic()
    with JobLog(worker.out, job.name) if job.result else JobLog() as log:
        log.say(f"{job.name}: begun by process {os.getpid()} on {platform.node()}.")
        try:
            facts = job.work(_heard(worker, log))
            seconds = time.monotonic() - began
            if job.result:
                write_json(worker.out / job.result, {"job": job.name, "seconds": round(seconds, 3), **facts})
            if job.states:
                remove_states(worker.out / job.states)
            log.say(f"Done in {seconds:.1f} s.")
            return Ended(facts, seconds)
        except Exception as error:
            log.say(traceback.format_exc().rstrip())
            return Ended({}, time.monotonic() - began, explain(error) or type(error).__name__)


def _heard(worker: Worker, log: JobLog) -> Worker:
    """The worker, whose job's log hears all that is told."""

    def say(text: str) -> None:
        log.say(text)
        worker.say(text)

    def progress(text: str) -> None:
        log.progress(text)
        worker.progress(text)

    return Worker(worker.out, worker.base, worker.read, say, progress)
