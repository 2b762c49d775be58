"""A subject's training nodes: its word, its looks, and both in one."""

from __future__ import annotations

import json

from comfy_api.latest import io

from ...dreamvideo.files.adapter_info import TrainedAdapter
from ...dreamvideo.plans import Plan, subject_plan
from ...dreamvideo.training.methods import IDENTITY, SUBJECT_METHODS, TEXTUAL_INVERSION
from ..fields import TRAINING, Adapter, clip_input, model_input, vae_input
from .inputs import (
    file_inputs,
    method_input,
    optional_subject_inputs,
    outputs,
    rate_input,
    run_inputs,
    steps_input,
    subject_inputs,
    word_inputs,
)
from .run import Job


class TrainTextualInversion(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DreamVideoTrainTextualInversion",
            display_name="Train Textual Inversion",
            category=TRAINING,
            description="First stage of a subject: learns a word for it. The second is Train Identity Adapter.",
            inputs=[
                model_input(),
                clip_input(),
                vae_input(),
                *subject_inputs(),
                io.Int.Input(
                    "vectors",
                    default=1,
                    min=1,
                    max=16,
                    tooltip="How many token vectors the word has: 1 as in the paper; more hold more detail.",
                ),
                steps_input("token"),
                rate_input("token"),
                *run_inputs(),
                *optional_subject_inputs(),
                *file_inputs("token"),
                *word_inputs(),
            ],
            outputs=outputs(clip=True),
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls, model, clip, vae, images, placeholder, class_word, captions, vectors=1, masks=None, clip_vision=None, **run
    ) -> io.NodeOutput:
        job = Job.of(cls, model, clip, vae, clip_vision)
        data = job.photos(images, masks, captions, placeholder, class_word)
        plan = subject_plan(
            job.defaults, job.config, TEXTUAL_INVERSION, placeholder=placeholder, class_word=class_word,
            settings=job.settings(run), token_settings={}, vectors=vectors,
        )  # fmt: skip
        return job.run(placeholder, plan, data, ["token", data.digest, class_word, str(vectors)], run, clip)


class TrainIdentity(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DreamVideoTrainIdentity",
            display_name="Train Identity Adapter",
            category=TRAINING,
            description="Second stage of a subject: learns its looks, with the word that textual inversion found.",
            inputs=[
                model_input(),
                clip_input(),
                vae_input(),
                Adapter.Input("token", tooltip="The learned token, from Train Textual Inversion or a file."),
                io.Image.Input("images", tooltip="Photographs of the subject, the same as for the token."),
                io.String.Input(
                    "captions",
                    default="",
                    multiline=True,
                    tooltip="A caption for all photographs, or a line for each, with the placeholder; may be empty.",
                ),
                steps_input("identity"),
                rate_input("identity"),
                *run_inputs(),
                *optional_subject_inputs(),
                *file_inputs("subject"),
                *word_inputs(layered=False),
            ],
            outputs=outputs(clip=True),
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls, model, clip, vae, token: TrainedAdapter, images, captions="", masks=None, clip_vision=None, **run
    ) -> io.NodeOutput:
        job = Job.of(cls, model, clip, vae, clip_vision)
        placeholder = token.info.placeholder or next(iter(token.tokens), "")
        if not token.tokens:
            raise ValueError(f"The token input holds no learned token: it is a {token.info}.")
        job.check_tokens(token)
        data = job.photos(images, masks, captions, placeholder, token.info.class_word)
        own = job.defaults.settings("identity", **job.settings(run))
        plan = Plan(((IDENTITY, own),), placeholder, token.info.class_word, token.tokens)
        about = ["identity", data.digest, *(part for name, rows in token.tokens.items() for part in (name, rows))]
        return job.run(placeholder, plan, data, about, run, clip)


class TrainSubject(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DreamVideoTrainSubject",
            display_name="Train Subject",
            category=TRAINING,
            description="Learns a subject from photographs: its word first, then its looks, in one node.",
            inputs=[
                model_input(),
                clip_input(),
                vae_input(),
                *subject_inputs(),
                steps_input("token", "token_steps", " of the word"),
                rate_input("token", "token_learning_rate", " of the word"),
                steps_input("identity", what=" of the looks"),
                rate_input("identity", what=" of the looks"),
                *run_inputs(),
                method_input(SUBJECT_METHODS),
                *optional_subject_inputs(),
                *file_inputs("subject"),
                *word_inputs(),
            ],
            outputs=outputs(clip=True),
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        model,
        clip,
        vae,
        images,
        placeholder,
        class_word,
        captions="",
        token_steps=0,
        token_learning_rate=0.0,
        method="dreamvideo",
        masks=None,
        clip_vision=None,
        **run,
    ) -> io.NodeOutput:
        job = Job.of(cls, model, clip, vae, clip_vision)
        data = job.photos(images, masks, captions, placeholder, class_word)
        plan = subject_plan(
            job.defaults, job.config, SUBJECT_METHODS[method], placeholder=placeholder, class_word=class_word,
            settings=job.settings(run),
            token_settings={"steps": token_steps or None, "learning_rate": token_learning_rate or None},
        )  # fmt: skip
        token = job.defaults.settings("token", **job.settings(run)).deciding()
        token["learning_rate"] = token_learning_rate or job.defaults.settings("token").learning_rate
        about = ["identity", method, data.digest, class_word, json.dumps(token, sort_keys=True)]
        return job.run(placeholder, plan, data, about, run, clip)
