"""A tiny image base in a ComfyUI's model folders, in the true layouts: `tiny_sd15` makes the host know its size."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

CHECKPOINT, MODULE, LORA = "dreamy.safetensors", "v3_sd15_mm.safetensors", "lora.safetensors"


def write_image_files(models: Path) -> tuple[Any, list[Path]]:
    """The network that a checkpoint and a motion module hold, and what was written: these, and a motion LoRA twice."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    import tiny_image_base as tiny
    from safetensors.torch import save_file

    net = tiny.network(tiny.V3)
    states = {
        f"checkpoints/{CHECKPOINT}": tiny.checkpoint(net),
        f"animatediff_models/{MODULE}": tiny.motion_state(net),
        f"animatediff_models/{LORA}": tiny.motion_lora(),
        f"dreamvideo_adapters/{LORA}": tiny.motion_lora(),
    }
    for name, state in states.items():
        (models / name).parent.mkdir(parents=True, exist_ok=True)
        save_file({key: tensor.contiguous().clone() for key, tensor in state.items()}, models / name)
    return net, [models / name for name in states]
