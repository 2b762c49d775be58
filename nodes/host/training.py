"""The engine's training on what the host has loaded, and the host's Cancel."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import comfy.model_management
import torch
from torch import nn

from ...dreamvideo.base import Base
from ...dreamvideo.encoders.protocols import Encoders
from .encoders import HostText
from .model import unet_of
from .paging import static_clone

try:
    from comfy.model_management import InterruptProcessingException
except ImportError:  # the fork that is an installable package
    from comfy.interruption import InterruptProcessingException

EVERYTHING = 1e20  # bytes nobody has: makes room by unloading all other models

Interrupted = InterruptProcessingException
OutOfMemory = comfy.model_management.OOM_EXCEPTION


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
def loaded_to_train(model: Any, clip: Any, encoders: Encoders) -> Iterator[tuple[Base, Callable[[], None]]]:
    """The one handle for what training runs on: UNet and text encoder that the host has loaded whole and that stay.

    Where the host pages weights these are not the networks of `model` and `clip` but second ones of the same files: a
    backward pass would read pages that are gone. LoRAs and other weight patches count as weights, adapters do not act.
    encoders: of the same CLIP; their image encoder and autoencoder are taken as they are. Also gives what to call when
    others were loaded since. Leaves inference mode. Raises ValueError where the host cannot load a second network.
    """
    with torch.inference_mode(False):
        kept, words = static_clone(model), static_text(clip)
        unet, text = unet_of(kept), words.cond_stage_model
        text.requires_grad_(False)

        def load() -> None:
            comfy.model_management.load_models_gpu(
                [kept, words.patcher], memory_required=EVERYTHING, force_full_load=True
            )
            heal(unet)
            heal(text)

        load()
        try:
            yield Base(unet, replace(encoders, text=HostText(words)), kept.load_device, unet.dtype), load
        except OutOfMemory as error:
            raise type(error)(
                "Training ran out of memory: set gradient_checkpointing to on, use fewer frames, a smaller size or "
                f"batch size 1. What was learned is kept. ({error})"
            ) from error
        finally:
            gc.collect()
            comfy.model_management.soft_empty_cache()


def static_text(clip: Any) -> Any:
    """A clone of a CLIP around the text encoder of a static clone, which the host's own clone leaves out."""
    clone = clip.clone()
    clone.patcher = static_clone(clip.patcher)
    clone.cond_stage_model = clone.patcher.model
    return clone


def interrupted() -> bool:
    return comfy.model_management.processing_interrupted()


def stop_if_interrupted() -> None:
    comfy.model_management.throw_exception_if_processing_interrupted()
