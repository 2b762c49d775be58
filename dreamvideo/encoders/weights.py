"""Filling a library's network with a file's tensors, checked one by one."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def filled(
    module: nn.Module, state: dict[str, Tensor], device: torch.device | str, dtype: torch.dtype, part: str
) -> nn.Module:
    moved = {key: _moved(key, state.pop(key), device, dtype, part) for key in list(state)}
    expected = module.state_dict()
    missing = [key for key in expected if key not in moved]
    if missing:
        raise ValueError(f"The {part} file lacks {len(missing)} of {len(expected)} tensors, {missing[0]} among them.")
    for key, tensor in expected.items():
        if moved[key].shape != tensor.shape:
            raise ValueError(
                f"The {part} file's {key} has shape {list(moved[key].shape)} where {list(tensor.shape)} belongs."
            )
    module.load_state_dict({key: moved[key] for key in expected}, assign=True)
    # The buffers are still to be moved; diffusers' own `to` would warn of a choice that is meant.
    return nn.Module.to(module, device, dtype).eval().requires_grad_(False)


def _moved(key: str, tensor: Tensor, device: torch.device | str, dtype: torch.dtype, part: str) -> Tensor:
    if not tensor.is_floating_point():
        return tensor.to(device)
    if not tensor.isfinite().all():
        raise ValueError(f"The {part} file's {key} holds values that are not numbers: the file is damaged.")
    return tensor.to(device, dtype)
