"""How to train: the settings of a run, and which of them a resumed run may change."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from .methods import Method

# What a resumed run may change: these decide where training ends and what it costs, not what a step computes.
FREE_SETTINGS = ("steps", "save_every", "preview_every", "snapshot_every", "gradient_checkpointing", "memory")
# What came after the first version, and what a state or an adapter is of that does not tell it.
LATER_SETTINGS = {"debias": False, "absorber": False, "layered_token": False, "mask_attention": False}
# What does nothing for a method that learns from such data: subjects need their name, and photographs do not move;
# clips' masks always count.
IDLE_SETTINGS = {
    "images": ("p_text_drop", "p_image_drop", "debias", "absorber"),
    "clips": ("masked", "normalize_mask", "layered_token", "mask_attention"),
}


@dataclass(frozen=True)
class TrainingSettings:
    """How to train; `for_method` fills in a method's defaults.

    steps: of the adapter.
    learning_rate: of AdamW, which neither decays weights nor averages.
    batch_size: samples a step.
    warmup: steps over which the learning rate rises linearly to its full value. (The authors' first update has a
    learning rate of exactly 0 and so does nothing; here it has 1 / warmup.)
    seed: decides all that is random.
    offset_noise: strength of the noise that a frame's pixels share. Released: 0.1.
    masked: weigh the loss by the photographs' masks.
    normalize_mask: weigh small subjects like large ones. The authors do not.
    noisier: of two draws of its timestep every sample takes the noisier one. For a base so small that looks are decided
    there alone; the paper draws once.
    shift: by how many latent cells (of 8 pixels) at most every sample is moved at random, its edges repeated. Few
    photographs teach else where a subject stands; the paper moves none.
    p_text_drop: how often an empty caption takes the caption's place. Released: 0 for subjects, 0.5 for motions.
    p_image_drop: how often a zero image takes the frame's place. Released: 0.5 for a motion from one clip, 0 from
    several. A motion trained with 0 is sampled with unconditional feature strength 0.
    debias: add the loss of every frame's difference to a random one, in which looks weigh less (MotionDirector).
    absorber: train a spatial adapter beside for the clip's looks and throw it away (MotionDirector, Customize-A-Video).
    layered_token: learn a vector of the subject's word for every layer that reads the text (P+).
    mask_attention: pull the subject's word to the photographs' masks in the cross-attention (Break-A-Scene).
    save_every: steps from one saved state to the next, 0 for one at the end alone.
    preview_every: steps from one sampled preview to the next. 0 for none.
    snapshot_every: steps from one kept adapter to the next, with a sheet of all. 0 for none.
    gradient_checkpointing: recompute instead of keeping activations: less memory, about a third more time. None: where
    a step would not fit otherwise into what is free, or within `memory`.
    memory: GiB that the process may take on the device. None: what is free.
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
    debias: bool = False
    absorber: bool = False
    layered_token: bool = False
    mask_attention: bool = False
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
        own = ("steps", "learning_rate", "batch_size", "masked", "p_text_drop", "p_image_drop", "offset_noise")
        names = (*own, *LATER_SETTINGS)
        return cls(**{**{name: getattr(method, name) for name in names}, **overrides})

    def deciding(self) -> dict[str, Any]:
        """Those that decide what every step computes: a resumed run must have them, an adapter file tells them.

        Without the later ones where they are off: states and names of before stay good.
        """
        off = {name for name, value in LATER_SETTINGS.items() if getattr(self, name) == value}
        return {name: value for name, value in asdict(self).items() if name not in {*FREE_SETTINGS, *off}}
