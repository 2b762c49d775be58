"""Files of encoders read whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dreamvideo.files.encoders import stored_clip, stored_vae

Read = tuple[dict[str, Tensor], dict[str, Any]]


def read_vae(path: Path, dtype: torch.dtype | None = None) -> Read:
    state, config = stored_vae(path)
    return dict(state.stream(dtype=dtype)), config


def read_clip(path: Path, dtype: torch.dtype | None = None) -> Read:
    state, config = stored_clip(path)
    return dict(state.stream(dtype=dtype)), config
