"""What a node shows while it runs."""

from __future__ import annotations

from typing import Any

import comfy.utils
import server
import torch
from PIL import Image
from torch import Tensor

from .training import stop_if_interrupted


def say(node_id: str | None, text: str) -> None:
    """Put text onto a node, in the browser window that queued it: others may show another node of the same id."""
    running = getattr(server.PromptServer, "instance", None)
    window = getattr(running, "client_id", None)
    if window is not None and node_id is not None and hasattr(running, "send_progress_text"):
        running.send_progress_text(text, node_id, window)


class Progress:
    """A node's progress bar, its line of text and its picture while it runs."""

    def __init__(self, node_id: str | None, total: int) -> None:
        self.node_id = node_id
        self.bar = comfy.utils.ProgressBar(total)
        self.picture: Any = None

    def __call__(self, done: int, total: int, text: str = "") -> None:
        """Raises Interrupted when the user has cancelled."""
        if text:
            say(self.node_id, text)
        self.bar.update_absolute(done, total, self.picture)
        self.picture = None
        stop_if_interrupted()

    def show(self, image: Tensor) -> None:
        """Put [3, H, W] in 0..1 onto the node with the next step."""
        pixels = (image.clamp(0, 1) * 255).round().to(torch.uint8).movedim(0, -1).cpu().numpy()
        self.picture = ("JPEG", Image.fromarray(pixels), max(pixels.shape[:2]))
