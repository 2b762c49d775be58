"""A training beside another one, in a thread of its own: a small network leaves the other cores of a CPU idle."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from threading import Event

from ..base import Base
from ..models.threads import is_small
from ..runs import Outcome, Reports


def leaves_cores(base: Base) -> bool:
    """Whether a training on this base uses one core of a CPU that has more."""
    return base.device.type == "cpu" and is_small(base.unet) and (os.cpu_count() or 1) > 1


@contextmanager
def meanwhile(work: Callable[[Reports], Outcome], reports: Reports) -> Iterator[Callable[[], Outcome]]:
    """Begins the work and gives what waits for its outcome. Until then it is silent; unasked for at the end, it stops.

    Ctrl-C while waiting stops it too: the outcome is incomplete then.
    """
    asked, given_up, kept = Event(), Event(), list[str]()

    def say(text: str) -> None:
        (reports.say if asked.is_set() else kept.append)(text)

    def progress(stage: str, step: int, steps: int, loss: float, speed: float, left: float) -> None:
        if asked.is_set():
            reports.progress(stage, step, steps, loss, speed, left)

    def should_stop() -> bool:
        return given_up.is_set() or reports.should_stop()

    with ThreadPoolExecutor(1) as other:
        coming = other.submit(work, replace(reports, progress=progress, say=say, should_stop=should_stop))

        def outcome() -> Outcome:
            asked.set()
            for text in kept:
                reports.say(text)
            try:
                return coming.result()
            except KeyboardInterrupt:
                given_up.set()
                return coming.result()

        try:
            yield outcome
        finally:
            given_up.set()
