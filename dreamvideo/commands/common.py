"""What the commands share: the base they work on, and paths."""

from __future__ import annotations

import os
import re
import unicodedata
from argparse import Namespace
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch

from ..base import Base, FoundBase, look_at_base, open_base
from ..files.base import PARTS, find_base
from ..media.folders import PHOTO_SUFFIXES, VIDEO_SUFFIXES
from ..safety.locks import reserved
from ..safety.names import check_name, is_device
from ..safety.paths import check_writable
from ..sampling import latent_size
from ..training.cache import default_cache
from .terminal import Terminal

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
OUTPUT = Path("output")
ADAPTER = (".safetensors",)
MEDIA = PHOTO_SUFFIXES | VIDEO_SUFFIXES | {".txt", ".caption"}


def found_for(args: Namespace) -> FoundBase:
    """The base that the arguments ask for, looked at and not yet read."""
    return look_at_base(args.base, **{part: getattr(args, part) for part in PARTS})


def open_for(args: Namespace, terminal: Terminal, found: FoundBase | None = None) -> Base:
    """The base that the arguments ask for, which the terminal is told. found: of `found_for`."""
    base = open_base(
        args.base,
        unet=args.unet,
        clip=args.clip,
        vae=args.vae,
        motion_module=args.motion_module,
        device=args.device,
        dtype=DTYPES[args.dtype] if args.dtype else None,
        encoder_dtype=DTYPES[args.encoder_dtype] if args.encoder_dtype else None,
        memory=args.memory,
        say=terminal.say,
        found=found,
    )
    name = "the embedded base" if base.embedded or base.files is None else base.files.unet
    terminal.say(f"Using {name} on {base.device} in {str(base.dtype).removeprefix('torch.')}.")
    return base


def cache_for(args: Namespace) -> Path | None:
    """Where what is encoded is kept for the next run; None for nowhere."""
    return None if args.no_cache else default_cache()


def training_size(args: Namespace, base: Base | FoundBase) -> tuple[int, int]:
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
    """A prompt or a placeholder as part of a file's name: at most 60 characters and 120 bytes; emoji by their names."""
    spelled = "".join(f" {unicodedata.name(c, '').lower()} " if unicodedata.category(c) == "So" else c for c in text)
    name = re.sub(r"\W+", "-", spelled).strip("-")[:60]
    name = name.encode()[:120].decode(errors="ignore").rstrip("-") or "untitled"
    return f"{name}-" if is_device(name) else name


def writable(path: Path, suffixes: Sequence[str]) -> Path:
    """The path, after making sure, before hours of work, that a file can be written there."""
    check_suffix(path, suffixes)
    check_writable(path)
    return path


def check_suffix(path: Path, suffixes: Sequence[str]) -> None:
    """Raise ValueError for a name that ends in none of the suffixes, or that some system does not take."""
    for part in (path, *path.parents):
        if part.name != ".." and not os.path.exists(part):  # pathlib's raises for a name that is too long
            check_name(part.name)
    if path.suffix.lower() not in suffixes:
        raise ValueError(f"{path} must end in {' or '.join(filter(None, suffixes))}.")


@contextmanager
def output_folder(given: Path | None, default: Path, names: Sequence[str]) -> Iterator[Path]:
    """The folder given or, where none is, the first of DEFAULT, DEFAULT-2, ... that is empty; its files can be written.

    names: of the files that will be.
    """
    with nullcontext(given) if given else reserved(default) as folder:
        check_writable(*(folder / name for name in names))
        yield folder


def base_files(args: Namespace) -> Iterator[Path]:
    """The files that the arguments name as a base."""
    parts = {part: getattr(args, part) for part in PARTS}
    if args.base or any(parts.values()):
        files = find_base(args.base, **parts, partial=True)
        yield from files.present.values()


def base_options(args: Namespace) -> list[str]:
    """The arguments that named the base, as another command takes them."""
    names = ("base", *PARTS)
    return [
        text for name in names if (path := getattr(args, name)) for text in (f"--{name.replace('_', '-')}", str(path))
    ]


def media_files(paths: Iterable[str | Path | None]) -> Iterator[Path]:
    """The files given, and all media and captions below the folders given."""
    for path in map(Path, filter(None, paths)):
        if path.is_dir():
            yield from (file for file in path.rglob("*") if file.suffix.lower() in MEDIA)
        else:
            yield path
