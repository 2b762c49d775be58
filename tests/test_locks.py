"""Names held by one process: what another gets meanwhile, and after a kill."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from dreamvideo.safety.locks import Locked, locked, reserved

HOLD = """
import sys
from dreamvideo.safety.locks import locked
with locked(sys.argv[1]):
    print('held', flush=True)
    input()
"""


def _hold(name):
    with locked(name):
        pytest.fail("Held twice.")


def test_a_name_is_held_by_one_and_free_afterwards(tmp_path):
    name = tmp_path / "new" / "dog.safetensors"
    with locked(name), pytest.raises(Locked, match=rf"dog\.safetensors is being written by process {os.getpid()}"):
        _hold(name)
    with locked(name), locked(name.with_name("cat.safetensors")):
        pass
    assert not list(name.parent.iterdir())


def test_a_killed_process_holds_nothing(tmp_path):
    name = tmp_path / "dog"
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(name)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert other.stdout.readline().strip() == b"held"
        with pytest.raises(Locked, match=f"process {other.pid}"):
            _hold(name)
    finally:
        other.kill()
        other.communicate()
    with locked(name):
        pass
    assert not list(tmp_path.iterdir())


def test_names_count_up_over_what_is_there_and_what_is_held(tmp_path):
    name = tmp_path / "a.b.mp4"
    name.write_text("finished")
    with reserved(name) as second, reserved(name) as third:
        assert (second.name, third.name) == ("a.b-2.mp4", "a.b-3.mp4")
    second.write_text("finished")
    with reserved(name) as third:
        assert third.name == "a.b-3.mp4"
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    with reserved(tmp_path / "empty") as empty, reserved(tmp_path / "full") as other:
        assert (empty.name, other.name) == ("empty", "full-2")


def test_what_goes_wrong_inside_is_not_taken_for_a_lock(tmp_path):
    with pytest.raises(Locked, match="mine"), reserved(tmp_path / "a"):
        raise Locked("mine")
