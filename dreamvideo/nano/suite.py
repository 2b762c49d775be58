"""The comparison on the embedded base as one plan of the sweep's engine: all its pieces made, then read as tables."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ..files.fingerprint import fingerprint, same_base
from ..safety.paths import write_json
from ..safety.texts import one_line
from ..sweep.bases import BaseSpec
from ..sweep.job import Ended, Explain, Job, Worker
from ..sweep.local import LocalExecutor
from ..sweep.schedule import Executor, Listener, run
from . import world
from .cases import FULL as FULL
from .cases import QUICK as QUICK
from .cases import Case as Case
from .cases import Scale as Scale
from .cases import cases as cases
from .cases import lesson as lesson
from .cases import prompt_for as prompt_for
from .comparison import System, Table
from .pieces import Piece, is_made, jobs_for, learned, noted, parameters, scores, video
from .pieces import Tools as Tools
from .pieces import frames_of as frames_of
from .scoring import score as score


@dataclass(frozen=True)
class Measured:
    """A system on a table's cases: the scores of each, its strips of frames, and the numbers that it trains."""

    scores: list[dict[str, float]]
    strips: list[Path]
    parameters: int


@dataclass(frozen=True)
class Elsewhere:
    """Who does the jobs instead of this process. base: by which they open the base; following: hears how jobs fare."""

    executor: Executor
    base: BaseSpec
    following: Callable[[Sequence[Job]], Listener]


def _said(error: Exception) -> str:
    return one_line(str(error))


def measure(
    tools: Tools, tables: Sequence[Table], explain: Explain = _said, elsewhere: Elsewhere | None = None
) -> dict[str, dict[str, Measured]]:
    """Table's number -> system's name -> what was measured.

    explain: what went wrong, as a sentence. elsewhere: who does the jobs, this process by default. Raises ValueError
    for a folder of another run, for a base that does not draw the toy world, and, once all others are done, for jobs
    that failed.
    """
    _claim(tools)
    jobs, titles, under = _plan(tools, tables, BaseSpec() if elsewhere is None else elsewhere.base)
    missing = [job for job in jobs.values() if not is_made(tools.folder, job)]
    told = _Titles(tools.report, titles, under, None if elsewhere is None else elsewhere.following(missing))
    if elsewhere is None:
        worker = Worker(tools.folder, lambda spec: tools.base)
        run([_here(tools, job) for job in missing], LocalExecutor(worker, explain), told)
    else:
        run(missing, elsewhere.executor, told)
    told.until(len(titles))
    if told.failed:
        name, error = next(iter(told.failed.items()))
        more = "One job" if len(told.failed) == 1 else f"{len(told.failed)} jobs"
        raise ValueError(f"{more} failed: {name}: {error.rstrip('.')}. The same command tries again.")
    return {
        table.number: {system.name: _measure(tools, system, cases(table.task, tools.scale)) for system in table.systems}
        for table in tables
    }


def seconds_spent(folder: Path) -> float:
    """Wall time of all jobs of a folder, over all its runs."""
    return sum(noted(path, "seconds")["seconds"] for path in folder.rglob("*.seconds.json"))


def _plan(tools: Tools, tables: Sequence[Table], base: BaseSpec) -> tuple[dict[str, Job], list[str], dict[str, int]]:
    """All jobs of the tables by their ids, the titles of all systems, and which title a job is the first time under."""
    jobs: dict[str, Job] = {}
    titles: list[str] = []
    under: dict[str, int] = {}
    for table in tables:
        for system in table.systems:
            for job in jobs_for(tools.folder, base, tools.scale, system, cases(table.task, tools.scale)):
                jobs.setdefault(job.id, job)
                under.setdefault(job.id, len(titles))
            titles.append(f"Table {table.number}: {system.name}")
    return jobs, titles, under


def _here(tools: Tools, job: Job) -> Job:
    """The job in this process, which has the tools."""
    piece = job.work
    assert isinstance(piece, Piece)
    return Job(job.name, job.id, lambda worker: piece.make(tools), job.needs)


class _Titles:
    """Tells of every system when its work begins, and keeps what failed.

    following: hears of jobs instead, where many go on at once.
    """

    def __init__(
        self,
        report: Callable[[str], None],
        titles: Sequence[str],
        under: Mapping[str, int],
        following: Listener | None = None,
    ) -> None:
        self.report, self.titles, self.under, self.following = report, titles, under, following
        self.failed: dict[str, str] = {}
        self._told = 0

    def until(self, count: int) -> None:
        """Tell the first so many titles, each once."""
        while self._told < count:
            self.report(self.titles[self._told])
            self._told += 1

    def started(self, job: Job) -> None:
        if self.following is None:
            self.until(self.under[job.id] + 1)
        else:
            self.following.started(job)

    def ended(self, job: Job, ended: Ended) -> None:
        if ended.error:
            self.failed[job.name] = ended.error
        if self.following is not None:
            self.following.ended(job, ended)

    def impossible(self, job: Job, because: Job) -> None:
        if self.following is not None:
            self.following.impossible(job, because)

    def waited(self) -> None:
        if self.following is not None:
            self.following.waited()


def _claim(tools: Tools) -> None:
    """Write what this folder is for, or make sure that it is for the same."""
    defaults, path = tools.base.defaults, tools.folder / "run.json"
    if (defaults.height, defaults.width, defaults.frames) != (world.SIZE, world.SIZE, world.FRAMES):
        raise ValueError(
            "The toy world goes with the embedded base, or with one trained again; score videos with --videos."
        )
    settings = json.loads(json.dumps({"scale": asdict(tools.scale), "defaults": asdict(defaults)}))
    about = {"base": fingerprint(tools.base.unet), "settings": settings}
    if path.exists():
        theirs = noted(path, "base", "settings")
        if theirs["settings"] != settings or not same_base(str(theirs["base"]), about["base"]):
            raise ValueError(
                f"{tools.folder} holds a comparison at another scale, with other training settings or on another base; "
                "name another --out."
            )
    else:
        write_json(path, about)


def _measure(tools: Tools, system: System, wanted: Sequence[Case]) -> Measured:
    found, strips, numbers = [], [], 0
    for case in wanted:
        used = list(learned(tools, system, case))
        numbers = sum(parameters(each) for each in used)
        strip = video(tools, system, case, used)
        strips.append(strip)
        found.append(scores(tools, strip, case))
    return Measured(found, strips, numbers)
