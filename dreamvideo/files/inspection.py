"""What a base's folder, or one file of a base, holds: looked at, told to people."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..safety.paths import PathLike
from .base import SOURCES, find_base, incomplete, named
from .encoders import find_vae, open_clip_file, open_vae
from .fingerprint import fingerprint
from .image_encoders import stored_image
from .kinds import kinds_of, refuse_other_unet
from .layouts import name_stranger
from .loras import is_lora, read_lora
from .motion_modules import MotionFile, read_motion_module
from .tensors import CheckpointError, StateDict, TensorFile
from .text_encoders import stored_text
from .unet import read_unet

LORA = "LoRA of AnimateDiff, to be merged (dreamvideo convert FILE OUT --lora LORA)"


def inspect(path: PathLike) -> dict[str, Any]:
    """What a base folder or one checkpoint file holds, JSON-safe, without reading the weights; `describe` prints it.

    A folder: {"path", "parts": {part: file's description}, "missing": {part: where it comes from}}. A file: the
    description of its UNet, else of what else it is. Raises CheckpointError for anything else.
    """
    path = Path(path)
    if not path.is_dir():
        return _inspect_file(path)
    base = find_base(path, partial=True)
    if not base.present:
        raise CheckpointError(incomplete(base, path))
    return {
        "path": str(path),
        "parts": {part: _inspect_part(file, part) for part, file in base.present.items()},
        "missing": {part: SOURCES[part] for part in base.missing},
    }


def _inspect_file(path: Path) -> dict[str, Any]:
    file = TensorFile(path)
    if is_lora(file.specs):
        return _inspect_lora(path)
    kinds = kinds_of(file)
    if any("motion_modules." in name for name in file.specs) and not kinds:
        read_motion_module(path)  # which says why it is none that runs here
    if not kinds:
        refuse_other_unet(path)
        raise CheckpointError(f"{path} is {name_stranger(file.specs)}, not a part of a base.")
    return _inspect_part(path, kinds[0].removeprefix("image "))


def describe(info: dict[str, Any]) -> str:
    """The result of `inspect` as text for a terminal."""
    if "parts" not in info:
        return "\n".join(_lines(info))
    blocks = ["\n".join(_lines(part)) for part in info["parts"].values()]
    blocks += [f"{named(part)}: missing\n  comes from    {source}" for part, source in info["missing"].items()]
    return "\n\n".join(blocks)


def _lines(info: dict[str, Any]) -> list[str]:
    config = ", ".join(f"{key} {value}" for key, value in info["config"].items())
    rows = [
        ("file", info["path"]),
        ("layout", info["layout"]),
        ("dtype", info["dtype"]),
        ("parameters", f"{info['parameters']:,} in {info['tensors']} tensors"),
        ("config", config),
        *([("fingerprint", info["fingerprint"])] if "fingerprint" in info else []),
        *(("note", note) for note in info.get("notes", [])),
    ]
    title = LORA if info["part"] == "lora" else named(info["part"])
    return [title, *(f"  {label:<13} {value}" for label, value in rows)]


def _inspect_part(path: Path, part: str) -> dict[str, Any]:
    extra: dict[str, Any] = {}
    if part == "unet":
        found = read_unet(path)
        state: StateDict = found.state
        layout, config = found.layout, found.config.to_dict()
        extra = {"notes": list(found.notes), "fingerprint": fingerprint(state)}
    elif part == "motion_module":
        motion = read_motion_module(path)
        state, layout, config = motion.state, motion.layout, _about_motion(motion)
    elif part in ("text", "vision"):
        state, config = stored_text(path) if part == "text" else stored_image(path)
        layout = "transformers"
    else:
        state, config = open_vae(path) if part == "vae" else open_clip_file(path)
        vae = find_vae(state) if part == "vae" else None
        layout = "open_clip" if vae is None else vae[0]
    return {"path": str(path), "part": part, "layout": layout, "config": config, **_size(state), **extra}


def _about_motion(motion: MotionFile) -> dict[str, Any]:
    return {
        "version": motion.version,
        "frames": motion.frames,
        "channels": list(motion.channels),
        "middle": motion.middle,
    }


def _size(state: StateDict) -> dict[str, Any]:
    return {
        "dtype": str(state.dtype).removeprefix("torch."),
        "parameters": state.parameters,
        "tensors": len(state),
    }


def _inspect_lora(path: Path) -> dict[str, Any]:
    lora = read_lora(path)
    names = {name: name for pair in lora.pairs.values() for name in pair}
    state = StateDict(lora.file, names, {name: lora.file.specs[name].shape for name in names})
    rank = max(state.shapes[down][0] for down, _ in lora.pairs.values())
    config = {"rank": rank, "weights": len(lora.pairs), "middle": any("mid_block" in weight for weight in lora.pairs)}
    return {"path": str(path), "part": "lora", "layout": lora.what, "config": config, **_size(state)}
