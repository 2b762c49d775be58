"""Draws docs/icon.png, the pack's picture in ComfyUI's registry: python docs/draw_icon.py"""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw

SIZE, SCALE = 400, 4  # pixels of the file; it is drawn larger and scaled down, for smooth edges
GROUND, HILL, CAP, STEM, DOT = "#1d2440", "#2f8f6b", "#ff5a4f", "#ffe9c9", "#fff6e6"
TRAIL = ((78, 262, 0.22), (118, 186, 0.38), (180, 132, 0.6), (262, 128, 1.0))  # x, y, opacity: a toy that jumps


def toy(opacity: float) -> Image.Image:
    """A mushroom in the middle of a transparent picture."""
    picture = Image.new("RGBA", (SIZE * SCALE, SIZE * SCALE))
    draw, middle = ImageDraw.Draw(picture), SIZE * SCALE // 2

    def box(x: float, y: float, wide: float, high: float) -> tuple[float, ...]:
        return tuple(middle + SCALE * value for value in (x - wide / 2, y - high / 2, x + wide / 2, y + high / 2))

    draw.rounded_rectangle(box(0, 48, 62, 92), radius=26 * SCALE, fill=STEM)
    draw.pieslice(box(0, 16, 172, 172), 180, 360, fill=CAP)
    draw.rounded_rectangle(box(0, 18, 172, 30), radius=15 * SCALE, fill=CAP)
    for x, y, wide in ((-40, -10, 34), (6, -36, 40), (48, -2, 28)):
        draw.ellipse(box(x, y, wide, wide), fill=DOT)
    for x in (-13, 13):
        draw.ellipse(box(x, 50, 9, 14), fill=GROUND)
    picture.putalpha(picture.getchannel("A").point(lambda value: round(value * opacity)))
    return picture


def icon() -> Image.Image:
    """The toy's way over a hill, on a square with round corners."""
    picture = Image.new("RGBA", (SIZE * SCALE, SIZE * SCALE), GROUND)
    draw = ImageDraw.Draw(picture)
    draw.ellipse([SCALE * value for value in (-120, 300, 520, 720)], fill=HILL)
    for number, (x, y, opacity) in enumerate(TRAIL):
        tilt = 40 * (1 - number / (len(TRAIL) - 1))
        turned = toy(opacity).rotate(tilt, Image.Resampling.BICUBIC)
        size = round((0.62 + 0.38 * number / (len(TRAIL) - 1)) * SIZE * SCALE)
        turned = turned.resize((size, size), Image.Resampling.LANCZOS)
        picture.alpha_composite(_placed(turned, x * SCALE - size // 2, y * SCALE - size // 2))
    corners = Image.new("L", picture.size)
    ImageDraw.Draw(corners).rounded_rectangle((0, 0, *picture.size), radius=72 * SCALE, fill=255)
    picture.putalpha(corners)
    return picture.resize((SIZE, SIZE), Image.Resampling.LANCZOS)


def _placed(picture: Image.Image, x: int, y: int) -> Image.Image:
    whole = Image.new("RGBA", (SIZE * SCALE, SIZE * SCALE))
    whole.paste(picture, (x, y))
    return whole


if __name__ == "__main__":
    icon().quantize(128).save(Path(__file__).with_name("icon.png"), optimize=True)
