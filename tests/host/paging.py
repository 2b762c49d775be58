"""Dynamic VRAM of newer ComfyUI on a CPU: the host's own patchers, loaders and layers, over pages in main memory.

On a card a layer's weight is a view of a page, brought in for a call of the layer and given up behind it: a page is
taken for another layer at any time. Here few pages are kept, and one that is taken reads NaN from then on.
"""

from __future__ import annotations

import ctypes
import mmap
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch

PAGES = 1  # that are kept


def supported() -> bool:
    """As it is since 0.16; before, it was another thing, opted in to."""
    import comfy.model_patcher

    if not hasattr(comfy.model_patcher, "CoreModelPatcher"):
        return False
    import comfy.memory_management

    return hasattr(comfy.memory_management, "aimdo_enabled")


class Pages:
    """In place of a model's range of addresses on the card."""

    def __init__(self) -> None:
        self.end = 0
        self.signature = 0
        self.held: dict[int, tuple[int, Any, Any]] = {}  # address -> (signature, weight, bias), the oldest first

    def alloc(self, size: int) -> tuple[Pages, int, int]:
        address, self.end = self.end, self.end + size
        return self, address, size

    def prioritize(self, *_: Any) -> None: ...

    def loaded_size(self) -> int:
        return 0

    def free_memory(self, size: float) -> int:
        while self.held:
            self._evict()
        return 0

    def weights(self, layer: Any, dtype: torch.dtype | None) -> tuple[Any, Any]:
        """A layer's weight and bias in its page, brought in where they are not what the layer saw last."""
        address = layer._v[1]
        signature, *found = self.held.pop(address, (None, None, None))
        if signature is None or signature != layer._v_signature:
            self.signature += 1
            signature = layer._v_signature = self.signature
            found = [_merged(layer, name, dtype) for name in ("weight", "bias")]
        self.held[address] = (signature, *found)
        while len(self.held) > PAGES:
            self._evict()
        return tuple(found)

    def _evict(self) -> None:
        _, *gone = self.held.pop(next(iter(self.held)))
        for tensor in gone:
            if tensor is not None:  # behind PyTorch's back, as a card's memory changes
                ctypes.memset(tensor.data_ptr(), 0xFF, tensor.nbytes)


def _merged(layer: Any, name: str, dtype: torch.dtype | None) -> torch.Tensor | None:
    source = getattr(layer, name, None)
    if source is None:
        return None
    kept = getattr(layer, f"{name}_comfy_model_dtype", None) or source.dtype
    patch = getattr(layer, f"{name}_lowvram_function", None)
    page = source.detach().to(kept, copy=True)
    return page if patch is None else patch(page.to(dtype=dtype)).to(kept)


class _HostBuffer:
    size = 0

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def truncate(self, *_: Any, **__: Any) -> None: ...


class _File:
    """In place of the host's map of a file."""

    def __init__(self, path: str) -> None:
        self.file = open(path, "rb")  # noqa: SIM115, as long as the map
        self.map = mmap.mmap(self.file.fileno(), 0, access=mmap.ACCESS_COPY)

    def get(self) -> int:
        return ctypes.addressof(ctypes.c_char.from_buffer(self.map))

    def get_file_handle(self) -> int:
        return self.file.fileno()

    def bounce(self) -> bool:
        return True


@contextmanager
def paging():
    """Switch it on for what is loaded from here on."""
    import comfy.memory_management
    import comfy.model_patcher
    import comfy.ops
    import comfy_aimdo.host_buffer
    import comfy_aimdo.model_mmap
    import comfy_aimdo.model_vbar

    dynamic = comfy.model_patcher.ModelPatcherDynamic
    plain_cast, plain_uncast = comfy.ops.cast_bias_weight, comfy.ops.uncast_bias_weight

    def cast(layer, input=None, dtype=None, device=None, bias_dtype=None, offloadable=False, **options):
        if not hasattr(layer, "_v"):
            return plain_cast(layer, input, dtype, device, bias_dtype, offloadable, **options)
        dtype = dtype or getattr(input, "dtype", None)  # None: as it is kept
        found = layer._v[0].weights(layer, dtype)
        cast = []
        for name, tensor, wanted in zip(("weight", "bias"), found, (dtype, bias_dtype or dtype), strict=True):
            tensor = None if tensor is None else tensor.to(dtype=wanted)
            for function in getattr(layer, f"{name}_function", []) if tensor is not None else []:
                tensor = function(tensor)
            cast.append(tensor)
        return (*cast, None) if offloadable else tuple(cast)

    def uncast(layer, *given):
        if not hasattr(layer, "_v"):
            plain_uncast(layer, *given)

    def pages_of(patcher, create=False):
        held = patcher.model.dynamic_vbars
        if create and patcher.load_device not in held:
            held[patcher.load_device] = Pages()
        return held.get(patcher.load_device)

    def unload(patcher, device_to, memory_to_free=0, force_patch_weights=False):
        pages = pages_of(patcher)
        return patcher.restore_loaded_backups() + (0 if pages is None else pages.free_memory(memory_to_free))

    changes = (
        (comfy.memory_management, "aimdo_enabled", True),
        (comfy.model_patcher, "CoreModelPatcher", dynamic),
        (comfy.ops, "cast_bias_weight", cast),
        (comfy.ops, "uncast_bias_weight", uncast),
        (comfy_aimdo.host_buffer, "HostBuffer", _HostBuffer),
        (comfy_aimdo.model_mmap, "ModelMMAP", _File),
        (comfy_aimdo.model_vbar, "vbar_unpin", lambda _: None),
        (dynamic, "__new__", staticmethod(lambda cls, *_, **__: object.__new__(cls))),
        (dynamic, "_vbar_get", pages_of),
        (dynamic, "partially_unload", unload),
    )
    with ExitStack() as stack:
        for owner, name, value in changes:
            stack.enter_context(mock.patch.object(owner, name, value))
        yield
