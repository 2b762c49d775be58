"""Data types of stored tensors, and whether their numbers are numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import torch
from torch import Tensor

from .pickles import TensorSpec

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


DTYPE_CODES = {dtype: code for code, dtype in DTYPES.items()}


# Elements summed at once when looking for NaN: bounds the float32 copy PyTorch makes of half-precision numbers.
CHECK_ELEMENTS = 1 << 22


def main_dtype(specs: Iterable[TensorSpec]) -> torch.dtype:
    """The floating-point dtype most of the numbers have; float32 where there are none."""
    counts: Counter[torch.dtype] = Counter()
    for spec in specs:
        if spec.dtype.is_floating_point:
            counts[spec.dtype] += spec.elements
    return counts.most_common(1)[0][0] if counts else torch.float32


def readable(dtype: torch.dtype) -> torch.dtype:
    """`dtype`, or float16 for the 8-bit formats, which store numbers and do not compute; float16 holds them exactly."""
    return dtype if dtype.itemsize > 1 else torch.float16


def is_finite(tensor: Tensor) -> bool:
    """Whether no number is NaN or infinite; tensors that are not floating-point always are."""
    if not tensor.is_floating_point():
        return True
    chunks = tensor.reshape(-1).split(CHECK_ELEMENTS)
    if tensor.dtype.itemsize == 1:
        chunks = [chunk.to(torch.float16) for chunk in chunks]
    # A sum is finite unless a number is not, or (rarely) the sum itself overflows: then look at each.
    return all(
        torch.isfinite(chunk.sum(dtype=torch.promote_types(chunk.dtype, torch.float32))) or torch.isfinite(chunk).all()
        for chunk in chunks
    )
