"""A video as a folder of frames: whole, and in the place of nothing else."""

from __future__ import annotations

import errno
import os

import pytest
from fakes import pictures
from PIL import Image

from dreamvideo.media.frame_folders import check_frames_writable, write_frames
from dreamvideo.safety import paths as files


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_shorter_video_leaves_no_tail_of_the_longer_one(tmp_path):
    out = tmp_path / "new" / "video"
    for count in (8, 3, 5):
        check_frames_writable(out)
        write_frames(out, pictures(count, side=16))
        assert names(out) == [f"{index:04d}.png" for index in range(count)]
    assert names(out.parent) == ["video"]
    os.symlink(out, tmp_path / "link")
    write_frames(tmp_path / "link", pictures(2, side=16))
    assert len(names(out)) == 2 and (tmp_path / "link").is_symlink()
    (tmp_path / "empty").mkdir()
    write_frames(tmp_path / "empty", pictures(2, side=16))


@pytest.mark.parametrize("before", [0, 4])
def test_a_full_disk_leaves_no_half_a_video(tmp_path, monkeypatch, before):
    out = tmp_path / "video"
    if before:
        write_frames(out, pictures(before, side=16))
    old = contents(out) if before else None
    written, fsync = [], os.fsync

    def full(handle):
        written.append(handle)
        if len(written) > 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(handle)

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(ValueError, match="no space left"):
        write_frames(out, pictures(8, side=16))
    assert names(tmp_path) == (["video"] if before else [])
    assert not before or contents(out) == old


def test_nothing_but_frames_written_here_is_replaced(tmp_path):
    def refused(folder, stranger):
        before = contents(folder)
        for attempt in (lambda: check_frames_writable(folder), lambda: write_frames(folder, pictures(2, side=16))):
            with pytest.raises(ValueError, match=f"{stranger}.*not replaced"):
                attempt()
        assert contents(folder) == before and names(folder.parent).count(folder.name) == 1

    ours = tmp_path / "ours"
    for stranger in ("notes.txt", "0000.PNG.bak", "masks.png"):
        write_frames(ours, pictures(3, side=16))
        (ours / stranger).write_bytes(b"theirs")
        refused(ours, stranger)
        (ours / stranger).unlink()
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.new("RGB", (16, 16), "red").save(photos / "0000.png")
    refused(photos, "0000.png")
    (photos / "0000.png").write_bytes(b"no picture")
    refused(photos, "0000.png")
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="it is a file already"):
        check_frames_writable(tmp_path / "file")
    with pytest.raises(ValueError, match="cannot be written"):
        check_frames_writable(tmp_path / "file" / "video")
    with pytest.raises(ValueError, match="cannot be written"):
        check_frames_writable(tmp_path / ("d" * 250))


def test_a_failed_exchange_puts_the_old_folder_back(tmp_path, monkeypatch):
    out = tmp_path / "video"
    write_frames(out, pictures(3, side=16))
    before, rename, calls = contents(out), os.rename, []

    def once(source, target):
        calls.append(source)
        if len(calls) == 2:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        rename(source, target)

    monkeypatch.setattr(files.os, "rename", once)
    with pytest.raises(ValueError, match="cannot be written"):
        write_frames(out, pictures(2, side=16))
    assert contents(out) == before and names(tmp_path) == ["video"]
