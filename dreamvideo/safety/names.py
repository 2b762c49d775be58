"""Names of files that serve on every system alike."""

from __future__ import annotations

import re

from .texts import hidden, quoted

FORBIDDEN = '<>:"/\\|?*'  # in a name on Windows; the slash everywhere
LONGEST = 200  # bytes of a name, which leaves room for what is put behind it: file systems take 255
DEVICE = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9\u00b9\u00b2\u00b3])\s*(\..*)?", re.I | re.S)


def check_name(name: str) -> None:
    """Raise ValueError unless a file can have this name on Windows, macOS and Linux."""
    found = sorted({character for character in name if character in FORBIDDEN or hidden(character)})
    if found:
        raise ValueError(f"The file name {quoted(name)} holds {quoted(''.join(found))}, which Windows does not take.")
    if DEVICE.fullmatch(name):
        raise ValueError(f"The file name {quoted(name)} is a device's on Windows; give another one.")
    if name != name.rstrip(". "):
        raise ValueError(f"The file name {quoted(name)} ends in a dot or a blank, which Windows drops; end it before.")
    if len(name.encode()) > LONGEST:
        raise ValueError(
            f"The file name {quoted(name)} takes {len(name.encode())} bytes; give one of at most {LONGEST}."
        )


def is_device(name: str) -> bool:
    """Whether Windows takes this name for a device, whatever its suffix."""
    return DEVICE.fullmatch(name) is not None
