"""What the encoders make, and a short video under what was trained before: speed, peak memory, numbers or not."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch
from torch import Tensor

from ..customizing import customize
from ..sampling import SamplingSettings, generate
from .measure import dtype_name, forget_peak, pace, peak
from .networks import Session
from .report import Finding
from .training import CAPTION, FRAMES, PLACEHOLDER, picture

LENGTH = 16  # frames at most
MOST = 10  # steps


def encode(session: Session) -> Iterator[Finding]:
    """What the three encoders make of a prompt and a picture, and whether it is numbers."""
    encoders, (height, width) = session.base.encoders, session.size
    image = picture(height, width, seed=0)[None]
    with torch.no_grad():
        states = encoders.text.encode([CAPTION])
        feature = encoders.image.encode(image)
        latents = encoders.vae.encode(image).mean
        again = encoders.vae.decode(latents).cpu()
    yield _encoded("text", states)
    yield _encoded("image feature", feature)
    yield _encoded("latents", latents)
    error = (again - image).abs().mean().item()
    yield Finding("VAE and back", f"a smooth picture comes back with a mean error of {error:.3f} of 1")


def _encoded(name: str, found: Tensor) -> Finding:
    whole = bool(found.isfinite().all())
    text = f"{list(found.shape)}, mean {found.mean().item():.3g}, deviation {found.std().item():.3g}"
    advice = "This encoder gives NaN or infinity: its file is damaged or its precision too low."
    return Finding(name, f"{text}, on {found.device}", "" if whole else advice)


def sample(session: Session) -> Iterator[Finding]:
    """One step, then as many as the session's seconds allow."""
    base = session.base
    used = [session.trained[kind] for kind in ("identity", "motion") if kind in session.trained]
    customization = customize(used)
    forget_peak(base.device)
    laps: list[float] = []
    began = time.perf_counter()

    def tick(done: int, steps: int, estimate: Tensor) -> None:
        nonlocal began
        estimate.sum().item()  # waits for the device
        laps.append(time.perf_counter() - began)
        began = time.perf_counter()

    generate(base.unet, base.encoders, _settings(session, 1), customization, callback=tick)
    steps = int(max(2, min(MOST, session.seconds / laps[0])))
    began = started = time.perf_counter()
    video = generate(base.unet, base.encoders, _settings(session, steps), customization, callback=tick)
    seconds = time.perf_counter() - started
    advice = f"The video came out as NaN or infinity in {dtype_name(base.unet.dtype)}: load the base in another one."
    finite = bool(video.isfinite().all())
    names = " and ".join(loaded.info.kind for loaded in used) or "no adapter"
    yield Finding("video", f"{list(video.shape)} with {names}: {'numbers' if finite else 'not numbers'}",
                  "" if finite else advice)  # fmt: skip
    yield Finding("speed", f"{pace(laps, 'step')}, {steps} of them with encoding and decoding took {seconds:.1f} s")
    yield Finding("peak memory", peak(base.device))


def _settings(session: Session, steps: int) -> SamplingSettings:
    height, width = session.size
    known = any(PLACEHOLDER in loaded.tokens for kind, loaded in session.trained.items() if kind != "token")
    return session.defaults.sampling(
        CAPTION.replace("dog", PLACEHOLDER) if known else CAPTION,
        height=height,
        width=width,
        frames=FRAMES if session.small else min(session.defaults.frames, LENGTH),
        steps=steps,
    )
