"""A base on disk: which files of a folder are its UNet, its text and image encoder and its autoencoder.

The front door to everything about checkpoint files; the rooms behind it: unet_files (UNet), encoder_files (CLIP, VAE),
fingerprint, and tensor_files, which knows file formats only.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..safety.paths import PathLike
from .encoders import find_clip, find_vae, open_clip_file, open_vae
from .fingerprint import fingerprint
from .layouts import find_layout, name_stranger
from .shards import shards
from .tensors import SUFFIXES, CheckpointError, StateDict, TensorFile
from .unet import read_unet

PARTS = {"unet": "UNet", "clip": "text and image encoder (CLIP)", "vae": "autoencoder (VAE)"}

# Names under which the parts are published, best first; patterns below the base's folder.
FILE_NAMES = {
    "unet": (
        "unet.safetensors",
        "text2video_pytorch_model.safetensors",
        "text2video_pytorch_model.pth",
        "model_scope_v1-5_0632000.pth",
        "model_scope_v1-4_0600000.pth",
        "unet/diffusion_pytorch_model*.safetensors",
        "unet/diffusion_pytorch_model*.bin",
    ),
    "clip": (
        "clip.safetensors",
        "open_clip_pytorch_model.safetensors",
        "open_clip_model.safetensors",
        "open_clip_pytorch_model.bin",
    ),
    "vae": (
        "vae.safetensors",
        "VQGAN_autoencoder.safetensors",
        "VQGAN_autoencoder.pth",
        "VQGAN_autoencoder.ckpt",
        "vae/diffusion_pytorch_model*.safetensors",
        "vae/diffusion_pytorch_model*.bin",
        "v2-1_512-ema-pruned.safetensors",
        "v2-1_512-ema-pruned.ckpt",
    ),
}
SOURCES = {
    "unet": (
        "text2video_pytorch_model.pth from iic/text-to-video-synthesis on ModelScope, the unet folder of "
        "damo-vilab/text-to-video-ms-1.7b on Hugging Face, or model_scope_v1-5_0632000.pth from iic/dreamvideo-t2v on "
        "ModelScope"
    ),
    "clip": "open_clip_pytorch_model.bin from laion/CLIP-ViT-H-14-laion2B-s32B-b79K on Hugging Face",
    "vae": (
        "VQGAN_autoencoder.pth from iic/text-to-video-synthesis on ModelScope, or v2-1_512-ema-pruned.ckpt from "
        "stabilityai/stable-diffusion-2-1-base on Hugging Face"
    ),
}


@dataclass(frozen=True)
class BaseFiles:
    """The files of a base; None where a part is missing."""

    unet: Path | None
    clip: Path | None
    vae: Path | None

    @property
    def missing(self) -> tuple[str, ...]:
        """Which of "unet", "clip", "vae" there is no file for."""
        return tuple(part for part in PARTS if getattr(self, part) is None)

    def file(self, part: str) -> Path:
        """The file of "unet", "clip" or "vae". Raises CheckpointError where there is none."""
        path = getattr(self, part)
        if path is None:
            raise CheckpointError(
                f"The base has no {PARTS[part]}: put its file into the same folder ({SOURCES[part]})."
            )
        return path


def find_base(
    folder: PathLike | None = None,
    *,
    unet: PathLike | None = None,
    clip: PathLike | None = None,
    vae: PathLike | None = None,
    partial: bool = False,
) -> BaseFiles:
    """The files of the base in `folder`, or the files given, which go before those of the folder.

    Parts are found by the names they are published under, else by what the tensor files of the folder hold.
    Raises CheckpointError when a part is missing (unless `partial`), telling which and where it comes from, and when a
    given file or the folder does not exist.
    """
    given = {part: Path(path) for part, path in (("unet", unet), ("clip", clip), ("vae", vae)) if path}
    for part, path in given.items():
        if path.is_dir():
            raise CheckpointError(
                f"{path} is a folder: name the file of the {PARTS[part]} in it, or give the folder of a base as --base."
            )
        if not path.is_file():
            raise CheckpointError(f"There is no file {path} for the {PARTS[part]}.")
    if folder is not None and Path(folder).is_file():
        raise CheckpointError(
            f"{folder} is a file, and a base is a folder: give the folder that holds it, or the file as a part "
            "(--unet, --clip or --vae)."
        )
    if folder is not None and not Path(folder).is_dir():
        raise CheckpointError(f"There is no folder {folder} to take the base from.")
    found = {part: given.get(part) or (_find_part(Path(folder), part) if folder else None) for part in PARTS}
    base = BaseFiles(**found)
    if base.missing and not partial:
        raise CheckpointError(_incomplete(base, folder))
    return base


def inspect(path: PathLike) -> dict[str, Any]:
    """What a base folder or one checkpoint file holds, JSON-safe, without reading the weights; `describe` prints it.

    A folder: {"path", "parts": {part: file's description}, "missing": {part: where it comes from}}. A file: the
    description of its UNet, else of its CLIP or VAE. Raises CheckpointError for anything else.
    """
    path = Path(path)
    if not path.is_dir():
        file = TensorFile(path)
        kinds = _kinds(file)
        if not kinds:
            raise CheckpointError(f"{path} is {name_stranger(file.specs)}, not a part of a base.")
        return _inspect_part(path, kinds[0])
    base = find_base(path, partial=True)
    if len(base.missing) == len(PARTS):
        raise CheckpointError(_incomplete(base, path))
    return {
        "path": str(path),
        "parts": {part: _inspect_part(getattr(base, part), part) for part in PARTS if part not in base.missing},
        "missing": {part: SOURCES[part] for part in base.missing},
    }


def describe(info: dict[str, Any]) -> str:
    """The result of `inspect` as text for a terminal."""
    if "parts" not in info:
        return "\n".join(_lines(info))
    blocks = ["\n".join(_lines(part)) for part in info["parts"].values()]
    blocks += [f"{PARTS[part]}: missing\n  comes from    {source}" for part, source in info["missing"].items()]
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
    return [PARTS[info["part"]], *(f"  {label:<13} {value}" for label, value in rows)]


def _inspect_part(path: Path, part: str) -> dict[str, Any]:
    if part == "unet":
        found = read_unet(path)
        facts: dict[str, Any] = {"layout": found.layout, "config": found.config.to_dict()}
        state: StateDict = found.state
        extra = {"notes": list(found.notes), "fingerprint": fingerprint(state)}
    else:
        state, config = open_vae(path) if part == "vae" else open_clip_file(path)
        vae = find_vae(state) if part == "vae" else None
        layout = "open_clip" if vae is None else vae[0]
        facts, extra = {"layout": layout, "config": config}, {}
    dtype = str(state.dtype).removeprefix("torch.")
    return {
        "path": str(path),
        "part": part,
        **facts,
        "dtype": dtype,
        "parameters": state.parameters,
        "tensors": len(state),
        **extra,
    }


def _kinds(file: TensorFile) -> list[str]:
    """Which parts of a base a file holds, the UNet first."""
    finders = {"unet": find_layout, "clip": find_clip, "vae": find_vae}
    return [part for part, find in finders.items() if find(file.specs) is not None]


def _find_part(folder: Path, part: str) -> Path | None:
    for pattern in FILE_NAMES[part]:
        files = [path for path in folder.glob(pattern) if path.is_file()]
        hits = sorted(files, key=lambda path: (len(path.name), path))
        if hits:
            return hits[0]
    named = {name for names in FILE_NAMES.values() for name in names}
    others = [path for path in sorted(folder.iterdir()) if path.suffix in SUFFIXES and path.name not in named]
    hits = sorted({shards(path)[0] for path in others if part in _kinds_or_none(path)})
    if len(hits) > 1:
        raise CheckpointError(
            f"{folder} has several files with a {PARTS[part]} ({', '.join(path.name for path in hits)}): name one."
        )
    return hits[0] if hits else None


def _kinds_or_none(path: Path) -> list[str]:
    try:
        return _kinds(TensorFile(path))
    except CheckpointError:
        return []  # a neighbour that is no checkpoint is no reason to refuse the folder


def _incomplete(base: BaseFiles, folder: PathLike | None) -> str:
    present = [PARTS[part] for part in PARTS if part not in base.missing]
    lacks = "; ".join(f"the {PARTS[part]}: {SOURCES[part]}" for part in base.missing)
    where = folder if folder is not None else "The base"
    state = f"is half a base (it has the {' and the '.join(present)})" if present else "holds no base"
    return f"{where} {state}; what is missing and where it comes from: {lacks}."
