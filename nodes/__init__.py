"""DreamVideo's nodes for ComfyUI."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from . import adapters, data, host, loaders, sampling, trainers

host.register()
host.register_folders()

NODES: list[type[io.ComfyNode]] = [*loaders.NODES, *data.NODES, *trainers.NODES, *adapters.NODES, *sampling.NODES]


class DreamVideoExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES
