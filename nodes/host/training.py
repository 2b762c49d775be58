"""The engine's training on what the host has loaded, and the host's Cancel."""

from __future__ import annotations

import gc
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import comfy.model_management
import torch
from torch import nn

from .model import HostUNet, unet_of

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
def ready_to_train(model: Any, clip: Any) -> Iterator[tuple[HostUNet, Callable[[], None]]]:
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
