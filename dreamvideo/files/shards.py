"""Checkpoints in several files."""

from __future__ import annotations

import re
from pathlib import Path


def shards(path: Path) -> list[Path]:
    """All files of the sharded checkpoint of which `path` is one; a file that is whole alone gives itself.

    Knows Hugging Face's NAME-00001-of-00003.SUFFIX, or .fp16.SUFFIX, and VGen's ema_..._rank0000.pth (every n-th tensor
    a rank).
    """
    if part := re.fullmatch(r"(.*)-\d{5}-of-(\d{5})((?:\.\w+)+)", path.name):
        stem, count, suffix = part.groups()
        return [path.with_name(f"{stem}-{i + 1:05}-of-{count}{suffix}") for i in range(int(count))]
    if part := re.fullmatch(r"(.*_rank)\d{4}", path.stem):
        ranks = [
            path.parent / other
            for other in sorted(entry.name for entry in path.parent.glob(f"*{path.suffix}"))
            if re.fullmatch(re.escape(part[1]) + r"\d{4}", Path(other).stem)
        ]
        return ranks or [path]
    return [path]
