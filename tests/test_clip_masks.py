"""Masks of clips: white on what a motion is not learned from. Both faces find, read and use them alike."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from fakes import FakeText, fake_encoders, pictures, tiny_unet
from node_stubs import load_nodes
from tiny_base import SIDE, write_tiny_base

from dreamvideo.commands.cli import main
from dreamvideo.files.adapters import load_adapter
from dreamvideo.files.toml import parse_toml
from dreamvideo.media import clips as reading
from dreamvideo.media.folders import clip_files, clip_masks
from dreamvideo.media.masks import uncovered
from dreamvideo.media.writing import write_animation, write_png
from dreamvideo.training.data import encode_clips
from dreamvideo.training.drawing import draw_batch
from dreamvideo.training.methods import MOTION
from dreamvideo.training.settings import TrainingSettings
from dreamvideo.training.stages import train_method

FRAMES, FPS, EDGE = 6, 8.0, 64


def moving_mask(frames: int = FRAMES, side: int = EDGE) -> torch.Tensor:
    """[frames, 3, side, side], a white square of a quarter of the side that goes right and down."""
    mask, square = torch.zeros(frames, 3, side, side), side // 4
    for index in range(frames):
        at = square // 2 * index % (side - square)
        mask[index, :, at : at + square, at : at + square] = 1
    return mask


def write(path, frames: torch.Tensor) -> None:
    if path.suffix:
        write_animation(path, frames, FPS)
        return
    for index, frame in enumerate(frames):
        write_png(path / f"{index:04d}.png", frame)


# --- where they lie -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clip", ["turn.gif", "turn"])
@pytest.mark.parametrize(
    "mask", ["masks/turn.gif", "masks/turn", "mask/turn-mask.webp", "turn_mask.gif", "turn-masklabel", "mask_turn.gif"]
)
@pytest.mark.parametrize("given", ["folder", "alone"])
def test_masks_beside_a_clip_are_its_masks(tmp_path, clip, mask, given):
    write(tmp_path / clip, pictures(FRAMES, side=EDGE))
    write(tmp_path / mask, moving_mask())
    mixed = given == "folder" and ("." in clip) != ("." in mask) and "/" not in mask
    source = tmp_path if given == "folder" and not mixed else [tmp_path / clip]
    found = clip_files(source)
    assert found == [tmp_path / clip] and clip_masks(found) == {tmp_path / clip: tmp_path / mask}


def test_a_folder_of_frames_has_its_masks_inside(tmp_path):
    write(tmp_path / "turn", pictures(FRAMES, side=EDGE))
    write(tmp_path / "turn" / "masks", moving_mask())
    assert reading.find_clips(tmp_path / "turn", 2) == [tmp_path / "turn"]
    assert reading.find_masks([tmp_path / "turn"]) == [tmp_path / "turn" / "masks"]


def test_a_mask_of_another_length_is_told_before_anything_is_loaded(tmp_path, monkeypatch, capsys):
    write(tmp_path / "turn.gif", pictures(FRAMES, side=EDGE))
    write(tmp_path / "turn_mask.gif", moving_mask(FRAMES - 1))
    told = f"The mask {tmp_path / 'turn_mask.gif'} has 5 frames and its clip 6: make both of one length"
    with pytest.raises(ValueError, match=re.escape(told)):
        reading.find_masks([tmp_path / "turn.gif"])
    monkeypatch.setattr("dreamvideo.commands.train.open_for", lambda *_: pytest.fail("the base was opened"))
    out = str(tmp_path / "turn.safetensors")
    words = ["train", "motion", str(tmp_path / "turn.gif"), "--caption", "a toy turns", "--out", out, "--frames", "4"]
    assert main(words) != 0 and told in capsys.readouterr().err


def test_masks_that_fit_nothing_are_named(tmp_path):
    write(tmp_path / "turn.gif", pictures(FRAMES))
    write(tmp_path / "masks" / "tum.gif", moving_mask())
    with pytest.raises(
        ValueError, match=r"No mask in .* named like the clip turn.gif, and no clip like the mask tum.gif"
    ):
        clip_masks([tmp_path / "turn.gif"])
    write(tmp_path / "masks" / "turn.gif", moving_mask())
    assert clip_masks([tmp_path / "turn.gif"]) == {tmp_path / "turn.gif": tmp_path / "masks" / "turn.gif"}
    write(tmp_path / "gas_mask.gif", pictures(FRAMES))  # a clip of one, and no mask of a clip "gas"
    assert [path.name for path in clip_files(tmp_path)] == ["gas_mask.gif", "turn.gif"]
    (tmp_path / "turn.gif").rename(tmp_path / "gas.gif")
    with pytest.raises(ValueError, match="There are only masks in"):
        clip_files([tmp_path / "gas_mask.gif"])


# --- what they cover ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["mask.gif", "mask"])
def test_a_cover_moves_with_its_clip(tmp_path, kind):
    write(tmp_path / "turn.gif", pictures(FRAMES, side=EDGE))
    write(tmp_path / kind, moving_mask())
    clip = reading.read_motion(tmp_path / "turn.gif", (EDGE, EDGE), 2, FPS)
    cover = reading.read_cover(tmp_path / kind, clip.taken, (EDGE, EDGE))
    assert torch.equal(cover, moving_mask()[clip.taken.numbers, 0] > 0.5)
    thinned = reading.read_motion(tmp_path / "turn.gif", (EDGE, EDGE), 2, FPS / 2)
    assert len(thinned.taken.numbers) < len(clip.taken.numbers) and thinned.taken.count == FRAMES
    cover = reading.read_cover(tmp_path / kind, thinned.taken, (EDGE, EDGE))
    assert torch.equal(cover, moving_mask()[thinned.taken.numbers, 0] > 0.5)
    assert torch.equal(reading.cover_of(moving_mask()[:, 0], thinned.taken, (EDGE, EDGE), "of clip 1"), cover)


def test_a_mask_of_another_resolution_is_cropped_as_its_clip(tmp_path):
    write(tmp_path / "turn", pictures(FRAMES, side=64)[..., :48])
    half = moving_mask(side=32)[..., :24]
    write(tmp_path / "mask", half)
    clip = reading.read_motion(tmp_path / "turn", (24, 24), 2, FPS)
    cover = reading.read_cover(tmp_path / "mask", clip.taken, (24, 24))
    assert torch.equal(cover, half[:, 0, 4:28] > 0.5)


REFUSALS = {
    "too short": (moving_mask(FRAMES - 1), "has 5 frames and its clip 6: make both of one length"),
    "another shape": (
        moving_mask(side=64)[..., :40],
        "is 40x64 pixels, its clip 64x64: make the mask the size of the clip",
    ),
    "black": (torch.zeros(FRAMES, 3, EDGE, EDGE), "is all black; paint white what is not to be learned from"),
}


@pytest.mark.parametrize("wrong", REFUSALS)
def test_a_mask_that_does_not_fit_is_refused_in_a_sentence(tmp_path, wrong):
    frames, told = REFUSALS[wrong]
    write(tmp_path / "turn.gif", pictures(FRAMES, side=EDGE))
    write(tmp_path / "mask", frames)
    clip = reading.read_motion(tmp_path / "turn.gif", (EDGE, EDGE), 2, FPS)
    with pytest.raises(ValueError, match=f"The mask {tmp_path / 'mask'} {told}") as caught:
        reading.read_cover(tmp_path / "mask", clip.taken, (EDGE, EDGE))
    assert str(caught.value).count(". ") == 0


def test_a_cell_that_is_touched_is_left_out():
    cover = torch.zeros(2, 32, 32, dtype=torch.bool)
    cover[0, 7, 8] = True
    weights = uncovered(cover, 4, 4, "of clip 1")
    assert weights.shape == (1, 2, 4, 4) and weights[0, 0, 0, 1] == 0 and weights.sum() == 31
    with pytest.raises(
        ValueError, match="The mask of clip 1 covers all of its clip; leave black what is to be learned"
    ):
        uncovered(torch.ones(2, 32, 32), 4, 4, "of clip 1")


# --- what it does to a training -------------------------------------------------------------------------------------


def encode(clip: torch.Tensor, mask: torch.Tensor | None, frames: int = FRAMES):
    return encode_clips([(clip, mask)], "a car turns", fake_encoders(), frames)


def test_what_is_covered_teaches_nothing():
    """The same adapter, whatever stands below the mask, once its place in the noisy input is the same, too."""
    clip, mask = pictures(FRAMES), moving_mask(side=32)[:, 0]
    plain, masked = encode(clip, None), encode(clip, mask)
    assert plain.digest != masked.digest == encode(clip, mask).digest != encode(clip, mask.flip(0)).digest
    assert encode_clips([clip], "a car turns", fake_encoders(), FRAMES).digest == plain.digest
    settings = TrainingSettings.for_method(MOTION, steps=2, learning_rate=0.02, batch_size=1, seed=4)
    none, generator = torch.empty(0, dtype=torch.int64), torch.Generator().manual_seed(4)
    batch, _ = draw_batch(masked, MOTION, settings, none, generator)
    assert torch.equal(batch.mask[0], masked.items[0].mask)
    assert torch.equal(batch.mask[0, 0] == 0, torch.nn.functional.max_pool2d(mask[:, None], 8)[:, 0] > 0.5)

    seen = []

    def noted(prediction, noise, mask, normalize):
        seen.append((prediction.detach(), mask))
        assert mask is not None
        return (mask * (prediction - noise)).square().mean()

    for debias in (False, True):
        own = replace(settings, debias=debias)
        train_method(tiny_unet(), FakeText(), masked, replace(MOTION, loss=noted), settings=own)
    assert len(seen) == 2 + 4  # a debiased step asks twice, and both times by the mask
    assert torch.equal(seen[0][1], seen[2][1]) and seen[3][1].sum() < seen[2][1].sum()


def test_a_stretch_takes_its_part_of_the_mask():
    data = encode(pictures(FRAMES), moving_mask(side=32)[:, 0], frames=2)
    settings = TrainingSettings.for_method(MOTION, batch_size=8)
    batch, _ = draw_batch(data, MOTION, settings, torch.empty(0, dtype=torch.int64), torch.Generator().manual_seed(0))
    whole = data.items[0].mask
    stretches = [whole[:, start : start + 2] for start in range(FRAMES - 1)]
    assert all(any(torch.equal(mask, stretch) for stretch in stretches) for mask in batch.mask)


@pytest.mark.parametrize("mask", [torch.zeros(FRAMES - 1, 32, 32), torch.zeros(FRAMES, 16, 32)])
def test_a_mask_of_another_size_than_its_clip_is_refused(mask):
    with pytest.raises(ValueError, match=r"Mask 1 has \d frames of 32 x \d\d pixels and its clip 6 frames of 32 x 32"):
        encode(pictures(FRAMES), mask)


# --- the command line and the nodes ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("masks")
    write_tiny_base(folder / "base")
    write(folder / "clips" / "turn.gif", pictures(FRAMES, side=SIDE))
    write(folder / "clips" / "masks" / "turn", moving_mask(side=SIDE))
    return folder


def train(folder, out: str, *more: str) -> list[str]:
    short = ["--steps", "2", "--lr", "0.1", "--height", str(SIDE), "--width", str(SIDE), "--frames", "2"]
    clip = [] if "--config" in more else [str(folder / "clips" / "turn.gif"), "--caption", "a dog turns"]
    base = ["--base", str(folder / "base"), "--device", "cpu", "--out", str(folder / out), "--no-cache"]
    return ["train", "motion", *clip, *([] if "--config" in more else short), *base, *more]


def test_the_command_line_takes_masks_and_a_run_file_does_again(folder, capsys):
    assert main(train(folder, "masked.safetensors")) == 0
    assert "turn.gif: what turn marks white, 6%, is not learned from." in capsys.readouterr().out
    assert main(train(folder, "whole.safetensors", "--no-masks")) == 0
    assert "marks white" not in capsys.readouterr().out
    masked, whole = (folder / f"{name}.safetensors" for name in ("masked", "whole"))
    assert masked.read_bytes() != whole.read_bytes()
    for name, path in (("masked", masked), ("whole", whole)):
        told = parse_toml((folder / f"{name}.toml").read_text())
        assert told.get("no_masks", False) == (name == "whole")
        assert main(train(folder, f"again-{name}.safetensors", "--config", str(folder / f"{name}.toml"))) == 0
        assert (folder / f"again-{name}.safetensors").read_bytes() == path.read_bytes()


def test_another_mask_is_another_training(folder, tmp_path, capsys):
    write(tmp_path / "turn.gif", pictures(FRAMES, side=SIDE))
    write(tmp_path / "turn_mask", moving_mask(side=SIDE))
    command = train(folder, "other.safetensors")
    command[2] = str(tmp_path / "turn.gif")
    assert main(command) == 0
    first = load_adapter(folder / "other.safetensors").adapter.state_dict()
    for path in (tmp_path / "turn_mask").iterdir():
        path.unlink()
    write(tmp_path / "turn_mask", moving_mask(side=SIDE).flip(0))
    assert main(command) == 0
    again = load_adapter(folder / "other.safetensors").adapter.state_dict()
    assert any(not torch.equal(first[name], again[name]) for name in first)


@pytest.fixture
def motion_clips(monkeypatch):
    """The node Motion Clips without a host: (batches of images, masks, ...) -> its outputs."""
    load_nodes()
    module = sys.modules["dreamvideo_pack.nodes.data"]
    monkeypatch.setattr(module, "ui", SimpleNamespace(PreviewImage=lambda *a, **k: None))
    monkeypatch.setattr(module.io, "NodeOutput", lambda *a, **k: a)

    def execute(images, masks=None, fps=FPS, **more):
        node = module.MotionClips
        given = {"caption": ["a dog turns"], "frames": [2], "width": [EDGE], "height": [EDGE], "images_fps": [FPS]}
        return node.execute(**given, fps=[fps], images=images, masks=masks, **more)

    return execute


def test_the_node_gives_the_trainer_what_the_command_line_gives(motion_clips, tmp_path):
    write(tmp_path / "turn", pictures(FRAMES, side=EDGE))
    write(tmp_path / "mask", moving_mask())
    read = reading.read_motion(tmp_path / "turn", (EDGE, EDGE), 2, FPS)
    cover = reading.read_cover(tmp_path / "mask", read.taken, (EDGE, EDGE))
    clips, captions, frames, _, covers = motion_clips(
        [pictures(FRAMES, side=EDGE).movedim(1, -1)], [moving_mask()[:, 0]]
    )
    encoders = fake_encoders()
    theirs = encode_clips([(read.pixels(), cover)], "a dog turns", encoders, 2)
    trainer = sys.modules["dreamvideo_pack.nodes.trainers.motion"]
    (own,) = trainer._covers(covers, 1)
    ours = encode_clips([(clips[0].movedim(-1, 1), own)], captions, encoders, frames)
    assert ours.digest == theirs.digest and torch.equal(ours.items[0].mask, theirs.items[0].mask)


def test_nodes_chain_masks_and_black_ones_are_none(motion_clips):
    image, mask = pictures(FRAMES, side=EDGE).movedim(1, -1), moving_mask()[:, 0]
    clips, captions, *_, plain = motion_clips([image])
    assert plain[0].shape == image.shape[:3] and not plain[0].any()
    assert not motion_clips([image], [torch.zeros(1, 64, 64)])[-1][0].any()  # Load Image's, of a picture without one
    *_, both = motion_clips([image], [mask], more_clips=clips, more_captions=captions, more_masks=plain)
    assert not both[0].any() and torch.equal(both[1], mask)
    *_, thinned = motion_clips([image], [mask], fps=FPS / 2)
    assert torch.equal(thinned[0], mask[::2])
    *_, still = motion_clips([image], [mask[:1]])
    assert torch.equal(still[0], mask[:1].expand(FRAMES, -1, -1))
    *_, turned = motion_clips([image], [mask], invert_masks=[True])
    assert torch.equal(turned[0], 1 - mask)
    for wrong, told in (
        ([mask[:2]], "The mask of clip 1 has 2 frames and its clip 6: give as many, or one"),
        ([mask[..., :10]], "The mask of clip 1 is 10x64 pixels, its clip 64x64"),
        ([mask, mask], "Got 2 batches of masks for 1 clips"),
    ):
        with pytest.raises(ValueError, match=told):
            motion_clips([image], wrong)
    with pytest.raises(ValueError, match="Got 2 more masks for 1 more clips"):
        motion_clips([image], more_clips=clips, more_captions=captions, more_masks=plain * 2)
