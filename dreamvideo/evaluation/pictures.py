"""Pictures that tell how a run went: contact sheets and loss curves, drawn with Pillow alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

INK, GREY, FAINT = "#202124", "#80868b", "#e4e6e9"
# Told apart by the colour-blind, dark enough for thin lines on white (Okabe and Ito's palette).
CURVE_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")

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


def loss_plot(losses: Mapping[str, Sequence[float]], width: int = 960, height: int = 540) -> Tensor:
    """Loss per step on a logarithmic axis, one colour a name, [3, H, W] in 0..1.

    losses: name -> the loss of steps 1, 2, .... The raw values are faint; over them lies their running mean over a
    twentieth of the steps. Values that are not finite and positive are left out.
    """
    scale = 2  # drawn twice as large and reduced: Pillow does not smooth lines
    image = Image.new("RGB", (width * scale, height * scale), "white")
    draw = ImageDraw.Draw(image)
    font = _font(13 * scale)
    curves = {name: _finite(values) for name, values in losses.items()}
    curves = {name: curve for name, curve in curves.items() if len(curve[0])}
    steps = max((len(values) for values in losses.values()), default=0)
    if not curves:
        draw.text((width * scale / 2, height * scale / 2), "no losses yet", fill=GREY, font=font, anchor="mm")
        return _to_tensor(image.resize((width, height), Image.Resampling.BOX))
    left, top, right, bottom = 64 * scale, 40 * scale, (width - 20) * scale, (height - 44) * scale
    low, high = _log_range(curves)

    def place(x: np.ndarray | list[int], y: np.ndarray) -> list[tuple[float, float]]:
        across = left + (np.asarray(x, dtype=float) - 1) / max(1, steps - 1) * (right - left)
        down = bottom - (np.log10(y) - low) / (high - low) * (bottom - top)
        return list(zip(across.tolist(), down.tolist(), strict=True))

    for value in _log_ticks(low, high):
        (_, y), *_ = place([1], np.array([value]))
        draw.line([(left, y), (right, y)], fill=FAINT, width=scale)
        draw.text((left - 8 * scale, y), f"{value:g}", fill=INK, font=font, anchor="rm")
    for step in _step_ticks(steps):
        (x, _), *_ = place([step], np.array([10**low]))
        draw.line([(x, bottom), (x, bottom + 5 * scale)], fill=INK, width=scale)
        draw.text((x, bottom + 8 * scale), f"{step:,}", fill=INK, font=font, anchor="mt")
    draw.text((right, bottom + 26 * scale), "step", fill=GREY, font=font, anchor="rt")
    draw.text((left - 56 * scale, 8 * scale), "loss", fill=GREY, font=font, anchor="lt")

    colours = {name: CURVE_COLOURS[k % len(CURVE_COLOURS)] for k, name in enumerate(curves)}
    for name, (x, y) in curves.items():
        _curve(draw, place(x, y), _mixed_with_white(colours[name], 0.75), scale)
    for name, (x, y) in curves.items():
        _curve(draw, place(x, _running_mean(y)), colours[name], 3 * scale)
    draw.line([(left, top), (left, bottom), (right, bottom)], fill=INK, width=scale)
    _legend(draw, colours, font, left, 14 * scale, scale)
    return _to_tensor(image.resize((width, height), Image.Resampling.BOX))


def bar_plot(groups: Mapping[str, Mapping[str, float]], title: str, width: int = 960, height: int = 480) -> Tensor:
    """Bars from 0 upwards, [3, H, W] in 0..1: one block a group, one colour a name, the value above each bar.

    groups: group -> name -> value, at least 0. Raises ValueError where there is no value.
    """
    values = [value for bars in groups.values() for value in bars.values()]
    if not values:
        raise ValueError("A bar plot needs at least one value.")
    image = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(image)
    small, large = _font(14), _font(18)
    left, top, right, bottom = 24, 84, width - 24, height - 44
    names = list(dict.fromkeys(name for bars in groups.values() for name in bars))
    colours = {name: CURVE_COLOURS[k % len(CURVE_COLOURS)] for k, name in enumerate(names)}
    draw.text((left, 14), title, fill=INK, font=large)
    _legend(draw, colours, small, left, 46, 1)
    slots = len(values) + len(groups)  # each group is followed by a gap as wide as a bar
    x, step = float(left) + (right - left) / slots / 2, (right - left) / slots
    for group, bars in groups.items():
        start = x
        for name, value in bars.items():
            y = bottom - (bottom - top - 20) * value / max([*values, 1e-12])
            draw.rectangle([x + 2, y, x + step - 2, bottom], fill=colours[name])
            draw.text((x + step / 2, y - 4), f"{value:.3g}", fill=INK, font=small, anchor="mb")
            x += step
        draw.text(((start + x) / 2, bottom + 10), group, fill=INK, font=small, anchor="mt")
        x += step
    draw.line([(left, bottom), (right, bottom)], fill=INK)
    return _to_tensor(image)


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


def _finite(values: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Steps from 1 and losses, without those a logarithm cannot show."""
    losses = np.asarray(values, dtype=float)
    keep = np.isfinite(losses) & (losses > 0)
    return np.flatnonzero(keep) + 1, losses[keep]


def _running_mean(values: np.ndarray) -> np.ndarray:
    reach = len(values) // 40
    sums = np.cumsum(np.concatenate([[0.0], values]))
    steps = np.arange(len(values))
    starts, ends = np.maximum(steps - reach, 0), np.minimum(steps + reach + 1, len(values))
    return (sums[ends] - sums[starts]) / (ends - starts)


def _log_range(curves: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> tuple[float, float]:
    values = np.concatenate([y for _, y in curves.values()])
    low, high = math.log10(values.min()), math.log10(values.max())
    room = max(0.05 * (high - low), 0.02)
    return low - room, high + room


def _log_ticks(low: float, high: float) -> list[float]:
    decades = range(math.floor(low), math.ceil(high) + 1)
    # The finer the range, the more digits a decade shows.
    for digits in ((1,), (1, 2, 5), range(1, 10), [1 + k / 10 for k in range(90)], [1 + k / 100 for k in range(900)]):
        ticks = [digit * 10.0**decade for decade in decades for digit in digits]
        ticks = [tick for tick in ticks if low <= math.log10(tick) <= high]
        if len(ticks) >= 4:
            break
    return ticks[:: math.ceil(len(ticks) / 10)] if ticks else []


def _step_ticks(steps: int) -> list[int]:
    if steps <= 10:
        return list(range(1, steps + 1))
    rough = steps / 8
    unit = 10 ** math.floor(math.log10(rough))
    spacing = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough)
    return [1, *range(spacing, steps + 1, spacing)]


def _curve(draw: ImageDraw.ImageDraw, points: list[tuple[float, float]], colour: str, width: int) -> None:
    if len(points) > 1:
        draw.line(points, fill=colour, width=width, joint="curve")
    else:
        (x, y), *_ = points
        draw.ellipse([x - 2 * width, y - 2 * width, x + 2 * width, y + 2 * width], fill=colour)


def _mixed_with_white(colour: str, share: float) -> str:
    channels = (int(colour[k : k + 2], 16) for k in (1, 3, 5))
    return "#" + "".join(f"{round(c + (255 - c) * share):02x}" for c in channels)


def _legend(draw: ImageDraw.ImageDraw, colours: Mapping[str, str], font: Font, x: float, y: float, scale: int) -> None:
    for name, colour in colours.items():
        draw.line([(x, y + 7 * scale), (x + 22 * scale, y + 7 * scale)], fill=colour, width=3 * scale)
        draw.text((x + 28 * scale, y + 7 * scale), name, fill=INK, font=font, anchor="lm")
        x += 28 * scale + font.getlength(name) + 22 * scale


def _to_tensor(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255.0
