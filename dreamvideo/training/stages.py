"""Methods as calls of the one training loop: DreamVideo's three stages by name, any row, a subject's stages in one.

No host in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..encoders.layered import at_layer, layers_of
from ..encoders.loading import check_matches
from ..encoders.protocols import TextEncoder
from ..files.adapter_info import ACTS_FROM, GUIDED_FROM, AdapterInfo, TrainedAdapter
from ..files.fingerprint import fingerprint
from ..models.adapters import AdapterConfig, AnyAdapter, build_adapter, narrowed
from ..models.animatediff import ImageUNet
from ..models.config import text_layers
from ..models.network import VideoUNet
from ..safety.texts import quoted
from .data import TrainingData, with_text
from .learners import AdapterLearner, JointLearner, Learner, TokenLearner
from .loop import TrainingResult, train
from .methods import ABSORBER, IDENTITY, TEXTUAL_INVERSION, Method, motion_method
from .settings import TrainingSettings

RARE_WORD = "sks"  # what rows with a rare token call a subject by, before its class word (DreamBooth's choice)


def train_textual_inversion(
    unet: VideoUNet,
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
    resume of `train`. The result's `trained` is a TrainedAdapter of kind "token".
    """
    named = {"placeholder": placeholder, "class_word": class_word, "vectors": vectors}
    return train_method(unet, text, data, TEXTUAL_INVERSION, settings=settings, **named, **hooks)


def train_identity(
    unet: VideoUNet,
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

    hooks: callbacks, state_path and resume of `train`. The result's `trained` is a TrainedAdapter with the adapter, the
    tokens and the photographs' image features.
    """
    method = IDENTITY if config is None else replace(IDENTITY, config=config)
    named = {"tokens": tokens, "class_word": class_word}
    return train_method(unet, text, data, method, settings=settings, **named, **hooks)


def train_motion(
    unet: VideoUNet,
    text: TextEncoder,
    data: TrainingData,
    *,
    config: AdapterConfig | None = None,
    settings: TrainingSettings | None = None,
    **hooks: Any,
) -> TrainingResult:
    """Learn a motion adapter from clips, guided by the image feature of a random frame.

    A config with condition_dim None trains without appearance guidance. hooks: callbacks, state_path and resume of
    `train`. The result's `trained` is a TrainedAdapter with the adapter.
    """
    method = motion_method(len(data.items))
    if config is not None:
        method = replace(method, config=config, appearance_guidance=config.condition_dim is not None)
    elif data.features is None:
        method = replace(method, appearance_guidance=False)
    return train_method(unet, text, data, method, settings=settings, **hooks)


def train_method(
    unet: VideoUNet,
    text: TextEncoder,
    data: TrainingData,
    method: Method,
    *,
    placeholder: str = "",
    class_word: str = "",
    tokens: Mapping[str, Tensor] | None = None,
    vectors: int = 1,
    settings: TrainingSettings | None = None,
    **hooks: Any,
) -> TrainingResult:
    """Train a method's row. The result's `trained` is a TrainedAdapter of the kind that the row trains.

    placeholder, class_word: for a row with a token of its own. tokens: placeholder -> [n, D], or [L, n, D] with a
    vector a layer, for a row whose token is given; vectors: how many it learns. hooks: callbacks, state_path and resume
    of `train`.
    """
    check_matches(unet.config, text)
    settings = settings or TrainingSettings.for_method(method)
    tokens = _tokens(method, text, data, placeholder, class_word, tokens or {}, vectors)
    if settings.layered_token and method.token == "learned":
        layers = len(text_layers(unet.config))
        tokens = {name: rows.expand(layers, -1, -1) for name, rows in tokens.items()}
    if settings.mask_attention:
        data = replace(data, places=_places(text, data.captions, tokens))
    with torch.inference_mode(False):  # weights are made outside a host's
        generator = torch.Generator().manual_seed(settings.seed)
        adapter = _fresh(method, unet, data, generator)
        absorber = _absorber(unet, generator) if settings.absorber else None
        learned = None
        if method.token == "learned":  # where the adapter lies too: one optimiser updates both
            place = next(unet.parameters()).device
            learned = TokenLearner(text, {name: rows.to(place) for name, rows in tokens.items()})
    if learned is None:
        data = with_text(data, text, tokens)
    about = _about(method, unet, data, settings, next(iter(tokens), ""), class_word if tokens else "")
    features = data.features if method.data == "images" else None

    def package(step: int) -> TrainedAdapter:
        found = tokens if learned is None else learned.tokens
        kept = {name: vectors.detach().cpu().clone() for name, vectors in found.items()}
        config = None if adapter is None else adapter.config
        info = replace(about, adapter_config=config, steps=step, token_layers=layers_of(kept))
        return TrainedAdapter(adapter, info, kept, features)

    learner = _learner(method, adapter, learned, absorber)
    if method.data == "images" and isinstance(unet, ImageUNet):
        unet = unet.still()  # a subject is learned on the image model, as those are that AnimateDiff moves
    result = train(unet, data, method, settings, learner, package=package, **hooks)
    if adapter is not None:
        adapter.requires_grad_(False)
    return result


def _tokens(
    method: Method,
    text: TextEncoder,
    data: TrainingData,
    placeholder: str,
    class_word: str,
    given: Mapping[str, Tensor],
    vectors: int,
) -> dict[str, Tensor]:
    """The vectors that a row's captions start with, placeholder -> [n, D]."""
    if method.token in ("none", "given"):
        return dict(given)
    text.check_placeholder(placeholder)
    lacking = [caption for caption in data.captions if placeholder not in caption]
    if lacking and not (method.related_clips and len(lacking) < len(data.captions)):
        raise ValueError(
            f"The caption {quoted(lacking[0])} lacks the placeholder {placeholder}, so it would teach it nothing."
        )
    rows = text.embed_word(f"{RARE_WORD} {class_word}" if method.token == "rare" else class_word)  # [n, D]
    return {placeholder: rows[torch.arange(vectors) % len(rows)] if method.token == "learned" else rows}


def _places(text: TextEncoder, captions: Sequence[str], tokens: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Where the learned words stand in each caption: bool [77]."""
    different = list(dict.fromkeys(captions))
    return dict(zip(different, text.places(different, at_layer(tokens, 0)), strict=True))


def _fresh(method: Method, unet: VideoUNet, data: TrainingData, generator: torch.Generator) -> AnyAdapter | None:
    """What a row trains beside its token, in float32 whatever the base's precision."""
    config = method.config
    if config is None:
        return None
    if isinstance(config, AdapterConfig):
        frames = None if config.frames is None else data.frames
        config = replace(config, condition_dim=_feature_width(method, data), frames=frames)
    return build_adapter(config, unet.config, next(unet.parameters()).device, torch.float32, generator)


def _absorber(unet: VideoUNet, generator: torch.Generator) -> AnyAdapter:
    config = narrowed(ABSORBER, unet.config)
    return build_adapter(config, unet.config, next(unet.parameters()).device, torch.float32, generator)


def _feature_width(method: Method, data: TrainingData) -> int | None:
    if not method.appearance_guidance:
        return None
    if data.features is None:
        raise ValueError(f"The method {method.name} needs an image feature of every frame, and these data have none.")
    return data.features.shape[1]


def _learner(
    method: Method, adapter: AnyAdapter | None, token: TokenLearner | None, absorber: AnyAdapter | None
) -> Learner:
    if adapter is None:
        if token is None:
            raise ValueError("A method trains an adapter, weights or a token; this one trains none of them.")
        return token
    learner = AdapterLearner(adapter, absorber, method.part_rates)
    return learner if token is None else JointLearner(token, learner)


def _about(
    method: Method,
    unet: VideoUNet,
    data: TrainingData,
    settings: TrainingSettings,
    placeholder: str,
    class_word: str,
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
            **({ACTS_FROM: method.acts_from} if method.acts_from > 0 else {}),
            **({GUIDED_FROM: method.guided_from} if method.guided_from < 1 else {}),
        },
    )
