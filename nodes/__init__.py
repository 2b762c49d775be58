"""DreamVideo's nodes for ComfyUI."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from . import adapters, animatediff, check, data, host, loaders, regions, sampling, trainers
from .inputs import checked

host.register()
host.register_folders()

TOPICS = (loaders, animatediff, data, trainers, adapters, regions, sampling, check)
NODES: list[type[io.ComfyNode]] = [checked(node) for topic in TOPICS for node in topic.NODES]


class DreamVideoExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES
