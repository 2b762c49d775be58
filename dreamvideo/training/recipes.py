"""What decides a training beside its data and its base, as the run file that an adapter tells of itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..files.toml import toml_text
from .data import TrainingData
from .methods import MOTION_METHODS, SUBJECT_METHODS, Method
from .settings import IDLE_SETTINGS, LATER_SETTINGS, TrainingSettings


def recipe(
    stages: Sequence[tuple[Method, TrainingSettings]], data: TrainingData, placeholder: str = "", class_word: str = ""
) -> str:
    """TOML: the command and its options, all written out, so that later defaults change nothing.

    It holds no path: where the data and the base lie is nobody's business but their owner's. placeholder, class_word:
    for a row with a token. Empty where no command trains so: by a row of one's own, or under a token of before.
    """
    row, settings = stages[-1]
    command, methods = ("subject", SUBJECT_METHODS) if row.data == "images" else ("motion", MOTION_METHODS)
    method = next((name for name, each in methods.items() if each.name == row.name.removesuffix("_several")), None)
    if method is None or (row.token == "given" and len(stages) == 1):
        return ""
    height, width = (8 * side for side in data.items[0].mean.shape[2:])
    given: dict[str, Any] = {"method": method, "height": height, "width": width}
    if row.token != "none":
        given |= {"placeholder": placeholder, "class_word": class_word}
    if command == "motion":
        same = len(set(data.captions)) == 1
        given |= {"caption": data.captions[0] if same else None, "frames": data.frames}
    idle = IDLE_SETTINGS[row.data]
    told = {name: getattr(settings, name) for name in LATER_SETTINGS} | settings.deciding()
    given |= {name: value for name, value in told.items() if name not in idle}
    given["steps"] = settings.steps
    if len(stages) > 1:
        token = stages[0][1]
        given |= {"token_steps": token.steps, "token_learning_rate": token.learning_rate}
    return toml_text({"command": f"train {command}", **given})
