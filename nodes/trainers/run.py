"""One training of a node: the host's parts, what the node shows while it goes on, and what it gives out."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ...dreamvideo.defaults import Defaults, defaults_for
from ...dreamvideo.encoders.protocols import Encoders
from ...dreamvideo.evaluation.pictures import contact_sheet, few_frames
from ...dreamvideo.evaluation.plots import loss_plot
from ...dreamvideo.files.adapter_info import TrainedAdapter
from ...dreamvideo.models.config import NetworkConfig, UNetConfig
from ...dreamvideo.plans import Plan
from ...dreamvideo.runs import Outcome, Reports, train
from ...dreamvideo.safety.paths import inside
from ...dreamvideo.safety.texts import printable
from ...dreamvideo.training.data import TrainingData, digest, encode_photos
from ...dreamvideo.training.methods import Method, without_guidance
from ...dreamvideo.training.places import Place, shelved
from .. import host
from ..adapters import ADAPTERS, SUFFIX, apply, told
from ..fields import check_size, engine_images, host_images, subject_masks
from .inputs import SWITCH

log = logging.getLogger(__name__)

STATES = "dreamvideo_training"  # below output while a training is not done, below temp afterwards
PLOT = 640, 380  # pixels of the losses; a node shows them at two thirds
NAMES = {"token": "word", "identity": "looks", "motion": "motion"}


@dataclass
class Job:
    """A training node's run: the host's parts, and what it tells while it goes on."""

    model: Any
    clip: Any
    vision: Any
    encoders: Encoders
    node_id: str | None

    @classmethod
    def of(cls, node: type[io.ComfyNode], model, clip, vae, vision) -> Job:
        job = cls(model, clip, vision, host.encoders_of(clip, vae, vision), node.hidden.unique_id)
        if job.encoders.text.width != job.config.context_dim:
            raise ValueError(
                f"This CLIP has text states of width {job.encoders.text.width} and the MODEL reads "
                f"{job.config.context_dim}: use the CLIP of the same base."
            )
        own = job.config.family == UNetConfig.family  # image bases take features of any width
        if vision is not None and own and job.encoders.image.width != job.config.context_dim:
            raise ValueError(
                f"This CLIP_VISION gives features of width {job.encoders.image.width} and the base's own "
                f"{job.config.context_dim}: use the one of the same base (ModelScope: OpenCLIP ViT-H-14)."
            )
        return job

    @property
    def config(self) -> NetworkConfig:
        return host.unet_of(self.model).config

    @property
    def defaults(self) -> Defaults:
        return defaults_for(self.config)

    def settings(self, run: Mapping[str, Any]) -> dict[str, Any]:
        """Of `TrainingSettings`; widgets at 0 stand for the base's own."""
        own = ("steps", "learning_rate", "batch_size", "preview_every", "snapshot_every")
        chosen: dict[str, Any] = {name: run.get(name) or None for name in own}
        chosen |= {name: SWITCH[run.get(name) or "automatic"] for name in ("layered_token", "mask_attention")}
        checkpointing = SWITCH[run.get("gradient_checkpointing", "automatic")]
        return chosen | {"seed": run.get("seed", 0), "gradient_checkpointing": checkpointing}

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
        return self.seen(data)

    def seen(self, data: TrainingData) -> TrainingData:
        """The data with image features where a CLIP_VISION gave them."""
        if self.vision is not None:
            return data
        return replace(data, items=tuple(replace(item, features=None) for item in data.items))

    def guided(self, row: Method) -> Method:
        """A row for clips, without appearance guidance where no CLIP_VISION is connected."""
        if self.vision is not None or not row.appearance_guidance:
            return row
        self.say("No clip_vision is connected: the motion is learned without appearance guidance.")
        return without_guidance(row)

    def check_tokens(self, token: TrainedAdapter) -> None:
        for name, rows in token.tokens.items():
            if rows.shape[-1] != self.encoders.text.width:
                raise ValueError(
                    f"The token {name} has vectors of width {rows.shape[-1]} and this CLIP {self.encoders.text.width}: "
                    "it was learned on another base."
                )

    def say(self, text: str) -> None:
        """To the log, and onto the node until the next step."""
        log.info("DreamVideo: %s", printable(text))
        host.say(self.node_id, text)

    def run(
        self,
        name: str,
        plan: Plan,
        data: TrainingData,
        about: Sequence[str | Tensor],
        run: Mapping[str, Any],
        onto: Any = None,
    ) -> io.NodeOutput:
        """Train, resumably; then everything a training node gives out.

        about: the node's kind, and what makes this training another one beside settings and base: by these its states
        are found again. onto: the CLIP that learns its word.
        """
        _, own = plan.last
        stage, *about = about
        mark = digest([stage, json.dumps(own.deciding(), sort_keys=True), host.model_of(self.model).fingerprint,
                       str(data.frames), *about])  # fmt: skip
        out = host.numbered(run.get("filename_prefix") or stage, ADAPTERS, SUFFIX)
        states, shelf = state_folder(name, mark), host.temporary_folder(STATES)
        restart = not run.get("resume", True)
        with (
            shelved(out, states, shelf, plan.run(mark, self.fingerprint), restart, self.say) as place,
            explained(states),
        ):
            outcome = self._trained(plan, data, place)
        return self._given(outcome, onto)

    @property
    def fingerprint(self) -> str:
        return host.model_of(self.model).fingerprint

    def _trained(self, plan: Plan, data: TrainingData, place: Place) -> Outcome:
        with host.loaded_to_train(self.model, self.clip, self.encoders) as (base, reload):
            try:
                outcome = train(replace(base, named=self.fingerprint), data, plan, place, self._reports(reload))
            except KeyboardInterrupt:
                host.stop_if_interrupted()
                raise
            if outcome.adapter.adapter is not None:
                outcome.adapter.adapter.to("cpu")  # the host moves it when it is used
        return outcome

    def _given(self, outcome: Outcome, clip: Any) -> io.NodeOutput:
        text = told(outcome.adapter, outcome.place.out)
        log.info("DreamVideo: %s", printable(text))
        curve = [value for values in outcome.losses.values() for value in values]
        model, clip = apply(self.model, clip, outcome.adapter)
        plot = loss_plot({NAMES[stage]: values for stage, values in outcome.losses.items()}, *PLOT)
        parts = (
            outcome.adapter,
            {"loss": curve},
            model,
            *([clip] if clip is not None else []),
            host_images(plot[None]),
        )
        return io.NodeOutput(*parts, ui=host.shown(self.node_id, text))

    def _reports(self, reload: Callable[[], None]) -> Reports:
        bars: dict[str, host.Progress] = {}

        def progress(stage: str, step: int, steps: int, loss: float, speed: float, left: float) -> None:
            bar = bars.setdefault(stage, host.Progress(self.node_id, steps))
            bar(step, steps, f"{NAMES[stage]} {step}/{steps} · loss {loss:.4f} · {speed:.2f} steps/s · "
                f"{_clock(left)} left")  # fmt: skip

        def preview(out: Path, stage: str, step: int, prompt: str, video: Tensor) -> None:
            reload()
            bar = bars.setdefault(stage, host.Progress(self.node_id, step))
            bar.show(contact_sheet([(f"step {step}: {prompt}", few_frames(video))]))

        def follow(done: int, total: int, clean: Tensor) -> None:
            host.stop_if_interrupted()

        def sampling() -> Callable[[int, int, Tensor], None]:
            reload()  # decoding the video before may have cost the UNet its place
            return follow

        return Reports(progress, preview, sampling, should_stop=host.interrupted, say=self.say)


def state_folder(name: str, mark: str) -> Path:
    """Where a run keeps its state: by its name for people, by its mark for itself."""
    plain = re.sub(r"[^\w-]+", "", name).strip("-_")[:40] or "run"
    root = host.output_folder(STATES)
    root.mkdir(parents=True, exist_ok=True)
    return inside(root, f"{plain}-{mark[:12]}")


@contextmanager
def explained(states: Path) -> Iterator[None]:
    """Tell the log, where a training is cancelled, what is kept."""
    try:
        yield
    except host.Interrupted:
        log.info("DreamVideo: training was cancelled; its state is in %s and the next run goes on from it.", states)
        raise


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
