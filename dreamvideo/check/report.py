"""What a check found, as facts under headings and as plain text that can be pasted into a bug report."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

WIDTH, NAMES = 100, 22  # characters of a line, and of the column with the findings' names
PATH = re.compile(r"(?<![\w.~])(?:~|[A-Za-z]:)?(?:[/\\][^/\\\s'\",;:()<>|]+){2,}")


@dataclass(frozen=True)
class Finding:
    """One fact. advice: a sentence on what to do where the fact needs attention, else empty."""

    name: str
    text: str
    advice: str = ""

    @property
    def verdict(self) -> str:
        """ "ok" or "attention"."""
        return "attention" if self.advice else "ok"


@dataclass(frozen=True)
class Section:
    title: str
    findings: tuple[Finding, ...]
    seconds: float


@dataclass(frozen=True)
class Report:
    sections: tuple[Section, ...]

    @property
    def attention(self) -> tuple[Finding, ...]:
        """The findings that need it."""
        return tuple(finding for section in self.sections for finding in section.findings if finding.advice)

    @property
    def text(self) -> str:
        """Lines of at most 100 characters, without paths: of a file its name is left."""
        seconds = round(sum(section.seconds for section in self.sections))
        count = len(self.attention)
        verdict = f"{count} {'finding needs' if count == 1 else 'findings need'} attention" if count else "all ok"
        lines = [f"DreamVideo check: {verdict} ({seconds} s)"]
        for section in self.sections:
            lines += ["", f"{section.title} ({section.seconds:.1f} s)"]
            lines += [line for finding in section.findings for line in _lines(finding)]
        return "\n".join(lines) + "\n"


def _lines(finding: Finding) -> list[str]:
    lines = _wrapped(f"  {finding.name:<{NAMES}}", finding.text)
    return lines + (_wrapped(f"  {'':<{NAMES}}ATTENTION: ", finding.advice) if finding.advice else [])


def _wrapped(start: str, text: str) -> list[str]:
    indent = " " * (NAMES + 2)
    return textwrap.wrap(nameless(text), WIDTH, initial_indent=start, subsequent_indent=indent) or [start.rstrip()]


def nameless(text: str) -> str:
    """A text in which only the last part is left of every path, so that it names no folder and no user."""
    home = str(Path.home())
    text = text.replace(home, "~") if len(home) > 1 else text
    return PATH.sub(lambda found: re.split(r"[/\\]", found[0])[-1], text)
