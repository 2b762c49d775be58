"""What Pillow makes of a file: one upright picture in sRGB, or the frames of an animation with their times."""

from __future__ import annotations

import math
import mmap
import re
import threading
import warnings
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor

from .colour import to_srgb
from .decoding import Frames, existing_file, source_name
from .folders import ANIMATION_SUFFIXES, PHOTO_SUFFIXES, Say, frame_files, quiet
from .times import animation_delay

# No base was trained beyond 576 pixels: larger photographs are reduced while they are decoded.
LONGEST_SIDE = 2048


MAX_PIXELS = 300_000_000


# What decoding and converting a picture may take; a pixel takes 8 bytes where its mode is not named.
MAX_DECODED_BYTES = 700_000_000


BYTES_A_PIXEL = {"I": 24, "F": 24, "I;16": 11, "I;16B": 11, "I;16L": 11, "I;16N": 11, "1": 6, "L": 6}
BYTES_A_PIXEL_OF_FORMAT = {"WEBP": 15, "JPEG2000": 15, "AVIF": 12, "HEIF": 12}  # where a decoder takes more
MAX_SCANNED_PIXELS = 1_500_000_000  # of all scans of a JPEG together: five seconds or so
_JPEG_MARKER = re.compile(rb"\xff[\x02-\xcf\xd9-\xfe]")  # of those that a segment follows, and the end
_JPEG_SCAN, _JPEG_END = b"\xff\xda", b"\xff\xd9"
# What cameras, phones and programs save photographs in. Pillow knows more, and starts other programs for some.
PHOTO_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "TGA", "PPM", "JPEG2000")


ANIMATION_FORMATS = ("GIF", "PNG", "WEBP", "AVIF")


_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")


_VIDEOS = (b"\x1aE\xdf\xa3", b"RIFF", b"FLV", b"OggS", b"\x00\x00\x01")
_PICTURES = (b"GIF8", b"\x89PNG", b"\xff\xd8\xff")


_EXIF_INTEROPERABILITY = 0xA005


_PILLOW_LIMIT = threading.Lock()


def read_picture(path: Path, tell: Say = quiet) -> Image.Image:
    """The picture in mode RGB or RGBA with 8 bits, in sRGB, upright, its longest side at most LONGEST_SIDE.

    Raises ValueError for a missing or damaged file, one that is no picture, and one beyond MAX_PIXELS.
    """
    with _open_picture(path) as picture:
        adobe_rgb = _says_adobe_rgb(picture)
        profile = picture.info.get("icc_profile") if picture.mode not in ("LAB", "HSV", "YCbCr") else None
        plain = _decoded(picture, path)
    converted, note = to_srgb(plain, profile, adobe_rgb=adobe_rgb)
    if note:
        tell(f"{path.name}: {note}.")
    return converted


def _says_adobe_rgb(picture: Image.Image) -> bool:
    """Cameras that follow DCF name Adobe RGB in their EXIF and embed no profile."""
    with suppress(Exception):  # what is broken there says nothing
        return str(picture.getexif().get_ifd(_EXIF_INTEROPERABILITY).get(1)).startswith("R03")
    return False


def read_mask_picture(path: Path) -> Image.Image:
    """The picture as `read_picture` gives it, in mode L, LA, RGB, RGBA or CMYK, its levels as the file holds them."""
    with _open_picture(path) as picture:
        return _decoded(picture, path)


def _decoded(picture: Image.Image, path: Path) -> Image.Image:
    """Upright and reduced, in 8 bits and the colours of the file."""
    whole = picture.size
    try:
        scale = min(1.0, LONGEST_SIDE / max(whole))
        size = max(1, round(whole[0] * scale)), max(1, round(whole[1] * scale))
        picture.draft(None, size)  # JPEG decodes at an eighth, a quarter or half of the size where that suffices
        _check_work(path, picture, whole)
        plain = _eight_bits(picture)
        if plain.size != size:
            plain = plain.resize(size, Image.Resampling.BOX, reducing_gap=2.0)
    except _TooLarge:
        raise
    except MemoryError as error:
        raise _TooLarge(f"{path} is {whole[0]}x{whole[1]} pixels, for which memory is short; scale it down.") from error
    except Exception as error:  # a decoder fails in as many ways as there are formats
        raise _unreadable(path) from error
    _turn_upright(plain, picture)
    return plain


def _turn_upright(plain: Image.Image, source: Image.Image) -> None:
    """In place, by the EXIF of the file it is made of."""
    with suppress(Exception):  # what is broken there says nothing
        orientation = source.getexif()[ExifTags.Base.Orientation]
        plain.info = {}  # so that of the file's EXIF nothing else is read and written again
        plain.getexif()[ExifTags.Base.Orientation] = orientation
        ImageOps.exif_transpose(plain, in_place=True)


def _open_picture(path: Path | BytesIO) -> Image.Image:
    if isinstance(path, Path):
        existing_file(path)
    else:
        path.seek(0)
    try:
        # Pillow's own limit is a module variable and below what cameras reach today; ours is asked right after.
        with _PILLOW_LIMIT, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            try:
                picture = _open_heic(path) if _is_heic(_beginning(path)) else Image.open(path, formats=_formats())
            finally:
                Image.MAX_IMAGE_PIXELS = limit
    except ImportError as error:
        raise ValueError(
            f"{source_name(path)} is a HEIC picture, which needs the package pillow-heif (pip install pillow-heif); "
            "or save it as JPEG."
        ) from error
    except Exception as error:
        raise _unreadable(path) from error
    width, height = picture.size
    if width * height > MAX_PIXELS:
        picture.close()
        raise _TooLarge(
            f"{source_name(path)} is {width}x{height} pixels, more than {MAX_PIXELS // 10**6} million; scale it down."
        )
    return picture


def _formats() -> list[str]:
    """Those of PHOTO_FORMATS that this Pillow can read."""
    Image.init()
    return [name for name in PHOTO_FORMATS if name in Image.OPEN]


def _open_heic(path: Path | BytesIO) -> Image.Image:
    from pillow_heif import HeifImageFile  # turns the picture upright itself

    return HeifImageFile(path)


def _is_heic(beginning: bytes) -> bool:
    return beginning[4:8] == b"ftyp" and beginning[8:12] in _HEIC_BRANDS


def _beginning(source: Path | BytesIO) -> bytes:
    if isinstance(source, BytesIO):
        source.seek(0)
        return source.read(12)
    with source.open("rb") as file:
        return file.read(12)


class _TooLarge(ValueError):
    """A picture that is whole and asks for too much."""


def _check_work(source: Path | BytesIO, picture: Image.Image, whole: tuple[int, int]) -> None:
    """Raise ValueError for a picture that takes too much memory or time to decode. whole: its size before `draft`."""
    scans = _jpeg_scans(source) if picture.format in ("JPEG", "MPO") else 1
    # All coefficients of a JPEG of several scans are held before the first pixel is made.
    width, height = whole if scans > 1 else picture.size
    most = MAX_DECODED_BYTES // max(
        BYTES_A_PIXEL.get(picture.mode, 8), BYTES_A_PIXEL_OF_FORMAT.get(picture.format or "", 0)
    )
    if width * height > most:
        kind = f"in a {picture.format} of mode {picture.mode}"
        raise _TooLarge(
            f"{source_name(source)} is {width}x{height} pixels, more than {most // 10**6} million {kind}; "
            "scale it down."
        )
    if scans > 1 and scans * width * height > MAX_SCANNED_PIXELS:
        raise _TooLarge(
            f"{source_name(source)} is a JPEG of {scans} or more scans over {width}x{height} pixels, which takes too "
            "long to decode; save it again as PNG or JPEG."
        )


def _jpeg_scans(source: Path | BytesIO) -> int:
    """How many times the data of a JPEG go over its pixels; counted to a thousand."""
    if isinstance(source, BytesIO):
        return _count_scans(source.getvalue())
    with source.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return _count_scans(data)


def _count_scans(data: bytes | mmap.mmap) -> int:
    scans, at = 0, 2
    while scans < 1000 and (marker := _JPEG_MARKER.search(data, at)) and marker[0] != _JPEG_END:
        scans += marker[0] == _JPEG_SCAN
        at = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2], "big")
    return scans


def _unreadable(path: Path | BytesIO) -> ValueError:
    return ValueError(
        f"{source_name(path)} is not a picture that can be read, or is damaged; save it again as PNG or JPEG."
    )


def _eight_bits(picture: Image.Image) -> Image.Image:
    """Any mode -> L, CMYK or RGB, or LA or RGBA where something may be transparent."""
    mode = picture.mode
    if mode.startswith("I;16"):
        values = np.asarray(picture)
        wide = values.max() > 255  # else a mask or picture of 8 bits that was saved with 16
        return Image.fromarray((values >> 8 if wide else values).astype(np.uint8))
    if mode in ("I", "F"):  # nothing says where white is
        values = np.asarray(picture, dtype=np.float32)
        brightest = values.max(initial=0, where=np.isfinite(values))
        whites = (255.0, 65535.0) if mode == "I" else (1.0, 255.0, 65535.0)
        white = next((white for white in whites if brightest <= white), brightest)
        values = np.nan_to_num(values, posinf=white, neginf=0)
        return Image.fromarray((values / white * 255.0).clip(0, 255).astype(np.uint8))
    if mode == "LAB":
        from PIL import ImageCms

        profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        return ImageCms.buildTransform(*profiles, "LAB", "RGB").apply(picture)
    if mode in ("La", "RGBa"):
        picture = picture.convert(mode.upper())
    if picture.mode in ("LA", "RGBA") or (picture.mode in ("CMYK", "RGB", "L") and not picture.has_transparency_data):
        return picture.copy()  # the file's own goes with the file
    if picture.has_transparency_data:
        return picture.convert("RGBA")
    return picture.convert("L" if mode == "1" else "RGB")


def picture_tensor(picture: Image.Image) -> Tensor:
    """A picture in mode RGB or RGBA, composited on white, as uint8 [3, H, W]."""
    if picture.mode == "RGBA":
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()


def is_picture(source: Path | BytesIO) -> bool:
    """Whether Pillow is to read the frames rather than FFmpeg, by what the file begins with, or by its name."""
    beginning = _beginning(source)
    if beginning.startswith(_PICTURES) or (beginning[:4] == b"RIFF" and beginning[8:] == b"WEBP"):
        return True
    if beginning[4:8] == b"ftyp":
        return beginning[8:12] in (*_HEIC_BRANDS, b"avif", b"avis")
    known = beginning.startswith(_VIDEOS)
    return isinstance(source, Path) and not known and source.suffix.lower() in ANIMATION_SUFFIXES | PHOTO_SUFFIXES


def animation_frames(
    source: Path | BytesIO, start: float = 0.0, seconds: float | None = None, tell: Say = quiet
) -> Frames:
    """Frames of an animated picture and the seconds at which they appear; None for a damaged one.

    With `start` and `seconds` those of that stretch alone.
    """
    with _open_picture(source) as picture:
        now, end = 0.0, math.inf if seconds is None else start + seconds
        count = getattr(picture, "n_frames", 1) if picture.format in ANIMATION_FORMATS else 1
        hidden = count > 1 and getattr(picture, "default_image", False)  # for programs that do not know APNG
        for index in range(int(hidden), count):
            try:
                picture.seek(index)
                _check_work(source, picture, picture.size)
                picture.load()
            except _TooLarge:
                raise
            except Exception:  # as in read_picture; what came before is good
                yield None, 0.0
                return
            if now >= end:
                return
            if now >= start:
                yield lambda: picture_tensor(to_srgb(_eight_bits(picture), picture.info.get("icc_profile"))[0]), now
            now += animation_delay(picture.info.get("duration") or 0)


def folder_frames(folder: Path, fps: float, tell: Say = quiet) -> Frames:
    """The numbered pictures of a folder as the frames of a clip at this rate."""
    files = frame_files(folder)
    tell(f"The {len(files)} pictures of {folder.name} are taken as {fps:g} frames a second.")
    for index, path in enumerate(files):
        yield lambda path=path: picture_tensor(read_picture(path)), index / fps
