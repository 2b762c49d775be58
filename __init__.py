"""ComfyUI's front door: what the host looks for in a folder of custom_nodes. The nodes are in `nodes`."""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    # Not at the top: tools that import this file without a ComfyUI around (pytest, linters) must get through.
    from .nodes import DreamVideoExtension

    return DreamVideoExtension()


__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
