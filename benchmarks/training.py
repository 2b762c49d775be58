"""Figure 1: one training step of each stage, ours and the authors', with what each does to prepare it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dreamvideo.models.stack import AdapterStack, StackEntry
from dreamvideo.training.data import TrainingData, encode_clips, encode_photos, with_text
from dreamvideo.training.learners import AdapterLearner, TokenLearner
from dreamvideo.training.loop import _Run
from dreamvideo.training.methods import IDENTITY, MOTION, TEXTUAL_INVERSION, Method
from dreamvideo.training.settings import TrainingSettings

from .authors import AuthorsNetwork, AuthorsTraining
from .clock import interleaved
from .setting import CAPTION, Row, Setting, check_agreement

PHOTOS = 4


@dataclass(frozen=True)
class Stage:
    name: str
    method: Method
    target: str  # on two CPU cores / on an H200


STAGES = {
    "token": Stage("textual inversion", TEXTUAL_INVERSION, "2 / 3"),
    "identity": Stage("identity", IDENTITY, "4 / 6"),
    "motion": Stage("motion", MOTION, "2 / 3"),
}


def rows(setting: Setting) -> list[Row]:
    found = []
    for name, stage in STAGES.items():
        agree(setting, name)
        jobs = {"ours": our_step(setting, name), "authors": authors_step(setting, name)}
        seconds = interleaved(jobs, setting.rounds, setting.clock)
        ratio = seconds["authors"] / seconds["ours"]
        absolute = {f"{who}, s": taken for who, taken in seconds.items()}
        found.append(Row(1, f"{stage.name} step, authors / ours", ratio, "x", stage.target, absolute))
    return found


def our_step(setting: Setting, name: str) -> Callable[[], None]:
    """A step of our loop, encoding included only as far as it is not done once before."""
    method = STAGES[name].method
    data = our_data(setting, name)
    if name == "token":
        learner = TokenLearner(setting.encoders.text, {"*": token(setting)})
    else:
        learner = AdapterLearner(setting.adapter(name))
        data = with_text(data, setting.encoders.text, {"*": token(setting)})
    settings = TrainingSettings.for_method(method)
    return _Run(setting.unet, data, method, settings, learner, None).update


def our_data(setting: Setting, name: str) -> TrainingData:
    if name == "motion":
        clip = setting.clips(1, setting.size.frames)[0]
        return encode_clips([clip], CAPTION, setting.encoders, setting.size.frames)
    photos = setting.clips(PHOTOS, 1)[:, 0]
    return encode_photos(list(photos), CAPTION, setting.encoders)


def authors_step(setting: Setting, name: str) -> Callable[[], None]:
    adapters = [] if name == "token" else [setting.adapter(name)]
    network = AuthorsNetwork(setting.unet, adapters, checkpointing=True)
    network.adapters.requires_grad_(True)
    clips = setting.clips(1, setting.size.frames) if name == "motion" else setting.clips(PHOTOS, 1)
    given = {"token": token(setting)} if name == "token" else {"conditioned": name == "motion"}
    return AuthorsTraining(network, setting.encoders, clips, CAPTION, **given).step


def token(setting: Setting) -> torch.Tensor:
    return setting.random(1, setting.size.unet.context_dim, seed=2)


def agree(setting: Setting, name: str) -> None:
    """The same loss and the same gradients from the same draw, before either side is timed."""
    frames = setting.size.frames if name == "motion" else 1
    x = setting.random(1, 4, frames, setting.side, setting.side)
    target, feature = setting.random(*x.shape, seed=3), setting.random(1, setting.size.feature_width, seed=4)
    context = setting.random(1, 77, setting.size.unet.context_dim, seed=5).requires_grad_(name == "token")
    timesteps = torch.tensor([500], device=setting.device)
    adapters = [] if name == "token" else [setting.adapter(name).requires_grad_()]
    network = AuthorsNetwork(setting.unet, adapters, checkpointing=True)
    network.adapters.requires_grad_(True)
    stack = AdapterStack([StackEntry(adapter) for adapter in adapters], feature)
    our_leaf = their_leaf = context
    if adapters:
        first = next(iter(adapters[0].modules_at))
        our_leaf, their_leaf = adapters[0].at(first).down_linear.weight, network.adapters[0].down_linear.weight

    def found(prediction: Tensor, leaf: Tensor) -> tuple[Tensor, Tensor]:
        (gradient,) = torch.autograd.grad((prediction.float() - target).square().mean(), leaf)
        return prediction.detach().float(), gradient

    ours = found(setting.unet(x.to(setting.dtype), timesteps, context.to(setting.dtype), stack), our_leaf)
    theirs = found(network(x, timesteps, context, feature), their_leaf)
    tolerance = 1e-4 if setting.dtype == torch.float32 else 0.1
    check_agreement(f"{name}: prediction", ours[0], theirs[0], tolerance)
    check_agreement(f"{name}: gradient", ours[1], theirs[1], 10 * tolerance)
