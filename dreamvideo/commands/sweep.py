"""`sweep`: a plan of subjects, motions and methods, trained, sampled, measured and shown."""

from __future__ import annotations

from argparse import Namespace
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..safety.locks import locked
from ..safety.paths import check_writable
from ..sweep import choice, costs, reading, report, results, schedule
from ..sweep.bases import OpenBase
from ..sweep.expand import Sweep, expand
from ..sweep.job import Job, Worker
from ..sweep.local import LocalExecutor
from ..sweep.on_ray import RayExecutor
from ..sweep.plan import Plan
from ..sweep.progress import Progress
from .engines import placed, ray_for, spec_for
from .errors import explain
from .run_files import run_file
from .terminal import Terminal, duration

SHOWN = 20  # of the names that a dry run lists
KINDS = {"training": "trainings", "video": "videos", "measures": "measurements"}


def sweep(args: Namespace, terminal: Terminal) -> None:
    plan = _plan(args)
    whole = expand(plan, run_file, terminal.say)
    done = results.done_before(plan.out, whole.jobs)
    missing = choice.missing(whole, done, args.only, None if args.limit is None else int(args.limit))
    _tell_what(whole, done, missing, terminal)
    if args.dry_run:
        for job in missing[:SHOWN]:
            terminal.say(f"  {job.name}")
        if len(missing) > SHOWN:
            terminal.say(f"  ... and {len(missing) - SHOWN} more.")
        with _executor(args, plan.out, terminal) as executor:
            _costs(missing, executor, terminal, dry=True)
        return
    check_writable(plan.out / report.FILE)
    with locked(plan.out):
        progress = _run(args, whole, missing, terminal) if missing else None
        page = report.write(whole, {} if progress is None else progress.failed | _blocked(progress))
    terminal.say(f"Wrote {page}; open it in a browser.")
    if progress is not None and progress.failed:
        raise ValueError(_failures(progress))


def _run(args: Namespace, whole: Sweep, missing: Sequence[Job], terminal: Terminal) -> Progress:
    """Do what is missing. Writes the report when it is interrupted, too."""
    with _executor(args, whole.plan.out, terminal) as executor:
        expected = _costs(missing, executor, terminal)
        progress = Progress(missing, expected, executor, duration, terminal.progress, terminal.say)
        if isinstance(executor, LocalExecutor):
            executor.worker = replace(executor.worker, progress=progress.inside)
        try:
            schedule.run(missing, executor, progress)
        except KeyboardInterrupt:
            report.write(whole, progress.failed | _blocked(progress))
            raise KeyboardInterrupt(
                f"Stopped after {progress.done} of {len(missing)} jobs; the same command goes on from there."
            ) from None
    return progress


@contextmanager
def _executor(args: Namespace, out: Path, terminal: Terminal) -> Iterator[LocalExecutor | RayExecutor]:
    open_base = OpenBase()
    with ray_for(args, out, terminal) as workers:
        yield workers or LocalExecutor(Worker(out, lambda spec: open_base(spec, terminal.say)), explain)


def _plan(args: Namespace) -> Plan:
    """The plan given, with what the command line says instead."""
    plan, spec = reading.read_plan(args.plan), spec_for(args)
    bases = plan.bases if spec is None else (spec,)
    return replace(plan, bases=tuple(replace(base, **placed(args)) for base in bases), out=args.out or plan.out)


def _tell_what(whole: Sweep, done: Mapping[str, Any], missing: Sequence[Job], terminal: Terminal) -> None:
    plan = whole.plan
    parts = {"subject": plan.subjects, "motion": plan.motions, "method": plan.methods, "base": plan.bases}
    counts = ", ".join(_counted(len(each), name) for name, each in parts.items())
    terminal.say(f"{counts}: {_kinds(whole.jobs)} in {plan.out}.")
    before = [job for job in whole.jobs if job.id in done]
    terminal.say((f"Done before: {_kinds(before)}. " if before else "") + f"To do: {_kinds(missing) or 'nothing'}.")


def _counted(count: int, name: str) -> str:
    return f"{count} {name}{'s' * (count != 1)}"


def _kinds(jobs: Sequence[Job]) -> str:
    counts = Counter(job.kind for job in jobs)
    return ", ".join(_counted(counts[kind], name.removesuffix("s")) for kind, name in KINDS.items() if counts[kind])


def _costs(
    missing: Sequence[Job], executor: LocalExecutor | RayExecutor, terminal: Terminal, dry: bool = False
) -> costs.Costs:
    """Time a few steps and tell what all will cost. dry: nothing is written."""
    terminal.say("Timing a few steps ...")
    found = costs.time_steps(missing, executor, "" if dry else f"jobs/timing/{executor.kind}")
    for error in found.errors:
        terminal.say(f"Not timed: {error}")
    for kind, name in KINDS.items():
        seconds = sum(found.of(job) for job in missing if job.kind == kind)
        if seconds:
            terminal.say(f"  {name}: {duration(seconds)}")
    total = sum(found.of(job) for job in missing)
    if total:
        together = f", {executor.slots} at once: {duration(total / executor.slots)}" if executor.slots > 1 else ""
        terminal.say(f"All of it will take about {duration(total)} of work{together}.")
    return found


def _blocked(progress: Progress) -> dict[str, str]:
    return {name: f"Not possible without {because}." for name, because in progress.blocked.items()}


def _failures(progress: Progress) -> str:
    name, error = next(iter(progress.failed.items()))
    more = f" and {len(progress.failed) - 1} more" if len(progress.failed) > 1 else ""
    lost = f"; {_counted(len(progress.blocked), 'job')} that need them were not possible" if progress.blocked else ""
    return (
        f"{len(progress.failed)} of {len(progress.jobs)} jobs failed{lost}: {name}{more}: {error.rstrip('.')}. "
        "The same command tries them again."
    )
