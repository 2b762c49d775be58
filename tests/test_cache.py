"""What is encoded is kept on disk by its content: the same data with and without, and no damage that counts."""

from __future__ import annotations

import os
import sys
from dataclasses import replace

import pytest
import torch
from fakes import FakeImage, FakeVAE, fake_encoders, pictures

from dreamvideo.encoders.protocols import Encoders
from dreamvideo.training import cache as cache_module
from dreamvideo.training.cache import default_cache
from dreamvideo.training.data import encode_clips, encode_photos

CLIPS = [pictures(5, seed) for seed in range(2)]


class Counted:
    """An encoder that counts the pictures it is shown."""

    def __init__(self, encoder):
        self.encoder, self.shown = encoder, 0

    def encode(self, images, chunk=None):
        self.shown += len(images)
        return self.encoder.encode(images)


def counted(fingerprint="weights"):
    return Encoders(fake_encoders().text, Counted(FakeImage()), Counted(FakeVAE()), fingerprint)


def encoded(cache, encoders=None, clips=CLIPS):
    """(data, how many pictures each encoder was shown)"""
    encoders = encoders or counted()
    data = encode_clips(clips, "a car turns", encoders, 3, cache=cache)
    assert encoders.vae.shown == encoders.image.shown
    return data, encoders.vae.shown


def assert_same(one, other):
    assert one.digest == other.digest and one.captions == other.captions
    for a, b in zip(one.items, other.items, strict=True):
        assert torch.equal(a.mean, b.mean) and torch.equal(a.std, b.std) and torch.equal(a.features, b.features)
        assert a.mean.dtype == b.mean.dtype and a.mean.stride() == b.mean.stride()


def test_a_second_run_encodes_nothing_and_gets_the_same(tmp_path):
    plain, _ = encoded(None)
    first, shown = encoded(tmp_path / "cache")
    assert shown == 10
    second, shown = encoded(tmp_path / "cache")
    assert shown == 0
    assert_same(plain, first)
    assert_same(plain, second)


def test_each_clip_and_photograph_is_kept_by_itself(tmp_path):
    encoded(tmp_path)
    assert encoded(tmp_path, clips=[CLIPS[1], pictures(4, 9)])[1] == 4
    photos = pictures(3)
    for expected in (3, 0):
        encoders = counted()
        data = encode_photos(photos, ["a", "b", "c"], encoders, [torch.ones(1, 32, 32), None, None], cache=tmp_path)
        assert encoders.vae.shown == expected
        assert data.items[0].mask is not None and data.items[1].mask is None and data.captions == ("a", "b", "c")


@pytest.mark.parametrize("fingerprint", ["other weights", ""])
def test_other_encoders_get_nothing_of_it_and_unknown_ones_leave_nothing(tmp_path, fingerprint):
    encoded(tmp_path)
    before = sorted(tmp_path.iterdir())
    assert encoded(tmp_path, counted(fingerprint))[1] == 10
    assert (sorted(tmp_path.iterdir()) == before) is (not fingerprint)


@pytest.mark.parametrize("damage", ["cut", "empty", "noise", "nan", "another clip's", "code", "folder"])
def test_what_is_damaged_is_encoded_again_and_replaced(tmp_path, damage):
    whole, _ = encoded(tmp_path)
    good = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for path, data in good.items():
        if damage == "nan":
            mean = torch.full((4, 5, 4, 4), float("nan"))
            parts = {"mean": mean, "std": mean, "features": torch.zeros(5, 6)}
            cache_module.write_safetensors(path, parts, {**cache_module.FORMAT, "key": path.stem})
        elif damage == "another clip's":
            encoded(tmp_path / "other", clips=[pictures(5, 9)])
            path.write_bytes(next((tmp_path / "other").iterdir()).read_bytes())
        elif damage == "code":
            torch.save({"mean": len}, path)
        elif damage == "folder":
            path.unlink()
            path.mkdir()
        else:
            path.write_bytes({"cut": data[:-7], "empty": b"", "noise": os.urandom(len(data))}[damage])
    again, shown = encoded(tmp_path)
    assert shown == 10
    assert_same(whole, again)
    if damage != "folder":
        assert {path: path.read_bytes() for path in good} == good


def test_a_cache_that_cannot_be_written_costs_no_training(tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    plain, _ = encoded(None)
    assert_same(plain, encoded(tmp_path / "file")[0])
    assert caplog.text.count("not kept for the next run") == 1


def test_nothing_that_is_not_a_number_is_kept(tmp_path):
    with pytest.raises(ValueError, match="NaN"):
        encoded(tmp_path, clips=[CLIPS[0] * float("nan")])
    assert not list(tmp_path.iterdir())


def test_the_longest_unused_go_first(tmp_path, monkeypatch):
    encoded(tmp_path)
    size = sum(path.stat().st_size for path in tmp_path.iterdir())
    for path in tmp_path.iterdir():
        os.utime(path, (1, 1))
    encoded(tmp_path, clips=CLIPS[:1])  # used again
    monkeypatch.setattr(cache_module, "MOST_BYTES", size)
    encoded(tmp_path, clips=[pictures(5, 9)])
    assert len(list(tmp_path.iterdir())) == 2
    assert encoded(tmp_path, clips=CLIPS[:1])[1] == 0 and encoded(tmp_path, clips=[pictures(5, 9)])[1] == 0


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Others name their folders otherwise.")
def test_the_place_is_the_systems(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "dreamvideo" / "encoded"


def test_frames_are_counted_over_all_clips_and_with_what_the_cache_has(tmp_path, monkeypatch):
    monkeypatch.setattr("dreamvideo.encoders.protocols.PIXELS_AT_ONCE", 2 * 32 * 32)
    for expected in ([0, 2, 4, 5, 5, 7, 9, 10], [0, 5, 5, 10]):
        reports: list[tuple[int, int]] = []
        report = lambda *report, reports=reports: reports.append(report)  # noqa: E731
        encode_clips(CLIPS, "a", counted(), 3, report=report, cache=tmp_path)
        assert [done for done, _ in reports] == expected and {total for _, total in reports} == {10}


def test_clips_yet_to_be_read_are_taken_to_be_as_long_as_those_before():
    reports = []
    clips = (pictures(count) for count in (4, 8))
    encode_clips(clips, ["a", "b"], replace(counted()), 3, report=lambda *report: reports.append(report))
    assert reports[0] == (0, 8) and reports[-1] == (12, 12)
    assert [done for done, _ in reports] == sorted(done for done, _ in reports)
