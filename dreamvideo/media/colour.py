"""Colours as a screen in sRGB shows them: photographs with a profile, clips of every colour space.

Pillow and FFmpeg give the numbers of a file; without what the file says about them they are other colours.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

# Chromaticities (x, y) of red, green and blue; all with D65 as white. Numbers are those of ITU-T H.273.
_BT709, _BT2020, _P3_THEATRE, _P3 = 1, 9, 11, 12
_ADOBE = "Adobe RGB"
_PRIMARIES = {
    _BT709: ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060)),
    _BT2020: ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046)),
    _P3_THEATRE: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),
    _P3: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),
    _ADOBE: ((0.640, 0.330), (0.210, 0.710), (0.150, 0.060)),
}
_D65 = (0.3127, 0.3290)
_PQ, _HLG = 16, 18
# Matrices of H.273 that FFmpeg's scaler knows -> its own number.
_MATRICES = {1: 1, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9}
_UNSPECIFIED = 2
# Luminances in cd/m2: of white paper in HDR (BT.2408), and of the screen that HLG is made for.
_HDR_WHITE, _HLG_PEAK = 203.0, 1000.0
_KNEE = 0.75  # of white, in linear light: what is brighter is compressed
_LEVELS = 65535
_STRIP_PIXELS = 1 << 19


# --- photographs -----------------------------------------------------------------------------------------------------


def to_srgb(picture: Image.Image, profile: bytes | None, *, adobe_rgb: bool = False) -> tuple[Image.Image, str]:
    """A picture in mode L, LA, RGB, RGBA or CMYK as RGB or RGBA in sRGB, and a note where its profile is of no use.

    profile: the ICC profile that the file embeds. adobe_rgb: a camera says so without embedding one.
    """
    if profile:
        try:
            return _through_profile(picture, profile), ""
        except Exception:  # littlecms and Pillow tell of broken profiles in several ways
            return _plain(picture), "its colour profile cannot be used and is left aside"
    plain = _plain(picture)
    if not adobe_rgb:
        return plain, ""
    pixels = np.array(plain)
    light = (pixels[..., :3] / np.float32(255)) ** np.float32(2.19921875)
    pixels[..., :3] = (_srgb_curve(_in_bt709(light, _ADOBE)) * 255).round()
    return Image.fromarray(pixels), ""


def _plain(picture: Image.Image) -> Image.Image:
    return picture.convert("RGBA" if picture.mode in ("LA", "RGBA") else "RGB")


def _through_profile(picture: Image.Image, profile: bytes) -> Image.Image:
    from PIL import ImageCms

    source = ImageCms.ImageCmsProfile(BytesIO(profile))
    alpha = picture.getchannel("A") if picture.mode in ("LA", "RGBA") else None
    colours = picture.convert(picture.mode[:-1]) if alpha else picture
    space = source.profile.xcolor_space.strip()  # pyright: ignore[reportAttributeAccessIssue]  # Pillow types it as a file
    if space == "RGB" and colours.mode == "L":
        colours = colours.convert("RGB")
    transform = ImageCms.buildTransform(
        source,
        ImageCms.createProfile("sRGB"),
        colours.mode,
        "RGB",
        ImageCms.Intent.RELATIVE_COLORIMETRIC,
        ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )
    converted = transform.apply(colours)
    if alpha:
        converted.putalpha(alpha)
    return converted


# --- clips -----------------------------------------------------------------------------------------------------------


def frame_pixels(frame: Any, codec: Any, width: int, height: int) -> np.ndarray:
    """A decoded frame of PyAV at this size in sRGB, on white where it is transparent: uint8 [height, width, 3].

    codec: the stream's context, whose tags count where the frame has none.
    """
    options: dict[str, Any] = {"width": width, "height": height}
    if not frame.format.is_rgb:
        options["src_colorspace"] = _matrix(frame, codec)
    curve, primaries = _tag(frame, codec, "color_trc"), _tag(frame, codec, "color_primaries")
    if curve in (_PQ, _HLG):
        pixels = frame.to_ndarray(format="rgb48le", **options)
        return _by_strips(lambda strip: _tone_mapped(strip, curve, primaries), pixels)
    if any(component.is_alpha for component in frame.format.components):
        return _by_strips(_on_white, frame.to_ndarray(format="rgba", **options))
    pixels = frame.to_ndarray(format="rgb24", **options)
    if primaries in _PRIMARIES and primaries != _BT709:
        return _by_strips(lambda strip: _brought_in(strip, primaries), pixels)
    return pixels


def frame_note(frame: Any, codec: Any) -> str:
    """What cannot be done about the colours of a frame; empty where they come out right."""
    matrix, curve = _tag(frame, codec, "colorspace"), _tag(frame, codec, "color_trc")
    if codec.codec_tag in ("dvh1", "dvhe", "dav1") and curve not in (_PQ, _HLG):
        return "its Dolby Vision colours cannot be converted and come out wrong; export it as SDR"
    if not frame.format.is_rgb and matrix not in _MATRICES and matrix not in (0, _UNSPECIFIED):
        return f"its colours are coded in a way not known here (matrix {matrix}) and may come out wrong"
    return ""


def _tag(frame: Any, codec: Any, name: str) -> int:
    found = (int(getattr(source, name, None) or _UNSPECIFIED) for source in (frame, codec))
    return next((tag for tag in found if tag != _UNSPECIFIED), _UNSPECIFIED)


def _matrix(frame: Any, codec: Any) -> int:
    """From YUV to RGB: as tagged, else as players guess it, high definition by BT.709 and less by BT.601."""
    tagged = _MATRICES.get(_tag(frame, codec, "colorspace"))
    if tagged is not None:
        return tagged
    if _tag(frame, codec, "color_primaries") == _BT2020 or _tag(frame, codec, "color_trc") in (_PQ, _HLG):
        return 9
    high = max(frame.width, frame.height) >= 1280 or min(frame.width, frame.height) > 576
    return 1 if high else 5


def _by_strips(convert: Callable[[np.ndarray], np.ndarray], pixels: np.ndarray) -> np.ndarray:
    """The picture converted a few rows at a time: numbers in floating point take many times its memory."""
    rows = max(1, _STRIP_PIXELS // pixels.shape[1])
    return np.concatenate([convert(pixels[row : row + rows]) for row in range(0, len(pixels), rows)])


def _brought_in(pixels: np.ndarray, primaries: int) -> np.ndarray:
    """Wide colours, uint8 [H, W, 3], as near as those of BT.709 come."""
    light = (pixels / np.float32(255)) ** np.float32(2.4)
    return (_in_bt709(light, primaries) ** np.float32(1 / 2.4) * 255).round().astype(np.uint8)


def _on_white(pixels: np.ndarray) -> np.ndarray:
    """RGBA uint8 [H, W, 4] composited as photographs are: [H, W, 3]."""
    opacity = pixels[..., 3:].astype(np.uint16)
    return ((pixels[..., :3] * opacity + 255 * (255 - opacity) + 127) // 255).astype(np.uint8)


def _tone_mapped(pixels: np.ndarray, curve: int, primaries: int) -> np.ndarray:
    """HDR uint16 [H, W, 3] -> sRGB uint8: white paper stays nearly white, what is brighter is compressed below it."""
    light = _light_of(curve)[pixels]  # [H, W, 3]
    if curve == _HLG:  # its light is the scene's; a screen shows it with more contrast
        scene = light @ np.array([0.2627, 0.6780, 0.0593], np.float32)
        light = light * (np.maximum(scene, 1e-6) ** np.float32(0.2))[..., None]
    light *= np.float32((_HLG_PEAK if curve == _HLG else 10_000.0) / _HDR_WHITE)
    light = np.maximum(light @ _to_bt709(primaries if primaries in _PRIMARIES else _BT2020).T, 0)
    brightest = np.maximum(light.max(axis=-1, keepdims=True), 1e-6)
    room = np.float32(1 - _KNEE)
    shown = np.where(brightest > _KNEE, 1 - room * np.exp(-(brightest - _KNEE) / room), brightest)
    return (_srgb_curve(light * (shown / brightest)) * 255).round().astype(np.uint8)


@cache
def _light_of(curve: int) -> np.ndarray:
    """The linear light 0..1 of every 16-bit level: float32 [65536]."""
    signal = np.linspace(0, 1, _LEVELS + 1)
    if curve == _PQ:  # SMPTE ST 2084
        m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
        root = signal ** (1 / m2)
        return ((np.maximum(root - c1, 0) / (c2 - c3 * root)) ** (1 / m1)).astype(np.float32)
    a, b, c = 0.17883277, 0.28466892, 0.55991073  # ARIB STD-B67
    return np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12).astype(np.float32)


def _srgb_curve(light: np.ndarray) -> np.ndarray:
    """Linear light -> sRGB's signal, both 0..1."""
    light = light.clip(0, 1)
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** np.float32(1 / 2.4) - 0.055)


def _in_bt709(light: np.ndarray, primaries: int | str) -> np.ndarray:
    return (light @ _to_bt709(primaries).T).clip(0, 1)


@cache
def _to_bt709(primaries: int | str) -> np.ndarray:
    """Linear light [3] in these primaries -> in those of BT.709 and sRGB: float32 [3, 3]."""
    return (np.linalg.inv(_to_xyz(_BT709)) @ _to_xyz(primaries)).astype(np.float32)


def _to_xyz(primaries: int | str) -> np.ndarray:
    columns = np.array([(x / y, 1.0, (1 - x - y) / y) for x, y in _PRIMARIES[primaries]]).T
    x, y = _D65
    return columns * np.linalg.solve(columns, np.array([x / y, 1.0, (1 - x - y) / y]))
