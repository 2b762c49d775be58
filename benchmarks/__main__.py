"""`python -m benchmarks`: runs the figures asked for, prints a table and writes it as JSON."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch

from dreamvideo.models.threads import OWN_CHOICE
from dreamvideo.safety.paths import write_json

from . import growth, imports, jobs, memory, sampling, shortcuts, threads, training
from .machine import describe
from .setting import Row, Setting
from .sizes import SIZES
from .table import print_rows

FIGURES: dict[int, tuple[str, Callable[[Setting], list[Row]]]] = {
    1: ("training steps", training.rows),
    2: ("sampling and the price of adapters", sampling.rows),
    3: ("peak memory", memory.rows),
    4: ("growth with frames and size", growth.rows),
    5: ("fraction of a matrix product", growth.fraction_rows),
    6: ("import times", imports.rows),
    7: ("single shortcuts", shortcuts.rows),
    8: ("the demo beside a busy process", threads.demo_rows),
    9: ("threads by the size of a network", threads.size_rows),
    10: ("what a sweep's driver takes", jobs.rows),
}


def main() -> None:
    args = parser().parse_args()
    device = torch.device(args.device)
    if args.threads:
        torch.set_num_threads(args.threads)
        os.environ[OWN_CHOICE[0]] = str(args.threads)  # small networks take what is asked for, too
    size = args.size or ("full" if device.type == "cuda" else "middle")
    given = {name: getattr(args, name) for name in ("pixels", "frames") if getattr(args, name)}
    setting = Setting(size, device, args.rounds, args.steps, args.clock, given, args.quick)
    about = {**describe(device), "size": size, "pixels": setting.size.pixels, "frames": setting.size.frames}
    about |= {"dtype": str(setting.dtype), "rounds": args.rounds, "clock": args.clock, "quick": args.quick}
    print(", ".join(f"{name} {value}" for name, value in about.items()), flush=True)
    found: list[Row] = []
    for number in args.figures:
        title, measure = FIGURES[number]
        began = time.perf_counter()
        rows = measure(setting)
        print(f"\n{number}. {title} ({time.perf_counter() - began:.0f} s)", flush=True)
        print_rows(rows)
        found += rows
        write_json(args.out, {"about": about, "rows": [asdict(row) for row in found]})
    print(f"\nWrote {args.out}")


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    titles = "; ".join(f"{number} {title}" for number, (title, _) in FIGURES.items())
    made.add_argument("--figures", type=int, nargs="+", choices=FIGURES, default=list(FIGURES), help=titles)
    made.add_argument("--rounds", type=int, default=5, help="timed runs of each job (default: 5)")
    made.add_argument("--steps", type=int, default=2, help="DDIM steps a round; they are alike (default: 2, paper: 50)")
    made.add_argument("--size", choices=SIZES, help="default: full on cuda, middle on the CPU")
    made.add_argument("--pixels", type=int, help="height and width (default: 256; size tiny: 64)")
    made.add_argument("--frames", type=int, help="of motion training and of sampling (default: 32; size tiny: 4)")
    made.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    made.add_argument("--threads", type=int, default=0, help="of the CPU (default: what suits each network)")
    made.add_argument("--quick", action="store_true", help="figure 8 with the demo's short form: a tenth of the steps")
    clock = "wall: seconds passed; cpu: seconds of this process, for a machine that is busy (default: wall)"
    made.add_argument("--clock", choices=("wall", "cpu"), default="wall", help=clock)
    made.add_argument(
        "--out", type=Path, default=Path("output/benchmarks.json"), help="default: output/benchmarks.json"
    )
    return made


if __name__ == "__main__":
    main()
