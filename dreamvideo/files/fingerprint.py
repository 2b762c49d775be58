"""A base's fingerprint: tells whether an adapter was trained on this UNet, whatever precision it is stored in."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from .tensors import StateDict

# One layer of each kind; the first and the last of each in the network make sixteen tensors; of an image base eighteen.
PROBES = (
    ".in_layers.2.weight",
    ".emb_layers.1.weight",
    ".out_layers.3.weight",
    ".temopral_conv.conv4.3.weight",
    ".attn1.to_q.weight",
    ".attn2.to_k.weight",
    ".attn1.to_v.weight",
    ".ff.net.2.weight",
    ".attention_blocks.0.to_q.weight",  # of motion modules alone
    ".attention_blocks.1.to_v.weight",
)
# bfloat16 moves a number by 0.0017 (standard deviation), float16 by an eighth of it, 1 % of fine-tuning by 0.01.
TOLERANCE = 0.007
DIGESTED = 4096  # numbers of a tensor: training changes them all, and a whole file takes seconds to read


def fingerprint(source: nn.Module | Mapping[str, Tensor]) -> str:
    """A short text that names a UNet, given as module or state in the original key names, in any order.

    "<tensors>-<parameters>-<digest of names and shapes>:<16 numbers>"; each number is a tensor's projection on a fixed
    pseudo-random vector of signs, divided by its norm, so about normally distributed.
    Copies in float16 and bfloat16 have a fingerprint that `same_base` takes for the same; fine-tuned weights do not.
    """
    state = source.state_dict() if isinstance(source, nn.Module) else source
    shapes = {name: tuple(state[name].shape) for name in sorted(state)}
    digest = hashlib.sha256(repr(shapes).encode()).hexdigest()[:8]
    parameters = sum(torch.Size(shape).numel() for shape in shapes.values())
    probed = [names[end] for probe in PROBES if (names := _ordered(shapes, probe)) for end in (0, -1)]
    numbers = ",".join(f"{_projection(state[name], seed):.4f}" for seed, name in enumerate(probed))
    return f"{len(shapes)}-{parameters}-{digest}:{numbers}"


def weights_digest(*states: StateDict) -> str:
    """A short text that tells these weights from others: names, shapes, precisions and each tensor's first numbers."""
    found = hashlib.blake2b(digest_size=16)
    for state in states:
        for name in sorted(state):
            tensor = state[name]
            start = tensor.reshape(-1)[:DIGESTED].clone()
            found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            found.update(start.view(torch.uint8).numpy().tobytes())
        state.file.unmap()
    return found.hexdigest()


def same_base(a: str, b: str) -> bool:
    """Whether two fingerprints name the same weights, up to rounding to half precision; False for other texts."""
    (kind_a, _, numbers_a), (kind_b, _, numbers_b) = a.partition(":"), b.partition(":")
    try:
        pairs = zip(map(float, numbers_a.split(",")), map(float, numbers_b.split(",")), strict=True)
        return kind_a == kind_b and all(abs(x - y) <= TOLERANCE for x, y in pairs)
    except ValueError:  # not numbers, or not as many
        return False


def _ordered(names: Mapping[str, object], ending: str) -> list[str]:
    """Names with this ending, block 10 after block 9."""
    return sorted(
        (name for name in names if name.endswith(ending)),
        key=lambda name: [(int(part) if part.isdigit() else -1, part) for part in re.split(r"[.]", name)],
    )


def _projection(tensor: Tensor, seed: int) -> float:
    values = tensor.detach().cpu().to(torch.float64).reshape(-1)  # mps has no float64
    norm = values.norm().item()
    return (values @ _signs(values.numel(), seed)).item() / norm if norm else 0.0


def _signs(count: int, seed: int) -> Tensor:
    """Pseudo-random +1 and -1, [count] float64, by integer mixing: the same on every version and machine."""
    mask = 0xFFFFFFFF
    x = (torch.arange(count, dtype=torch.int64) + 0x9E3779B1 * (seed + 1)) & mask
    for shift, factor in ((16, 0x45D9F3B), (15, 0x2C1B3C6D), (16, 1)):
        x = ((x ^ (x >> shift)) * factor) & mask
    return (x & 1).double() * 2 - 1
