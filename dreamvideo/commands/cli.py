"""The command line: runs a command, and turns whatever ends it into an exit code and one sentence."""

from __future__ import annotations

import logging
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from ..safety.texts import one_line
from .errors import explain
from .terminal import NobodyReads, Terminal

FAILED, INTERRUPTED, NOBODY_READS = 2, 130, 141


def main(argv: Sequence[str] | None = None) -> int:
    """Run `dreamvideo ARGV`; the process's own arguments by default. Returns the exit code.

    0: done. 2: an error, told in one sentence on stderr, with the traceback before it where --debug is given.
    130: Ctrl-C, with a sentence on what is kept. 141: nobody reads any more what is told, as behind `| head`.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    terminal, errors = Terminal(sys.stdout), Terminal(sys.stderr)
    debug = "--debug" in argv
    try:
        try:
            with _libraries_in_silence(terminal, debug):
                _run(argv, terminal)
            return 0
        except KeyboardInterrupt:
            raise
        except Exception as error:
            terminal.close()
            if debug:
                errors.say(traceback.format_exc().rstrip())
            code, sentence = FAILED, explain(error)
    except NobodyReads as end:
        code, sentence = NOBODY_READS, str(end)
    except KeyboardInterrupt as interrupt:
        code, sentence = INTERRUPTED, str(interrupt) or "Interrupted; what was there before is unchanged."
    with suppress(NobodyReads):
        terminal.close()
    with suppress(NobodyReads):
        if sentence:
            errors.say(sentence)
    return code


def _run(argv: Sequence[str], terminal: Terminal) -> None:
    # Here, not above: importing PyTorch takes seconds, in which Ctrl-C should end as cleanly as later.
    from .arguments import build_parser

    try:
        args = build_parser().parse_args(argv)
    except SystemExit:  # --help, --version
        terminal.flush()
        raise
    args.run(args, terminal)


class _Told(logging.Handler):
    """What the engine's own modules warn of, as lines of the terminal."""

    def __init__(self, terminal: Terminal) -> None:
        super().__init__(logging.WARNING)
        self.terminal = terminal

    def emit(self, record: logging.LogRecord) -> None:
        self.terminal.say(one_line(record.getMessage()))


@contextmanager
def _libraries_in_silence(terminal: Terminal, debug: bool) -> Iterator[None]:
    """Warnings of other libraries are for their developers: they are shown with --debug only."""
    ours, everyone = logging.getLogger(__name__.partition(".")[0]), logging.getLogger()
    told, nowhere = _Told(terminal), logging.NullHandler()
    ours.addHandler(told)
    if not debug:
        everyone.addHandler(nowhere)
    try:
        with warnings.catch_warnings():
            if not debug:
                warnings.simplefilter("ignore")
            yield
    finally:
        ours.removeHandler(told)
        everyone.removeHandler(nowhere)
