"""What decides a training beside its data and its base, by the names that run files, options and settings share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .settings import TrainingSettings


def recipe(
    command: str, settings: TrainingSettings, token: TrainingSettings | None = None, **more: Any
) -> dict[str, Any]:
    """Option -> value, all of them written out, so that later defaults change nothing.

    As `files.toml.toml_text` of it stands in an adapter's info, both faces have the same.

    command: "train subject" or "train motion". settings: of the last stage; token: of the textual inversion before it.
    more: method, placeholder, class_word, caption, height, width and, of a motion, frames and fps.
    """
    given: Mapping[str, Any] = {**more, **settings.deciding(), "steps": settings.steps}
    if token is not None:
        given = {**given, "token_steps": token.steps, "token_learning_rate": token.learning_rate}
    return {"command": command, **dict(sorted(given.items()))}
