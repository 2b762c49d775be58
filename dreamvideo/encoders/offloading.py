"""Encoders whose weights stay in their files but while they are needed, so that main memory is left to the UNet."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..files.tensors import StateDict


class Offloaded:
    """An encoder whose weights the first call reads from their file and `release` lets go; else it is the encoder.

    module: holds the tensors called as in `stored`, on the meta device until then. reading: is told of every reading.
    """

    def __init__(
        self, encoder: Any, module: nn.Module, stored: StateDict, dtype: torch.dtype, reading: Callable[[], None]
    ) -> None:
        self._encoder, self._module, self._stored, self._dtype = encoder, module, stored, dtype
        self._reading = reading
        self._present = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._encoder, name)

    def encode(self, *given: Any, **named: Any) -> Any:
        self._read()
        return self._encoder.encode(*given, **named)

    def decode(self, *given: Any, **named: Any) -> Any:
        self._read()
        return self._encoder.decode(*given, **named)

    def embed_word(self, word: str) -> Tensor:
        self._read()
        return self._encoder.embed_word(word)

    def release(self) -> None:
        """Let go of the weights; the next call reads them again."""
        if not self._present:
            return
        shapes = self._stored.shapes
        self._fill({name: torch.empty(shape, dtype=self._dtype, device="meta") for name, shape in shapes.items()})
        self._present = False
        _give_back()

    def _read(self) -> None:
        if not self._present:
            self._reading()
            self._fill(dict(self._stored.stream(dtype=self._dtype)))
            self._present = True

    def _fill(self, tensors: dict[str, Tensor]) -> None:
        self._module.load_state_dict(tensors, strict=False, assign=True)  # not strict: it may be one tower of two


def _give_back() -> None:
    """Of freed tensors below 32 MB glibc keeps the pages, which would count as held by this process."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # other C libraries have none
        if trim is not None:
            trim(0)
