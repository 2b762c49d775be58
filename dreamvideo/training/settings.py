"""How to train: the settings of a run, and which of them a resumed run may change."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from .methods import Method

# What a resumed run may change: these decide where training ends and what it costs, not what a step computes.
FREE_SETTINGS = ("steps", "save_every", "preview_every", "snapshot_every", "gradient_checkpointing", "memory")


@dataclass(frozen=True)
class TrainingSettings:
    """How to train; `for_method` fills in a method's defaults.

    warmup: steps over which the learning rate rises linearly to its full value. (The authors' first update has a
    learning rate of exactly 0 and so does nothing; here it has 1 / warmup.)
    offset_noise: strength of the noise that is shared by a frame's pixels (0.1 as released).
    masked: use the data's masks; normalize_mask: weigh small subjects like large ones, which the authors do not.
    noisier: of two draws of its timestep every sample takes the noisier one, for a base so small that looks are decided
    there alone. The paper draws once.
    shift: by how many latent cells (of 8 pixels) at most every sample is moved at random, its edges repeated: few
    photographs teach else where a subject stands. The paper moves none.
    p_text_drop, p_image_drop: see `Method`. Released: 0 and none for subjects; 0.5 and 0.5 for a motion from one clip,
    0.5 and 0 from several. A motion trained with p_image_drop 0 is sampled with unconditional feature strength 0.
    save_every, preview_every, snapshot_every: in steps; 0 for never (the state is still saved at the end).
    gradient_checkpointing: recompute instead of keeping activations: less memory, about a third more time. None: where
    a step would not fit otherwise into what is free, or within `memory`, GiB that the process may take on the device.
    """

    steps: int
    learning_rate: float
    batch_size: int
    warmup: int = 10
    seed: int = 0
    offset_noise: float = 0.1
    masked: bool = True
    normalize_mask: bool = False
    noisier: bool = False
    shift: int = 0
    p_text_drop: float = 0.0
    p_image_drop: float = 0.0
    save_every: int = 100
    preview_every: int = 0
    snapshot_every: int = 0
    gradient_checkpointing: bool | None = None
    memory: float | None = None

    def __post_init__(self) -> None:
        none = ("warmup", "shift", "save_every", "preview_every", "snapshot_every")
        for name, least in {"steps": 1, "batch_size": 1, **dict.fromkeys(none, 0)}.items():
            if getattr(self, name) < least:
                raise ValueError(f"Training {name} must be at least {least}, got {getattr(self, name)}.")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ValueError(f"The learning rate must be a positive number, got {self.learning_rate}.")
        for name in ("p_text_drop", "p_image_drop"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a probability from 0 to 1, got {getattr(self, name)}.")

    @classmethod
    def for_method(cls, method: Method, **overrides: Any) -> TrainingSettings:
        """A method's own settings, with overrides."""
        names = ("steps", "learning_rate", "batch_size", "masked", "p_text_drop", "p_image_drop")
        return cls(**{**{name: getattr(method, name) for name in names}, **overrides})

    def deciding(self) -> dict[str, Any]:
        """Those that decide what every step computes: a resumed run must have them, an adapter file tells them."""
        return {name: value for name, value in asdict(self).items() if name not in FREE_SETTINGS}
