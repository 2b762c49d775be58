"""Newer hosts page a model's weights in as they are used (dynamic VRAM); what needs them to stay asks here."""

from __future__ import annotations

import inspect
from typing import Any

import comfy
import comfy.model_patcher


def switched_on() -> bool:
    """Whether this host pages. Its linear layers then have no weight until they take over what a file has, as it is."""
    return bool(getattr(getattr(comfy, "memory_management", None), "aimdo_enabled", False))


def is_dynamic(patcher: Any) -> bool:
    """Whether this model's weights are paged in as they are used."""
    return getattr(patcher, "is_dynamic", lambda: False)()


def patcher_class(disable_dynamic: bool = False) -> Any:
    """The class that the host's own loaders take for a model."""
    static = comfy.model_patcher.ModelPatcher
    return static if disable_dynamic else getattr(comfy.model_patcher, "CoreModelPatcher", static)


def static_clone(patcher: Any) -> Any:
    """A clone whose weights stay where they are loaded. Of a paged model the host loads a second one from its file:
    the clone holds another network than `patcher`. Patches of weights, wrappers and adapters come along.

    ValueError where the host cannot load this model a second time.
    """
    if not is_dynamic(patcher):
        return patcher.clone()
    options = (
        {"disable_dynamic": True} if "disable_dynamic" in inspect.signature(type(patcher).clone).parameters else {}
    )
    try:
        clone = patcher.clone(**options)
    except RuntimeError as error:
        raise _cannot(patcher) from error
    if is_dynamic(clone):
        raise _cannot(patcher)
    return clone


def _cannot(patcher: Any) -> ValueError:
    return ValueError(
        f"ComfyUI pages the weights of this {type(patcher.model).__name__} and cannot load it a second time to keep "
        "them: load it with Load ModelScope T2V, Load Checkpoint, Load Diffusion Model or Load CLIP, or start ComfyUI "
        "with --disable-dynamic-vram."
    )
