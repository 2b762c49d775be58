"""What the training nodes ask for and give, said once."""

from __future__ import annotations

from collections.abc import Mapping

from comfy_api.latest import io

from ...dreamvideo.defaults import FULL_SIZE
from ...dreamvideo.training.methods import Method
from ..fields import ADVANCED, MAX_STEPS, Adapter, most, seed_input

SWITCH = {"automatic": None, "on": True, "off": False}


def steps_input(stage: str, name: str = "steps", what: str = "") -> io.Int.Input:
    steps = FULL_SIZE.settings(stage).steps
    return io.Int.Input(
        name,
        default=0,
        min=0,
        max=MAX_STEPS,
        tooltip=f"Training steps{what}; 0 takes the base's own ({steps} for ModelScope, as in the paper).",
    )


def rate_input(stage: str, name: str = "learning_rate", what: str = "") -> io.Float.Input:
    rate = f"{FULL_SIZE.settings(stage).learning_rate:.0e}".replace("e-0", "e-")
    return io.Float.Input(
        name,
        default=0.0,
        min=0.0,
        max=most("learning_rate"),
        step=1e-7,
        tooltip=f"Learning rate{what}; 0 takes the base's own ({rate} for ModelScope, as in the paper).",
    )


def method_input(methods: Mapping[str, Method]) -> io.Combo.Input:
    return io.Combo.Input(
        "method",
        options=list(methods),
        default="dreamvideo",
        tooltip="How to learn: DreamVideo itself, with a part changed or more parts, or by another paper's method.",
    )


def run_inputs() -> list:
    return [
        io.Int.Input(
            "batch_size",
            default=0,
            min=0,
            max=most("batch_size"),
            tooltip="Samples a step; 0 takes the method's own (4 photographs, 1 or 2 clips). Less needs less memory.",
        ),
        seed_input("Decides everything random: the same seed and data give the same adapter.", control=False),
        io.Int.Input(
            "preview_every",
            default=0,
            min=0,
            max=MAX_STEPS,
            tooltip="Show a sampled video on the node every so many steps; 0 for never. Each costs a sampling.",
        ),
        io.Combo.Input(
            "gradient_checkpointing",
            options=list(SWITCH),
            default="automatic",
            tooltip=(
                "Compute twice instead of keeping activations: a fraction of the memory, about a third more time. "
                "Automatic does so where a step would not fit into the memory that is free."
            ),
        ),
        io.Boolean.Input(
            "resume",
            default=True,
            tooltip=(
                "Go on from where a run with the same data and settings was stopped, or ended with fewer steps; "
                "off begins anew, and so do fewer steps than one that ended has."
            ),
        ),
    ]


def subject_inputs() -> list:
    return [
        io.Image.Input("images", tooltip="Photographs of the subject, 3 to 6, from Subject Images."),
        io.String.Input(
            "placeholder",
            default="<my-subject>",
            tooltip="The name by which prompts call the subject, in angle brackets: <my-dog>.",
        ),
        io.String.Input(
            "class_word", default="dog", tooltip="What the subject is, in one plain word: dog, plushie, car, toy."
        ),
        io.String.Input(
            "captions",
            default="",
            multiline=True,
            tooltip="One caption for all, or a line for each photograph, with the placeholder; empty: a <my-subject>.",
        ),
    ]


def optional_subject_inputs() -> list:
    return [
        io.Mask.Input("masks", optional=True, tooltip="White on the subject; the rest of a photograph is not learned."),
        io.ClipVision.Input(
            "clip_vision",
            optional=True,
            tooltip="The image encoder: with it the file keeps features of the photographs for appearance guidance.",
        ),
    ]


def file_inputs(prefix: str) -> list:
    """Last, where workflows that were saved before there was one of them do not look."""
    return [
        io.String.Input(
            "filename_prefix",
            default=prefix,
            optional=True,
            tooltip=(
                "Name of the file below output/dreamvideo that is written as soon as all is learned; a number is "
                "appended, nothing is overwritten."
            ),
        ),
        io.Int.Input(
            "snapshot_every",
            default=0,
            min=0,
            max=MAX_STEPS,
            optional=True,
            tooltip="Keep the adapter every so many steps, with a sheet that compares them; 0 for never.",
        ),
    ]


def motion_inputs() -> list:
    return [
        io.Mask.Input(
            "masks", optional=True, tooltip="The masks of Motion Clips: what they mark white is not learned from."
        ),
        io.Combo.Input(
            "debias",
            options=list(SWITCH),
            default="automatic",
            optional=True,
            tooltip=(
                "Add the loss of every frame's difference to a random one, in which looks weigh less (MotionDirector); "
                "automatic is as the method has it."
            ),
        ),
        io.Combo.Input(
            "absorber",
            options=list(SWITCH),
            default="automatic",
            optional=True,
            tooltip=(
                "Train a spatial adapter beside for the clips' looks and throw it away (MotionDirector, "
                "Customize-A-Video); automatic is as the method has it."
            ),
        ),
    ]


def word_inputs(*, layered: bool = True) -> list:
    """Of what may be done for a subject's word, beyond the paper. layered: whether a node learns that word."""
    own = io.Combo.Input(
        "layered_token",
        options=list(SWITCH),
        default="automatic",
        optional=True,
        extra_dict=ADVANCED,
        tooltip=(
            "Learn a vector of the word for every layer that reads the text, 16 for ModelScope (P+); automatic is as "
            "the method has it."
        ),
    )
    attention = io.Combo.Input(
        "mask_attention",
        options=list(SWITCH),
        default="automatic",
        optional=True,
        extra_dict=ADVANCED,
        tooltip=(
            "Pull what the word is read for to the masks, so that it means the subject and not what is around it "
            "(Break-A-Scene); automatic is as the method has it."
        ),
    )
    return [own, attention] if layered else [attention]


def outputs(*, clip: bool) -> list:
    found = [
        Adapter.Output(display_name="adapter", tooltip="What was learned, for Save and Apply."),
        io.LossMap.Output(display_name="loss", tooltip="The loss of every step, for Plot Loss Graph."),
        io.Model.Output(display_name="model", tooltip="A copy of the model with what was learned on it."),
    ]
    if clip:
        found.append(io.Clip.Output(display_name="clip", tooltip="A copy of the CLIP that knows the placeholder."))
    return [
        *found,
        io.Image.Output(
            display_name="loss_plot", tooltip="The loss of every step and its trend, drawn: for Preview Image."
        ),
    ]
