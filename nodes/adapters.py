"""Load, save, apply and describe adapters."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from comfy_api.latest import io
from torch import Tensor

from ..dreamvideo.files.adapter_info import TrainedAdapter
from ..dreamvideo.files.adapters import load_adapter, save_trained
from ..dreamvideo.files.tensors import write_safetensors
from ..dreamvideo.models.adapters import AnyAdapter
from ..dreamvideo.models.stack import StackEntry
from ..dreamvideo.safety.locks import reserved
from . import host
from .fields import ADVANCED, CATEGORY, Adapter, model_input, other_base_input
from .regions import as_region

NONE = "no adapter file yet"
AS_TOLD = -1.0  # by the file itself
ADAPTERS, SUFFIX = "dreamvideo", ".safetensors"  # below the output folder


class LoadAdapter(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DreamVideoLoadAdapter",
            display_name="Load DreamVideo Adapter",
            category=CATEGORY,
            description="Loads a subject, a motion or a learned token: models/dreamvideo_adapters, output/dreamvideo.",
            inputs=[
                io.Combo.Input(
                    "adapter_file",
                    options=host.files_in(host.ADAPTERS_FOLDER) or [NONE],
                    tooltip="A file that Save DreamVideo Adapter or the command line wrote, or one of the authors'.",
                )
            ],
            outputs=[Adapter.Output(display_name="adapter", tooltip="What the file holds, for Apply.")],
        )

    @classmethod
    def execute(cls, adapter_file) -> io.NodeOutput:
        if adapter_file == NONE:
            raise ValueError("There is no adapter file yet: train one and save it, then reload the page.")
        return io.NodeOutput(load_adapter(host.file_in(host.ADAPTERS_FOLDER, adapter_file)))

    @classmethod
    def fingerprint_inputs(cls, adapter_file):
        try:
            return host.file_in(host.ADAPTERS_FOLDER, adapter_file).stat().st_mtime
        except (ValueError, OSError):
            return float("nan")


class SaveAdapter(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DreamVideoSaveAdapter",
            display_name="Save DreamVideo Adapter",
            category=CATEGORY,
            description="Saves an adapter below output/dreamvideo, from where Load DreamVideo Adapter reads it.",
            inputs=[
                Adapter.Input("adapter", tooltip="What a training node gave."),
                io.String.Input(
                    "filename_prefix",
                    default="subject",
                    tooltip="Name of the file below output/dreamvideo; a number is appended, nothing is overwritten.",
                ),
                io.Boolean.Input(
                    "save_embedding",
                    default=False,
                    tooltip=(
                        "Save the learned token as an ordinary embedding too, so that embedding:<name> works in any "
                        "prompt without this pack."
                    ),
                ),
            ],
            outputs=[io.String.Output(display_name="path", tooltip="The file that was written, below output.")],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, adapter: TrainedAdapter, filename_prefix="subject", save_embedding=False) -> io.NodeOutput:
        path = _write(adapter, filename_prefix)
        lines = [told(adapter, path)]
        if save_embedding:
            lines += [_save_embedding(name, vectors, path.stem) for name, vectors in adapter.tokens.items()]
            if not adapter.tokens:
                lines.append("It holds no learned token, so there is no embedding to save.")
        return io.NodeOutput(_shown_path(path), ui=host.shown(cls.hidden.unique_id, "\n".join(lines)))


def _write(adapter: TrainedAdapter, prefix: str) -> Path:
    path = host.numbered(prefix, ADAPTERS, SUFFIX)
    save_trained(path, adapter)
    return path


def told(adapter: TrainedAdapter, path: Path) -> str:
    """What a node says of a file that it wrote."""
    return f"Saved {adapter.info} as {_shown_path(path)}."


def _shown_path(path: Path) -> str:
    return os.path.relpath(path, host.output_folder())


def _save_embedding(placeholder: str, vectors, stem: str) -> str:
    if vectors.ndim == 3:
        return f"{placeholder} has a vector a layer, which no embedding can hold, so there is none to save"
    name = "-".join(filter(None, (re.sub(r"[^\w-]+", "", placeholder), stem.strip("_"))))
    with reserved(host.folders_of("embeddings")[0] / f"{name}.safetensors") as path:
        rows = vectors.detach().float().reshape(-1, vectors.shape[-1])
        write_safetensors(path, {"clip_h": rows}, {"name": placeholder})
    return f"{placeholder} is also embedding:{path.stem}"


class ApplyAdapter(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DreamVideoApplyAdapter",
            display_name="Apply DreamVideo Adapter",
            category=CATEGORY,
            description=(
                "Puts a subject or a motion onto a copy of the model. Chain as many as you like; they add up. "
                "A subject's placeholder then works in prompts of the returned CLIP."
            ),
            inputs=[
                model_input(),
                Adapter.Input("adapter", tooltip="A subject, a motion or a learned token."),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-2.0,
                    max=4.0,
                    step=0.05,
                    tooltip="How strongly it acts: 1 as trained, 0 not at all, above 1 it exaggerates.",
                ),
                io.Float.Input(
                    "start_percent",
                    default=AS_TOLD,
                    min=AS_TOLD,
                    max=0.99,
                    step=0.01,
                    tooltip=(
                        "Where on the way from noise to video it begins to act: 0 is the first step, -1 what its file "
                        "says: 0.2 for a subject by dreamvideo_plus, else 0."
                    ),
                ),
                io.Float.Input(
                    "end_percent",
                    default=1.0,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    tooltip="Where on the way from noise to video it ceases to act: 1 is the last step.",
                ),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="The text encoder that shall know the subject's placeholder; not needed for a motion.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Where in the picture it acts, white; one mask for all frames, or one a frame.",
                ),
                other_base_input(),
                _factor("ramp_start", "Factor on the strength where it begins to act; evenly from there to ramp_end."),
                _factor("ramp_end", "Factor on the strength where it ceases to act."),
                _factor("depth_outer", "Factor at the network's outermost level, where details are; inwards evenly."),
                _factor("depth_middle", "Factor in the network's middle, where the composition is."),
                io.Float.Input(
                    "guided_from",
                    default=AS_TOLD,
                    min=AS_TOLD,
                    max=1.0,
                    step=0.05,
                    optional=True,
                    extra_dict=ADVANCED,
                    tooltip=(
                        "From which part of the steps on guidance draws towards it as towards the prompt: more of a "
                        "subject's looks. 1 never, -1 what its file says: 0.6 for a subject by dreamvideo_plus, else 1."
                    ),
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="A copy of the model with the adapter on it."),
                io.Clip.Output(display_name="clip", tooltip="A copy of the CLIP that knows the placeholder."),
            ],
        )

    @classmethod
    def execute(
        cls,
        model,
        adapter: TrainedAdapter,
        strength=1.0,
        start_percent=AS_TOLD,
        end_percent=1.0,
        clip=None,
        mask=None,
        other_base=False,
        ramp_start=1.0,
        ramp_end=1.0,
        depth_outer=1.0,
        depth_middle=1.0,
        guided_from=AS_TOLD,
    ) -> io.NodeOutput:
        window, factors = (start_percent, end_percent), {"ramp": (ramp_start, ramp_end)}
        factors["depth"] = (depth_outer, depth_middle)
        return io.NodeOutput(*apply(model, clip, adapter, strength, window, mask, other_base, guided_from, **factors))


def _factor(name: str, tooltip: str) -> io.Float.Input:
    return io.Float.Input(
        name, default=1.0, min=-2.0, max=4.0, step=0.05, optional=True, extra_dict=ADVANCED, tooltip=tooltip
    )


def apply(
    model,
    clip,
    loaded: TrainedAdapter,
    strength: float = 1.0,
    window=(AS_TOLD, 1.0),
    mask=None,
    other_base: bool = False,
    guided_from: float = AS_TOLD,
    **factors: tuple[float, float],
) -> tuple:
    """(MODEL, CLIP) with an adapter on it and its tokens in it.

    factors: ramp and depth of `StackEntry`, as guided_from is; other_base: see `host.with_adapter`.
    """
    start, end = loaded.info.acts_from if window[0] < 0 else window[0], window[1]
    if start >= end:
        raise ValueError(f"The adapter would act from {start:g} to {end:g}: the end must come after the start.")
    region = None if mask is None else as_region(mask)
    guided = loaded.info.guided_from if guided_from < 0 else guided_from

    def placed(adapter: AnyAdapter) -> StackEntry:
        return StackEntry(adapter, strength, region, (start, end), guided_from=guided, **factors)

    model = host.with_adapter(model, loaded, placed, other_base)
    return model, None if clip is None else host.with_tokens(clip, loaded.tokens)


class AdapterInfo(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DreamVideoAdapterInfo",
            display_name="DreamVideo Adapter Info",
            category=CATEGORY,
            description="Tells what an adapter holds, for which base it is, and how it was trained.",
            inputs=[Adapter.Input("adapter", tooltip="A subject, a motion or a learned token.")],
            outputs=[io.String.Output(display_name="text", tooltip="The description.")],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, adapter: TrainedAdapter) -> io.NodeOutput:
        text = describe(adapter)
        return io.NodeOutput(text, ui=host.shown(cls.hidden.unique_id, text))


def describe(loaded: TrainedAdapter) -> str:
    """Everything a person may want to know of an adapter, one fact a line."""
    info, config = loaded.info, loaded.info.adapter_config
    parameters = 0 if loaded.adapter is None else sum(p.numel() for p in loaded.adapter.parameters())
    facts: dict[str, object] = {
        "what": str(info),
        "placeholder": ", ".join(f"{name} ({_counted(rows)})" for name, rows in loaded.tokens.items()),
        "class word": info.class_word,
        "captions": " | ".join(dict.fromkeys(info.captions)),
        "parameters": f"{parameters:,}" if parameters else "",
        "sublayers": ", ".join(getattr(config, "sublayers", ())),
        "frame vectors": getattr(config, "frames", None),
        "rank at temporal convolutions": getattr(config, "conv_rank", None),
        "appearance guidance": config
        and (f"image features of width {config.condition_dim}" if config.condition_dim else "none"),
        "stored image features": "" if loaded.features is None else len(loaded.features),
        "base": f"text states of width {info.unet_config.context_dim}" if info.unet_config else "not told by the file",
        "steps": info.steps,
        "learning rate": info.learning_rate and f"{info.learning_rate:g}",
        "seed": info.seed,
        "details": json.dumps(info.extra, ensure_ascii=False) if info.extra else "",
    }
    return "\n".join(f"{name}: {value}" for name, value in facts.items() if value not in (None, ""))


def _counted(rows: Tensor) -> str:
    return f"{len(rows)} vectors" if rows.ndim < 3 else f"{rows.shape[1]} vectors for each of {len(rows)} layers"


NODES = [LoadAdapter, SaveAdapter, ApplyAdapter, AdapterInfo]
