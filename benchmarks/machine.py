"""Where and with what the figures were measured."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import torch

from .clock import Job

LIBRARIES = ("torch", "diffusers", "open_clip_torch")


def describe(device: torch.device) -> dict[str, Any]:
    """Device, versions, commit, and how busy the machine was when the run began (load average over a minute)."""
    return {
        "machine": _machine(device),
        "threads": torch.get_num_threads(),
        "load": round(psutil.getloadavg()[0], 1),
        "python": platform.python_version(),
        **{name: version(name) for name in LIBRARIES},
        "commit": _commit(),
    }


def matrix_product(device: torch.device, dtype: torch.dtype) -> tuple[Job, int]:
    """A large one, and its floating-point operations."""
    side = 8192 if device.type == "cuda" else 4096
    a, b = torch.randn(2, side, side, device=device, dtype=dtype)
    return lambda: a @ b, 2 * side**3


def _machine(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return f"{line.split(':')[1].strip()}, {psutil.cpu_count()} cores"
    return platform.machine()


def _commit() -> str:
    here = Path(__file__).parent
    commit = _git(here, "rev-parse", "--short", "HEAD")
    return f"{commit} and changes" if _git(here, "status", "--porcelain", "--untracked-files=no") else commit


def _git(folder: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True).stdout.strip()
