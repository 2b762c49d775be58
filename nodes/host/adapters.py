"""Adapters, learned tokens' base and image features on the host's MODEL and CONDITIONING."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import comfy.model_patcher
import node_helpers
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...dreamvideo.customizing import saw_blank_images
from ...dreamvideo.files.adapter_info import TrainedAdapter, check_fits
from ...dreamvideo.files.fingerprint import same_base
from ...dreamvideo.models.adapters import AnyAdapter
from ...dreamvideo.models.deltas import WeightDelta
from ...dreamvideo.models.frame_attention import FrameAttention
from ...dreamvideo.models.regions import Region
from ...dreamvideo.models.stack import StackEntry
from .deltas import take_off_deltas, with_deltas
from .layered import texts_of
from .model import APPEARANCE, APPEARANCE_STRENGTH, BLANKS, KEY, REGIONS, model_of

TUNED = f"{KEY}_tuned"  # attachment: what Tune-A-Video learned of a clip


def with_adapter(
    model: Any, loaded: TrainedAdapter, entry: Callable[[AnyAdapter], StackEntry], other_base: bool = False
) -> Any:
    """A clone of a MODEL on which the adapter acts; what the model shares with others stays as it is.

    entry: adapter -> its place in the stack. A file of learned tokens only, and a strength of 0, change nothing.
    other_base: take one that was trained on other weights of the same architecture.
    """
    inner = model_of(model)
    weights = None if other_base else inner.fingerprint
    check_fits(loaded.info, inner.diffusion_model.config, weights, same_base=same_base)
    if loaded.adapter is None:
        return model
    placed = entry(loaded.adapter)
    if placed.strength == 0:
        return model
    if isinstance(loaded.adapter, FrameAttention):
        return _tuned(model, placed)
    if isinstance(loaded.adapter, WeightDelta):
        return with_deltas(model, placed)
    guided = loaded.info.kind == "motion" and loaded.adapter.config.condition_dim is not None
    return _with_entry(model, placed, (saw_blank_images(loaded),) if guided else ())


def _tuned(model: Any, placed: StackEntry) -> Any:
    """Tune-A-Video's queries as the host's patches, the rest of it in the stack."""
    clone = _with_entry(with_deltas(model, placed), placed)
    clone.set_attachments(TUNED, (*(clone.get_attachment(TUNED) or ()), placed))
    return clone


def _with_entry(model: Any, placed: StackEntry, blanks: tuple[bool, ...] = ()) -> Any:
    """A clone of a MODEL whose forwards have the entry in their stack."""

    def wrapper(executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, **conditions):
        options = dict(transformer_options or {})
        options[KEY] = (*options.get(KEY, ()), placed)
        options[BLANKS] = (*options.get(BLANKS, ()), *blanks)
        return executor(x, t, c_concat, c_crossattn, control, options, **conditions)

    clone = model.clone()
    clone.add_wrapper_with_key(WrappersMP.APPLY_MODEL, f"{KEY}.{uuid.uuid4()}", wrapper)
    loaded_with = clone.get_additional_models_with_key(KEY)
    if all(patcher.model is not placed.adapter for patcher in loaded_with):
        clone.set_additional_models(KEY, [*loaded_with, _patcher_for(placed.adapter, model)])
    return clone


def _patcher_for(adapter: AnyAdapter, model: Any) -> Any:
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
    take_off_deltas(clone)
    return clone


def inverting(model: Any) -> Any:
    """A clone of a MODEL as a clip's noise is found on: with what learned of the clip itself (Tune-A-Video) alone."""
    clone = without_adapters(model)
    tuned = clone.get_attachment(TUNED) or ()
    clone.remove_attachments(TUNED)
    for placed in tuned:
        clone = _tuned(clone, placed)
    return clone


def with_appearance(conditioning: Any, feature: Tensor, strength: float) -> Any:
    """CONDITIONING that carries an image feature [1, D] for motion adapters; a strength below 0 follows them."""
    return node_helpers.conditioning_set_values(conditioning, {APPEARANCE: feature, APPEARANCE_STRENGTH: strength})


def with_region(conditioning: Any, own: Any, mask: Tensor, apart: float = 0.0) -> Any:
    """CONDITIONING of whose video a part, mask [H, W] or [F, H, W], reads another CONDITIONING's first text.

    apart: as of `Region`.
    """
    shown, values = own[0]
    texts = texts_of(shown, values)
    region = Region(shown if texts is None else texts, mask, apart)
    return [[text, {**values, REGIONS: (*values.get(REGIONS, ()), region)}] for text, values in conditioning]


def same_weights(model: Any, loaded: TrainedAdapter) -> TrainedAdapter:
    """What was trained on this MODEL, named after its base's own weights and not those with a LoRA on them."""
    return replace(loaded, info=replace(loaded.info, base_fingerprint=model_of(model).fingerprint))
