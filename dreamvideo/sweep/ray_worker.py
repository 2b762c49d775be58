"""What one of Ray's workers does: a job in the sweep's own folder where it sees that, else in one of its own."""

from __future__ import annotations

import getpass
import hashlib
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import __version__
from ..safety.paths import atomic_path, inside
from .bases import OpenBase
from .job import Ended, Explain, Job, Worker, perform
from .logs import log_path

MARK = ".sweep-token"  # in the sweep's folder: who reads there what the driver wrote sees the same folder


@dataclass(frozen=True)
class Task:
    """A job, and what a worker must know besides.

    token: what stands in the folder's mark; parcels: name of a file -> its reference in the object store, where files
    are carried; None where the worker is to look whether they need to be. version: of the driver's DreamVideo.
    """

    job: Job | None
    out: str
    token: str
    explain: Explain
    cpus: int
    gpus: float
    version: str
    parcels: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Answer:
    """ended: None asks for the files. files: name below the sweep's folder -> bytes, where they are carried; log: its
    name and what was added to it."""

    ended: Ended | None
    files: Mapping[str, bytes] = field(default_factory=dict)
    log: tuple[str, str] | None = None


_open_base = OpenBase()  # once a process, which does many jobs


def work(task: Task) -> Answer:
    """Do the task's job. Raises KeyboardInterrupt alone, when it is cancelled."""
    import torch

    job = task.job
    assert job is not None
    if task.version != __version__:
        return Answer(
            Ended(error=f"A machine has DreamVideo {__version__}, and this one {task.version}; make them one.")
        )
    torch.set_num_threads(task.cpus)
    base = _open_base.on(_device(task.gpus), task.gpus)
    if _sees(Path(task.out), task.token):
        return Answer(perform(job, Worker(Path(task.out), base), task.explain))
    if task.parcels is None:
        return Answer(None)
    return _elsewhere(task, job, base)


def _sees(out: Path, token: str) -> bool:
    try:
        return bool(token) and (out / MARK).read_text(encoding="utf-8") == token
    except OSError:
        return False


def _elsewhere(task: Task, job: Job, base: Any) -> Answer:
    """The job in a folder of this machine, which keeps what later jobs here may need: states and adapters."""
    name = hashlib.blake2b(task.out.encode(), digest_size=8).hexdigest()
    scratch = Path(tempfile.gettempdir()) / f"dreamvideo-{getpass.getuser()}" / name
    out, given = scratch / "out", scratch / "given"
    log = out / log_path(job.name)
    try:
        _unpack(task.parcels or {}, out, given)
        log.unlink(missing_ok=True)
    except (OSError, ValueError) as error:
        return Answer(Ended(error=task.explain(error)))
    ended = perform(job, Worker(out, base, lambda path: given / _below(path)), task.explain)
    names = [*ended.facts.get("files", ()), *([job.result] if job.result else [])]
    files = {} if ended.error else {each: inside(out, each).read_bytes() for each in names}
    told = log.read_text(encoding="utf-8") if log.exists() else ""
    return Answer(ended, files, (log_path(job.name), told))


def _unpack(parcels: Mapping[str, Any], out: Path, given: Path) -> None:
    """Write the files that are not here yet: names of outcomes tell their contents, the user's files may change."""
    import ray

    for name, reference in parcels.items():
        own = os.path.isabs(name)
        target = given / _below(name) if own else inside(out, name)
        if own or not target.exists():
            with atomic_path(target) as part:
                part.write_bytes(ray.get(reference))


def _below(path: str) -> str:
    """An absolute path as one below another folder."""
    drive, rest = os.path.splitdrive(path)
    return os.path.join(drive.rstrip(":").replace(os.sep, ""), rest.lstrip(os.sep)) if drive else rest.lstrip(os.sep)


def _device(gpus: float) -> str | None:
    """The card that this task has; None leaves the choice to the base.

    Ray shows a process its card alone, by a variable that CUDA reads once. A process that does many jobs may be given
    another card later, so it sees all of them and takes the one that is meant.
    """
    if not gpus:
        return "cpu"
    import ray
    from ray._private.accelerators import NvidiaGPUAcceleratorManager as Cards

    ids = [str(each) for each in ray.get_gpu_ids()]
    if not ids or not ids[0].isdigit():  # a part of a card, or none of CUDA's
        return None
    count = Cards.get_current_node_num_accelerators()
    Cards.set_current_process_visible_accelerator_ids([str(index) for index in range(count)])
    return f"cuda:{ids[0]}"
