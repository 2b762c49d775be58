"""The command line: runs a command, and turns whatever ends it into an exit code and one sentence."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence

from .commands.terminal import Terminal

FAILED, INTERRUPTED = 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run `dreamvideo ARGV`; the process's own arguments by default. Returns the exit code.

    0: done. 2: an error, told in one sentence on stderr, with the traceback before it where --debug is given.
    130: Ctrl-C, with a sentence on what is kept.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    terminal = Terminal(sys.stdout)
    try:
        # Here, not above: importing PyTorch takes seconds, in which Ctrl-C should end as cleanly as later.
        from .commands.arguments import build_parser

        args = build_parser().parse_args(argv)
        args.run(args, terminal)
        return 0
    except KeyboardInterrupt as interrupt:
        code, sentence = INTERRUPTED, str(interrupt) or "Interrupted; what was there before is unchanged."
    except Exception as error:
        terminal.close()
        if "--debug" in argv:
            traceback.print_exc()
        code, sentence = FAILED, explain(error)
    terminal.close()
    print(sentence, file=sys.stderr)
    return code


def explain(error: Exception) -> str:
    """What went wrong, in one line."""
    text = " ".join(str(error).split())
    if isinstance(error, ValueError):
        return text
    if isinstance(error, MemoryError) or "out of memory" in text or "allocate memory" in text:
        from .memory import explain_shortage  # brings PyTorch, without which nothing came so far

        return explain_shortage(error)
    if isinstance(error, ModuleNotFoundError):
        return f'The library {error.name} is not installed; pip install "dreamvideo[standalone]" brings it.'
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'A file'}: {error.strerror}."
    return f"Unexpected {type(error).__name__}: {text or 'no message'} (--debug shows where)."
