"""A UNet checkpoint that was opened and not yet read, of any family; what their readers share."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..models.config import NetworkConfig
from ..models.families import config_from
from ..models.image_config import MOTION
from ..safety.limits import bare, json_object, parsed
from .dtypes import readable
from .layouts import ignored, reshapable
from .motion_modules import MotionFile
from .tensors import CheckpointError, StateDict, TensorFile, check_weights


@dataclass(frozen=True)
class UNetFile:
    """A UNet checkpoint, opened and not yet read.

    state: every tensor under its original name and shape, read when asked for; state.stream() reads them all in turn.
    layout: "original", "diffusers" or "vgen" (original names in a container, as VGen saves). dtype: of most numbers.
    notes: what is unusual about the file or was left unread, for people. motion: the motion module that an image UNet
    was opened with; the config knows of it, the state does not.
    """

    path: Path
    layout: str
    config: NetworkConfig
    state: StateDict
    notes: tuple[str, ...]
    motion: MotionFile | None = None

    @property
    def dtype(self) -> torch.dtype:
        return self.state.dtype

    @property
    def parameters(self) -> int:
        return self.state.parameters + (self.motion.state.parameters if self.motion else 0)

    def stream(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Iterator[tuple[str, Tensor]]:
        """Every tensor of the network, in turn. dtype: None for the file's own."""
        dtype = dtype or readable(self.dtype)
        yield from self.state.stream(device, dtype)
        if self.motion is not None:
            for name, tensor in self.motion.state.stream(device, dtype):
                yield f"{MOTION}.{name}", tensor

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """Every tensor of the network by name, read when asked for."""
        if self.motion is None:
            return self.state
        own = self.motion.state
        stored = {f"{MOTION}.{name}": old for name, old in own.stored.items()}
        shapes = {f"{MOTION}.{name}": shape for name, shape in own.shapes.items()}
        return ChainMap(*map(_mutable, (self.state, StateDict(own.file, stored, shapes))))


def _mutable(state: StateDict) -> Any:
    return state  # a ChainMap of them is only read


def given_config(file: TensorFile) -> NetworkConfig | None:
    """The config that a file's metadata tells, if they do."""
    text = file.metadata.get("unet_config")
    if text is None:
        return None
    try:
        return config_from(json_object("unet_config", parsed(text)))
    except ValueError as error:
        raise CheckpointError(f"its metadata is damaged: {str(error).rstrip('.')}") from error


def _check_complete(
    path: Path,
    names: Mapping[str, str],
    wanted: Mapping[str, tuple[int, ...]],
    shapes: Mapping[str, tuple[int, ...]],
    what: str = "UNet",
) -> None:
    """Raise CheckpointError unless all tensors `wanted` are there, under their `names` in the file."""
    missing = [new for new in names.values() if new not in shapes]
    if missing:
        raise CheckpointError(
            f"{path} lacks {len(missing)} of the {what}'s {len(names)} tensors (such as {missing[0]}): "
            "it is incomplete or another architecture."
        )
    for name, new in names.items():
        if not reshapable(name, shapes[new], wanted[name]):
            raise CheckpointError(
                f"{path}: {new} has shape {list(shapes[new])} where the {what} needs {list(wanted[name])}: "
                "it is another architecture."
            )


def whole_state(
    file: TensorFile,
    prefix: str,
    stored: Mapping[str, str],
    names: Mapping[str, str],
    wanted: Mapping[str, tuple[int, ...]],
    stranger: str,
) -> tuple[StateDict, tuple[str, ...]]:
    """All tensors `wanted`, whole and with none beside them that nobody knows; and the notes of their file.

    stored: name in the layout -> in the file. names: name in the network -> in the layout. stranger: whose others are
    not, with {} for some of them, and what that means.
    """
    _check_complete(file.path, names, wanted, {name: file.specs[old].shape for name, old in stored.items()})
    known, unknown = ignored(set(stored) - set(names.values()))
    if unknown:
        some = ", ".join(map(bare, sorted(unknown)[:3]))
        raise CheckpointError(f"{file.path} has {len(unknown)} tensors that {stranger.format(some)}.")
    state = StateDict(file, {name: stored[new] for name, new in names.items()}, wanted)
    check_weights(file.path, state.specs)
    return state, _notes_on(prefix, known, state)


def _notes_on(prefix: str, known: Mapping[str, int], state: StateDict) -> tuple[str, ...]:
    """What is unusual about a file, for people. known: what was left unread -> how many tensors."""
    notes = [f"tensor names begin with {bare(prefix)}"] if prefix else []
    reshaped = sum(state.file.specs[old].shape != state.shapes[name] for name, old in state.stored.items())
    if reshaped:
        notes.append(f"{reshaped} projections stored in another shape")
    notes += [f"not used: {what} ({count} tensors)" for what, count in known.items()]
    outside = sum(not name.startswith(prefix) for name in state.file.specs)
    if outside:
        notes.append(f"not used: {outside} tensors of other models")
    return tuple(notes)
