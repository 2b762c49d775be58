"""What the embedded base learns from: the toys that captions can name, and much that they cannot.

A base that has seen six shapes on eight ways draws nothing else, whatever an adapter tells it. So a part of what it
sees has an outline, colours or a way without a name ("a striped blob wandering on the sand"), and now and then there
are two.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from . import world

# How often the looks, the way, and both have no name, and how often there are two; the rest is `world.training_scene`.
LOOKS, WAY, BOTH, TWO = 0.15, 0.12, 0.05, 0.1


def scene(generator: torch.Generator) -> world.Scene:
    """A scene of the training."""
    drawn = world.training_scene(generator)
    lot = float(torch.rand(1, generator=generator))
    seed = int(torch.randint(2**31, (1,), generator=generator))
    if lot < LOOKS + BOTH:
        drawn = replace(drawn, subject=_nameless(drawn.subject, generator))
    if LOOKS < lot < LOOKS + BOTH + WAY:
        drawn = replace(drawn, motion=world.WANDERING, wander=seed)
    elif LOOKS + BOTH + WAY < lot < LOOKS + BOTH + WAY + TWO:
        drawn = replace(drawn, companion=world.random_subject(generator))
    return drawn


def family(generator: torch.Generator) -> list[world.Scene]:
    """One subject in one place on every way with a name whose caption may be learned from, and on one without, last.

    Of several that differ in their way alone, a network learns what the words for ways say.
    """
    drawn = scene(generator)
    named = [replace(drawn, motion=motion, wander=0) for motion in world.MOTIONS]
    seed = int(torch.randint(2**31, (1,), generator=generator))
    ways = [way for way in named if not world.is_held_out(way)] + [replace(drawn, motion=world.WANDERING, wander=seed)]
    return [world.jittered(way, generator) for way in ways]


def _nameless(subject: world.Subject, generator: torch.Generator) -> world.Subject:
    first, second = (f"#{value:06x}" for value in torch.randint(2**24, (2,), generator=generator).tolist())
    variant = int(torch.randint(2**31, (1,), generator=generator))
    return replace(subject, shape=world.BLOB, colour=first, second=second, variant=variant)
