"""The embedded base's training loop: counts steps, keeps an average of the weights, resumes, tells how it goes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..safety.paths import atomic_path


class Loop:
    """Iterate over the steps that are left; `update(loss)` makes one optimiser step.

    The state (weights, averaged weights, optimiser, step) is saved every minute to `path`, atomically. A random draw
    must depend on the step and the process's rank alone, then a resumed run equals an undisturbed one. Processes of a
    `torch.distributed` group average their gradients; the first one saves.
    """

    def __init__(
        self, path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, decay: float = 0.995
    ) -> None:
        self.path, self.model, self.optimizer, self.steps, self.decay = path, model, optimizer, steps, decay
        self.step, self.loss = 0, 0.0
        if path.exists():
            state = torch.load(path, map_location=next(model.parameters()).device, weights_only=True)
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            self.step, self.loss = state["step"], state["loss"]
            self.average = state["average"]
        else:
            self.average = {name: value.detach().clone() for name, value in model.state_dict().items()}

    def __iter__(self) -> Iterator[int]:
        began, first, saved = time.monotonic(), self.step, time.monotonic()
        while self.step < self.steps:
            yield self.step
            self.step += 1
            if rank() == 0 and (time.monotonic() - saved > 60 or self.step == self.steps):
                self.save()
                saved = time.monotonic()
                speed = (self.step - first) / (saved - began)
                left = (self.steps - self.step) / speed / 60
                print(
                    f"{self.path.stem}: step {self.step}/{self.steps}, loss {self.loss:.4f}, "
                    f"{speed:.2f} steps/s, {left:.0f} min left",
                    flush=True,
                )

    def update(self, loss: Tensor) -> None:
        """One optimiser step on `loss`; the running loss and the averaged weights follow."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self._share_gradients()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        value = float(loss.detach())
        self.loss = value if self.step == 0 else 0.98 * self.loss + 0.02 * value
        decay = min(self.decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for name, weight in self.model.state_dict().items():
                self.average[name].lerp_(weight, 1 - decay)

    def _share_gradients(self) -> None:
        if not dist.is_initialized():
            return
        gradients = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        flat /= dist.get_world_size()
        for gradient, part in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def save(self) -> None:
        state = {
            "model": self.model.state_dict(),
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "loss": self.loss,
        }
        with atomic_path(self.path) as temporary:
            torch.save(state, temporary)


def averaged(path: Path, prefix: str = "") -> dict[str, Tensor]:
    """The averaged weights in a training's file, of those that begin with a prefix, without it."""
    found = torch.load(path, map_location="cpu", weights_only=True)["average"]
    return {name.removeprefix(prefix): value for name, value in found.items() if name.startswith(prefix)}


def rank() -> int:
    """This process's place in its group, 0 where there is none."""
    return dist.get_rank() if dist.is_initialized() else 0


def processes() -> int:
    """How many processes are in this one's group."""
    return dist.get_world_size() if dist.is_initialized() else 1
