"""What the command line writes to, when that is no obedient file."""

from __future__ import annotations

import io
import logging
import os
import subprocess
import sys
import warnings

import pytest

from dreamvideo.base import EMBEDDED_FOLDER
from dreamvideo.commands import cli, terminal
from dreamvideo.commands.terminal import NobodyReads, Terminal


def run(*argv, stdout=subprocess.PIPE, **environment):
    command = [sys.executable, "-m", "dreamvideo", *argv]
    return subprocess.run(
        command, stdout=stdout, stderr=subprocess.PIPE, env={**os.environ, **environment}, text=True, check=False
    )


@pytest.fixture
def closed():
    """The end of a pipe that nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    yield writing
    os.close(writing)


@pytest.mark.parametrize("argv", [["--help"], ["inspect", str(EMBEDDED_FOLDER)]])
def test_a_closed_stdout_is_no_error(closed, argv):
    ended = run(*argv, stdout=closed)
    assert ended.stderr == ""
    assert ended.returncode == cli.NOBODY_READS or argv == ["--help"]  # argparse takes no offence


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="A device of Linux.")
def test_a_full_stdout_is_one_sentence():
    with open("/dev/full", "w") as full:
        ended = run("--version", stdout=full)
    assert ended.returncode == cli.NOBODY_READS
    assert ended.stderr.count("\n") == 1 and "No space left" in ended.stderr


def test_no_stdout_at_all_is_no_error(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    terminal = Terminal(sys.stdout)
    terminal.say("Nobody hears this.")
    terminal.training("token")(1, 0.5, 0.0, 0.0)
    terminal.flush()


class Stream(io.TextIOWrapper):
    def __init__(self, encoding="utf-8"):
        super().__init__(io.BytesIO(), encoding=encoding, newline="\n")

    @property
    def text(self):
        return self.buffer.getvalue().decode(self.encoding)


def test_an_ascii_console_shows_escapes():
    stream = Stream("ascii")
    Terminal(stream).say("a \U0001f600 caf\u00e9")
    assert stream.text == "a \\ud83d\\ude00 caf\\u00e9\n"


def test_names_do_not_steer_the_terminal():
    stream = Stream()
    terminal = Terminal(stream)
    terminal.say("Wrote a\x1b[2J\u202e.gif\x00")
    terminal.training("\x1b]0;title\x07")(1, 0.5, 0.0, 0.0)
    assert all(character.isprintable() or character == "\n" for character in stream.text)


def refused(monkeypatch, error):
    """The line on an ASCII stderr when a command ends in this error."""
    stream = Stream("ascii")
    monkeypatch.setattr(sys, "stderr", stream)

    def fail(argv, terminal):
        raise error

    monkeypatch.setattr(cli, "_run", fail)
    assert cli.main([]) == cli.FAILED
    assert stream.text.count("\n") == 1
    return stream.text


def test_errors_are_shown_as_safely(monkeypatch):
    assert (
        refused(monkeypatch, ValueError("There is no \x1b[31m\U0001f600."))
        == "There is no \\u001b[31m\\ud83d\\ude00.\n"
    )
    assert len(refused(monkeypatch, ValueError(f"There is no {'x' * 100_000}."))) < 200
    assert len(refused(monkeypatch, FileNotFoundError(2, "No such file", "x" * 100_000))) < 200


def test_a_reader_that_goes_ends_a_run_as_ctrl_c_does():
    class Gone(io.StringIO):
        def write(self, text):
            raise BrokenPipeError(32, "Broken pipe")

    terminal = Terminal(Gone())
    with pytest.raises(NobodyReads):
        terminal.say("Step 1")
    terminal.say("Silence")  # what ends the run may go on telling
    assert issubclass(NobodyReads, KeyboardInterrupt)


@pytest.mark.parametrize("debug", [False, True])
def test_warnings_are_ours_alone(monkeypatch, capsys, debug):
    def warn(argv, terminal):
        logging.getLogger("dreamvideo.encoders.clip").warning("The prompt is\ntoo long.")
        logging.getLogger("somebody").warning("Library talk.")
        warnings.warn("More of it.", stacklevel=1)

    monkeypatch.setattr(cli, "_run", warn)
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert cli.main(["--debug"] if debug else []) == 0
    got = capsys.readouterr()
    assert got.out == "The prompt is too long.\n" and ("Library talk." in got.err) == debug
    assert len(caught) == debug


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["sample", "a dog", "--seed", "1" * 5000], "at most 2^64 - 1"),
        (["sample", "a dog", "--fps", "1e300"], "from 0.1 to 1000"),
        (["train", "motion", "x", "--fps", "1e-300"], "from 0.1 to 1000"),
        (["sample", "a dog", "--frames", "1" + "0" * 8], "at most 512"),
        (["sample", "a dog", "--frames", "1" * 5000], "at most 512"),
        (["sample", "a dog", "--guidance", "x" * 5000], "--guidance"),
        (["sample", "a dog", "--out", "a:b.mp4"], "Windows"),
        (["sample", "a dog", "--out", "aux.mp4"], "device"),
        (["train", "subject", "x", "--class-word", "dog", "--placeholder", "<a\u202eb>"], "not seen"),
        (["train", "subject", "x", "--class-word", "dog", "--placeholder", f"<{'x' * 298}>"], "longer than 50"),
    ],
)
def test_what_cannot_be_is_told_before_anything_is_loaded(argv, words, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("dreamvideo.commands.common.open_base", lambda *_, **__: pytest.fail("A base was loaded."))
    assert cli.main(argv) == cli.FAILED
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1 and len(error) < 300 and error[:-1].isprintable()


class Screen(io.StringIO):
    def isatty(self):
        return True


def test_counting_is_silent_in_a_log_where_it_is_soon_done(monkeypatch):
    log, screen, seconds = io.StringIO(), Screen(), iter([0, 1, 2, 100, 100])
    tell = Terminal(log).counting("Encoding frame")
    for done in range(3):
        tell(done, 2)
    assert log.getvalue() == ""
    shown = Terminal(screen)
    tell = shown.counting("Encoding frame")
    for done in range(3):
        tell(done, 2)
    assert screen.getvalue().startswith("\rEncoding frame 0 of 2") and screen.getvalue().endswith("2 of 2\n")
    monkeypatch.setattr(terminal.time, "monotonic", lambda: next(seconds))
    tell = Terminal(log).counting("Encoding frame")
    for done in (0, 1, 2):
        tell(done, 2)
    assert log.getvalue() == "Encoding frame 2 of 2\n"
