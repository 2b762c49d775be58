"""The three stages of DreamVideo as calls of the one training loop, and a subject's two in one. No host in it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .adapter_files import AdapterInfo, LoadedAdapter
from .adapters import Adapter, AdapterConfig
from .encoders import Encoders, TextEncoder, check_matches
from .fingerprint import fingerprint
from .media import Clip, choose_frames
from .methods import IDENTITY, TEXTUAL_INVERSION, AdapterLearner, Method, TokenLearner, motion_method
from .training import Callbacks, TrainingResult, TrainingSettings, train
from .training_data import TrainingData, encode_photos, with_text
from .unet import UNet


def train_textual_inversion(
    unet: UNet,
    text: TextEncoder,
    data: TrainingData,
    *,
    placeholder: str,
    class_word: str,
    vectors: int = 1,
    settings: TrainingSettings | None = None,
    **hooks: Any,
) -> TrainingResult:
    """Learn token vectors for `placeholder`, which every caption must hold, beginning from the class word's.

    One vector begins as the word's first byte-pair token, as the authors' does. hooks: callbacks, state_path and
    resume of `train`. The result's `trained` is a LoadedAdapter of kind "token".
    """
    check_matches(unet.config, text)
    text.check_placeholder(placeholder)
    for caption in data.captions:
        if placeholder not in caption:
            raise ValueError(
                f"The caption {caption!r} lacks the placeholder {placeholder}, so it would teach it nothing."
            )
    settings = settings or TrainingSettings.for_method(TEXTUAL_INVERSION)
    rows = text.embed_word(class_word)  # [n, D]
    with torch.inference_mode(False):
        learner = TokenLearner(text, {placeholder: rows[torch.arange(vectors) % len(rows)]})
    about = _about(TEXTUAL_INVERSION, unet, data, settings, placeholder=placeholder, class_word=class_word)

    def package(step: int) -> LoadedAdapter:
        tokens = {name: tensor.detach().cpu().clone() for name, tensor in learner.tokens.items()}
        return LoadedAdapter(None, replace(about, steps=step), tokens, data.features)

    return train(unet, data, TEXTUAL_INVERSION, settings, learner, package=package, **hooks)


def train_identity(
    unet: UNet,
    text: TextEncoder,
    data: TrainingData,
    *,
    tokens: Mapping[str, Tensor],
    class_word: str,
    config: AdapterConfig | None = None,
    settings: TrainingSettings | None = None,
    **hooks: Any,
) -> TrainingResult:
    """Learn an identity adapter under frozen learned tokens (placeholder -> [n, D]; the first one is the subject's).

    hooks: callbacks, state_path and resume of `train`. The result's `trained` is a LoadedAdapter with the adapter, the
    tokens and the photographs' image features.
    """
    settings = settings or TrainingSettings.for_method(IDENTITY)
    about = _about(IDENTITY, unet, data, settings, placeholder=next(iter(tokens), ""), class_word=class_word)
    kept = {name: vectors.detach().cpu().clone() for name, vectors in tokens.items()}
    config = config or AdapterConfig.identity()
    return _train_adapter(unet, text, data, IDENTITY, settings, config, about, kept, data.features, **hooks)


def train_motion(
    unet: UNet,
    text: TextEncoder,
    data: TrainingData,
    *,
    config: AdapterConfig | None = None,
    settings: TrainingSettings | None = None,
    **hooks: Any,
) -> TrainingResult:
    """Learn a motion adapter from clips, guided by the image feature of a random frame.

    A config with condition_dim None trains without appearance guidance. hooks: callbacks, state_path and resume of
    `train`. The result's `trained` is a LoadedAdapter with the adapter.
    """
    features = data.features
    config = config or AdapterConfig.motion(condition_dim=None if features is None else features.shape[1])
    method = replace(motion_method(len(data.items)), appearance_guidance=config.condition_dim is not None)
    settings = settings or TrainingSettings.for_method(method)
    about = _about(method, unet, data, settings)
    return _train_adapter(unet, text, data, method, settings, config, about, {}, None, **hooks)


def _train_adapter(
    unet: UNet,
    text: TextEncoder,
    data: TrainingData,
    method: Method,
    settings: TrainingSettings,
    config: AdapterConfig,
    about: AdapterInfo,
    tokens: dict[str, Tensor],
    features: Tensor | None,
    **hooks: Any,
) -> TrainingResult:
    check_matches(unet.config, text)
    # Weights are kept in float32 whatever the base's precision, and made outside a host's inference mode.
    with torch.inference_mode(False):
        generator = torch.Generator().manual_seed(settings.seed)
        adapter = Adapter(config, unet.config, next(unet.parameters()).device, torch.float32, generator)
        learner = AdapterLearner(adapter)

    def package(step: int) -> LoadedAdapter:
        return LoadedAdapter(adapter, replace(about, adapter_config=config, steps=step), tokens, features)

    result = train(unet, with_text(data, text, tokens), method, settings, learner, package=package, **hooks)
    adapter.requires_grad_(False)
    return result


def _about(
    method: Method,
    unet: UNet,
    data: TrainingData,
    settings: TrainingSettings,
    placeholder: str = "",
    class_word: str = "",
) -> AdapterInfo:
    height, width = data.items[0].mean.shape[2:]
    return AdapterInfo(
        kind=method.trains,
        unet_config=unet.config,
        base_fingerprint=fingerprint(unet),
        class_word=class_word,
        placeholder=placeholder,
        captions=data.captions,
        learning_rate=settings.learning_rate,
        seed=settings.seed,
        extra={
            "method": method.name,
            "frames": data.frames,
            "height": 8 * height,
            "width": 8 * width,
            "settings": settings.deciding(),
        },
    )


@dataclass(frozen=True)
class SubjectResult:
    """What the stages gave: `token` (kind "token") and, unless that one was stopped, `identity`, the file to keep."""

    token: TrainingResult
    identity: TrainingResult | None

    @property
    def stopped(self) -> bool:
        """By request, before the last step of the last stage."""
        return self.identity is None or self.identity.stopped

    @property
    def losses(self) -> dict[str, list[float]]:
        """Stage -> loss of each of its steps."""
        results = {"token": self.token, "identity": self.identity}
        return {stage: result.losses for stage, result in results.items() if result is not None}


def train_subject(
    unet: UNet,
    encoders: Encoders,
    photos: Sequence[Tensor],
    masks: Sequence[Tensor | None] | None,
    captions: str | Sequence[str],
    *,
    placeholder: str,
    class_word: str,
    token_settings: TrainingSettings | None = None,
    identity_settings: TrainingSettings | None = None,
    callbacks_for: Callable[[str], Callbacks] = lambda stage: Callbacks(),
    state_folder: str | os.PathLike[str] | None = None,
    resume: bool = True,
) -> SubjectResult:
    """Learn a subject: textual inversion, then the identity adapter under the token it found (Wei et al., section 3.1).

    photos, masks, captions: as `training_data.encode_photos` takes them; every caption holds the placeholder.
    callbacks_for: "token" or "identity" -> what the host hears of that stage. state_folder: keeps each stage's training
    state as <stage>.safetensors; with `resume` a run goes on from there, and a stage that is done is not run again.
    Raises ValueError for a placeholder that is an ordinary word, and what the stages raise.
    """
    encoders.text.check_placeholder(placeholder)
    data = encode_photos(photos, captions, encoders, masks)

    def hooks(stage: str) -> dict[str, Any]:
        path = None if state_folder is None else Path(state_folder) / f"{stage}.safetensors"
        return {"callbacks": callbacks_for(stage), "state_path": path, "resume": resume}

    about = {"class_word": class_word}
    token = train_textual_inversion(
        unet, encoders.text, data, placeholder=placeholder, settings=token_settings, **about, **hooks("token")
    )
    if token.stopped:
        return SubjectResult(token, None)
    tokens = token.trained.tokens
    identity = train_identity(
        unet, encoders.text, data, tokens=tokens, settings=identity_settings, **about, **hooks("identity")
    )
    return SubjectResult(token, identity)


def motion_frames(clip: Clip, frames: int, fps: float) -> tuple[Tensor, str]:
    """All of a clip at `fps` frames a second, for `encode_clips`: pixels [N, 3, H, W], N at least `frames`.

    The text says what had to give where the clip is short or slow, and what was left out while it was read.
    """
    seconds = len(clip.times) / clip.fps
    whole = int(seconds * min(fps, clip.fps) + 1e-6)
    choice = choose_frames(clip.times, max(frames, whole), fps, start=0.0)
    return clip.pixels(choice.indices), " ".join(note for note in (clip.note, choice.note) if note)
