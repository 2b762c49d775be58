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
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..devices import choose_checkpointing, free_bytes
from ..files.fingerprint import fingerprint
from ..files.tensors import write_safetensors
from ..models.attention_maps import AttentionMaps
from ..models.diffusion import against_a_frame, schedule_for
from ..models.network import VideoUNet
from ..models.threads import threads_for
from .attention import attention_loss
from .data import EMPTY_PROMPT, TrainingData, digest
from .drawing import Batch, check_drawable, draw_batch, notes_on
from .learners import Learner
from .methods import Method
from .precision import LossScale, adamw, all_finite, total_norm
from .settings import TrainingSettings
from .state import BEGIN_ANEW, STATE_FORMAT, check_same_run, not_whole, read_state

log = logging.getLogger(__name__)


class TrainingError(ValueError):
    """Training cannot go on; `step` tells after how many steps."""

    def __init__(self, message: str, step: int) -> None:
        super().__init__(message)
        self.step = step


@dataclass(frozen=True)
class Callbacks:
    """What a host hears of a run.

    progress: (steps done, loss, steps per second, seconds left), after every step.
    preview: what is being trained, every `preview_every` steps: what `train` was told to package (a TrainedAdapter from
    the three stages below, ready for `customizing.customize`).
    should_stop: asked before every step; True saves the state and ends the run.
    say: sentences, such as what was chosen and why.
    snapshot: what is being trained, as for a preview, every `snapshot_every` steps but for the last one.
    """

    progress: Callable[[int, float, float, float], None] = lambda step, loss, speed, seconds_left: None
    preview: Callable[[Any], None] = lambda trained: None
    should_stop: Callable[[], bool] = lambda: False
    say: Callable[[str], None] = log.info
    snapshot: Callable[[Any], None] = lambda trained: None


@dataclass(frozen=True)
class TrainingResult:
    """trained: what was packaged, a TrainedAdapter from the three stages; stopped: by request, before the last step."""

    trained: Any
    losses: list[float]
    steps: int
    stopped: bool


@torch.inference_mode(False)
@torch.enable_grad()
def train(
    unet: VideoUNet,
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
    check_drawable(data, method, settings)
    for note in notes_on(data, method, settings):
        callbacks.say(note)
    unet.eval().requires_grad_(False)
    run = _Run(unet, data, method, settings, learner, None if state_path is None else Path(state_path))
    if resume and run.path is not None and run.path.exists():
        run.restore()
    package = package or (lambda step: learner)
    stopped = False
    with threads_for(unet, run.device), _checkpointing(unet, _checkpoints(run, callbacks)):
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
        if settings.snapshot_every and run.step % settings.snapshot_every == 0 and run.step < settings.steps:
            callbacks.snapshot(package(run.step))
    return False


class _Run:
    """The changing part of a training: the trained tensors, the optimiser, the step, and what is random."""

    def __init__(
        self,
        unet: VideoUNet,
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
        own, rate = learner.rates(), settings.learning_rate
        self.optimizer = adamw((each, rate * own.get(name, 1.0)) for name, each in self.tensors.items())
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
        found = [loss.detach().float(), total_norm(gradients).to(loss.device)]
        value, norm = torch.stack(found).tolist()  # the only wait for the device
        if not math.isfinite(value):
            raise self._failure(f"the loss became {value}")
        finite = math.isfinite(norm)
        if not finite and not self.scale.may_shrink:
            raise self._failure("the gradient is not finite")
        if self.scale.active:
            torch._foreach_div_(gradients, self.scale.factor)  # pyright: ignore[reportPrivateImportUsage]  # all at once
        warm = min(1.0, (self.step + 1) / max(self.settings.warmup, 1))
        for group in self.optimizer.param_groups:
            group["lr"] = group["rate"] * warm

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
            context = torch.where(batch.dropped.to(device).view(-1, *[1] * (context.ndim - 1)), empty, context)
        adapters = self.learner.adapters(None if batch.features is None else batch.features.to(device))
        x = schedule_for(self.unet.config).add_noise(batch.latents, batch.noise, batch.timesteps).to(device, dtype)
        maps = None if batch.subjects is None else AttentionMaps((x.shape[3], x.shape[4]), self.unet.config)
        prediction = self.unet(x, batch.timesteps.to(device), context.to(dtype), adapters=adapters, watch=maps)
        mask = None if batch.mask is None else batch.mask.to(device)
        noise, normalize = batch.noise.to(device), self.settings.normalize_mask
        loss = self.method.loss(prediction, noise, mask, normalize)
        if maps is not None:
            loss = loss + attention_loss(maps, batch, self.data.places)
        if batch.anchors is None:
            return loss
        return loss + self.method.loss(*against_a_frame(prediction, noise, mask, batch.anchors), normalize)

    def _failure(self, what: str) -> TrainingError:
        if not all_finite(self.unet.parameters()):
            cause = "the base's weights hold NaN or infinity"
        elif not all_finite(self.tensors.values()):
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
        assert self.path is not None
        about, tensors = read_state(self.path)
        check_same_run(self.path, about["run"], self.description)
        if about["step"] > self.settings.steps:
            raise ValueError(
                f"{self.path.name} is at step {about['step']}, past the {self.settings.steps} asked for; "
                f"ask for more steps, or {BEGIN_ANEW}."
            )
        try:
            self._take_over(tensors)
        except (KeyError, RuntimeError, TypeError, ValueError) as error:  # a tensor is missing or of another shape
            raise not_whole(self.path, error) from error
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
def _checkpointing(unet: VideoUNet, on: bool) -> Iterator[None]:
    before, unet.gradient_checkpointing = unet.gradient_checkpointing, on
    try:
        yield
    finally:
        unet.gradient_checkpointing = before
