"""Photographs with profiles and clips of every colour space come out as a screen in sRGB shows them."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from dreamvideo.media import clips, photographs

av = pytest.importorskip("av")

BARS = np.array([[230, 30, 30], [30, 200, 40], [40, 60, 220], [240, 240, 240], [128, 128, 128], [200, 170, 60]])
D50 = (0.9642, 1.0, 0.8249)
# Colourants in D50, as profiles hold them.
SRGB = ((0.4360, 0.3851, 0.1431), (0.2225, 0.7169, 0.0606), (0.0139, 0.0971, 0.7141))
ADOBE = ((0.6097, 0.2053, 0.1492), (0.3111, 0.6257, 0.0632), (0.0195, 0.0609, 0.7446))
P3 = ((0.5151, 0.2920, 0.1571), (0.2412, 0.6922, 0.0666), (-0.0011, 0.0419, 0.7841))


def fixed(value: float) -> bytes:
    return struct.pack(">i", round(value * 65536))


def icc_profile(space: bytes, gamma: float, colourants=None) -> bytes:
    """A profile of a display: matrix and one curve, or a curve alone for grey."""
    xyz = lambda numbers: b"XYZ \0\0\0\0" + b"".join(map(fixed, numbers))  # noqa: E731
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    text = b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + bytes(79)
    tags = [(b"desc", text), (b"wtpt", xyz(D50)), (b"cprt", b"text\0\0\0\0none")]
    if colourants:
        columns = np.array(colourants).T
        tags += [(name, xyz(column)) for name, column in zip((b"rXYZ", b"gXYZ", b"bXYZ"), columns, strict=True)]
        tags += [(name, curve) for name in (b"rTRC", b"gTRC", b"bTRC")]
    else:
        tags.append((b"kTRC", curve))
    table, data, at = struct.pack(">I", len(tags)), b"", 128 + 4 + 12 * len(tags)
    for name, body in tags:
        body += bytes(-len(body) % 4)
        table += struct.pack(">4sII", name, at + len(data), len(body))
        data += body
    header = struct.pack(
        ">I4sI4s4s4s12s4s", at + len(data), b"none", 0x02400000, b"mntr", space, b"XYZ ", bytes(12), b"acsp"
    )
    header += bytes(68 - len(header)) + b"".join(map(fixed, D50))
    return header.ljust(128, b"\0") + table + data


def bars(height: int = 32, width: int = 16) -> np.ndarray:
    return np.repeat(BARS[None], height, 0).repeat(width, 1).astype(np.uint8)  # [height, 6 * width, 3]


def encoded(colourants, gamma: float, pixels: np.ndarray) -> np.ndarray:
    """sRGB pixels as the numbers that show the same colours in another space."""
    signal = pixels / 255
    light = np.where(signal <= 0.04045, signal / 12.92, ((signal + 0.055) / 1.055) ** 2.4)
    other = light @ (np.linalg.inv(np.array(colourants)) @ np.array(SRGB)).T
    return (other.clip(0, 1) ** (1 / gamma) * 255).round().astype(np.uint8)


def seen(image: torch.Tensor, width: int = 16) -> np.ndarray:
    """The colour in the middle of each bar, 0..255: [6, 3]."""
    return (image[:, image.shape[1] // 2, width // 2 :: width].T * 255).numpy()


# --- photographs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("colourants", "gamma"), [(ADOBE, 2.2), (P3, 2.2), (SRGB, 1.8)])
@pytest.mark.parametrize("kind", ["png", "jpg", "tif", "webp", "transparent.png", "palette.png"])
def test_embedded_profiles_are_followed(tmp_path, colourants, gamma, kind):
    picture = Image.fromarray(encoded(colourants, gamma, bars()))
    if kind == "transparent.png":
        picture.putalpha(Image.new("L", picture.size, 255))
    if kind == "palette.png":
        picture = picture.quantize(16, dither=Image.Dither.NONE)
    options = {"jpg": {"quality": 98, "subsampling": 0}, "webp": {"lossless": True}}.get(kind, {})
    picture.save(tmp_path / f"a.{kind}", icc_profile=icc_profile(b"RGB ", gamma, colourants), **options)
    notes = []
    image = photographs.load_images(tmp_path, say=notes.append)[0].image
    assert np.abs(seen(image) - BARS).max() <= (6 if kind == "jpg" else 3) and not notes  # JPEG rounds by itself


def test_grey_profiles_are_followed(tmp_path):
    for mode in ("L", "LA"):
        Image.new("L", (20, 20), 128).convert(mode).save(tmp_path / "a.png", icc_profile=icc_profile(b"GRAY", 1.0))
        assert photographs.load_image(tmp_path / "a.png").mean() * 255 == pytest.approx(
            188, abs=2
        )  # linear, half of white


def test_colours_of_a_large_photograph_survive_its_reduction(tmp_path):
    pixels = encoded(ADOBE, 2.2, bars(64, 700))
    Image.fromarray(pixels).save(tmp_path / "a.png", icc_profile=icc_profile(b"RGB ", 2.2, ADOBE))
    image = photographs.load_image(tmp_path / "a.png")
    assert image.shape[2] == 2048
    assert np.abs(seen(image, 341) - BARS).max() <= 3


@pytest.mark.parametrize("profile", [b"nothing", icc_profile(b"GRAY", 2.2), icc_profile(b"RGB ", 2.2, SRGB)[:200]])
def test_broken_profiles_are_left_aside_and_told(tmp_path, profile):
    Image.fromarray(bars()).save(tmp_path / "a.png", icc_profile=profile)
    notes = []
    image = photographs.load_images(tmp_path, say=notes.append)[0].image
    assert np.abs(seen(image) - BARS).max() <= 1
    assert notes == ["a.png: its colour profile cannot be used and is left aside."]


def test_print_colours_go_through_their_profile(tmp_path):
    picture = Image.fromarray(bars()).convert("CMYK")
    picture.save(tmp_path / "a.tif", icc_profile=icc_profile(b"RGB ", 2.2, SRGB))  # of another space
    notes = []
    assert np.abs(seen(photographs.load_images(tmp_path, say=notes.append)[0].image) - BARS).max() <= 2
    assert len(notes) == 1


def test_a_camera_that_names_adobe_rgb_is_believed(tmp_path):
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA005] = {1: "R03"}
    picture = Image.fromarray(encoded(ADOBE, 2.2, bars()))
    picture.save(tmp_path / "a.jpg", exif=exif, quality=98, subsampling=0)
    assert np.abs(seen(photographs.load_image(tmp_path / "a.jpg")) - BARS).max() <= 3


def test_profiles_do_not_move_masks(tmp_path):
    mask = Image.new("L", (40, 30), 100)
    mask.paste(150, (10, 5, 25, 20))
    mask.putpixel((0, 0), 0)
    mask.save(tmp_path / "m.png", icc_profile=icc_profile(b"GRAY", 1.0))
    assert photographs.load_mask(tmp_path / "m.png").sum() == 15 * 15


def test_pillows_own_srgb_changes_nothing(tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(bars()).save(tmp_path / "a.png", icc_profile=profile)
    assert np.abs(seen(photographs.load_image(tmp_path / "a.png")) - BARS).max() <= 1


# --- clips -----------------------------------------------------------------------------------------------------------


def write(path, pixels: np.ndarray, matrix: int, form: str = "yuv420p", levels: int = 1, **tags: int) -> None:
    """A clip of a picture, uint8 or uint16 [H, W, 3], coded by a matrix at full (2) or limited levels, with tags."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.height, stream.width = pixels.shape[:2]
        stream.pix_fmt, stream.options = form, {"crf": "2"}
        for name, value in tags.items():
            setattr(stream.codec_context, name, value)
        for _ in range(3):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24" if pixels.dtype == np.uint8 else "rgb48le")
            frame = frame.reformat(format=form, dst_colorspace=matrix, dst_color_range=levels)
            for name, value in tags.items():
                setattr(frame, name, value)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def clip_bars(path, width: int = 16) -> np.ndarray:
    clip = clips.read_clip(path)
    assert clip.note == ""
    return seen(clip.pixels([1])[0], width)


@pytest.mark.parametrize(
    ("height", "width", "matrix"),
    [(720, 216, 1), (96, 216, 1), (480, 106, 5), (96, 16, 5), (640, 60, 5), (1280, 40, 1)],
)
def test_untagged_clips_are_high_definition_by_size(tmp_path, height, width, matrix):
    write(tmp_path / "a.mp4", bars(height, width), matrix)
    assert np.abs(clip_bars(tmp_path / "a.mp4", width) - BARS).max() <= 4


@pytest.mark.parametrize("matrix", [1, 5, 7, 9])
@pytest.mark.parametrize("levels", [1, 2])
def test_tagged_clips_are_read_by_their_tags(tmp_path, matrix, levels):
    write(tmp_path / "a.mp4", bars(), matrix, levels=levels, colorspace=matrix, color_range=levels)
    assert np.abs(clip_bars(tmp_path / "a.mp4") - BARS).max() <= 4


BT2020 = np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]])  # from BT.709, linear


def hdr_signal(curve: int) -> np.ndarray:
    """The bars as a telephone's HDR clip holds them, white paper at 203 cd/m2: uint16 [H, W, 3]."""
    signal = bars() / 255
    light = np.where(signal <= 0.04045, signal / 12.92, ((signal + 0.055) / 1.055) ** 2.4) @ BT2020.T
    if curve == 16:
        power = (light * 203 / 10_000) ** (2610 / 16384)
        out = ((3424 / 4096 + 2413 / 128 * power) / (1 + 2392 / 128 * power)) ** (2523 / 32)
    else:
        screen = light * 203 / 1000
        luminance = screen @ np.array([0.2627, 0.6780, 0.0593])
        scene = screen * (luminance[..., None] ** (1 / 1.2 - 1))
        high = 0.17883277 * np.log(np.maximum(12 * scene - 0.28466892, 1e-9)) + 0.55991073
        out = np.where(scene <= 1 / 12, np.sqrt(3 * scene), high)
    return (out.clip(0, 1) * 65535).round().astype(np.uint16)


@pytest.mark.parametrize("curve", [16, 18])
def test_hdr_clips_look_as_they_do_on_a_screen(tmp_path, curve):
    tags = {"colorspace": 9, "color_primaries": 9, "color_trc": curve}
    write(tmp_path / "a.mp4", hdr_signal(curve), 9, "yuv420p10le", **tags)
    colours = clip_bars(tmp_path / "a.mp4")
    dark = BARS.max(axis=1) <= 200
    assert np.abs(colours[dark] - BARS[dark]).max() <= 6
    assert np.abs(colours - BARS).max() <= 16  # white is a little darker, to leave room for what shines


def test_hdr_keeps_what_is_brighter_than_paper_apart():
    from dreamvideo.media.colour import _tone_mapped

    grey = np.linspace(0, 65535, 200).astype(np.uint16)[None, :, None].repeat(3, 2)
    for curve in (16, 18):
        shown = _tone_mapped(grey, curve, 9)[0]
        assert (np.diff(shown[:, 0].astype(int)) >= 0).all() and shown.max() == 255 and shown.min() == 0
        assert (shown.max(axis=1) - shown.min(axis=1)).max() <= 1


@pytest.mark.parametrize("primaries", [9, 12])
def test_wide_colours_without_hdr_are_brought_in(tmp_path, primaries):
    wide = np.array(BT2020) if primaries == 9 else np.linalg.inv(np.array(P3)) @ np.array(SRGB)
    pixels = (((bars() / 255) ** 2.4 @ wide.T).clip(0, 1) ** (1 / 2.4) * 255).round().astype(np.uint8)
    matrix = 9 if primaries == 9 else 1
    write(tmp_path / "a.mp4", pixels, matrix, colorspace=matrix, color_primaries=primaries, color_trc=1)
    assert np.abs(clip_bars(tmp_path / "a.mp4") - BARS).max() <= 6


def test_a_matrix_that_is_not_known_is_told(tmp_path):
    write(tmp_path / "a.mp4", bars(), 1, colorspace=14)
    assert "matrix 14" in clips.read_clip(tmp_path / "a.mp4").note
    assert "matrix 14" in clips.read_motion(tmp_path / "a.mp4", (32, 96), 2, 8.0).note


@pytest.mark.parametrize(
    ("name", "codec", "form"),
    [
        ("a.webm", "libvpx-vp9", "yuva420p"),
        ("a.webm", "libvpx", "yuva420p"),
        ("a.mov", "qtrle", "argb"),
        ("a.mov", "prores_ks", "yuva444p10le"),
        ("a.mov", "png", "rgba"),
        ("a.gif", None, None),
        ("a.webp", None, None),
    ],
)
def test_transparent_clips_lie_on_white_as_photographs_do(tmp_path, name, codec, form):
    pixels = np.zeros((48, 64, 4), np.uint8)
    pixels[:, 32:] = (200, 0, 0, 255)
    path = tmp_path / name
    if codec is None:
        pictures = [Image.fromarray(pixels)] * 3
        pictures[1] = Image.fromarray(pixels[::-1] // np.uint8(2) * np.uint8(2))
        options = {"lossless": True} if name == "a.webp" else {"disposal": 2}
        pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=100, **options)
    else:
        with av.open(str(path), "w") as container:
            stream = container.add_stream(codec, rate=10)
            stream.width, stream.height, stream.pix_fmt = 64, 48, form
            stream.options = {"auto-alt-ref": "0"} if "vpx" in codec else {}
            for _ in range(4):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgba").reformat(format=form)))
            container.mux(stream.encode())
    clip = clips.read_clip(path)
    assert len(clip.frames) >= 1 and clip.note == ""
    assert clip.frames[:, :, :, :24].min() >= 250
    assert (clip.frames[:, :, 8:40, 40:].float().mean(dim=(0, 2, 3)) - torch.tensor([200.0, 0, 0])).abs().max() < 8
