"""`sweep`: a plan of subjects, motions and methods, trained, sampled, measured and shown."""

from __future__ import annotations

from argparse import Namespace
from functools import partial
from pathlib import Path

from ..safety.locks import locked
from ..safety.paths import check_writable
from ..sweep import reading, results, schedule
from ..sweep.bases import OpenBase
from ..sweep.expand import expand
from ..sweep.job import Worker
from ..sweep.local import LocalExecutor
from .run_files import run_file
from .terminal import Terminal


def sweep(args: Namespace, terminal: Terminal) -> None:
    plan = reading.read_plan(args.plan)
    if args.out:
        from dataclasses import replace
        plan = replace(plan, out=args.out)
    whole = expand(plan, run_file, terminal.say)
    terminal.say(f"{len(whole.jobs)} jobs")
    from .cli import explain

    with locked(plan.out):
        done = results.done_before(plan.out, whole.jobs)
        missing = [job for job in whole.jobs if job.id not in done]
        open_base = OpenBase()
        worker = Worker(plan.out, lambda spec: open_base(spec, terminal.say), say=terminal.say)

        class L:
            def started(self, job): terminal.say(f"start {job.name}")
            def ended(self, job, ended): terminal.say(f"end {job.name} {ended.error} {ended.seconds:.1f}")
            def impossible(self, job, because): terminal.say(f"impossible {job.name} {because.name}")
            def waited(self): pass
        from ..sweep.on_ray import RayExecutor
        ex = LocalExecutor(worker, explain) if not args.ray else RayExecutor(plan.out, explain, args.ray, cpus=int(args.cpus), gpus=args.gpus)
        schedule.run(missing, ex, L())
        ex.close()
