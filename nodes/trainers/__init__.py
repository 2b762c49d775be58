"""The training stages as nodes: the engine's runs on what the host has loaded."""

from .motion import TrainMotion
from .subject import TrainIdentity, TrainSubject, TrainTextualInversion

NODES = [TrainTextualInversion, TrainIdentity, TrainSubject, TrainMotion]
