"""What to sample and train with: the paper's figures for the full-size base, their like for the embedded one."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch

from .models.adapters import CONV_RESIDUAL, FRAME_VECTORS, build_adapter, narrowed
from .models.config import NetworkConfig
from .models.image_config import ImageUNetConfig
from .sampling import SamplingSettings
from .training.methods import IDENTITY, MOTION, TEXTUAL_INVERSION, Method, motion_method
from .training.settings import TrainingSettings

STAGES = {"token": TEXTUAL_INVERSION, "identity": IDENTITY, "motion": MOTION}


@dataclass(frozen=True)
class Defaults:
    """Size in pixels, length in frames, guidance and steps, and what a stage's training changes of a method's.

    rates: name of a row -> its learning rate against what `settings_for`'s rule gives, where another suits it better.
    part_rates: part of an adapter -> its learning rate against the rest's, where it is another than the row says.
    adapter_dtype: of the weights in an adapter's file; None for the float32 that they are trained in.
    """

    height: int = 256
    width: int = 256
    frames: int = 32
    fps: float = 8.0
    guidance: float = 9.0
    steps: int = 50
    training: dict[str, dict[str, Any]] = field(default_factory=dict)
    rates: dict[str, float] = field(default_factory=dict)
    part_rates: dict[str, float] = field(default_factory=dict)
    adapter_dtype: torch.dtype | None = None

    def settings(self, stage: str, clips: int = 1, **overrides: Any) -> TrainingSettings:
        """Training settings of a stage ("token", "identity", "motion"); overrides of None are left out."""
        return self.settings_for(motion_method(clips) if stage == "motion" else STAGES[stage], **overrides)

    def settings_for(self, method: Method, **overrides: Any) -> TrainingSettings:
        """Training settings of any row; overrides of None are left out.

        The one rule: steps and learning rate are to the row's own as those of DreamVideo's stage on the same data are
        to the paper's; what else a base changes of that stage it changes of the row.
        """
        stage, own = STAGES[method.stage], dict(self.training.get(method.stage, {}))
        if "steps" in own:
            own["steps"] = max(1, round(own["steps"] * (method.steps / stage.steps)))
        if "learning_rate" in own:
            own["learning_rate"] *= self.rates.get(method.name, 1) * method.learning_rate / stage.learning_rate
        given = {name: value for name, value in overrides.items() if value is not None}
        return TrainingSettings.for_method(method, **{**own, **given})

    def sampling(self, prompt: str, **overrides: Any) -> SamplingSettings:
        """Sampling settings for a prompt; overrides of None are left out."""
        own = {name: getattr(self, name) for name in ("height", "width", "frames", "fps", "guidance", "steps")}
        given = {name: value for name, value in overrides.items() if value is not None}
        return SamplingSettings(prompt, **{**own, **given})


def fitted(method: Method, config: NetworkConfig) -> Method:
    """The row with what suits a base: widths and ranks scaled where it is narrower, and rates of an adapter's parts.

    Raises ValueError, before anything is encoded, for a row that trains what this base has not.
    """
    if method.config is None:
        return method
    own = defaults_for(config).part_rates
    rates = tuple((part, own.get(part, rate)) for part, rate in method.part_rates)
    found = narrowed(method.config, config)
    build_adapter(found, config, device="meta")
    return replace(method, config=found, part_rates=rates)


FULL_SIZE = Defaults(adapter_dtype=torch.float16)  # a motion adapter has 312 MB in float32
EMBEDDED = Defaults(
    height=128,
    width=128,
    frames=8,
    guidance=3.0,
    steps=25,
    training={
        # Without masks: a token is so large a part of this small text space that it would spoil an unwatched ground.
        "token": {"steps": 150, "learning_rate": 5e-3, "masked": False, "noisier": True, "shift": 1},
        "identity": {"steps": 1000, "learning_rate": 1e-3, "masked": False, "noisier": True, "shift": 1},
        "motion": {"steps": 250, "learning_rate": 1e-3, "noisier": True},
    },
    # Found on a toy and a motion outside of the comparison: see docs/methods.md.
    rates={
        "identity_plus": 2,
        "dreamix": 1 / 8,
        "custom_diffusion": 1 / 8,
        "fine_tuning_subject": 1 / 8,
        "fine_tuning_motion": 1 / 4,
        "lora_subject": 1 / 2,
        "lora_motion": 4,
        "tune_a_video": 1 / 30,
    },
    part_rates={FRAME_VECTORS: 10, CONV_RESIDUAL: 4},
)


# Stable Diffusion 1.5 with AnimateDiff's motion modules: 16 frames of 512 pixels; guidance and steps are those of the
# authors' own prompts (configs/prompts/1_animate).
IMAGE = Defaults(height=512, width=512, frames=16, guidance=8.0, steps=25, adapter_dtype=torch.float16)


def defaults_for(config: NetworkConfig) -> Defaults:
    """What suits a base, told by its family and width: nothing as narrow as the embedded one draws 256 pixels."""
    if config.dim <= 64:
        return replace(EMBEDDED, frames=min(EMBEDDED.frames, config.most_frames or EMBEDDED.frames))
    if config.family == ImageUNetConfig.family:
        return replace(IMAGE, frames=min(IMAGE.frames, config.most_frames or IMAGE.frames))
    return FULL_SIZE
