"""The only file that touches ComfyUI's internals.

What the nodes need of the host: its MODEL around our UNet, its CLIP, CLIP_VISION and VAE behind the engine's encoder
protocols, training on what it has loaded, sampling by its guider, progress, and folders. In the host the frames of a
video are the batch: latents are [F, 4, h, w], and a step of guidance is [chunks * F, 4, h, w].
"""

from __future__ import annotations

import gc
import inspect
import json
import logging
import tempfile
import types
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import comfy.clip_model
import comfy.clip_vision
import comfy.conds
import comfy.latent_formats
import comfy.ldm.models.autoencoder
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.samplers
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models
import comfy.supported_models_base
import comfy.utils
import folder_paths
import latent_preview
import node_helpers
import server
import torch
from comfy.ldm.modules.attention import attention_pytorch, optimized_attention
from comfy.patcher_extension import WrapperExecutor, WrappersMP, get_all_wrappers
from PIL import Image
from torch import Tensor, nn

from ..dreamvideo.adapter_files import LoadedAdapter, check_fits
from ..dreamvideo.adapters import Adapter, AdapterStack, StackEntry
from ..dreamvideo.diffusion import SCHEDULE, ddim_invert, ddim_sample, ddim_timesteps
from ..dreamvideo.encoder_files import open_clip_file, open_vae
from ..dreamvideo.encoders import LATENT_SCALE, Encoders, Moments, check_placeholder, clip_pixels
from ..dreamvideo.files import inside
from ..dreamvideo.fingerprint import fingerprint, same_base
from ..dreamvideo.layers import economical
from ..dreamvideo.nano.denoiser import CONFIG as EMBEDDED_CONFIG
from ..dreamvideo.unet import UNet, UNetConfig
from ..dreamvideo.unet_files import read_unet
from ..dreamvideo.unet_layouts import infer_config, original_shapes
from .autoencoder import SmallAutoencoder
from .placeholders import PlaceholderTokenizer

try:
    from comfy.model_management import InterruptProcessingException
except ImportError:  # the fork that is an installable package
    from comfy.interruption import InterruptProcessingException

log = logging.getLogger(__name__)

KEY = "dreamvideo"  # of what we put into the host's dictionaries
ANCHORS = ("input_blocks.0.1.transformer_blocks.0.attn1.to_q.weight", "input_blocks.1.0.temopral_conv.conv1.0.weight")
APPEARANCE, APPEARANCE_STRENGTH = "dreamvideo_appearance", "dreamvideo_appearance_strength"
ADAPTERS_FOLDER, BASES_FOLDER = "dreamvideo_adapters", "dreamvideo"
EVERYTHING = 1e20  # bytes nobody has: makes room by unloading all other models

Interrupted = InterruptProcessingException
OutOfMemory = comfy.model_management.OOM_EXCEPTION


# ------------------------------------------------------------------------------------------------ MODEL


def _attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The host's attention on [batch, heads, length, head_dim]; some kernels have no gradient, some suit no CPU."""
    plain = torch.is_grad_enabled() or q.device.type == "cpu"
    kernel = attention_pytorch if plain else optimized_attention
    return kernel(q, k, v, q.shape[1], skip_reshape=True, skip_output_reshape=True)


class HostUNet(UNet):
    """The engine's UNet with the forward that the host calls; without transformer_options it is the engine's own."""

    def __init__(self, config: UNetConfig, dtype=None, device=None, operations=None) -> None:
        layers = economical(operations)
        super().__init__(config, operations=layers, attention=_attention, device=device, dtype=dtype)
        self.compute_dtype: torch.dtype | None = None  # where the host casts the weights in every operation

    @property
    def dtype(self) -> torch.dtype:
        """In which inputs come."""
        return self.compute_dtype or self.weight_dtype

    @property
    def weight_dtype(self) -> torch.dtype:
        return self.time_embed[0].weight.dtype

    def forward(
        self, x, timesteps, context=None, control=None, transformer_options=None, adapters=None, **conditions
    ) -> Tensor:
        if transformer_options is None:
            return super().forward(x, timesteps, context, adapters)
        wrappers = get_all_wrappers(WrappersMP.DIFFUSION_MODEL, transformer_options)
        call = WrapperExecutor.new_class_executor(self._frames, self, wrappers)
        return call.execute(x, timesteps, context, control, transformer_options, **conditions)

    def _frames(self, x, timesteps, context=None, control=None, transformer_options=None, **conditions) -> Tensor:
        """x [chunks * F, 4, h, w], timesteps and context alike -> the noise in x."""
        _check_frames(x, self.config)
        _check_text(context, self.config.context_dim)
        chunks = len(transformer_options.get("cond_or_uncond", (0,)))
        frames = x.shape[0] // chunks
        video = x.unflatten(0, (chunks, frames)).transpose(1, 2)  # [chunks, 4, F, h, w]
        entries = transformer_options.get(KEY, ())
        feature, strength = conditions.get(APPEARANCE), conditions.get(APPEARANCE_STRENGTH)
        adapters = None
        if entries:
            given = () if feature is None else (feature[::frames], strength[::frames, 0])
            adapters = AdapterStack(entries, *given)
        noise = super().forward(video, timesteps[::frames], context[::frames], adapters)
        return noise.transpose(1, 2).flatten(0, 1)


def _check_frames(x: Tensor, config: UNetConfig) -> None:
    if x.ndim != 4 or x.shape[1] != config.in_channels:
        raise ValueError(
            f"This LATENT has the shape {list(x.shape)} and this MODEL takes [frames, {config.in_channels}, height / 8,"
            " width / 8]: use Empty Latent Image, its batch size is the number of frames, or VAE Encode of the frames."
        )
    height, width = (8 * side for side in x.shape[2:])
    unit = 8 * config.stride
    if height % unit or width % unit:
        raise ValueError(f"{width} x {height} pixels do not divide by {unit}, as this base needs.")


def _check_text(context: Tensor | None, width: int) -> None:
    found = "no text" if context is None else f"text states of width {context.shape[-1]}"
    if context is None or context.shape[-1] != width:
        raise ValueError(
            f"The conditioning has {found} and this MODEL reads width {width}: encode the prompt with the CLIP of the "
            "same base (Load ModelScope T2V gives it)."
        )


class T2VModel(comfy.model_base.BaseModel):
    """ModelScope text-to-video among the host's models. fingerprint: of its weights as they are in the file."""

    def __init__(self, model_config, device, weights_fingerprint: str) -> None:
        super().__init__(model_config, comfy.model_base.ModelType.EPS, device=device, unet_model=HostUNet)
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
        return found


class ModelScopeT2V(comfy.supported_models_base.BASE):
    """How the host recognises and builds the model; with it the stock Load Diffusion Model reads ModelScope's files."""

    unet_config: dict[str, Any] = {}
    unet_extra_config: dict[str, Any] = {}
    latent_format = comfy.latent_formats.SD15
    memory_usage_factor = 2.0

    @classmethod
    def matches(cls, unet_config, state_dict=None) -> bool:
        return state_dict is not None and all(any(key.endswith(anchor) for key in state_dict) for anchor in ANCHORS)

    def get_model(self, state_dict, prefix="", device=None):
        state = {key.removeprefix(prefix): tensor for key, tensor in state_dict.items() if key.startswith(prefix)}
        self.unet_config = {"config": _config_of(state), "dtype": self.unet_config.get("dtype")}
        return T2VModel(self, device, fingerprint({key: state[key] for key in original_shapes(_config_of(state))}))


def _config_of(state: Mapping[str, Tensor]) -> UNetConfig:
    shapes = {key: tuple(tensor.shape) for key, tensor in state.items()}
    embedded = original_shapes(EMBEDDED_CONFIG)  # its norm groups are in no shape
    if all(shapes.get(key) == shape for key, shape in embedded.items()):
        return EMBEDDED_CONFIG
    return infer_config(shapes, "original")


def register() -> None:
    """Make the host know the model, once: a reloaded pack takes the place of its former self."""
    known = comfy.supported_models.models
    known[:] = [config for config in known if config.__name__ != ModelScopeT2V.__name__]
    known.insert(0, ModelScopeT2V)


def model_of(model: Any) -> T2VModel:
    """The T2VModel of a MODEL. ValueError for a MODEL of another kind."""
    inner = getattr(model, "model", None)
    if not isinstance(inner, T2VModel):
        raise ValueError(
            f"This MODEL is a {type(inner).__name__}, not a ModelScope text-to-video model: "
            "load one with Load ModelScope T2V or with Load Diffusion Model."
        )
    return inner


def unet_of(model: Any) -> HostUNet:
    return model_of(model).diffusion_model


# ---------------------------------------------------------------------------------------------- loading


def load_model(path: Path, dtype: torch.dtype | None) -> Any:
    """A MODEL from a UNet file of any layout. ValueError where it is no such file."""
    found = read_unet(path)
    options = {} if dtype is None else {"dtype": dtype}
    if found.layout == "diffusers" or found.config == EMBEDDED_CONFIG:
        # The host's detection runs over the tensor names before it asks us, and these it does not get through.
        return _patcher_of(dict(found.state.stream("cpu", None)), dtype)
    return comfy.sd.load_diffusion_model(str(path), model_options=options)


def _patcher_of(state: dict[str, Tensor], dtype: torch.dtype | None) -> Any:
    manage = comfy.model_management
    config = ModelScopeT2V({})
    device, offload = manage.get_torch_device(), manage.unet_offload_device()
    stored, supported = comfy.utils.weight_dtype(state), list(config.supported_inference_dtypes)
    parameters = comfy.utils.calculate_parameters(state)
    dtype = dtype or manage.unet_dtype(model_params=parameters, supported_dtypes=supported, weight_dtype=stored)
    config.set_inference_dtype(dtype, manage.unet_manual_cast(dtype, device, supported))
    model = config.get_model(state, "").to(offload)
    model.load_model_weights(state, "")
    return comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=offload)


def load_clip(path: Path) -> Any:
    """A CLIP from an open_clip file of any size; ViT-H-14 is the host's own SD 2 CLIP."""
    state, config = open_clip_file(path)
    folders = folder_paths.get_folder_paths("embeddings")
    if config["text_cfg"]["width"] == 1024:
        return comfy.sd.load_clip([str(path)], embedding_directory=folders)
    text = config["text_cfg"]
    options = {
        "num_hidden_layers": text["layers"],
        "hidden_size": text["width"],
        "num_attention_heads": text["heads"],
        "intermediate_size": 4 * text["width"],
        "hidden_act": "gelu",
        "max_position_embeddings": text["context_length"],
        "eos_token_id": 49407,
        "vocab_size": text["vocab_size"],
    }

    class Encoder(comfy.sd1_clip.SDClipModel):
        def __init__(self, device="cpu", dtype=None, model_options=None, **_):  # some hosts pass a config of their own
            super().__init__(
                device=device,
                dtype=dtype,
                layer="hidden",
                layer_idx=-2,
                textmodel_json_config=options,
                special_tokens={"start": 49406, "end": 49407, "pad": 0},
                model_options=model_options or {},
            )

    class Model(comfy.sd1_clip.SD1ClipModel):
        def __init__(self, device="cpu", dtype=None, model_options=None):
            super().__init__(device, dtype, model_options or {}, clip_name="h", clip_model=Encoder)

    class Words(comfy.sd1_clip.SDTokenizer):
        def __init__(self, embedding_directory=None, tokenizer_data=None):
            super().__init__(
                pad_with_end=False,
                embedding_directory=embedding_directory,
                embedding_size=text["width"],
                embedding_key="clip_h",
                tokenizer_data=tokenizer_data or {},
            )

    class Tokenizer(comfy.sd1_clip.SD1Tokenizer):
        def __init__(self, embedding_directory=None, tokenizer_data=None):
            super().__init__(embedding_directory, tokenizer_data or {}, clip_name="h", tokenizer=Words)

    target = comfy.supported_models_base.ClipTarget(Tokenizer, Model)
    clip = comfy.sd.CLIP(target, embedding_directory=folders)
    weights = {key: tensor for key, tensor in _floats(state).items() if not key.startswith("visual.")}
    clip.load_sd(comfy.utils.clip_text_transformers_convert(weights, "", ""))
    return clip


def load_clip_vision(path: Path) -> Any:
    """A CLIP_VISION from an open_clip file of any size; ViT-H-14 is the host's own."""
    state, config = open_clip_file(path)
    vision = config["vision_cfg"]
    if vision["width"] == 1280:
        return comfy.clip_vision.load(str(path))
    options = {
        "model_type": "clip_vision_model",
        "num_hidden_layers": vision["layers"],
        "hidden_size": vision["width"],
        "num_attention_heads": vision["width"] // vision.get("head_width", 64),
        "intermediate_size": 4 * vision["width"],
        "hidden_act": "gelu",
        "num_channels": 3,
        "patch_size": vision["patch_size"],
        "image_size": vision["image_size"],
        "projection_dim": config["embed_dim"],
    }
    with tempfile.TemporaryDirectory() as folder:  # the host reads its configs from files
        described = Path(folder) / "config.json"
        described.write_text(json.dumps(options), encoding="utf-8")
        found = comfy.clip_vision.ClipVisionModel(str(described))
    weights = {key: tensor for key, tensor in _floats(state).items() if key.startswith("visual.")}
    found.load_sd(comfy.clip_vision.convert_to_transformers(weights, "visual."))
    return found


def load_vae(path: Path) -> Any:
    """A VAE from any Stable Diffusion autoencoder's file, the embedded base's with its two norm groups among them."""
    state, config = open_vae(path)
    if config.get("norm_num_groups", 32) == 32:
        vae = comfy.sd.VAE(sd=dict(state.stream("cpu", None)))
        vae.throw_exception_if_invalid()
        return vae
    # The host's VAE with all its attributes, whatever its version has, around another network.
    stub = {"double_z": True, "z_channels": 4, "resolution": 64, "in_channels": 3, "out_ch": 3, "ch": 32}
    stub |= {"ch_mult": [1, 1, 1, 1], "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0}
    params = {"ddconfig": stub, "embed_dim": 4}
    filling = comfy.ldm.models.autoencoder.AutoencoderKL(ddconfig=dict(stub), embed_dim=4).state_dict()
    vae = comfy.sd.VAE(sd=filling, config={"params": params})
    network = SmallAutoencoder(config)
    network.load_state_dict(_floats(state))
    vae.first_stage_model = network.eval().requires_grad_(False).to(vae.vae_dtype)
    vae.patcher = type(vae.patcher)(
        vae.first_stage_model, load_device=vae.device, offload_device=vae.patcher.offload_device
    )
    return vae


def _floats(state: Any) -> dict[str, Tensor]:
    return {key: tensor.float() for key, tensor in state.stream("cpu", None)}


# --------------------------------------------------------------------------------------------- adapters


def with_adapter(model: Any, loaded: LoadedAdapter, entry: Callable[[Adapter], StackEntry]) -> Any:
    """A clone of a MODEL on which the adapter acts; what the model shares with others stays as it is.

    entry: adapter -> its place in the stack. A file of learned tokens only, and a strength of 0, change nothing.
    """
    inner = model_of(model)
    check_fits(loaded.info, inner.diffusion_model.config, inner.fingerprint, same_base=same_base)
    if loaded.adapter is None:
        return model
    placed = entry(loaded.adapter)
    if placed.strength == 0:
        return model

    def wrapper(executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, **conditions):
        options = dict(transformer_options or {})
        options[KEY] = (*options.get(KEY, ()), placed)
        return executor(x, t, c_concat, c_crossattn, control, options, **conditions)

    clone = model.clone()
    clone.add_wrapper_with_key(WrappersMP.APPLY_MODEL, f"{KEY}.{uuid.uuid4()}", wrapper)
    loaded_with = clone.get_additional_models_with_key(KEY)
    if all(patcher.model is not loaded.adapter for patcher in loaded_with):
        clone.set_additional_models(KEY, [*loaded_with, _patcher_for(loaded.adapter, model)])
    return clone


def _patcher_for(adapter: Adapter, model: Any) -> Any:
    """What moves an adapter between devices. It lives as long as the adapter: the host takes an adapter that outlives
    its patcher for a leak."""
    patcher = adapter.__dict__.get(KEY)
    if patcher is None:
        patcher = comfy.model_patcher.ModelPatcher(adapter, model.load_device, model.offload_device)
        adapter.__dict__[KEY] = patcher
    return patcher


def without_adapters(model: Any) -> Any:
    """A clone of a MODEL without any adapter of ours; other patches stay."""
    clone = model.clone()
    for key in list(clone.wrappers.get(WrappersMP.APPLY_MODEL, {})):
        if key.startswith(f"{KEY}."):
            clone.remove_wrappers_with_key(WrappersMP.APPLY_MODEL, key)
    clone.remove_additional_models(KEY)
    return clone


def with_tokens(clip: Any, tokens: Mapping[str, Tensor]) -> Any:
    """A clone of a CLIP whose prompts know learned tokens: placeholder -> [n, D]."""
    if not tokens:
        return clip
    clone = clip.clone()
    clone.tokenizer = _tokenizer_of(clip, tokens)
    return clone


def _tokenizer_of(clip: Any, tokens: Mapping[str, Tensor]) -> PlaceholderTokenizer:
    """The tokenizer of a CLIP, with more learned tokens. ValueError where they were learned for another."""
    width = HostText(clip).width
    for name, vectors in tokens.items():
        if vectors.shape[-1] != width:
            raise ValueError(
                f"The token {name} was learned for text states of width {vectors.shape[-1]} and this CLIP has {width}: "
                "it belongs to another base."
            )
    host, known = clip.tokenizer, {}
    if isinstance(host, PlaceholderTokenizer):
        host, known = host.host, host.tokens
    return PlaceholderTokenizer(host, {**known, **tokens})


def with_appearance(conditioning: Any, feature: Tensor, strength: float) -> Any:
    """CONDITIONING that carries an image feature [1, D] for motion adapters."""
    return node_helpers.conditioning_set_values(conditioning, {APPEARANCE: feature, APPEARANCE_STRENGTH: strength})


# --------------------------------------------------------------------------------------------- encoders


def _out_of_place(layer, x, mask=None, optimized_attention=None, **_):
    attention = attention_pytorch if torch.is_grad_enabled() else optimized_attention
    x = x + layer.self_attn(layer.layer_norm1(x), mask, attention)
    return x + layer.mlp(layer.layer_norm2(x))


@contextmanager
def _differentiable(module: nn.Module) -> Iterator[None]:
    """The host's CLIP layers add in place, over what autograd has kept; the same numbers without that."""
    layers = [layer for layer in module.modules() if isinstance(layer, comfy.clip_model.CLIPLayer)]
    for layer in layers:
        layer.forward = types.MethodType(_out_of_place, layer)
    try:
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)


class HostText:
    """The engine's TextEncoder over a CLIP of the host. Prompts are read as they stand: no weights in brackets."""

    def __init__(self, clip: Any) -> None:
        self.clip = clip
        stage = clip.cond_stage_model
        self.encoder = getattr(stage, getattr(stage, "clip", ""), None)
        if not hasattr(self.encoder, "transformer") or not hasattr(self.encoder.transformer, "get_input_embeddings"):
            raise ValueError(
                f"This CLIP is a {type(stage).__name__}; ModelScope reads OpenCLIP ViT-H-14's text encoder: "
                "take the CLIP of Load ModelScope T2V, or Load CLIP with open_clip_pytorch_model.bin."
            )

    @property
    def embeddings(self) -> Tensor:
        return self.encoder.transformer.get_input_embeddings().weight

    @property
    def width(self) -> int:
        return self.embeddings.shape[1]

    def check_placeholder(self, name: str, taken: Sequence[str] = ()) -> None:
        check_placeholder(name, taken)

    def embed_word(self, word: str) -> Tensor:
        chunk = next(iter(self.clip.tokenize(word, disable_weights=True).values()))[0]
        ids = [item[0] for item in chunk[1:]]
        ids = ids[: ids.index(self.encoder.special_tokens["end"])]
        if not ids:
            raise ValueError(f"The word {word!r} holds nothing to start a token from; give a word such as dog.")
        return self.embeddings.detach()[ids].float().cpu().clone()

    def encode(self, prompts: Sequence[str], tokens: Mapping[str, Tensor] | None = None) -> Tensor:
        # No clone of the CLIP: the host would load it anew in every training step.
        tokenizer = _tokenizer_of(self.clip, tokens or {})
        with _differentiable(self.clip.cond_stage_model):
            return torch.cat([self._encode(tokenizer, prompt) for prompt in prompts])

    def _encode(self, tokenizer: PlaceholderTokenizer, prompt: str) -> Tensor:
        found = tokenizer.tokenize_with_weights(prompt, disable_weights=True)
        first = {encoder: chunks[:1] for encoder, chunks in found.items()}  # the base was trained on one
        return self.clip.encode_from_tokens(first).float()


class HostImage:
    """The engine's ImageEncoder over a CLIP_VISION, with the engine's own scaling, which is the authors'."""

    def __init__(self, vision: Any) -> None:
        self.vision = vision
        if not hasattr(vision.model, "visual_projection"):
            raise ValueError("This CLIP_VISION gives no projected features: use OpenCLIP ViT-H-14's image encoder.")

    @property
    def width(self) -> int:
        return self.vision.model.visual_projection.weight.shape[0]

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        comfy.model_management.load_model_gpu(self.vision.patcher)
        pixels = clip_pixels(images.float(), self.vision.image_size).to(self.vision.load_device)
        return self.vision.model(pixel_values=pixels, intermediate_output=-2)[2].float().cpu()


class NoImage:
    """Where no CLIP_VISION is connected: features that are thrown away again."""

    width = 1

    def encode(self, images: Tensor) -> Tensor:
        return torch.zeros(len(images), 1)


class HostVAE:
    """The engine's Autoencoder over a VAE of the host."""

    def __init__(self, vae: Any) -> None:
        self.vae = vae
        network = vae.first_stage_model
        if vae.latent_channels != 4 or not (hasattr(network, "quant_conv") and hasattr(network, "encoder")):
            raise ValueError(
                f"This VAE is a {type(network).__name__} with {vae.latent_channels} latent channels; ModelScope takes "
                "Stable Diffusion's (any SD 1 or 2 VAE, VQGAN_autoencoder among them)."
            )

    @torch.no_grad()
    def encode(self, images: Tensor, chunk: int | None = None) -> Moments:
        vae = self.vae
        memory = vae.memory_used_encode((chunk or 8, *images.shape[1:]), vae.vae_dtype)
        comfy.model_management.load_models_gpu([vae.patcher], memory_required=memory)
        parts = [self._moments(part) for part in images.split(chunk or 8)]
        mean, logvar = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        std = torch.exp(0.5 * logvar.clamp(-30.0, 20.0))
        return Moments(mean * LATENT_SCALE, std * LATENT_SCALE)

    def _moments(self, images: Tensor) -> tuple[Tensor, Tensor]:
        network = self.vae.first_stage_model
        pixels = self.vae.process_input(images).to(self.vae.device, self.vae.vae_dtype)
        return network.quant_conv(network.encoder(pixels)).float().cpu().chunk(2, dim=1)

    @torch.no_grad()
    def decode(self, latents: Tensor, chunk: int | None = None) -> Tensor:
        return self.vae.decode(latents / LATENT_SCALE).movedim(-1, 1).float()


def encoders_of(clip: Any, vae: Any, vision: Any | None) -> Encoders:
    return Encoders(HostText(clip), NoImage() if vision is None else HostImage(vision), HostVAE(vae))


# --------------------------------------------------------------------------------------------- training


def heal(module: nn.Module) -> None:
    """Make a module's tensors ones that autograd may keep: what the host moves in inference mode is not."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None and parameter.is_inference():
                fresh = nn.Parameter(parameter.detach().clone(), requires_grad=False)
                fresh.__dict__.update(parameter.__dict__)
                part._parameters[name] = fresh
        for name, buffer in part._buffers.items():
            if buffer is not None and buffer.is_inference():
                part._buffers[name] = buffer.clone()


@contextmanager
def training(model: Any, clip: Any) -> Iterator[tuple[HostUNet, Callable[[], None]]]:
    """The UNet of a MODEL, loaded whole, for the engine to train on; and what to call when others were loaded since.

    Leaves inference mode. LoRAs and other weight patches of the MODEL count as its weights, adapters do not act.
    """
    static = "disable_dynamic" in inspect.signature(type(model).clone).parameters  # newer hosts page weights in and out
    patcher = model.clone(disable_dynamic=True) if static else model.clone()
    unet, text = unet_of(model), clip.cond_stage_model

    def load() -> None:
        comfy.model_management.load_models_gpu(
            [patcher, clip.patcher], memory_required=EVERYTHING, force_full_load=True
        )
        heal(unet)
        heal(text)

    with torch.inference_mode(False):
        text.requires_grad_(False)
        load()
        try:
            yield unet, load
        except OutOfMemory as error:
            raise type(error)(
                "Training ran out of memory: set gradient_checkpointing to on, use fewer frames, a smaller size or "
                f"batch size 1. What was learned is kept. ({error})"
            ) from error
        finally:
            gc.collect()
            comfy.model_management.soft_empty_cache()


def interrupted() -> bool:
    return comfy.model_management.processing_interrupted()


def stop_if_interrupted() -> None:
    comfy.model_management.throw_exception_if_processing_interrupted()


# --------------------------------------------------------------------------------------------- sampling


class _Ddim(comfy.samplers.Sampler):
    """The authors' sampler (diffusion.ddim_sample, or ddim_invert) over the host's guider."""

    def __init__(self, steps: int, backwards: bool = False) -> None:
        self.steps, self.backwards = steps, backwards

    def sigma(self, t: int) -> float:
        kept = float(SCHEDULE.alphas_cumprod[t])
        return ((1 - kept) / kept) ** 0.5

    def sigmas(self) -> Tensor:
        return torch.tensor([*(self.sigma(t) for t in ddim_timesteps(self.steps)), 0.0])

    def sample(
        self, guider, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False
    ) -> Tensor:
        def predict(x: Tensor, t: int) -> Tensor:  # x [1, 4, F, h, w]
            sigma = self.sigma(t)
            scaled = x[0].transpose(0, 1) * (1 + sigma**2) ** 0.5  # the host's latents have noise of variance sigma^2
            clean = guider(scaled, torch.full((len(scaled),), sigma, device=x.device), **extra_args)
            return ((scaled - clean) / sigma).transpose(0, 1)[None]

        def told(done: int, total: int, clean: Tensor) -> None:
            if callback is not None:
                frames = clean[0].transpose(0, 1)
                callback(done - 1, frames, frames, total)

        video = noise.float().transpose(0, 1)[None]  # [1, 4, F, h, w]
        if self.backwards:
            return ddim_invert(predict, video, self.steps)[0].transpose(0, 1)
        return ddim_sample(predict, video, self.steps, callback=told)[0].transpose(0, 1)


def sample(model: Any, positive: Any, negative: Any, noise: Tensor, steps: int, guidance: float, seed: int) -> Tensor:
    """Latents [F, 4, h, w] as the host keeps them, from noise [F, 4, h, w] of variance one."""
    unet_of(model)
    total = len(ddim_timesteps(steps))
    return _guided(model, positive, negative, noise, guidance, _Ddim(steps), seed,
                   latent_preview.prepare_callback(model, total))  # fmt: skip


def invert(model: Any, empty: Any, latents: Tensor, steps: int) -> Tensor:
    """The noise [F, 4, h, w] that would sample these latents on the base; empty: the empty prompt's CONDITIONING."""
    base = without_adapters(model)
    format = base.model
    found = _guided(base, empty, empty, format.process_latent_in(latents), 1.0, _Ddim(steps, backwards=True), 0, None)
    return format.process_latent_in(found)


def _guided(model, positive, negative, noise, guidance, sampler, seed, callback) -> Tensor:
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(guidance)
    return guider.sample(
        noise,
        torch.zeros_like(noise),
        sampler,
        sampler.sigmas(),
        callback=callback,
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=seed,
    ).cpu()


# --------------------------------------------------------------------------------------------- progress


def say(node_id: str | None, text: str) -> None:
    """Put text onto a node, where the host can."""
    running = getattr(server.PromptServer, "instance", None)
    if running is not None and node_id is not None and hasattr(running, "send_progress_text"):
        running.send_progress_text(text, node_id)


class Progress:
    """A node's progress bar, its line of text and its picture while it runs."""

    def __init__(self, node_id: str | None, total: int) -> None:
        self.node_id = node_id
        self.bar = comfy.utils.ProgressBar(total)
        self.picture: Any = None

    def __call__(self, done: int, total: int, text: str = "") -> None:
        """Raises Interrupted when the user has cancelled."""
        if text:
            say(self.node_id, text)
        self.bar.update_absolute(done, total, self.picture)
        self.picture = None
        stop_if_interrupted()

    def show(self, image: Tensor) -> None:
        """Put [3, H, W] in 0..1 onto the node with the next step."""
        pixels = (image.clamp(0, 1) * 255).round().to(torch.uint8).movedim(0, -1).cpu().numpy()
        self.picture = ("JPEG", Image.fromarray(pixels), max(pixels.shape[:2]))


# ---------------------------------------------------------------------------------------------- folders


def register_folders() -> None:
    """models/dreamvideo for whole bases, models/dreamvideo_adapters and output/dreamvideo for adapters."""
    models, output = Path(folder_paths.models_dir), Path(folder_paths.get_output_directory())
    for name, folder in (
        (BASES_FOLDER, models / "dreamvideo"),
        (ADAPTERS_FOLDER, models / "dreamvideo_adapters"),
        (ADAPTERS_FOLDER, output / "dreamvideo"),
    ):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:  # a read-only model share is no reason to have no nodes
            log.warning("DreamVideo: %s cannot be created: %s", folder, error)
        folder_paths.add_model_folder_path(name, str(folder))
        folder_paths.folder_names_and_paths[name][1].update({".safetensors", ".pth", ".bin", ".ckpt"})


def files_in(name: str) -> list[str]:
    """What the host lists in one of its model folders; nothing where it knows no such folder."""
    try:
        return list(folder_paths.get_filename_list(name))
    except KeyError:
        return []
    except FileNotFoundError:  # a folder was deleted since the host looked into it: let it look anew
        folder_paths.filename_list_cache.pop(name, None)
        return list(folder_paths.get_filename_list(name))


def folders_of(name: str) -> list[Path]:
    return [Path(folder) for folder in folder_paths.get_folder_paths(name)]


def file_in(name: str, file: str) -> Path:
    """The path of a file that the host lists there. ValueError for any other name, and for a link that leads out."""
    if file not in files_in(name):
        raise ValueError(f"There is no {file!r} in the {name} folder; reload the page if it was added just now.")
    path = Path(folder_paths.get_full_path_or_raise(name, file))
    for folder in folders_of(name):
        with suppress(ValueError):
            return inside(folder, path)
    raise ValueError(
        f"{file!r} in the {name} folder is a link to a file elsewhere: put the file itself there, or tell ComfyUI of "
        "its folder in extra_model_paths.yaml."
    )


def output_folder(*parts: str) -> Path:
    return Path(folder_paths.get_output_directory(), *parts)


def numbered(prefix: str, folder: str, suffix: str) -> Path:
    """The next free `<prefix>_00001_<suffix>` below output/<folder>. ValueError for a path that leads out."""
    root = output_folder(folder)
    root.mkdir(parents=True, exist_ok=True)
    try:
        inside(root, prefix)  # the host looks at the name only, not at where links lead
    except ValueError as error:
        raise ValueError(f"The file name {prefix!r} leads out of the output folder; give a plain name.") from error
    where, name, counter, _, _ = folder_paths.get_save_image_path(prefix, str(root))
    return Path(where) / f"{name}_{counter:05}_{suffix}"


def same_weights(model: Any, loaded: LoadedAdapter) -> LoadedAdapter:
    """What was trained on this MODEL, named after its base's own weights and not those with a LoRA on them."""
    return replace(loaded, info=replace(loaded.info, base_fingerprint=model_of(model).fingerprint))
