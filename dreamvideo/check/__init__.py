"""A self-check: does what is installed do, on this machine, what it should? Its report is fit for a bug report.

It trains each stage for a few steps, samples a short video and compares the device with the CPU, on the base that it
is given. Nothing is written and the base stays as it was.
"""

from __future__ import annotations

import gc
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import nn

from ..devices import explain_shortage
from .agreement import agree
from .machine import attention_kernels, devices, versions
from .networks import Handle, Session, describe, own_networks
from .report import Finding, Report, Section
from .sampling import encode, sample
from .training import train_stage

__all__ = ["Finding", "Handle", "Report", "Section", "check"]

PACKAGE = Path(__file__).parents[1]
SECONDS = 10.0  # for the steps of each training and of the sampling
FAILED, SHORT = "failed", "out of memory"  # names of the findings on what ended a section
LONGEST = 500  # characters of an error's message
Job = Callable[[], Iterable[Finding]]


@torch.inference_mode(False)
def check(
    open_base: Callable[[], Handle],
    *,
    facts: Mapping[str, str] | None = None,
    networks: Mapping[str, nn.Module] | None = None,
    paged: bool = False,
    memory: float | None = None,
    seconds: float = SECONDS,
    progress: Callable[[int, int, str], None] = lambda done, total, title: None,
    ends: tuple[type[Exception], ...] = (),
) -> Report:
    """Check the base that `open_base` gives, and the machine. What goes wrong is a finding and ends nothing.

    facts: what a host tells of itself, by name, a section of its own. networks: modules to look into, the UNet's name
    being "UNet"; by default those that the engine loaded. paged: a host moves weights by itself, so where they lie is
    told and not judged. memory: GiB that a training step may take. seconds: for the steps of each of three trainings
    and of sampling. progress: (sections done, of how many, title of the next); what it raises ends the check,
    and so does what is one of `ends`, a host's Cancel.
    """
    opened: list[Session] = []

    def opening() -> Iterator[Finding]:
        base = open_base()
        opened.append(Session(base, networks or own_networks(base), paged, memory, seconds))
        yield from describe(opened[0])

    before: dict[str, Job] = {"Versions": versions, "Devices": devices, "Base": opening}
    if facts:
        before["Host"] = lambda: [Finding(name, text) for name, text in facts.items()]
    after: dict[str, Callable[[Session], Iterable[Finding]]] = {
        "Attention kernels": _kernels,
        "Encoders": encode,
        "Training: textual inversion": partial(train_stage, stage="token"),
        "Training: identity": partial(train_stage, stage="identity"),
        "Training: motion": partial(train_stage, stage="motion"),
        "Sampling": sample,
        "Agreement with the CPU": agree,
    }
    sections: list[Section] = []

    def run(title: str, job: Job) -> None:
        progress(len(sections), len(before) + len(after), title)
        sections.append(_section(title, job, ends))

    for title, job in before.items():
        run(title, job)
    for title, job in after.items() if opened else ():
        run(title, partial(job, opened[0]))
    return Report(tuple(sections))


def _kernels(session: Session) -> Iterable[Finding]:
    base = session.base
    return attention_kernels(base.device, base.unet.dtype, base.unet.config.head_width)


def _section(title: str, job: Job, ends: tuple[type[Exception], ...]) -> Section:
    began = time.monotonic()
    findings: list[Finding] = []
    try:
        findings.extend(job())
    except ends:
        raise
    except Exception as error:
        findings.append(_failure(error))
    if findings and findings[-1].name in (FAILED, SHORT):
        gc.collect()  # what the section held
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return Section(title, tuple(findings), time.monotonic() - began)


def _failure(error: Exception) -> Finding:
    """What ended a section: kind, sentence, and the last line of ours that it came through."""
    kind, text = type(error).__name__, " ".join(str(error).split())[:LONGEST] or "no message"
    if isinstance(error, MemoryError) or "out of memory" in text or "allocate memory" in text:
        return Finding(SHORT, f"{kind}{_place(error)}", explain_shortage(error))
    if isinstance(error, ValueError):  # whose sentence holds the way out
        return Finding(FAILED, f"{kind}{_place(error)}", text)
    advice = "This section came to no end: paste the report into a bug report."
    return Finding(FAILED, f"{kind}: {text}{_place(error)}", advice)


def _place(error: Exception) -> str:
    ours = [
        frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).is_relative_to(PACKAGE)
    ]
    return f" ({Path(ours[-1].filename).name}, line {ours[-1].lineno})" if ours else ""
