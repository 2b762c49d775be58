"""Figures 8 and 9: what one busy process beside it costs the demo, and from which size on a network wants all threads.

Both on a CPU of two cores or more, and on one where nothing else runs: what is said to be quiet must be.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from dreamvideo.models.config import UNetConfig
from dreamvideo.models.layers import economical
from dreamvideo.models.threads import OWN_CHOICE, SMALL, parameters_of
from dreamvideo.models.unet import UNet

from .clock import interleaved
from .imports import ROOT
from .setting import Row, Setting
from .sizes import randomised

BUSY = "while True: pass"
STAGES = ("subject", "motion", "videos")
WIDTHS = (32, 64, 128, 256)  # of UNets of two levels, 2 to 110 million parameters
CELLS = (8, 8, 8)  # frames, height and width of the latents: what the embedded base draws


def demo_rows(setting: Setting) -> list[Row]:
    """Figure 8: seconds of the demo and of its stages beside a busy process, over those without one."""
    before = demo_seconds(setting.quick)
    with busy_process():
        beside = demo_seconds(setting.quick)
    after = demo_seconds(setting.quick)
    found = []
    for name in (*STAGES, "all"):
        quiet = (before[name] + after[name]) / 2  # around it: a machine that gets slower favours neither
        absolute = {"quiet before, s": before[name], "busy, s": beside[name], "quiet after, s": after[name]}
        target = "at most 1.3" if name == "all" else ""
        found.append(
            Row(8, f"demo, {name}: beside a busy process / quiet", beside[name] / quiet, "x", target, absolute)
        )
    return found


def demo_seconds(quick: bool) -> dict[str, float]:
    """Seconds of each stage of the demo on the embedded base, and of all, in a process of its own on the CPU."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "dreamvideo", "demo", "--device", "cpu", "--out", folder]
        command += ["--quick"] if quick else []
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
        return json.loads((Path(folder) / "report.json").read_text(encoding="utf-8"))["seconds"]


@contextmanager
def busy_process() -> Iterator[None]:
    """One process beside this one that takes a core for itself."""
    process = subprocess.Popen([sys.executable, "-c", BUSY])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def size_rows(setting: Setting) -> list[Row]:
    """Figure 9: speed of a UNet's forward with all threads over that with one, quiet and beside a busy process."""
    most = torch.get_num_threads()
    jobs = {f"{width} {count}": forward(width, count) for width in WIDTHS for count in (1, most)}
    with own_choice():
        quiet = interleaved(jobs, setting.rounds, setting.clock)
        with busy_process():
            beside = interleaved(jobs, setting.rounds, setting.clock)
    torch.set_num_threads(most)
    found = []
    for width in WIDTHS:
        millions = parameters_of(small_unet(width, "meta")) / 1e6
        for name, seconds in (("quiet", quiet), ("beside a busy process", beside)):
            one, many = seconds[f"{width} 1"], seconds[f"{width} {most}"]
            what = f"{millions:.0f} million parameters, {name}: {most} threads / one"
            found.append(Row(9, what, one / many, "x", "", {"one, s": one, f"{most}, s": many}))
    found.append(Row(9, "one thread up to so many parameters", SMALL / 1e6, "M"))
    return found


def forward(width: int, count: int) -> Callable[[], None]:
    """Of both halves of guidance, with so many threads."""
    unet = randomised(small_unet(width)).eval().requires_grad_(False)
    x, timesteps, context = torch.randn(2, 4, *CELLS), torch.tensor([500, 500]), torch.randn(2, 77, 64)

    @torch.no_grad()
    def run() -> None:
        torch.set_num_threads(count)
        unet(x, timesteps, context)

    return run


def small_unet(width: int, device: str = "cpu") -> UNet:
    config = UNetConfig(
        dim=width,
        dim_mult=(1, 2),
        res_blocks=1,
        attention_levels=(True, True),
        head_dim=16,
        first_heads=8,
        context_dim=64,
        norm_groups=8,
    )
    return UNet(config, operations=economical(nn), device=device)


@contextmanager
def own_choice() -> Iterator[None]:
    """What PyTorch is told holds for small networks, too."""
    name = OWN_CHOICE[0]
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
