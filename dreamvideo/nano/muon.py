"""Muon (Jordan et al., 2024): momentum whose update has all its singular values brought to one.

PyTorch's own takes matrices only, and an autoencoder has convolutions. What is no matrix (biases, norms), and the
layers that touch pixels or latents, are trained by Adam in the same optimiser.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn

# Of the quintic that drives singular values from (0, 1] to about 1 in five rounds, by its authors.
ROUNDS, QUINTIC = 5, (3.4445, -4.7750, 2.0315)


class Muon(torch.optim.Optimizer):
    """matrices: weights [out, ...], flattened to [out, rest]; others: by Adam at `adam_rate`."""

    def __init__(
        self,
        matrices: Iterable[nn.Parameter],
        others: Iterable[nn.Parameter],
        rate: float,
        adam_rate: float,
        momentum: float = 0.95,
    ) -> None:
        groups = [
            {"params": list(matrices), "lr": rate, "peak": rate, "muon": True},
            {"params": list(others), "lr": adam_rate, "peak": adam_rate, "muon": False},
        ]
        super().__init__(groups, {"momentum": momentum, "betas": (0.9, 0.99), "eps": 1e-8})

    def at(self, part: float) -> None:
        """Set the rates to this part of their peaks."""
        for group in self.param_groups:
            group["lr"] = group["peak"] * part

    @torch.no_grad()
    def step(self, closure=None) -> None:  # type: ignore[override]  # nobody re-evaluates a loss here
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if group["muon"]:
                _muon(weights, [self.state[weight] for weight in weights], group)
            else:
                for weight in weights:
                    _adam(weight, weight.grad, self.state[weight], group)


def _muon(weights: list[nn.Parameter], states: list[dict], group: dict) -> None:
    """Processes of a `torch.distributed` group, whose gradients are equal by then, share the work."""
    directions = [_ahead(weight, state, group["momentum"]) for weight, state in zip(weights, states, strict=True)]
    if dist.is_initialized():
        directions = _shared(directions)
    else:
        directions = [orthogonal(direction.flatten(1)) for direction in directions]
    for weight, direction in zip(weights, directions, strict=True):
        out, rest = len(weight), weight[0].numel()
        weight.add_(direction.view_as(weight), alpha=-group["lr"] * max(1.0, out / rest) ** 0.5)


def _ahead(weight: nn.Parameter, state: dict, momentum: float) -> Tensor:
    """Nesterov's look ahead along the momentum."""
    assert weight.grad is not None
    mean = state.setdefault("mean", torch.zeros_like(weight))
    mean.lerp_(weight.grad, 1 - momentum)
    return weight.grad.lerp(mean, momentum)


def _shared(directions: list[Tensor]) -> list[Tensor]:
    """All directions orthogonal, each made so by one of the processes."""
    count, own = dist.get_world_size(), dist.get_rank()
    flat = torch.zeros(sum(direction.numel() for direction in directions), device=directions[0].device)
    parts = flat.split([direction.numel() for direction in directions])
    for index, (direction, part) in enumerate(zip(directions, parts, strict=True)):
        if index % count == own:
            part.copy_(orthogonal(direction.flatten(1)).flatten())
    dist.all_reduce(flat)
    return list(parts)


def _adam(weight: Tensor, gradient: Tensor, state: dict, group: dict) -> None:
    fast, slow = group["betas"]
    state["step"] = state.get("step", 0) + 1
    mean = state.setdefault("mean", torch.zeros_like(weight)).lerp_(gradient, 1 - fast)
    square = state.setdefault("square", torch.zeros_like(weight)).lerp_(gradient.square(), 1 - slow)
    size = (square / (1 - slow ** state["step"])).sqrt() + group["eps"]
    weight.addcdiv_(mean, size, value=-group["lr"] / (1 - fast ** state["step"]))


def orthogonal(matrix: Tensor) -> Tensor:
    """The matrix [m, n] with its singular values brought near 1, by Newton and Schulz's iteration."""
    a, b, c = QUINTIC
    x = (matrix.T if matrix.shape[0] > matrix.shape[1] else matrix).bfloat16()  # precise enough, and twice as fast
    x = x / (x.norm() + 1e-7)
    for _ in range(ROUNDS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.T if matrix.shape[0] > matrix.shape[1] else x).to(matrix.dtype)
