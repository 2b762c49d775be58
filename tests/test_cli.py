"""The command line, in one process and on a base of random weights: what it writes, and what it says when it cannot."""

from __future__ import annotations

import errno
import io
import json
import os
import shlex
import weakref
from dataclasses import replace

import pytest
import torch
from fakes import pictures
from PIL import Image
from tiny_base import SIDE, write_tiny_base

from dreamvideo import defaults
from dreamvideo.commands import common
from dreamvideo.commands.cli import main
from dreamvideo.commands.terminal import Terminal, duration
from dreamvideo.files.adapters import load_adapter
from dreamvideo.media.clips import Clip, read_clip, read_motion
from dreamvideo.media.writing import write_animation, write_png

SIZE = ["--height", str(SIDE), "--width", str(SIDE)]
SHORT = ["--steps", "3", "--lr", "0.1", "--batch", "1", *SIZE]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A base, two photographs, two clips, and an identity and a motion trained from them."""
    folder = tmp_path_factory.mktemp("cli")
    write_tiny_base(folder / "base")
    for index, photo in enumerate(pictures(2)):
        write_png(folder / "photos" / f"{index:02d}.png", photo)
    for name, frames in (("turn", 6), ("jump", 8)):
        write_animation(folder / "clips" / f"{name}.gif", pictures(frames, seed=frames), 8.0)
        (folder / "clips" / f"{name}.txt").write_text(f"a dog does a {name}\n")
    assert main(subject(folder)) == 0
    assert main(motion(folder, "turn.gif", "--frames", "2")) == 0
    return folder


def on(folder):
    return ["--base", str(folder / "base"), "--device", "cpu"]


def subject(folder, *more, out="my-dog.safetensors"):
    command = ["train", "subject", str(folder / "photos"), "--class-word", "dog"]
    return [*command, "--token-steps", "2", "--token-lr", "0.1", "--out", str(folder / out), *SHORT, *on(folder), *more]


def motion(folder, clip, *more, out="turn.safetensors"):
    command = ["train", "motion", str(folder / "clips" / clip) if clip else str(folder / "clips")]
    return [*command, "--out", str(folder / out), *SHORT, *on(folder), *more]


def sample(folder, prompt, *more, out="video.gif"):
    return ["sample", prompt, "--frames", "2", "--out", str(folder / out), "--steps", "2", *SIZE, *on(folder), *more]


def refused(capsys, command) -> str:
    """The one line on stderr of a command that must end with code 2."""
    capsys.readouterr()
    assert main([str(part) for part in command]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.endswith(".\n"), error
    assert "Traceback" not in error and "Unexpected" not in error
    return error


# ------------------------------------------------------------------------------------------------- what it writes


def test_a_subject_becomes_one_file_with_its_losses_beside_it(folder):
    loaded = load_adapter(folder / "my-dog.safetensors")
    assert loaded.info.kind == "identity" and loaded.info.steps == 3
    assert list(loaded.tokens) == ["<my-dog>"] and loaded.features.shape == (2, 12)
    assert loaded.info.captions == ("a <my-dog>",) * 2
    rows = [row.split(",") for row in (folder / "my-dog.losses.csv").read_text().split()]
    assert [row[0] for row in rows] == ["stage", "token", "token", "identity", "identity", "identity"]
    assert [row[1] for row in rows] == ["step", "1", "2", "1", "2", "3"]
    assert (folder / "my-dog.losses.png").stat().st_size and not list(folder.glob(".*"))


def test_captions_of_clips_lie_beside_them(folder):
    assert load_adapter(folder / "turn.safetensors").info.captions == ("a dog does a turn",)


def test_a_short_clip_is_told(folder, capsys):
    assert main(motion(folder, None, "--frames", "7", "--steps", "1", out="both.safetensors")) == 0
    out = capsys.readouterr().out
    assert "turn.gif: The clip has 6 frames where 7 were asked" in out and "jump.gif" not in out
    assert load_adapter(folder / "both.safetensors").info.captions == ("a dog does a jump", "a dog does a turn")


def test_previews_are_written_on_the_way(folder):
    assert main(motion(folder, "turn.gif", "--frames", "1", "--preview-every", "2", out="seen.safetensors")) == 0
    assert [path.name for path in folder.glob("seen.*.gif")] == ["seen.motion-00002.gif"]


def test_many_clips_are_never_in_memory_together(folder, tmp_path, monkeypatch):
    for index in range(6):
        write_animation(tmp_path / f"{index}.gif", pictures(4, seed=index), 8.0)
    alive, most, pixels = weakref.WeakSet(), [], Clip.pixels

    def counted(clip, indices=None):
        found = pixels(clip, indices)
        alive.add(found)
        most.append(len(alive))
        return found

    monkeypatch.setattr(Clip, "pixels", counted)
    command = motion(folder, None, "--frames", "2", "--caption", "a dog", out="many.safetensors")
    command[2] = str(tmp_path)
    assert main(command) == 0
    assert most == [1] * 6


def test_masks_count_unless_told_otherwise(folder, monkeypatch):
    # As on a base whose own settings leave them on, whatever the embedded base's are.
    masked = {stage: {**own, "masked": True} for stage, own in defaults.EMBEDDED.training.items()}
    monkeypatch.setattr(defaults, "EMBEDDED", replace(defaults.EMBEDDED, training=masked))
    half = torch.zeros(3, 32, 32)
    half[:, :, :16] = 1.0
    for index in range(2):
        write_png(folder / "masked" / "masks" / f"{index:02d}.png", half)
        os.link(folder / "photos" / f"{index:02d}.png", folder / "masked" / f"{index:02d}.png")
    seen = []
    for photos, *more in (["masked"], ["masked", "--no-masks"], ["photos"]):
        command = subject(folder, *more, out="masked.safetensors")
        command[2] = str(folder / photos)
        assert main(command) == 0
        seen.append((folder / "masked.safetensors").read_bytes())
    assert seen[0] != seen[1] == seen[2]


def test_videos_are_sampled_with_adapters_and_strengths(folder, capsys):
    identity, turn = folder / "my-dog.safetensors", folder / "turn.safetensors"
    both = ["--adapter", str(identity), "--adapter", f"{turn}@0.5"]
    written = {}
    for name, more in {"a": both, "again": both, "plain": [], "other": [*both, "--seed", "1"]}.items():
        prompt = "a <my-dog>" if more else "a dog"
        assert main(sample(folder, prompt, *more, out=f"{name}.webp")) == 0
        written[name] = (folder / f"{name}.webp").read_bytes()
    assert written["a"] == written["again"]
    assert len({written["a"], written["plain"], written["other"]}) == 3
    assert "does not name" not in capsys.readouterr().out
    prior = ["--prior-clip", str(folder / "clips" / "turn.gif"), "--guidance-image", str(folder / "photos" / "00.png")]
    assert main(sample(folder, "a dog", *both, *prior, out="frames")) == 0
    assert sorted(path.name for path in (folder / "frames").iterdir()) == ["0000.png", "0001.png"]
    assert "does not name <my-dog>" in capsys.readouterr().out


def test_subjects_and_motions_keep_to_their_part_of_the_video(folder):
    adapters = ["--adapter", str(folder / "my-dog.safetensors"), "--adapter", str(folder / "turn.safetensors")]
    late = ["--adapter", f"{folder / 'turn.safetensors'}@1[frames=0.5..1,ramp=1..0.5,depth=0.5..1]"]
    halves = ["--region", "left: a <my-dog>", "--region", "right: a cat"]
    written = set()
    for name, more in {"whole": adapters, "late": [*adapters[:2], *late], "halves": [*adapters, *halves]}.items():
        assert main(sample(folder, "a <my-dog> and a cat", *more, out=f"{name}.webp")) == 0
        written.add((folder / f"{name}.webp").read_bytes())
    assert len(written) == 3


def test_mp4_is_written_at_its_rate(folder):
    assert main(sample(folder, "a dog", "--fps", "4", out="new/video.mp4")) == 0
    clip = read_clip(folder / "new" / "video.mp4")
    assert clip.frames.shape == (2, 3, SIDE, SIDE) and clip.fps == pytest.approx(4)


def test_inspect_tells_bases_and_adapters(folder, capsys):
    assert main(["inspect", str(folder / "base")]) == 0
    assert "autoencoder (VAE)" in capsys.readouterr().out
    assert main(["inspect", str(folder / "my-dog.safetensors"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["kind"] == "identity" and facts["tokens"] == {"<my-dog>": [1, 16]} and facts["class word"] == "dog"
    assert main(["inspect", str(folder / "turn.safetensors")]) == 0
    assert "motion adapter" in capsys.readouterr().out


def test_unets_and_adapters_are_converted(folder, capsys):
    renamed, back = folder / "renamed.safetensors", folder / "back.safetensors"
    assert main(["convert", str(folder / "base"), str(renamed), "--layout", "diffusers"]) == 0
    assert main(["convert", str(renamed), str(back), "--dtype", "float16"]) == 0
    for path, layout, dtype in ((renamed, "diffusers", "float32"), (back, "original", "float16")):
        capsys.readouterr()
        assert main(["inspect", str(path), "--json"]) == 0
        facts = json.loads(capsys.readouterr().out)
        assert (facts["layout"], facts["dtype"]) == (layout, dtype)
    assert main(["convert", str(folder / "my-dog.safetensors"), str(folder / "theirs.pth")]) == 0
    theirs = ["--adapter", str(folder / "theirs.pth"), "--adapter", str(folder / "theirs.my-dog.pt")]
    ours = ["--adapter", str(folder / "my-dog.safetensors")]
    assert main(sample(folder, "a *", *theirs, out="theirs.gif")) == 0
    assert main(sample(folder, "a <my-dog>", *ours, out="ours.gif")) == 0
    assert (folder / "theirs.gif").read_bytes() == (folder / "ours.gif").read_bytes()
    assert main(["convert", str(folder / "theirs.my-dog.pt"), str(folder / "token.safetensors")]) == 0
    assert list(load_adapter(folder / "token.safetensors").tokens) == ["*"]


# ------------------------------------------------------------------------------------------------- being stopped


def stop_at(monkeypatch, stage, step):
    """Ctrl-C when a stage has come to a step; returns the stages that were told of."""
    told = []

    def training(self, name):
        def tell(done, *rest):
            told.append(name)
            if (name, done) == (stage, step):
                raise KeyboardInterrupt

        return tell

    monkeypatch.setattr(Terminal, "training", training)
    return told


@pytest.mark.parametrize(("stage", "step"), [("token", 1), ("identity", 2)])
def test_a_stopped_subject_goes_on_where_it_was(folder, capsys, monkeypatch, stage, step):
    out = f"stopped-{stage}.safetensors"
    stop_at(monkeypatch, stage, step)
    assert main(subject(folder, out=out)) == 130
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"stopped-{stage}.state" in error and "goes on" in error
    assert not (folder / out).exists()
    told = stop_at(monkeypatch, None, 0)
    assert main(subject(folder, out=out)) == 0
    assert told == ["token"] * (stage == "token") + ["identity"] * (3 if stage == "token" else 1)
    assert (folder / out).read_bytes() == (folder / "my-dog.safetensors").read_bytes()
    assert not list(folder.glob(".*"))


def test_a_reader_that_goes_away_costs_no_work(folder, capsys, monkeypatch):
    class Pipe(io.StringIO):
        def write(self, text):
            if "identity: step" in text:
                raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
            return super().write(text)

    out = "unread.safetensors"
    monkeypatch.setattr("dreamvideo.commands.terminal.LOG_SECONDS", 0)
    monkeypatch.setattr("sys.stdout", Pipe())
    assert main(subject(folder, out=out)) == 130
    assert "unread.state" in capsys.readouterr().err
    monkeypatch.undo()
    assert main(subject(folder, out=out)) == 0
    assert (folder / out).read_bytes() == (folder / "my-dog.safetensors").read_bytes()


def test_a_state_of_other_settings_is_refused_until_restarted(folder, capsys, monkeypatch):
    out = "changed.safetensors"
    stop_at(monkeypatch, "motion", 1)
    assert main(motion(folder, "turn.gif", "--frames", "2", out=out)) == 130
    monkeypatch.undo()
    changed = motion(folder, "turn.gif", "--frames", "2", "--lr", "0.001", out=out)
    assert "learning_rate" in refused(capsys, changed)
    assert main([*changed, "--restart"]) == 0
    assert load_adapter(folder / out).info.learning_rate == 0.001


def test_ctrl_c_elsewhere_is_one_sentence(folder, capsys, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(common, "open_base", interrupt)
    assert main(sample(folder, "a dog")) == 130
    assert capsys.readouterr().err.count("\n") == 1


# ---------------------------------------------------------------------------------------------------- bad input


def test_wrong_arguments_name_the_help(capsys):
    assert "dreamvideo sample --help" in refused(capsys, ["sample"])
    assert "at least 1" in refused(capsys, ["sample", "a dog", "--frames", "0"])
    assert "from 0 to 1" in refused(capsys, ["sample", "a dog", "--prior-strength", "2"])
    assert "both --images and --video" in refused(capsys, ["demo", "--images", "x"])


@pytest.mark.parametrize("command", ["", "demo", "train subject", "train motion", "sample", "inspect", "convert",
                                     "nano train", "nano gate", "nano evaluate", "check"])  # fmt: skip
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as end:
        main([*command.split(), "--help"])
    assert end.value.code == 0 and f"usage: dreamvideo {command}".strip() in capsys.readouterr().out


class Code:
    def __reduce__(self):
        return (os.getcwd, ())


def bad_base(folder, target, **files):
    """A base like the good one but for some parts: bytes, an object to be pickled, or None for none at all."""
    target.mkdir()
    for part in ("unet", "clip", "vae"):
        content = files.get(part, folder / "base" / f"{part}.safetensors")
        path = target / f"{part}.safetensors"
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif isinstance(content, os.PathLike):
            os.link(content, path)
        elif content is not None:
            torch.save(content, path)
    return ["sample", "a dog", "--out", target / "x.gif", "--base", target, "--device", "cpu"]


def test_unusable_bases(folder, tmp_path, capsys):
    weights = (folder / "base" / "unet.safetensors").read_bytes()
    start = 8 + int.from_bytes(weights[:8], "little")
    nan = weights[:start] + b"\xff\xff\xff\xff" + weights[start + 4 :]
    cases = {
        "missing": ({"unet": None}, "UNet"),
        "no-vae": ({"vae": None}, "VAE"),
        "no-clip": ({"clip": None}, "CLIP"),
        "empty": ({"unet": b""}, "is empty"),
        "truncated": ({"unet": weights[: len(weights) // 2]}, "truncated"),
        "text": ({"unet": b"hello there, no tensors"}, "not a checkpoint"),
        "code": ({"unet": {"x": Code()}}, "not run"),
        "no-tensors": ({"unet": {"x": 1}}, "no tensors"),
        "stranger": ({"unet": folder / "base" / "vae.safetensors"}, "not a ModelScope"),
        "nan": ({"unet": nan}, "NaN"),
    }
    for name, (files, words) in cases.items():
        assert words in refused(capsys, bad_base(folder, tmp_path / name, **files)), name
    assert "There is no folder" in refused(capsys, ["sample", "a dog", "--base", folder / "nowhere"])
    assert "no device" in refused(capsys, [*sample(folder, "a dog"), "--device", "abacus"])


def test_unusable_photographs_leave_an_earlier_result_alone(folder, tmp_path, capsys):
    before = (folder / "my-dog.safetensors").read_bytes()

    def error(name, **files):
        (tmp_path / name).mkdir()
        for path, content in files.items():
            target = tmp_path / name / path.replace("__", "/")
            target.parent.mkdir(exist_ok=True)
            if isinstance(content, str):
                target.with_suffix(".jpg").write_text(content)
            else:
                content.save(target.with_suffix(".png"))
        command = subject(folder)
        command[2] = str(tmp_path / name)
        return refused(capsys, command)

    photo = Image.new("RGB", (40, 40), "red")
    assert "no photographs" in error("nothing")
    assert "not a picture" in error("text", a="this is no picture")
    assert "1x1" in error("small", a=Image.new("RGB", (1, 1)))
    assert "40x40" in error("mask-size", a=photo, masks__a=Image.new("L", (80, 20), "white"))
    assert "all black" in error("mask-black", a=photo, masks__a=Image.new("L", (40, 40)))
    assert "does not exist" in refused(capsys, ["train", "subject", folder / "no", "--class-word", "dog", *on(folder)])
    assert (folder / "my-dog.safetensors").read_bytes() == before


def test_unusable_clips_and_captions(folder, tmp_path, capsys):
    (tmp_path / "broken.mp4").write_bytes(b"no container at all" * 100)
    write_animation(tmp_path / "still.gif", pictures(1), 8.0)
    (tmp_path / "still.txt").write_text("a dog")
    write_animation(tmp_path / "silent.gif", pictures(4), 8.0)
    for name, words in {"broken.mp4": "broken.mp4", "still.gif": "no motion", "silent.gif": "--caption"}.items():
        command = motion(folder, "turn.gif", "--frames", "2", out="never.safetensors")
        command[2] = str(tmp_path / name)
        assert words in refused(capsys, command)
    assert not (folder / "never.safetensors").exists()


def test_the_last_of_many_clips_is_tried_before_the_first_is_encoded(folder, tmp_path, capsys, monkeypatch):
    for name in "abc":
        write_animation(tmp_path / f"{name}.gif", pictures(4), 8.0)
    command = motion(folder, None, "--frames", "2", "--caption", "a dog", out="never.safetensors")
    command[2] = str(tmp_path)
    monkeypatch.setattr("dreamvideo.runs.encode_clips", lambda *_, **__: pytest.fail("Encoded before all were tried."))
    (tmp_path / "c.gif").write_bytes(b"no picture")
    assert "c.gif is not a picture" in refused(capsys, command)


def test_unusable_settings(folder, capsys):
    assert "ordinary word" in refused(capsys, subject(folder, "--placeholder", "dog"))
    assert "nearest valid" in refused(capsys, subject(folder, "--height", "20"))
    (folder / "photos" / "00.txt").write_text("a dog on the grass")
    assert "lacks the placeholder" in refused(capsys, subject(folder, out="caption.safetensors"))
    (folder / "photos" / "00.txt").unlink()
    assert "The prompt is empty" in refused(capsys, sample(folder, "  "))
    assert "<my-dog>" in refused(capsys, sample(folder, "a <my-dog> runs"))
    assert "must end in" in refused(capsys, sample(folder, "a dog", out="video.txt"))
    assert "AREA: PROMPT" in refused(capsys, sample(folder, "a dog", "--region", "left"))
    assert "<my-cat>" in refused(capsys, sample(folder, "a dog", "--region", "left: a <my-cat>"))


def test_unusable_adapters(folder, tmp_path, capsys):
    def using(path):
        return [*sample(folder, "a dog"), "--adapter", path]

    assert "does not exist" in refused(capsys, using(folder / "nowhere.safetensors"))
    assert "no adapter" in refused(capsys, using(folder / "base" / "unet.safetensors"))
    other = write_tiny_base(tmp_path, seed=1)
    command = [*using(folder / "my-dog.safetensors"), "--base", other]
    assert "other weights" in refused(capsys, command)
    assert main([*map(str, command), "--other-base"]) == 0


def test_places_that_cannot_be_written(folder, capsys, monkeypatch):
    (folder / "file").write_text("in the way")
    assert "cannot be written" in refused(capsys, sample(folder, "a dog", out="file/video.gif"))
    assert "cannot be written" in refused(capsys, subject(folder, out="file/x.safetensors"))
    assert main(sample(folder, "a dog", out="full.gif")) == 0
    before = (folder / "full.gif").read_bytes()

    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("dreamvideo.safety.paths.os.replace", full)
    assert "space" in refused(capsys, sample(folder, "a dog", "--seed", "2", out="full.gif"))
    assert (folder / "full.gif").read_bytes() == before and not list(folder.glob(".full*"))


def test_a_prompt_of_400_words_is_cut_with_a_word_of_warning(folder, caplog):
    assert main(sample(folder, "dog " * 400, out="long.gif")) == 0
    assert "400 tokens" in caplog.text


def test_a_subject_that_would_be_cut_is_refused(folder, capsys):
    command = [*sample(folder, "dog " * 80 + "<my-dog>", out="cut.gif"), "--adapter", folder / "my-dog.safetensors"]
    assert "before '<my-dog>'" in refused(capsys, command)
    assert not (folder / "cut.gif").exists()


def test_brackets_weigh(folder):
    for name, prompt in {"plain": "a red dog", "more": "a (red:1.9) dog", "escaped": r"a red \(dog\)"}.items():
        assert main(sample(folder, prompt, out=f"weight-{name}.webp")) == 0
    assert len({(folder / f"weight-{name}.webp").read_bytes() for name in ("plain", "more", "escaped")}) == 3


def test_what_has_no_effect_is_told(folder, capsys):
    assert main(sample(folder, "a dog", "--negative", "a cat", "--guidance", "1")) == 0
    assert "--negative does nothing" in capsys.readouterr().out
    turn = ["--adapter", str(folder / "turn.safetensors"), "--frames", "1"]
    assert main(sample(folder, "a dog", *turn)) == 0
    assert "shows no motion" in capsys.readouterr().out
    caption = ["--frames", "1", "--preview-every", "2"]
    (folder / "clips" / "turn.txt").write_text("a <my-cat> does a turn\n")
    try:
        assert main(motion(folder, "turn.gif", *caption, out="unknown.safetensors")) == 0
    finally:
        (folder / "clips" / "turn.txt").write_text("a dog does a turn\n")
    told = capsys.readouterr().out
    assert "The captions name <my-cat>" in told and "nothing that moves" in told
    assert (folder / "unknown.motion-00002.gif").exists()


def test_names_made_by_us_are_no_devices():
    assert common.file_name("<con>") == "con-" and common.file_name("<my-dog>") == "my-dog"


def test_debug_shows_the_traceback(folder, capsys):
    assert main(["inspect", str(folder / "nowhere"), "--debug"]) == 2
    error = capsys.readouterr().err
    assert "Traceback" in error and error.splitlines()[-1] == f"{folder / 'nowhere'} does not exist."


# ------------------------------------------------------------------------------------------------ smaller pieces


class Screen(io.StringIO):
    def isatty(self):
        return True


def test_progress_is_one_line_on_a_terminal_and_few_elsewhere():
    screen, log = Screen(), io.StringIO()
    for stream in (screen, log):
        terminal = Terminal(stream)
        tell = terminal.training("token")
        for step in range(1, 101):
            tell(step, 0.5, 10.0, (100 - step) / 10)
        terminal.say("done")
    assert screen.getvalue().endswith("\ndone\n") and screen.getvalue().count("\n") == 2
    assert log.getvalue().splitlines()[-1] == "done" and log.getvalue().count("\n") == 3
    assert "token: step 100/100, loss 0.5000, 10 steps/s, 0 s left" in log.getvalue()


def test_durations():
    assert [duration(s) for s in (0.4, 59.4, 185, 7800)] == ["0 s", "59 s", "3 min 05 s", "2 h 10 min"]


def test_long_clips_are_learned_whole_at_the_rate_asked(tmp_path):
    write_animation(tmp_path / "long.gif", pictures(40, side=16), 20.0)
    clip = read_motion(tmp_path / "long.gif", (16, 16), 4, 5.0)
    assert len(clip.frames) == 10 and clip.note == ""


# --------------------------------------------------------------------------------------------- other methods' rows


def test_a_subject_may_be_learned_by_another_method_and_inspected(folder, capsys):
    assert main(subject(folder, "--method", "lora", out="lora.safetensors")) == 0
    loaded = load_adapter(folder / "lora.safetensors")
    assert loaded.info.kind == "weights" and loaded.info.extra["method"] == "lora_subject"
    assert loaded.adapter.config.rank == 2 and list(loaded.tokens) == ["<my-dog>"]  # 32, on a base a twentieth as wide
    capsys.readouterr()
    assert main(["inspect", str(folder / "lora.safetensors")]) == 0
    assert "set of weight deltas for <my-dog> (dog), 3 steps" in capsys.readouterr().out
    adapters = ["--adapter", str(folder / "lora.safetensors@0.5"), "--adapter", str(folder / "turn.safetensors")]
    assert main(sample(folder, "a <my-dog> turns", *adapters, out="lora.gif")) == 0
    assert "hold no weight deltas" in refused(capsys, ["convert", folder / "lora.safetensors", folder / "lora.pth"])


def test_a_motion_with_a_name_of_its_own_stands_beside_related_ones(folder, capsys):
    more = ["--method", "customizing_motion", "--caption", "a dog does a <my-motion>", "--frames", "1"]
    clip = folder / "named" / "turn.gif"
    clip.parent.mkdir(exist_ok=True)
    clip.write_bytes((folder / "clips" / "turn.gif").read_bytes())
    command = motion(folder, "turn.gif", *more, "--related", str(folder / "clips"), out="named.safetensors")
    command[2] = str(clip)
    assert main(command) == 0
    loaded = load_adapter(folder / "named.safetensors")
    assert loaded.info.kind == "weights" and list(loaded.tokens) == ["<my-motion>"]
    assert loaded.info.captions[0] == "a dog does a <my-motion>" and len(loaded.info.captions) == 3
    plain = motion(folder, "turn.gif", "--method", "customizing_motion", out="plain.safetensors")
    assert "lacks the placeholder <my-motion>" in refused(capsys, plain)


def test_textual_inversion_alone_takes_the_steps_given(folder):
    command = subject(folder, "--method", "textual_inversion", out="token.safetensors")
    for option in ("--token-steps", "--token-lr"):
        at = command.index(option)
        del command[at : at + 2]
    assert main(command) == 0
    loaded = load_adapter(folder / "token.safetensors")
    assert loaded.info.kind == "token" and loaded.info.steps == 3 and loaded.adapter is None


def test_the_hint_of_a_training_can_be_pasted(folder, capsys):
    out = folder / "a new turn.safetensors"
    clip, base = folder / "clips" / "turn.gif", ["--base", str(folder / "base"), "--device", "cpu"]
    assert main(["train", "motion", str(clip), "--frames", "2", "--out", str(out), *base, *SHORT]) == 0
    told = capsys.readouterr()
    hint = shlex.split((told.out + told.err).partition("try: ")[2].splitlines()[0])
    assert hint[0] == "dreamvideo"
    assert main([*hint[1:], *SIZE, "--frames", "2", "--steps", "1", "--out", str(folder / "pasted.gif")]) == 0
