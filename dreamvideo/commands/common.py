"""What the commands share: the base they work on, and paths."""

from __future__ import annotations

import os
import re
import tempfile
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import torch

from ..base import Base, open_base
from ..names import check_name, is_device
from ..sampling import latent_size
from .terminal import Terminal

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
OUTPUT = Path("output")
ADAPTER = (".safetensors",)


def open_for(args: Namespace, terminal: Terminal) -> Base:
    """The base that the arguments ask for, which the terminal is told."""
    dtype = DTYPES[args.dtype] if args.dtype else None
    base = open_base(
        args.base, unet=args.unet, clip=args.clip, vae=args.vae, device=args.device, dtype=dtype, memory=args.memory
    )
    name = "the embedded base" if base.embedded else base.files.unet
    terminal.say(f"Using {name} on {base.device} in {str(base.dtype).removeprefix('torch.')}.")
    if base.parked:
        terminal.say("The encoders lie in main memory and visit the device when they are asked.")
    return base


def training_size(args: Namespace, base: Base) -> tuple[int, int]:
    """(height, width) in pixels to train at. Raises ValueError where the UNet cannot take it."""
    size = args.height or base.defaults.height, args.width or base.defaults.width
    latent_size(base.unet, *size)
    return size


def placeholder_of(args: Namespace) -> str:
    """The name given for the subject, else one of its class word: "<my-dog>"."""
    return args.placeholder or f"<my-{'-'.join(args.class_word.split())}>"


def one_or_many(paths: Sequence[str]) -> str | Sequence[str]:
    """One path may be a folder; several are files."""
    return paths[0] if len(paths) == 1 else paths


def file_name(text: str) -> str:
    """A prompt or a placeholder as part of a file's name."""
    name = re.sub(r"\W+", "-", text).strip("-")[:60] or "untitled"
    return f"{name}-" if is_device(name) else name


def writable(path: Path, suffixes: Sequence[str]) -> Path:
    """The path, after making sure, before hours of work, that a file can be written there."""
    for part in (path, *path.parents):
        if not os.path.exists(part):
            check_name(part.name)
    if path.suffix.lower() not in suffixes:
        raise ValueError(f"{path} must end in {' or '.join(filter(None, suffixes))}.")
    if path.exists() and path.is_dir() == bool(path.suffix):
        raise ValueError(f"{path} cannot be written: it is a {'folder' if path.is_dir() else 'file'} already.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise ValueError(f"{path} cannot be written: {os.strerror(error.errno)}.") from error
    return path
