"""What a method trains: named tensors, and what becomes of them in a forward of the UNet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from torch import Tensor

from ..encoders.layered import encode
from ..encoders.protocols import TextEncoder
from ..models.adapters import AnyAdapter
from ..models.network import Adapters
from ..models.stack import AdapterStack, StackEntry


class Learner(Protocol):
    """What is trained."""

    def tensors(self) -> dict[str, Tensor]:
        """The trained tensors by name: float32 leaves that require gradients."""
        ...

    def rates(self) -> dict[str, float]:
        """Of those tensors that have a learning rate of their own, what it is against the others'."""
        ...

    def context(self, captions: Sequence[str], states: Tensor | None) -> Tensor:
        """Text states [B, 77, D], or [B, L, 77, D] with one a layer, of a batch, given its captions and, where they
        were cached, their states."""
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

    def rates(self) -> dict[str, float]:
        return {}

    def context(self, captions: Sequence[str], states: Tensor | None) -> Tensor:
        different = list(dict.fromkeys(captions))  # a caption that several samples share is encoded once
        encoded = encode(self.text, different, self.tokens)  # [captions, 77, D] or [captions, L, 77, D]
        return encoded[[different.index(caption) for caption in captions]]

    def adapters(self, features: Tensor | None) -> None:
        return None


class AdapterLearner:
    """An adapter (Wei et al. 2024, section 3.2) or weight deltas under cached text states.

    absorber: an adapter that is trained beside and belongs to the training alone. part_rates: as a `Method` has them.
    """

    def __init__(
        self, adapter: AnyAdapter, absorber: AnyAdapter | None = None, part_rates: tuple[tuple[str, float], ...] = ()
    ) -> None:
        self.adapter = adapter.float().requires_grad_()
        self.absorber = None if absorber is None else absorber.float().requires_grad_()
        self.part_rates = part_rates

    def tensors(self) -> dict[str, Tensor]:
        beside = {} if self.absorber is None else dict(self.absorber.named_parameters())
        return {**dict(self.adapter.named_parameters()), **{f"absorber.{name}": each for name, each in beside.items()}}

    def rates(self) -> dict[str, float]:
        names = [name for name, _ in self.adapter.named_parameters()]
        return {name: rate for part, rate in self.part_rates for name in names if f".{part}." in name}

    def context(self, captions: Sequence[str], states: Tensor | None) -> Tensor:
        if states is None:
            raise ValueError("Adapters are trained on cached text states and these data have none; see `with_text`.")
        return states

    def adapters(self, features: Tensor | None) -> AdapterStack:
        acting = [self.adapter] if self.absorber is None else [self.adapter, self.absorber]
        return AdapterStack([StackEntry(each) for each in acting], features)


class JointLearner:
    """Token vectors and what they are learned together with."""

    def __init__(self, token: TokenLearner, adapter: AdapterLearner) -> None:
        self.token, self.adapter = token, adapter

    def tensors(self) -> dict[str, Tensor]:
        return self.token.tensors() | self.adapter.tensors()

    def rates(self) -> dict[str, float]:
        return self.adapter.rates()

    def context(self, captions: Sequence[str], states: Tensor | None) -> Tensor:
        return self.token.context(captions, states)

    def adapters(self, features: Tensor | None) -> AdapterStack:
        return self.adapter.adapters(features)
