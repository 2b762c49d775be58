"""Weight deltas on the host's MODEL: its own patches, which it merges, pages and casts as it does a LoRA's."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...dreamvideo.models.stack import StackEntry
from .model import KEY, unet_of
from .paging import static_clone

PATCHES = f"{KEY}_deltas"  # attachment: the patches that are ours


def with_deltas(model: Any, placed: StackEntry) -> Any:
    """A clone of a MODEL with weight deltas on it, which the host merges once, as it does with a LoRA.

    Where they act in a part of the trajectory only, or where the weights are kept in 8 bits, which would round a small
    change away, they are added each time a weight is used instead, to weights that are not paged.
    """
    changes = {f"diffusion_model.{name}": change.detach() for name, change in placed.adapter.changes().items()}
    if placed.window == (0.0, 1.0) and unet_of(model).weight_dtype.itemsize > 1:
        return _merged(model.clone(), changes, placed.strength)
    return _added(static_clone(model), changes, placed)


def _merged(clone: Any, changes: dict[str, Tensor], strength: float) -> Any:
    patches = {name: ("diff", (change,)) for name, change in changes.items()}
    clone.add_patches(patches, strength)
    clone.set_attachments(PATCHES, (*(clone.get_attachment(PATCHES) or ()), *patches.values()))
    return clone


class _Strength(threading.local):
    """Of deltas in the forward that this thread runs."""

    value = 0.0

    @contextmanager
    def during(self, value: float) -> Iterator[None]:
        before, self.value = self.value, value
        try:
            yield
        finally:
            self.value = before


def _added(clone: Any, changes: dict[str, Tensor], placed: StackEntry) -> Any:
    strength = _Strength()

    def wrapper(executor, x, t, *given, **named):
        timesteps = executor.class_obj.model_sampling.timestep(t).float().cpu()
        with strength.during(placed.factor(timesteps)):
            return executor(x, t, *given, **named)

    for name, change in changes.items():
        clone.add_weight_wrapper(name, _adding(change, strength))
    clone.add_wrapper_with_key(WrappersMP.APPLY_MODEL, f"{KEY}.{uuid.uuid4()}", wrapper)
    return clone


def _adding(change: Tensor, strength: _Strength) -> Callable[[Tensor], Tensor]:
    def add(weight: Tensor) -> Tensor:
        return weight + strength.value * change.to(weight) if strength.value else weight

    return add


def take_off_deltas(clone: Any) -> None:
    """Remove deltas that are merged from a clone of a MODEL; others are not added without their wrapper."""
    ours = {id(patch) for patch in clone.get_attachment(PATCHES) or ()}
    if ours:
        kept = {name: [each for each in patches if id(each[1]) not in ours] for name, patches in clone.patches.items()}
        clone.patches = {name: patches for name, patches in kept.items() if patches}
        clone.patches_uuid = uuid.uuid4()  # by which the host tells what is merged from what is not
        clone.remove_attachments(PATCHES)
