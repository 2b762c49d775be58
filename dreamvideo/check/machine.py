"""The machine and what is installed on it: versions, devices, memory, and which attention kernels run."""

from __future__ import annotations

import os
import platform
import shutil
import warnings
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from .. import __version__
from ..devices import free_bytes
from .measure import dtype_name, gib
from .report import Finding

LIBRARIES = (
    "torchvision",
    "open_clip_torch",
    "diffusers",
    "safetensors",
    "kornia",
    "einops",
    "av",
    "pillow",
    "psutil",
    "matplotlib",
    "numpy",
)
KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "memory-efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": getattr(SDPBackend, "CUDNN_ATTENTION", None),
    "plain": SDPBackend.MATH,
}


def versions() -> Iterator[Finding]:
    yield Finding("dreamvideo", __version__)
    yield Finding("Python", f"{platform.python_version()}, {platform.platform()}")
    yield Finding("torch", f"{torch.__version__}, {_build()}")
    yield Finding("libraries", ", ".join(f"{name} {_version(name)}" for name in LIBRARIES))


def _build() -> str:
    if torch.version.hip:
        return f"ROCm {torch.version.hip}"
    if torch.version.cuda is None:
        return "built without CUDA"
    return f"CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "missing"


def devices() -> Iterator[Finding]:
    count = torch.cuda.device_count()
    lost = not count and shutil.which("nvidia-smi") is not None
    advice = "There is an NVIDIA driver, but PyTorch finds no card: install a PyTorch whose CUDA the driver supports."
    yield Finding("cuda", f"{count} {'card' if count == 1 else 'cards'} visible", advice if lost else "")
    for index in range(count):
        card = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        capability = f"capability {card.major}.{card.minor}"
        yield Finding(f"cuda:{index}", f"{card.name}, {capability}, {gib(free)} of {gib(total)} free")
    if torch.backends.mps.is_available():
        yield Finding("mps", f"{gib(free_bytes(torch.device('mps')))} free")
    yield Finding("CPU", f"{_processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads")
    memory = torch.device("cpu")
    yield Finding("memory", f"{gib(free_bytes(memory))} free for this process of {gib(psutil.virtual_memory().total)}")


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def attention_kernels(device: torch.device, dtype: torch.dtype, head_dim: int) -> Iterator[Finding]:
    """Which of PyTorch's kernels take this width and precision, with a gradient, in training as in sampling."""
    running = [name for name, kernel in KERNELS.items() if kernel and _runs(kernel, device, dtype, head_dim)]
    short = device.type == "cuda" and not {"flash", "memory-efficient"} & set(running)
    advice = "Only attention that keeps all its scores runs: training takes far more memory. Update PyTorch or driver."
    found = f"{', '.join(running) or 'none'} on {device} in {dtype_name(dtype)}, {head_dim} wide"
    yield Finding("attention", found, advice if short else "")
    yield Finding("float32 products", torch.get_float32_matmul_precision())


def _runs(kernel: SDPBackend, device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    q = torch.ones(1, 2, 64, head_dim, device=device, dtype=dtype, requires_grad=True)
    try:
        with warnings.catch_warnings(), sdpa_kernel(kernel):
            warnings.simplefilter("ignore")  # each reason why a kernel is not taken
            F.scaled_dot_product_attention(q, q, q).sum().backward()
        return True
    except RuntimeError:
        return False
