"""The training stages as nodes: the engine's stages, fed by the host's encoders."""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..dreamvideo.adapter_files import LoadedAdapter
from ..dreamvideo.base import Base
from ..dreamvideo.defaults import FULL_SIZE, Defaults, defaults_for, fitted
from ..dreamvideo.encoders import Encoders
from ..dreamvideo.files import check_writable, inside
from ..dreamvideo.methods import (
    IDENTITY,
    MOTION_METHODS,
    MOTION_WORD,
    SUBJECT_METHODS,
    TEXTUAL_INVERSION,
    Method,
    for_clips,
)
from ..dreamvideo.pictures import contact_sheet
from ..dreamvideo.sampling import customize, generate, missing_placeholders, notes_on_motion, plain_prompt
from ..dreamvideo.stages import train_identity, train_method, train_textual_inversion
from ..dreamvideo.texts import printable
from ..dreamvideo.training import Callbacks, TrainingResult, TrainingSettings, steps_of_state
from ..dreamvideo.training_data import TrainingData, digest, encode_clips, encode_photos
from ..dreamvideo.unet import UNetConfig
from . import host
from .adapters import ADAPTERS, SUFFIX, apply, save
from .fields import (
    MAX_STEPS,
    TRAINING,
    Adapter,
    check_images,
    check_size,
    clip_input,
    engine_images,
    model_input,
    one,
    seed_input,
    strip,
    subject_masks,
    vae_input,
)

log = logging.getLogger(__name__)

STATES = "dreamvideo_training"  # below output while a training is not done, below temp afterwards
KEPT_STATES = 3  # of trainings that are done; older ones make room
CHECKPOINTING = {"automatic": None, "on": True, "off": False}


# ------------------------------------------------------------------------------------------------ inputs


def _steps_input(stage: str, name: str = "steps", what: str = "") -> io.Int.Input:
    steps = FULL_SIZE.settings(stage).steps
    return io.Int.Input(
        name,
        default=0,
        min=0,
        max=MAX_STEPS,
        tooltip=f"Training steps{what}; 0 takes the base's own ({steps} for ModelScope, as in the paper).",
    )


def _rate_input(stage: str, name: str = "learning_rate", what: str = "") -> io.Float.Input:
    rate = f"{FULL_SIZE.settings(stage).learning_rate:.0e}".replace("e-0", "e-")
    return io.Float.Input(
        name,
        default=0.0,
        min=0.0,
        max=1.0,
        step=1e-7,
        tooltip=f"Learning rate{what}; 0 takes the base's own ({rate} for ModelScope, as in the paper).",
    )


def _method_input(methods: Mapping[str, Method]) -> io.Combo.Input:
    return io.Combo.Input(
        "method",
        options=list(methods),
        default="dreamvideo",
        tooltip="How to learn: DreamVideo itself, one of its ablations, or a method that the paper compares it with.",
    )


def _run_inputs() -> list:
    return [
        io.Int.Input(
            "batch_size",
            default=0,
            min=0,
            max=16,
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
            options=list(CHECKPOINTING),
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
                "off begins anew, and so do fewer steps than it has done."
            ),
        ),
    ]


def _subject_inputs() -> list:
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


def _optional_subject_inputs() -> list:
    return [
        io.Mask.Input("masks", optional=True, tooltip="White on the subject; the rest of a photograph is not learned."),
        io.ClipVision.Input(
            "clip_vision",
            optional=True,
            tooltip="The image encoder: with it the file keeps features of the photographs for appearance guidance.",
        ),
    ]


def _file_input(prefix: str) -> io.String.Input:
    return io.String.Input(
        "filename_prefix",
        default=prefix,
        optional=True,
        tooltip=(
            "Name of the file below output/dreamvideo that is written as soon as all is learned; a number is appended, "
            "nothing is overwritten."
        ),
    )


def _outputs(*, clip: bool) -> list:
    found = [
        Adapter.Output(display_name="adapter", tooltip="What was learned, for Save and Apply."),
        io.LossMap.Output(display_name="loss", tooltip="The loss of every step, for Plot Loss Graph."),
        io.Model.Output(display_name="model", tooltip="A copy of the model with what was learned on it."),
    ]
    if clip:
        found.append(io.Clip.Output(display_name="clip", tooltip="A copy of the CLIP that knows the placeholder."))
    return found


# ------------------------------------------------------------------------------------------------- nodes


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
                *_subject_inputs(),
                io.Int.Input(
                    "vectors",
                    default=1,
                    min=1,
                    max=16,
                    tooltip="How many token vectors the word has: 1 as in the paper; more hold more detail.",
                ),
                _steps_input("token"),
                _rate_input("token"),
                *_run_inputs(),
                *_optional_subject_inputs(),
                _file_input("token"),
            ],
            outputs=_outputs(clip=True),
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls, model, clip, vae, images, placeholder, class_word, captions, vectors=1, masks=None, clip_vision=None, **run
    ) -> io.NodeOutput:
        job = _Job.of(cls, model, clip, vae, clip_vision)
        data = job.photos(images, masks, captions, placeholder, class_word)
        settings = job.settings(TEXTUAL_INVERSION, run)

        def go(base: Base, hooks: dict[str, Any]) -> TrainingResult:
            return train_textual_inversion(
                base.unet, base.encoders.text, data, placeholder=placeholder, class_word=class_word, vectors=vectors,
                settings=settings, **hooks,
            )  # fmt: skip

        about = [data.digest, class_word, str(vectors)]
        return job.run("token", placeholder, settings, about, data.captions[0], 1, run, go, (model, clip))


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
                _steps_input("identity"),
                _rate_input("identity"),
                *_run_inputs(),
                *_optional_subject_inputs(),
                _file_input("subject"),
            ],
            outputs=_outputs(clip=True),
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls, model, clip, vae, token: LoadedAdapter, images, captions="", masks=None, clip_vision=None, **run
    ) -> io.NodeOutput:
        job = _Job.of(cls, model, clip, vae, clip_vision)
        placeholder = token.info.placeholder or next(iter(token.tokens), "")
        if not token.tokens:
            raise ValueError(f"The token input holds no learned token: it is a {token.info}.")
        job.check_tokens(token)
        data = job.photos(images, masks, captions, placeholder, token.info.class_word)
        settings = job.settings(IDENTITY, run)

        def go(base: Base, hooks: dict[str, Any]) -> TrainingResult:
            return train_identity(
                base.unet, base.encoders.text, data, tokens=token.tokens, class_word=token.info.class_word,
                settings=settings, **hooks,
            )  # fmt: skip

        about = [data.digest, *(part for name, rows in token.tokens.items() for part in (name, rows))]
        return job.run("identity", placeholder, settings, about, data.captions[0], 1, run, go, (model, clip))


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
                *_subject_inputs(),
                _steps_input("token", "token_steps", " of the word"),
                _rate_input("token", "token_learning_rate", " of the word"),
                _steps_input("identity", what=" of the looks"),
                _rate_input("identity", what=" of the looks"),
                *_run_inputs(),
                _method_input(SUBJECT_METHODS),
                *_optional_subject_inputs(),
                _file_input("subject"),
            ],
            outputs=_outputs(clip=True),
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
        job = _Job.of(cls, model, clip, vae, clip_vision)
        data = job.photos(images, masks, captions, placeholder, class_word)
        row = fitted(SUBJECT_METHODS[method], job.config)
        token = job.settings(TEXTUAL_INVERSION, {**run, "steps": token_steps, "learning_rate": token_learning_rate})
        own = token if row.trains == "token" else job.settings(row, run)
        losses: dict[str, list[float]] = {}

        def go(base: Base, hooks: dict[str, Any]) -> TrainingResult:
            folder, resume = hooks["state_path"].parent, bool(run.get("resume", True))
            tokens: Mapping[str, Tensor] = {}
            for stage in (TEXTUAL_INVERSION, row) if row.token == "given" else (row,):
                settings = token if stage.trains == "token" else own
                path = _state_of(folder, stage, tokens)
                result = train_method(
                    base.unet, base.encoders.text, data, stage, placeholder=placeholder, class_word=class_word,
                    tokens=tokens, settings=settings,
                    **job.hooks(stage.stage, settings, data.captions[0], 1, path, resume),
                )  # fmt: skip
                losses[stage.trains] = result.losses
                if result.stopped:
                    break
                tokens = result.trained.tokens
            return result

        about = [method, data.digest, class_word, json.dumps(token.deciding(), sort_keys=True)]
        return job.run("identity", placeholder, own, about, data.captions[0], 1, run, go, (model, clip), losses)


def _state_of(folder: Path, stage: Method, tokens: Mapping[str, Tensor]) -> Path:
    """A stage's training state. Looks go with their word, which other token_steps make another one."""
    if not tokens:
        return folder / f"{stage.stage}.safetensors"
    word = digest(part for name, rows in tokens.items() for part in (name, rows))
    path = folder / f"{stage.stage}-{word[:12]}.safetensors"
    for other in _states_in(folder):
        if other != path and re.fullmatch(rf"{re.escape(stage.stage)}-[0-9a-f]{{12}}", other.stem):
            other.unlink()
    return path


class TrainMotion(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DreamVideoTrainMotion",
            display_name="Train Motion Adapter",
            category=TRAINING,
            description="Learns a motion from one or several clips; their frames guide it, so that looks stay out.",
            is_input_list=True,
            inputs=[
                model_input(),
                clip_input(),
                vae_input(),
                io.ClipVision.Input("clip_vision", tooltip="The image encoder of the base, for appearance guidance."),
                io.Image.Input("clips", tooltip="The clips, from Motion Clips: one batch of frames each."),
                io.String.Input("captions", force_input=True, tooltip="A caption for each clip, from Motion Clips."),
                io.Int.Input("frames", force_input=True, tooltip="Frames of a training sample, from Motion Clips."),
                _steps_input("motion"),
                _rate_input("motion"),
                *_run_inputs(),
                io.Float.Input(
                    "text_drop",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="How often the caption is left out: 0.5 as released; some methods never do.",
                ),
                io.Combo.Input(
                    "image_drop",
                    options=["automatic", "half", "never"],
                    default="automatic",
                    tooltip=(
                        "How often a blank image takes the frame's place: automatic is half of the time for one clip "
                        "and never for several, as released."
                    ),
                ),
                _method_input(MOTION_METHODS),
                _file_input("motion"),
            ],
            outputs=_outputs(clip=False),
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, model, clip, vae, clip_vision, clips, captions, frames, **lists) -> io.NodeOutput:
        model, clip, vae, clip_vision, frames = (one(each) for each in (model, clip, vae, clip_vision, frames))
        run = {name: one(values) for name, values in lists.items()}
        job = _Job.of(cls, model, clip, vae, clip_vision)
        if len(captions) != len(clips):
            raise ValueError(f"Got {len(captions)} captions for {len(clips)} clips: connect both of Motion Clips.")
        for each in clips:
            check_images(each)
            check_size(job.config, each.shape[2], each.shape[1])
        placeholder = _placeholder_in(captions, MOTION_METHODS[run["method"]])
        for note in notes_on_motion(captions, frames, known=[placeholder]):
            job.say(note)
        data = encode_clips((engine_images(each) for each in clips), captions, job.encoders, frames)
        method = fitted(for_clips(MOTION_METHODS[run["method"]], len(clips)), job.config)
        image_drop = {"automatic": None, "half": 0.5, "never": 0.0}[run["image_drop"]]
        text_drop = run["text_drop"] if method.p_text_drop else None
        settings = job.settings(method, run, p_text_drop=text_drop, p_image_drop=image_drop)

        def go(base: Base, hooks: dict[str, Any]) -> TrainingResult:
            return train_method(
                base.unet, base.encoders.text, data, method, placeholder=placeholder,
                class_word=MOTION_WORD, settings=settings, **hooks,
            )  # fmt: skip

        about = [run["method"], data.digest]
        return job.run("motion", "motion", settings, about, captions[0], frames, run, go, (model, None))


def _placeholder_in(captions: Sequence[str], method: Method) -> str:
    """The name that a motion's captions give it, where a method learns a word for it."""
    if method.token != "learned":
        return ""
    named = missing_placeholders(captions[0], {})
    if not named:
        raise ValueError(f"{method.name} learns a word for the motion: name it in the caption, as <my-motion>.")
    return named[0]


# ---------------------------------------------------------------------------------------------- one run


@dataclass
class _Job:
    """A training node's run: the host's parts, and what it tells while it goes on.

    base: what is trained and sampled on while the run goes on; `reload` brings it back where others were loaded since.
    """

    model: Any
    clip: Any
    vision: Any
    encoders: Encoders
    node_id: str | None
    base: Base | None = None
    reload: Callable[[], None] = lambda: None

    @classmethod
    def of(cls, node: type[io.ComfyNode], model, clip, vae, vision) -> _Job:
        job = cls(model, clip, vision, host.encoders_of(clip, vae, vision), node.hidden.unique_id)
        if job.encoders.text.width != job.config.context_dim:
            raise ValueError(
                f"This CLIP has text states of width {job.encoders.text.width} and the MODEL reads "
                f"{job.config.context_dim}: use the CLIP of the same base."
            )
        if vision is not None and job.encoders.image.width != job.config.context_dim:
            raise ValueError(
                f"This CLIP_VISION gives features of width {job.encoders.image.width} and the base's own "
                f"{job.config.context_dim}: use the one of the same base (ModelScope: OpenCLIP ViT-H-14)."
            )
        return job

    @property
    def config(self) -> UNetConfig:
        return host.unet_of(self.model).config

    @property
    def defaults(self) -> Defaults:
        return defaults_for(self.config)

    def settings(self, method: Method, run: Mapping[str, Any], **more: Any) -> TrainingSettings:
        """Widgets at 0 stand for the base's own."""
        chosen = {name: run.get(name) or None for name in ("steps", "learning_rate", "batch_size", "preview_every")}
        checkpointing = CHECKPOINTING[run.get("gradient_checkpointing", "automatic")]
        chosen |= {"seed": run.get("seed", 0), "gradient_checkpointing": checkpointing}
        return self.defaults.settings_for(method, **chosen, **more)

    def photos(self, images, masks, captions: str, placeholder: str, class_word: str) -> TrainingData:
        photos = engine_images(images)
        check_size(self.config, photos.shape[-1], photos.shape[-2])
        self.encoders.text.check_placeholder(placeholder)
        lines = [line.strip() for line in captions.splitlines() if line.strip()] or [f"a {placeholder}"]
        if len(lines) not in (1, len(photos)):
            raise ValueError(
                f"Got {len(lines)} captions for {len(photos)} photographs: one for all, or a line for each."
            )
        regions = subject_masks(masks, photos)
        if all(region is None or region.all() for region in regions):
            regions = [None] * len(photos)
        lines = lines * len(photos) if len(lines) == 1 else lines
        data = encode_photos(list(photos), lines, self.encoders, regions)
        if self.vision is None:
            data = replace(data, items=tuple(replace(item, features=None) for item in data.items))
        return data

    def check_tokens(self, token: LoadedAdapter) -> None:
        for name, rows in token.tokens.items():
            if rows.shape[-1] != self.encoders.text.width:
                raise ValueError(
                    f"The token {name} has vectors of width {rows.shape[-1]} and this CLIP {self.encoders.text.width}: "
                    "it was learned on another base."
                )

    def callbacks(self, stage: str, settings: TrainingSettings, prompt: str, frames: int) -> Callbacks:
        bar = host.Progress(self.node_id, settings.steps)
        names = {"token": "word", "identity": "looks", "motion": "motion"}

        def progress(step: int, loss: float, speed: float, left: float) -> None:
            bar(step, settings.steps, f"{names[stage]} {step}/{settings.steps} · loss {loss:.4f} · "
                f"{speed:.2f} steps/s · {_clock(left)} left")  # fmt: skip

        def preview(trained: LoadedAdapter) -> None:
            bar.show(self._preview(trained, settings, prompt, frames))

        return Callbacks(progress, preview, host.interrupted, self.say)

    def say(self, text: str) -> None:
        """To the log, and onto the node until the next step."""
        _log(text)
        host.say(self.node_id, text)

    def hooks(
        self, stage: str, settings: TrainingSettings, prompt: str, frames: int, path: Path, resume: bool
    ) -> dict[str, Any]:
        """What a stage takes beside its data. A state that is past the steps now asked for is not gone on from."""
        if resume and path.exists() and (done := steps_of_state(path)) > settings.steps:
            self.say(f"The kept run has {done} steps, more than the {settings.steps} asked for: beginning anew.")
            resume = False
        return {"callbacks": self.callbacks(stage, settings, prompt, frames), "state_path": path, "resume": resume}

    def _preview(self, trained: LoadedAdapter, settings: TrainingSettings, prompt: str, frames: int) -> Tensor:
        height, width = trained.info.extra["height"], trained.info.extra["width"]
        prompt = plain_prompt(prompt, trained.tokens)
        frames = frames if frames > 1 else self.defaults.frames
        sampling = self.defaults.sampling(
            prompt, height=height, width=width, frames=frames, seed=settings.seed, steps=25
        )
        video = generate(
            self.base.unet, self.base.encoders, sampling, customize([trained]),
            callback=lambda done, total, clean: host.stop_if_interrupted(),
        )  # fmt: skip
        self.reload()
        return contact_sheet([(f"step {trained.info.steps}: {prompt}", strip(video))])

    def run(
        self,
        stage: str,
        name: str,
        settings: TrainingSettings,
        about: list[str | Tensor],
        prompt: str,
        frames: int,
        run: Mapping[str, Any],
        go: Callable[[Any, dict[str, Any]], TrainingResult],
        onto: tuple[Any, Any],
        losses: Mapping[str, list[float]] | None = None,
    ) -> io.NodeOutput:
        """Train, resumably; then everything a training node gives out. about: what makes this run another one."""
        mark = digest([stage, json.dumps(settings.deciding(), sort_keys=True), host.model_of(self.model).fingerprint,
                       str(frames), *about])  # fmt: skip
        prefix = run.get("filename_prefix") or stage
        folder = state_folder(name, mark)
        state = folder / f"{stage}.safetensors"
        check_writable(host.numbered(prefix, ADAPTERS, SUFFIX), state)  # told before anything is learned
        resume = bool(run.get("resume", True))
        hooks = self.hooks(stage, settings, prompt, frames, state, resume)
        with (
            _explained(folder),
            host.loaded_to_train(self.model, self.clip, self.encoders) as (self.base, self.reload),
        ):
            result = go(self.base, hooks)
            if result.trained.adapter is not None:
                result.trained.adapter.to("cpu")  # the host moves it when it is used
        if result.stopped:
            host.stop_if_interrupted()
        loaded = host.same_weights(self.model, result.trained)
        told = save(loaded, prefix)
        _set_aside(folder)
        _log(told)
        curve = [value for values in (losses or {stage: result.losses}).values() for value in values]
        model, clip = apply(onto[0], onto[1], loaded)
        parts = (loaded, {"loss": curve}, model, *([clip] if clip is not None else []))
        return io.NodeOutput(*parts, ui=host.shown(self.node_id, told))


def state_folder(name: str, mark: str) -> Path:
    """Where a run keeps its state: by its name for people, by its mark for itself. One set aside is brought back."""
    plain = re.sub(r"[^\w-]+", "", name).strip("-_")[:40] or "run"
    root = host.output_folder(STATES)
    root.mkdir(parents=True, exist_ok=True)
    folder = inside(root, f"{plain}-{mark[:12]}")
    if not _states_in(folder):
        _move_states(host.temporary_folder(STATES) / folder.name, folder)
    return folder


def _set_aside(folder: Path) -> None:
    """A training that is done can be gone on from while the host runs: its state moves to what the host clears."""
    aside = host.temporary_folder(STATES)
    try:
        _move_states(folder, aside / folder.name)
        finished = sorted(aside.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
    except OSError as error:
        log.warning("DreamVideo: the state of a finished training stays in %s: %s", folder, error)
        return
    for old in finished[KEPT_STATES:]:
        shutil.rmtree(old, ignore_errors=True)


def _move_states(source: Path, target: Path) -> None:
    """Training states from one folder into another; what else lies there stays, and the folder with it."""
    for path in _states_in(source):
        target.mkdir(parents=True, exist_ok=True)
        shutil.move(path, target / path.name)
    with suppress(OSError):  # never there, or with something of the user's in it
        source.rmdir()


def _states_in(folder: Path) -> list[Path]:
    found = []
    for path in folder.glob("*.safetensors"):
        with suppress(ValueError):
            steps_of_state(path)
            found.append(path)
    return found


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    try:
        yield
    except host.Interrupted:
        log.info("DreamVideo: training was cancelled; its state is in %s and the next run goes on from it.", folder)
        raise


def _log(text: str) -> None:
    log.info("DreamVideo: %s", printable(text))


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


NODES = [TrainTextualInversion, TrainIdentity, TrainSubject, TrainMotion]
