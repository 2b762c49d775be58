"""Only photographs and clips are opened: nothing that starts a program or names other files."""

from __future__ import annotations

import subprocess
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from dreamvideo.media import clips, photographs, writing

av = pytest.importorskip("av")
SIZE = (32, 48)


def moving(frames: int = 8) -> torch.Tensor:
    video = torch.full((frames, 3, *SIZE), 0.2)
    for k in range(frames):
        video[k, :, 8:24, 2 * k : 2 * k + 12] = 0.9
    return video


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.gif", "a.tif", "a.webp"])
@pytest.mark.parametrize(
    "text", [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\nshowpage\n", b"\xc5\xd0\xd3\xc6"]
)
def test_postscript_starts_no_program(tmp_path, monkeypatch, name, text):
    started = []
    monkeypatch.setattr(subprocess, "check_call", lambda *a, **k: started.append(a))
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: started.append(a))
    (tmp_path / name).write_bytes(text + bytes(64))
    for read in (photographs.load_image, photographs.load_mask, clips.read_clip):
        with pytest.raises(ValueError, match=f"{name} is not a picture"):
            read(tmp_path / name)
    assert not started


@pytest.mark.parametrize("form", ["PCX", "SGI", "ICO", "XBM", "MSP", "DDS", "EPS", "PDF"])
def test_only_the_formats_of_photographs_are_pictures(tmp_path, form):
    mode = {"XBM": "1", "MSP": "1"}.get(form, "RGB")
    Image.new(mode, (32, 32)).save(tmp_path / "a.png", format=form)
    with pytest.raises(ValueError, match=r"a\.png is not a picture"):
        photographs.load_image(tmp_path / "a.png")


@pytest.mark.parametrize("form", ["JPEG", "MPO", "PNG", "WEBP", "BMP", "TIFF", "GIF", "JPEG2000", "PPM"])
def test_photographs_are_known_by_what_they_hold(tmp_path, form):
    Image.new("RGB", (20, 16), (200, 40, 40)).save(tmp_path / "a.jpg", format=form)
    assert (photographs.load_image(tmp_path / "a.jpg")[0] - 200 / 255).abs().max() < 0.05


def test_lists_and_patterns_of_files_are_no_clips(tmp_path):
    clip, folder = tmp_path / "clip.mp4", tmp_path / "lists"
    folder.mkdir()
    writing.write_video(clip, moving())
    (folder / "clip.mp4").write_bytes(clip.read_bytes())
    texts = {
        "concat.mp4": "ffconcat version 1.0\nfile clip.mp4\n",
        "concat.mkv": "ffconcat version 1.0\nfile 'clip.mp4'\nduration 1\n",
        "hls.ts": "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nclip.mp4\n#EXT-X-ENDLIST\n",
        "dash.mp4": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" profiles="x">'
        "<Period><AdaptationSet><Representation><BaseURL>clip.mp4</BaseURL></Representation></AdaptationSet></Period>",
        "sdp.mp4": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
        "text.mov": "WEBVTT\n\n00:00.000 --> 00:01.000\nno pictures\n",
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
        for source in (folder / name, BytesIO(text.encode())):
            with pytest.raises(ValueError, match="is not a video that can be read"):
                clips.read_motion(source, SIZE, 2, 8.0)


def test_a_name_is_never_an_address_or_a_pattern(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    writing.write_video("frame%d.mp4", moving())
    writing.write_video("a.mp4", moving(4))
    (tmp_path / "concat:a.mp4").write_bytes((tmp_path / "frame%d.mp4").read_bytes())
    assert len(clips.read_clip("frame%d.mp4").frames) == len(clips.read_clip("concat:a.mp4").frames) == 8


def test_a_clip_is_known_by_what_it_holds(tmp_path):
    writing.write_animation(tmp_path / "a.gif", moving(), fps=10)
    writing.write_video(tmp_path / "b.mp4", moving(), fps=10)
    (tmp_path / "a.mp4").write_bytes((tmp_path / "a.gif").read_bytes())
    (tmp_path / "b.gif").write_bytes((tmp_path / "b.mp4").read_bytes())
    for name in ("a.mp4", "b.gif"):
        clip = clips.read_motion(tmp_path / name, SIZE, 2, 10.0)
        assert len(clip.frames) == 8 and clip.fps == pytest.approx(10)
    data = BytesIO((tmp_path / "a.gif").read_bytes())
    assert len(clips.read_motion(data, SIZE, 2, 10.0, start=0.2, seconds=0.5).frames) == 5


def test_the_previews_in_a_telephones_photograph_are_no_clip(tmp_path):
    picture = Image.new("RGB", (32, 32), "red")
    picture.save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[picture])
    with pytest.raises(ValueError, match="single frame"):
        clips.find_clips(tmp_path / "a.jpg", 8)


def test_heic_is_read_where_its_package_is_and_named_where_not(tmp_path, monkeypatch):
    heif = pytest.importorskip("pillow_heif")
    y, x = np.mgrid[0:32, 0:64]
    picture = Image.fromarray(np.stack([x * 4, y * 8, 0 * x + 64], 2).astype(np.uint8))
    heif.from_pillow(picture).save(tmp_path / "a.heic", quality=90)
    image = photographs.load_images(tmp_path)[0].image
    assert (image * 255 - torch.from_numpy(np.array(picture)).permute(2, 0, 1)).abs().mean() < 4
    monkeypatch.setitem(__import__("sys").modules, "pillow_heif", None)
    with pytest.raises(ValueError, match=r"a\.heic is a HEIC picture, which needs the package pillow-heif"):
        photographs.load_image(tmp_path / "a.heic")
