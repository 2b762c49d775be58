"""Half precision's range, and the optimiser's arithmetic."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


class LossScale:
    """Keeps gradients within half precision's range: a factor that halves on overflow and doubles after long peace.

    For float16 only; elsewhere the factor is 1 and stays so. Not torch.amp.GradScaler, which on mps needs PyTorch 2.8,
    and keeps on the device what a step waits for once: the factor, and whether to halve it.
    """

    PEACE = 2000

    def __init__(self, dtype: torch.dtype) -> None:
        self.active = dtype == torch.float16
        self.factor = 65536.0 if self.active else 1.0
        self.good = 0

    @property
    def may_shrink(self) -> bool:
        return self.active and self.factor > 1.0

    def after(self, finite: bool) -> None:
        """Take note of a step whose gradients were finite or not."""
        if not self.active:
            return
        self.good = self.good + 1 if finite else 0
        if not finite:
            self.factor /= 2
        elif self.good == self.PEACE:
            self.factor, self.good = self.factor * 2, 0

    def state(self) -> Tensor:
        return torch.tensor([self.factor, self.good], dtype=torch.float64)

    def restore(self, state: Tensor) -> None:
        factor, good = state.tolist()
        if self.active:
            self.factor, self.good = factor, int(good)


def adamw(rates: Iterable[tuple[Tensor, float]]) -> torch.optim.AdamW:
    """Of tensors with a learning rate each; in one kernel where device and PyTorch have it."""
    groups: dict[float, list[Tensor]] = {}
    for tensor, rate in rates:
        groups.setdefault(rate, []).append(tensor)
    named = [
        {"params": tensors, "lr": rate, "rate": rate} for rate, tensors in groups.items()
    ]  # "rate": once it is warm
    try:
        return torch.optim.AdamW(named, weight_decay=0.0, fused=True)
    except RuntimeError:
        return torch.optim.AdamW(named, weight_decay=0.0)


def total_norm(tensors: Iterable[Tensor]) -> Tensor:
    """The norm of all of them together, not finite where one number is not: a scalar that is still on its way.

    It lies where the first of them does; the others may lie elsewhere.
    """
    found = torch._foreach_norm([t.detach() for t in tensors])  # pyright: ignore[reportPrivateImportUsage]  # all at once
    return torch.stack([norm.to(found[0].device, torch.float32) for norm in found]).norm()


def all_finite(tensors: Iterable[Tensor]) -> bool:
    return all(tensor.detach().float().isfinite().all() for tensor in tensors)  # float: nothing asks eight-bit numbers
