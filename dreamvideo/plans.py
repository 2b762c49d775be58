"""What a training consists of: rows in order, their settings, and the name that prompts call the outcome by."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from .defaults import Defaults, fitted
from .encoders.protocols import ImageEncoder, NoImages
from .models.config import NetworkConfig
from .models.frame_attention import FrameAttentionConfig
from .training.data import digest
from .training.methods import WORD_OPTIONS, Method, for_clips, without_guidance, word_method
from .training.places import Run
from .training.settings import TrainingSettings


@dataclass(frozen=True)
class Plan:
    """What is trained: (row, settings) of each stage in order, and the name that prompts call it by.

    tokens: placeholder -> [n, D], where they were learned before; vectors: how many a learned token has.
    """

    stages: tuple[tuple[Method, TrainingSettings], ...]
    placeholder: str = ""
    class_word: str = ""
    tokens: Mapping[str, Tensor] = field(default_factory=dict)
    vectors: int = 1

    @property
    def steps(self) -> dict[str, int]:
        """Stage ("token", "identity", "motion") -> how many."""
        return {row.stage: settings.steps for row, settings in self.stages}

    @property
    def last(self) -> tuple[Method, TrainingSettings]:
        return self.stages[-1]

    def about(self) -> dict[str, Any]:
        """What decides the outcome beside data, base and steps."""
        row, own = self.last
        found = {"method": row.name, "placeholder": self.placeholder, "class_word": self.class_word, **own.deciding()}
        for before, settings in self.stages[:-1]:
            found |= {f"{before.stage}_{name}": value for name, value in settings.deciding().items()}
        if self.tokens:
            found["tokens"] = digest_of(self.tokens)
        return found

    def run(self, seen: str, base: str, **more: Any) -> Run:
        """What a place is claimed with. seen: a digest of the data, more: of their kind; base: a fingerprint."""
        _, own = self.last
        about = {**self.about(), "data": seen, "base": base, **more}
        return Run(about, self.steps, bool(own.preview_every), bool(own.snapshot_every))


def subject_plan(
    defaults: Defaults,
    config: NetworkConfig,
    row: Method,
    *,
    placeholder: str,
    class_word: str,
    settings: Mapping[str, Any],
    token_settings: Mapping[str, Any],
    vectors: int = 1,
) -> Plan:
    """A subject by a row for photographs, after the textual inversion that a row with a given token needs.

    By default DreamVideo's two stages (Wei et al., section 3.1). settings: of the last stage, token_settings: how those
    of a token's own differ from them; None leaves a setting to the base. A row that trains a token alone has both.
    """
    row = fitted(row, config)
    token = {**settings, "steps": None, "learning_rate": None, **token_settings}
    if row.trains == "token":
        given = {name: value for name, value in token_settings.items() if value is not None}
        return Plan(((row, defaults.settings("token", **{**settings, **given})),), placeholder, class_word, {}, vectors)
    own = (row, defaults.settings_for(row, **settings))
    if row.token != "given":
        return Plan((own,), placeholder, class_word)
    shared = {name: getattr(own[1], name) for name in WORD_OPTIONS}  # a row's own among them
    first = (word_method(row), defaults.settings("token", **{**token, "snapshot_every": 0, **shared}))
    return Plan((first, own), placeholder, class_word, {}, vectors)


def motion_plan(
    defaults: Defaults,
    config: NetworkConfig,
    row: Method,
    clips: int,
    *,
    placeholder: str = "",
    class_word: str = "",
    settings: Mapping[str, Any],
) -> Plan:
    """A motion by a row for clips, of which there are so many. settings: as for `subject_plan`."""
    if clips > 1 and row.trains == FrameAttentionConfig.kind:
        raise ValueError(f"Tune-A-Video learns from one clip and here are {clips}: give one, or take another method.")
    row = fitted(for_clips(row, clips), config)
    return Plan(((row, defaults.settings_for(row, **settings)),), placeholder, class_word)


def guided(row: Method, images: ImageEncoder, say: Callable[[str], None]) -> Method:
    """A row for clips, without appearance guidance where the base has no image encoder, which `say` hears."""
    if not row.appearance_guidance or not isinstance(images, NoImages):
        return row
    say("This base has no image encoder (--clip): the motion is learned without appearance guidance.")
    return without_guidance(row)


def digest_of(tokens: Mapping[str, Tensor]) -> str:
    """Of learned tokens, placeholder -> [n, D]; empty for none."""
    return digest(part for name, rows in tokens.items() for part in (name, rows)) if tokens else ""
