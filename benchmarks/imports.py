"""Figure 6: what importing the package, and ComfyUI's pack without its host, costs beyond torch."""

from __future__ import annotations

import statistics
import subprocess
import sys
from pathlib import Path

from .setting import Row, Setting

ROOT = Path(__file__).parents[1]
MODULES = {
    "the package": "import dreamvideo.library",
    "the command line's parser": "from dreamvideo.commands.arguments import build_parser",
}


def rows(setting: Setting) -> list[Row]:
    found = []
    for name, statement in MODULES.items():
        seconds = statistics.median(_seconds(statement) for _ in range(setting.rounds))
        found.append(Row(6, f"importing {name} beyond torch", 1000 * seconds, "ms"))
    return found


def _seconds(statement: str) -> float:
    """In a fresh process, after torch."""
    code = f"import time, torch; began = time.process_time(); {statement}; print(time.process_time() - began)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return float(done.stdout)
