"""What rate and order a clip really has, whatever its container says about it."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image

from dreamvideo.media import clips, writing
from dreamvideo.media.times import StreamClock, frame_times

av = pytest.importorskip("av")


def write(path, codec: str, frames: int = 30, fps: int = 25, **options: str) -> None:
    """A square that moves two pixels a frame."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        stream.options = {"b": "4000000", **options}
        for k in range(frames):
            pixels = np.full((64, 96, 3), 40, np.uint8)
            pixels[16:48, 2 * k : 2 * k + 20] = 220
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def places(clip: clips.Clip) -> torch.Tensor:
    """The square's column in each frame."""
    bright = (clip.pixels()[:, 0, 32] > 0.5).float()  # [F, W]
    return bright.argmax(dim=1)


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("a.avi", "mpeg4", {"bf": "2"}),
        ("a.avi", "mpeg4", {"bf": "0"}),
        ("a.avi", "libx264", {"bf": "3", "b-pyramid": "normal"}),
        ("a.mkv", "mpeg4", {"bf": "2"}),
        ("a.mkv", "libx264", {"bf": "3"}),
        ("a.mp4", "libx264", {"bf": "3"}),
        ("a.mov", "mpeg4", {"bf": "2"}),
        ("a.flv", "libx264", {"bf": "2"}),
        ("a.ts", "libx264", {"bf": "2"}),
        ("a.mpg", "mpeg2video", {"bf": "2"}),
        ("a.h264", "libx264", {"bf": "2"}),
        ("a.m2v", "mpeg2video", {"bf": "2"}),
        ("a.wmv", "wmv2", {}),
    ],
)
def test_reordered_frames_keep_rate_and_order(tmp_path, name, codec, options):
    write(tmp_path / name, codec, **options)
    clip = clips.read_clip(tmp_path / name)
    assert len(clip.frames) == 30
    torch.testing.assert_close(clip.times, torch.arange(30, dtype=torch.float64) / 25, atol=0.0021, rtol=0)
    assert (places(clip) - 2 * torch.arange(30)).abs().max() <= 2
    thinned = clips.read_motion(tmp_path / name, (64, 96), 4, 12.5)
    assert len(thinned.frames) == 15 and thinned.fps == pytest.approx(12.5)


def test_the_delay_that_writers_fill_is_no_time(tmp_path):
    """Chunks without data behind the first, as FFmpeg writes them for XviD's B-frames."""
    clock = StreamClock(period=1.0, second=25.0, chunks=True)
    found = []
    for dts, pts in zip([0, 3, 4, 5, 6], [3, 6, 5, 7, 9], strict=True):
        clock.sent(dts)
        if dts:
            found.append(clock.seconds(clock.ticks(pts)))
    found.append(clock.seconds(clock.ticks(8)))
    assert found == pytest.approx([0.0, 0.04, 0.08, 0.12, 0.16])


def test_a_stretch_of_an_avi_is_of_its_frames(tmp_path):
    write(tmp_path / "a.avi", "mpeg4", bf="2", g="5")
    whole = clips.read_clip(tmp_path / "a.avi", (64, 96)).frames
    clip = clips.read_motion(tmp_path / "a.avi", (64, 96), 2, 25.0, start=0.4, seconds=0.4)
    assert len(clip.frames) == 10 and (clip.frames.float() - whole[10:20].float()).abs().mean() < 3


def test_joined_streams_have_no_holes(tmp_path):
    write(tmp_path / "a.ts", "libx264", bf="2")
    data = (tmp_path / "a.ts").read_bytes()
    (tmp_path / "b.ts").write_bytes(data + data)
    clip = clips.read_clip(tmp_path / "b.ts")
    assert clip.fps == pytest.approx(25, rel=0.02) and clip.times.diff().max() < 0.09 and len(clip.frames) >= 58


def test_an_edit_list_hides_what_it_cuts_off(tmp_path):
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt, stream.options = 96, 64, "yuv420p", {"bf": "0", "g": "100"}
        stream.codec_context.time_base = Fraction(1, 25)
        for k in range(20):
            frame = av.VideoFrame.from_ndarray(np.full((64, 96, 3), 10 * k, np.uint8), format="rgb24")
            frame.pts, frame.time_base = k - 8, Fraction(1, 25)  # eight begin before the clip does
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    clip = clips.read_clip(tmp_path / "a.mp4")
    assert clip.fps == pytest.approx(25) and len(clip.frames) == 12
    assert clip.frames[0].float().mean() == pytest.approx(80, abs=4)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([3, 6, 5, 7, 9, 8], [0, 2, 3, 4, 5, 6]),
        ([0, 1, 1, 2], [0, 1, 1.5, 2]),
        ([-2, -1, 0, 1], [0, 1, 2, 3]),
        ([0, 0.1, 5, 5.1], [0, 0.1, 5, 5.1]),
        ([4], [0]),
    ],
)
def test_times_rise_and_keep_what_is_known(given, expected):
    times, _ = frame_times([float(second) for second in given])
    torch.testing.assert_close(times, torch.tensor(expected, dtype=torch.float64))


def test_frames_without_times_follow_one_another():
    clock = StreamClock(period=2.0, second=50.0)
    assert [clock.seconds(clock.ticks(pts)) for pts in (100, None, None, 106)] == pytest.approx([2, 2.04, 2.08, 2.12])
    assert len(frame_times([0.0] * 5)[0].unique()) == 5


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png"])
def test_short_delays_are_those_of_browsers(tmp_path, suffix):
    pictures = [Image.new("RGB", (20, 20), (60 * k, 0, 0)) for k in range(4)]
    asked = [0, 10, 20, 50]
    pictures[0].save(tmp_path / f"a{suffix}", save_all=True, append_images=pictures[1:], duration=asked, lossless=True)
    clip = clips.read_clip(tmp_path / f"a{suffix}")
    torch.testing.assert_close(clip.times, torch.tensor([0, 0.1, 0.2, 0.22], dtype=torch.float64))


def test_a_picture_that_stands_for_the_animation_is_no_frame_of_it(tmp_path):
    pictures = [Image.new("RGB", (20, 20), (60 * k, 0, 0)) for k in range(4)]
    pictures[0].save(tmp_path / "a.png", save_all=True, append_images=pictures[1:], duration=100, default_image=True)
    assert clips.read_clip(tmp_path / "a.png").frames[:, 0, 0, 0].tolist() == [60, 120, 180]


def test_what_is_written_is_shown_as_fast_as_it_can_be(tmp_path):
    frames = torch.rand((12, 3, 16, 16), generator=torch.Generator().manual_seed(0))
    for name, most in (("a.gif", 50), ("a.webp", 91)):
        writing.write_animation(tmp_path / name, frames, fps=120)
        assert clips.read_clip(tmp_path / name).fps == pytest.approx(most, rel=0.02)
