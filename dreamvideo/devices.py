"""How much memory there is and how much a job takes: what chooses gradient checkpointing, and what running out says."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from .models.config import NetworkConfig

GIB = 2**30
# Numbers that a training step keeps for its backward pass, for each latent cell of each frame and channel of the finest
# level: counted with saved-tensor hooks on a motion adapter, economical layers, memory-efficient attention. An identity
# adapter takes four fifths of it. With checkpointing, what the layers' inputs and the largest layer take.
KEPT, KEPT_WITH_CHECKPOINTING = 700, 90
OPTIMISER = 12  # bytes a trained number takes beside itself: its gradient and Adam's two moments, float32
SPARE = 0.85  # of what is free can be planned with; kernels need room to work in and allocators round up
# What a control group of Linux says, in version 2 and in version 1: its limit, what is used of it, and the name in its
# statistics of how much of that are copies of files, which are dropped before memory runs out.
GROUP_FILES = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
# Encoders stay on the device where base and encoders take up to this share of it; what is left is to work in.
CROWDED = 0.5


def free_bytes(device: torch.device, budget: float | None = None) -> int:
    """Bytes of memory that this process can still take there.

    budget: GiB that it may take in all, what it holds already included.
    """
    free, held = _amounts(device)
    if budget is None:
        return free
    return min(free, max(int(budget * GIB) - held, 0))


def limit(device: torch.device, budget: float) -> None:
    """Let PyTorch take no more than `budget` GiB there, on cuda; elsewhere a budget is for planning alone."""
    if device.type == "cuda":
        total = torch.cuda.mem_get_info(device)[1]
        torch.cuda.set_per_process_memory_fraction(min(budget * GIB / total, 1.0), device)


def total_bytes(device: torch.device, budget: float | None = None) -> int:
    """Bytes of memory that this process can take in all."""
    return free_bytes(device, budget) + _amounts(device)[1]


def _amounts(device: torch.device) -> tuple[int, int]:
    """(free, held by this process)."""
    if device.type == "cuda":
        held = torch.cuda.memory_allocated(device)
        cached = torch.cuda.memory_reserved(device) - held
        return torch.cuda.mem_get_info(device)[0] + cached, held
    if device.type == "mps":
        held = torch.mps.current_allocated_memory()
        return max(torch.mps.recommended_max_memory() - held, 0), held
    return _available(), _resident()


def _available() -> int:
    """Of the machine and, where this process is in a container, of that: psutil sees the machine alone."""
    import psutil

    left = (_left_in_group(folder) for folder in _control_groups(Path("/")))
    return min([psutil.virtual_memory().available, *(amount for amount in left if amount is not None)])


def _resident() -> int:
    import psutil

    return psutil.Process().memory_info().rss


def _control_groups(system: Path) -> Iterator[Path]:
    """The folders of the groups that Linux counts this process's memory in, and of those above: each may limit it."""
    with suppress(OSError):
        for line in (system / "proc/self/cgroup").read_text().splitlines():
            _, controllers, group = line.split(":", 2)
            if controllers and "memory" not in controllers.split(","):
                continue
            root = system / "sys/fs/cgroup" / ("memory" if controllers else "")  # of version 1 or 2
            folder = root / group.lstrip("/")
            yield from (each for each in (folder, *folder.parents) if each.is_relative_to(root))


def _left_in_group(folder: Path) -> int | None:
    """Bytes that a control group leaves; None without a limit."""
    for limit_file, usage_file, droppable in GROUP_FILES:
        with suppress(OSError, ValueError):  # files of the other version, or "max"
            most, used = (int((folder / name).read_text()) for name in (limit_file, usage_file))
            statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            return max(most - used + int(statistics.get(droppable, 0)), 0)
    return None


@dataclass(frozen=True)
class Choice:
    """Whether to checkpoint, and why, in a sentence for people."""

    checkpointing: bool
    reason: str


def choose_checkpointing(config: NetworkConfig, cells: int, dtype: torch.dtype, trained: int, free: int) -> Choice:
    """Gradient checkpointing for a training step, only where it does not fit without.

    cells: latent cells of all frames of a batch; trained: numbers that are trained; free: bytes.
    """
    each = cells * config.dim * dtype.itemsize
    whole, saving = (kept * each + OPTIMISER * trained for kept in (KEPT, KEPT_WITH_CHECKPOINTING))
    told = f"a step takes about {_gib(whole)} without it, and {_gib(free)} are free"
    if whole <= SPARE * free:
        return Choice(False, f"Gradient checkpointing is off: {told}.")
    reason = f"Gradient checkpointing is on: {told}."
    if saving > SPARE * free:
        reason += f" Even so it takes about {_gib(saving)}: fewer frames or a smaller size may be needed."
    return Choice(True, reason)


def crowded(parts: int, total: int | None) -> bool:
    """Whether a base whose parts take so many bytes should leave its encoders off a device of `total` bytes."""
    return total is not None and parts > CROWDED * total


ASKED = re.compile(r"[Tt]ried to allocate ([\d.]+) ?([KMG]iB|[KMG]B|bytes)")
FREE = re.compile(r"of which ([\d.]+ [KMG]iB) is free")
TOTAL = re.compile(r"(?:total capacity of|max allowed:) ([\d.]+ [KMG]i?B)")


def explain_shortage(error: BaseException) -> str:
    """What was asked, what there was as far as the error tells, and which switch to turn, in one line."""
    text = " ".join(str(error).split())
    asked, free, total = (pattern.search(text) for pattern in (ASKED, FREE, TOTAL))
    sentences = ["There is not enough memory"]
    if asked:
        amount = _gib(int(asked[1])) if asked[2] == "bytes" else f"{asked[1]} {asked[2]}"
        sentences[0] += f": {amount} were asked for"
        if free:
            sentences[0] += f" and {free[1]} were free"
        elif asked[2] == "bytes":
            sentences[0] += f" and {_gib(_available())} were free"
        sentences[0] += f" of {total[1]}" if total else ""
    sentences.append("Training: --gradient-checkpointing and --batch 1 take less")
    sentences.append("Everywhere: --memory with the GiB there are, fewer --frames, a smaller --height and --width")
    sentences.append("or, slower, --device cpu")
    return ". ".join(sentences[:2]) + ". " + ", ".join(sentences[2:]) + "."


def _gib(amount: float) -> str:
    return f"{amount / GIB:.1f} GiB" if amount >= 0.1 * GIB else f"{amount / 2**20:.1f} MiB"
