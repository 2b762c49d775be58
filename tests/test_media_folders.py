"""Folders of other trainers, other tools and a shell's `*`."""

from __future__ import annotations

import os

import pytest
import torch
from PIL import Image

from dreamvideo.media import clips, folders, photographs, writing
from dreamvideo.media.clips import file_digest

needs_pipes = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="a system without pipes")

SIZE = (16, 24)


def picture(path, value: int = 128) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (24, 16), (value, value, value)).save(path)


def moving(frames: int = 8) -> torch.Tensor:
    return torch.rand((frames, 3, *SIZE), generator=torch.Generator().manual_seed(0))


def clip(path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    writing.write_video(path, moving())


# --- photographs -----------------------------------------------------------------------------------------------------


def test_a_shells_star_is_the_folder(tmp_path):
    for name in ("00.png", "01.jpg", "masks/00.png", "masks/01.png", "other/x.png"):
        picture(tmp_path / name, 255)
    for name in ("00.txt", "01.caption", "notes.json"):
        (tmp_path / name).write_text("a toy")
    notes = []
    photos = photographs.load_images(sorted(tmp_path.iterdir()), say=notes.append)
    assert [photo.path.name for photo in photos] == ["00.png", "01.jpg"]
    assert all(photo.mask is not None and photo.caption == "a toy" for photo in photos)
    assert len(notes) == 2 and "notes.json is left out" in notes[0] and "other is left out: it is a folder" in notes[1]
    with pytest.raises(ValueError, match="notes.json is none; give the folder"):
        photographs.load_images([tmp_path / "notes.json", tmp_path / "00.txt"])
    with pytest.raises(ValueError, match="gone.png does not exist"):
        photographs.load_images([tmp_path / "00.png", tmp_path / "gone.png"])


def test_folders_in_the_folder_are_named_with_their_number(tmp_path):
    for index in range(3):
        picture(tmp_path / "10_toy" / f"{index}.png")
    notes = []
    for source in (tmp_path, [tmp_path]):
        assert len(photographs.load_images(source, say=notes.append)) == 3
    assert len(notes) == 2 and "10_toy (3)" in notes[0]
    picture(tmp_path / "1_dog" / "a.png")
    with pytest.raises(ValueError, match=r"its folders 10_toy \(3\), 1_dog \(1\): give one of them"):
        photographs.load_images(tmp_path)


@pytest.mark.parametrize("suffix", [".txt", ".TXT", ".caption", ".png.txt"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_captions_of_other_tools(tmp_path, suffix, encoding):
    picture(tmp_path / "a.png")
    (tmp_path / f"a{suffix}").write_text("ein Spielzeug\nim Gr\u00fcnen", encoding=encoding)
    assert photographs.load_images(tmp_path)[0].caption == "ein Spielzeug im Gr\u00fcnen"


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16-le", "utf-16-be"])
def test_captions_in_other_encodings_say_the_way_out(tmp_path, encoding):
    picture(tmp_path / "a.png")
    (tmp_path / "a.txt").write_bytes("Spielzeug im Gr\u00fcnen".encode(encoding))
    with pytest.raises(ValueError, match=r"a\.txt is not a readable UTF-8 text; save it as UTF-8"):
        photographs.load_images(tmp_path)


# --- clips -----------------------------------------------------------------------------------------------------------


@needs_pipes
def test_what_lies_beside_frames_is_not_read(tmp_path):
    for number in range(3):
        Image.new("RGB", (32, 32), (number, 0, 0)).save(tmp_path / f"{number}.png")
    before = file_digest(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "notes").mkdir()
    assert file_digest(tmp_path) == before
    Image.new("RGB", (32, 32), (9, 0, 0)).save(tmp_path / "1.png")
    assert file_digest(tmp_path) != before


@pytest.mark.parametrize("star", [False, True])
def test_what_a_training_wrote_is_not_learned_from(tmp_path, star):
    for name in ("a.png", "my-dog.losses.png", "my-dog.steps.png", "b.losses.jpg"):
        picture(tmp_path / name)
    writing.write_animation(tmp_path / "my-dog.identity-00100.gif", moving())
    source = sorted(tmp_path.iterdir()) if star else tmp_path
    assert [photo.path.name for photo in photographs.load_images(source)] == ["a.png", "b.losses.jpg"]
    for number in range(3):
        picture(tmp_path / "frames" / f"{number}.png", number)
    picture(tmp_path / "frames" / "dance.losses.png")
    assert clips.find_clips(tmp_path / "frames") == [tmp_path / "frames"]


def test_a_caption_without_an_end_is_refused(tmp_path):
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    with open(tmp_path / "a.txt", "wb") as file:
        file.truncate(8 << 30)
    with pytest.raises(ValueError, match=r"a\.txt has more than 1 MB"):
        photographs.load_images(tmp_path)


@pytest.mark.parametrize("star", [False, True])
def test_stills_and_sound_among_clips_are_left_out_and_named(tmp_path, star):
    av = pytest.importorskip("av")
    clip(tmp_path / "My clip [x].mp4")
    clip(tmp_path / "My clip [x]-audio.mp4")
    writing.write_video(tmp_path / "still.mp4", moving(1))
    picture(tmp_path / "My clip [x].webp")
    picture(tmp_path / "thumb.gif")
    with av.open(str(tmp_path / "sound.webm"), "w") as container:
        stream = container.add_stream("libopus", rate=48000)
        frame = av.AudioFrame(format="flt", layout="mono", samples=960)
        frame.planes[0].update(bytes(960 * 4))
        frame.sample_rate = 48000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    (tmp_path / "My clip [x].txt").write_text("a caption")
    notes = []
    found = clips.find_clips(sorted(tmp_path.iterdir()) if star else tmp_path, 8, notes.append)
    assert [path.name for path in found] == ["My clip [x].mp4"]
    for name in ("[x]-audio.mp4", "[x].webp", "thumb.gif", "still.mp4", "sound.webm"):
        assert sum(name in note.split(" is left out: it is")[0] for note in notes) == 1
    with pytest.raises(ValueError, match=r"still\.mp4 holds a single frame"):
        clips.find_clips(tmp_path / "still.mp4", 8)
    with pytest.raises(ValueError, match=r"sound\.webm has no picture track"):
        clips.find_clips([tmp_path / "sound.webm"], 8)


def test_a_song_with_a_cover_is_no_clip(tmp_path):
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("mjpeg", rate=1)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuvj420p"
        stream.disposition = av.stream.Disposition.attached_pic
        container.mux(stream.encode(av.VideoFrame(32, 32, "yuvj420p")))
        container.mux(stream.encode())
    with pytest.raises(ValueError, match=r"a\.mp4 (has no picture track|holds a single frame)"):
        clips.find_clips(tmp_path / "a.mp4", 8)


def test_numbered_animations_are_clips_each(tmp_path):
    for index in range(3):
        writing.write_animation(tmp_path / f"made_{index:05d}.gif", moving())
    assert len(clips.find_clips(tmp_path, 8)) == 3


@pytest.mark.parametrize("given", ["folder", "above", "star", "list"])
def test_a_folder_of_frames_is_a_clip(tmp_path, given):
    folder = tmp_path / "made" / "dance.v2"
    for index, frame in enumerate(moving(12)):
        writing.write_png(folder / f"{index:04d}.png", frame)
    (tmp_path / "made" / "dance.v2.txt").write_text("a person is dancing")
    source = {"folder": folder, "above": tmp_path / "made", "star": sorted(folder.iterdir()), "list": [folder]}[given]
    (found,) = clips.find_clips(source, 8)
    assert found == folder and folders.caption_of(found) == "a person is dancing"
    motion = clips.read_motion(found, SIZE, 8, 12.0)
    assert motion.fps == 12 and "12 pictures of dance.v2 are taken as 12 frames a second" in motion.note
    assert (motion.pixels() - moving(12)).abs().max() < 0.003
    whole = clips.read_clip(found)
    assert len(whole.frames) == 12 and whole.fps == pytest.approx(8) and "8 frames a second" in whole.note


def test_the_folder_one_stands_in_has_a_name(tmp_path, monkeypatch):
    for index in range(2):
        picture(tmp_path / "walk" / f"{index}.png")
    monkeypatch.chdir(tmp_path / "walk")
    for source in (".", ["0.png", "1.png"]):
        (found,) = clips.find_clips(source, 8)
        assert found.name == "walk" and folders.caption_of(found) is None


def test_frames_come_by_number_and_photographs_are_no_clip(tmp_path):
    for index in range(12):
        picture(tmp_path / "a" / f"frame_{index}.png", 20 * index)
    motion = clips.read_motion(tmp_path / "a", SIZE, 8, 8.0)
    assert (motion.frames[:, 0].float().mean(dim=(1, 2)) - 20 * torch.arange(12)).abs().max() < 1
    for name in ("side.png", "front.png"):
        picture(tmp_path / "b" / name)
    with pytest.raises(ValueError, match="no videos in"):
        clips.find_clips(tmp_path / "b")
    with pytest.raises(ValueError, match="a folder without numbered pictures"):
        clips.read_motion(tmp_path / "b", SIZE, 8, 8.0)


def test_clips_in_a_folder_of_the_folder_are_named(tmp_path):
    clip(tmp_path / "5_dance" / "a.mp4")
    notes = []
    assert [path.name for path in clips.find_clips(tmp_path, 8, notes.append)] == ["a.mp4"] and "5_dance (1)" in notes[
        0
    ]
    clip(tmp_path / "1_walk" / "b.mp4")
    with pytest.raises(ValueError, match=r"1_walk \(1\), 5_dance \(1\)"):
        clips.find_clips(tmp_path, 8)
