"""`check`: a report on this machine and base, for a bug report."""

from __future__ import annotations

from argparse import Namespace

from ..base import Base
from ..safety.paths import keep_apart, write_text
from .common import base_files, open_for, writable
from .terminal import Terminal


def check(args: Namespace, terminal: Terminal) -> None:
    from ..check import check as run_check

    if args.out:
        writable(args.out, (".txt", ".md", ""))
        keep_apart([args.out], base_files(args))

    def opened() -> Base:
        return open_for(args, terminal)

    def progress(done: int, total: int, title: str) -> None:
        terminal.say(f"{done + 1}/{total} {title} ...")

    report = run_check(opened, memory=args.memory, progress=progress)
    if args.out:
        write_text(args.out, report.text)
    terminal.say(f"\n{report.text}")
    if args.out:
        terminal.say(f"Wrote {args.out}")
