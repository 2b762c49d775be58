"""The host's MODEL around the engine's UNet: how the host recognises, builds and calls it.

In the host the frames of a video are the batch: latents are [F, 4, h, w], and a step of guidance is
[chunks * F, 4, h, w].
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import comfy.conds
import comfy.latent_formats
import comfy.model_base
import comfy.supported_models
import comfy.supported_models_base
import torch
from comfy.ldm.modules.attention import attention_pytorch, optimized_attention
from comfy.patcher_extension import WrapperExecutor, WrappersMP, get_all_wrappers
from einops import rearrange
from torch import Tensor

from ...dreamvideo.files.fingerprint import fingerprint
from ...dreamvideo.files.layouts import infer_config, original_shapes
from ...dreamvideo.models.apart import predict_parts
from ...dreamvideo.models.config import NetworkConfig, UNetConfig, text_layers
from ...dreamvideo.models.layers import economical
from ...dreamvideo.models.network import VideoUNet
from ...dreamvideo.models.regions import Region
from ...dreamvideo.models.stack import AdapterStack
from ...dreamvideo.models.unet import UNet
from ...dreamvideo.safety.sizes import check_divides
from ..placeholders import LAYERS
from .layered import texts_of
from .paging import switched_on

log = logging.getLogger(__name__)

KEY = "dreamvideo"  # of what we put into the host's dictionaries
ANCHORS = ("input_blocks.0.1.transformer_blocks.0.attn1.to_q.weight", "input_blocks.1.0.temopral_conv.conv1.0.weight")
APPEARANCE, APPEARANCE_STRENGTH = "dreamvideo_appearance", "dreamvideo_appearance_strength"
REGIONS = "dreamvideo_regions"  # of a prompt: parts of the video that read others
BLANKS = "dreamvideo_blanks"  # of each motion that is guided: whether it was trained with blank images


def _attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The host's attention on [batch, heads, length, head_dim]; some kernels have no gradient, some suit no CPU."""
    plain = torch.is_grad_enabled() or q.device.type == "cpu"
    kernel = attention_pytorch if plain else optimized_attention
    found = kernel(q, k, v, q.shape[1], skip_reshape=True)  # [batch, length, C]; not every kernel can leave heads apart
    return found.unflatten(-1, (q.shape[1], -1)).transpose(1, 2)  # [batch, heads, length, head_dim]


class _HostStack(AdapterStack):
    """A stack whose weight deltas are the host's patches, and so in its weights already; of regions each half of
    guidance has its own."""

    def network(self, unet: VideoUNet, timesteps: Tensor) -> VideoUNet:
        return unet

    @property
    def heeds(self) -> Tensor:
        return torch.ones(1)


class HostUNet(VideoUNet):
    """A network of the engine with the forward that the host calls; without transformer_options it is the engine's own.

    What comes before the network's own class among the bases.
    """

    def __init__(self, config: NetworkConfig, dtype=None, device=None, operations=None) -> None:
        layers = economical(operations)
        super().__init__(config, operations=layers, attention=_attention, device=device, dtype=dtype)
        # Kept, not read off a layer: where the host pages weights a layer has none until it is used.
        self.weight_dtype: torch.dtype = dtype or torch.get_default_dtype()
        self.compute_dtype: torch.dtype | None = None  # where the host casts the weights in every operation

    @property
    def dtype(self) -> torch.dtype:
        """In which inputs come."""
        return self.compute_dtype or self.weight_dtype

    def forward(
        self,
        x,
        timesteps,
        context=None,
        control=None,
        transformer_options=None,
        adapters=None,
        watch=None,
        **conditions,
    ) -> Tensor:
        if transformer_options is None:
            return super().forward(x, timesteps, context, adapters, watch)
        wrappers = get_all_wrappers(WrappersMP.DIFFUSION_MODEL, transformer_options)
        call = WrapperExecutor.new_class_executor(self._frames, self, wrappers)
        return call.execute(x, timesteps, context, control, transformer_options, **conditions)

    def _frames(self, x, timesteps, context=None, control=None, transformer_options=None, **conditions) -> Tensor:
        """x [chunks * F, 4, h, w], timesteps and context alike -> the noise in x."""
        _check_frames(x, self.config)
        _check_text(context, self.config)
        halves = transformer_options.get("cond_or_uncond", (0,))  # of each chunk: 0 where it is the prompt's
        chunks = len(halves)
        frames = x.shape[0] // chunks
        video = rearrange(x, "(chunks f) c h w -> chunks c f h w", chunks=chunks)
        entries = transformer_options.get(KEY, ())
        feature, strength = conditions.get(APPEARANCE), conditions.get(APPEARANCE_STRENGTH)
        regions = conditions.get(REGIONS, ())
        adapters = None
        if entries or regions:
            given = () if feature is None else (feature[::frames], strength[::frames, 0])
            if given:
                blanks = transformer_options.get(BLANKS, ())
                given = given[0], torch.where(given[1] < 0, float(bool(blanks) and all(blanks)), given[1])
            prompted = torch.tensor([float(half == 0) for half in halves], device=x.device)
            adapters = _HostStack(entries, *given, regions=_checked(regions, self.config), prompted=prompted)
        layers = conditions.get(LAYERS)
        text = context[::frames] if layers is None else layers.texts.to(context).expand(chunks, -1, -1, -1)
        times = timesteps[::frames]
        noise = predict_parts(super().forward, video, times, text, adapters, self.config.stride)
        return rearrange(noise, "chunks c f h w -> (chunks f) c h w")


class HostModelScopeUNet(HostUNet, UNet):
    """ModelScope's."""


def _check_frames(x: Tensor, config: NetworkConfig) -> None:
    if x.ndim != 4 or x.shape[1] != config.in_channels:
        raise ValueError(
            f"This LATENT has the shape {list(x.shape)} and this MODEL takes [frames, {config.in_channels}, height / 8,"
            " width / 8]: use Empty Latent Image, its batch size is the number of frames, or VAE Encode of the frames."
        )
    height, width = (8 * side for side in x.shape[2:])
    check_divides("A video", width, height, 8 * config.stride)


def _check_text(context: Tensor | None, config: NetworkConfig) -> None:
    width, layers = config.context_dim, len(text_layers(config))
    found = "no text" if context is None else f"text states of width {context.shape[-1]}"
    if context is None or context.shape[-1] != width:
        raise ValueError(
            f"The conditioning has {found} and this MODEL reads width {width}: encode the prompt with the CLIP of the "
            "same base (its loader gives it)."
        )
    if context.ndim == 4 and context.shape[1] != layers:
        raise ValueError(
            f"The conditioning has texts for {context.shape[1]} layers and this MODEL has {layers} that read one: "
            "its word was learned on another base."
        )


def _checked(regions: Sequence[Region], config: NetworkConfig) -> Sequence[Region]:
    for region in regions:
        _check_text(region.context, config)
    return regions


class T2VModel(comfy.model_base.BaseModel):
    """A video model among the host's, ModelScope's by default. fingerprint: of its weights as they are in the file."""

    def __init__(self, model_config, device, weights_fingerprint: str, network=HostModelScopeUNet) -> None:
        super().__init__(model_config, comfy.model_base.ModelType.EPS, device=device, unet_model=network)
        self.diffusion_model.compute_dtype = self.manual_cast_dtype
        self.fingerprint = weights_fingerprint

    def get_dtype(self) -> torch.dtype:
        return self.diffusion_model.weight_dtype

    def extra_conds(self, **conditions) -> dict[str, Any]:
        found = super().extra_conds(**conditions)
        feature = conditions.get(APPEARANCE)  # [1, D]
        if feature is not None:
            strength = torch.full((1, 1), float(conditions.get(APPEARANCE_STRENGTH, 1.0)))
            found[APPEARANCE] = comfy.conds.CONDRegular(feature)
            found[APPEARANCE_STRENGTH] = comfy.conds.CONDRegular(strength)
        if REGIONS in conditions:  # the same for every sample that has them; those without go into a batch of their own
            found[REGIONS] = comfy.conds.CONDConstant(conditions[REGIONS])
        if texts_of(conditions.get("cross_attn"), conditions) is not None:
            found[LAYERS] = comfy.conds.CONDConstant(conditions[LAYERS])
        return found


class ModelScopeT2V(comfy.supported_models_base.BASE):
    """How the host recognises and builds the model; with it the stock Load Diffusion Model reads ModelScope's files."""

    unet_config: dict[str, Any] = {}
    unet_extra_config: dict[str, Any] = {}
    latent_format = comfy.latent_formats.SD15
    memory_usage_factor = 2.0

    @classmethod
    def matches(cls, unet_config, state_dict=None, *_, **__) -> bool:
        """Asked before any other model's file is loaded, so with whatever a host may add to the question in time."""
        return state_dict is not None and all(any(key.endswith(anchor) for key in state_dict) for anchor in ANCHORS)

    def get_model(self, state_dict, prefix="", device=None):
        state = {key.removeprefix(prefix): tensor for key, tensor in state_dict.items() if key.startswith(prefix)}
        self.unet_config = {"config": _config_of(state), "dtype": self.unet_config.get("dtype")}
        return T2VModel(self, device, fingerprint({key: state[key] for key in original_shapes(_config_of(state))}))

    def process_unet_state_dict(self, state_dict):
        """In the precision that the network is built with, which a layer that takes over a tensor would not keep."""
        return state_dict if getattr(self, "quant_config", None) is not None else as_built(self, state_dict)


def as_built(model_config: Any, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Tensors in the precision that the network is built with, where its layers take them over as they are."""
    dtype = model_config.unet_config["dtype"]
    if dtype is None or not switched_on():
        return state
    return {key: tensor.to(dtype) if tensor.is_floating_point() else tensor for key, tensor in state.items()}


def _config_of(state: Mapping[str, Tensor]) -> UNetConfig:
    shapes = {key: tuple(tensor.shape) for key, tensor in state.items()}
    return infer_config(shapes, "original")


def register() -> None:
    """Make the host know the model, once: a reloaded pack takes the place of its former self.

    A host that keeps no such list is left as it is: Load ModelScope T2V works without.
    """
    try:
        known = comfy.supported_models.models
        others = [config for config in known if config.__name__ != ModelScopeT2V.__name__]
        known[:] = [ModelScopeT2V, *others]
    except (AttributeError, TypeError) as error:
        log.warning("DreamVideo: this ComfyUI's own loaders will not know ModelScope's files (%s).", error)


def model_of(model: Any) -> T2VModel:
    """The T2VModel of a MODEL. ValueError for a MODEL of another kind."""
    inner = getattr(model, "model", None)
    if not isinstance(inner, T2VModel):
        raise ValueError(
            f"This MODEL is a {type(inner).__name__}, not a video model that these nodes know: load one "
            "with Load ModelScope T2V or with Load Diffusion Model, or make one of Stable Diffusion 1.5 with "
            "Load AnimateDiff."
        )
    return inner


def unet_of(model: Any) -> HostUNet:
    """The network of this very MODEL: a clone of it may hold another one (see `training.loaded_to_train`)."""
    return model_of(model).diffusion_model
