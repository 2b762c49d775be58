"""Who works on what, when: jobs begin when those they need are done, and what fails holds up none but its own."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from .job import Ended, Job


class Executor(Protocol):
    """Who does the jobs: this process, or Ray's workers. out: the folder of all outcomes."""

    @property
    def out(self) -> Path: ...

    def has_room(self) -> bool:
        """Whether it takes one more job now."""
        ...

    def submit(self, job: Job) -> None: ...

    def wait(self) -> Sequence[tuple[Job, Ended]]:
        """Those that ended, after a moment at most where jobs may go on elsewhere."""
        ...

    def close(self) -> None:
        """Let go of what was submitted and has not ended, within seconds."""
        ...


class Listener(Protocol):
    """Who is told."""

    def started(self, job: Job) -> None: ...

    def ended(self, job: Job, ended: Ended) -> None: ...

    def impossible(self, job: Job, because: Job) -> None:
        """A job will not be done, for one that it needs failed."""
        ...

    def waited(self) -> None:
        """A moment went by."""
        ...


def run(jobs: Sequence[Job], executor: Executor, listener: Listener) -> None:
    """Do all jobs that can be done, earlier ones first.

    A need that is not among the jobs counts as done. Takes time in proportion to the jobs and what they need. Raises
    KeyboardInterrupt, after the executor let go of its jobs.
    """
    graph = _Graph(jobs)
    try:
        while graph.ready or graph.running:
            while graph.ready and executor.has_room():
                job = graph.start()
                listener.started(job)
                executor.submit(job)
            for job, ended in executor.wait():
                listener.ended(job, ended)
                if ended.error:
                    for other in graph.failed(job):
                        listener.impossible(other, job)
                else:
                    graph.done(job)
            listener.waited()
    except BaseException:
        executor.close()
        raise


class _Graph:
    """Jobs by how many of their needs are open."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.jobs = jobs
        self.running = 0
        self.lost: set[str] = set()
        self.place = {job.id: index for index, job in enumerate(jobs)}
        self.open = {job.id: {need for need in job.needs if need in self.place} for job in jobs}
        self.after: dict[str, list[Job]] = {}
        for job in jobs:
            for need in self.open[job.id]:
                self.after.setdefault(need, []).append(job)
        self.ready = [self.place[job.id] for job in jobs if not self.open[job.id]]  # in order, and so a heap

    def start(self) -> Job:
        self.running += 1
        return self.jobs[heapq.heappop(self.ready)]

    def done(self, job: Job) -> None:
        self.running -= 1
        for other in self.after.pop(job.id, ()):
            self.open[other.id].discard(job.id)
            if not self.open[other.id]:
                heapq.heappush(self.ready, self.place[other.id])

    def failed(self, job: Job) -> Iterator[Job]:
        """All jobs that this one's failure makes impossible, each once."""
        self.running -= 1
        reached = [job]
        while reached:
            for other in self.after.pop(reached.pop().id, ()):
                if other.id not in self.lost:
                    self.lost.add(other.id)
                    reached.append(other)
                    yield other
