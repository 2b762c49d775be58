"""`evaluate`: the paper's comparison on the embedded base, or the paper's metrics of a user's own videos."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import torch

from ..evaluation.metrics import load_embedders, score_video, summarise
from ..media.clips import find_clips, read_clip
from ..media.photographs import load_images
from ..nano import comparison, report, suite
from ..safety.paths import check_writable, keep_apart, read_small, write_json
from ..safety.texts import quoted
from ..sweep.bases import BaseSpec
from ..sweep.costs import Costs
from ..sweep.job import Job
from ..sweep.on_ray import RayExecutor
from ..sweep.progress import Progress
from ..training.loop import Callbacks
from .common import OUTPUT, open_for
from .engines import placed, ray_for, spec_for
from .errors import explain
from .terminal import Terminal, duration

SEPARATOR = "|||"


def evaluate(args: Namespace, terminal: Terminal) -> None:
    if bool(args.suite) == bool(args.videos):
        raise ValueError("Say what to evaluate: --suite nano, or --videos with --prompts.")
    if args.suite:
        _suite(args, terminal)
    else:
        _videos(args, terminal)


def _suite(args: Namespace, terminal: Terminal) -> None:
    scale = suite.QUICK if args.quick else suite.FULL
    out = args.out or OUTPUT / ("comparison-quick" if args.quick else "comparison")
    check_writable(*(out / name for name in report.FILES))
    known = {table.number: table for table in comparison.TABLES}
    unknown = [number for number in args.table if number not in known]
    if unknown:
        raise ValueError(f"There is no table {quoted(unknown[0])}; there are {', '.join(known)}.")
    base = open_for(args, terminal)
    tools = suite.Tools(
        base,
        out,
        scale,
        report=terminal.say,
        training=lambda what: Callbacks(progress=terminal.training(what)),
        sampling=terminal.sampling,
    )
    asked = set(args.table or known) | report.written_tables(out)  # others stay beside what was asked for, to be read
    wanted = [table for number, table in known.items() if number in asked]
    with ray_for(args, out, terminal) as workers:
        results = suite.measure(
            tools, wanted, explain, None if workers is None else _elsewhere(args, workers, terminal)
        )
    tables = [table for number, table in known.items() if number in results]
    seconds = suite.seconds_spent(out)
    written = report.write(out, tables, results, scale, seconds)
    terminal.say(f"Wrote {' and '.join(map(str, written))}; {duration(seconds)} of work.")


def _elsewhere(args: Namespace, workers: RayExecutor, terminal: Terminal) -> suite.Elsewhere:
    """Ray's workers for the comparison, and the line that tells how far they are."""

    def following(jobs: Sequence[Job]) -> Progress:
        return Progress(jobs, Costs(), workers, duration, terminal.progress)

    spec = spec_for(args) or BaseSpec(**placed(args))
    return suite.Elsewhere(workers, spec, following)


def _videos(args: Namespace, terminal: Terminal) -> None:
    """Every line of the prompts' file names a video of the folder and, in words, what it should show."""
    if args.prompts is None:
        raise ValueError("--videos needs --prompts, a file with lines such as: video.mp4|||a dog is dancing")
    prompts = _read_prompts(args.prompts)
    if args.out:
        scores = args.out / "scores.json"
        keep_apart([scores], [args.prompts, *(args.videos / name for name in prompts)])
        check_writable(scores)
    for name in prompts:
        find_clips(args.videos / name, frames=2)
    targets = _photographs(args.images, terminal) if args.images else None
    embedders = load_embedders(args.clip_weights, args.dino_weights, args.device or "cpu")
    scores = {}
    for name, prompt in prompts.items():
        clip = read_clip(args.videos / name)
        if clip.note:
            terminal.say(clip.note)
        scores[name] = score_video(clip.pixels(), prompt, targets, embedders)
        terminal.say(f"{name}: " + ", ".join(f"{metric} {value:.4f}" for metric, value in scores[name].items()))
    summary = summarise(list(scores.values()))
    for metric, value in summary.items():
        terminal.say(f"{metric}: {value['mean']:.4f} ({value['low']:.4f} to {value['high']:.4f})")
    if args.out:
        write_json(args.out / "scores.json", {"videos": scores, "summary": summary})


def _read_prompts(path: Path) -> dict[str, str]:
    try:
        lines = read_small(path).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a UTF-8 text of prompts; save it as UTF-8.") from error
    prompts = {}
    for number, line in enumerate(lines, start=1):
        name, separator, prompt = (part.strip() for part in line.partition(SEPARATOR))
        if line.strip() and not (name and separator and prompt):
            raise ValueError(f"Line {number} of {path} is not of the form video.mp4{SEPARATOR}a dog is dancing.")
        if name:
            prompts[name] = prompt
    if not prompts:
        raise ValueError(f"{path} names no video.")
    return prompts


def _photographs(folder: Path, terminal: Terminal) -> torch.Tensor:
    """The subject's photographs as one batch: squares of 512 pixels, of which the metrics see 224."""
    photos = load_images(str(folder), (512, 512), with_masks=False, say=terminal.say)
    return torch.stack([photo.image for photo in photos])
