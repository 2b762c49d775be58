"""Trainings killed at the worst moments, and disks that fill up: started again, they end with the same bytes.

One process brings PyTorch; every training is a fork of it, which a real SIGKILL ends.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fakes import pictures
from safetensors import safe_open
from tiny_base import SIDE, write_tiny_base

from dreamvideo.media.writing import write_animation, write_png

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows neither forks nor knows SIGKILL.")

# Reads a line [moment, count, arguments] at a time, trains in a fork, and answers with how that ended. The moments:
# "step": killed when it tells of its count-th step; "before" and "after": around the count-th file that gets its name;
# "full": the disk takes no more than count files; "size": no file may be larger than count bytes.
TRAINER = """
import json, os, resource, signal, sys
from dataclasses import replace
import kornia
from dreamvideo import defaults
from dreamvideo.commands.cli import main
from dreamvideo.commands import arguments, common
from dreamvideo.commands.terminal import Terminal

base = common.open_base(sys.argv[1], device="cpu")  # once for all forks
common.open_base = lambda *_, **__: base
own = {stage: {**settings, "save_every": 1} for stage, settings in defaults.EMBEDDED.training.items()}
defaults.EMBEDDED = replace(defaults.EMBEDDED, training=own)

def run(moment, count, arguments):
    seen = []

    def at_that_moment(*_):
        seen.append(1)
        return len(seen) == count

    def kill():
        os.kill(os.getpid(), signal.SIGKILL)

    def tell(step, *rest):
        if at_that_moment():
            kill()

    def named(source, target, put=os.replace):
        last = at_that_moment()
        if last and moment == "before":
            kill()
        put(source, target)
        if last:
            kill()

    def full(handle):
        seen.append(1)
        if len(seen) > count:
            raise OSError(28, "No space left on device")

    if moment == "step":
        Terminal.training = lambda self, stage: tell
    elif moment in ("before", "after"):
        os.replace = named
    elif moment == "full":
        os.fsync = full
    elif moment == "size":
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (count, count))
    return main(arguments)

for line in sys.stdin:
    child = os.fork()
    if not child:
        sys.stdout = sys.stderr = open(os.devnull, "w")
        os._exit(run(*json.loads(line)))
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
KILLED, FAILED = -9, 2


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kills")
    write_tiny_base(folder / "base")
    write_png(folder / "photos" / "00.png", pictures(1)[0])
    write_animation(folder / "turn.gif", pictures(3), 8.0)
    return folder


@pytest.fixture(scope="module")
def trained(media):
    """A function that trains at a moment's mercy; it returns the exit code."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    started = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": environment}
    command = [sys.executable, "-c", TRAINER, str(media / "base")]
    process = subprocess.Popen(command, cwd=Path(__file__).parents[1], **started)

    def train(arguments, moment="", count=0):
        process.stdin.write(json.dumps([moment, count, [str(part) for part in arguments]]) + "\n")
        process.stdin.flush()
        return int(process.stdout.readline())

    yield train
    process.communicate()


def arguments(media, what, out):
    material = ["subject", media / "photos", "--class-word", "dog", "--token-steps", "2"]
    if what == "motion":
        material = ["motion", media / "turn.gif", "--caption", "a dog turns", "--frames", "2"]
    small = ["--steps", "2", "--batch", "1", "--lr", "0.1", "--height", SIDE, "--width", SIDE]
    return ["train", *material, "--out", out, *small, "--base", media / "base", "--device", "cpu"]


def whole_files(folder):
    """Everything below a folder that has its final name, after making sure that all of it is whole."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_file() and not path.name.startswith("."):
            if path.suffix == ".safetensors":
                with safe_open(path, framework="pt") as file:
                    assert all(file.get_tensor(name) is not None for name in file.keys())  # noqa: SIM118, no mapping
            assert path.stat().st_size
            found[str(path.relative_to(folder))] = path.read_bytes()
    return found


@pytest.fixture(scope="module")
def undisturbed(media, trained, tmp_path_factory):
    found = {}
    for what in ("subject", "motion"):
        folder = tmp_path_factory.mktemp(what)
        assert trained(arguments(media, what, folder / "it.safetensors")) == 0
        found[what] = whole_files(folder)
    return found


MOMENTS = [("motion", "step", 1), ("motion", "before", 3), ("motion", "after", 4), ("subject", "step", 3),
           ("subject", "before", 4), ("subject", "after", 6)]  # fmt: skip


@pytest.mark.parametrize(("what", "moment", "count"), MOMENTS)
def test_a_killed_training_ends_with_the_bytes_of_an_undisturbed_one(
    media, trained, undisturbed, tmp_path, what, moment, count
):
    command = arguments(media, what, tmp_path / "it.safetensors")
    assert trained(command, moment, count) == KILLED
    assert whole_files(tmp_path).keys() <= undisturbed[what].keys()
    assert trained(command) == 0
    assert whole_files(tmp_path) == undisturbed[what]


@pytest.mark.parametrize(("moment", "count"), [("full", 2), ("full", 5), ("size", 2000)])
def test_a_full_disk_loses_nothing(media, trained, undisturbed, tmp_path, moment, count):
    command = arguments(media, "motion", tmp_path / "it.safetensors")
    assert trained(command, moment, count) == FAILED
    assert not list(tmp_path.rglob(".*"))
    kept = whole_files(tmp_path)
    assert kept.keys() <= undisturbed["motion"].keys()
    assert trained(command) == 0
    assert whole_files(tmp_path) == undisturbed["motion"]


def test_what_was_finished_outlives_a_kill_of_what_replaces_it(media, trained, undisturbed, tmp_path):
    command = arguments(media, "motion", tmp_path / "it.safetensors")
    assert trained(command) == 0
    assert trained([*command, "--seed", "1"], "step", 2) == KILLED
    assert whole_files(tmp_path)["it.safetensors"] == undisturbed["motion"]["it.safetensors"]
