"""The engine of many: Ray's workers, on this machine or on a cluster. Ray is imported when this is asked for."""

from __future__ import annotations

import os
import secrets
import time
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from .. import __version__
from ..media.folders import Say, quiet
from ..safety.paths import atomic_path, write_text
from ..safety.texts import shortened
from .job import Ended, Explain, Job
from .ray_worker import MARK, Answer, Task, work

LOCAL = "local"  # the address of no cluster: this machine alone
RETRIES = 5  # of a job whose worker was killed or whose machine went away
MOST = 1000  # jobs that Ray is told of at once
CARRIED_BYTES = 1 << 30  # of the user's files that the object store is asked to hold at once
ROOM_SECONDS = 900.0  # that a cluster may take to have room for the first job
SECONDS = 0.5  # that a wait takes at most
LEAVING = 5.0  # seconds that workers have to save their states when all is over
STORE_BYTES = 128 << 20  # of the object store of this machine alone, through which no file goes
SHARED = True  # whether workers look if they see the folder
MISSING = 'Ray is not installed, or is older than 2.60; pip install "dreamvideo[ray]" brings it. Only --ray needs it.'


class RayExecutor:
    """Jobs as Ray's tasks, each on so many cores and cards.

    address: `LOCAL`, or what `ray.init` takes; an instance that runs already in this process is used as it is. gpus:
    None for one where there are any. Workers that do not see the folder `out` get files and send them back through
    Ray's object store. Raises ValueError without Ray, for a cluster that is not there and for one in which no job has
    room.
    """

    def __init__(
        self,
        out: Path,
        explain: Explain,
        address: str = LOCAL,
        *,
        cpus: int = 1,
        gpus: float | None = None,
        say: Say = quiet,
    ) -> None:
        self.ray, self.out = _imported(), Path(os.path.abspath(out))
        self.own = not self.ray.is_initialized()
        if self.own:
            _connect(self.ray, address)
        self.cpus, self.gpus = cpus, self._cards() if gpus is None else gpus
        self.slots, self._looked = 0, float("-inf")
        self._wait_for_room(0.0 if address == LOCAL else ROOM_SECONDS, say)
        self.shared = SHARED
        token = secrets.token_hex(8) if SHARED else ""
        self._mark = self.out / MARK
        write_text(self._mark, token)
        limits = {"num_cpus": cpus, "num_gpus": self.gpus, "max_retries": RETRIES, "max_calls": 0}
        self._work = self.ray.remote(**limits)(work)
        self._task = Task(None, str(self.out), token, explain, cpus, self.gpus, __version__)
        self._flying: dict[Any, Job] = {}
        self._refused: list[tuple[Job, Ended]] = []
        self._parcels: OrderedDict[str, tuple[int, Any]] = OrderedDict()
        self._carried = 0

    @property
    def kind(self) -> str:
        """What jobs run on."""
        return f"ray-{self.cpus}-{self.gpus:g}"

    @property
    def about(self) -> str:
        nodes = sum(bool(node["Alive"]) for node in self.ray.nodes())
        where = "one machine" if nodes == 1 else f"{nodes} machines"
        return f"Ray on {where}, {self.slots} jobs at once"

    def has_room(self) -> bool:
        return len(self._flying) < MOST

    def submit(self, job: Job) -> None:
        try:
            parcels = None if self.shared else {name: self._parcel(name) for name in (*job.reads, *job.uses)}
        except (
            OSError,
            self.ray.exceptions.RayError,
        ) as error:  # a photograph is gone meanwhile, the object store is full
            self._refused.append((job, Ended(error=self._task.explain(error))))
            return
        self._flying[self._work.remote(replace(self._task, job=job, parcels=parcels))] = job

    def wait(self) -> Sequence[tuple[Job, Ended]]:
        self._look()
        if self._refused:
            refused, self._refused = self._refused, []
            return refused
        refs = list(self._flying)
        first, rest = self.ray.wait(refs, num_returns=1, timeout=SECONDS)
        more = self.ray.wait(rest, num_returns=len(rest), timeout=0)[0] if first and rest else []
        found = []
        for ref in (*first, *more):
            job = self._flying.pop(ref)
            ended = self._ended(job, ref)
            if ended is None:  # its worker does not see our folder: files go with the job, and with all after it
                self.shared = False
                self.submit(job)
            else:
                found.append((job, ended))
        return found

    def close(self) -> None:
        """Interrupt what runs, give it a moment to save its states, and leave Ray."""
        flying = list(getattr(self, "_flying", {}))
        for ref in flying:
            with suppress(Exception):
                self.ray.cancel(ref)
        if flying:
            with suppress(Exception):
                self.ray.wait(flying, num_returns=len(flying), timeout=LEAVING)
            self._flying.clear()
        if hasattr(self, "_mark"):
            self._mark.unlink(missing_ok=True)
            with suppress(OSError):  # of a dry run, which leaves nothing
                self.out.rmdir()
        if self.own:
            self.ray.shutdown()

    def _ended(self, job: Job, ref: Any) -> Ended | None:
        try:
            answer: Answer = self.ray.get(ref)
        except self.ray.exceptions.RayError as error:
            return Ended(error=_lost(error))
        if answer.ended is None:
            return None
        try:
            self._keep(job, answer)
        except ValueError as error:
            return Ended(error=str(error))
        return answer.ended

    def _keep(self, job: Job, answer: Answer) -> None:
        """Write what a worker sent, the result last."""
        for name in sorted(answer.files, key=lambda name: name == job.result):
            with atomic_path(self.out / name) as part:
                part.write_bytes(answer.files[name])
        if answer.log:
            path = self.out / answer.log[0]
            with suppress(OSError):
                path.parent.mkdir(parents=True, exist_ok=True)
                with open(path, "a", encoding="utf-8") as file:
                    file.write(answer.log[1])

    def _parcel(self, name: str) -> Any:
        """A file in the object store, where it stays while there is room. name: absolute, or below `out`."""
        found = self._parcels.pop(name, None)
        if found is None:
            data = (self.out / name).read_bytes()  # of an absolute name: that
            found = len(data), self.ray.put(data)
            self._carried += len(data)
        self._parcels[name] = found
        while self._carried > CARRIED_BYTES and len(self._parcels) > 1:
            _, (size, _) = self._parcels.popitem(last=False)
            self._carried -= size
        return found[1]

    def _look(self) -> None:
        """How many jobs have room: machines come and go."""
        if time.monotonic() - self._looked < 2.0:
            return
        self._looked = time.monotonic()
        has = self.ray.cluster_resources()
        by_cards = has.get("GPU", 0) / self.gpus if self.gpus else float("inf")
        self.slots = int(min(has.get("CPU", 0) / self.cpus, by_cards))

    def _wait_for_room(self, seconds: float, say: Say) -> None:
        """Until a job has room, for so long at most: machines that are rented take minutes to come."""
        until = time.monotonic() + seconds
        self._look()
        while not self.slots:
            has = self.ray.cluster_resources()
            lack = (
                f"A job takes {self.cpus} cores and {self.gpus:g} cards, and Ray has {has.get('CPU', 0):g} cores and "
                f"{has.get('GPU', 0):g} cards"
            )
            if time.monotonic() >= until:
                self.close()
                raise ValueError(f"{lack}; ask for less with --cpus and --gpus.")
            say(f"{lack}: waiting for more machines.")
            time.sleep(min(15.0, seconds))
            self._look()

    def _cards(self) -> float:
        return 1.0 if self.ray.cluster_resources().get("GPU", 0) else 0.0


def _imported() -> Any:
    try:
        import ray
        from ray._common.usage import usage_lib
    except ModuleNotFoundError as error:  # the second may lie elsewhere in another Ray
        raise ValueError(MISSING) from error
    usage_lib.set_usage_stats_enabled_via_env_var(False)  # nothing is told to anybody
    return ray


def _connect(ray: Any, address: str) -> None:
    how: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address == LOCAL:
        how |= {"include_dashboard": False, "_node_ip_address": "127.0.0.1", "object_store_memory": STORE_BYTES}
    # Of a machine that goes away Ray prints the state, hundreds of lines, into ours; jobs tell what matters of it.
    vars(ray._private.worker)["print_to_stdstream"] = lambda *told, **how: None
    try:
        ray.init(address=address, **how)
    except (ConnectionError, ValueError, RuntimeError, TimeoutError) as error:
        raise ValueError(
            f"There is no Ray at {shortened(address)}: {shortened(' '.join(str(error).split()))}; start it there with "
            "`ray start --head`, or give --ray alone for this machine."
        ) from error


def _lost(error: Exception) -> str:
    """Why a job has no answer at all."""
    kind = type(error).__name__
    if kind == "TaskCancelledError":
        return "It was cancelled."
    reason = {"OutOfMemoryError": "the machine ran out of memory", "NodeDiedError": "its machine went away"}
    why = reason.get(kind, "its worker was killed, or its machine ran out of memory")
    return f"It was tried {RETRIES + 1} times, and each time {why}; its log tells how far it came."
