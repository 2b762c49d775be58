"""Writing files whole, and keeping them where they belong."""

from __future__ import annotations

import errno
import json
import os
import time
from types import SimpleNamespace

import pytest

from dreamvideo.safety import paths as files


def test_written_file_appears_only_when_whole(tmp_path):
    target = tmp_path / "new" / "adapter.safetensors"
    with files.atomic_path(target) as part:
        assert part.parent == target.parent and part.suffix == target.suffix
        part.write_bytes(b"whole")
        assert not target.exists()
    assert target.read_bytes() == b"whole"
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("interruption", [RuntimeError, KeyboardInterrupt])
def test_interrupted_write_keeps_the_old_file(tmp_path, interruption):
    target = tmp_path / "state.pt"
    target.write_bytes(b"old")
    with pytest.raises(interruption), files.atomic_path(target) as part:
        part.write_bytes(b"half")
        raise interruption
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_full_disk_is_one_sentence_and_keeps_the_old_file(tmp_path, monkeypatch):
    target = tmp_path / "state.json"
    files.write_json(target, {"step": 1})

    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ValueError, match=r"state\.json cannot be written: no space left on device\."):
        files.write_json(target, {"step": 2})
    assert json.loads(target.read_text()) == {"step": 1}
    assert list(tmp_path.iterdir()) == [target]


def test_full_disk_is_told_whatever_words_the_writer_has_for_it(tmp_path, monkeypatch):
    monkeypatch.setattr(files.shutil, "disk_usage", lambda folder: SimpleNamespace(free=0))
    with (
        pytest.raises(ValueError, match="the disk is full"),
        files.atomic_path(tmp_path / "a.safetensors") as part,
    ):
        part.write_bytes(b"half")
        raise RuntimeError("file write failed")
    assert list(tmp_path.iterdir()) == []


def test_folder_that_cannot_hold_the_file_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(ValueError, match="cannot be written"):
        files.write_text(tmp_path / "file" / "a.txt", "text")
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(ValueError, match="cannot be written"):
        files.write_text(tmp_path / "folder.txt", "text")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder.txt"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="a system without pipes")
def test_a_pipe_or_a_device_is_never_replaced(tmp_path):
    os.mkfifo(tmp_path / "a.txt")
    for path in (tmp_path / "a.txt", "/dev/null"):
        with pytest.raises(ValueError, match="cannot be written: it is a pipe or a device"):
            files.check_writable(path)


def test_a_text_is_read_up_to_what_people_write(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"x" * files.MAX_TEXT_BYTES)
    assert len(files.read_small(tmp_path / "a.txt")) == files.MAX_TEXT_BYTES
    (tmp_path / "a.txt").write_bytes(b"x" * (files.MAX_TEXT_BYTES + 1))
    with pytest.raises(ValueError, match="more than 1 MB"):
        files.read_small(tmp_path / "a.txt")


def test_parts_of_killed_runs_are_swept_up_and_nothing_else(tmp_path):
    long_ago = time.time() - 2 * files.STALE_SECONDS
    killed, running, other = ".a.0123abcd.part.txt", ".a.4567cdef.part.txt", ".ab.0123abcd.part.txt"
    for name in (killed, running, other):
        (tmp_path / name).write_text("")
    for name in (killed, other):
        os.utime(tmp_path / name, (long_ago, long_ago))
    files.write_text(tmp_path / "a.txt", "text")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([running, other, "a.txt"])


def test_json_is_readable_and_strict(tmp_path):
    files.write_json(tmp_path / "a.json", {"word": "Plüsch", "losses": [0.5]})
    assert "Plüsch" in (tmp_path / "a.json").read_text(encoding="utf-8")
    with pytest.raises(ValueError):
        files.write_json(tmp_path / "a.json", float("nan"))
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"word": "Plüsch", "losses": [0.5]}


def test_inside_follows_names_and_links_to_where_they_lead(tmp_path):
    folder = tmp_path / "out"
    (folder / "deep").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    os.symlink(tmp_path / "outside", folder / "link")
    assert files.inside(folder, "deep/../a.txt") == folder.resolve() / "a.txt"
    for name in ("../a.txt", "/etc/passwd", "link/a.txt", "deep/../../out2/a.txt", ".", ""):
        with pytest.raises(ValueError, match="below the folder"):
            files.inside(folder, name)


def test_trying_a_path_says_what_writing_would_and_leaves_no_trace(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder.txt").mkdir()
    (tmp_path / "there.txt").write_text("old")
    for name in ("file/a.txt", "folder.txt", "d" * 243, "new/" + "d" * 300 + "/a.txt"):
        with pytest.raises(ValueError, match="cannot be written"):
            files.check_writable(tmp_path / "fine.txt", tmp_path / name)
    files.check_writable(tmp_path / "there.txt", tmp_path / "new" / "deep" / "a.txt", tmp_path / ("d" * 230))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder.txt", "there.txt"]
    assert (tmp_path / "there.txt").read_text() == "old"


def test_an_input_is_never_an_output_by_any_name(tmp_path):
    source = tmp_path / "clip.mp4"
    source.write_text("clip")
    (tmp_path / "sub").mkdir()
    os.symlink(source, tmp_path / "soft.mp4")
    os.link(source, tmp_path / "hard.mp4")
    for name in ("clip.mp4", "soft.mp4", "hard.mp4", "sub/../clip.mp4"):
        with pytest.raises(ValueError, match="is read here"):
            files.keep_apart([tmp_path / "new.mp4", tmp_path / name], [tmp_path / "gone.mp4", source])
    files.keep_apart([tmp_path / "new.mp4"], (pytest.fail("listed for nothing") for _ in range(1)))
    files.keep_apart([source], [tmp_path / "gone.mp4", tmp_path])
