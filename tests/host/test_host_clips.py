"""Motion Clips takes of a clip what training needs, whatever the clip comes as, and never copies all of it."""

from __future__ import annotations

import weakref
from fractions import Fraction
from io import BytesIO
from types import SimpleNamespace

import pytest
import torch
from graphs import SIZE, base, give, pictures
from harness import Graph, HostError
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WIDE, HIGH, FRAMES = 320, 192, 45


class Largest(TorchDispatchMode):
    """The most bytes that any one new tensor takes; views of what is there take none."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        there = {_storage(each) for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)}
        for each in tree_leaves(found):
            if isinstance(each, torch.Tensor) and _storage(each) not in there:
                self.bytes = max(self.bytes, each.untyped_storage().nbytes())
        return found


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


@pytest.fixture(scope="module")
def path(host, tmp_path_factory):
    file = tmp_path_factory.mktemp("video") / "clip.mp4"
    ramp = torch.linspace(0, 1, WIDE).expand(FRAMES, 3, HIGH, WIDE)
    shift = torch.arange(FRAMES).reshape(-1, 1, 1, 1) / FRAMES
    host.module("dreamvideo.media.writing").write_video(file, (ramp * (1 - shift) + shift * 0.5), 30)
    return file


def clips_of(host, **source) -> torch.Tensor:
    graph = Graph()
    ((kind, value),) = source.items()
    link = give(host, graph, "IMAGE" if kind == "images" else "VIDEO", value)
    node = graph.add(
        "DreamVideoMotionClips", caption="a ball", frames=4, fps=8.0, images_fps=30.0, **{kind: link}, **SIZE
    )
    return host.run_with_probe(graph, [node, 0])[0]


def chosen_of(host, frames: torch.Tensor) -> torch.Tensor:
    """What choosing among all frames [N, H, W, 3], cropped as uint8, gives: IMAGE [n, 64, 64, 3]."""
    masks, times = host.module("dreamvideo.media.masks"), host.module("dreamvideo.media.times")
    pixels = masks.cover_crop((frames.movedim(-1, 1) * 255).round().byte(), 64, 64)
    choice = times.choose_frames(torch.arange(len(frames), dtype=torch.float64) / 30, 12, 8.0, start=0.0)
    return pixels[choice.indices].movedim(1, -1).float() / 255


def video_files(path):
    from comfy_api.latest import InputImpl

    return InputImpl.VideoFromFile(str(path)), InputImpl.VideoFromFile(BytesIO(path.read_bytes()))


def test_a_video_file_is_read_without_being_decoded_whole(host, path, monkeypatch):
    whole = host.module("dreamvideo.media.clips").read_clip(path).frames
    for video in video_files(path):
        near = chosen_of(host, video.get_components().images)
        monkeypatch.setattr(type(video), "get_components", lambda self: pytest.fail("The host decoded it all."))
        with Largest() as largest:
            clip = clips_of(host, video=video)
        monkeypatch.undo()
        assert torch.equal(clip, chosen_of(host, whole.movedim(1, -1) / 255))
        assert len(clip) == 12 and (clip - near).abs().max() < 3 / 255  # newer hosts decode to floats
        assert largest.bytes < 4 * whole.numel() / 8  # an eighth of what it is in floats


def test_a_trimmed_video_file_is_read_in_its_stretch(host, path):
    video = video_files(path)[0]
    trimmed = video.as_trimmed(0.5, 0.8) if hasattr(video, "as_trimmed") else None
    if trimmed is None:
        pytest.skip("This ComfyUI does not trim videos.")
    whole = host.module("dreamvideo.media.clips").read_clip(path, (64, 64)).frames.movedim(1, -1) / 255
    clip = clips_of(host, video=trimmed)
    assert len(clip) == 6 and torch.equal(clip[0], whole[15])


def test_a_video_that_the_host_changes_is_left_to_it(host, path):
    video = video_files(path)[0]
    video._VideoFromFile__crop = (0, 0, 8, 8)
    assert host.module("nodes.host").file_of(video) is None


def test_frames_in_memory_are_never_copied_whole(host):
    from comfy_api.latest import InputImpl, Types

    frames = torch.rand(FRAMES, HIGH, WIDE, 3, generator=torch.Generator().manual_seed(0))
    parts = {"images": frames, "frame_rate": Fraction(30), "audio": None}
    sources = [
        {"images": frames},
        {"video": InputImpl.VideoFromComponents(Types.VideoComponents(**parts))},
        {"video": SimpleNamespace(get_components=lambda: SimpleNamespace(**parts))},
    ]
    for source in sources:
        with Largest() as largest:
            clip = clips_of(host, **source)
        assert torch.equal(clip, chosen_of(host, frames))
        assert largest.bytes < frames.nbytes / 8


def test_a_training_takes_one_clip_at_a_time(host, monkeypatch):
    trainers, alive, most = host.module("nodes.trainers.motion"), weakref.WeakSet(), []
    engine_images = trainers.engine_images

    def counted(images):
        found = engine_images(images)
        alive.add(found)
        most.append(len(alive))
        return found

    def encode(clips, captions, encoders, frames):
        for clip in clips:
            del clip
        raise ValueError("all were seen")

    monkeypatch.setattr(trainers, "engine_images", counted)
    monkeypatch.setattr(trainers, "encode_clips", encode)
    graph = Graph()
    loader, words, more = base(graph), "", {}
    for seed in range(4):
        clip = give(host, graph, "IMAGE", pictures(6, seed))
        words = graph.add("DreamVideoMotionClips", images=clip, caption="a ball", frames=4, fps=8.0, images_fps=8.0,
                          **more, **SIZE)  # fmt: skip
        more = {"more_clips": [words, 0], "more_captions": [words, 1]}
    trained = graph.add(
        "DreamVideoTrainMotion", model=[loader, 0], clip=[loader, 1], vae=[loader, 2], clip_vision=[loader, 3],
        clips=[words, 0], captions=[words, 1], frames=[words, 2], steps=1, learning_rate=0.01, batch_size=1, seed=0,
        preview_every=0, gradient_checkpointing="off", resume=True, text_drop=0.5, image_drop="automatic",
        method="dreamvideo",
    )  # fmt: skip
    with pytest.raises(HostError, match="all were seen"):
        host.run_with_probe(graph, [trained, 0])
    assert most == [1] * 4
