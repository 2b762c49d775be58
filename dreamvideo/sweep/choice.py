"""Which jobs of a sweep a run is for: all that are missing, or a part of them with what it needs."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from fnmatch import fnmatchcase
from itertools import islice

from ..safety.texts import quoted
from .expand import Sweep
from .job import Job


def missing(sweep: Sweep, done: Collection[str], only: Sequence[str] = (), limit: int | None = None) -> list[Job]:
    """The jobs to do, in the sweep's order.

    done: ids; only: patterns of names, with `*` and `?`, with or without the kind before the first slash; limit: of the
    videos among them, the first so many that are missing. Raises ValueError for a pattern that no name fits.
    """
    wanted = {job.id for job in _named(sweep, only)} if only else {job.id for job in sweep.jobs}
    if only or limit is not None:
        videos = [job for job in sweep.jobs if job.kind == "video" and job.id in wanted]
        if limit is not None:
            videos = list(islice((job for job in videos if job.id not in done), limit))
            wanted = set()
        kept = {job.id for job in videos}
        wanted |= kept | {job.id for job in sweep.jobs if job.kind == "measures" and kept.intersection(job.needs)}
        wanted |= set(_needs(sweep, wanted))
    return [job for job in sweep.jobs if job.id in wanted and job.id not in done]


def _named(sweep: Sweep, only: Sequence[str]) -> Iterable[Job]:
    for pattern in only:
        fits = [job for job in sweep.jobs if _fits(job.name, pattern)]
        if not fits:
            example = next((job.name for job in sweep.jobs if job.kind == "video"), sweep.jobs[0].name)
            raise ValueError(f"No job is named like {quoted(pattern)}; names are such as {example}.")
        yield from fits


def _fits(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) or fnmatchcase(name.partition("/")[2], pattern)


def _needs(sweep: Sweep, wanted: Iterable[str]) -> Iterable[str]:
    """Ids of all that the wanted need, and what that needs."""
    left, seen = list(wanted), set()
    while left:
        for need in sweep.by_id[left.pop()].needs:
            if need not in seen:
                seen.add(need)
                left.append(need)
                yield need
