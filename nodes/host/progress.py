"""What a node shows while it runs, and what it shows when it has run. All text to the page goes through here."""

from __future__ import annotations

import re

import comfy.utils
import server
import torch
from comfy_api.latest import ui
from PIL import Image
from torch import Tensor

from ...dreamvideo.safety.texts import printable
from .training import stop_if_interrupted


def for_page(text: str) -> str:
    """Text as the page has to be given it to show that text: it takes HTML, or Markdown, and links in [[brackets]]."""
    return re.sub(r"[&<>\"'`*\[\]\\]", lambda found: f"&#{ord(found[0])};", printable(text))


def say(node_id: str | None, text: str) -> None:
    """Put text onto a node, in the browser window that queued it: others may show another node of the same id."""
    running = getattr(server.PromptServer, "instance", None)
    window = getattr(running, "client_id", None)
    if window is not None and node_id is not None and hasattr(running, "send_progress_text"):
        for each in places_of(node_id):
            running.send_progress_text(for_page(text), each, window)


def places_of(node_id: str) -> list[str]:
    """A node and the subgraphs around it: "7:3" is 3 in 7, and whoever looks at 7 from outside sees that alone."""
    numbers = node_id.split(":")
    return [":".join(numbers[:depth]) for depth in range(len(numbers), 0, -1)]


def shown(node_id: str | None, text: str) -> ui.PreviewText:
    """Text for a node's `ui`: frontends that draw no PreviewText draw what is told as progress."""
    say(node_id, text)
    return ui.PreviewText(for_page(text))


class Progress:
    """A node's progress bar, its line of text and its picture while it runs."""

    def __init__(self, node_id: str | None, total: int) -> None:
        self.node_id = node_id
        self.bar = comfy.utils.ProgressBar(total)
        self.at = (0, total)

    def __call__(self, done: int, total: int, text: str = "") -> None:
        """Raises Interrupted when the user has cancelled."""
        if text:
            say(self.node_id, text)
        self.at = (done, total)
        self.bar.update_absolute(done, total)
        stop_if_interrupted()

    def show(self, image: Tensor) -> None:
        """Put [3, H, W] in 0..1 onto the node; the picture behind the last step too."""
        pixels = (image.clamp(0, 1) * 255).round().to(torch.uint8).movedim(0, -1).cpu().numpy()
        self.bar.update_absolute(*self.at, ("JPEG", Image.fromarray(pixels), max(pixels.shape[:2])))
