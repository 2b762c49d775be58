"""A few real steps of DreamVideo's three stages, watched: what runs where, what learns, and what must not change."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from ..devices import choose_checkpointing, free_bytes
from ..files.adapter_info import TrainedAdapter
from ..sampling import LATENT_FACTOR
from ..training.data import TrainingData, encode_clips, encode_photos
from ..training.loop import Callbacks, TrainingResult
from ..training.settings import TrainingSettings
from ..training.stages import train_identity, train_motion, train_textual_inversion
from .measure import dtype_name, forget_peak, pace, peak
from .networks import Session, checksums, observed, same_device, some, told
from .report import Finding

PLACEHOLDER, CLASS_WORD = "<check>", "dog"
CAPTION = "a dog is moving"
PHOTOS, FRAMES = 4, 4
LEAST, MOST = 4, 30  # steps: the first moves an adapter's second half alone, and half precision may skip a few


def picture(height: int, width: int, seed: int) -> Tensor:
    """[3, height, width] in 0..1 of smooth colours."""
    coarse = torch.rand((1, 3, 4, 4), generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse, (height, width), mode="bilinear")[0]


def clip(height: int, width: int, frames: int) -> Tensor:
    """[frames, 3, height, width] in 0..1: a picture that moves to the right."""
    still = picture(height, width, seed=0)
    return torch.stack([still.roll(index * width // 16, dims=2) for index in range(frames)])


class Watch:
    """What a training's callbacks tell: how long steps took, and which trained tensors got a gradient.

    Asks to stop when the time is over and every tensor has got one, and in any case after three times that time.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.laps: list[float] = []
        self.reached: set[str] = set()
        self.trained: dict[str, Tensor] = {}
        self.said: list[str] = []
        self.stops = False

    def should_stop(self) -> bool:
        taken = sum(self.laps)
        late = taken > (self.seconds if len(self.reached) == len(self.trained) else 3 * self.seconds)
        self.stops = len(self.laps) >= LEAST and late
        self.began = time.perf_counter()
        return self.stops

    def progress(self, step: int, loss: float, speed: float, seconds_left: float) -> None:
        self.laps.append(time.perf_counter() - self.began)

    def preview(self, trained: TrainedAdapter) -> None:
        if trained.adapter is None:
            return
        self.trained = dict(trained.adapter.named_parameters())
        for name, tensor in self.trained.items():
            if name not in self.reached and _reached(tensor.grad):
                self.reached.add(name)


def _reached(gradient: Tensor | None) -> bool:
    """Whether there is one that counts: a step whose gradients overflowed is skipped."""
    return gradient is not None and bool(gradient.isfinite().all() and gradient.any())


def train_stage(session: Session, stage: str) -> Iterator[Finding]:
    """Findings on "token", "identity" or "motion", whose adapter the session then has."""
    networks, device = session.networks, session.base.device
    data = _data(session, stage)
    before, watch = checksums(networks), Watch(session.seconds)
    forget_peak(device)
    with observed(networks) as seen:
        result = _train(session, stage, data, watch)
    if result.stopped and not watch.stops:
        raise KeyboardInterrupt
    session.trained[stage] = result.trained
    most = peak(device)
    yield from _where(session, seen)
    yield from _learned(session, watch, result)
    yield _unchanged(before, checksums(networks))
    height, width = session.size
    yield Finding("loss", f"{result.losses[0]:.4f} in the first step, {result.losses[-1]:.4f} in the last")
    yield Finding("speed", f"{pace(watch.laps, 'step')}, {_sample(stage, _settings(session, stage), height, width)}")
    yield Finding("peak memory", most)
    yield from (Finding("checkpointing", sentence) for sentence in watch.said)
    if stage == "motion":
        yield _whole_length(session, result)


def _data(session: Session, stage: str) -> TrainingData:
    encoders, (height, width) = session.base.encoders, session.size
    if stage == "motion":
        return encode_clips([clip(height, width, FRAMES)], CAPTION, encoders, FRAMES)
    photos = [picture(height, width, seed) for seed in range(PHOTOS)]
    return encode_photos(photos, f"a {PLACEHOLDER}", encoders)


def _settings(session: Session, stage: str) -> TrainingSettings:
    """A base's own, but that nothing is dropped at random, which would leave parts of an adapter without gradient."""
    kept = {"p_text_drop": 0.0, "p_image_drop": 0.0, "masked": False, "save_every": 0, "preview_every": 1}
    return session.defaults.settings(stage, steps=MOST, memory=session.memory, **kept)


def _train(session: Session, stage: str, data: TrainingData, watch: Watch) -> TrainingResult:
    unet, text = session.base.unet, session.base.encoders.text
    callbacks = Callbacks(watch.progress, watch.preview, watch.should_stop, watch.said.append)
    hooks = {"settings": _settings(session, stage), "callbacks": callbacks}
    if stage == "token":
        return train_textual_inversion(unet, text, data, placeholder=PLACEHOLDER, class_word=CLASS_WORD, **hooks)
    if stage == "identity":
        return train_identity(unet, text, data, tokens=_tokens(session), class_word=CLASS_WORD, **hooks)
    return train_motion(unet, text, data, **hooks)


def _tokens(session: Session) -> Mapping[str, Tensor]:
    """What was learned, else the class word's own vector."""
    token = session.trained.get("token")
    return token.tokens if token else {PLACEHOLDER: _start(session)}


def _start(session: Session) -> Tensor:
    return session.base.encoders.text.embed_word(CLASS_WORD)[:1].float().cpu()  # [1, D]


def _where(session: Session, seen: dict) -> Iterator[Finding]:
    base = session.base
    for name, places in seen.items():
        if not places:
            continue
        odd = [
            layer
            for layer, (device, dtype) in places.items()
            if not same_device(device, base.device) or dtype != base.unet.dtype
        ]
        advice = ""
        if name == "UNet" and odd:
            expected = f"{base.device} in {dtype_name(base.unet.dtype)}"
            advice = f"{some(odd)} did not run on {expected}: a part of the network, or another network, was trained."
        yield Finding(f"{name} ran", f"{len(places):,} layers, {told(places)}", advice)


def _learned(session: Session, watch: Watch, result: TrainingResult) -> Iterator[Finding]:
    trained = watch.trained
    if not trained:
        moved = not torch.equal(result.trained.tokens[PLACEHOLDER].float(), _start(session))
        advice = "The token stayed what it was: no gradient came through the text encoder, so nothing would be learned."
        yield Finding("learned", f"the token {'moved' if moved else 'did not move'}", "" if moved else advice)
        return
    places = {name: (tensor.device, tensor.dtype) for name, tensor in trained.items()}
    away = [
        name
        for name, (device, dtype) in places.items()
        if not same_device(device, session.base.device) or dtype != torch.float32
    ]
    numbers = sum(tensor.numel() for tensor in trained.values())
    advice = f"{some(away)} should be on {session.base.device} in float32, where adapters train." if away else ""
    yield Finding("adapter", f"{len(trained)} tensors, {numbers:,} numbers: {told(places)}", advice)
    lacking = [name for name in trained if name not in watch.reached]
    text, advice = f"{len(watch.reached)} of {len(trained)} tensors got a finite gradient", ""
    if lacking:
        advice = f"{some(lacking)} would never learn: a part of the network is cut off, or half precision overflows."
    yield Finding("learned", text, advice)


def _unchanged(before: Mapping[str, int], after: Mapping[str, int]) -> Finding:
    after = {name: found for name, found in after.items() if name in before}  # encoders may be read in between
    changed = [name for name, found in after.items() if found != before[name]]
    text, advice = f"{len(after) - len(changed):,} of {len(after):,} weights unchanged", ""
    if changed:
        advice = f"{some(changed)} changed in training, which the base's weights never should: load the base again."
    return Finding("base", text, advice)


def _sample(stage: str, settings: TrainingSettings, height: int, width: int) -> str:
    what = f"a clip of {FRAMES} frames" if stage == "motion" else f"{settings.batch_size} photographs"
    return f"{what} of {width} x {height}"


def _whole_length(session: Session, result: TrainingResult) -> Finding:
    """What the estimate says of a motion of the base's own size and length, which is not run here."""
    unet, own = session.base.unet, session.defaults
    cells = own.frames * math.prod((own.height // LATENT_FACTOR, own.width // LATENT_FACTOR))
    trained = sum(tensor.numel() for tensor in result.trained.adapter.parameters())
    free = free_bytes(session.base.device, session.memory)
    reason = choose_checkpointing(unet.config, cells, unet.dtype, trained, free).reason
    return Finding(f"at {own.frames} frames", reason)
