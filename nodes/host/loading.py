"""A base's files as the host's MODEL, CLIP, CLIP_VISION and VAE, of any size."""

from __future__ import annotations

import inspect
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import comfy.clip_vision
import comfy.model_management
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models_base
import comfy.utils
import folder_paths
import torch
from torch import Tensor

from ...dreamvideo.files.encoders import open_clip_file, open_vae
from ...dreamvideo.files.image_encoders import stored_image
from ...dreamvideo.files.unet import read_unet
from ...dreamvideo.models.config import UNetConfig
from .model import ModelScopeT2V
from .paging import is_dynamic, patcher_class


def load_model(path: Path, dtype: torch.dtype | None) -> Any:
    """A MODEL from a UNet file of any layout. ValueError where it is no such file."""
    found = read_unet(path)
    if not isinstance(found.config, UNetConfig):
        raise ValueError(
            f"{path.name} is a Stable Diffusion image UNet, and this loader is for ModelScope's: load it with Load "
            "Checkpoint and Load AnimateDiff, or from its folder with Load Image Base."
        )
    if found.layout == "diffusers":
        # The host's detection runs over the tensor names before it asks us, and these it does not get through.
        return _load_undetected(path, dtype)
    return comfy.sd.load_diffusion_model(str(path), model_options={} if dtype is None else {"dtype": dtype})


def _load_undetected(path: Path, dtype: torch.dtype | None, disable_dynamic: bool = False) -> Any:
    """What the host does behind its detection. disable_dynamic: not paged, as its own loaders have it."""
    state = dict(read_unet(path).state.stream("cpu", None))
    config = ModelScopeT2V({})
    choose_precision(config, state, dtype)
    patcher = placed(config.get_model(state, ""), state, disable_dynamic)
    patcher.cached_patcher_init = (_load_undetected, (path, dtype))  # how the host loads it again, for another device
    return patcher


def choose_precision(config: Any, state: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> None:
    """Tell a model's config in which precision it is kept and computes, as the host's loaders choose it."""
    manage, supported = comfy.model_management, list(config.supported_inference_dtypes)
    stored, parameters = comfy.utils.weight_dtype(state), comfy.utils.calculate_parameters(state)
    built = dtype or manage.unet_dtype(model_params=parameters, supported_dtypes=supported, weight_dtype=stored)
    config.set_inference_dtype(built, manage.unet_manual_cast(built, manage.get_torch_device(), supported))


def placed(model: Any, state: dict[str, Tensor], disable_dynamic: bool) -> Any:
    """A model's patcher, where the host has its models, with these weights in it."""
    device, offload = comfy.model_management.get_torch_device(), comfy.model_management.unet_offload_device()
    patcher = patcher_class(disable_dynamic)(model.to(offload), load_device=device, offload_device=offload)
    model.load_model_weights(state, "", **({"assign": True} if is_dynamic(patcher) else {}))
    return patcher


def load_clip(path: Path) -> Any:
    """A CLIP from an open_clip file of any size; ViT-H-14 is the host's own SD 2 CLIP."""
    state, config = open_clip_file(path)
    folders = folder_paths.get_folder_paths("embeddings")
    if config["text_cfg"]["width"] == 1024:
        return comfy.sd.load_clip([str(path)], embedding_directory=folders)
    clip = _small_clip(state, config["text_cfg"], folders)
    clip.patcher.cached_patcher_init = (_small_clip_patcher, (path,))
    return clip


def _small_clip_patcher(path: Path, disable_dynamic: bool = False) -> Any:
    state, config = open_clip_file(path)
    options = {"disable_dynamic": True} if disable_dynamic else {}
    return _small_clip(state, config["text_cfg"], folder_paths.get_folder_paths("embeddings"), **options).patcher


def _small_clip(state: Any, text: Mapping[str, Any], folders: list[str], **placed: Any) -> Any:
    options = {
        "num_hidden_layers": text["layers"],
        "hidden_size": text["width"],
        "num_attention_heads": text["heads"],
        "intermediate_size": int(text.get("mlp_ratio", 4) * text["width"]),
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
    weights = {key: tensor for key, tensor in _floats(state).items() if not key.startswith("visual.")}
    weights = comfy.utils.clip_text_transformers_convert(weights, "", "")
    if "state_dict" in inspect.signature(comfy.sd.CLIP).parameters:  # before the host moves it, where it asks for that
        return comfy.sd.CLIP(target, embedding_directory=folders, state_dict=[weights], **placed)
    clip = comfy.sd.CLIP(target, embedding_directory=folders)
    clip.load_sd(weights)
    return clip


def load_clip_vision(path: Path) -> Any:
    """A CLIP_VISION from an open_clip file of any size; ViT-H-14 is the host's own."""
    state, config = open_clip_file(path)
    vision = config["vision_cfg"]
    if vision["width"] == 1280:
        return comfy.clip_vision.load(str(path))
    config = {
        "layers": vision["layers"],
        "width": vision["width"],
        "heads": vision["width"] // vision.get("head_width", 64),
        "hidden": int(vision.get("mlp_ratio", 4) * vision["width"]),
        "activation": "gelu",
        "patch": vision["patch_size"],
        "size": vision["image_size"],
        "projected": config["embed_dim"],
    }
    weights = {key: tensor for key, tensor in _floats(state).items() if key.startswith("visual.")}
    return _vision(config, comfy.clip_vision.convert_to_transformers(weights, "visual."))


def load_image_tower(path: Path) -> Any:
    """A CLIP_VISION from a file of an image encoder alone, of any size; the published ones are the host's own."""
    state, config = stored_image(path)
    return comfy.clip_vision.load(str(path)) or _vision(config, _floats(state))


def _vision(config: Mapping[str, Any], weights: dict[str, Tensor]) -> Any:
    options = {
        "model_type": "clip_vision_model",
        "num_hidden_layers": config["layers"],
        "hidden_size": config["width"],
        "num_attention_heads": config["heads"],
        "intermediate_size": config["hidden"],
        "hidden_act": config["activation"],
        "num_channels": 3,
        "patch_size": config["patch"],
        "image_size": config["size"],
        "projection_dim": config["projected"],
    }
    with tempfile.TemporaryDirectory() as folder:  # the host reads its configs from files
        described = Path(folder) / "config.json"
        described.write_text(json.dumps(options), encoding="utf-8")
        found = comfy.clip_vision.ClipVisionModel(str(described))
    found.load_sd(weights)
    return found


def load_vae(path: Path) -> Any:
    """A VAE from any Stable Diffusion autoencoder's file, the embedded base's narrow one among them."""
    state, config = open_vae(path)
    vae = comfy.sd.VAE(sd=dict(state.stream("cpu", None)), config={"params": _autoencoder(config)})
    vae.throw_exception_if_invalid()
    return vae


def _autoencoder(config: Mapping[str, Any]) -> dict[str, Any]:
    """What the host's AutoencoderKL is built from, of diffusers' config."""
    widths, latent = config["block_out_channels"], config.get("latent_channels", 4)
    described = {
        "double_z": True,
        "z_channels": latent,
        "resolution": config.get("sample_size", 512),
        "in_channels": 3,
        "out_ch": 3,
        "ch": widths[0],
        "ch_mult": [width // widths[0] for width in widths],
        "num_res_blocks": config["layers_per_block"],
        "attn_resolutions": [],
        "dropout": 0.0,
    }
    return {"ddconfig": described, "embed_dim": latent}


def _floats(state: Any) -> dict[str, Tensor]:
    return {key: tensor.float() for key, tensor in state.stream("cpu", None)}
