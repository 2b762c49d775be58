"""Contact sheets: rows of pictures below their labels."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .plots import INK, loss_plot  # noqa: F401, until runs.py asks for it there

Row = tuple[str, Sequence[Tensor]]
Font = ImageFont.ImageFont | ImageFont.FreeTypeFont


def contact_sheet(rows: Iterable[Row], title: str = "", tile: int = 128) -> Tensor:
    """Rows of pictures below their labels, dark on white: [3, H, W] in 0..1.

    rows: (label, images), each image [3, h, w] in 0..1 of any size and shape; all are drawn `tile` pixels high.
    Labels wrap at the sheet's width. Raises ValueError when there is no picture at all.
    """
    strips = [(label, [_tile(image, tile) for image in images]) for label, images in rows]
    gap, margin = max(2, tile // 32), max(8, tile // 8)
    widths = [sum(t.width for t in tiles) + gap * (len(tiles) - 1) for _, tiles in strips if tiles]
    if not widths:
        raise ValueError("A contact sheet needs at least one picture.")
    text, heading = _font(max(12, tile // 9)), _font(max(15, tile // 6))
    inner = max(*widths, 3 * tile)
    blocks = [(_wrap(label, text, inner), tiles) for label, tiles in strips]
    headings = _wrap(title, heading, inner)
    height = margin + sum(_line_height(heading) for _ in headings) + (gap * 2 if headings else 0)
    for lines, tiles in blocks:
        height += len(lines) * _line_height(text) + (tile if tiles else 0) + margin
    sheet = Image.new("RGB", (inner + 2 * margin, height), "white")
    draw = ImageDraw.Draw(sheet)
    y = _write(draw, headings, heading, margin, margin) + (gap * 2 if headings else 0)
    for lines, tiles in blocks:
        y = _write(draw, lines, text, margin, y)
        x = margin
        for picture in tiles:
            sheet.paste(picture, (x, y))
            x += picture.width + gap
        y += (tile if tiles else 0) + margin
    return _to_tensor(sheet)


def few_frames(video: Tensor, most: int = 8) -> list[Tensor]:
    """At most so many frames [3, H, W] of a video [F, 3, H, W], evenly spread, for a row of pictures."""
    chosen = torch.linspace(0, len(video) - 1, min(most, len(video))).round().long()
    return list(video[chosen])


def _tile(image: Tensor, height: int) -> Image.Image:
    pixels = (image.detach().float().nan_to_num().clamp(0, 1) * 255.0).round().to(torch.uint8)
    picture = Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy())
    # A panorama or a sliver is shown in part: the row must stay readable.
    width = min(max(1, round(picture.width * height / picture.height)), 4 * height)
    return picture.resize((width, height), Image.Resampling.LANCZOS)


def _font(size: int) -> Font:
    return ImageFont.load_default(size)


def _line_height(font: Font) -> int:
    return math.ceil(font.getbbox("Ålg")[3] * 1.35)


def _wrap(text: str, font: Font, width: int) -> list[str]:
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def _write(draw: ImageDraw.ImageDraw, lines: list[str], font: Font, x: int, y: int) -> int:
    for line in lines:
        draw.text((x, y), line, fill=INK, font=font)
        y += _line_height(font)
    return y


def _to_tensor(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255.0
