"""What templates are made of: the base's own numbers, prompts, a sampling, a video that is saved."""

from __future__ import annotations

import importlib
import sys
from dataclasses import asdict
from types import ModuleType
from typing import Any

from harness import PACK
from litegraph import Workflow

VIDEO = 356  # pixels that a preview needs
BELOW_TEXT = 190  # a preview below a text box, which gives some of its own
TOY = {"width": 128, "height": 128}
EMBEDDED, FULL_SIZE, IMAGE = "EMBEDDED", "FULL_SIZE", "IMAGE"  # of `dreamvideo.defaults`


def engine(module: str) -> ModuleType:
    """A module of the engine, without a host."""
    sys.path.insert(0, str(PACK))
    return importlib.import_module(f"dreamvideo.{module}")


def widgets(what: str, base: str) -> dict[str, Any]:
    """The base's own training settings, spelt out: a template shall show numbers.

    what: a stage, or a motion's method.
    """
    own, methods = getattr(engine("defaults"), base), engine("training.methods").MOTION_METHODS
    chosen = asdict(own.settings_for(methods[what]) if what in methods else own.settings(what))
    return {name: chosen[name] for name in ("steps", "learning_rate", "batch_size")}


def sampling(base: str) -> dict[str, Any]:
    """The base's own size, length, guidance and steps."""
    own = getattr(engine("defaults"), base)
    sizes = {name: getattr(own, name) for name in ("width", "height", "frames", "steps")}
    return {**sizes, "cfg": own.guidance}


def short() -> dict[str, Any]:
    """The embedded base's own length and guidance."""
    embedded = engine("defaults").EMBEDDED
    return {"frames": embedded.frames, "cfg": embedded.guidance}


def subject_widgets(base: str) -> dict[str, Any]:
    token = widgets("token", base)
    return widgets("identity", base) | {
        "token_steps": token["steps"],
        "token_learning_rate": token["learning_rate"],
    }


def prompts(flow: Workflow, clip, text) -> tuple[int, int]:
    return (
        flow.add("CLIPTextEncode", title="Prompt", clip=clip, text=text),
        flow.add("CLIPTextEncode", title="Negative prompt (empty)", clip=clip, text=""),
    )


def guided(flow: Workflow, positive, negative, subject, **strengths) -> int:
    return flow.add("DreamVideoEncodeAppearance", positive=(positive, 0), negative=(negative, 0), subject=subject,
                    **strengths)  # fmt: skip


def sampled(flow: Workflow, model, positive, negative, **options) -> int:
    settings = {"frames": 32, "steps": 50, "cfg": 9.0, "seed": 0, **options}
    return flow.add("DreamVideoSampler", model=model, positive=positive, negative=negative, **settings)


def video_out(flow: Workflow, latent, vae, name: str, enlarge: bool = False) -> int:
    images = flow.add("VAEDecode", samples=latent, vae=vae)
    if enlarge:
        images = flow.add("ImageScale", title="Enlarge to look at", image=(images, 0), upscale_method="nearest-exact",
                          width=256, height=256, crop="disabled")  # fmt: skip
    made = flow.add("CreateVideo", images=(images, 0), fps=8.0)
    return flow.add("SaveVideo", video=(made, 0), filename_prefix=f"video/{name}", room=VIDEO)
