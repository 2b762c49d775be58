"""The engine that needs nothing: this process, one job after another."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .job import Ended, Explain, Job, Worker, perform


class LocalExecutor:
    """Does each job when it is waited for."""

    def __init__(self, worker: Worker, explain: Explain) -> None:
        self.worker, self.explain = worker, explain
        self._job: Job | None = None

    kind, slots = "here", 1

    @property
    def out(self) -> Path:
        return self.worker.out

    def has_room(self) -> bool:
        return self._job is None

    def submit(self, job: Job) -> None:
        self._job = job

    def wait(self) -> Sequence[tuple[Job, Ended]]:
        job, self._job = self._job, None
        return [] if job is None else [(job, perform(job, self.worker, self.explain))]

    def close(self) -> None:
        self._job = None
