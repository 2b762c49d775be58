"""Photographs of a subject and the masks beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from .decoding import SHORTEST_SIDE, Size
from .folders import PathLike, Say, caption_of, mask_files, photograph_files, quiet
from .masks import cover_crop, crop_note, crop_subject, fit_mask, picture_mask
from .pictures import picture_tensor, read_mask_picture, read_picture


@dataclass(frozen=True)
class Photo:
    """A photograph [3, H, W], the mask of its subject [1, H, W] and its caption, where there are any."""

    image: Tensor
    mask: Tensor | None
    caption: str | None
    path: Path


def load_image(path: PathLike, say: Say = quiet) -> Tensor:
    """A photograph as [3, H, W] in 0..1, in sRGB: upright, composited on white, its longest side at most 2048 pixels.

    Any mode Pillow knows is read, the first picture of an animation. Raises ValueError for a missing or broken file,
    for one that holds no picture, and for more than 500 megapixels.
    """
    return picture_tensor(read_picture(Path(path), say)).float() / 255.0


def load_mask(path: PathLike, size: Size | None = None) -> Tensor:
    """A mask as [1, H, W] of zeros and ones, one on the subject: white, or opaque where the file's opacity varies.

    `size` is the photograph's: a mask of the same shape but another resolution is resized to it. Raises ValueError
    for one of another shape and for one that is all black.
    """
    mask = picture_mask(read_mask_picture(Path(path)))
    return fit_mask(mask, size or (mask.shape[-2], mask.shape[-1]), path)


def load_images(
    source: PathLike | Sequence[PathLike], size: Size | None = None, *, with_masks: bool = True, say: Say = quiet
) -> list[Photo]:
    """Photographs of a folder, or the files given, in order, with their captions and, if wanted, their masks.

    The mask of `00.jpg` is `masks/00.*` beside it or `00-masklabel.*`, `00_mask.*` and the like, its caption `00.txt`
    or `00.caption`. With `size` photographs and masks are cropped to it as they are read, so memory does not grow
    with the size of the photographs; the crop keeps what the mask marks as far as it can. `say` hears what is left
    out or cut off. Raises ValueError when there are no photographs, when masks lie there but fit none of them, and
    for unusable files.
    """
    paths = photograph_files(source, say)
    masks = mask_files(paths) if with_masks else dict.fromkeys(paths)
    return [_load_photo(path, masks[path], size, say) for path in paths]


def _load_photo(path: Path, mask_path: Path | None, size: Size | None, say: Say) -> Photo:
    image = load_image(path, say)
    height, width = image.shape[1:]
    if min(height, width) < SHORTEST_SIDE:
        raise ValueError(f"{path} is {width}x{height} pixels; a photograph needs {SHORTEST_SIDE} at least each way.")
    mask = None if mask_path is None else load_mask(mask_path, (height, width))
    if size is not None and mask is not None:
        image, mask, lost = crop_subject(image, mask, size, mask_path)
        if note := crop_note(lost, size):
            say(f"{path.name}: {note}")
    elif size is not None:
        image = cover_crop(image, *size)
    return Photo(image, mask, caption_of(path), path)
