"""How far a sweep is: done, running, failed, time left."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from .costs import Costs, like
from .job import Ended, Job

Duration = Callable[[float], str]


class Slots(Protocol):
    """An executor, as far as it tells how many jobs run at once."""

    @property
    def slots(self) -> int: ...


@dataclass
class Progress:
    """Listens to a run, and tells it in one line.

    tell: takes the line, now and then, and whether it is the last. failed: called with each failure's sentence.
    """

    jobs: Sequence[Job]
    costs: Costs
    executor: Slots
    duration: Duration
    tell: Callable[[str, bool], None]
    fail: Callable[[str], None] = lambda text: None
    done: int = 0
    begun: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    blocked: dict[str, str] = field(default_factory=dict)
    now: str = ""

    def __post_init__(self) -> None:
        self._left: dict[str, list[Job]] = {}
        self._count: dict[str, int] = {}
        for job in self.jobs:
            self._left.setdefault(like(job), []).append(job)
        self._count = {kind: len(jobs) for kind, jobs in self._left.items()}
        self._over = False

    def started(self, job: Job) -> None:
        self.begun += 1
        self.now = job.name
        self._tell()

    def ended(self, job: Job, ended: Ended) -> None:
        self._count[like(job)] -= 1
        if ended.error:
            self.failed[job.name] = ended.error
            self.fail(f"Failed: {job.name}: {ended.error}")
        else:
            self.done += 1
            self.costs.learn(job, ended.seconds)
        self._tell()

    def impossible(self, job: Job, because: Job) -> None:
        self._count[like(job)] -= 1
        self.blocked[job.name] = because.name
        self._tell()

    def waited(self) -> None:
        self._tell()

    def inside(self, text: str) -> None:
        """What the one job that runs tells of itself."""
        self._tell(text)

    def _tell(self, inside: str = "") -> None:
        if self._over:
            return
        self._over = self.done + len(self.failed) + len(self.blocked) == len(self.jobs)
        running = min(self.begun - self.done - len(self.failed), self.executor.slots)
        parts = [f"{self.done} of {len(self.jobs)} done", f"{running} running"]
        if self.failed:
            parts.append(f"{len(self.failed)} failed")
        if self.blocked:
            parts.append(f"{len(self.blocked)} not possible")
        left = self.seconds_left()
        if left:
            parts.append(f"{self.duration(left)} left")
        what = f" | {self.now} {inside}".rstrip() if self.executor.slots == 1 and running else ""
        self.tell(", ".join(parts) + what, self._over)

    def seconds_left(self) -> float:
        """Of wall time, at the pace so far; takes time in proportion to the kinds of jobs, not to the jobs."""
        total = sum(count * self.costs.of(self._left[kind][0]) for kind, count in self._count.items())
        return total / max(1, self.executor.slots)
