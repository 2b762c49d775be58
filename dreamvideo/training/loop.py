"""One training loop for every method, and its resumable state.

The loop takes a UNet, cached tensors, a method's row and a learner. All that is random is drawn from one generator on
the CPU, whose state is saved with the weights and the optimiser, so that a run that was killed and started again ends
with the bytes of an undisturbed one.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..devices import choose_checkpointing, free_bytes
from ..files.adapters import save_adapter
from ..files.fingerprint import fingerprint, same_base
from ..files.tensors import open_file, write_safetensors
from ..models.diffusion import SCHEDULE, offset_noise
from ..models.unet import UNet
from ..safety.limits import MOST, bare, json_object, parsed, whole
from .data import EMPTY_PROMPT, TrainingData, TrainingItem, digest
from .methods import Learner, Method

log = logging.getLogger(__name__)

STATE_FORMAT = "dreamvideo-training"
BEGIN_ANEW = "begin anew with --restart (in ComfyUI: switch resume off)"
# What a resumed run may change: these decide where training ends and what it costs, not what a step computes.
FREE_SETTINGS = ("steps", "save_every", "preview_every", "gradient_checkpointing", "memory")


class TrainingError(ValueError):
    """Training cannot go on; `step` tells after how many steps."""

    def __init__(self, message: str, step: int) -> None:
        super().__init__(message)
        self.step = step


@dataclass(frozen=True)
class TrainingSettings:
    """How to train; `for_method` fills in a method's defaults.

    warmup: steps over which the learning rate rises linearly to its full value. (The authors' first update has a
    learning rate of exactly 0 and so does nothing; here it has 1 / warmup.)
    offset_noise: strength of the noise that is shared by a frame's pixels (0.1 as released).
    masked: use the data's masks; normalize_mask: weigh small subjects like large ones, which the authors do not.
    noisier: of two draws of its timestep every sample takes the noisier one, for a base so small that looks are decided
    there alone. The paper draws once.
    shift: by how many latent cells (of 8 pixels) at most every sample is moved at random, its edges repeated: few
    photographs teach else where a subject stands. The paper moves none.
    p_text_drop, p_image_drop: see `Method`. Released: 0 and none for subjects; 0.5 and 0.5 for a motion from one clip,
    0.5 and 0 from several. A motion trained with p_image_drop 0 is sampled with unconditional feature strength 0.
    save_every, preview_every: in steps; 0 for never (the state is still saved at the end).
    gradient_checkpointing: recompute instead of keeping activations: less memory, about a third more time. None: where
    a step would not fit otherwise into what is free, or within `memory`, GiB that the process may take on the device.
    """

    steps: int
    learning_rate: float
    batch_size: int
    warmup: int = 10
    seed: int = 0
    offset_noise: float = 0.1
    masked: bool = True
    normalize_mask: bool = False
    noisier: bool = False
    shift: int = 0
    p_text_drop: float = 0.0
    p_image_drop: float = 0.0
    save_every: int = 100
    preview_every: int = 0
    gradient_checkpointing: bool | None = None
    memory: float | None = None

    def __post_init__(self) -> None:
        least_of = {"steps": 1, "batch_size": 1, "warmup": 0, "shift": 0, "save_every": 0, "preview_every": 0}
        for name, least in least_of.items():
            if getattr(self, name) < least:
                raise ValueError(f"Training {name} must be at least {least}, got {getattr(self, name)}.")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ValueError(f"The learning rate must be a positive number, got {self.learning_rate}.")
        for name in ("p_text_drop", "p_image_drop"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a probability from 0 to 1, got {getattr(self, name)}.")

    @classmethod
    def for_method(cls, method: Method, **overrides: Any) -> TrainingSettings:
        """A method's own settings, with overrides."""
        names = ("steps", "learning_rate", "batch_size", "masked", "p_text_drop", "p_image_drop")
        return cls(**{**{name: getattr(method, name) for name in names}, **overrides})

    def deciding(self) -> dict[str, Any]:
        """Those that decide what every step computes: a resumed run must have them, an adapter file tells them."""
        return {name: value for name, value in asdict(self).items() if name not in FREE_SETTINGS}


@dataclass(frozen=True)
class Callbacks:
    """What a host hears of a run.

    progress: (steps done, loss, steps per second, seconds left), after every step.
    preview: what is being trained, every `preview_every` steps: what `train` was told to package (a LoadedAdapter from
    the three stages below, ready for `sampling.customize`).
    should_stop: asked before every step; True saves the state and ends the run.
    say: sentences, such as what was chosen and why.
    """

    progress: Callable[[int, float, float, float], None] = lambda step, loss, speed, seconds_left: None
    preview: Callable[[Any], None] = lambda trained: None
    should_stop: Callable[[], bool] = lambda: False
    say: Callable[[str], None] = log.info


@dataclass(frozen=True)
class TrainingResult:
    """trained: what was packaged (a LoadedAdapter from the three stages); stopped: by request, before the last step."""

    trained: Any
    losses: list[float]
    steps: int
    stopped: bool

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the adapter file of one of the three stages."""
        save_adapter(path, self.trained.adapter, self.trained.info, self.trained.tokens, self.trained.features)


@dataclass(frozen=True)
class Batch:
    """One step's draw, on the CPU, float32.

    latents, noise [B, 4, F, h, w]; timesteps [B]; states [B, 77, D] or None; dropped [B], where the empty prompt
    replaces the caption; features [B, D], zeros where dropped, or None; mask [B, 1, F, h, w] or None.
    """

    latents: Tensor
    noise: Tensor
    timesteps: Tensor
    captions: list[str]
    states: Tensor | None
    dropped: Tensor
    features: Tensor | None
    mask: Tensor | None


def draw_batch(
    data: TrainingData, method: Method, settings: TrainingSettings, queue: Tensor, generator: torch.Generator
) -> tuple[Batch, Tensor]:
    """Draw a step's samples. `queue` holds the items still to come in this round; the new queue is returned.

    Every round takes every item once, in a new order; a batch larger than what is left begins the next round.
    """
    size = settings.batch_size
    while len(queue) < size:
        queue = torch.cat([queue, torch.randperm(len(data.items), generator=generator)])
    items = [data.items[i] for i in queue[:size].tolist()]
    samples = [_draw_sample(item, data.frames, method, settings.shift, generator) for item in items]
    latents, masks, features = zip(*samples, strict=True)
    dropped = torch.rand(size, generator=generator) < settings.p_text_drop  # [B]
    blind = torch.rand(size, generator=generator) < settings.p_image_drop  # [B]
    masked = settings.masked and any(item.mask is not None for item in items)
    states = torch.stack([data.states[item.caption] for item in items]) if data.states else None
    timesteps = method.timesteps(size, generator)
    if settings.noisier:
        timesteps = timesteps.maximum(method.timesteps(size, generator))
    shape = (size, *latents[0].shape)
    batch = Batch(
        latents=torch.stack(latents),  # [B, 4, F, h, w]
        noise=offset_noise(shape, generator, settings.offset_noise),
        timesteps=timesteps,
        captions=[item.caption for item in items],
        states=states,
        dropped=dropped,
        features=torch.stack(features) * ~blind[:, None] if method.appearance_guidance else None,
        mask=torch.stack(masks) if masked else None,
    )
    return batch, queue[size:]


def _draw_sample(
    item: TrainingItem, frames: int, method: Method, shift: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Latents [4, F, h, w] of a random stretch, its mask [1, F, h, w], and the feature [D] of a random frame of it."""
    start = int(torch.randint(item.mean.shape[1] - frames + 1, (), generator=generator))
    guide = start + int(torch.randint(frames, (), generator=generator))
    stretch = slice(start, start + frames)
    mean, std = item.mean[:, stretch], item.std[:, stretch]
    mask = torch.ones_like(mean[:1]) if item.mask is None else item.mask[:, stretch]
    feature = item.features[guide] if method.appearance_guidance else None
    latents = mean + std * torch.randn(mean.shape, generator=generator)
    if shift:
        down, right = torch.randint(-shift, shift + 1, (2,), generator=generator).tolist()
        latents, mask = _moved(latents, down, right), _moved(mask, down, right)
    return latents, mask, feature


def _moved(picture: Tensor, down: int, right: int) -> Tensor:
    """[C, F, h, w] moved by whole cells; what comes in repeats the edge."""
    height, width = picture.shape[-2:]
    rows = (torch.arange(height) - down).clamp(0, height - 1)
    columns = (torch.arange(width) - right).clamp(0, width - 1)
    return picture[..., rows[:, None], columns]


@torch.inference_mode(False)
@torch.enable_grad()
def train(
    unet: UNet,
    data: TrainingData,
    method: Method,
    settings: TrainingSettings,
    learner: Learner,
    *,
    callbacks: Callbacks | None = None,
    package: Callable[[int], Any] | None = None,
    state_path: str | os.PathLike[str] | None = None,
    resume: bool = False,
) -> TrainingResult:
    """Train a learner's tensors on the frozen UNet, in place.

    package: steps done -> what previews and the result get; the learner itself by default.
    state_path: one file with all that a run needs to go on; written every `save_every` steps, at the end, and when the
    run is stopped or an error other than a bad loss ends it. resume: go on from that file where there is one.
    Ctrl-C counts as a stop request. Raises TrainingError for a loss that is not finite, and leaves the file of the last
    good state as it was; ValueError for a state of other data or settings and for data that do not fit the method.
    """
    callbacks = callbacks or Callbacks()
    _check(data, method, settings)
    if method.masked and not settings.masked and any(item.mask is not None for item in data.items):
        callbacks.say("The masks are not used: with these settings whole photographs are learned from.")
    unet.eval().requires_grad_(False)
    run = _Run(unet, data, method, settings, learner, None if state_path is None else Path(state_path))
    if resume and run.path is not None and run.path.exists():
        run.restore()
    package = package or (lambda step: learner)
    stopped = False
    with _checkpointing(unet, _checkpoints(run, callbacks)):
        try:
            stopped = _advance(run, settings, callbacks, package)
        except KeyboardInterrupt:
            if run.torn:  # in the middle of an update: the step is lost, the last file is not
                if run.saved_step is None:
                    raise
                run.restore()
            stopped = run.step < settings.steps
        except TrainingError:
            raise
        except BaseException:
            with suppress(ValueError):  # the first error is the one to tell
                run.save()
            raise
        run.save()
    run.optimizer.zero_grad()
    return TrainingResult(package(run.step), list(run.losses), run.step, stopped)


def _advance(run: _Run, settings: TrainingSettings, callbacks: Callbacks, package: Callable[[int], Any]) -> bool:
    """Step to the end, or until asked to stop: then True."""
    pace = _Pace()
    while run.step < settings.steps:
        if callbacks.should_stop():
            return True
        pace.start()
        run.update()
        speed = pace.lap()
        if settings.save_every and run.step % settings.save_every == 0:
            run.save()
        callbacks.progress(run.step, run.losses[-1], speed, (settings.steps - run.step) / speed)
        if settings.preview_every and run.step % settings.preview_every == 0:
            with torch.no_grad():
                callbacks.preview(package(run.step))
    return False


class _Run:
    """The changing part of a training: the trained tensors, the optimiser, the step, and what is random."""

    def __init__(
        self,
        unet: UNet,
        data: TrainingData,
        method: Method,
        settings: TrainingSettings,
        learner: Learner,
        path: Path | None,
    ) -> None:
        self.unet, self.data, self.method, self.settings = unet, data, method, settings
        self.learner, self.path = learner, path
        self.tensors = learner.tensors()
        self.device = next(unet.parameters()).device
        # The authors' optimiser: no weight decay, no clipping, no averaging.
        self.optimizer = _adamw(list(self.tensors.values()), settings.learning_rate)
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.rng = self.generator.get_state()  # as it was before the step in progress
        self.queue = torch.empty(0, dtype=torch.int64)
        self.step = 0
        self.losses: list[float] = []
        self.scale = LossScale(unet.dtype)
        self.torn = False
        self.saved_step: int | None = None
        self.description = {} if path is None else self._describe()

    def update(self) -> None:
        """One step: draw, forward, backward, and the optimiser's update."""
        self.optimizer.zero_grad()
        batch, queue = draw_batch(self.data, self.method, self.settings, self.queue, self.generator)
        loss = self._loss(batch)
        (loss * self.scale.factor).backward()
        gradients = [tensor.grad for tensor in self.tensors.values() if tensor.grad is not None]
        if not gradients:
            raise TrainingError("Nothing is being trained: no gradient reaches the learner's tensors.", self.step)
        found = [loss.detach().float(), _norm(gradients).to(loss.device)]
        value, norm = torch.stack(found).tolist()  # the only wait for the device
        if not math.isfinite(value):
            raise self._failure(f"the loss became {value}")
        finite = math.isfinite(norm)
        if not finite and not self.scale.may_shrink:
            raise self._failure("the gradient is not finite")
        if self.scale.active:
            torch._foreach_div_(gradients, self.scale.factor)
        warm = min(1.0, (self.step + 1) / max(self.settings.warmup, 1))
        self.optimizer.param_groups[0]["lr"] = self.settings.learning_rate * warm

        self.torn = True
        if finite:
            self.optimizer.step()
        self.scale.after(finite)
        self.losses.append(value)
        self.queue = queue
        self.rng = self.generator.get_state()
        self.step += 1
        self.torn = False

    def _loss(self, batch: Batch) -> Tensor:
        device, dtype = self.device, self.unet.dtype
        states = None if batch.states is None else batch.states.to(device)
        context = self.learner.context(batch.captions, states).to(device)  # [B, 77, D]
        if batch.dropped.any():
            empty = self.data.states[EMPTY_PROMPT].to(device)
            context = torch.where(batch.dropped.to(device)[:, None, None], empty, context)
        adapters = self.learner.adapters(None if batch.features is None else batch.features.to(device))
        x = SCHEDULE.add_noise(batch.latents, batch.noise, batch.timesteps).to(device, dtype)
        prediction = self.unet(x, batch.timesteps.to(device), context.to(dtype), adapters=adapters)
        mask = None if batch.mask is None else batch.mask.to(device)
        return self.method.loss(prediction, batch.noise.to(device), mask, self.settings.normalize_mask)

    def _failure(self, what: str) -> TrainingError:
        if not _finite(self.unet.parameters()):
            cause = "the base's weights hold NaN or infinity"
        elif not _finite(self.tensors.values()):
            cause = "the trained tensors held NaN or infinity from the start"
        elif self.unet.dtype == torch.float16:
            cause = "half precision overflowed; train in bfloat16 or float32"
        else:
            cause = f"the learning rate {self.settings.learning_rate:g} is too high"
        kept = ""
        if self.saved_step is not None:
            kept = f" The state after {self.saved_step} steps is kept in {self.path}."
        message = f"Training stopped at step {self.step + 1}: {what}, probably because {cause}.{kept}"
        return TrainingError(message, self.step)

    def _describe(self) -> dict[str, Any]:
        """What must be the same for a state to be this run's, told before anything is trained."""
        start = digest(part for name, tensor in self.tensors.items() for part in (name, tensor))
        return {
            "method": self.method.name,
            **self.settings.deciding(),
            "base": fingerprint(self.unet),
            "data": self.data.digest,
            "start": start,
        }

    def save(self) -> None:
        """Write the state file, whole or not at all. Does nothing without a path or when nothing has changed."""
        if self.path is None or self.torn or self.saved_step == self.step:
            return
        tensors = {
            "rng": self.rng,
            "queue": self.queue,
            "losses": torch.tensor(self.losses, dtype=torch.float64),
            "loss_scale": self.scale.state(),
        }
        for name, tensor in self.tensors.items():
            tensors[f"trained.{name}"] = tensor
            for moment, value in self.optimizer.state.get(tensor, {}).items():
                tensors[f"optimizer.{moment}.{name}"] = value
        about = {"format": STATE_FORMAT, "step": self.step, "run": self.description}
        write_safetensors(self.path, tensors, {STATE_FORMAT: json.dumps(about, sort_keys=True)})
        self.saved_step = self.step

    def restore(self) -> None:
        """Take over the state file. Raises ValueError when it is another run's or no whole state."""
        about, tensors = _read_state(self.path)
        _check_same_run(self.path, about["run"], self.description)
        if about["step"] > self.settings.steps:
            raise ValueError(
                f"{self.path.name} is at step {about['step']}, past the {self.settings.steps} asked for; "
                f"ask for more steps, or {BEGIN_ANEW}."
            )
        try:
            self._take_over(tensors)
        except (KeyError, RuntimeError, TypeError, ValueError) as error:  # a tensor is missing or of another shape
            raise _not_whole(self.path, error) from error
        self.step = self.saved_step = about["step"]
        self.torn = False

    def _take_over(self, tensors: Mapping[str, Tensor]) -> None:
        self.optimizer.state.clear()
        with torch.no_grad():
            for name, tensor in self.tensors.items():
                trained = tensors[f"trained.{name}"]
                if trained.shape != tensor.shape:
                    raise ValueError(f"{name} is {list(trained.shape)} there and {list(tensor.shape)} here")
                tensor.copy_(trained)
                if (updates := tensors.get(f"optimizer.step.{name}")) is not None:
                    moments = {key: tensors[f"optimizer.{key}.{name}"].to(tensor) for key in ("exp_avg", "exp_avg_sq")}
                    fused = self.optimizer.defaults["fused"]  # counts its steps where it works
                    self.optimizer.state[tensor] = {"step": updates.to(tensor.device) if fused else updates, **moments}
        self.generator.set_state(tensors["rng"])
        self.rng, self.queue = tensors["rng"], tensors["queue"]
        self.losses = tensors["losses"].reshape(-1).tolist()
        self.scale.restore(tensors["loss_scale"])


class LossScale:
    """Keeps gradients within half precision's range: a factor that halves on overflow and doubles after long peace.

    For float16 only (the authors' GradScaler); elsewhere the factor is 1 and stays so.
    """

    PEACE = 2000

    def __init__(self, dtype: torch.dtype) -> None:
        self.active = dtype == torch.float16
        self.factor = 65536.0 if self.active else 1.0
        self.good = 0

    @property
    def may_shrink(self) -> bool:
        return self.active and self.factor > 1.0

    def after(self, finite: bool) -> None:
        """Take note of a step whose gradients were finite or not."""
        if not self.active:
            return
        self.good = self.good + 1 if finite else 0
        if not finite:
            self.factor /= 2
        elif self.good == self.PEACE:
            self.factor, self.good = self.factor * 2, 0

    def state(self) -> Tensor:
        return torch.tensor([self.factor, self.good], dtype=torch.float64)

    def restore(self, state: Tensor) -> None:
        factor, good = state.tolist()
        if self.active:
            self.factor, self.good = factor, int(good)


class _Pace:
    """Steps per second, smoothed, of the steps alone: previews and saves do not count."""

    def __init__(self) -> None:
        self.seconds: float | None = None

    def start(self) -> None:
        self.started = time.perf_counter()

    def lap(self) -> float:
        lap = max(time.perf_counter() - self.started, 1e-9)
        self.seconds = lap if self.seconds is None else 0.9 * self.seconds + 0.1 * lap
        return 1 / self.seconds


def _adamw(tensors: list[Tensor], learning_rate: float) -> torch.optim.AdamW:
    """In one kernel where device and PyTorch have it."""
    try:
        return torch.optim.AdamW(tensors, lr=learning_rate, weight_decay=0.0, fused=True)
    except RuntimeError:
        return torch.optim.AdamW(tensors, lr=learning_rate, weight_decay=0.0)


def _norm(tensors: Iterable[Tensor]) -> Tensor:
    """The norm of all of them together, not finite where one number is not: a scalar that is still on its way.

    It lies where the first of them does; the others may lie elsewhere.
    """
    found = torch._foreach_norm([tensor.detach() for tensor in tensors])
    return torch.stack([norm.to(found[0].device, torch.float32) for norm in found]).norm()


def _finite(tensors: Iterable[Tensor]) -> bool:
    return all(tensor.detach().float().isfinite().all() for tensor in tensors)  # float: nothing asks eight-bit numbers


def _checkpoints(run: _Run, callbacks: Callbacks) -> bool:
    """Whether to checkpoint: as the settings say or, where they do not, as the memory asks."""
    settings = run.settings
    if settings.gradient_checkpointing is not None:
        return settings.gradient_checkpointing
    height, width = run.data.items[0].mean.shape[2:]
    cells = settings.batch_size * run.data.frames * height * width
    trained = sum(tensor.numel() for tensor in run.tensors.values())
    free = free_bytes(run.device, settings.memory)
    choice = choose_checkpointing(run.unet.config, cells, run.unet.dtype, trained, free)
    callbacks.say(choice.reason)
    return choice.checkpointing


@contextmanager
def _checkpointing(unet: UNet, on: bool) -> Iterator[None]:
    before, unet.gradient_checkpointing = unet.gradient_checkpointing, on
    try:
        yield
    finally:
        unet.gradient_checkpointing = before


def _check(data: TrainingData, method: Method, settings: TrainingSettings) -> None:
    if method.data == "images" and data.frames != 1:
        raise ValueError(f"The method {method.name} trains on photographs, and these data have {data.frames} frames.")
    if method.appearance_guidance and any(item.features is None for item in data.items):
        raise ValueError(f"The method {method.name} needs an image feature of every frame, and these data lack some.")
    if settings.p_text_drop and EMPTY_PROMPT not in data.states:
        raise ValueError("Captions can be dropped only where the empty prompt's text state is cached; see `with_text`.")
    missing = [caption for caption in data.captions if data.states and caption not in data.states]
    if missing:
        raise ValueError(f"There is no text state of the caption {missing[0]!r} in these data; see `with_text`.")


def steps_of_state(path: Path) -> int:
    """How many steps a state file has done. Raises ValueError when it is no whole state."""
    return _read_state(path, tensors_too=False)[0]["step"]


def _read_state(path: Path, tensors_too: bool = True) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What a state file tells of itself, and its tensors where the whole of it is wanted."""
    try:
        file = open_file(path)
        about = parsed(file.metadata.get(STATE_FORMAT, "null"))
        if not isinstance(about, dict) or about.get("format") != STATE_FORMAT:
            raise ValueError("it holds no training state")
        whole("its step", about.get("step"), int(MOST["steps"]), 0)
        json_object("what it tells of its run", about.get("run"))
        tensors = {name: value.read().clone() for name, value in file.tensors.items() if tensors_too}
    except ValueError as error:
        raise _not_whole(path, error) from error
    return about, tensors


def _not_whole(path: Path, error: Exception) -> ValueError:
    reason = bare(" ".join(str(error).split()).rstrip("."))
    return ValueError(f"{path} is no whole training state ({reason}); delete it, or {BEGIN_ANEW}.")


def _check_same_run(path: Path, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    names = {
        "base": "another base",
        "data": "other data",
        "start": "another starting point (class word, adapter shape)",
    }
    for key, value in ours.items():
        there = theirs.get(key)
        if there == value or (key == "base" and same_base(str(there), value)):
            continue
        what = names.get(key, f"{key} {there} instead of {value}")
        raise ValueError(f"{path} holds a run with {what}; go back to it, or {BEGIN_ANEW}.")
