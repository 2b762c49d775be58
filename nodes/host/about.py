"""What the host tells of itself, for a report."""

from __future__ import annotations

from typing import Any

import comfy.model_management

from .paging import is_dynamic


def about(model: Any) -> dict[str, str]:
    """By name: versions, how it manages memory, and how it loaded this MODEL."""
    manage, inner = comfy.model_management, model.model
    cast = getattr(inner, "manual_cast_dtype", None)
    facts = {
        "ComfyUI": _version(),
        "memory": f"{manage.vram_state.name}, model on {model.load_device}, kept on {model.offload_device}",
        "dynamic VRAM": "on for this model" if is_dynamic(model) else "off for this model",
        "model": f"kept in {inner.get_dtype()}, computed in {cast or inner.get_dtype()}",
        "patches": f"{len(model.patches)} weights, {len(model.object_patches)} objects",
    }
    return {name: text.replace("torch.", "") for name, text in facts.items()}


def _version() -> str:
    try:
        from comfyui_version import __version__
    except ImportError:  # not told by the fork that is an installable package
        return "unknown"
    return __version__
