"""Check DreamVideo: whether everything does on this machine what it should, as a text for a bug report."""

from __future__ import annotations

from comfy_api.latest import io

from ..dreamvideo.check import check
from . import host
from .fields import CATEGORY, clip_input, model_input, vae_input


class Check(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DreamVideoCheck",
            display_name="Check DreamVideo",
            category=CATEGORY,
            description=(
                "Trains and samples for a few steps on the loaded model, about two minutes, and tells what ran where, "
                "how fast, and whether the card agrees with the CPU: a text to paste into a bug report."
            ),
            inputs=[
                model_input(),
                clip_input(),
                vae_input(),
                io.ClipVision.Input("clip_vision", tooltip="The image encoder of the same base."),
            ],
            outputs=[io.String.Output(display_name="report", tooltip="The report, as shown on the node.")],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, model, clip, vae, clip_vision) -> io.NodeOutput:
        host.model_of(model)
        encoders = host.encoders_of(clip, vae, clip_vision)
        with host.loaded_to_train(model, clip, encoders) as (base, _):
            report = check(
                lambda: base,
                facts=host.about(model),
                networks=host.networks_of(base, vae, clip_vision),
                paged=True,  # a host moves and casts weights by itself
                progress=host.Progress(cls.hidden.unique_id, 1),
                ends=(host.Interrupted,),
            )
        return io.NodeOutput(report.text, ui=host.shown(cls.hidden.unique_id, report.text))


NODES = [Check]
