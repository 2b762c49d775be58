"""A MODEL of an image model that the host loaded, with a motion module of AnimateDiff or without; whole image bases."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import comfy.latent_formats
import comfy.model_base
import comfy.sd
import comfy.supported_models_base
import folder_paths
from torch import Tensor

from ...dreamvideo.encoders.loading import check_matches, open_encoders
from ...dreamvideo.files.base import BaseFiles
from ...dreamvideo.files.fingerprint import fingerprint
from ...dreamvideo.files.image_layouts import WAY_OUT, check_family, find_image_layout, infer_image_config
from ...dreamvideo.files.layouts import original_shapes
from ...dreamvideo.files.motion_modules import MotionFile, checked, read_motion_module, with_motion
from ...dreamvideo.files.text_encoders import stored_text
from ...dreamvideo.files.unet import read_unet
from ...dreamvideo.models.animatediff import ImageUNet
from ...dreamvideo.models.image_config import MOTION, ImageUNetConfig
from .loading import choose_precision, load_clip, load_clip_vision, load_image_tower, load_vae, placed
from .model import HostUNet, T2VModel, as_built
from .paging import is_dynamic, patcher_class

PREFIX = "diffusion_model."  # of the network's tensors in a MODEL
LINEAR = "sqrt_linear"  # what the host calls linear betas


class HostImageUNet(HostUNet, ImageUNet):
    """Stable Diffusion 1.5's, alone or with motion modules."""


class ImageVideo(comfy.supported_models_base.BASE):
    """How the host builds it. Files of it the host knows as Stable Diffusion 1.5 and never asks us for."""

    unet_config: dict[str, Any] = {}
    unet_extra_config: dict[str, Any] = {}
    latent_format = comfy.latent_formats.SD15
    memory_usage_factor = 2.0

    def process_unet_state_dict(self, state_dict):
        return as_built(self, state_dict)


def with_motion_module(model: Any, path: Path | None, disable_dynamic: bool = False) -> Any:
    """A MODEL of videos from one of Stable Diffusion 1.5 and a motion module's file; None for none.

    Its weights are a copy of the image model's in their precision, and patches of these, a LoRA's, come along; what
    else was changed of the image model does not. ValueError for other image models, and for a motion module that is
    none or for another one.
    """
    state = _weights(model)
    config = _config(model, state)
    motion = None if path is None else read_motion_module(path)
    if motion is not None:
        config = with_motion(config, motion)
        state |= _named(checked(config, motion), model.model.get_dtype())
    made = _built(model, config, state, disable_dynamic)
    made.cached_patcher_init = (with_motion_module, (model, path))  # how the host makes it again, for another device
    made.patches = {name: list(patches) for name, patches in model.patches.items() if name.startswith(PREFIX)}
    made.patches_uuid = uuid.uuid4()  # by which the host tells what is merged from what is not
    return made


def _weights(model: Any) -> dict[str, Tensor]:
    """The image model's own weights, without what patches have made of them."""
    inner = model.model
    if isinstance(inner, T2VModel):
        raise ValueError(
            "This MODEL is a video model already: connect a Stable Diffusion 1.5 checkpoint's, from Load Checkpoint."
        )
    if getattr(inner, "model_type", None) != comfy.model_base.ModelType.EPS:
        raise ValueError(
            f"This MODEL is a {type(inner).__name__} that does not predict noise, as Stable Diffusion 1.5 does: "
            f"{WAY_OUT}."
        )
    found = {}
    for name, ((weight, convert), *_) in model.get_key_patches(PREFIX).items():
        found[name.removeprefix(PREFIX)] = convert(weight.detach(), inplace=False)
    return found


def _config(model: Any, state: Mapping[str, Tensor]) -> ImageUNetConfig:
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if find_image_layout(shapes) != ("original", ""):
        raise ValueError(f"This MODEL is a {type(model.model).__name__}, which is no Stable Diffusion 1.5: {WAY_OUT}.")
    try:
        check_family(shapes, "original")
        config = infer_image_config(shapes, "original")
    except ValueError as error:
        raise ValueError(f"This MODEL is not Stable Diffusion 1.5: {str(error).rstrip('.')}.") from error
    if original_shapes(config) != shapes:
        raise ValueError(f"This MODEL has other weights than Stable Diffusion 1.5: {WAY_OUT}.")
    return config


def _named(motion: MotionFile, dtype: Any) -> dict[str, Tensor]:
    return {f"{MOTION}.{name}": tensor for name, tensor in motion.state.stream("cpu", dtype)}


def _built(model: Any, config: ImageUNetConfig, state: dict[str, Tensor], disable_dynamic: bool) -> Any:
    inner = model.model
    about = ImageVideo({})
    about.set_inference_dtype(inner.get_dtype(), inner.manual_cast_dtype)
    about.custom_operations, about.optimizations = (
        inner.model_config.custom_operations,
        inner.model_config.optimizations,
    )
    about.unet_config["config"] = config
    if config.linear_betas:
        about.sampling_settings = {"beta_schedule": LINEAR}
    made = T2VModel(about, None, fingerprint(state), HostImageUNet).to(model.offload_device)
    about.unet_config = dict(inner.model_config.unet_config)  # by which the host names what a LoRA changes
    patcher = patcher_class(disable_dynamic)(made, load_device=model.load_device, offload_device=model.offload_device)
    made.load_model_weights(state, "", **({"assign": True} if is_dynamic(patcher) else {}))
    return patcher


def load_image_base(files: BaseFiles) -> tuple[Any, Any, Any]:
    """(MODEL, CLIP, VAE) of an image base, its checkpoint in any layout. ValueError where a file is none of these."""
    check_matches(read_unet(files.file("unet"), motion_module=files.motion_module).config, open_encoders(files))
    if files.text is None:
        return _of_videos_text(files), load_clip(files.file("clip")), load_vae(files.file("vae"))
    image, clip = _stock(files)
    model = with_motion_module(image, files.motion_module)
    model.cached_patcher_init = (_model_again, (files,))  # from its files: the image model need not stay in memory
    clip.patcher.cached_patcher_init = (_text_again, (files,))
    return model, clip, load_vae(files.file("vae"))


def _of_videos_text(files: BaseFiles, disable_dynamic: bool = False) -> Any:
    """The MODEL of an image base that reads the text states of a video base, as the embedded one does."""
    found = read_unet(files.file("unet"), motion_module=files.motion_module)
    state = dict(found.stream("cpu"))
    about = ImageVideo({})
    choose_precision(about, state)
    about.unet_config["config"] = found.config
    if found.config.linear_betas:
        about.sampling_settings = {"beta_schedule": LINEAR}
    patcher = placed(T2VModel(about, None, fingerprint(state), HostImageUNet), state, disable_dynamic)
    patcher.cached_patcher_init = (_of_videos_text, (files,))
    return patcher


def image_encoder(files: BaseFiles) -> Any:
    """The CLIP_VISION of an image base, or None."""
    if files.vision is not None:
        return load_image_tower(files.vision)
    return None if files.clip is None else load_clip_vision(files.clip)


def _stock(files: BaseFiles, **parts: Any) -> tuple[Any, Any]:
    """The host's own MODEL and CLIP, which it makes of the tensors as a checkpoint in one file has them."""
    found = {
        "model.diffusion_model.": read_unet(files.file("unet")).state,
        "cond_stage_model.transformer.": stored_text(files.file("text"))[0],
    }
    state = {f"{prefix}{name}": tensor for prefix, part in found.items() for name, tensor in part.stream("cpu", None)}
    folders = folder_paths.get_folder_paths("embeddings")
    options = {"output_vae": False, "embedding_directory": folders, **parts}
    made = comfy.sd.load_state_dict_guess_config(state, **options)
    return made[0], made[1]


def _model_again(files: BaseFiles, disable_dynamic: bool = False) -> Any:
    placed = {"disable_dynamic": True} if disable_dynamic else {}
    return with_motion_module(_stock(files, output_clip=False, **placed)[0], files.motion_module, disable_dynamic)


def _text_again(files: BaseFiles, disable_dynamic: bool = False) -> Any:
    placed = {"disable_dynamic": True} if disable_dynamic else {}
    return _stock(files, output_model=False, **placed)[1].patcher
