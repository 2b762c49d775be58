"""How much memory there is and how much a job takes: what chooses gradient checkpointing, and what running out says."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

import torch

from .models.config import UNetConfig

GIB = 2**30
# Numbers that a training step keeps for its backward pass, for each latent cell of each frame and channel of the finest
# level: counted with saved-tensor hooks on a motion adapter, economical layers, memory-efficient attention. An identity
# adapter takes four fifths of it. With checkpointing, what the layers' inputs and the largest layer take.
KEPT, KEPT_WITH_CHECKPOINTING = 700, 90
OPTIMISER = 12  # bytes a trained number takes beside itself: its gradient and Adam's two moments, float32
SPARE = 0.85  # of what is free can be planned with; kernels need room to work in and allocators round up
# Encoders stay on the device where base and encoders take up to this share of it; what is left is to work in.
CROWDED = 0.5


def free_bytes(device: torch.device, budget: float | None = None) -> int | None:
    """Memory that this process can still take there, or None where nothing tells.

    budget: GiB that it may take in all, what it holds already included.
    """
    free, held = _amounts(device)
    if budget is None:
        return free
    within = max(int(budget * GIB) - held, 0)
    return within if free is None else min(free, within)


def limit(device: torch.device, budget: float) -> None:
    """Let PyTorch take no more than `budget` GiB there, on cuda; elsewhere a budget is for planning alone."""
    if device.type == "cuda":
        total = torch.cuda.mem_get_info(device)[1]
        torch.cuda.set_per_process_memory_fraction(min(budget * GIB / total, 1.0), device)


def total_bytes(device: torch.device, budget: float | None = None) -> int | None:
    """Memory that this process can take in all, or None where nothing tells."""
    free = free_bytes(device, budget)
    return None if free is None else free + _amounts(device)[1]


def _amounts(device: torch.device) -> tuple[int | None, int]:
    """(free, held by this process)."""
    if device.type == "cuda":
        held = torch.cuda.memory_allocated(device)
        cached = torch.cuda.memory_reserved(device) - held
        return torch.cuda.mem_get_info(device)[0] + cached, held
    if device.type == "mps":
        held = torch.mps.current_allocated_memory()
        return max(torch.mps.recommended_max_memory() - held, 0), held
    return _available(), _resident()


def _available() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def _resident() -> int:
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


@dataclass(frozen=True)
class Choice:
    """Whether to checkpoint, and why, in a sentence for people."""

    checkpointing: bool
    reason: str


def choose_checkpointing(config: UNetConfig, cells: int, dtype: torch.dtype, trained: int, free: int | None) -> Choice:
    """Gradient checkpointing for a training step, only where it does not fit without.

    cells: latent cells of all frames of a batch; trained: numbers that are trained; free: bytes, None for unknown.
    """
    if free is None:
        return Choice(False, "Gradient checkpointing is off: nothing tells how much memory is free.")
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
        elif (left := _available()) is not None and asked[2] == "bytes":
            sentences[0] += f" and {_gib(left)} were free"
        sentences[0] += f" of {total[1]}" if total else ""
    sentences.append("Training: --gradient-checkpointing and --batch 1 take less")
    sentences.append("Everywhere: --memory with the GiB there are, fewer --frames, a smaller --height and --width")
    sentences.append("or, slower, --device cpu")
    return ". ".join(sentences[:2]) + ". " + ", ".join(sentences[2:]) + "."


def _gib(amount: float) -> str:
    return f"{amount / GIB:.1f} GiB" if amount >= 0.1 * GIB else f"{amount / 2**20:.1f} MiB"
