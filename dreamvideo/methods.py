"""What each training method trains, on what, with which loss: one row each. The training loop knows no names.

A row is a `Method`: the recipe, as numbers and functions. What a method trains is a `Learner`: named tensors, and what
becomes of them in a forward of the UNet. A further method is a further row, with a learner of its own where neither of
these two will do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from .adapters import Adapter, AdapterStack, StackEntry
from .diffusion import SCHEDULE, diffusion_loss
from .encoders import TextEncoder
from .unet import Adapters

LossFunction = Callable[[Tensor, Tensor, Tensor | None, bool], Tensor]
"""(prediction, noise, mask or None, normalize the mask's area) -> scalar; see `diffusion.diffusion_loss`."""

DrawTimesteps = Callable[[int, torch.Generator], Tensor]
"""(how many, CPU generator) -> integer timesteps [how many] in 0..999."""


def uniform_timesteps(count: int, generator: torch.Generator) -> Tensor:
    """Every timestep equally likely (Ho et al. 2020, algorithm 1): int64 [count]."""
    return torch.randint(SCHEDULE.steps, (count,), generator=generator)


@dataclass(frozen=True)
class Method:
    """One way of training. The numbers are defaults that `TrainingSettings` may override.

    trains: "token" or the kind of adapter; it is also the kind of the file that comes out.
    data: "images" (one frame a sample) or "clips".
    masked: whether masks of the data, where there are any, weigh the loss.
    appearance_guidance: whether the learner gets the image feature of a random frame of each sample.
    p_text_drop: how often, sample by sample, the empty prompt takes the caption's place.
    p_image_drop: how often a zero image takes the feature's place.
    """

    name: str
    trains: str
    data: str
    steps: int
    learning_rate: float
    batch_size: int
    masked: bool = False
    appearance_guidance: bool = False
    p_text_drop: float = 0.0
    p_image_drop: float = 0.0
    timesteps: DrawTimesteps = uniform_timesteps
    loss: LossFunction = diffusion_loss


# Steps, learning rates and batch sizes are the paper's (section 4.1); masks and dropping are the released configs'.
TEXTUAL_INVERSION = Method("textual_inversion", "token", "images", 3000, 1e-4, 4, masked=True)
IDENTITY = Method("identity", "identity", "images", 800, 1e-5, 4, masked=True)
# One clip: a zero image half of the time, so that sampling may keep the condition's bias in the unconditional half.
MOTION = Method("motion", "motion", "clips", 1000, 1e-5, 1, appearance_guidance=True, p_text_drop=0.5, p_image_drop=0.5)
MOTION_SEVERAL = replace(MOTION, name="motion_several", batch_size=2, p_image_drop=0.0)

METHODS: Mapping[str, Method] = {
    method.name: method for method in (TEXTUAL_INVERSION, IDENTITY, MOTION, MOTION_SEVERAL)
}


def motion_method(clips: int) -> Method:
    """The row for learning a motion from that many clips."""
    return MOTION if clips == 1 else MOTION_SEVERAL


class Learner(Protocol):
    """What is trained."""

    def tensors(self) -> dict[str, Tensor]:
        """The trained tensors by name: float32 leaves that require gradients."""
        ...

    def context(self, captions: Sequence[str], states: Tensor | None) -> Tensor:
        """Text states [B, 77, D] of a batch, given its captions and, where they were cached, their states."""
        ...

    def adapters(self, features: Tensor | None) -> Adapters | None:
        """What goes into the UNet's forward, given the image features [B, D] of appearance guidance."""
        ...


class TokenLearner:
    """Textual inversion (Gal et al. 2022, arXiv 2208.01618): token vectors, by way of the frozen text encoder."""

    def __init__(self, text: TextEncoder, tokens: Mapping[str, Tensor]) -> None:
        self.text = text
        self.tokens = {name: vectors.detach().float().clone().requires_grad_() for name, vectors in tokens.items()}

    def tensors(self) -> dict[str, Tensor]:
        return dict(self.tokens)

    def context(self, captions: Sequence[str], states: Tensor | None) -> Tensor:
        different = list(dict.fromkeys(captions))  # a caption that several samples share is encoded once
        encoded = self.text.encode(different, self.tokens)  # [captions, 77, D]
        return encoded[[different.index(caption) for caption in captions]]  # [B, 77, D]

    def adapters(self, features: Tensor | None) -> None:
        return None


class AdapterLearner:
    """An identity or a motion adapter under cached text states (Wei et al. 2024, section 3.2)."""

    def __init__(self, adapter: Adapter) -> None:
        self.adapter = adapter.float().requires_grad_()

    def tensors(self) -> dict[str, Tensor]:
        return dict(self.adapter.named_parameters())

    def context(self, captions: Sequence[str], states: Tensor | None) -> Tensor:
        if states is None:
            raise ValueError("Adapters are trained on cached text states and these data have none; see `with_text`.")
        return states

    def adapters(self, features: Tensor | None) -> AdapterStack:
        return AdapterStack([StackEntry(self.adapter)], features)
