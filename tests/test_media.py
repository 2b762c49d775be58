"""Pictures and videos of every make, read, cropped, chosen from and written."""

from __future__ import annotations

import os
import struct
import wave
import weakref
from fractions import Fraction
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dreamvideo.media import clips, masks, photographs, times, videos, writing

SHARED = Path(__file__).parents[2] / "shared" / "media"


def gradient(width: int = 40, height: int = 30) -> Image.Image:
    """Red rises to the right, green downwards."""
    y, x = np.mgrid[0:height, 0:width]
    return Image.fromarray(np.stack([x * 255 // width, y * 255 // height, 0 * x + 64], 2).astype(np.uint8))


def tensor(picture: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1) / 255.0


def moving_square(frames: int = 12, height: int = 32, width: int = 48) -> torch.Tensor:
    video = torch.full((frames, 3, height, width), 0.2)
    for k in range(frames):
        video[k, :, 8:24, 2 * k : 2 * k + 12] = 0.9
    return video


def encode(path, frames: torch.Tensor, times_ms, aspect: Fraction | None = None) -> None:
    """An mp4 whose frames appear at the given milliseconds."""
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=1000)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[2:], "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        stream.codec_context.qmax = 3
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        for pixels, time in zip((frames * 255).byte().permute(0, 2, 3, 1).numpy(), times_ms, strict=True):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


# --- photographs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "suffix", "tolerance"),
    [
        ("RGB", "png", 0.0),
        ("RGB", "webp", 0.1),
        ("RGBA", "png", 0.0),
        ("P", "gif", 0.2),
        ("P", "png", 0.2),
        ("CMYK", "tif", 0.005),
        ("CMYK", "jpg", 0.05),
        ("YCbCr", "jpg", 0.05),
    ],
)
def test_colour_of_any_mode_is_read(tmp_path, mode, suffix, tolerance):
    path = tmp_path / f"photo.{suffix}"
    gradient().convert(mode).save(path, quality=98, exact=True)
    image = photographs.load_image(path)
    assert image.shape == (3, 30, 40) and image.dtype == torch.float32
    assert (image - tensor(gradient())).abs().max() <= tolerance


@pytest.mark.parametrize(
    ("kind", "suffix"), [("1", "png"), ("L", "png"), ("LA", "png"), ("16", "png"), ("I", "tif"), ("F", "tif")]
)
def test_grey_of_any_depth_is_read(tmp_path, kind, suffix):
    values = np.tile(np.array([[0, 255]], dtype=np.uint8).repeat(10, 1), (8, 1))
    if kind == "16":
        picture = Image.fromarray(values.astype(np.uint16) * 257)
    elif kind == "I":
        picture = Image.fromarray(values.astype(np.int32) * 257)
    elif kind == "F":
        picture = Image.fromarray(values.astype(np.float32) / 255)
    else:
        picture = Image.fromarray(values).convert(kind)
    path = tmp_path / f"photo.{suffix}"
    picture.save(path)
    torch.testing.assert_close(photographs.load_image(path), torch.from_numpy(values / 255.0).float().expand(3, -1, -1))


def test_infinite_pixels_are_white_and_darken_no_others(tmp_path):
    values = np.array([[0.0, 0.5, 1.0, np.inf, -np.inf, np.nan]], dtype=np.float32).repeat(4, 0)
    Image.fromarray(values).save(tmp_path / "a.tif")
    assert (photographs.load_image(tmp_path / "a.tif")[0, 0] * 255).round().tolist() == [0, 127, 255, 255, 0, 0]


def test_transparency_is_composited_on_white(tmp_path):
    half_red = Image.new("RGBA", (4, 4), (255, 0, 0, 128))
    half_red.save(tmp_path / "half.png")
    torch.testing.assert_close(
        photographs.load_image(tmp_path / "half.png")[:, 0, 0], torch.tensor([1.0, 0.498, 0.498]), atol=0.005, rtol=0
    )
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([0, 0, 0, 255, 0, 0])
    palette.save(tmp_path / "palette.png", transparency=0)
    assert (photographs.load_image(tmp_path / "palette.png") == 1.0).all()


@pytest.mark.parametrize("suffix", ["png", "tif"])  # of which Pillow turns the second itself
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_the_photograph_upright(tmp_path, orientation, suffix):
    inverse = {5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE}
    inverse |= {8: Image.Transpose.ROTATE_270, 2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180}
    inverse |= {4: Image.Transpose.FLIP_TOP_BOTTOM}
    stored = gradient().transpose(inverse[orientation]) if orientation in inverse else gradient()
    exif = Image.Exif()
    exif[274] = orientation
    stored.save(tmp_path / f"photo.{suffix}", exif=exif)
    torch.testing.assert_close(photographs.load_image(tmp_path / f"photo.{suffix}"), tensor(gradient()))


@pytest.mark.parametrize(
    "damaged",
    [
        b"Exif\0\0",
        b"Exif\0\0no header of a TIFF",
        b"Exif\0\0II*\0\xff\xff\xff\xff",  # a directory beyond the end
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x63\0\0\0\0\0\0\0",  # orientation 99
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x02\0\0\0six\0\0\0\0\0",  # orientation "si"
    ],
)
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_a_damaged_exif_turns_nothing(tmp_path, damaged, suffix):
    plain = tmp_path / f"plain.{suffix}"
    gradient().save(plain)
    gradient().save(tmp_path / f"damaged.{suffix}", exif=damaged)
    found = photographs.load_image(tmp_path / f"damaged.{suffix}")
    torch.testing.assert_close(found, photographs.load_image(plain))


def test_huge_and_tiny_photographs_are_read(tmp_path):
    gradient(20_000, 40).save(tmp_path / "wide.jpg")
    image = photographs.load_image(tmp_path / "wide.jpg")
    assert image.shape == (3, 4, 2048)
    assert image[0, :, 0].max() < 0.02 and image[0, :, -1].min() > 0.98
    assert masks.cover_crop(image, 64, 64).shape == (3, 64, 64)
    gradient(1, 1).save(tmp_path / "dot.png")
    dot = photographs.load_image(tmp_path / "dot.png")
    assert dot.shape == (3, 1, 1) and masks.cover_crop(dot, 8, 8).shape == (3, 8, 8)
    with pytest.raises(ValueError, match=r"dot\.png is 1x1 pixels"):
        photographs.load_images([tmp_path / "dot.png"])


def test_absurd_sizes_are_refused_before_decoding(tmp_path):
    limit = Image.MAX_IMAGE_PIXELS
    (tmp_path / "bomb.ppm").write_bytes(b"P5 90000 90000 255\n")
    with pytest.raises(ValueError, match=r"90000x90000 pixels, more than 300 million"):
        photographs.load_image(tmp_path / "bomb.ppm")
    assert limit == Image.MAX_IMAGE_PIXELS


def test_files_that_are_no_pictures_get_one_sentence(tmp_path):
    (tmp_path / "text.jpg").write_text("not a picture")
    (tmp_path / "empty.jpg").write_bytes(b"")
    gradient(200, 200).save(tmp_path / "whole.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:900])
    wrong = {"text.jpg": "not a picture", "empty.jpg": "is empty", "cut.jpg": "damaged", "none.jpg": "does not exist"}
    for name, sentence in wrong.items():
        with pytest.raises(ValueError, match=sentence) as caught:
            photographs.load_image(tmp_path / name)
        assert name in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="is not a file"):
        photographs.load_image(tmp_path)


# --- masks -----------------------------------------------------------------------------------------------------------


def square_mask(width: int = 40, height: int = 30, white: int = 255) -> Image.Image:
    mask = Image.new("L", (width, height))
    mask.paste(white, (10, 5, 25, 20))
    return mask


def test_masks_are_binary_whatever_says_subject(tmp_path):
    expected = (tensor(square_mask())[:1] > 0.5).float()
    square_mask().save(tmp_path / "white.png")
    square_mask(white=1).save(tmp_path / "label.png")
    alpha = gradient().copy()
    alpha.putalpha(square_mask())
    alpha.save(tmp_path / "alpha.png")
    palette = square_mask(white=1).convert("L")
    palette = Image.fromarray(np.array(palette)).convert("P")
    palette.putpalette([0, 0, 0, 128, 0, 0])  # as DAVIS paints its masks
    palette.save(tmp_path / "palette.png")
    Image.fromarray(np.array(square_mask()).astype(np.uint16)).save(tmp_path / "wide.png")
    for name in ("white", "label", "alpha", "palette", "wide"):
        assert torch.equal(photographs.load_mask(tmp_path / f"{name}.png", (30, 40)), expected), name


def test_mask_of_another_resolution_is_resized_and_of_another_shape_refused(tmp_path):
    square_mask(80, 60).save(tmp_path / "large.png")
    assert photographs.load_mask(tmp_path / "large.png", (30, 40)).shape == (1, 30, 40)
    with pytest.raises(ValueError, match="is 80x60 pixels, its photograph 40x40"):
        photographs.load_mask(tmp_path / "large.png", (40, 40))


def test_black_masks_are_refused(tmp_path):
    Image.new("L", (40, 30)).save(tmp_path / "black.png")
    with pytest.raises(ValueError, match="all black"):
        photographs.load_mask(tmp_path / "black.png")


def test_mask_at_latent_resolution_is_nearest_and_never_empty():
    mask = torch.zeros(2, 1, 64, 64)
    mask[0, :, :32], mask[1, :, 20:28, 20:28] = 1.0, 1.0
    small = masks.mask_to_latent(mask, 8, 8)
    assert small.shape == (2, 1, 8, 8) and set(small.unique().tolist()) == {0.0, 1.0}
    assert (small[0, :, :4] == 1).all() and (small[0, :, 4:] == 0).all() and small[1].sum() == 1
    mask[1] = 0.0
    mask[1, :, 0, 0] = 1.0
    with pytest.raises(ValueError, match="too little"):
        masks.mask_to_latent(mask, 8, 8)


# --- folders ---------------------------------------------------------------------------------------------------------


def test_photographs_come_with_masks_and_captions(tmp_path):
    (tmp_path / "masks").mkdir()
    for name in ("b.png", "a.JPG", "c.webp"):
        gradient().save(tmp_path / name)
    square_mask().save(tmp_path / "masks" / "a.png")
    (tmp_path / "b.txt").write_text("\ufeffa toy\n  on grass \n", encoding="utf-8")
    (tmp_path / ".hidden.png").write_text("left by another program")
    photos = photographs.load_images(tmp_path)
    assert [photo.path.name for photo in photos] == ["a.JPG", "b.png", "c.webp"]
    assert [photo.caption for photo in photos] == [None, "a toy on grass", None]
    assert photos[0].mask is not None and photos[0].mask.shape == (1, 30, 40)
    assert photos[1].mask is None and photos[2].mask is None
    cropped = photographs.load_images([tmp_path / "a.JPG"], size=(16, 16))[0]
    assert cropped.image.shape == (3, 16, 16) and cropped.mask.shape == (1, 16, 16)
    assert set(cropped.mask.unique().tolist()) == {0.0, 1.0}


def test_unwanted_masks_are_not_even_read(tmp_path):
    (tmp_path / "masks").mkdir()
    Image.new("RGB", (40, 40), "red").save(tmp_path / "00.png")
    (tmp_path / "masks" / "00.png").write_text("no picture")
    with pytest.raises(ValueError, match="00.png"):
        photographs.load_images(tmp_path)
    assert [photo.mask for photo in photographs.load_images(tmp_path, with_masks=False)] == [None]


def test_photograph_and_mask_are_turned_and_cropped_alike(tmp_path):
    (tmp_path / "masks").mkdir()
    exif = Image.Exif()
    exif[274] = 6
    picture = Image.merge("RGB", [square_mask(33, 71)] * 3)
    picture.save(tmp_path / "a.png", exif=exif)
    picture.save(tmp_path / "masks" / "a.png", exif=exif)
    photo = photographs.load_images(tmp_path, size=(32, 40))[0]
    assert (photo.mask - photo.image[:1]).abs().max() <= 0.5
    picture.transpose(Image.Transpose.ROTATE_270).save(tmp_path / "masks" / "a.png")
    assert torch.equal(photographs.load_images(tmp_path, size=(32, 40))[0].mask, photo.mask)


def test_folders_without_use_get_one_sentence(tmp_path):
    with pytest.raises(ValueError, match="no photographs in"):
        photographs.load_images(tmp_path)
    with pytest.raises(ValueError, match="no videos in"):
        clips.find_clips(tmp_path)
    with pytest.raises(ValueError, match="does not exist"):
        photographs.load_images(tmp_path / "none")
    with pytest.raises(ValueError, match="No photographs were given"):
        photographs.load_images([])
    gradient().save(tmp_path / "a.png")
    (tmp_path / "masks").mkdir()
    square_mask().save(tmp_path / "masks" / "other.png")
    with pytest.raises(ValueError, match=r"the mask of a\.png would be a\.png"):
        photographs.load_images(tmp_path)


# --- cropping --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(16, 16), (12, 40), (33, 7), (64, 64)])
def test_crop_shows_the_centre_undistorted(height, width):
    crop = masks.cover_crop(tensor(gradient(400, 300)), height, width)
    assert crop.shape == (3, height, width) and crop.min() >= 0 and crop.max() <= 1
    scale = max(height / 300, width / 400)
    column = (torch.arange(width) + 0.5 - width / 2) / scale + 200  # where each column lies in the original
    row = (torch.arange(height) + 0.5 - height / 2) / scale + 150
    torch.testing.assert_close(crop[0].mean(0), column / 400, atol=0.015, rtol=0)
    torch.testing.assert_close(crop[1].mean(1), row / 300, atol=0.015, rtol=0)


def test_crop_is_antialiased_and_keeps_dtype_and_batch():
    stripes = torch.zeros(2, 3, 64, 64)
    stripes[..., ::2] = 1.0
    small = masks.cover_crop(stripes, 16, 16)
    assert small.shape == (2, 3, 16, 16) and (small - 0.5).abs().max() < 0.1
    whole = masks.cover_crop((stripes * 255).byte(), 16, 16)
    assert whole.dtype == torch.uint8 and (whole.float() / 255 - small).abs().max() < 0.01
    assert torch.equal(masks.cover_crop(stripes, 64, 64), stripes)
    with pytest.raises(ValueError, match="cannot be cropped"):
        masks.cover_crop(stripes, 0, 16)


# --- clips -----------------------------------------------------------------------------------------------------------


def test_video_comes_back_as_written(tmp_path):
    frames = moving_square()
    writing.write_video(tmp_path / "clip.mp4", frames, fps=8)
    (tmp_path / "clip.txt").write_text("a square moves right")
    (path,) = clips.find_clips(tmp_path)
    clip = clips.read_clip(path)
    assert clip.frames.dtype == torch.uint8 and clip.frames.shape == (12, 3, 32, 48)
    assert clip.fps == pytest.approx(8) and clip.caption == "a square moves right" and clip.note == ""
    torch.testing.assert_close(clip.times, torch.arange(12, dtype=torch.float64) / 8)
    assert (clip.pixels() - frames).abs().mean() < 0.02
    assert torch.equal(clip.pixels([3, 3]), clip.pixels()[[3, 3]])
    assert sorted(os.listdir(tmp_path)) == ["clip.mp4", "clip.txt"]


@pytest.mark.parametrize(("height", "width"), [(33, 47), (48, 20), (32, 31)])
def test_odd_and_portrait_sizes_are_padded_by_a_pixel_at_most(tmp_path, height, width):
    frames = torch.rand((1, 3, 1, 1), generator=torch.Generator().manual_seed(0)).expand(3, 3, height, width)
    writing.write_video(tmp_path / "clip.mp4", frames)
    clip = clips.read_clip(tmp_path / "clip.mp4")
    assert clip.frames.shape == (3, 3, height + height % 2, width + width % 2)
    assert (clip.pixels() - frames[:1, :, :1, :1]).abs().max() < 0.03  # the added row and column too
    assert clips.read_clip(tmp_path / "clip.mp4", (24, 40)).frames.shape == (3, 3, 24, 40)


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
def test_animations_come_back_as_written(tmp_path, suffix):
    frames = moving_square()
    writing.write_animation(tmp_path / f"clip{suffix}", frames, fps=8)
    clip = clips.read_clip(tmp_path / f"clip{suffix}")
    assert clip.frames.shape == frames.shape and clip.fps == pytest.approx(8, rel=0.01)
    assert (clip.times - torch.arange(12) / 8).abs().max() < 0.006
    assert (clip.pixels() - frames).abs().mean() < 0.03


def test_animation_keeps_its_own_times_and_white_ground(tmp_path):
    pictures = [Image.new("RGBA", (20, 20), (0, 0, 200, 255 * k)) for k in (0, 1, 0, 1)]
    pictures[0].save(tmp_path / "clip.png", save_all=True, append_images=pictures[1:], duration=[50, 200, 100, 0])
    clip = clips.read_clip(tmp_path / "clip.png", (16, 16))
    torch.testing.assert_close(clip.times, torch.tensor([0.0, 0.05, 0.25, 0.35], dtype=torch.float64))
    assert clip.frames[:, 0].flatten(1).float().mean(1).tolist() == [255, 0, 255, 0]


def test_variable_frame_rate_is_honoured(tmp_path):
    shown = [0, 100, 200, 300, 1300, 1400, 1500, 1600]
    encode(tmp_path / "clip.mp4", moving_square(8), shown)
    clip = clips.read_clip(tmp_path / "clip.mp4")
    torch.testing.assert_close(clip.times, torch.tensor(shown) / 1000.0, check_dtype=False, atol=2e-3, rtol=0)
    choice = times.choose_frames(clip.times, 6, target_fps=4)
    assert choice.indices.tolist() == [0, 2, 3, 3, 3, 3]  # on screen at 0, 0.25, 0.5, ...
    assert choice.fps == pytest.approx(4) and choice.note == ""
    assert times.choose_frames(clip.times, 6, target_fps=4, start=0.3).indices.tolist() == [3, 3, 3, 3, 4, 6]


def test_video_is_turned_as_the_camera_was_held(tmp_path):
    frames = torch.zeros(4, 3, 32, 48)
    frames[..., :24] = 1.0
    writing.write_video(tmp_path / "clip.mp4", frames)
    data = bytearray((tmp_path / "clip.mp4").read_bytes())
    upright = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    clockwise = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30)
    at = data.index(upright, data.index(b"tkhd"))
    data[at : at + 36] = clockwise
    (tmp_path / "clip.mp4").write_bytes(data)
    clip = clips.read_clip(tmp_path / "clip.mp4").pixels()
    assert clip.shape == (4, 3, 48, 32)
    assert clip[:, :, :20].min() > 0.9 and clip[:, :, 28:].max() < 0.1  # what was left is now at the top


def test_pixels_become_square(tmp_path):
    encode(tmp_path / "clip.mp4", moving_square(3), [0, 100, 200], aspect=Fraction(2, 1))
    assert clips.read_clip(tmp_path / "clip.mp4").frames.shape == (3, 3, 32, 96)


def test_truncated_video_says_what_is_left(tmp_path):
    noise = torch.rand((20, 3, 32, 48), generator=torch.Generator().manual_seed(0))
    writing.write_video(tmp_path / "clip.mp4", noise)
    data = (tmp_path / "clip.mp4").read_bytes()
    (tmp_path / "clip.mp4").write_bytes(data[: len(data) // 2])
    clip = clips.read_clip(tmp_path / "clip.mp4")
    assert 2 < len(clip.frames) < 18
    assert clip.note == f"clip.mp4 is damaged: {len(clip.frames)} frames of it can be read and are used."


def test_clip_that_exceeds_memory_is_cut(tmp_path, monkeypatch):
    writing.write_video(tmp_path / "clip.mp4", moving_square())
    monkeypatch.setattr(clips, "MAX_CLIP_BYTES", 5 * 3 * 32 * 48 + 1)
    clip = clips.read_clip(tmp_path / "clip.mp4")
    assert len(clip.frames) == 5 and "first 5 frames" in clip.note
    assert len(clips.read_clip(tmp_path / "clip.mp4", (16, 24)).frames) == 12


def test_videos_of_no_use_get_one_sentence(tmp_path):
    av = pytest.importorskip("av")
    (tmp_path / "text.mp4").write_text("not a video" * 100)
    (tmp_path / "empty.mp4").write_bytes(b"")
    with wave.open(str(tmp_path / "sound.avi"), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(bytes(16000))
    with av.open(str(tmp_path / "bare.avi"), "w") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.height, stream.width, stream.pix_fmt = 32, 32, "yuv420p"
        container.start_encoding()
    writing.write_video(tmp_path / "whole.mp4", moving_square())
    (tmp_path / "cut.mp4").write_bytes((tmp_path / "whole.mp4").read_bytes()[:300])
    (tmp_path / "text.gif").write_text("not a gif")
    wrong = {
        "text.mp4": "not a video",
        "empty.mp4": "is empty",
        "sound.avi": "no picture track",
        "bare.avi": "no frames",
        "cut.mp4": "no picture track",
        "text.gif": "not a picture",
        "none.mp4": "does not exist",
    }
    for name, sentence in wrong.items():
        with pytest.raises(ValueError, match=sentence) as caught:
            clips.read_clip(tmp_path / name)
        assert name in str(caught.value) and "\n" not in str(caught.value)


# --- clips thinned out while they are read ---------------------------------------------------------------------------


def write_clip(folder, kind: str) -> Path:
    frames = torch.rand((40, 3, 24, 40), generator=torch.Generator().manual_seed(0))
    path = folder / ("clip.gif" if kind == "animation" else "clip.mp4")
    if kind == "animation":
        writing.write_animation(path, frames, fps=20)
    elif kind == "variable":
        encode(path, frames, [40 * k + 25 * (k % 3 == 1) for k in range(40)])
    else:
        writing.write_video(path, frames[: 5 if kind == "short" else 40], fps=30)
    if kind == "damaged":
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 2])
    return path


@pytest.mark.parametrize("kind", ["even", "variable", "short", "damaged", "animation"])
@pytest.mark.parametrize(("frames", "fps"), [(2, 8.0), (12, 8.0), (4, 60.0)])
def test_thinning_while_reading_gives_the_frames_that_thinning_afterwards_gives(tmp_path, kind, frames, fps):
    path = write_clip(tmp_path, kind)
    whole = clips.read_clip(path, (16, 24))
    choice = times.thin_out(whole.times, frames, fps)
    clip = clips.read_motion(path, (16, 24), frames, fps)
    assert torch.equal(clip.frames, whole.frames[choice.indices]) and clip.fps == choice.fps
    assert clip.note == " ".join(note for note in (whole.note, choice.note) if note)
    assert len(clip.times) == len(clip.frames) >= frames


def test_frames_that_are_left_out_never_become_pixels(tmp_path, monkeypatch):
    writing.write_video(tmp_path / "clip.mp4", moving_square(60), fps=30)
    alive, upright = weakref.WeakSet(), videos._upright
    seen = []

    def counted(frame, stream):
        pixels = upright(frame, stream)
        alive.add(pixels)
        seen.append(len(alive))
        return pixels

    monkeypatch.setattr(videos, "_upright", counted)
    clip = clips.read_motion(tmp_path / "clip.mp4", (16, 24), 4, 8.0)
    assert len(seen) == len(clip.frames) == 16 and max(seen) <= 2


def test_a_stretch_of_a_video_and_its_bytes_are_read(tmp_path):
    path = tmp_path / "clip.mp4"
    writing.write_video(path, moving_square(30), fps=10)
    whole, size = clips.read_clip(path).frames, (32, 48)
    for start, seconds, frames in ((0.0, None, range(30)), (1.0, None, range(10, 30)), (1.5, 0.7, range(15, 22))):
        for source in (path, str(path), BytesIO(path.read_bytes())):
            clip = clips.read_motion(source, size, 2, 10.0, start=start, seconds=seconds)
            assert torch.equal(clip.frames, whole[list(frames)]) and clip.note == ""
    with pytest.raises(ValueError, match=r"clip\.mp4 has no frames"):
        clips.read_motion(path, size, 2, 10.0, start=9.0)
    with pytest.raises(ValueError, match="The video is not a video"):
        clips.read_motion(BytesIO(b"nothing" * 100), size, 2, 10.0)


def test_only_frames_that_are_kept_count_as_memory(tmp_path, monkeypatch):
    writing.write_video(tmp_path / "clip.mp4", moving_square(40), fps=20)
    monkeypatch.setattr(clips, "MAX_CLIP_BYTES", 11 * 3 * 32 * 48)
    assert clips.read_motion(tmp_path / "clip.mp4", (32, 48), 2, 5.0).note == ""  # 10 of the 40
    clip = clips.read_motion(tmp_path / "clip.mp4", (32, 48), 2, 10.0)
    assert len(clip.frames) == 11 and clip.note.startswith("Only the first 22 frames of clip.mp4")


def test_clips_are_tried_before_any_is_read_whole(tmp_path):
    writing.write_video(tmp_path / "a.mp4", moving_square(4))
    writing.write_animation(tmp_path / "b.gif", moving_square(1))
    assert [path.name for path in clips.find_clips(tmp_path)] == ["a.mp4", "b.gif"]
    with pytest.raises(ValueError, match=r"b\.gif holds a single frame"):
        clips.find_clips(tmp_path / "b.gif", frames=8)
    (tmp_path / "b.gif").write_text("no picture")
    with pytest.raises(ValueError, match=r"b\.gif is not a picture"):
        clips.find_clips(tmp_path, frames=8)
    with pytest.raises(ValueError, match=r"c\.mp4 does not exist"):
        clips.find_clips([tmp_path / "a.mp4", tmp_path / "c.mp4"])


# --- choosing frames -------------------------------------------------------------------------------------------------


def at_rate(frames: int, fps: float) -> torch.Tensor:
    return torch.arange(frames, dtype=torch.float64) / fps


def test_target_rate_is_kept_where_the_clip_is_long_enough():
    choice = times.choose_frames(at_rate(250, 25), 32, 8.0)
    assert choice.fps == pytest.approx(8) and choice.note == ""
    assert (choice.indices - torch.arange(32) * 25 / 8).abs().max() < 1
    assert times.choose_frames(at_rate(64, 8), 32).indices.tolist() == list(range(32))


@pytest.mark.parametrize("fps", [24, 29.97, 30])
def test_rounded_timestamps_skip_and_repeat_nothing(fps):
    milliseconds = (at_rate(40, fps) * 1000).round() / 1000  # webm, gif
    assert times.choose_frames(milliseconds, 32, fps).indices.tolist() == list(range(32))


def test_start_is_random_and_reaches_every_possible_place():
    firsts = {
        int(times.choose_frames(at_rate(36, 8), 32, generator=torch.Generator().manual_seed(k)).indices[0])
        for k in range(60)
    }
    assert firsts == {0, 1, 2, 3, 4}
    one = [times.choose_frames(at_rate(99, 30), 9, generator=torch.Generator().manual_seed(5)) for _ in range(2)]
    assert torch.equal(one[0].indices, one[1].indices)
    assert times.choose_frames(at_rate(64, 8), 8, start=2.0).indices.tolist() == list(range(16, 24))
    assert times.choose_frames(at_rate(64, 8), 8, start=99.0).indices.tolist() == list(range(56, 64))


def test_short_clip_is_taken_whole_at_a_higher_rate():
    choice = times.choose_frames(at_rate(32, 20), 32, 8.0, generator=torch.Generator().manual_seed(0))
    assert choice.indices.tolist() == list(range(32)) and choice.fps == pytest.approx(20)
    assert "too short" in choice.note
    choice = times.choose_frames(at_rate(60, 30), 32, 8.0)
    assert choice.indices[0] == 0 and choice.indices[-1] >= 57 and (choice.indices.diff() > 0).all()
    assert choice.fps == pytest.approx(16)


def test_too_few_frames_are_repeated_evenly_in_their_order():
    choice = times.choose_frames(at_rate(12, 10), 32)
    assert (choice.indices.diff() >= 0).all()
    assert set(choice.indices.bincount().tolist()) == {2, 3}  # each shown, none held
    assert "12 frames where 32 were asked" in choice.note


def test_slow_clip_is_not_made_to_stutter():
    choice = times.choose_frames(at_rate(100, 5), 32, 8.0)
    assert choice.indices.tolist() == list(range(32)) and choice.fps == pytest.approx(5)
    assert "only 5 frames a second" in choice.note


@pytest.mark.parametrize("fps", [5, 7.3, 8, 12, 23.976, 60])
@pytest.mark.parametrize("frames", [2, 9, 31, 32, 33, 34, 67, 100, 101, 500])
def test_any_clip_gives_as_many_frames_as_asked(frames, fps):
    for count in (1, 8, 32):
        choice = times.choose_frames(at_rate(frames, fps), count, generator=torch.Generator().manual_seed(frames))
        assert choice.indices.shape == (count,) and choice.indices.dtype == torch.int64
        assert choice.indices.min() >= 0 and choice.indices.max() < frames
        if frames >= count:
            assert (choice.indices.diff() > 0).all()


def test_single_frame_shows_no_motion():
    assert times.choose_frames(torch.zeros(1), 1).indices.tolist() == [0]
    with pytest.raises(ValueError, match="shows no motion"):
        times.choose_frames(torch.zeros(1), 16)
    with pytest.raises(ValueError, match="Cannot choose 0 frames"):
        times.choose_frames(at_rate(8, 8), 0)


# --- writing ---------------------------------------------------------------------------------------------------------


def test_picture_comes_back_bit_for_bit(tmp_path):
    writing.write_png(tmp_path / "a.png", tensor(gradient(17, 9)))
    torch.testing.assert_close(photographs.load_image(tmp_path / "a.png"), tensor(gradient(17, 9)))


def test_numbers_outside_the_range_and_half_precision_are_written(tmp_path):
    image = torch.tensor([-1.0, 2.0, float("nan")], dtype=torch.bfloat16)[:, None, None].expand(3, 4, 4)
    writing.write_png(tmp_path / "a.png", image)
    assert photographs.load_image(tmp_path / "a.png")[:, 0, 0].tolist() == [0.0, 1.0, 0.0]


def test_what_cannot_be_written_leaves_the_old_file(tmp_path):
    path = tmp_path / "clip.mp4"
    writing.write_video(path, moving_square(3))
    old = path.read_bytes()
    for frames, fps in ((moving_square(0), 8), (moving_square(3)[:, :1], 8), (moving_square(3), 0)):
        with pytest.raises(ValueError, match="cannot be written"):
            writing.write_video(path, frames, fps)
    assert path.read_bytes() == old and os.listdir(tmp_path) == ["clip.mp4"]
    for write, name in ((writing.write_video, "a.txt"), (writing.write_animation, "a.mp4")):
        with pytest.raises(ValueError, match="must end in"):
            write(tmp_path / name, moving_square(3))
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be written"):
        writing.write_video(tmp_path / "file" / "clip.mp4", moving_square(3))


# --- real media ------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the shared media")
def test_real_media_are_read():
    photos = photographs.load_images(SHARED / "wolf_plushie", size=(64, 64))
    assert len(photos) == 5 and all(0.05 < photo.mask.mean() < 0.5 for photo in photos)
    assert len(photographs.load_images(SHARED / "duck_toy", size=(64, 64))) == 4
    car = clips.read_clip(SHARED / "car_turn.mp4", (32, 32))
    assert car.frames.shape == (32, 3, 32, 32) and car.fps == pytest.approx(20)
    city = clips.read_clip(SHARED / "cityCC0.mpg", (32, 32))
    assert len(city.frames) == 190 and city.fps == pytest.approx(25) and city.note == ""
