"""What a sweep's folder holds of earlier runs: which jobs are done."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..safety.limits import json_object, parsed
from ..safety.paths import read_small
from .job import Job


def done_before(out: Path, jobs: Iterable[Job]) -> dict[str, Mapping[str, Any]]:
    """Id -> facts of the jobs that are done: their results can be read, and every file that these name is there."""
    found = {}
    for job in jobs:
        facts = read_result(out, job)
        if facts is not None:
            found[job.id] = facts
    return found


def read_result(out: Path, job: Job) -> Mapping[str, Any] | None:
    """The facts of a job, or None: what is damaged counts as missing, and is made again."""
    path = out / job.result
    if not job.result or not path.exists():
        return None
    try:
        facts = json_object("it", parsed(read_small(path).decode()))
    except ValueError:
        return None
    files = facts.get("files")
    if not isinstance(files, list) or not all(isinstance(name, str) and (out / name).is_file() for name in files):
        return None
    return facts
