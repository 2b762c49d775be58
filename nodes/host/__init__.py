"""The only package that touches ComfyUI's internals, by topic; what the nodes need of the host stands here."""

from .about import about
from .adapters import same_weights, with_adapter, with_appearance, with_region
from .encoders import HostImage, HostText, HostVAE, encoders_of, networks_of, with_tokens
from .folders import (
    ADAPTERS_FOLDER,
    BASES_FOLDER,
    MOTION_FOLDER,
    file_in,
    files_in,
    folders_of,
    numbered,
    output_folder,
    register_folders,
    temporary_folder,
)
from .image import image_encoder, load_image_base, with_motion_module
from .loading import load_clip, load_clip_vision, load_model, load_vae
from .model import HostUNet, model_of, register, unet_of
from .paging import is_dynamic
from .progress import Progress, say, shown
from .sampling import invert, sample
from .training import Interrupted, OutOfMemory, interrupted, loaded_to_train, stop_if_interrupted
from .video import file_of

__all__ = [
    "ADAPTERS_FOLDER",
    "BASES_FOLDER",
    "HostImage",
    "HostText",
    "HostUNet",
    "HostVAE",
    "Interrupted",
    "MOTION_FOLDER",
    "OutOfMemory",
    "Progress",
    "about",
    "encoders_of",
    "file_in",
    "file_of",
    "files_in",
    "folders_of",
    "image_encoder",
    "interrupted",
    "invert",
    "is_dynamic",
    "load_clip",
    "load_clip_vision",
    "load_image_base",
    "load_model",
    "load_vae",
    "loaded_to_train",
    "model_of",
    "networks_of",
    "numbered",
    "output_folder",
    "register",
    "register_folders",
    "same_weights",
    "sample",
    "say",
    "shown",
    "stop_if_interrupted",
    "temporary_folder",
    "unet_of",
    "with_adapter",
    "with_appearance",
    "with_motion_module",
    "with_region",
    "with_tokens",
]
