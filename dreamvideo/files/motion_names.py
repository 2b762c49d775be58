"""Names of a motion module's tensors: AnimateDiff's, which are ours, and diffusers'."""

from __future__ import annotations

import re

# Parts of a block: AnimateDiff's name -> diffusers'.
_PARTS = {
    "attention_blocks.0": "attn1",
    "attention_blocks.1": "attn2",
    "norms.0": "norm1",
    "norms.1": "norm2",
    "ff_norm": "norm3",
}
_BLOCK = ".transformer_blocks.0."


def motion_diffusers_name(name: str, back: bool = False) -> str:
    """The name in diffusers' MotionAdapter of a tensor of AnimateDiff's motion module; back: the other way."""
    if back:
        name = re.sub(r"(motion_modules\.\d+)\.", r"\1.temporal_transformer.", name)
    else:
        name = name.replace(".temporal_transformer.", ".", 1)
    for ours, theirs in _PARTS.items():
        old, new = (theirs, ours) if back else (ours, theirs)
        name = name.replace(f"{_BLOCK}{old}.", f"{_BLOCK}{new}.")
    return name
