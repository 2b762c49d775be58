"""Which files of a folder, or of a list, are photographs, their masks and captions, or clips.

Folders come from other trainers, other tools and a shell's `*`. What is left out is told, by `say`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from ..safety.paths import PathLike, read_small

Say = Callable[[str], None]
"""Takes a sentence about what was left out."""

PHOTO_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif", ".heic", ".heif", ".tga"}
)
ANIMATION_SUFFIXES = frozenset({".gif", ".webp", ".apng"})
VIDEO_SUFFIXES = ANIMATION_SUFFIXES | frozenset(
    {".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".wmv", ".flv"}
    | {".3gp", ".ogv", ".vob", ".mxf", ".dv"}
)
CAPTION_SUFFIXES = (".txt", ".TXT", ".Txt", ".caption", ".CAPTION")
MASK_FOLDERS = ("masks", "mask")
# What tools add to a photograph's name for its mask.
MASK_ENDINGS = ("-masklabel", "_masklabel", "-mask", "_mask", ".mask", "-matte", "_matte")
MASK_BEGINNINGS = ("mask-", "mask_")
# What trainings write beside their file, where that lies among photographs or clips.
WRITTEN_HERE = re.compile(r".+\.(losses|steps)\.png|.+\.(token|identity|weights|motion)-\d{5,}\.gif", re.DOTALL)


def quiet(note: str) -> None:
    """Says nothing."""


# --- photographs and their masks -------------------------------------------------------------------------------------


def photograph_files(source: PathLike | Sequence[PathLike], say: Say = quiet) -> list[Path]:
    """The photographs of a folder, or of the files given, in order: without masks, captions and what else lies there.

    Of a folder that holds none itself, those of its one folder that does. Raises ValueError where there are none, for
    a folder that does not exist, and for a mask whose photograph is missing.
    """
    paths = _listed(source, PHOTO_SUFFIXES, "photographs", say)
    found = [path for path in paths if not _photograph_beside(path)]
    for path in found:
        if path.stem.casefold().endswith("masklabel"):
            raise ValueError(f"{path} is named as a mask, and its photograph is not beside it; name both alike.")
    if not found:
        raise ValueError(f"There are only masks in {paths[0].parent}, and no photographs.")
    return found


def mask_files(photos: Sequence[Path]) -> dict[Path, Path | None]:
    """The mask of each photograph, where there is one: of its name in `masks/`, or beside it with an ending such as
    `-masklabel` or `_mask`.

    Raises ValueError where masks of a folder fit no photograph and photographs are left without.
    """
    folders = {path.parent for path in photos}
    named: dict[tuple[Path, str], Path] = {}
    unfit: list[Path] = []
    for folder in sorted(folders):
        pictures = {path.stem.casefold() for path in _files_in(folder, PHOTO_SUFFIXES)}
        for mask in _masks_in(folder):
            stems = _photo_stems(mask)
            fits = [stem for stem in stems if stem in pictures]
            unfit += [] if fits else [mask]
            named.update({(folder, stem): mask for stem in fits[:1] if (folder, stem) not in named})
        for path in _files_in(folder, PHOTO_SUFFIXES):
            photo = _photograph_beside(path)
            if photo:
                named.setdefault((folder, photo.stem.casefold()), path)
    masks = {path: named.get((path.parent, path.stem.casefold())) for path in photos}
    without = [path for path, mask in masks.items() if mask is None]
    if unfit and without:
        raise ValueError(
            f"No mask in {unfit[0].parent} is named like the photograph {without[0].name}, and no photograph like the "
            f"mask {unfit[0].name}; the mask of {without[0].name} would be {without[0].stem}.png."
        )
    return masks


def _masks_in(folder: Path) -> list[Path]:
    return [mask for masks in _mask_folders(folder) for mask in _files_in(masks, PHOTO_SUFFIXES)]


def _mask_folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.name.casefold() in MASK_FOLDERS and path.is_dir())


def _photo_stems(mask: Path) -> list[str]:
    """The names, without suffix, that the photograph of a mask may have; the mask's own first."""
    stem = mask.stem.casefold()
    return _without_suffixes([stem, *_without_mark(stem)])


def _without_mark(stem: str) -> list[str]:
    """The name without what tools add to it for a mask; none where nothing is added."""
    ends = [stem.removesuffix(ending) for ending in MASK_ENDINGS if stem.endswith(ending)]
    starts = [stem.removeprefix(beginning) for beginning in MASK_BEGINNINGS if stem.startswith(beginning)]
    return list(filter(None, ends + starts))


def _without_suffixes(stems: list[str]) -> list[str]:
    """The names and, of those such as 00.jpg, what comes before the suffix."""
    return stems + [Path(stem).stem for stem in stems if Path(stem).suffix in PHOTO_SUFFIXES]


def _photograph_beside(mask: Path) -> Path | None:
    """The photograph that a file is the mask of, by their names; None for a photograph."""
    for stem in _without_suffixes(_without_mark(mask.stem.casefold())):
        for path in _files_in(mask.parent, PHOTO_SUFFIXES):
            if path.stem.casefold() == stem:
                return path
    return None


# --- clips -----------------------------------------------------------------------------------------------------------


def clip_files(source: PathLike | Sequence[PathLike], say: Say = quiet) -> list[Path]:
    """The clips of a folder, or of the files given, in order; a folder among them holds numbered frames of one clip.

    Without their masks and the twins that have the sound of a clip besides. Raises ValueError where there are none.
    """
    frames = _frame_folders(source)
    if frames:
        found = [path if path.name.strip(".") else path.resolve() for path in frames]
    else:
        listed = _listed(source, VIDEO_SUFFIXES, "videos", say)
        found = [path for path in listed if not _is_twin(path, listed, say)]
    clips = [path for path in found if not _clip_beside(path)]
    if not clips:
        raise ValueError(f"There are only masks in {found[0].parent}, and no clips.")
    return clips


def clip_masks(clips: Sequence[Path]) -> dict[Path, Path | None]:
    """The mask of each clip, where there is one: a clip of its name in `masks/`, or beside it with an ending such as
    `_mask`; of a folder of frames also the numbered pictures in its own `masks/`.

    Raises ValueError where masks of a folder fit no clip and clips are left without.
    """
    named: dict[Path, Path] = {}
    unfit: list[Path] = []
    for folder in sorted({path.parent for path in clips}):
        beside = {_clip_name(path): path for path in reversed(_clips_in(folder)) if not _clip_beside(path)}
        for mask in (mask for masks in _mask_folders(folder) for mask in _clips_in(masks)):
            fits = [beside[stem] for stem in [_clip_name(mask), *_without_mark(_clip_name(mask))] if stem in beside]
            unfit += [] if fits else [mask]
            named.update({clip: mask for clip in fits[:1] if clip not in named})
        for mask in _clips_in(folder):
            clip = _clip_beside(mask)
            if clip:
                named.setdefault(clip, mask)
    inside = {clip: list(filter(frame_files, _mask_folders(clip))) for clip in clips}
    masks = {clip: named.get(clip) or next(iter(inside[clip]), None) for clip in clips}
    without = [path for path, mask in masks.items() if mask is None]
    if unfit and without:
        raise ValueError(
            f"No mask in {unfit[0].parent} is named like the clip {without[0].name}, and no clip like the mask "
            f"{unfit[0].name}; name both alike, or leave the masks away with --no-masks."
        )
    return masks


def _clips_in(folder: Path) -> list[Path]:
    """Videos of a folder, and its folders of frames."""
    return [*_files_in(folder, VIDEO_SUFFIXES), *filter(frame_files, _subfolders(folder) if folder.is_dir() else [])]


def _clip_name(path: Path) -> str:
    return (path.name if path.is_dir() else path.stem).casefold()


def _clip_beside(mask: Path) -> Path | None:
    """The clip that a video or a folder of frames is the mask of, by their names; None for a clip."""
    stems = _without_mark(_clip_name(mask))
    return next((path for path in _clips_in(mask.parent) if stems and _clip_name(path) in stems), None)


def frame_files(folder: Path) -> list[Path]:
    """The numbered pictures of a folder, by number; none where its pictures are not the frames of one clip."""
    numbered = []
    for path in _files_in(folder, PHOTO_SUFFIXES - ANIMATION_SUFFIXES):
        match = re.fullmatch(r"(.*?)(\d+)", path.stem, re.DOTALL)
        if not match or len(match[2]) > 18:
            return []
        numbered.append((match[1], path.suffix.lower(), int(match[2]), path))
    if len(numbered) < 2 or len({named[:2] for named in numbered}) > 1:
        return []
    return [path for *_, path in sorted(numbered)]


def _frame_folders(source: PathLike | Sequence[PathLike]) -> list[Path]:
    """Folders of frames: the one given or those in it, those given, or the one whose frames are given."""
    given = [Path(source)] if isinstance(source, (str, os.PathLike)) else [Path(path) for path in source]
    if len(given) == 1 and given[0].is_dir():
        folders = given if frame_files(given[0]) else _subfolders(given[0])
        holders = [given[0], *folders]
        return [] if any(_files_in(path, VIDEO_SUFFIXES) for path in holders) else list(filter(frame_files, folders))
    if all(path.is_dir() for path in given):
        return given if all(frame_files(path) for path in given) else []
    frames = frame_files(given[0].parent)
    return [given[0].parent] if len(given) > 1 and frames and set(given) >= set(frames) else []


def _is_twin(path: Path, paths: Sequence[Path], say: Say) -> bool:
    stem = path.stem.casefold()
    beside = {other.stem.casefold(): other.name for other in paths if other.parent == path.parent}
    clip = beside.get(stem.removesuffix("-audio")) if stem.endswith("-audio") else None
    if clip:
        say(f"{path.name} is left out: it is {clip} with sound.")
    return clip is not None


# --- captions --------------------------------------------------------------------------------------------------------


def caption_of(path: Path) -> str | None:
    """The text of the `.txt` or `.caption` beside a photograph, a clip or a folder of frames, in one line.

    None where there is none or it is empty. UTF-8, and UTF-16 that says so. Raises ValueError for other texts.
    """
    stem = path.name if path.is_dir() else path.stem
    names = [*(stem + suffix for suffix in CAPTION_SUFFIXES), *(path.name + suffix for suffix in CAPTION_SUFFIXES)]
    file = next((file for file in map(path.with_name, names) if file != path and file.is_file()), None)
    if file is None or not file.stat().st_size:
        return None
    data = read_small(file)
    try:
        text = data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
        if "\0" in text:
            raise UnicodeError("UTF-16 without its mark")
    except UnicodeError as error:
        raise ValueError(f"The caption {file} is not a readable UTF-8 text; save it as UTF-8.") from error
    return " ".join(text.split()) or None


# --- folders and lists -----------------------------------------------------------------------------------------------


def _files_in(folder: Path, suffixes: frozenset[str]) -> list[Path]:
    if not folder.is_dir():
        return []
    found = (path for path in folder.iterdir() if path.suffix.lower() in suffixes and not path.name.startswith("."))
    return sorted(path for path in found if path.is_file() and not WRITTEN_HERE.fullmatch(path.name))


def _subfolders(folder: Path) -> list[Path]:
    found = (path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    return sorted(path for path in found if path.name.casefold() not in MASK_FOLDERS)


def _listed(source: PathLike | Sequence[PathLike], suffixes: frozenset[str], kind: str, say: Say) -> list[Path]:
    """The files of a kind, by suffix, of a folder or a list; what was named alone is taken as it is."""
    if not isinstance(source, (str, os.PathLike)):
        paths = [Path(path) for path in source]
        if not paths:
            raise ValueError(f"No {kind} were given.")
        if len(paths) > 1:
            return _of_kind(paths, suffixes, kind, say)
        source = paths[0]
    folder = Path(source)
    if not folder.exists():
        raise ValueError(f"{folder} does not exist.")
    if not folder.is_dir():
        return [folder]
    return _files_in(folder, suffixes) or _nested(folder, suffixes, kind, say)


def _of_kind(paths: Iterable[Path], suffixes: frozenset[str], kind: str, say: Say) -> list[Path]:
    """Those of a list that are, or claim to be, of the kind: a shell's `*` gives whatever lies in a folder."""
    found, others = [], []
    for path in paths:
        if path.suffix.lower() in suffixes and not path.is_dir() and not WRITTEN_HERE.fullmatch(path.name):
            found.append(path)
        elif not path.exists():
            raise ValueError(f"{path} does not exist.")
        elif path.name.casefold() not in MASK_FOLDERS and path.suffix not in CAPTION_SUFFIXES:
            others.append(path)
    if not found:
        given = f"{others[0]} is none" if others else "there are none among the files"
        raise ValueError(f"No {kind} were given, {given}; give the folder that holds them, or the files.")
    for path in others:
        say(
            f"{path} is left out: it is {'a folder, to be given alone' if path.is_dir() else f'not one of the {kind}'}."
        )
    return found


def _nested(folder: Path, suffixes: frozenset[str], kind: str, say: Say) -> list[Path]:
    """The files of the one folder in `folder` that holds some, as trainers keep them in folders such as 10_dog."""
    inner = {path: files for path in _subfolders(folder) if (files := _files_in(path, suffixes))}
    if not inner:
        raise ValueError(f"There are no {kind} in {folder}.")
    counts = ", ".join(f"{path.name} ({len(files)})" for path, files in inner.items())
    if len(inner) > 1:
        raise ValueError(f"There are no {kind} in {folder} itself, but in its folders {counts}: give one of them.")
    say(f"There are no {kind} in {folder} itself; those of its folder {counts} are taken.")
    return next(iter(inner.values()))
