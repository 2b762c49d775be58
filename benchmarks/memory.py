"""Figure 3: peak memory of each job, every one in a process of its own, and of loading a full-size checkpoint."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from dreamvideo.files.tensors import TensorSpec, write_tensors
from dreamvideo.files.unet import load_unet
from dreamvideo.models.config import UNetConfig
from dreamvideo.models.unet import UNet

from . import sampling, training
from .clock import forget_peak, peak_bytes
from .setting import Row, Setting

GIB = 2**30
PEERS = {"token": "authors", "identity": "authors", "motion": "authors", "sampling": "diffusers"}
TARGETS = {"motion": "- / 7", "identity": "- / 5", "sampling": "- / 5"}  # GiB on two CPU cores / on an H200


def rows(setting: Setting) -> list[Row]:
    found = []
    idle = measured(setting, "ours", "nothing")
    for job, peer in PEERS.items():
        peaks = {who: measured(setting, who, job) for who in ("ours", peer)}
        absolute = {f"{who}, GiB": peak for who, peak in peaks.items()} | {"libraries alone, GiB": idle}
        found.append(Row(3, f"peak memory, {job}", peaks["ours"], "GiB", TARGETS.get(job, ""), absolute))
    found.append(Row(3, "peak memory, loading a full-size checkpoint", *_loading(setting)))
    return found


def _loading(setting: Setting) -> tuple[float, str]:
    with tempfile.TemporaryDirectory() as folder:
        path = write_full_size(Path(folder) / "unet.safetensors")
        return measured(setting, "ours", "load", path), "GiB"


def write_full_size(path: Path) -> Path:
    """The full-size UNet in float16, all zeros, written tensor by tensor: 2.6 GiB."""
    state = UNet(UNetConfig(), device="meta").state_dict()
    specs = {name: TensorSpec(tuple(tensor.shape), torch.float16) for name, tensor in state.items()}
    write_tensors(
        path, specs, ((name, torch.zeros(spec.shape, dtype=torch.float16)) for name, spec in specs.items()), {}
    )
    return path


def measured(setting: Setting, who: str, job: str, path: Path | None = None) -> float:
    """Peak GiB of a process that does this job once or, where that changes it, twice."""
    command = [sys.executable, "-m", "benchmarks.memory", who, job, setting.size_name, str(setting.device)]
    command += [json.dumps(setting.given)]
    command += [] if path is None else [str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"Measuring {who}, {job} failed: {done.stderr.strip()[-400:]}")
    return json.loads(done.stdout.splitlines()[-1]) / GIB


def job_of(setting: Setting, who: str, job: str) -> Callable[[], object]:
    if job == "nothing":
        return lambda: None
    if job == "sampling":
        frames = setting.size.frames
        return (
            sampling.ours(setting, ("identity", "motion"), frames)
            if who == "ours"
            else sampling.diffusers(setting, frames)
        )
    return (training.our_step if who == "ours" else training.authors_step)(setting, job)


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("who", "job", "size", "device", "given"):
        parser.add_argument(name)
    parser.add_argument("path", nargs="?")
    args = parser.parse_args()
    setting = Setting(args.size, torch.device(args.device), 1, 1, "wall", json.loads(args.given))
    if args.job == "load":
        load_unet(args.path, device=setting.device)
    else:
        run = job_of(setting, args.who, args.job)
        if args.who == "ours" and args.job != "token":
            setting.__dict__.pop("encoders", None)  # as `parking` has it: they are asked before the first step
        forget_peak(setting.device)
        run()
        run()  # the optimiser's moments are there from the second step on
    print(peak_bytes(setting.device))


if __name__ == "__main__":
    main()
